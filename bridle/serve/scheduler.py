"""The thread that writes answers: it alone steps the batches, and hands each drawn token to the request that waits for it.

    scheduler.start(loop)                          # loads the model in the thread; until then there is no `current`
    answers = scheduler.submit(served, rows)       # from the loop of the web server, as everything but `swap`
    async for number, drawn in answers.drawn(): …  # of all rows, as they are drawn
    scheduler.swap(another)                        # from any thread: new requests go to it, those under way end where they began

A queue of drawn tokens is as long as what its rows may draw: who reads slowly delays nobody.
"""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial

from bridle.core.errors import BridleError, NotFinite
from bridle.core.records import Reward
from bridle.generation.batch import AnswerRow, BatchLimits, Drawn, RowBatch
from bridle.generation.engine import Engine
from bridle.models.policy import Policy
from bridle.serve.problems import FAULT_OF_OURS, RequestProblem, log
from bridle.serve.text import Spelling

DRAINED = "the server is being stopped, and this answer was not done in time"


@dataclass(eq=False)
class ServedModel:
    """A model under the name that requests ask for, packed to be decoded. `no_chat`: why it cannot be chatted with, in one sentence.
    `reward`: scores its answers, where a request wants the best of several.

    `rows` are those under way, by their number in the batch: the request and the row's place in it. The scheduler's thread alone has them.
    """

    name: str
    policy: Policy
    engine: Engine
    limits: BatchLimits = BatchLimits()
    no_chat: str = ""
    reward: Reward | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    rows: dict[int, tuple["Answers", int]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.engine.load(self.policy)
        self.batch: RowBatch = self.engine.batch(self.limits)

    @cached_property
    def spelling(self) -> Spelling:
        return Spelling(self.policy.template)

    @property
    def fingerprint(self) -> str:
        """Which weights answer, and in which precision."""
        return f"{self.batch.stamp}-{str(self.engine.dtype).removeprefix('torch.')}"

    @property
    def context(self) -> int:
        return self.policy.module.config.max_positions

    def replaced_by(self, policy: Policy) -> "ServedModel":
        """The same name with other weights, packed in the caller's thread."""
        return ServedModel(self.name, policy, Engine(self.engine.dtype), self.limits, self.no_chat, self.reward)


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
    """`load` makes the first model; `on_ready` and `on_failure` are called in the loop when it is there, or cannot be."""

    def __init__(
        self,
        load: Callable[[], ServedModel],
        *,
        max_waiting: int = 256,
        on_ready: Callable[[ServedModel], None] = lambda served: None,
        on_failure: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.load, self.max_waiting, self.on_ready, self.on_failure = load, max_waiting, on_ready, on_failure
        self.current: ServedModel | None = None
        self.draining = False
        self.under_way = 0  # rows
        self.answers: set[Answers] = set()
        self.active: list[ServedModel] = []  # those with rows; the thread's
        self.commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.ended = False
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)

    # --------------------------------------------------------------------------------------------- in the loop

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.thread.start()

    def require_current(self) -> ServedModel:
        """Raises RequestProblem while the model is being loaded, and once the server is being stopped."""
        if self.draining:
            raise RequestProblem(503, "the server is being stopped; ask again when it is back", retry=5)
        if self.current is None:
            raise RequestProblem(503, "the model is being loaded; ask again in a few seconds", retry=2)
        return self.current

    def submit(self, served: ServedModel, rows: Sequence[AnswerRow]) -> Answers:
        """Raises RequestProblem where too many wait already."""
        room = served.limits.rows + self.max_waiting - self.under_way
        if len(rows) > room:
            raise RequestProblem(
                429,
                f"{self.under_way} answers are under way, and {len(rows)} more are too many; ask again soon",
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
            answers.arrived.put_nowait(RequestProblem(503, DRAINED))

    def stop(self) -> None:
        self.commands.put(self.end)
        self.thread.join()

    def swap(self, policy: Policy) -> ServedModel:
        """Serve other weights under the same name, from the next request on. From any thread; packing them takes a while."""
        before = self.current
        assert before is not None, "there is no model yet that could be replaced"
        self.current = before.replaced_by(policy)
        return self.current

    # ------------------------------------------------------------------------------------------- in the thread

    def run(self) -> None:
        try:
            self.current = self.load()
        except BaseException as error:
            self.tell_loop(self.on_failure, error)
            return
        self.tell_loop(self.on_ready, self.current)
        while not self.ended:
            for command in self.due():
                command()
            for served in [*self.active]:
                self.step(served)

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
            served.batch.cancel(answers.numbers[place])
        self.retire(served)

    def step(self, served: ServedModel) -> None:
        try:
            drawn = served.batch.step()
        except NotFinite as error:  # of some rows, which have left
            self.fail({served.rows.pop(number)[0] for number in error.ids if number in served.rows}, error)
        except Exception as error:  # all rows are lost, the server is not
            failed = {answers for answers, _ in served.rows.values()}
            served.rows.clear()
            served.batch = served.engine.batch(served.limits)
            self.fail(failed, error)
        else:
            arrived = [(*served.rows[one.id], one) for one in drawn if one.id in served.rows]
            for one in drawn:
                if one.finish_reason is not None:
                    served.rows.pop(one.id, None)
            if arrived:
                self.tell_loop(hand_over, arrived)
        self.retire(served)

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
