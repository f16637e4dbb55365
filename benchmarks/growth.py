"""How bridle's cost grows with batch and length: python benchmarks/growth.py [--quick]"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from harness import MODELS, Contestant, Stage, Trial, main
from texts import text

TIMES = (1, 2, 4, 8)
SFT_BATCH, SFT_LENGTH = 8, 96  # a third of it prompt
DECODE_BATCH, DECODE_TOKENS, PROMPT = 8, 64, 32

# What grows, and the batch and length of each case.
SFT = {f"SFT batch {SFT_BATCH * k}": (SFT_BATCH * k, SFT_LENGTH) for k in TIMES}
SFT |= {f"SFT length {SFT_LENGTH * k}": (SFT_BATCH, SFT_LENGTH * k) for k in TIMES}
DECODE = {f"decode batch {DECODE_BATCH * k}": (DECODE_BATCH * k, DECODE_TOKENS) for k in TIMES}
DECODE |= {f"decode length {DECODE_TOKENS * k}": (DECODE_BATCH, DECODE_TOKENS * k) for k in TIMES}


def bridle(trial: Trial) -> None:
    import bridle
    from bridle.core.records import Prompt
    from bridle.generation.engine import Engine
    from bridle.generation.sampling import Sampling

    model, rng = bridle.load(MODELS / "m5"), Random(6)
    for case, (batch, length) in SFT.items():
        shown = [
            (text(length // 3, rng), text(length - length // 3 - 1, rng)) for _ in range(batch * (5 * trial.steps + 1))
        ]
        bridle.sft(
            model, shown, batch_size=batch, epochs=1, optimizer="adamw", learning_rate=1e-5,
            on_log=lambda step, total, figures, case=case: trial.step(step, case),
        )  # fmt: skip
    policy = replace(model.policy, template=replace(model.policy.template, stop_ids=frozenset()))
    engine = Engine(model.device.precision)
    engine.load(policy)
    for case, (batch, tokens) in DECODE.items():
        ids = model.policy.template.prompt_ids([Prompt.from_text(text(PROMPT, rng)) for _ in range(batch)])
        for step in range(trial.steps + 1):
            engine.generate(ids, Sampling(tokens), stamp=policy.stamp, seed=step)
            trial.step(step, case)


if __name__ == "__main__":
    main(
        Stage(
            "growth",
            "SFT steps and decoding at 1, 2, 4 and 8 times the batch and the length, 5.5M parameters",
            [Contestant("bridle", bridle)],
            steps=3,
            quick_steps=1,
            tokens={case: batch * length for case, (batch, length) in {**SFT, **DECODE}.items()},
        )
    )
