"""bfloat16 against float32, from nothing to a tuned policy: python experiments/precision.py FOLDER SEED [SEED …]

Each seed walks the loop twice, once in each precision of `model.precision`, with everything else equal: pretraining, SFT, answers,
labels, reward model, PPO, DPO. Rounding sends the two on different ways at the first step, so they differ as two seeds do; what can be
asked is that neither is better. The differences are paired by seed, with Student's interval. What is finished is not run again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bridle.maths.statistics import mean_and_se, mean_interval
from bridle.project.metrics import read_metrics
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe
from bridle.stages.evaluate import compare, evaluate
from bridle.stages.label import label_simulated
from bridle.stages.methods import METHODS
from bridle.stages.sample import sample
from bridle.stages.workspace import Work

PRECISIONS = ("bfloat16", "float32")


def measured(folder: Path, seed: int, precision: str) -> dict[str, float]:
    recipe = Recipe().with_settings({"seed": seed, "data.source": "playground", "model.precision": precision})
    made = (folder / "bridle.toml").exists()
    work = Work(Project.find(folder) if made else Project.create(folder, recipe), Progress())
    try:
        base = METHODS["pretrain"].train(work, reuse=True)
        METHODS["sft"].train(work, reuse=True)
        sample(work, reuse=True)
        label_simulated(work, reuse=True)
        reward = METHODS["reward"].train(work, reuse=True)
        METHODS["ppo"].train(work, reuse=True)
        METHODS["dpo"].train(work, reuse=True)
        gold = {name: evaluate(work, name, reuse=True)["gold"] for name in ("sft", "ppo", "dpo")}
        run = work.project.finished_folder("ppo")
        assert run is not None
        return {
            "pretraining loss": base["loss"],
            "SFT gold": gold["sft"],
            "pair accuracy": reward["pair_accuracy"],
            "PPO gain": gold["ppo"] - gold["sft"],
            "PPO wins": compare(work, "ppo", "sft", "gold")["rate"],
            "DPO gain": gold["dpo"] - gold["sft"],
            "log-prob gap": max(line["logprob_gap"] for line in read_metrics(run)),
        }
    finally:
        work.close()


def main(folder: Path, seeds: list[int]) -> None:
    found: list[dict[str, dict[str, float]]] = []
    for number, seed in enumerate(seeds):
        found.append({p: measured(folder / f"{p}-{seed}", seed, p) for p in PRECISIONS})
        print(
            f"\n| figure | {' | '.join(f'seed {s}: bfloat16, float32' for s in seeds[: number + 1])} | difference (95%) |"
        )
        print("|---" * (number + 3) + "|")
        for name in found[0]["float32"]:
            pairs = [(row["bfloat16"][name], row["float32"][name]) for row in found]
            differences = [narrow - wide for narrow, wide in pairs]
            mean, (low, high) = mean_and_se(differences)[0], mean_interval(differences)
            shown = " | ".join(f"{narrow:.3f}, {wide:.3f}" for narrow, wide in pairs)
            print(f"| {name} | {shown} | {mean:+.3f} ({low:+.3f} to {high:+.3f}) |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]])
