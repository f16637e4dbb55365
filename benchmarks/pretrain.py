"""Pretraining beside transformers' Trainer, at three sizes: python benchmarks/pretrain.py [--quick]"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import Any

import peer
from harness import KEEP_MEMORY, MODELS, Contestant, Stage, Trial, main
from texts import SPECIAL, WORDS

BATCH, LENGTH = 8, 128
SIZES = ("m1", "m5", "m25")


def rows(count: int, length: int) -> list[list[int]]:
    rng = Random(5)
    return [[len(SPECIAL) + rng.randrange(WORDS) for _ in range(length)] for _ in range(count)]


def bridle(trial: Trial, optimizer: str) -> None:
    import torch

    import bridle
    from bridle.api.runs import training
    from bridle.api.trainers import recipe_of
    from bridle.compute.steps import Session
    from bridle.training.pretrain import train

    for size in SIZES:
        model = bridle.load(MODELS / size)
        settings = {"batch_size": BATCH, "length": LENGTH, "optimizer": optimizer, "learning_rate": 1e-5}
        recipe = recipe_of(("pretrain",), settings, 0)
        rows_RT = torch.tensor(rows(BATCH * trial.steps, LENGTH + 1))
        told = partial(tell, trial, size)
        with training(model, "pretrain", size, recipe, None, told) as (run, _):
            train(model.policy, rows_RT, trial.steps * BATCH * LENGTH, recipe.pretrain, Session(run, model.device, 0))


def tell(trial: Trial, case: str, step: int, total: int, metrics: object) -> None:
    trial.step(step, case)


def transformers(trial: Trial, chosen: dict[str, Any], fast: bool) -> None:
    from transformers import Trainer, TrainingArguments

    for size in SIZES:
        ids = rows(BATCH * trial.steps, LENGTH)
        trainer = Trainer(
            peer.language_model(size, fast), TrainingArguments(**peer.common(trial, BATCH), **chosen),
            train_dataset=peer.rows(input_ids=ids, labels=ids),
        )  # fmt: skip
        peer.train(trainer, trial, size)


if __name__ == "__main__":
    shipped = partial(transformers, chosen={}, fast=False)
    best = partial(peer.tuned, transformers, {"bf16": True})
    main(
        Stage(
            "pretrain",
            f"{BATCH} rows of {LENGTH} tokens; 1.3M, 5.5M and 25.7M parameters",
            [
                Contestant("bridle", partial(bridle, optimizer="adamw")),
                Contestant("bridle Muon", partial(bridle, optimizer="muon")),
                Contestant("transformers", shipped, "trl"),
                Contestant("transformers best", best, "trl", KEEP_MEMORY),
            ],
            steps=21,
            quick_steps=11,
            models=SIZES,
            tokens=dict.fromkeys(SIZES, BATCH * LENGTH),
        )
    )
