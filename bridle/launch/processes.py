"""Workers as processes on this machine, by Python's own pools of one process each. They end with this one, whatever ends it."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any

from bridle.compute.workers import Worker
from bridle.core.errors import WorkerLost

METHODS_HELD: dict[str, Callable[..., Any]] = {}  # in a worker: those of the one object that it holds


class LocalWorker:
    """A process that holds an object. Its methods run one after another, in the order in which they were asked for."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), begin_work, (make,))
        self.process, self.place = self.pool.submit(os.getpid), "a process of this machine"

    def submit(self, method: str, *arguments: Any) -> Future[Any]:
        answer: Future[Any] = Future()
        try:
            self.pool.submit(call_held, method, arguments).add_done_callback(lambda done: pass_on(done, answer, self))
        except (BrokenProcessPool, RuntimeError):  # it is known to be gone
            answer.set_exception(WorkerLost(f"{self.place} is gone"))
        return answer

    def end(self) -> None:
        """Now, in the middle of what it does."""
        if self.process.done() and not self.process.cancelled() and self.process.exception() is None:
            with suppress(ProcessLookupError):
                os.kill(self.process.result(), signal.SIGKILL)
        self.pool.shutdown(wait=False, cancel_futures=True)


def local_workers(make: Callable[[], Any], count: int) -> list[Worker]:
    """So many processes of this machine, started together. WorkerLost where one ends before it holds what `make` makes."""
    workers = [LocalWorker(make) for _ in range(count)]
    try:
        for worker in workers:
            worker.place = f"process {worker.process.result()}"
    except BrokenProcessPool:
        for worker in workers:
            worker.end()
        raise WorkerLost(
            "a process that was to work for this one ended as it began (its words, if any, stand above; without any it was killed, as "
            "where memory is short); set rollout.workers or scale.reward_workers lower"
        ) from None
    return [*workers]


def pass_on(done: Future[Any], answer: Future[Any], worker: LocalWorker) -> None:
    if done.cancelled() or isinstance(done.exception(), BrokenProcessPool):
        answer.set_exception(WorkerLost(f"{worker.place} is gone"))
    elif (error := done.exception()) is not None:
        answer.set_exception(error)
    else:
        answer.set_result(done.result())


# ------------------------------------------------------------------------------------------------ in the worker itself


def begin_work(make: Callable[[], Any]) -> None:
    """Ctrl-C is for the process that started this one, and when that is gone, so is this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    METHODS_HELD.update(methods_of(make()))


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def methods_of(held: Any) -> dict[str, Callable[..., Any]]:
    """By name: what a worker can be asked."""
    return dict(inspect.getmembers(held, inspect.ismethod))


def call_held(method: str, arguments: tuple[Any, ...]) -> Any:
    return METHODS_HELD[method](*arguments)
