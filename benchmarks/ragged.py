"""Uneven lengths, sorted into batches or padded at random: python benchmarks/ragged.py [--quick]. A step is one pass over the data."""

from __future__ import annotations

from functools import partial
from typing import Any

import peer
from harness import KEEP_MEMORY, MODELS, Contestant, Stage, Trial, main
from texts import ragged

BATCH, COUNT, LEAST, MOST = 16, 256, 40, 192
BATCHES = COUNT // BATCH


def bridle(trial: Trial) -> None:
    import bridle
    from bridle.api.inputs import demonstrations_of
    from bridle.compute.optimizer import OPTIMIZERS, clipped_step
    from bridle.compute.randomness import shuffled
    from bridle.models.batches import length_plan
    from bridle.models.encoding import encode_demonstrations
    from bridle.models.imitation import imitate

    model = bridle.load(MODELS / "m5")
    demonstrations = demonstrations_of(ragged(COUNT, LEAST, MOST))
    examples, _ = encode_demonstrations(model.policy.template, demonstrations, model.limit)
    optimizers = OPTIMIZERS["adamw"](model.policy.module, 1e-5)
    lengths = [len(prompt) + len(answer) for prompt, answer in examples]
    for case in ("sorted", "random"):
        for number in range(trial.steps):
            if case == "sorted":
                plan = length_plan(lengths, BATCH, 1, number, "sft")
            else:
                plan = shuffled(COUNT, number, "ragged").view(BATCHES, BATCH).tolist()
            for rows in plan:
                imitate(model.policy, [examples[i] for i in rows], model.device)
                clipped_step([model.policy.module], optimizers, 1.0)
            trial.step(number, case)


def trl(trial: Trial, chosen: dict[str, Any], fast: bool) -> None:
    from trl import SFTConfig, SFTTrainer

    shown = ragged(COUNT, LEAST, MOST)
    for case in ("sorted", "random"):
        settings = {**peer.common(trial, BATCH), "max_steps": trial.steps * BATCHES, **chosen}
        if case == "sorted":
            settings["train_sampling_strategy"] = "group_by_length"
        trainer = SFTTrainer(
            peer.language_model("m5", fast), args=SFTConfig(**settings), processing_class=peer.tokenizer("m5"),
            train_dataset=peer.rows(prompt=[p for p, _ in shown], completion=[f" {a}" for _, a in shown]),
        )  # fmt: skip
        peer.train(trainer, trial, case, every=BATCHES)


if __name__ == "__main__":
    tokens = sum(len(f"{p} {a}".split()) + 1 for p, a in ragged(COUNT, LEAST, MOST))
    main(
        Stage(
            "ragged",
            f"one pass over {COUNT} demonstrations of {LEAST}-{MOST} tokens in batches of {BATCH}, 5.5M parameters",
            [
                Contestant("bridle", bridle),
                Contestant("trl best", partial(trl, chosen=peer.BEST, fast=False), "trl", KEEP_MEMORY),
                Contestant("trl tuned", partial(peer.tuned, trl, peer.BEST), "trl", KEEP_MEMORY),
            ],
            steps=3,
            quick_steps=2,
            tokens={"sorted": tokens, "random": tokens},
        )
    )
