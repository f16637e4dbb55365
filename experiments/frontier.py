"""What each method pays in KL for what it gains in gold, over several seeds: python experiments/frontier.py FOLDER [PICTURE]

FOLDER holds finished demos (seed-1, seed-2, …, as experiments/seeds.py leaves them). PPO and DPO are followed along their own
training, each point the mean over seeds of (KL, gold − SFT's gold) at one step; best-of-n are 1, 2 and 4 answers. The last point
of PPO and DPO is measured on the held-out prompts, those before it on training prompts of that step.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from bridle.core.files import read_json
from bridle.core.runlog import read_metrics
from bridle.evaluation.figures import Curve, Series, draw_curve, save_png

Point = tuple[float, float]


def trajectory(demo: Path, stage: str) -> list[Point]:
    """(KL, gain) at each measured step of a run, and at its end on held-out prompts."""
    stages = read_json(demo / "summary.json")["stages"]
    start = stages["evaluate-sft"]["gold"]
    steps = [line for line in read_metrics(demo / "runs" / f"{stage}-0001") if line.get("gold") is not None]
    end = stages[f"evaluate-{stage}"]
    return [*((s["kl"], s["gold"] - start) for s in steps), (end["kl"], end["gold"] - start)]


def best_of(demo: Path) -> list[Point]:
    points: list[dict[str, Any]] = read_json(demo / "summary.json")["stages"]["best_of_4"]["frontier"]
    return [(p["kl"], p["gold"] - points[0]["gold"]) for p in points]


def main(folder: Path, picture: Path) -> None:
    demos = sorted(d for d in folder.glob("seed-*") if (d / "summary.json").exists())
    lines = {
        "PPO": [trajectory(demo, "ppo") for demo in demos],
        "DPO": [trajectory(demo, "dpo") for demo in demos],
        "best of 1, 2, 4": [best_of(demo) for demo in demos],
    }
    series = []
    print("| method | KL | gain of gold | standard error over seeds |\n|---|---|---|---|")
    for name, runs in lines.items():
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
