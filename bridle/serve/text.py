"""An answer's text as its tokens come: what is ready to be sent, and what has to wait.

Text waits while it may be the beginning of a stop string, or of what the chat template writes between an answer and its end, and while a
character is not whole: many characters, Chinese ones among them, take several tokens. A text that is sent at once goes the same way, so
that it is what a stream's pieces make together.
"""

import codecs
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from bridle.core.records import FinishReason
from bridle.generation.batch import Drawn
from bridle.models.template import AnswerFrame, Template, decoded

UNWHOLE = "\ufffd"  # what bytes that are no character yet are decoded as
LEAST_LOGPROB = -9999.0  # stands for that of a token that cannot be drawn: JSON has no infinity


@dataclass(frozen=True)
class Likely:
    """A token with its log-prob. `text`: as it stands in the answer; "bytes:\\xe4" where it is a part of a character."""

    text: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True)
class WrittenToken(Likely):
    """One of the answer, from which character of it on, and what else was likely in its place."""

    top: tuple[Likely, ...] = ()
    offset: int = 0


@dataclass(frozen=True)
class Piece:
    """What is new of answer `index`: text, its tokens where they were asked for, and at the end why it ended."""

    index: int
    text: str = ""
    tokens: tuple[WrittenToken, ...] = ()
    finish_reason: str | None = None


