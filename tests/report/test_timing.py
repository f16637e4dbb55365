"""Where the time went, read from runs of this version and of earlier ones."""

import json
from pathlib import Path

import pytest

from bridle.report.page import LoopReport, render
from bridle.report.timing import shared_times, times

PARTS = {"answer": {"seconds": 2.0, "calls": 4}, "answer/forward": {"seconds": 1.5, "calls": 8}}


def run_of(folder: Path, seconds: float, **files: object) -> Path:
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({"seconds": seconds}))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("file", ["session", "sitting"])  # the second is its name in earlier versions
def test_a_runs_parts_are_read_under_either_name(file: str, tmp_path: Path) -> None:
    folder = run_of(tmp_path / "ppo-0001", 4.0, **{file: {"seconds": 3.9, "parts": PARTS}})
    (spent,), (table,) = times({"ppo": folder}, tmp_path)
    assert (spent.title, spent.seconds) == ("PPO with the KL bridle", 4.0)
    assert dict(spent.words) == {"answer": 0.5, "forward": 1.5}
    assert table.rows == [
        ["PPO with the KL bridle", 4.0, "100.0%", None],
        ["\u2003answer", 2.0, "50.0%", 4],
        ["\u2003\u2003forward", 1.5, "37.5%", 8],
        ["\u2003the rest", 2.0, "50.0%", None],
    ]


def test_a_run_without_parts_has_its_seconds_alone(tmp_path: Path) -> None:
    folders = {"label": run_of(tmp_path / "label-0001", 1.0), "mine": run_of(tmp_path / "mine-0001", 3.0)}
    spent, (table,) = times(folders, tmp_path)
    assert [(one.title, dict(one.words)) for one in spent] == [("People compare", {}), ("mine", {})]
    assert [row[2] for row in table.rows] == ["25.0%", "75.0%"]
    assert times({}, tmp_path) == ([], [])


def test_a_stage_that_several_shared_has_a_bar_for_each(tmp_path: Path) -> None:
    parts = {
        "answer": {"seconds": 3.0, "calls": 4, "tokens": 400},
        "answer/wait": {"seconds": 1.0, "calls": 4},
        "improve": {"seconds": 4.0, "calls": 4},
        "improve/forward": {"seconds": 1.0, "calls": 4, "tokens": 800},
        "improve/optimizer": {"seconds": 2.0, "calls": 4},
        "improve/optimizer/sync": {"seconds": 0.5, "calls": 4},
        "save": {"seconds": 1.0, "calls": 1},
    }
    worker = {"answer": {"seconds": 2.0, "calls": 4, "tokens": 400}, "wait": {"seconds": 8.0, "calls": 0}}
    workers = {"rank 0": {"seconds": 10.0, "parts": parts}, "node <b>": {"seconds": 10.0, "parts": worker}}
    shared = run_of(tmp_path / "ppo-0001", 10.0, session={"seconds": 10.0, "parts": parts, "workers": workers})
    alone = run_of(tmp_path / "sft-0001", 4.0, session={"seconds": 4.0, "parts": parts})
    (crew,), (table,) = shared_times({"sft": alone, "ppo": shared})
    assert crew.workers[0].words == {"generate": 2, "score": 0, "reference": 0, "update": 3.5, "sync": 0.5, "wait": 1}
    assert crew.workers[0].reported == "90.0% used, 200.0 answered/s, 228.6 learnt/s", (
        "400 tokens in 2 s, and 800 in 3.5"
    )
    assert crew.workers[1].reported == "20.0% used, 200.0 answered/s"
    assert [row[:5] for row in table.rows] == [
        ["PPO with the KL bridle, rank 0", 10.0, "90.0%", 200.0, 800 / 3.5],
        ["PPO with the KL bridle, node <b>", 10.0, "20.0%", 200.0, None],
    ]
    spent, _ = times({"ppo": shared}, tmp_path)
    page = render(LoopReport("Report", "", spent=spent, crews=[crew], time_tables=[table]))
    picture = page[page.index("PPO with the KL bridle, by who shared it") :]
    assert "<svg" in picture and "rank 0" in picture and "all else" in picture and "<b>" not in picture
    assert shared_times({"sft": alone}) == ([], [])
