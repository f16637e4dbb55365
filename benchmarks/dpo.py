"""DPO: python benchmarks/dpo.py [--quick]"""

from __future__ import annotations

from typing import Any

import peer
from harness import MODEL, MODELS, SIZE, Contestant, Stage, Trial, main
from texts import ANSWER, PROMPT, pairs

BATCH = 16


def bridle(trial: Trial) -> None:
    import bridle

    model = bridle.load(MODELS / MODEL)
    bridle.dpo(model, pairs(BATCH * trial.steps), batch_size=BATCH, epochs=1, learning_rate=1e-5, on_log=trial.on_log)


def trl(trial: Trial, chosen: dict[str, Any], fast: bool) -> None:
    from trl import DPOConfig, DPOTrainer

    prompts, better, worse = zip(*pairs(BATCH * trial.steps), strict=True)
    data = peer.rows(prompt=list(prompts), chosen=[f" {a}" for a in better], rejected=[f" {b}" for b in worse])
    trainer = DPOTrainer(
        peer.language_model(MODEL, fast), args=DPOConfig(**peer.common(trial, BATCH), **chosen), train_dataset=data,
        processing_class=peer.tokenizer(MODEL),
    )  # fmt: skip
    assert {len(ids) for ids in trainer.train_dataset["rejected_ids"]} == {ANSWER}
    peer.train(trainer, trial)


if __name__ == "__main__":
    main(
        Stage(
            "dpo",
            f"{BATCH} pairs of {PROMPT} + {ANSWER} tokens each side, {SIZE} parameters",
            [Contestant("bridle", bridle), *peer.contestants(trl, best={"precompute_ref_log_probs": True})],
            steps=12,
            tokens={"": BATCH * 2 * (PROMPT + ANSWER)},
        )
    )
