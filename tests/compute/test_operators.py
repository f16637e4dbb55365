"""torch's profiler looks at one step, the second, changes nothing, and what it saw falls into the parts of that step."""

from pathlib import Path

import pytest
import torch

from bridle.compute import operators
from bridle.compute.operators import Operators, operator_rows, own_nanoseconds, part_at
from bridle.core.timeline import Event, Recording, record, stop
from bridle.training import sft
from tests.models.tiny import policy
from tests.traces import nested
from tests.training.runs import run_in, session, weights
from tests.training.test_sft import CONFIG, examples


def event(name: str, start: int, end: int, kind: str = "part", part: str = "", track: str = "main") -> Event:
    return Event(kind, name, "sft", part or name, start, end, track)


def trained(folder: Path, looked_at: bool, steps: int = 4) -> tuple[dict[str, torch.Tensor], Recording]:
    recording, ours = record("a test"), policy()
    with run_in(folder, "sft") as run:
        run.on_step = Operators(recording, "sft") if looked_at else None
        sft.train(ours, examples(8 * steps), CONFIG, session(run))
    stop()
    return weights(ours.module), recording


def test_the_second_step_is_looked_at_and_nothing_else(tmp_path: Path) -> None:
    with_it, recording = trained(tmp_path / "with", looked_at=True)
    without, plain = trained(tmp_path / "without", looked_at=False)
    assert all(torch.equal(with_it[name], tensor) for name, tensor in without.items())
    assert not plain.operators and all(e.kind in ("part", "stage") for e in plain.events)
    seen = [e for e in recording.events if e.kind == "operator"]
    second = [[e for e in recording.events if e.name == name][1] for name in ("forward", "backward", "optimizer")]
    assert min(e.start for e in seen) > [e for e in recording.events if e.name == "optimizer"][0].end
    assert max(e.end for e in seen) < [e for e in recording.events if e.name == "forward"][2].start
    for part in second:  # what began in a part is counted to it, and took no longer
        own = [e for e in seen if part.start <= e.start <= part.end]
        assert own and {e.part for e in own} == {part.part}
        rows = [row for row in recording.operators if row["part"] == part.part]
        assert 0 < sum(row["seconds"] for row in rows) <= (part.end - part.start) / 1e9
    assert {"aten::mm", "aten::_foreach_norm"} & {row["operator"] for row in recording.operators}
    ordered = sorted(seen, key=lambda e: (e.start, -e.end))
    assert nested([{"pid": 1, "tid": e.track, "ts": e.start / 1000, "dur": (e.end - e.start) / 1000} for e in ordered])


def test_only_the_longest_are_kept_for_the_trace_and_all_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "KEPT", 10)
    _, recording = trained(tmp_path, looked_at=True)
    seen = [e for e in recording.events if e.kind == "operator"]
    assert len(seen) == 10 and sum(row["calls"] for row in recording.operators) > 200
    assert all(a.end - a.start >= b.end - b.start for a, b in zip(seen, seen[1:], strict=False))


def test_a_run_of_one_step_has_none(tmp_path: Path) -> None:
    _, recording = trained(tmp_path, looked_at=True, steps=1)
    assert not recording.operators and not torch.autograd._profiler_enabled()


def test_a_run_that_ends_within_the_step_leaves_no_profiler_on() -> None:
    looking = Operators(record("a test"), "sft")
    looking(1, 3)
    assert torch.autograd._profiler_enabled()
    looking.stop()
    assert not torch.autograd._profiler_enabled()
    looking.stop()
    looking(2, 3)
    assert not torch.autograd._profiler_enabled()
    stop()


def test_a_moment_belongs_to_the_innermost_part() -> None:
    parts = [event("improve", 0, 100), event("forward", 10, 20), event("backward", 20, 50), event("save", 120, 130)]
    starts = [part.start for part in parts]
    found = [part_at(moment, parts, starts) for moment in (-5, 5, 15, 30, 60, 110, 125, 200)]
    assert found == ["", "improve", "forward", "backward", "improve", "", "save", ""]


def test_own_time_leaves_out_what_is_within() -> None:
    def seen(name: str, start: int, end: int, track: str = "a") -> Event:
        return event(name, start, end, "operator", "forward", track)

    found = [
        seen("linear", 0, 100),
        seen("mm", 10, 60),
        seen("copy", 20, 30),
        seen("mm", 70, 90),
        seen("mm", 0, 40, "b"),
    ]
    assert [(e.name, own) for e, own in own_nanoseconds(found)] == [
        ("linear", 30), ("mm", 40), ("mm", 40), ("copy", 10), ("mm", 20),
    ]  # fmt: skip
    assert [(row["operator"], row["calls"], row["seconds"]) for row in operator_rows(found)] == [
        ("mm", 3, pytest.approx(1e-7)), ("linear", 1, pytest.approx(3e-8)), ("copy", 1, pytest.approx(1e-8)),
    ]  # fmt: skip
