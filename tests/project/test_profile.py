"""The trace and the table of shares: valid, nested, equal to one another, and one sentence where they cannot be written."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from bridle.core.errors import BridleError
from bridle.core.timeline import Event, Recording
from bridle.project.profile import FILE, as_dict, leave, shares, table_lines, take, take_ranks, write_profile
from tests.traces import complete, nested, written

MS = 1_000_000


def at(milliseconds: int) -> int:
    """A moment of the clock, which began long before the command did."""
    return (5_000_000 + milliseconds) * MS


EVENTS = [
    Event("part", "import", "", "import", at(0), at(10), "main"),
    Event("part", "forward", "ppo", "improve/forward", at(20), at(26), "main"),
    Event("part", "forward", "ppo", "improve/forward", at(26), at(28), "main"),
    Event("part", "improve", "ppo", "improve", at(20), at(30), "main"),
    Event("part", "log", "ppo", "log", at(30), at(31), "main"),
    Event("stage", "ppo", "ppo", "", at(15), at(35), "main"),
    Event("operator", "aten::mm", "ppo", "improve/forward", at(21), at(22), "operators of thread 7"),
]
OPERATORS = [
    {"stage": "ppo", "part": "improve/forward", "operator": "aten::mm", "on": "operator", "calls": 1, "seconds": 0.001}
]


def recording(events: Sequence[Event] = EVENTS, title: str = "bridle train", process: int = 10) -> Recording:
    return Recording(title, events=[*events], operators=[*OPERATORS], process=process)


def test_the_trace_is_in_chromes_form(tmp_path: Path) -> None:
    write_profile(recording(), tmp_path)
    trace = written(tmp_path)
    assert trace["displayTimeUnit"] == "ms" and {event["ph"] for event in trace["traceEvents"]} == {"X", "M"}
    found = complete(trace)
    assert [(e["name"], e["ts"], e["dur"]) for e in found] == [
        ("import", 0, 10_000), ("ppo", 15_000, 20_000), ("improve", 20_000, 10_000), ("forward", 20_000, 6_000),
        ("aten::mm", 21_000, 1_000), ("forward", 26_000, 2_000), ("log", 30_000, 1_000),
    ]  # fmt: skip
    assert nested(found) and not nested(found[::-1])
    assert found[3]["args"] == {"stage": "ppo", "part": "improve/forward"} and found[3]["cat"] == "part"
    assert len({e["tid"] for e in found if e["cat"] != "operator"}) == 1
    names = {(e["name"], e.get("tid")): e["args"] for e in trace["traceEvents"] if e["ph"] == "M"}
    assert names["process_name", None] == {"name": "bridle train"}
    assert names["thread_name", found[0]["tid"]] == {"name": "main"}
    assert names["thread_name", found[4]["tid"]] == {"name": "operators of thread 7"}


def test_the_table_is_what_the_trace_adds_up_to(tmp_path: Path) -> None:
    told = write_profile(recording(), tmp_path)
    assert written(tmp_path)["bridle"] == json.loads(json.dumps(told))
    rows = {(row["stage"], row["part"]): (row["seconds"], row["share"], row["calls"]) for row in told["parts"]}
    assert list(rows) == [("ppo", ""), ("ppo", "improve"), ("ppo", "improve/forward"), ("ppo", "log"), ("", "import")]
    assert rows["ppo", ""] == pytest.approx((0.02, 2 / 3, 1))  # of all the work, 30 ms
    assert rows["ppo", "improve"] == pytest.approx((0.01, 0.5, 1))  # of its stage
    assert rows["ppo", "improve/forward"] == pytest.approx((0.008, 0.4, 2))
    assert rows["", "import"] == pytest.approx((0.01, 1 / 3, 1))
    for (stage, part), (seconds, _, calls) in rows.items():
        own = [
            e
            for e in complete(written(tmp_path))
            if e["args"] == {"stage": stage, "part": part} and e["cat"] != "operator"
        ]
        assert (sum(e["dur"] for e in own) / 1e6, len(own)) == (pytest.approx(seconds), calls)


def test_two_processes_share_one_trace_and_one_clock(tmp_path: Path) -> None:
    other = recording([Event("stage", "dpo", "dpo", "", at(12), at(22), "main")], "second", process=11)
    leave(other, tmp_path / "left.json")
    first = recording()
    take(first, tmp_path / "left.json")
    take(first, tmp_path / "left.json")  # nothing more is there
    assert not (tmp_path / "left.json").exists()
    told = write_profile(first, tmp_path)
    found = complete(written(tmp_path))
    assert {e["pid"] for e in found} == {10, 11} and nested(found)
    assert [(e["name"], e["ts"]) for e in found if e["pid"] == 11] == [("dpo", 12_000)]
    assert {row["stage"]: row["share"] for row in told["parts"] if not row["part"]} == {"ppo": 0.5, "dpo": 0.25}
    assert len(told["operators"]) == 2


def test_ranks_are_processes_of_one_trace(tmp_path: Path) -> None:
    """One of another machine, whose clock is another and whose number is taken, is laid by the moment in which all met. The table is of
    the first rank alone."""
    first, near = recording(), recording(process=11)
    near.rank, first.met = 1, at(14)
    far = [event._replace(start=event.start - at(0), end=event.end - at(0)) for event in EVENTS]
    other = {**as_dict(recording(far, process=11)), "rank": 2, "machine": "another", "met": at(14) - at(0)}
    take_ranks(first, [as_dict(near), None, other])
    told = write_profile(first, tmp_path)
    found = complete(written(tmp_path))
    assert nested(found) and {e["pid"] for e in found} == {10, 11, 12}
    starts = [[(e["name"], e["ts"]) for e in found if e["pid"] == process] for process in (10, 11, 12)]
    assert starts[0] == starts[1] == starts[2]
    named = [e for e in written(tmp_path)["traceEvents"] if e["name"] == "process_name"]
    assert [e["args"]["name"] for e in named] == ["bridle train", "rank 1", "rank 2"]
    assert told["parts"] == shares(EVENTS) and told["operators"] == OPERATORS


def test_marks_that_the_trace_does_not_keep_are_in_the_table(tmp_path: Path) -> None:
    longer = recording()
    longer.beyond[("ppo", "log")] = [5 * MS, 4]
    leave(longer, tmp_path / "left.json")
    both = recording([])
    take(both, tmp_path / "left.json")
    for one in (longer, both):
        rows = {(row["stage"], row["part"]): row for row in write_profile(one, tmp_path)["parts"]}
        assert (rows["ppo", "log"]["seconds"], rows["ppo", "log"]["calls"]) == (pytest.approx(0.006), 5)


def test_nothing_recorded_is_a_trace_too(tmp_path: Path) -> None:
    assert write_profile(Recording("bridle init"), tmp_path)["parts"] == []
    assert complete(written(tmp_path)) == [] and shares([]) == []


def test_the_table_is_printed_with_what_is_within_pushed_in(tmp_path: Path) -> None:
    told = {"title": "bridle train", "seconds": 0.05, "parts": shares(EVENTS), "operators": OPERATORS}
    lines = [line.split() for line in table_lines(told)]
    assert ["ppo", "0.020", "66.7%", "1"] in lines and ["forward", "0.008", "40.0%", "2"] in lines
    assert ["aten::mm", "improve/forward", "1.00", "100.0%", "1"] in lines
    pushed = {line.split()[0]: len(line) - len(line.lstrip()) for line in table_lines(told)[1:6]}
    assert pushed == {"ppo": 0, "improve": 2, "forward": 4, "log": 2, "import": 0}
    both = [*OPERATORS, {**OPERATORS[0], "stage": "dpo"}]
    assert not any("aten::mm" in line for line in table_lines({**told, "operators": both}))


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(BridleError, match=f"could not save .*{FILE}: "):
        write_profile(recording(), tmp_path)
