"""Turns of the chat, and comparisons for programs: one answer, or two side by side, blind, as a stream.

    POST /chat/turn {"messages": […], "conversation": "…", "regenerate": false}     the server decides whether two are compared
    POST /v1/comparisons                                                            as /v1/chat/completions, always two

Of a comparison nothing says which models answer. What is kept is kept before the stream's last events, so that who has these may vote.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from bridle.core.records import Prompt
from bridle.feedback.serving.answers import new_id
from bridle.serve.answering import Writing
from bridle.serve.chat.keeping import Record, Side
from bridle.serve.chat.pairing import ChosenArms, choose_one, choose_pair
from bridle.serve.chat.users import TheCaller
from bridle.serve.openai import Desk, EventStream, ReplyForm, TheDesk, asked_in_chat, last_words, unless_gone
from bridle.serve.problems import RequestProblem
from bridle.serve.replies import DONE, ChatReplies, FinishedAnswer, Head, Json
from bridle.serve.scheduler import Roster
from bridle.serve.schemas import ChatMessage, ChatRequest
from bridle.serve.text import Piece
from bridle.site.rendering import answer_html

router = APIRouter()
FORM = ChatReplies()
UUID = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"


class TurnBody(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    conversation: Annotated[str, Field(pattern=UUID)]
    regenerate: bool = False


@dataclass(frozen=True)
class Asker:
    """A user by their token; `handle` where they agreed to what is kept."""

    token: str
    handle: str | None
    conversation: str | None = None


@dataclass
class ChatTurn:
    """The answers to a prompt that are being written, in the order of display. Whoever began it closes it in the end."""

    desk: Desk
    asker: Asker
    prompt: Prompt
    chosen: ChosenArms
    sides: Sequence[Side]
    comparison: str | None
    with_tokens: bool
    written: list[FinishedAnswer] = field(init=False)

    def __post_init__(self) -> None:
        self.written = [FinishedAnswer("", (), "length") for _ in self.sides]
        if self.asker.handle is not None:
            self.desk.keeper.begin(self.asker.token, self.ids)

    @property
    def ids(self) -> list[str]:
        return [*(side.id for side in self.sides), *([self.comparison] if self.comparison else [])]

    @property
    def head(self) -> Head:
        """Of a comparison that of the model under whose name all answer."""
        served = self.sides[0].writing.asked.served
        return Head(FORM, served, self.comparison or self.sides[0].id, blind=self.comparison is not None)

    @property
    def described(self) -> Json:
        kind = "comparison" if self.comparison else "answer"
        return {"kind": kind, "ids": [side.id for side in self.sides], "comparison": self.comparison}

    async def pieces(self) -> AsyncIterator[Piece]:
        async for piece in side_by_side([side.writing for side in self.sides]):
            one = self.written[piece.index]
            reason = piece.finish_reason or one.finish_reason
            self.written[piece.index] = FinishedAnswer(one.text + piece.text, [*one.tokens, *piece.tokens], reason)
            yield piece

    async def whole(self) -> None:
        async for _ in self.pieces():
            pass

    async def keep(self) -> bool:
        """Whether it is kept, now that the answers have ended."""
        if self.asker.handle is None:
            return False
        chosen, where = self.chosen, self.asker.conversation
        how = (chosen.propensity, chosen.acquisition, where, self.comparison)
        record = Record(self.asker.handle, self.prompt, self.sides, *how)
        return await self.desk.keeper.keep(record, [one.text for one in self.written])

    @property
    def usage(self) -> Json:
        each = [side.writing.usage for side in self.sides]
        return {name: sum(one[name] for one in each) for name in each[0]}

    def close(self) -> None:
        for side in self.sides:
            side.writing.close()
        self.desk.keeper.end(self.asker.token, self.ids)


async def side_by_side(writings: Sequence[Writing]) -> AsyncIterator[Piece]:
    """Of all, as they come."""
    arrived: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()

    async def read(place: int, writing: Writing) -> None:
        try:
            async for piece in writing.pieces():
                arrived.put_nowait(replace(piece, index=place))
            arrived.put_nowait(None)
        except Exception as error:
            arrived.put_nowait(error)

    reading, left = [asyncio.create_task(read(*each)) for each in enumerate(writings)], len(writings)
    try:
        while left:
            found = await arrived.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                left -= 1
            else:
                yield found
    finally:
        for one in reading:
            one.cancel()


async def begin_turn(desk: Desk, roster: Roster, body: ChatRequest, asker: Asker, chosen: ChosenArms) -> ChatTurn:
    """Raises RequestProblem where it cannot be answered, or too many wait."""
    prompt, writings = Prompt(body.turns()), list[Writing]()
    asked = [await asked_in_chat(desk, body, roster.model(arm), prompt) for arm in chosen.arms]
    try:
        for place, one in enumerate(asked):
            alone = replace(one, answers=1, drawn=1, first=place)
            writings.append(Writing(alone, desk.scheduler, desk.metrics))
    except RequestProblem:
        for writing in writings:
            writing.close()
        raise
    sides = [Side(new_id("chatcmpl"), arm, writing) for arm, writing in zip(chosen.arms, writings, strict=True)]
    comparison = new_id("cmp") if len(sides) == 2 else None
    return ChatTurn(desk, asker, prompt, chosen, sides, comparison, body.top is not None)


@router.post(
    "/chat/turn", tags=["chat"], summary="The next message of a conversation of the chat, or two to choose from"
)
async def take_turn(desk: TheDesk, caller: TheCaller, body: TurnBody) -> Response:
    token = desk.user_token(caller, None)
    if body.messages[-1].role != "user":
        raise RequestProblem(400, "messages must end with what the user says", param="messages")
    roster, rng = desk.scheduler.require_roster(), random.Random()
    asker = Asker(token, await desk.keeper.agreed(token), body.conversation.lower())
    own, shares, settings = roster.own_arm(token), roster.shares, desk.settings
    compared = asker.handle is not None and not body.regenerate and rng.random() < settings.compare_share
    asked, alone = ChatRequest(model=roster.current.name, messages=body.messages, stream=True), choose_one(own, shares)
    try:
        chosen = choose_pair(own, shares, settings, rng) if compared else alone
        turn = await begin_turn(desk, roster, asked, asker, chosen)
    except RequestProblem:
        if not compared:
            raise
        turn = await begin_turn(
            desk, roster, asked, asker, alone
        )  # the other model reads less, or two are too many now
    return EventStream(turn, turn_events(turn, for_page=True), {})


@router.post("/v1/comparisons", tags=["feedback"], summary="Two answers to the same dialogue, to choose from")
async def compare_two(request: Request, desk: TheDesk, caller: TheCaller, body: ChatRequest) -> Response:
    token, roster, ignored = desk.user_token(caller, body.user), desk.require_model(body.model), body.unknown()
    if body.n not in (None, 1, 2) or body.best_of is not None:
        raise RequestProblem(400, "a comparison is of two answers; leave n and best_of out", param="n")
    asker = Asker(token, await desk.keeper.agreed(token))
    chosen = choose_pair(roster.own_arm(token), roster.shares, desk.settings, random.Random())
    asked = body.model_copy(update={"n": 1})
    turn = await begin_turn(desk, roster, asked, asker, chosen)
    headers = ReplyForm(FORM, [turn.prompt], ignored, chosen).headers
    if body.stream:
        return EventStream(turn, turn_events(turn, body.with_usage), headers)
    try:
        await unless_gone(request, turn.whole())
        kept = await turn.keep()
    finally:
        turn.close()
    choices = [FORM.choice(place, one, turn.with_tokens) for place, one in enumerate(turn.written)]
    found = turn.head.body(FORM.whole, choices, turn.usage) | {"bridle": {**turn.described, "kept": kept}}
    return JSONResponse(found, headers=headers)


async def turn_events(turn: ChatTurn, with_usage: bool = False, for_page: bool = False) -> AsyncIterator[bytes]:
    """A stream's events; `for_page`: at its end the answers as HTML besides."""
    head = turn.head
    try:
        opening = [choice for place in range(len(turn.sides)) for choice in FORM.opening(place)]
        yield head.chunk(opening, with_usage, bridle=turn.described)
        async for piece in turn.pieces():
            for choice in FORM.pieces(piece, turn.with_tokens):
                yield head.chunk([choice], with_usage)
        if with_usage:
            yield head.chunk([], with_usage, turn.usage)
        last: Json = {"kept": await turn.keep()}
        if for_page:
            last["html"] = [await run_in_threadpool(answer_html, one.text) for one in turn.written]
        yield head.chunk([], with_usage, bridle=last)
        yield DONE
    except Exception as error:
        yield last_words(error)
