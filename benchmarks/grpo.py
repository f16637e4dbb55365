"""GRPO: python benchmarks/grpo.py [--quick]. RLOO is the same but for the trainers: rloo.py"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import peer
from harness import MODEL, MODELS, SIZE, Contestant, Stage, Trial, main
from texts import ANSWER, PROMPT, prompts, score

ANSWERS, GROUP = 64, 8
BETA = 0.04


def settings(trial: Trial, trial_log: bool = True) -> dict[str, Any]:
    """bridle's, of both trainers."""
    return {
        "max_new_tokens": ANSWER, "steps": trial.steps, "prompts_per_step": ANSWERS // GROUP, "group_size": GROUP, "epochs": 1,
        "minibatches": 1, "batch_size": ANSWERS, "kl_coef": BETA, "learning_rate": 1e-5, "on_log": trial.on_log,
    }  # fmt: skip


def reward(asked: Sequence[str], answers: Sequence[str]) -> list[float]:
    return [score(answer) for answer in answers]


def bridle(trial: Trial) -> None:
    import bridle

    bridle.grpo(bridle.load(MODELS / MODEL), prompts(ANSWERS // GROUP * trial.steps), reward, **settings(trial))


def trl_settings(trial: Trial, chosen: dict[str, Any]) -> dict[str, Any]:
    """The peer's, of both trainers."""
    return {
        **peer.common(trial, ANSWERS), "num_generations": GROUP, "max_completion_length": ANSWER, "beta": BETA, "temperature": 1.0,
        **chosen,
    }  # fmt: skip


def trl_reward(completions: Sequence[str], **_: Any) -> list[float]:
    return [score(answer) for answer in completions]


def trl(trial: Trial, chosen: dict[str, Any], fast: bool) -> None:
    from trl import GRPOConfig, GRPOTrainer

    trainer = GRPOTrainer(
        peer.language_model(MODEL, fast), reward_funcs=trl_reward, args=GRPOConfig(**trl_settings(trial, chosen)),
        train_dataset=peer.rows(prompt=prompts(ANSWERS * trial.steps)), processing_class=peer.tokenizer(MODEL),
    )  # fmt: skip
    peer.train(trainer, trial)


SHAPE = f"{ANSWERS} answers in groups of {GROUP}, {PROMPT} + {ANSWER} tokens, β {BETA}, one optimiser step, {SIZE} parameters"

if __name__ == "__main__":
    main(
        Stage(
            "grpo",
            SHAPE,
            [Contestant("bridle", bridle), *peer.contestants(trl)],
            steps=5,
            quick_steps=3,
            tokens={"": ANSWERS * ANSWER},
        )
    )
