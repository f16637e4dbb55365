"""The reward model from pairs: python benchmarks/reward.py [--quick]"""

from __future__ import annotations

from typing import Any

import peer
from harness import MODELS, Contestant, Stage, Trial, main
from texts import ANSWER, PROMPT, pairs

BATCH = 16


def bridle(trial: Trial) -> None:
    import bridle

    model = bridle.load(MODELS / "m5")
    bridle.reward_model(
        model, pairs(BATCH * trial.steps), max_new_tokens=1, batch_size=BATCH, epochs=1, learning_rate=1e-5, on_log=trial.on_log
    )  # fmt: skip


def trl(trial: Trial, chosen: dict[str, Any], fast: bool) -> None:
    from trl import RewardConfig, RewardTrainer

    compared = pairs(BATCH * trial.steps)
    data = peer.rows(chosen=[f"{p} {a}" for p, a, _ in compared], rejected=[f"{p} {b}" for p, _, b in compared])
    trainer = RewardTrainer(
        peer.reward_model("m5", fast), args=RewardConfig(**peer.common(trial, BATCH), **chosen), train_dataset=data,
        processing_class=peer.tokenizer("m5"),
    )  # fmt: skip
    assert {len(ids) for ids in trainer.train_dataset["rejected_ids"]} == {PROMPT + ANSWER}
    peer.train(trainer, trial)


if __name__ == "__main__":
    main(
        Stage(
            "reward",
            f"{BATCH} pairs of {PROMPT} + {ANSWER} tokens each side, 5.5M parameters",
            [Contestant("bridle", bridle), *peer.contestants(trl)],
            steps=16,
            tokens={"": BATCH * 2 * (PROMPT + ANSWER)},
        )
    )
