"""PPO on the same reward in other units: python experiments/reward_scale.py DEMO_FOLDER [RANGE …]

The reward model's score s, which lies within about -3 and 3 on SFT's answers, becomes range × (s + 3) / 6; β and the missing-stop penalty
are multiplied by range / 6, as whoever has such a reward should. Range 0 stands for the score as it is. What is finished is not run again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bridle.core.records import Completion, Prompt
from bridle.project.metrics import read_metrics
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.stages.evaluate import evaluate
from bridle.stages.methods import METHODS
from bridle.stages.rewards import learned_reward
from bridle.stages.workspace import Work


def main(folder: Path, ranges: Sequence[float]) -> None:
    work = Work(Project.find(folder), Progress())
    scores, ppo = learned_reward(work, work.load_policy("sft")), work.recipe.ppo
    before = evaluate(work, "sft", reuse=True)
    print("range  explained, steps 1 2 3 … last  mean of last 3  gold SFT → PPO   KL  beta")
    for spread in ranges:
        factor, shift = (spread / 6, spread / 2) if spread else (1.0, 0.0)

        def scaled(
            prompts: Sequence[Prompt], completions: Sequence[Completion], a=factor, b=shift
        ) -> list[float | None]:
            return [None if score is None else a * score + b for score in scores(prompts, completions)]

        settings = {"kl_coef": factor * ppo.kl_coef, "missing_stop_penalty": factor * ppo.missing_stop_penalty}
        name = f"ppo-range-{spread:g}"
        METHODS["ppo"].train(work, name=name, reward=scaled, settings=settings, reuse=True)
        after = evaluate(work, name, reuse=True)
        lines = list(read_metrics(sorted((folder / "runs").glob(f"{name}-[0-9]*"))[-1]))
        told = [line["value_explained"] for line in lines]
        first = " ".join(f"{value:.2f}" for value in (*told[:3], told[-1]))
        print(
            f"{spread:g}  {first}  {sum(told[-3:]) / 3:.3f}  {before['gold']:.2f} → {after['gold']:.2f}  {after['kl']:.2f}  "
            f"{lines[-1]['beta'] / factor:.3f} × {factor:.4g}"
        )
    work.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), [float(word) for word in sys.argv[2:]] or [0.0, 1.0, 100.0, 1000.0])
