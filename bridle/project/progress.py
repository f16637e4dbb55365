"""How far along the work is: one line that moves at a terminal, and a line now and then elsewhere."""

import math
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from bridle.core.text import one_line

MARGIN = "  "
# What the line shows of a step's metrics, in this order and with units; docs/metrics.md has them all, by these names.
DISPLAYED = {
    "loss": "loss {:.3g}",
    "accuracy": "right on {:.0%}",
    "reward": "reward {:.3g}",
    "kl": "KL {:.3g} nats",
    "gold": "true quality {:+.2f} points",
}


class Progress:
    """What goes to standard error: titles, sentences, and how much is done. At a terminal that is one line, written over and never
    wider than the terminal; elsewhere (a file, a notebook, a terminal that cannot go back in a line) a line of its own every so many
    seconds, or never where `every` is infinite. Where nobody reads any more (a closed pipe or terminal, a full disk) nothing comes of it:
    no work ends because it could not say how far it was."""

    def __init__(
        self, write: Callable[[str], Any] | None = None, live: bool | None = None, every: float = 15.0
    ) -> None:
        self.write = write or (
            sys.stderr.write if sys.stderr is not None else len
        )  # None: it was closed from the beginning
        self.live = writes_over() if live is None else live
        self.every = every
        self.width = 0  # cells of the line that stands there
        self.later = 0.0  # seconds that the stages after this one are expected to take
        self.last = time.monotonic()
        self.first_done: tuple[int, float] | None = None
        self.notice = ""  # said next: for a signal's handler, which may write nothing

    def show(self, text: str) -> None:
        with suppress(OSError, ValueError):  # ValueError: the file is closed
            self.write(text)

    def begin(self, title: str, later: float = 0.0) -> None:
        self.clear()
        self.later = later
        self.last = time.monotonic()
        self.first_done = None
        self.show(f"{one_line(title)}\n")

    def update(self, done: int, total: int, metrics: Mapping[str, Any] | None = None, unit: str = "steps") -> None:
        if self.notice:
            self.clear()
        now = time.monotonic()
        if self.first_done is None:
            self.first_done = (done, now)  # what a first step costs more than others is left out of the rate
        if now - self.last < (0.2 if self.live else self.every) and (done < total or self.every == math.inf):
            return
        self.last = now
        pieces = [f"{done}/{total} {unit}", self.left(done, total, now), *metric_words(metrics or {})]
        pieces = [one_line(piece) for piece in pieces if piece]
        if not self.live:
            self.show(f"{MARGIN}{MARGIN.join(pieces)}\n")
            return
        room = columns() - 1  # a full line would begin another
        line = fitted(pieces, room)
        self.show("\r" + line + " " * (min(self.width, room) - cells(line)))
        self.width = cells(line)

    def left(self, done: int, total: int, now: float) -> str:
        since, at = self.first_done or (done, now)
        if done <= since:
            return ""
        seconds = (now - at) / (done - since) * (total - done)
        whole = f", {clock(seconds + self.later)} for all stages" if self.later else ""
        return f"{clock(seconds)} left{whole}"

    def say(self, text: str) -> None:
        self.clear()
        self.show(f"{MARGIN}{one_line(text)}\n")

    def clear(self) -> None:
        """Take the line away, and say what waits to be said."""
        if self.live and self.width:
            self.show("\r" + " " * min(self.width, columns() - 1) + "\r")
        self.width = 0
        if self.notice:
            waited, self.notice = self.notice, ""
            self.show(f"{MARGIN}{waited}\n")


def writes_over() -> bool:
    """Whether standard error is a terminal that goes back to the beginning of a line. A notebook's is none."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def columns() -> int:
    """Cells of a line as the terminal is now, for it may be resized; COLUMNS may ask for fewer."""
    try:
        found = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError, AttributeError):  # not a terminal, closed, or no file at all
        found = 0
    asked = os.environ.get("COLUMNS", "")
    return max(2, min([n for n in (found, int(asked) if asked.isdecimal() else 0) if n] or [80]))


def cells(text: str) -> int:
    """What a text takes of a line: a wide character takes two, one that is put upon another none."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.category(c) in ("Mn", "Me", "Cf") for c in text)


def fitted(pieces: Iterable[str], room: int) -> str:
    """As many of the pieces as `room` cells hold, the first of them cut where it alone is too long."""
    first, *others = pieces
    line = MARGIN + first
    while cells(line) > room:
        line = line[:-1]
    for piece in others:
        if cells(line + MARGIN + piece) > room:
            break
        line += MARGIN + piece
    return line


def metric_words(metrics: Mapping[str, Any]) -> list[str]:
    """The metrics that DISPLAYED knows; of a method that logs none of them, its first three by their own names."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
    known = [words.format(numbers[name]) for name, words in DISPLAYED.items() if name in numbers]
    return known or [f"{name} {value:.3g}" for name, value in list(numbers.items())[:3]]


def clock(seconds: float) -> str:
    """1:02:03, or 2:03 within the hour."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def count_through(items: int, progress: Progress, unit: str = "answers") -> Callable[[int], None]:
    """A callback that adds up and moves the progress line."""
    done = 0

    def add(more: int) -> None:
        nonlocal done
        done += more
        progress.update(done, items, unit=unit)

    return add
