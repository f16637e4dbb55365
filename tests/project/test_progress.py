"""The line that moves: at a terminal, elsewhere, and never."""

import pytest

from bridle.project import progress as module
from bridle.project.progress import Progress, clock, count_through


class Screen:
    """What a person would read."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


def test_progress_without_a_terminal_is_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    screen = Screen()
    progress = Progress(screen.write, live=False, every=15.0)
    progress.begin("Training", later=60.0)
    for done in range(1, 101):
        now += 1.0
        progress.update(done, 100, {"loss": 1.23456, "steps": 7, "none": None})
    progress.say("done")
    progress.clear()
    assert "\r" not in screen.text
    lines = screen.text.splitlines()
    assert lines[0] == "Training"
    assert lines[1] == "  15/100  1:25 left, 2:25 to the end  loss 1.23"
    assert len(lines) == 1 + 6 + 1 + 1  # one in 15 seconds, the last, what was said
    assert lines[-2].startswith("  100/100  0:00 left") and lines[-1] == "  done"


def test_progress_that_never_draws_says_what_must_be_said() -> None:
    screen = Screen()
    progress = Progress(screen.write, live=False, every=float("inf"))
    for done in range(1, 4):
        progress.update(done, 3, {"loss": 1.0})
    progress.say("2 of 7 prompts are left out")
    assert screen.text == "  2 of 7 prompts are left out\n"


def test_progress_at_a_terminal_is_one_line_written_over() -> None:
    screen = Screen()
    progress = Progress(screen.write, live=True)
    progress.begin("Training")
    progress.last = 0.0
    progress.update(10, 10, {"loss": 1.0})
    progress.say("saved")
    assert screen.text.startswith("Training\n\r  10/10")
    assert screen.text.endswith("\r  saved\n")
    assert "\n" not in screen.text[len("Training\n") : -len("  saved\n")]


def test_counting_through_moves_the_line() -> None:
    screen = Screen()
    progress = Progress(screen.write, live=False, every=0.0)
    add = count_through(5, progress)
    add(2)
    add(3)
    assert [line.split()[0] for line in screen.text.splitlines()] == ["2/5", "5/5"]


def test_clock() -> None:
    assert [clock(s) for s in (-3, 0.4, 59.6, 61, 3600)] == ["0:00", "0:00", "1:00", "1:01", "60:00"]
