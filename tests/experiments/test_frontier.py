"""The picture of gain against KL: held-out end points alone, and the numbers of docs/results.md."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bridle.project.project import Project
from bridle.recipe.recipe import Recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def frontier() -> ModuleType:
    """The script as a module: `experiments/` is no package."""
    path = ROOT / "experiments" / "frontier.py"
    spec = importlib.util.spec_from_file_location("experiments_frontier", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def finished(demo: Path, stage: str, result: dict[str, Any]) -> None:
    run = demo / f"runs/{stage}-0001"
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps(result))
    (run / "metrics.jsonl").write_text('{"step": 1, "kl": 90.0, "gold": 90.0}\n')  # on training prompts


def test_only_what_was_held_out_is_drawn(
    frontier: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2, 3):
        demo = tmp_path / f"seed-{seed}"
        Project.create(demo, Recipe())
        (demo / "summary.json").write_text("{}")
        finished(demo, "ppo", {})
        finished(demo, "evaluate-sft", {"gold": 0.1 * seed})
        finished(demo, "evaluate-ppo", {"gold": 0.1 * seed + seed, "kl": 2.0 * seed})
        best = [{"n": n, "kl": kl, "gold": 0.5 * kl + seed} for n, kl in ((1, 0.0), (2, 0.2), (4, 0.6))]
        finished(demo, "best-of-4", {"frontier": best})
        if seed < 3:  # not of every seed, so left out
            finished(demo, "evaluate-dpo", {"gold": 5.0, "kl": 1.0})
    frontier.main(tmp_path, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 10_000
    assert capsys.readouterr().out.splitlines()[2:5] == [
        "| PPO | 4.00 | +2.00 (-0.48 to +4.48) |",  # 4.303 · 1 / √3
        "| best-of-2 | 0.20 | +0.10 (+0.10 to +0.10) |",
        "| best-of-4 | 0.60 | +0.30 (+0.30 to +0.30) |",
    ]
    demos = [Project.find(tmp_path / f"seed-{seed}") for seed in (1, 2, 3)]
    ppo, best_of = frontier.frontier_of(frontier.measured(demos)).lines
    assert [(point.kl, point.kl_half) for point in best_of] == [(0.2, 0.0), (0.6, 0.0)], "a bound"
    assert len(ppo) == 1 and ppo[0].kl_half == pytest.approx(2 * 4.303 / 3**0.5, rel=1e-3)


def test_the_figures_of_the_picture_are_those_of_the_table(frontier: ModuleType) -> None:
    section = (
        (ROOT / "docs/results.md").read_text("utf-8").split("## Every way to tune, five seeds")[1].split("\n## ")[0]
    )
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\|.*\|$", section, re.M)[2:]]
    table = {row[0].replace("best of 4 (trains nothing)", "best-of-4"): row[1:] for row in rows}
    figures = json.loads((ROOT / "experiments/frontier.json").read_text())
    assert set(table) == set(figures)
    for name, cells in table.items():
        assert [float(cell) for cell in cells[:5]] == figures[name]["gain"] and [float(cells[6])] == figures[name]["kl"]
    for point in (point for line in frontier.frontier_of(figures).lines for point in line):
        mean, low, high = map(float, re.findall(r"[+-][\d.]+", table[point.name][5]))
        shown = (point.score, point.score - point.score_half, point.score + point.score_half)
        assert shown == pytest.approx((mean, low, high), abs=0.011), point.name  # the table's gains are rounded
