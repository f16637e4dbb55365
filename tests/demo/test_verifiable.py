"""The demo of answers that can be checked, small: it walks, can be done again, and says what came out."""

import json
from pathlib import Path

from tests.tiny_project import PLAYGROUND, done, settings

TINY = {
    **PLAYGROUND, "grpo.group_size": 3, "grpo.min_right": 0.0, "grpo.max_right": 1.0, "rloo.min_right": 0.0, "rloo.max_right": 1.0,
    "rloo.group_size": 3, "rejection.answers": 3, "rejection.threshold": 0.0, "data.heldout_prompts": 8, "data.train_prompts": 12,
}  # fmt: skip


def test_the_demo_of_checked_answers(tmp_path: Path) -> None:
    words = ["demo", "--recipe", "verifiable", "--out", tmp_path / "checked", *settings(TINY)]
    printed = done(*words)
    assert "word problems that were not trained on, each answered 15 times" in printed
    table = [line.split() for line in printed.splitlines() if line.startswith(("grpo", "rloo", "best-of-n  "))]
    assert [row[0] for row in table] == ["grpo", "rloo", "best-of-n"]
    assert (tmp_path / "checked/report.html").stat().st_size > 10_000
    runs = {folder.name: folder.stat().st_mtime_ns for folder in (tmp_path / "checked/runs").iterdir()}
    again = json.loads(done(*words, "--json"))
    assert {folder.name: folder.stat().st_mtime_ns for folder in (tmp_path / "checked/runs").iterdir()} == runs
    assert again["rloo"]["problems"] == 8 and 0 <= again["grpo"]["pass_at_k_after"] <= 1
