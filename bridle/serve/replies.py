"""What is sent back: bodies, and the chunks of a stream, of both kinds of request.

A stream's chunks have one id and one moment. The first of each choice names the role, those in the middle have `finish_reason: null`, one
ends it; where usage was asked for a chunk without choices has it, and every other one `usage: null`.
"""

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bridle.serve.scheduler import ServedModel
from bridle.serve.text import Likely, Piece, WrittenToken

Json = dict[str, Any]
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class FinishedAnswer:
    """One whole answer, as it is told."""

    text: str
    tokens: Sequence[WrittenToken]
    finish_reason: str


class ChatReplies:
    whole, chunk, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def choice(self, index: int, answer: FinishedAnswer, with_tokens: bool) -> Json:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        logprobs = self.logprobs(answer.tokens) if with_tokens else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": answer.finish_reason}

    def opening(self, index: int) -> list[Json]:
        return [self.delta(index, {"role": "assistant"})]

    def pieces(self, piece: Piece, with_tokens: bool) -> list[Json]:
        found = []
        if piece.text or piece.tokens:
            logprobs = self.logprobs(piece.tokens) if with_tokens else None
            found.append(self.delta(piece.index, {"content": piece.text}, logprobs))
        if piece.finish_reason is not None:
            found.append(self.delta(piece.index, {}, None, piece.finish_reason))
        return found

    def delta(self, index: int, delta: Json, logprobs: Json | None = None, finish_reason: str | None = None) -> Json:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}

    def logprobs(self, tokens: Sequence[WrittenToken]) -> Json:
        content = [{**self.token(one), "top_logprobs": [self.token(other) for other in one.top]} for one in tokens]
        return {"content": content, "refusal": None}

    def token(self, one: Likely) -> Json:
        return {"token": one.text, "logprob": one.logprob, "bytes": list(one.bytes)}


class TextReplies:
    whole, chunk, prefix = "text_completion", "text_completion", "cmpl"

    def choice(self, index: int, answer: FinishedAnswer, with_tokens: bool) -> Json:
        logprobs = self.logprobs(answer.tokens) if with_tokens else None
        return {"text": answer.text, "index": index, "logprobs": logprobs, "finish_reason": answer.finish_reason}

    def opening(self, index: int) -> list[Json]:
        return []

    def pieces(self, piece: Piece, with_tokens: bool) -> list[Json]:
        found = []
        if piece.text or piece.tokens:
            logprobs = self.logprobs(piece.tokens) if with_tokens else None
            found.append({"text": piece.text, "index": piece.index, "logprobs": logprobs, "finish_reason": None})
        if piece.finish_reason is not None:
            found.append({"text": "", "index": piece.index, "logprobs": None, "finish_reason": piece.finish_reason})
        return found

    def logprobs(self, tokens: Sequence[WrittenToken]) -> Json:
        return {
            "tokens": [one.text for one in tokens],
            "token_logprobs": [one.logprob for one in tokens],
            "top_logprobs": [{other.text: other.logprob for other in (*one.top, one)} for one in tokens],
            "text_offset": [one.offset for one in tokens],
        }


Replies = ChatReplies | TextReplies


@dataclass(frozen=True)
class Head:
    """What every part of one reply begins with."""

    replies: Replies
    served: ServedModel
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    blind: bool = False  # of a comparison: nothing says which weights answer

    @classmethod
    def new(cls, replies: Replies, served: ServedModel) -> "Head":
        return cls(replies, served, f"{replies.prefix}-{secrets.token_hex(16)}")

    def body(self, kind: str, choices: Sequence[Json], usage: Json | None) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.served.name,
            "choices": list(choices),
            "usage": usage,
            "system_fingerprint": self.fingerprint,
        }

    @property
    def fingerprint(self) -> str | None:
        return None if self.blind else self.served.fingerprint

    def chunk(
        self, choices: Sequence[Json], with_usage: bool, usage: Json | None = None, bridle: Json | None = None
    ) -> bytes:
        """`bridle`: what OpenAI's API has no field for."""
        found = self.body(self.replies.chunk, choices, usage) | ({} if bridle is None else {"bridle": bridle})
        if not with_usage:
            del found["usage"]
        return event(found)


def event(value: Json) -> bytes:
    """One server-sent event. JSON has no line ends of its own, so that no text can end it or begin another."""
    return b"data: " + json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


def model_description(served: ServedModel) -> Json:
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "bridle"}
