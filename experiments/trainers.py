"""Every way to tune a policy, on finished demos: python experiments/trainers.py FOLDER SEED [SEED …]

FOLDER/seed-N is a demo as experiments/seeds.py leaves it. PPO and DPO are taken from it; the others start from its SFT model and learn
from its reward model, or its comparisons, with the recipe's settings. Each is evaluated on the same held-out prompts. Every
seed is shown; the mean's interval is Student's, over seeds. What is finished is not run again; an unfinished run is resumed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bridle.maths.statistics import mean_and_se, mean_interval
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.stages.evaluate import compare, evaluate
from bridle.stages.methods import METHODS
from bridle.stages.workspace import Work

# Each way by the name of the model that it leaves: the method, and settings that differ from the recipe's.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "ppo": ("ppo", {}),
    "dpo": ("dpo", {}),
    "grpo-gold": ("grpo", {"scored_by": "reward"}),
    "rloo": ("rloo", {}),
    "rebel": ("rebel", {}),
    "best-of-n": ("best-of-n", {}),
    "dpo-online": ("dpo", {"online_rounds": 8}),
}


def tuned(demo: Path) -> dict[str, dict[str, float]]:
    """Gain of gold over SFT, KL and win rate of each method on one demo."""
    work = Work(Project.find(demo), Progress())
    try:
        before = evaluate(work, "sft", reuse=True)
        found = {}
        for name, (method, settings) in WAYS.items():
            METHODS[method].train(work, name=name, settings=settings, reuse=True)
            after = evaluate(work, name, reuse=True)
            wins = compare(work, name, "sft", "gold")
            found[name] = {"gain": after["gold"] - before["gold"], "kl": after["kl"], "wins": wins["rate"]}
        return found
    finally:
        work.close()


def main(folder: Path, seeds: list[int]) -> None:
    rows = []
    for seed in seeds:
        rows.append(tuned(folder / f"seed-{seed}"))
        print_table(seeds[: len(rows)], rows)


def print_table(seeds: list[int], rows: list[dict[str, dict[str, float]]]) -> None:
    print(f"\n| gain of gold over SFT | {' | '.join(f'seed {seed}' for seed in seeds)} | mean (95%) | KL | wins |")
    print("|---" * (len(seeds) + 4) + "|")
    for name in WAYS:
        gains = [row[name]["gain"] for row in rows]
        mean, (low, high) = mean_and_se(gains)[0], mean_interval(gains)
        kl, wins = (sum(row[name][key] for row in rows) / len(rows) for key in ("kl", "wins"))
        shown = " | ".join(f"{gain:+.2f}" for gain in gains)
        print(f"| {name} | {shown} | {mean:+.2f} ({low:+.2f} to {high:+.2f}) | {kl:.2f} | {wins:.3f} |")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]])
