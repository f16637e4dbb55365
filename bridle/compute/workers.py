"""Processes that hold an object and do what it is asked to: answers and scores made elsewhere than where a policy learns.

How they are started is for launch/ to say; what uses them is handed `Start` and knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol


class Worker(Protocol):
    """One such process. What `submit` gives back raises WorkerLost once the process is gone, and else what the method raised."""

    place: str  # for sentences: "process 4711", "node 10.0.0.7"

    def submit(self, method: str, *arguments: Any) -> Future[Any]: ...

    def end(self) -> None: ...


Start = Callable[
    [Callable[[], Any], int], list[Worker]
]  # so many workers, each with the object that the first argument makes there
