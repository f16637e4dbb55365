"""How far along the work is: a line that moves, with the time left."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

MARGIN = "  "


class Progress:
    """One line on standard error that is written over at a terminal, and a line now and then elsewhere, or never (`every` is
    infinite): then nothing is written but what is said."""

    def __init__(
        self, write: Callable[[str], Any] | None = None, live: bool | None = None, every: float = 15.0
    ) -> None:
        self.write = write or sys.stderr.write
        self.live = sys.stderr.isatty() if live is None else live
        self.every = every
        self.title = ""
        self.width = 0
        self.later = 0.0  # seconds that the stages after this one are expected to take
        self.began = self.last = time.monotonic()
        self.first_done: tuple[int, float] | None = None

    def begin(self, title: str, later: float = 0.0) -> None:
        self.clear()
        self.title, self.later = title, later
        self.began = self.last = time.monotonic()
        self.first_done = None
        self.write(f"{title}\n")

    def update(self, done: int, total: int, metrics: Mapping[str, Any] | None = None) -> None:
        now = time.monotonic()
        if self.first_done is None:
            self.first_done = (done, now)  # what a first step costs more than others is left out of the rate
        if now - self.last < (0.2 if self.live else self.every) and (done < total or self.every == math.inf):
            return
        self.last = now
        known = [f"{k} {v:.3g}" for k, v in (metrics or {}).items() if isinstance(v, float)]
        text = f"{MARGIN}{done}/{total}  {self.left(done, total, now)}  {'  '.join(known[:5])}"
        if self.live:
            self.write("\r" + text[:118].ljust(self.width))
            self.width = min(118, len(text))
        else:
            self.write(text + "\n")

    def left(self, done: int, total: int, now: float) -> str:
        since, at = self.first_done or (done, now)
        if done <= since:
            return "…"
        seconds = (now - at) / (done - since) * (total - done)
        whole = f", {clock(seconds + self.later)} to the end" if self.later else ""
        return f"{clock(seconds)} left{whole}"

    def say(self, text: str) -> None:
        self.clear()
        self.write(f"{MARGIN}{text}\n")

    def clear(self) -> None:
        if self.live and self.width:
            self.write("\r" + " " * self.width + "\r")
        self.width = 0


def clock(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


def count_through(items: int, progress: Progress) -> Callable[[int], None]:
    """A callback that adds up and moves the progress line."""
    done = 0

    def add(more: int) -> None:
        nonlocal done
        done += more
        progress.update(done, items)

    return add
