"""What each method pays in KL for what it gains in gold, over several seeds: python experiments/frontier.py FOLDER [PICTURE]

FOLDER holds finished demos (seed-1, seed-2, …, as experiments/seeds.py leaves them); methods that experiments/trainers.py added to all
of them are drawn too. Each is followed along its own training, a point being the mean over seeds of (KL, gold − SFT's gold) at one
step; best-of-n are 1, 2 and 4 answers. The last point is measured on the held-out prompts, those before it on training prompts.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from bridle.core.files import read_json
from bridle.project.metrics import read_metrics
from bridle.project.project import Project
from bridle.report.drawings import Curve, Series, draw_curve, save_png

Point = tuple[float, float]
NAMES = {
    "ppo": "PPO", "dpo": "DPO", "grpo-gold": "GRPO", "rloo": "RLOO", "rebel": "REBEL",
    "best-of-n": "imitating the best of 4", "dpo-online": "DPO online",
}  # fmt: skip


def trajectory(demo: Project, stage: str) -> list[Point]:
    """(KL, gain) at each measured step of a run, and at its end on held-out prompts; [] where it was not run."""
    end, start, run = demo.finished(f"evaluate-{stage}"), demo.finished("evaluate-sft"), demo.finished_folder(stage)
    if end is None or start is None or run is None:
        return []
    steps = [line for line in read_metrics(run) if line.get("gold") is not None]
    return [*((s["kl"], s["gold"] - start["gold"]) for s in steps), (end["kl"], end["gold"] - start["gold"])]


def best_of(demo: Project) -> list[Point]:
    points: list[dict[str, Any]] = read_json(demo.folder / "summary.json")["stages"]["best_of_4"]["frontier"]
    return [(p["kl"], p["gold"] - points[0]["gold"]) for p in points]


def main(folder: Path, picture: Path) -> None:
    demos = [Project.find(d) for d in sorted(folder.glob("seed-*")) if (d / "summary.json").exists()]
    lines = {name: [trajectory(demo, stage) for demo in demos] for stage, name in NAMES.items()}
    lines["best of 1, 2, 4"] = [best_of(demo) for demo in demos]
    series = []
    print("| method | KL | gain of gold | standard error over seeds |\n|---|---|---|---|")
    for name, runs in lines.items():
        if not all(runs):
            continue
        points_SPX = np.array(runs)  # seeds, points, (KL, gain)
        mean_PX = points_SPX.mean(0)
        error_P = points_SPX[:, :, 1].std(0, ddof=1) / len(demos) ** 0.5
        series.append(Series(name, mean_PX[:, 0].tolist(), mean_PX[:, 1].tolist()))
        print(f"| {name}, at its end | {mean_PX[-1, 0]:.2f} | {mean_PX[-1, 1]:+.2f} | {error_P[-1]:.2f} |")
    curve = Curve("KL from SFT, nats per answer", "gain of gold over SFT, points", series)
    save_png(draw_curve(curve), picture)
    print(f"\n{len(demos)} seeds; picture: {picture}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "frontier.png"))
