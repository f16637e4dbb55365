"""The line that moves: at a terminal of any width, elsewhere, and never; and what it says."""

import os
import pty
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TextIO

import pytest

from bridle.project import progress as module
from bridle.project.progress import Progress, cells, clock, count_through, metric_words


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
    assert lines[1] == "  15/100 steps  1:25 left, 2:25 for all stages  loss 1.23"
    assert len(lines) == 1 + 6 + 1 + 1  # one in 15 seconds, the last, what was said
    assert lines[-2].startswith("  100/100 steps  0:00 left") and lines[-1] == "  done"


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


def test_progress_that_nobody_reads_any_more_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed pipe, a closed terminal, a full disk, a closed file; and a standard error that was closed from the beginning."""
    for error in (
        BrokenPipeError(32, "Broken pipe"),
        OSError(5, "I/O error"),
        OSError(28, "full"),
        ValueError("closed"),
    ):
        failed: list[str] = []

        def write(text: str, error: Exception = error, failed: list[str] = failed) -> None:
            failed.append(text)
            raise error

        progress = Progress(write, live=True)
        progress.begin("Training")
        progress.last = 0.0
        progress.update(10, 10, {"loss": 1.0})
        progress.notice = "stopping"
        progress.say("saved")
        progress.clear()
        assert "  stopping\n" in failed and "  saved\n" in failed
    monkeypatch.setattr("sys.stderr", None)
    Progress().say("into nothing")


def test_counting_through_moves_the_line() -> None:
    screen = Screen()
    progress = Progress(screen.write, live=False, every=0.0)
    add = count_through(5, progress)
    add(2)
    add(3)
    assert [line.split()[:2] for line in screen.text.splitlines()] == [["2/5", "answers"], ["5/5", "answers"]]


def test_clock() -> None:
    seconds = (-3, 0.4, 59.6, 61, 3599, 3600, 3723.4, 360_000)
    assert [clock(s) for s in seconds] == ["0:00", "0:00", "1:00", "1:01", "59:59", "1:00:00", "1:02:03", "100:00:00"]


def test_the_line_names_metrics_with_their_units_and_those_of_a_new_method_as_they_are() -> None:
    ppo = {"proxy": 0.46, "reward": 0.4567, "kl": 2.012, "kl_se": 0.39, "entropy": 0.8, "gold": -1.5}
    assert metric_words(ppo) == ["reward 0.457", "KL 2.01 nats", "true quality -1.50 points"]
    assert metric_words({"accuracy": 0.54, "grad_norm": 3.0, "loss": 0.668}) == ["loss 0.668", "right on 54%"]
    assert metric_words({"mine": 1.0, "steps": 3, "b": None, "c": 2.0, "d": 3.0, "e": 4.0}) == ["mine 1", "c 2", "d 3"]


@dataclass
class Terminal:
    """A pseudo-terminal: what was written to it, as the rows that a person sees."""

    own: int
    stderr: TextIO
    columns: int = 80

    def resize(self, columns: int) -> None:
        self.columns = columns
        termios.tcsetwinsize(self.own, (24, columns))

    def read(self) -> str:
        """What was written since it was last read; it comes in pieces."""
        self.stderr.write("\0")
        self.stderr.flush()
        found = b""
        while not found.endswith(b"\0"):
            found += os.read(self.own, 100_000)
        return found[:-1].decode()

    def rows(self, text: str) -> list[str]:
        rows, column = [""], 0
        for sign in text:
            if sign == "\r":
                column = 0
            elif sign == "\n":
                rows.append("")
            else:
                if column + cells(sign) > self.columns:
                    rows, column = [*rows, ""], 0
                rows[-1] = rows[-1][:column] + sign + rows[-1][column + 1 :]
                column += cells(sign)
        return [row.rstrip() for row in rows]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """A pseudo-terminal of 80 columns as standard error."""
    own, theirs = pty.openpty()
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(theirs, "w", buffering=1) as stderr:
        monkeypatch.setattr(module, "sys", SimpleNamespace(stderr=stderr))  # pytest changes the real one between phases
        found = Terminal(own, stderr)
        found.resize(80)
        yield found
    os.close(own)


METRICS = {"loss": 1.16, "accuracy": 0.5, "reward": 0.4, "kl": 14.6, "gold": -1.6}


def train(progress: Progress, steps: int, of: int = 300) -> None:
    """Steps of a training, each long enough to be drawn."""
    for done in range(1, steps + 1):
        progress.last = 0.0
        progress.update(done, of, METRICS)


@pytest.mark.parametrize("columns", [200, 80, 60, 20, 5])
def test_updates_stay_in_one_row_however_wide_the_terminal(columns: int, terminal: Terminal) -> None:
    terminal.resize(columns)
    progress = Progress()
    progress.begin("Go", later=10_000.0)
    train(progress, 8)
    text = terminal.read()
    assert terminal.rows(text)[0] == "Go" and len(terminal.rows(text)) == 2
    assert terminal.rows(text)[1].startswith("  8/300 steps"[: columns - 1])
    assert ("true quality -1.60 points" in text) == (columns == 200) and "\x1b" not in text
    assert ("2:46:40 for all stages" in text) == (columns >= 60)
    progress.say("ok")
    assert terminal.rows(text + terminal.read()) == ["Go", "  ok", ""]


def test_wide_signs_take_two_cells(terminal: Terminal) -> None:
    progress = Progress()
    for _ in range(3):
        progress.last = 0.0
        progress.update(1, 2, {"損失函數": 1.0, "準確率": 2.0, "困惑度": 3.0}, unit="問題" * 12)
    assert len(terminal.rows(terminal.read())) == 1
    assert [cells(text) for text in ("loss", "損失", "e\u0301")] == [4, 4, 1]


def test_a_terminal_may_be_resized_in_the_middle(terminal: Terminal) -> None:
    progress = Progress()
    train(progress, 5)
    terminal.read()
    terminal.resize(40)
    train(progress, 5)
    assert len(terminal.rows(terminal.read())) == 1
    terminal.resize(120)
    train(progress, 1)
    assert "KL 14.6 nats" in terminal.read()


def test_columns_may_ask_for_fewer_and_not_for_more_than_there_are(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for asked, longest in (("40", 39), ("500", 79), ("many", 79), ("0", 79)):
        monkeypatch.setenv("COLUMNS", asked)
        train(Progress(), 1)
        assert longest - 20 < len(terminal.rows(terminal.read())[0]) <= longest


def test_a_terminal_that_cannot_go_back_gets_a_line_now_and_then(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    progress = Progress()
    for done in range(1, 100):
        progress.update(done, 100, METRICS)
    progress.update(100, 100, METRICS)
    [line, rest] = terminal.read().replace("\r\n", "\n").split("\n")
    assert line.startswith("  100/100 steps") and rest == ""


WALK = """
import sys
sys.modules["torch"] = None  # whoever imports it fails
from click.testing import CliRunner
from bridle.cli.main import main
for words in ("demo", "train sft", "evaluate a b", "sample", "label --simulate", "report"):
    found = CliRunner().invoke(main, words.split())
    print(found.stderr.splitlines()[0], "torch" in found.stderr.splitlines()[-1], found.stdout)
"""


def test_every_verb_says_something_before_torch_is_loaded() -> None:
    found = subprocess.run([sys.executable, "-c", WALK], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n") == [*["loading PyTorch … True "] * 6, ""]


@pytest.mark.parametrize("live", [True, False])
def test_what_others_wrote_moves_no_line_but_its_own(live: bool) -> None:
    """A title, a sentence, a metric's name and a unit are one line each, in which nothing is obeyed."""
    screen = Screen()
    progress = Progress(screen.write, live=live, every=0.0)
    evil = "a\x1b[2J\r\n\u202eb\u2028" + "x" * 10**6
    progress.begin(evil)
    progress.last = 0.0
    progress.update(1, 3, {evil: 1.0}, unit="an\x1b\rswers")
    progress.say(evil)
    progress.clear()
    assert "an␛␍swers" in screen.text and screen.text.count("a␛[2J␍␊\\u202eb\\u2028xxx") == (2 if live else 3)
    assert screen.text.count("\n") == (2 if live else 3) and len(screen.text) < 7_000
    assert screen.text.count("\r") == (3 if live else 0) and not {"\x1b", "\u202e", "\u2028"} & set(screen.text)
