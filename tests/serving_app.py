"""A tiny model that is served in this process, on a port of its own, with programs that ask it.

    with served() as server:
        server.openai.chat.completions.create(model="tiny", messages=[…])      # OpenAI's own client
        server.http.post("/v1/chat/completions", json=server.asked())          # or any

The model's weights are random: it answers nonsense, at seed 0 to the last token that it may, at seed 1 four tokens.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import httpx2
import openai
import pytest
import torch
from fastapi import FastAPI

from bridle.core.records import Prompt, Reward
from bridle.generation.batch import BatchLimits, Drawn
from bridle.generation.engine import Engine
from bridle.models.policy import Policy
from bridle.recipe.services import ServeSection
from bridle.serve.app import serving_app
from bridle.serve.gate import Keys
from bridle.serve.scheduler import Scheduler, ServedModel
from bridle.serve.serving import served_in_thread
from bridle.site.listening import Place
from tests.models.tiny import policy

LONG, SHORT = 0, 1  # seeds
HELLO = [{"role": "user", "content": "hello"}]


@dataclass
class Server:
    url: str
    app: FastAPI
    scheduler: Scheduler
    stack: ExitStack = field(default_factory=ExitStack)

    @cached_property
    def openai(self) -> openai.OpenAI:
        return self.stack.enter_context(openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0))

    @cached_property
    def http(self) -> httpx2.Client:
        return self.stack.enter_context(httpx2.Client(base_url=self.url, timeout=30))

    @property
    def model(self) -> ServedModel:
        assert self.scheduler.current is not None
        return self.scheduler.current

    def asked(self, **more: Any) -> dict[str, Any]:
        return {"model": "tiny", "messages": HELLO, "seed": LONG, "max_tokens": 16, **more}

    def events(self, body: dict[str, Any], path: str = "/v1/chat/completions") -> list[Any]:
        """What a stream sends, event by event; its last as text."""
        with self.http.stream("POST", path, json={"stream": True, **body}) as answer:
            assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
            sent = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        return [one if one == "[DONE]" else json.loads(one) for one in sent]

    def refused(self, status: int, path: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
        """The error of a request that is refused."""
        return error_of(self.http.post(path, json=body), status)

    def engine_text(self, seed: int = LONG, tokens: int = 16, sample: int = 0) -> str:
        """What the engine answers to HELLO by itself."""
        template = self.model.policy.template
        return template.decode(
            engine_ids(self.model.policy, template.prompt_ids([Prompt.from_text("hello")])[0], seed, tokens, sample)
        )


def error_of(answer: httpx2.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert answer.json().keys() == {"error"} and error.keys() == {"message", "type", "param", "code"}
    assert "\n" not in error["message"] and "Traceback" not in answer.text
    return error


def engine_ids(policy: Policy, prompt: Sequence[int], seed: int, tokens: int, sample: int = 0) -> list[int]:
    from bridle.generation.sampling import Sampling

    engine = Engine(torch.float32)
    engine.load(policy)
    (found,) = engine.generate([prompt], Sampling(tokens), stamp=policy.stamp, seed=seed, samples=[sample])
    return found.token_ids


@contextmanager
def served(
    model: Policy | None = None,
    *,
    place: Place | None = None,
    keys: Keys | None = None,
    reward: Reward | None = None,
    no_chat: str = "",
    load: Callable[[], ServedModel] | None = None,
    **settings: Any,
) -> Iterator[Server]:
    """`settings` of [serve]. Waits until the model is there, but where the caller loads it."""
    section = ServeSection(**{"drain_seconds": 0.0, "batch": 8, **settings})
    chosen = model or policy()

    def tiny() -> ServedModel:
        return ServedModel("tiny", chosen, Engine(torch.float32), BatchLimits(rows=section.batch), no_chat, reward)

    scheduler = Scheduler(load or tiny, max_waiting=section.max_waiting)
    app = serving_app(scheduler, section, place or Place(), keys)
    with served_in_thread(app, section) as url, ExitStack() as stack:
        if load is None:
            until(lambda: scheduler.current is not None)
        yield Server(url, app, scheduler, stack)


def until(happened: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@dataclass
class Paused:
    """A model whose batch takes a step only when it is let."""

    model: ServedModel
    steps: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    open: bool = False

    def __enter__(self) -> "Paused":
        self.batch, self.step = self.model.batch, self.model.batch.step
        self.batch.step = self.wait_and_step  # type: ignore[method-assign]
        return self

    def wait_and_step(self) -> list[Drawn]:
        if not self.open:
            self.steps.acquire(timeout=30)
        return self.step()

    def let(self, steps: int) -> None:
        self.steps.release(steps)

    def __exit__(self, *_: object) -> None:
        self.open, self.batch.step = True, self.step  # type: ignore[method-assign]
        self.steps.release(1000)


def break_later(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model fails at its fifth step from now on."""
    step, left = server.model.batch.step, iter(range(4))

    def fail_at_last() -> Any:
        if next(left, None) is None:
            raise RuntimeError("secret words of the machine")
        return step()

    monkeypatch.setattr(server.model.batch, "step", fail_at_last)
