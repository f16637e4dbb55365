"""What is sent and refused, to the byte: by plain HTTP, where OpenAI's client (test_client.py) would hide it, and by curl."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving_app import Server, error_of, served

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served(max_answers=4) as server:
        yield server


def test_what_a_stream_sends(server: Server) -> None:
    *chunks, done = server.events(server.asked(stream_options={"include_usage": True}, max_tokens=6))
    assert done == "[DONE]"
    assert len({(one["id"], one["created"], one["object"], one["system_fingerprint"]) for one in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    *parts, usage = chunks
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 6
    assert all(one["usage"] is None and len(one["choices"]) == 1 for one in parts)
    first, *middle, last = [one["choices"][0] for one in parts]
    assert first["delta"] == {"role": "assistant"} and last["delta"] == {}
    assert last["finish_reason"] == "length" and middle
    assert all(one["finish_reason"] is None and one["delta"].keys() == {"content"} for one in middle)


def test_without_include_usage_no_chunk_speaks_of_it(server: Server) -> None:
    *chunks, _ = server.events(server.asked(max_tokens=3))
    assert all("usage" not in one and one["choices"] for one in chunks)


def test_what_asks_for_nothing_is_no_reason_to_warn(server: Server) -> None:
    harmless = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "store": False, "top_p": None}
    answer = server.http.post(CHAT, json=server.asked(**harmless))
    assert answer.status_code == 200 and "x-bridle-warning" not in answer.headers


def test_unknown_parameters_are_ignored_and_named(server: Server) -> None:
    answer = server.http.post(CHAT, json=server.asked(min_p=0.1, **{"é\r\nx: y": 1}))
    assert answer.status_code == 200 and "min_p" in answer.headers["x-bridle-warning"] and "x" not in answer.headers
    nameless = server.http.post(CHAT, json=server.asked(**{"": 1}))
    assert nameless.status_code == 200 and '""' in nameless.headers["x-bridle-warning"]


# --------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("path", "more", "param"),
    [
        (CHAT, {"stream": "yes"}, "stream"),
        (CHAT, {"model": None}, "model"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 500}]}, "messages"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"prompt": [300]}, "prompt"),
        ("/v1/completions", {"prompt": [["x"]]}, "prompt"),
    ],
)
def test_what_no_client_would_send_is_refused_by_name(
    server: Server, path: str, more: dict[str, Any], param: str
) -> None:
    error = server.refused(400, path, **server.asked(**more))
    assert error["type"] == "invalid_request_error" and error["param"] == param


@pytest.mark.parametrize(
    ("status", "headers", "content"),
    [
        (415, {"content-type": "text/plain"}, b"{}"),
        (415, {}, b"{}"),
        (400, {"content-type": "application/json"}, b"{"),
        (400, {"content-type": "application/json"}, b"[]"),
        (400, {"content-type": "application/json"}, b""),
        (400, {"content-type": "application/json"}, b"[" * 100_000),
        (
            400,
            {"content-type": "application/json"},
            b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        ),
        (400, {"content-type": "application/json"}, b'{"model": "tiny", "messages": [], "temperature": NaN}'),
        (400, {"content-type": "application/json"}, b'{"model": "\xff"}'),
        (413, {"content-type": "application/json"}, b" " * (2**20 + 1)),
    ],
)
def test_bodies_that_are_none(server: Server, status: int, headers: dict[str, str], content: bytes) -> None:
    error_of(server.http.post(CHAT, content=content, headers=headers), status)


def test_addresses_and_methods_that_are_none(server: Server) -> None:
    error_of(server.http.get("/v1/embeddings"), 404)
    error_of(server.http.get(CHAT), 405)
    error_of(server.http.get("/"), 404)


# ------------------------------------------------------------------------------------------------------- others


def test_curl(server: Server) -> None:
    command = ["curl", "-sN", f"{server.url}{CHAT}", "-H", "Content-Type: application/json"]
    body = json.dumps(server.asked(stream=True, max_tokens=3))
    sent = subprocess.run([*command, "-d", body], capture_output=True, text=True, check=True).stdout
    assert sent.startswith("data: {") and sent.endswith("\n\ndata: [DONE]\n\n")
    whole = subprocess.run([*command, "-d", json.dumps(server.asked())], capture_output=True, check=True).stdout
    assert json.loads(whole)["choices"][0]["message"]["content"] == server.engine_text()
    missing = subprocess.run([*command, "-fd", json.dumps(server.asked(model="x"))], capture_output=True)
    assert missing.returncode == 22  # --fail: the status is an error's


def test_health_and_metrics(server: Server) -> None:
    found = server.http.get("/health").json()
    assert found["status"] == "ready" and found["model"] == "tiny" and found["stamp"] == server.model.policy.stamp

    def counted(name: str) -> float:
        lines = server.http.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    names = (
        'bridle_requests_total{route="/v1/chat/completions",status="200"}',
        "bridle_completion_tokens_total",
        "bridle_first_token_seconds_count",
    )
    before = [counted(name) for name in names]
    assert server.http.post(CHAT, json=server.asked(max_tokens=5)).status_code == 200
    assert [counted(name) for name in names] == [before[0] + 1, before[1] + 5, before[2] + 1]
    assert counted("bridle_answers_running") == counted("bridle_answers_waiting") == 0
