"""Metrics as a run logs them and as they are read back."""

import json
from collections.abc import Callable

import pytest

from bridle.project.metrics import read_metrics
from bridle.project.run import Run

Begin = Callable[..., Run]


def test_rewinding_drops_what_will_be_done_again_and_what_was_cut_off(begin: Begin) -> None:
    run = begin()
    for step in range(5):
        run.log(step, 10, {"loss": step / 2})
    with open(run.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 5, "loss": 0.')
    assert [m["step"] for m in read_metrics(run.folder)] == [0, 1, 2, 3, 4]
    run.rewind(3)
    assert [m["step"] for m in read_metrics(run.folder)] == [0, 1, 2]
    run.log(3, 10, {"loss": 9.0})
    assert [m["loss"] for m in read_metrics(run.folder)] == [0.0, 0.5, 1.0, 9.0]
    assert run.last_save == 3
    run.rewind(0)
    assert read_metrics(run.folder) == []


def test_rewinding_before_anything_was_logged(begin: Begin) -> None:
    run = begin()
    run.rewind(0)
    assert read_metrics(run.folder) == []


def test_numbers_that_json_does_not_know_become_null(begin: Begin) -> None:
    run = begin()
    run.log(0, 1, {"kl": float("nan"), "loss": float("inf"), "lr": float("-inf"), "n": 3, "name": "x"})
    line = (run.folder / "metrics.jsonl").read_text()
    assert "NaN" not in line and "Infinity" not in line
    found = json.loads(line)
    assert found.pop("seconds") >= 0
    assert found == {"step": 0, "kl": None, "loss": None, "lr": None, "n": 3, "name": "x"}


DAMAGED = [
    b"",
    b"[]",
    b"3",
    b"null",
    b'{"loss": 1.0}',
    b'{"step": "3"}',
    b'{"step": true}',
    b'{"step": 3, "seconds": null}',
    b'{"step": 3, "loss": [1]}',
    b"[" * 100_000,
    b'{"step": ' + b"1" * 5000 + b"}",
    b"\xff\xfe",
]


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_line_is_left_out(damaged: bytes, begin: Begin) -> None:
    run = begin()
    run.log(0, 10, {"loss": 1.0})
    with open(run.folder / "metrics.jsonl", "ab") as file:
        file.write(damaged + b"\n")
    run.log(1, 10, {"loss": 2.0})
    assert [m["step"] for m in read_metrics(run.folder)] == [0, 1]
    assert begin().seconds < 100
    run.rewind(2)
    assert len((run.folder / "metrics.jsonl").read_text().splitlines()) == 2
