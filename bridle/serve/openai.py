"""The routes of OpenAI's API: models, chat and completions.

    POST /v1/chat/completions {"model": "ppo", "messages": [{"role": "user", "content": "Hello"}]}
    POST /v1/completions {"model": "ppo", "prompt": "Once upon a time"}

What is the same: names, bodies, streams, errors. What differs is in docs/serving.md.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from bridle.core.records import Prompt
from bridle.generation.sampling import Sampling
from bridle.models.template import AnswerFrame, Template
from bridle.recipe.services import ServeSection
from bridle.serve.answering import GenerationRequest, Writing, best_of
from bridle.serve.chat.keeping import Forget, Keeper, Record, Side, forget_alone
from bridle.serve.chat.pairing import ChosenArms, choose_one
from bridle.serve.chat.users import Caller, TheCaller
from bridle.serve.metrics import ServeMetrics
from bridle.serve.problems import RequestProblem, as_problem, log
from bridle.serve.replies import DONE, ChatReplies, Head, Json, Replies, TextReplies, event, model_description
from bridle.serve.scheduler import Roster, Scheduler, ServedModel
from bridle.serve.schemas import AnswerRequest, ChatRequest, CompletionRequest, require_unicode
from bridle.site.limits import RateLimit

router = APIRouter(prefix="/v1")
IGNORED = "x-bridle-warning"
Result = TypeVar("Result")


@dataclass
class Desk:
    """What the routes work with: who writes answers, within which limits, and what is kept of them."""

    scheduler: Scheduler
    settings: ServeSection
    metrics: ServeMetrics
    keeper: Keeper
    scoring: asyncio.Lock = field(default_factory=asyncio.Lock)  # one set of answers at a time
    rates: RateLimit = field(init=False)  # of users
    forget: Forget = forget_alone

    def __post_init__(self) -> None:
        self.rates = RateLimit(self.settings.user_rate, 60)

    def require_model(self, name: str) -> Roster:
        roster = self.scheduler.require_roster()
        if name != roster.current.name:
            raise RequestProblem(
                404,
                f"the model {name[:100]!r} is not served here; {roster.current.name!r} is",
                param="model",
                code="model_not_found",
            )
        return roster

    def served_to(self, caller: Caller, body: AnswerRequest) -> tuple[ServedModel, ChosenArms]:
        """The model of the user that a program asks for, and how it was chosen; drawn where it asks for nobody."""
        roster = self.require_model(body.model)
        own = roster.own_arm(caller.token(body.user) or body.user)
        return roster.model(own), choose_one(own, roster.shares)

    def user_token(self, caller: Caller, named: str | None) -> str:
        """Raises RequestProblem where it is not said who the user is, or they ask too much."""
        token = caller.require_token(named)
        self.require_rate(self.rates, token)
        return token

    def require_rate(self, rates: RateLimit, key: str) -> None:
        if wait := rates.wait(key):
            raise RequestProblem(
                429,
                f"more than {rates.burst} requests a minute came from here; ask again in {round(wait + 0.5)} seconds",
                code="rate_limit_exceeded",
                retry=round(wait + 0.5),
            )


def desk_of(request: Request) -> Desk:
    found: Desk = request.app.state.desk
    return found


TheDesk = Annotated[Desk, Depends(desk_of)]


# --------------------------------------------------------------------------------------------------------- models


@router.get("/models", tags=["models"], summary="The model that is served")
async def list_models(desk: TheDesk) -> Json:
    return {"object": "list", "data": [model_description(desk.scheduler.require_roster().current)]}


@router.get("/models/{model:path}", tags=["models"], summary="One model, by its name")
async def get_model(desk: TheDesk, model: str) -> Json:
    return model_description(desk.require_model(model).current)


# -------------------------------------------------------------------------------------------------------- answers


@router.post("/chat/completions", tags=["answers"], summary="The next message of a dialogue")
async def chat(request: Request, desk: TheDesk, caller: TheCaller, body: ChatRequest) -> Response:
    ignored, prompt = body.unknown(), Prompt(body.turns())
    served, chosen = desk.served_to(caller, body)
    asked = await asked_in_chat(desk, body, served, prompt)
    user = await desk.keeper.agreed(caller.token(body.user)) if asked.drawn == 1 else None
    return await respond(request, desk, body, asked, ReplyForm(ChatReplies(), [prompt], ignored, chosen, user))


async def asked_in_chat(desk: Desk, body: ChatRequest, served: ServedModel, prompt: Prompt) -> GenerationRequest:
    if served.no_chat:
        raise RequestProblem(400, served.no_chat, param="messages", code="no_chat_template")
    template = served.policy.template
    [ids] = await run_in_threadpool(template.prompt_ids, [prompt])
    return asked_of(desk, body, served, [ids], template.frame)


@router.post("/completions", tags=["answers"], summary="How a text goes on")
async def complete_text(request: Request, desk: TheDesk, caller: TheCaller, body: CompletionRequest) -> Response:
    ignored, (served, chosen) = body.unknown(), desk.served_to(caller, body)
    given, template = body.prompts(), served.policy.template
    if len(given) > desk.settings.max_prompts:
        raise RequestProblem(
            400,
            f"{len(given)} prompts are more than this server takes at once ({desk.settings.max_prompts})",
            param="prompt",
        )
    rows = await run_in_threadpool(lambda: [text_ids(template, one, served) for one in given])
    asked = asked_of(desk, body, served, rows, served.spelling.continued)
    prompts = [Prompt.from_text(one if isinstance(one, str) else template.tokenizer.decode(one)) for one in given]
    return await respond(request, desk, body, asked, ReplyForm(TextReplies(), prompts, ignored, chosen))


def text_ids(template: Template, prompt: str | list[int], served: ServedModel) -> list[int]:
    """Ids of a text that is to be continued: after the token that opens a page, where the tokenizer has one."""
    if isinstance(prompt, str):
        [ids] = template.control.encode_text([require_unicode(prompt, "prompt")])
        ids = [*template.bos_ids, *ids]
    else:
        ids, known = prompt, served.policy.module.config.vocab_size
        if any(not 0 <= token < known for token in ids):
            raise RequestProblem(
                400, f"prompt holds a token that the model does not have; it has {known:,}, from 0 on", param="prompt"
            )
    if not ids:
        raise RequestProblem(400, "prompt is empty, and this model has no token to begin a text with", param="prompt")
    return ids


def asked_of(
    desk: Desk, body: AnswerRequest, served: ServedModel, rows: Sequence[Sequence[int]], frame: AnswerFrame
) -> GenerationRequest:
    """The request within the limits of the server and the model; raises RequestProblem where it passes one."""
    assert isinstance(body, ChatRequest | CompletionRequest)
    answers = body.n or 1
    drawn = answers if body.best_of is None else body.best_of
    require_answers(desk, body, answers, drawn)
    if drawn > answers and served.reward is None:
        raise RequestProblem(
            400, "best_of needs a reward model, and this server has none (serve.reward names it)", param="best_of"
        )
    sampling = Sampling(
        max_new_tokens=room_for_answer(desk.settings, body, served, max(map(len, rows))),
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=min(body.top_k or 0, served.policy.module.config.vocab_size),
    )
    seed = random.getrandbits(62) if body.seed is None else body.seed
    return GenerationRequest(
        served, [tuple(ids) for ids in rows], sampling, seed, frame, answers, drawn, body.top, body.stops
    )


def require_answers(desk: Desk, body: AnswerRequest, answers: int, drawn: int) -> None:
    most = desk.settings.max_answers
    for name, value in (("n", answers), ("best_of", drawn)):
        if value > most:
            raise RequestProblem(400, f"{name} = {value} is more than this server gives at once ({most})", param=name)
    if drawn < answers:
        raise RequestProblem(
            400, f"best_of = {drawn} is less than n = {answers}: best_of are drawn, n of them told", param="best_of"
        )
    if drawn > answers and body.stream:
        raise RequestProblem(
            400, "best_of picks among whole answers, so it cannot be streamed; leave stream out", param="best_of"
        )


def room_for_answer(
    settings: ServeSection, body: ChatRequest | CompletionRequest, served: ServedModel, read: int
) -> int:
    """The most tokens that an answer may have."""
    name, wanted = body.longest
    context, where = served.context, "messages" if isinstance(body, ChatRequest) else "prompt"
    if read > min(settings.max_prompt_tokens or context - 1, context - 1):
        least = f" and this server reads at most {settings.max_prompt_tokens}" if settings.max_prompt_tokens else ""
        raise RequestProblem(
            400, f"This model's maximum context length is {context} tokens{least}, and {where} has {read}; shorten it",
            param=where, code="context_length_exceeded",
        )  # fmt: skip
    if wanted is not None and read + wanted > context:
        raise RequestProblem(
            400, f"This model's maximum context length is {context} tokens, and {read} in {where} with {name} = {wanted} are more; "
            f"{context - read} are left",
            param=name, code="context_length_exceeded",
        )  # fmt: skip
    if wanted is not None and wanted > settings.max_tokens:
        raise RequestProblem(
            400, f"{name} = {wanted} is more than this server gives ({settings.max_tokens})", param=name
        )
    return min(context - read, settings.max_tokens) if wanted is None else wanted


@dataclass(frozen=True)
class ReplyForm:
    """How the answers are told, which prompts they are to, which parameters were ignored, how the model was chosen, and for which user the
    one answer is kept."""

    form: Replies
    prompts: Sequence[Prompt]
    ignored: Sequence[str]
    chosen: ChosenArms
    user: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        names = [name.encode("ascii", "backslashreplace").decode() for name in self.ignored[:20]]
        printable = ", ".join("".join(c for c in name if " " < c <= "~")[:60] or '""' for name in names)
        return {IGNORED: f"unknown parameters were ignored: {printable}"} if names else {}

    def record(self, head: Head, writing: Writing) -> Record | None:
        """What is to be kept; None: nothing."""
        if self.user is None:
            return None
        return Record(self.user, self.prompts[0], [Side(head.id, self.chosen.arms[0], writing)], self.chosen.propensity)


async def respond(
    request: Request, desk: Desk, body: AnswerRequest, asked: GenerationRequest, reply: ReplyForm
) -> Response:
    """At once, or as a stream. Who leaves takes their answers with them."""
    head, writing = Head.new(reply.form, asked.served), Writing(asked, desk.scheduler, desk.metrics)
    record = reply.record(head, writing)
    if body.stream:
        return EventStream(writing, events(writing, head, body.with_usage, keeping(desk, record)), reply.headers)
    try:
        written = await unless_gone(request, writing.whole())
        await keeping(desk, record)([one.text for one in written])
        if asked.drawn > asked.answers and asked.served.reward is not None:
            async with desk.scoring:
                written = await run_in_threadpool(best_of, asked.served.reward, writing, reply.prompts, written)
    finally:
        writing.close()
    choices = [reply.form.choice(index, one, asked.with_tokens) for index, one in enumerate(written)]
    return JSONResponse(head.body(reply.form.whole, choices, writing.usage), headers=reply.headers)


def keeping(desk: Desk, record: Record | None) -> Callable[[Sequence[str]], Awaitable[None]]:
    """What is done with the texts at the end."""

    async def keep(texts: Sequence[str]) -> None:
        if record is not None:
            await desk.keeper.keep(record, texts)

    return keep


async def events(
    writing: Writing, head: Head, with_usage: bool, keep: Callable[[Sequence[str]], Awaitable[None]]
) -> AsyncIterator[bytes]:
    """A stream's events, to its end; where it breaks off the error is the last one."""
    asked, form, texts = writing.asked, head.replies, [""] * len(writing.texts)
    try:
        for index in range(len(writing.texts)):
            for choice in form.opening(index):
                yield head.chunk([choice], with_usage)
        async for piece in writing.pieces():
            texts[piece.index] += piece.text
            for choice in form.pieces(piece, asked.with_tokens):
                yield head.chunk([choice], with_usage)
        if with_usage:
            yield head.chunk([], with_usage, writing.usage)
        await keep(texts)
        yield DONE
    except Exception as error:
        yield last_words(error)


def last_words(error: Exception) -> bytes:
    """The event that a stream breaks off with."""
    if not isinstance(error, RequestProblem):
        log.error("a stream failed", exc_info=error)
    return event(as_problem(error).body())


class Closable(Protocol):
    def close(self) -> None: ...


class EventStream(StreamingResponse):
    """A stream that closes what it was made of, however it ends, and if it never began."""

    def __init__(self, writing: Closable, stream: AsyncIterator[bytes], headers: dict[str, str]) -> None:
        super().__init__(stream, headers={"x-accel-buffering": "no", **headers}, media_type="text/event-stream")
        self.writing = writing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.writing.close()


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """What the work returns; RequestProblem where whoever asked leaves before it is done."""
    working, gone = asyncio.create_task(work), asyncio.create_task(until_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise RequestProblem(499, "whoever asked has left")
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


async def until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
