"""One process at a time: a lock that the system takes back when its process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from bridle.core.errors import ProjectError
from bridle.core.files import saving


@contextmanager
def held(lock: Path, place: Path | str, wait: Callable[[str], object] | None = None) -> Iterator[None]:
    """Hold `lock`, a file that is there while it is held, as long as the block runs. What is there is read, and what to do decided, inside.

    Where another process holds it: ProjectError, which names `place`; or, with `wait`, which is told so, wait until that one is done.
    """
    file = taken(lock, place, wait)
    while not is_still(file, lock):  # whoever waited holds a file that was taken away
        file.close()
        file = taken(lock, place, wait)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        file.close()


def taken(lock: Path, place: Path | str, wait: Callable[[str], object] | None) -> TextIO:
    with saving(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = open(lock, "a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        if wait is None:
            file.close()
            raise ProjectError(
                f"another process is at work in {place}; wait for it, or stop it (on the command line --wait waits)"
            ) from error
        wait(f"waiting for the process that is at work in {place} …")
        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def is_still(file: TextIO, lock: Path) -> bool:
    """Whether the open file is the one that lies there."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(lock))
    except FileNotFoundError:
        return False