class Spelling:
    """How a model's tokens are written, each for itself and in an answer."""

    def __init__(self, template: Template) -> None:
        self.template, self.tokenizer = template, template.tokenizer
        self.added = {i: str(token.content) for i, token in self.tokenizer.get_added_tokens_decoder().items()}

    @cached_property
    def continued(self) -> AnswerFrame:
        """Of text that goes on where a prompt ended: nothing stands round it."""
        return AnswerFrame((), "", "", self.template.frame.anchor)

    @cached_property
    def bytes_of(self) -> dict[str, int] | None:
        """The byte of each character of a byte-level vocabulary; None where the vocabulary is none."""
        decoder = json.loads(self.tokenizer.to_str())["decoder"]
        if "ByteLevel" not in json.dumps(decoder):
            return None
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # stand for themselves (GPT-2)
        others = [byte for byte in range(256) if byte not in printable]
        return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}

    def token_bytes(self, token: int) -> bytes:
        piece = self.added.get(token)
        if piece is not None:
            return piece.encode()
        piece = self.tokenizer.id_to_token(token) or ""
        if self.bytes_of is not None and all(character in self.bytes_of for character in piece):
            return bytes(self.bytes_of[character] for character in piece)
        if re.fullmatch("<0x[0-9A-Fa-f]{2}>", piece):
            return bytes.fromhex(piece[3:5])
        return decoded(self.tokenizer, self.continued, [[token]])[0].encode()

    def within_character(self, tokens: Sequence[int]) -> bool:
        """Whether tokens end in the middle of a character."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(b"".join(map(self.token_bytes, tokens)))
        return bool(decoder.getstate()[0])

    def likely(self, token: int, logprob: float) -> Likely:
        raw = self.token_bytes(token)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
        return Likely(text, raw, max(logprob, LEAST_LOGPROB) if not math.isnan(logprob) else LEAST_LOGPROB)


@dataclass
class AnswerText:
    """One answer that is being written. `frame`: what the template writes round it; `stops`: strings that end it, and are left out."""

    spelling: Spelling
    frame: AnswerFrame
    stops: Sequence[str] = ()
    top: int | None = None  # likely tokens beside each of its own; None: tokens are not wanted at all
    ids: list[int] = field(default_factory=list)  # of its beginning, until it is known what of the frame stands there
    before: list[int] = field(default_factory=list)  # the tokens whose text was taken last
    pending: list[int] = field(default_factory=list)  # tokens after those
    begun: bool = False  # whether its first characters were looked at
    held: str = ""  # text that waits
    sent: int = 0  # characters
    waiting: list[WrittenToken] = field(default_factory=list)
    drawn: list[int] = field(default_factory=list)  # all tokens, the one that ends the turn too
    logprobs: list[float] = field(default_factory=list)  # theirs, under the distribution that was sampled from
    counted: int = 0  # tokens, without the one that ends the turn
    finish_reason: str | None = None

    def add(self, drawn: Drawn) -> tuple[str, tuple[WrittenToken, ...]]:
        """The text and the tokens that are ready now that one more was drawn."""
        ended = drawn.finish_reason == FinishReason.STOP
        self.drawn.append(drawn.token)
        self.logprobs.append(drawn.logprob)
        self.counted += not ended
        if self.top is not None and not ended:
            self.waiting.append(self.written(drawn))
        self.held += self.text_of(drawn.token, drawn.finish_reason)
        self.take_opening(last=drawn.finish_reason is not None)
        if (cut := first_stop(self.held, self.stops)) is not None:
            self.finish_reason = "stop"
            return self.send(self.held[:cut], whole=False)
        if drawn.finish_reason is not None:
            self.finish_reason = "stop" if ended else "length"
            return self.send(self.held.removesuffix(self.frame.after) if ended else self.held, whole=True)
        ready = len(self.held) - unready(self.held, self.frame.after, self.stops) if self.begun else 0
        return self.send(self.held[:ready], whole=False)

    def written(self, drawn: Drawn) -> WrittenToken:
        one = self.spelling.likely(drawn.token, drawn.own_logprob)
        best = tuple(self.spelling.likely(token, logprob) for token, logprob in drawn.top[: self.top])
        return WrittenToken(one.text, one.bytes, one.logprob, best, self.sent + len(self.held))

    def text_of(self, token: int, finish_reason: FinishReason | None) -> str:
        """What a token adds to the text: nothing while a character is not whole, nor where the answer is cut off within it."""
        first, last = self.frame.first_ids, finish_reason is not None
        if len(self.ids) < len(first):
            self.ids.append(token)
            if tuple(self.ids) == first[: len(self.ids)] and not last:
                return ""
            self.pending += [] if tuple(self.ids) == first else self.ids
            self.ids = list(first)  # looked at
        else:
            self.pending.append(token)
        if not self.pending:
            return ""
        bare = self.spelling.continued
        before, both = decoded(self.spelling.tokenizer, bare, [self.before, [*self.before, *self.pending]])
        text = both[len(before) :]
        if text.endswith(UNWHOLE) and not last:
            return ""
        cut = finish_reason == FinishReason.LENGTH and self.spelling.within_character(self.pending)
        self.before, self.pending = self.pending, []
        return text.rstrip(UNWHOLE) if cut else text

    def take_opening(self, last: bool) -> None:
        """Take off what the template writes before an answer, once it is all there."""
        opening = self.frame.before
        if self.begun or (not last and len(self.held) < len(opening) and opening.startswith(self.held)):
            return
        if self.held.startswith(opening):
            self.held = self.held[len(opening) :]
            self.waiting = [replace(one, offset=max(0, one.offset - len(opening))) for one in self.waiting]
        self.begun = True

    def send(self, text: str, whole: bool) -> tuple[str, tuple[WrittenToken, ...]]:
        """`whole`: the answer ends here of itself, and all its tokens with it."""
        self.held, self.sent = self.held[len(text) :], self.sent + len(text)
        ready = tuple(one for one in self.waiting if whole or one.offset < self.sent)
        self.waiting = self.waiting[len(ready) :]
        return text, ready


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the stop string begins that is complete first, of several the longest; None: none is."""
    found = [(start + len(stop), start) for stop in stops if (start := text.find(stop)) >= 0]
    return min(found)[1] if found else None


def unready(text: str, tail: str, stops: Sequence[str]) -> int:
    """How many of the last characters may be the beginning of a stop string, or of the tail."""
    longest = max((len(one) for one in (tail, *stops)), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        if any(one.startswith(text[-length:]) for one in (tail, *stops)):
            return length
    return 0
