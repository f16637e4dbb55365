"""bfloat16 against float32, from nothing to a tuned policy: python experiments/precision.py FOLDER SEED [SEED …]

Each seed walks the loop twice, once in each precision of `model.precision`, with everything else equal: pretraining, SFT, answers,
labels, reward model, PPO, DPO. Rounding sends the two on different ways at the first step, so they differ as two seeds do; what can be
asked is that neither is better. The differences are paired by seed, with Student's interval. What is finished is not run again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from trainers import STUDENT

from bridle.core.recipe import Recipe
from bridle.core.runlog import Progress, Project, read_metrics
from bridle.maths.statistics import mean_and_se
from bridle.scoring import train_reward
from bridle.stages import Work, compare, evaluate, label_simulated, sample, train_ppo, train_pretrain, train_sft
from bridle.tuning import train_dpo

PRECISIONS = ("bfloat16", "float32")


def figures(folder: Path, seed: int, precision: str) -> dict[str, float]:
    recipe = Recipe().with_settings({"seed": seed, "data.source": "playground", "model.precision": precision})
    made = (folder / "bridle.toml").exists()
    work = Work(Project.find(folder) if made else Project.create(folder, recipe), Progress())
    try:
        base = train_pretrain(work, reuse=True)
        train_sft(work, reuse=True)
        sample(work, reuse=True)
        label_simulated(work, reuse=True)
        reward = train_reward(work, reuse=True)
        train_ppo(work, reuse=True)
        train_dpo(work, reuse=True)
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
        found.append({p: figures(folder / f"{p}-{seed}", seed, p) for p in PRECISIONS})
        print(
            f"\n| figure | {' | '.join(f'seed {s}: bfloat16, float32' for s in seeds[: number + 1])} | difference (95%) |"
        )
        print("|---" * (number + 3) + "|")
        for name in found[0]["float32"]:
            pairs = [(row["bfloat16"][name], row["float32"][name]) for row in found]
            mean, error = mean_and_se([low - wide for low, wide in pairs])
            half = STUDENT.get(len(pairs), float("nan")) * error
            shown = " | ".join(f"{low:.3f}, {wide:.3f}" for low, wide in pairs)
            print(f"| {name} | {shown} | {mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f}) |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]])
