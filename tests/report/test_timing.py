"""Where the time went, read from runs of this version and of earlier ones."""

import json
from pathlib import Path

import pytest

from bridle.report.timing import times

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
