"""What is kept of answers, for users who agreed: by threads, for the store's calls wait, and never so that an answer breaks.

user = await keeper.agreed(token)               # None: nothing of them is kept, or the store cannot be asked now
await keeper.keep(record, texts)                # whether it is kept
await keeper.ask(set_consent, user, "agreed")   # what has to succeed: RequestProblem where the store cannot be used
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

from bridle.core.errors import DataError, StoreError
from bridle.core.records import Completion, Prompt
from bridle.feedback.serving.answers import Arm, Choice, keep_answer
from bridle.feedback.serving.comparisons import keep_pair
from bridle.feedback.serving.consent import find_user, may_keep
from bridle.feedback.serving.forgetting import forget_user
from bridle.feedback.store.store import Store
from bridle.feedback.upkeep.takedown import Takedown
from bridle.serve.answering import Writing, why_ended
from bridle.serve.metrics import ServeMetrics
from bridle.serve.problems import RequestProblem, log

PATIENCE = 5.0  # seconds for which an answer waits on the store; what it does after these it still does
ASKED_TO = "the user asked for it"
STILL_WRITTEN = 120.0  # seconds for which what is said of an answer waits on its end
Result = TypeVar("Result")
Forget = Callable[[Store, str], Takedown]  # deletes what a user left


@dataclass(frozen=True)
class Side:
    """One answer that is being written: the id that its user has, and whose it is."""

    id: str
    arm: Arm
    writing: Writing

    def completion(self, prompt: Prompt, text: str) -> Completion:
        """As it is kept; one that a stop string cut is kept without its tokens, for they say more than its text."""
        asked, [drawn] = self.writing.asked, self.writing.texts
        sampling = asdict(asked.sampling) | {"seed": asked.seed, "sample": asked.first}
        ids, logprobs = ((), ()) if asked.stops else (tuple(drawn.drawn), tuple(drawn.logprobs))
        return Completion(prompt.id, text, ids, logprobs, why_ended(drawn), asked.served.policy.stamp, sampling)


@dataclass(frozen=True)
class Record:
    """Answers of a user who agreed, to one prompt: one, or the two of a comparison."""

    user: str
    prompt: Prompt
    sides: Sequence[Side]
    propensity: float
    acquisition: Literal["random", "informative"] = "informative"
    conversation: str | None = None
    comparison: str | None = None

    def choice(self, place: int) -> Choice:
        side = None if self.comparison is None else place
        return Choice(self.sides[place].arm, self.propensity, side, self.acquisition, self.conversation)


@dataclass(frozen=True)
class Keeper:
    """`store`: None where a folder is served without a project, and then nothing can be kept."""

    store: Store | None
    metrics: ServeMetrics
    unended: dict[tuple[str, str], asyncio.Event] = field(default_factory=dict)  # by token and id: answers on their way

    async def ask(self, call: Callable[..., Result], *given: Any) -> Result:
        """A call of the store, in a thread; what it takes by name is bound before (`partial`). Raises RequestProblem where there is none,
        or it cannot be used now."""
        if self.store is None:
            raise RequestProblem(409, "nothing is kept here: a folder is served without a project", code="nothing_kept")
        try:
            return await asyncio.to_thread(call, self.store, *given)
        except StoreError as error:
            self.fail(error)
            raise RequestProblem(
                503,
                "the store cannot be used now, and nothing was kept; send the same again",
                code="store_unavailable",
                retry=5,
            ) from error

    def fail(self, error: Exception) -> None:
        self.metrics.store_failures.inc()
        log.error("the store cannot be used: %s", error)

    async def agreed(self, token: str | None) -> str | None:
        """The handle of the user whose token it is, if they agree now; a store that cannot be asked says no."""
        if token is None or self.store is None:
            return None
        return await self.with_patience(self.ask(agreeing_user, token))

    async def keep(self, record: Record, texts: Sequence[str]) -> bool:
        """Whether it is kept: not where its user has taken their consent back, a text was taken down or can be in no store, or the store
        cannot be used."""
        kept = await self.with_patience(self.ask(keep_record, record, texts))
        if kept:
            self.metrics.kept.labels("comparison" if record.comparison else "answer").inc()
        return bool(kept)

    async def with_patience(self, work: Coroutine[Any, Any, Result]) -> Result | None:
        """What the work returns; None where it fails, or takes so long that the answer is sent without it. It is done all the same."""
        working = asyncio.ensure_future(work)
        working.add_done_callback(forget_failure)
        done, _ = await asyncio.wait({working}, timeout=PATIENCE)
        if not done:
            log.error("the store takes more than %g seconds; the answer is sent without it", PATIENCE)
            self.metrics.store_failures.inc()
            return None
        with suppress(RequestProblem):  # counted where it happened
            try:
                return working.result()
            except Exception as error:
                if not isinstance(error, RequestProblem):
                    self.fail(error)
        return None

    def begin(self, token: str, ids: Sequence[str]) -> None:
        self.unended.update({(token, one): asyncio.Event() for one in ids})

    def end(self, token: str, ids: Sequence[str]) -> None:
        for one in ids:
            if (event := self.unended.pop((token, one), None)) is not None:
                event.set()

    async def wait_for_end(self, token: str, id: str) -> bool:
        """Whether what is said of it comes before it has ended, which is waited for. Raises RequestProblem where that takes too long."""
        event = self.unended.get((token, id))
        if event is None:
            return False
        try:
            await asyncio.wait_for(event.wait(), STILL_WRITTEN)
        except TimeoutError as error:
            raise RequestProblem(409, f"{id[:100]} is still being written; send it again when it has ended") from error
        return True


def forget_failure(working: "asyncio.Future[Any]") -> None:
    """Of work that nobody may be waiting for any more: its failure was counted where it happened."""
    if not working.cancelled():
        working.exception()


def forget_alone(store: Store, user: str) -> Takedown:
    return forget_user(store, user, reason=ASKED_TO, by=user)


def agreeing_user(store: Store, token: str) -> str | None:
    user = find_user(store, token)
    return user if user is not None and may_keep(store, user) else None


def keep_record(store: Store, record: Record, texts: Sequence[str]) -> bool:
    """All of it or nothing, in one transaction."""
    try:
        with store.transaction() as one:
            for place, side in enumerate(record.sides):
                completion = side.completion(record.prompt, texts[place])
                kept = keep_answer(one, record.user, record.prompt, completion, record.choice(place), public_id=side.id)
                if kept is None:
                    raise DataError("the user no longer agrees, or a text was taken down")
            if record.comparison is not None:
                first, second = (side.id for side in record.sides)
                keep_pair(one, record.user, first, second, public_id=record.comparison)
    except DataError as error:
        log.info("an answer is not kept: %s", error)
        return False
    return True
