"""Nothing that is sent makes the served model's API fail, by its document or against it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode

from bridle.feedback.store.store import Store
from bridle.serve.gate import Keys
from tests.serving_app import HELLO, Server, served

FUZZING = settings(
    derandomize=True, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)


def fuzz(server: Server, examples: int) -> None:
    schema = schemathesis.openapi.from_dict(server.http.get("/openapi.json").json())
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @settings(FUZZING, max_examples=examples)
            @given(case=operation.as_strategy(generation_mode=mode))
            def send(case: Any) -> None:
                made = case.as_transport_kwargs(base_url=server.url)
                known = {name: made[name] for name in ("method", "url", "headers", "params", "json") if name in made}
                for body in (known.get("json"), almost(known.get("json"))):
                    answer = server.http.request(
                        **{**known, **({} if body is None else {"json": body})}, content=made.get("data")
                    )
                    assert answer.status_code < 500, f"{case.method} {case.formatted_path} {body}: {answer.text}"
                    assert answer.status_code < 400 or answer.json()["error"]["message"]

            with suppress(Unsatisfiable):  # what has no parameter cannot be asked against its document
                send()


def almost(body: Any) -> Any:
    """The same with a model and something to answer, so that what else it says is looked at."""
    if not isinstance(body, dict):
        return body
    return {
        **body,
        "model": "tiny",
        "messages" if "messages" in body else "prompt": HELLO if "messages" in body else "x",
    }


@contextmanager
def kept(folder: Path) -> Iterator[Server]:
    """A server that keeps what a browser's user says."""
    with Store.open(folder / "store.sqlite") as store:
        with served(keys=Keys(store), max_tokens=3, user_rate=10**6, compare_share=1.0) as server:
            server.http.headers["cookie"] = f"bridle_user={'0' * 43}"
            text = server.http.get("/v1/consent").json()["text"]["sha256"]
            assert server.http.post("/v1/consent", json={"answer": "agreed", "text": text}).status_code == 200
            yield server


def test_nothing_that_is_sent_makes_it_fail(tmp_path: Path) -> None:
    with kept(tmp_path) as server:
        fuzz(server, 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nothing_of_much_that_is_sent_makes_it_fail(tmp_path: Path) -> None:
    with kept(tmp_path) as server:
        fuzz(server, 200)
