"""SFT: python benchmarks/sft.py [--quick]"""

from __future__ import annotations

from typing import Any

import peer
from harness import MODEL, MODELS, SIZE, Contestant, Stage, Trial, main
from texts import ANSWER, PROMPT, demonstrations

BATCH = 16


def bridle(trial: Trial) -> None:
    import bridle

    model = bridle.load(MODELS / MODEL)
    examples = demonstrations(BATCH * trial.steps)
    bridle.sft(
        model, examples, batch_size=BATCH, epochs=1, optimizer="adamw", learning_rate=1e-5, on_log=trial.on_log
    )  # fmt: skip


def trl(trial: Trial, chosen: dict[str, Any], fast: bool) -> None:
    from trl import SFTConfig, SFTTrainer

    shown = demonstrations(BATCH * trial.steps)
    data = peer.rows(prompt=[p for p, _ in shown], completion=[f" {a}" for _, a in shown])
    trainer = SFTTrainer(
        peer.language_model(MODEL, fast), args=SFTConfig(**peer.common(trial, BATCH), **chosen), train_dataset=data,
        processing_class=peer.tokenizer(MODEL),
    )  # fmt: skip
    assert {len(ids) for ids in trainer.train_dataset["input_ids"]} == {PROMPT + ANSWER}
    peer.train(trainer, trial)


if __name__ == "__main__":
    main(
        Stage(
            "sft",
            f"{BATCH} demonstrations of {PROMPT} + {ANSWER} tokens, {SIZE} parameters",
            [Contestant("bridle", bridle), *peer.contestants(trl)],
            steps=21,
            quick_steps=11,
            tokens={"": BATCH * (PROMPT + ANSWER)},
        )
    )
