"""The thread that writes answers: it alone steps the batches, and hands each drawn token to the request that waits for it.

    scheduler.start(loop)                          # loads the model in the thread; until then there is no `current`
    answers = scheduler.submit(served, rows)       # from the loop of the web server, as everything but `swap`
    async for number, drawn in answers.drawn(): …  # of all rows, as they are drawn
    scheduler.swap(another)                        # from any thread: new requests go to it, those under way end where they began
    scheduler.roster = Roster(another, candidate)  # the same with several models, each with a batch of its own

A queue of drawn tokens is as long as what its rows may draw: who reads slowly delays nobody.
"""

import asyncio
import hashlib
import queue
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from bridle.core.errors import BridleError, NotFinite
from bridle.core.records import Reward
from bridle.feedback.serving.answers import Arm
from bridle.generation.batch import AnswerRow, BatchLimits, Drawn, RowBatch
from bridle.generation.engine import Engine
from bridle.models.policy import Policy
from bridle.serve.problems import FAULT_OF_OURS, RequestProblem, log
from bridle.serve.text import Spelling

DRAINED = "the server is being stopped, and this answer was not done in time"


@dataclass(eq=False)
class ServedModel:
    """A model under the name that requests ask for, packed to be decoded. `no_chat`: why it cannot be chatted with, in one sentence.
    `reward`: scores its answers, where a request wants the best of several. `title`: the name of its version, where that is another.

    `rows` are those under way, by their number in the batch: the request and the row's place in it. The scheduler's thread alone has them.
    """

    name: str
    policy: Policy
    engine: Engine
    limits: BatchLimits = BatchLimits()
    no_chat: str = ""
    reward: Reward | None = None
    title: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    rows: dict[int, tuple["Answers", int]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.engine.load(self.policy)
        self.batch: RowBatch = self.engine.batch(self.limits)

    @cached_property
    def spelling(self) -> Spelling:
        return Spelling(self.policy.template)

    @property
    def version(self) -> str:
        return self.title or self.name

    @property
    def fingerprint(self) -> str:
        """Which weights answer, and in which precision."""
        return f"{self.batch.stamp}-{str(self.engine.dtype).removeprefix('torch.')}"

    @property
    def context(self) -> int:
        return self.policy.module.config.max_positions

    def replaced_by(self, policy: Policy) -> "ServedModel":
        """The same name with other weights, packed in the caller's thread."""
        return replace(self, policy=policy, engine=Engine(self.engine.dtype), created=int(time.time()), rows={})


@dataclass(frozen=True)
class Roster:
    """The models that answer now, all under one name: what is served; a candidate that `share` of the users meet in its place; and what was
    served before, which answers only beside what is served."""

    current: ServedModel
    candidate: ServedModel | None = None
    share: float = 0.0
    previous: ServedModel | None = None

    def model(self, arm: Arm) -> ServedModel:
        found = {"current": self.current, "candidate": self.candidate, "previous": self.previous}[arm]
        assert found is not None, "the arm was drawn from those that are there"
        return found

    @property
    def arms(self) -> dict[Arm, tuple[ServedModel, float]]:
        """Those that are there, each with the share of the users whose model it is."""
        found: dict[Arm, tuple[ServedModel, float]] = {"current": (self.current, 1 - self.met_by)}
        if self.candidate is not None:
            found["candidate"] = self.candidate, self.met_by
        if self.previous is not None:
            found["previous"] = self.previous, 0.0
        return found

    @property
    def shares(self) -> dict[Arm, float]:
        return {arm: share for arm, (_, share) in self.arms.items()}

    @property
    def met_by(self) -> float:
        """The share of the users who meet a candidate."""
        return 0.0 if self.candidate is None else self.share

    def own_arm(self, user: str | None) -> Arm:
        """The same for a user as long as the candidate is there, and drawn for each request of nobody in particular. Who meets a candidate
        meets it at any larger share too."""
        if self.candidate is None:
            return "current"
        if user is None:
            place = random.random()
        else:
            digest = hashlib.sha256(f"{self.candidate.policy.origin} {user}".encode()).digest()
            place = int.from_bytes(digest[:8], "big") / 2**64
        return "candidate" if place < self.share else "current"


class Answers:
    """The rows of one request on their way. Its reader closes it in the end, whether all were read or not."""

    def __init__(self, scheduler: "Scheduler", served: ServedModel, rows: Sequence[AnswerRow]) -> None:
        self.scheduler, self.served, self.rows = scheduler, served, rows
        self.arrived: asyncio.Queue[tuple[int, Drawn] | RequestProblem] = asyncio.Queue()
        self.numbers: list[int] = []  # in the batch; the thread's
        self.open = set(range(len(rows)))  # places of rows that are not done; the loop's

    async def drawn(self) -> AsyncIterator[tuple[int, Drawn]]:
        """Raises RequestProblem where the answer breaks off."""
        while self.open:
            found = await self.arrived.get()
            if isinstance(found, RequestProblem):
                raise found
            place, drawn = found
            if place in self.open:
                if drawn.finish_reason is not None:
                    self.leave(place)
                yield place, drawn

    def leave(self, place: int) -> None:
        self.open.discard(place)
        self.scheduler.under_way -= 1

    def end(self, place: int) -> None:
        """One row has said enough."""
        if place in self.open:
            self.leave(place)
            self.scheduler.commands.put(partial(self.scheduler.drop, self, place))

    def close(self) -> None:
        for place in list(self.open):
            self.end(place)
        self.scheduler.answers.discard(self)


class Scheduler:
    """`load` makes the first model; `on_ready` is called in the loop when it is there, `on_failure` where it cannot be, or where the thread
    ends of a fault."""

    def __init__(
        self,
        load: Callable[[], ServedModel],
        *,
        max_waiting: int = 256,
        on_ready: Callable[[ServedModel], None] = lambda served: None,
        on_failure: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.load, self.max_waiting, self.on_ready, self.on_failure = load, max_waiting, on_ready, on_failure
        self.roster: Roster | None = None
        self.draining = False
        self.under_way = 0  # rows
        self.answers: set[Answers] = set()
        self.active: list[ServedModel] = []  # those with rows; the thread's
        self.commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.ended = False
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)

    @property
    def current(self) -> ServedModel | None:
        return None if self.roster is None else self.roster.current

    # --------------------------------------------------------------------------------------------- in the loop

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.thread.start()

    def require_roster(self) -> Roster:
        """Raises RequestProblem while the model is being loaded, and once the server is being stopped."""
        if self.draining:
            raise RequestProblem(
                503, "the server is being stopped; ask again when it is back", code="server_stopping", retry=5
            )
        if self.roster is None:
            raise RequestProblem(
                503, "the model is being loaded; ask again in a few seconds", code="model_loading", retry=2
            )
        return self.roster

    def submit(self, served: ServedModel, rows: Sequence[AnswerRow]) -> Answers:
        """Raises RequestProblem where too many wait already."""
        room = served.limits.rows + self.max_waiting - self.under_way
        if len(rows) > room:
            raise RequestProblem(
                429,
                f"{self.under_way} answers are under way, and {len(rows)} more are too many; ask again soon",
                code="rate_limit_exceeded",
                retry=1,
            )
        answers = Answers(self, served, rows)
        self.under_way += len(rows)
        self.answers.add(answers)
        self.commands.put(partial(self.admit, answers))
        return answers

    def drain(self, seconds: float) -> None:
        """Take no more requests, and break off in so many seconds what is not done by then."""
        self.draining = True
        self.loop.call_later(seconds, self.break_off)

    def break_off(self) -> None:
        for answers in self.answers:
            answers.arrived.put_nowait(RequestProblem(503, DRAINED, code="server_stopping"))

    def stop(self) -> None:
        self.commands.put(self.end)
        self.thread.join()

    def swap(self, policy: Policy) -> ServedModel:
        """Serve other weights under the same name, from the next request on. From any thread; packing them takes a while."""
        before = self.roster
        assert before is not None, "there is no model yet that could be replaced"
        self.roster = replace(before, current=before.current.replaced_by(policy))
        return self.roster.current

    # ------------------------------------------------------------------------------------------- in the thread

    def run(self) -> None:
        try:
            self.roster = Roster(self.load())
            self.tell_loop(self.on_ready, self.current)
            while not self.ended:
                for command in self.due():
                    command()
                for served in [*self.active]:
                    self.step(served)
        except BaseException as error:  # nobody is left to write: who waits is told, and the server ends
            self.tell_loop(self.break_down, error)

    def break_down(self, error: BaseException) -> None:
        """In the loop."""
        self.draining = True
        for answers in self.answers:
            answers.arrived.put_nowait(RequestProblem(500, FAULT_OF_OURS))
        self.on_failure(error)

    def due(self) -> Iterator[Callable[[], None]]:
        """What was asked since; with nothing to write it sleeps until something is."""
        if not self.active:
            yield self.commands.get()
        with suppress(queue.Empty):
            while True:
                yield self.commands.get_nowait()

    def admit(self, answers: Answers) -> None:
        served = answers.served
        try:
            for place, row in enumerate(answers.rows):
                answers.numbers.append(served.batch.admit(row))
                served.rows[answers.numbers[-1]] = answers, place
        except Exception as error:
            for place in range(len(answers.numbers)):
                self.drop(answers, place)
            self.fail([answers], error)
        if served.rows and served not in self.active:
            self.active.append(served)

    def drop(self, answers: Answers, place: int) -> None:
        served = answers.served
        if place < len(answers.numbers) and served.rows.pop(answers.numbers[place], None) is not None:
            try:
                served.batch.cancel(answers.numbers[place])
            except Exception as error:
                self.lose_rows(served, error)
        self.retire(served)

    def step(self, served: ServedModel) -> None:
        try:
            drawn = served.batch.step()
        except NotFinite as error:  # of some rows, which have left
            self.fail({served.rows.pop(number)[0] for number in error.ids if number in served.rows}, error)
        except Exception as error:
            self.lose_rows(served, error)
        else:
            arrived = [(*served.rows[one.id], one) for one in drawn if one.id in served.rows]
            for one in drawn:
                if one.finish_reason is not None:
                    served.rows.pop(one.id, None)
            if arrived:
                self.tell_loop(hand_over, arrived)
        self.retire(served)

    def lose_rows(self, served: ServedModel, error: Exception) -> None:
        """All of a model's rows are lost, the server is not: a batch that failed half-way takes no further step."""
        failed = {answers for answers, _ in served.rows.values()}
        served.rows.clear()
        self.fail(failed, error)
        served.batch = served.engine.batch(served.limits)

    def retire(self, served: ServedModel) -> None:
        if not served.rows and served in self.active:
            self.active.remove(served)

    def fail(self, failed: Iterable[Answers], error: Exception) -> None:
        log.error("the model failed at an answer", exc_info=error)
        sentence = str(error) if isinstance(error, BridleError) else FAULT_OF_OURS
        for answers in failed:
            self.tell_loop(answers.arrived.put_nowait, RequestProblem(500, sentence))

    def tell_loop(self, call: Callable[..., None], *given: object) -> None:
        with suppress(RuntimeError):  # the loop has ended before us
            self.loop.call_soon_threadsafe(call, *given)

    def end(self) -> None:
        self.ended = True


def hand_over(arrived: Sequence[tuple[Answers, int, Drawn]]) -> None:
    for answers, place, drawn in arrived:
        answers.arrived.put_nowait((place, drawn))
