"""What each method pays in KL for what it gains in gold, over several seeds: python experiments/frontier.py FROM [PICTURE]

FROM is a folder of finished demos (seed-1, seed-2, …, as experiments/seeds.py leaves them); methods that experiments/trainers.py added to
all of them are drawn too. Or it is such figures as JSON (experiments/frontier.json has those of docs/results.md): by method, `gain` of gold
over SFT and `kl` in nats an answer, each with a number for every seed or, where no more is known, the mean alone.

Every point is a mean over seeds of what finished models did on held-out prompts, with the mean's 95% interval; nothing of a training run
is drawn. Best-of-n trains nothing, and its KL is an upper bound.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bridle.core.files import read_json
from bridle.maths.statistics import mean_and_se, mean_interval
from bridle.project.project import Project
from bridle.report.drawings import Frontier, Point, draw_frontier, save_png

Figures = dict[str, dict[str, list[float]]]
NAMES = {
    "dpo": "DPO", "ppo": "PPO", "rloo": "RLOO", "rebel": "REBEL", "dpo-online": "DPO online",
    "best-of-n": "imitating the best of 4", "grpo-gold": "GRPO, by the reward model",
}  # fmt: skip


def measured(demos: list[Project]) -> Figures:
    """Of every method that all demos evaluated, what its models did on held-out prompts; and of best-of-n."""
    figures: Figures = {}
    for stage, name in NAMES.items():
        found = [(demo.finished(f"evaluate-{stage}"), demo.finished("evaluate-sft")) for demo in demos]
        ends = [(end, sft) for end, sft in found if end is not None and sft is not None]
        if len(ends) == len(demos):
            gains = [end["gold"] - sft["gold"] for end, sft in ends]
            figures[name] = {"gain": gains, "kl": [end["kl"] for end, _ in ends]}
    tried = [result["frontier"] for demo in demos if (result := demo.finished("best-of-4")) is not None]
    if len(tried) == len(demos):
        for points in list(zip(*tried, strict=True))[
            1:
        ]:  # of every demo the same n; the first is one answer, SFT's own
            gains = [point["gold"] - one[0]["gold"] for point, one in zip(points, tried, strict=True)]
            figures[f"best-of-{points[0]['n']}"] = {"gain": gains, "kl": [points[0]["kl"]]}
    return figures


def mean_and_half(values: list[float]) -> tuple[float, float]:
    """The mean and half the width of its 95% interval, which is unknown, and drawn as none, where the mean alone is given."""
    mean = mean_and_se(values)[0]
    return mean, mean_interval(values)[1] - mean if len(values) > 1 else 0.0


def frontier_of(figures: Figures) -> Frontier:
    points = []
    for name, of in figures.items():
        (gain, gain_half), (kl, kl_half) = mean_and_half(of["gain"]), mean_and_half(of["kl"])
        points.append(Point(name, kl, gain, kl_half, gain_half))
    chosen = [point for point in points if point.name.startswith("best-of-")]
    lines = [[point] for point in points if point not in chosen]
    return Frontier("gain of gold over SFT, points", Point("SFT", 0.0, 0.0), [*lines, *([chosen] if chosen else [])])


def main(source: Path, picture: Path) -> None:
    found = [Project.find(folder) for folder in sorted(source.glob("seed-*")) if (folder / "summary.json").exists()]
    drawn = frontier_of(measured(found) if source.is_dir() else read_json(source))
    print("| method | KL | gain of gold (95%) |\n|---|---|---|")
    for point in (point for line in drawn.lines for point in line):
        low, high = point.score - point.score_half, point.score + point.score_half
        print(f"| {point.name} | {point.kl:.2f} | {point.score:+.2f} ({low:+.2f} to {high:+.2f}) |")
    save_png(draw_frontier(drawn), picture)
    print(f"\npicture: {picture}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "frontier.png"))
