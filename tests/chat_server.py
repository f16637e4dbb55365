"""The chat page on a server that answers by a script, so that a browser can meet whatever a server does.

What is asked decides what happens: "two" is a comparison, "slow" never ends by itself, "break" ends in an error, "cut" without an end,
"refuse" is refused, "long" with a code; whatever else is answered with `MARKDOWN`.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from bridle.feedback.serving.comparisons import PICKS
from bridle.feedback.serving.reactions import FLAGGED_FOR, WHY
from bridle.serve.chat.page import add_chat_page
from bridle.serve.problems import RequestProblem, refuse
from bridle.site.app import Bounds, Guarded
from bridle.site.listening import listen
from bridle.site.rendering import answer_html

Json = dict[str, Any]
MARKDOWN = "A cat likes **boxes**:\n\n- small ones\n- [large ones](https://cats.example/boxes)\n\n```\npurr()\n```\n"
ANSWERS = ("Put a box on the floor, and wait.", "Cats are *never* bored; they are planning.")
CONSENT = {
    "en": "We keep what you write here and the answers, to make this model better. You may end that, and have it all deleted, at any time.",
    "zh": "我们保存您在这里写的内容和得到的回答，用来改进这个模型。您可以随时停止，并要求全部删除。",
}


@dataclass
class Script:
    """`asked`: the bodies of turns; `sent`: whatever else came, by its path; `writing`: how many streams are under way, which wait in their
    midst while `hold`; `left`: how many were left by who read them."""

    consent: str | None = None
    with_store: bool = True
    down: bool = False
    asked: list[Json] = field(default_factory=list)
    sent: list[tuple[str, Json]] = field(default_factory=list)
    left: int = 0
    writing: int = 0
    hold: bool = False

    def feedback(self, kind: str) -> list[Json]:
        return [body for path, body in self.sent if path == "/v1/feedback" and body["kind"] == kind]


def scripted_app(script: Script, root_path: str = "") -> FastAPI:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    add_chat_page(app)

    @app.get("/chat/state")
    def state(lang: str = "en") -> Response:
        if script.down:
            return JSONResponse({"error": {"message": "the store cannot be used just now"}}, 503)
        text = {"sha256": f"hash-{lang}", "lang": lang, "markdown_html": answer_html(CONSENT[lang])}
        consent = {"asked": script.consent is not None, "answer": script.consent}
        consent["text"] = text if script.with_store else None
        return JSONResponse({"model": "ppo", "consent": consent, "reasons": WHY, "flags": FLAGGED_FOR})

    @app.post("/chat/turn")
    async def turn(request: Request) -> Response:
        script.asked.append(body := await request.json())
        wish = body["messages"][-1]["content"]
        if "refuse" in wish:
            return await refuse(
                request, RequestProblem(400, "messages[0] holds half a character (a lone surrogate); send whole ones")
            )
        if "long" in wish:
            problem = RequestProblem(400, "9000 tokens are too many", code="context_length_exceeded")
            return JSONResponse(problem.body(), problem.status)
        return StreamingResponse(events(script, wish, len(script.asked)), media_type="text/event-stream")

    @app.post("/v1/feedback")
    async def feedback(request: Request) -> Json:
        script.sent.append(("/v1/feedback", body := await request.json()))
        while script.writing:  # who votes early waits for the end
            await asyncio.sleep(0.01)
        models = {"first": "ppo", "second": "sft"} if body.get("value") in PICKS else None
        return {"kept": True, "new": True} | ({"models": models} if models else {})

    @app.post("/v1/consent")
    async def consent(request: Request) -> Json:
        script.sent.append(("/v1/consent", body := await request.json()))
        script.consent = body["answer"]
        return {"answer": script.consent}

    @app.post("/v1/forget")
    async def forget() -> Json:
        script.sent.append(("/v1/forget", {}))
        script.consent = None
        return {"forgotten": True}

    app.add_middleware(Guarded, root_path=root_path, bounds=Bounds(lambda _: 2**20, 10), explain=refuse)
    return app


async def events(script: Script, wish: str, number: int) -> AsyncIterator[str]:
    texts = ANSWERS if "two" in wish else (f"Slowly: {'on and on ' * 400}" if "slow" in wish else MARKDOWN,)
    ids = [f"chatcmpl-{number}-{place}" for place in range(len(texts))]
    comparison = f"cmp-{number}" if len(texts) > 1 else None
    first = {"kind": "comparison" if comparison else "answer", "ids": ids, "comparison": comparison}
    yield event({"bridle": first, "choices": []})
    script.writing += 1
    try:
        for start in range(0, max(map(len, texts)), 8):
            for index, text in enumerate(texts):
                yield event({"choices": [{"index": index, "delta": {"content": text[start : start + 8]}}]})
            if start >= 16 and "break" in wish:
                yield event(RequestProblem(500, "the server failed at this request").body())
                return
            if start >= 16 and "cut" in wish:
                return
            await asyncio.sleep(0.05 if "slow" in wish else 0.001)
            while start >= 16 and script.hold:
                await asyncio.sleep(0.02)
        yield event(
            {
                "choices": [],
                "bridle": {"kept": script.consent == "agreed", "html": [answer_html(text) for text in texts]},
            }
        )
        yield "data: [DONE]\n\n"
    except (asyncio.CancelledError, GeneratorExit):
        script.left += 1
        raise
    finally:
        script.writing -= 1


def event(value: Json) -> str:
    return f"data: {json.dumps(value)}\n\n"


@contextmanager
def scripted(script: Script) -> Iterator[str]:
    """The app on a port of the loopback; its address."""
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(scripted_app(script), log_level="error", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()
