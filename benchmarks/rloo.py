"""RLOO: python benchmarks/rloo.py [--quick]"""

from __future__ import annotations

from typing import Any

import peer
from grpo import ANSWERS, GROUP, SHAPE, reward, settings, trl_reward, trl_settings
from harness import MODEL, MODELS, Contestant, Stage, Trial, main
from texts import ANSWER, prompts


def bridle(trial: Trial) -> None:
    import bridle

    bridle.rloo(bridle.load(MODELS / MODEL), prompts(ANSWERS // GROUP * trial.steps), reward, **settings(trial))


def trl(trial: Trial, chosen: dict[str, Any], fast: bool) -> None:
    from trl import RLOOConfig, RLOOTrainer

    trainer = RLOOTrainer(
        peer.language_model(MODEL, fast), reward_funcs=trl_reward, args=RLOOConfig(**trl_settings(trial, chosen)),
        train_dataset=peer.rows(prompt=prompts(ANSWERS * trial.steps)), processing_class=peer.tokenizer(MODEL),
    )  # fmt: skip
    peer.train(trainer, trial)


if __name__ == "__main__":
    main(
        Stage(
            "rloo",
            SHAPE,
            [Contestant("bridle", bridle), *peer.contestants(trl)],
            steps=5,
            quick_steps=3,
            tokens={"": ANSWERS * ANSWER},
        )
    )
