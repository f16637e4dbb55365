"""This machine's speed at matrix products, and the products that a step needs: python benchmarks/roofline.py [--quick]

What a stage reaches is its floating-point operations by the formulas here, over its time, over the fastest bfloat16 product
measured. The operations are those that cannot be done without: a prompt is read once for all its answers, nothing is
recomputed, the head reads only what is scored. tables.py joins them with the stages' results.
"""

from __future__ import annotations

from harness import Contestant, Stage, Trial, main
from texts import ANSWER, PROMPT

SIZES = (512, 1024, 2048)
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD, INNER, VOCABULARY = 256, 6, 4, 2, 64, 704, 4096  # m5


def bridle(trial: Trial) -> None:
    import torch

    import bridle  # noqa: F401  its version for the row
    from bridle.compute.device import choose_device

    for precision, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        choose_device(precision, threads=torch.get_num_threads())
        for size in SIZES:
            a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
            for step in range(trial.steps):
                a @ b
                trial.step(step, f"{precision} {size}")


def forward(tokens: int, scored: int, context: float, head: bool = True) -> float:
    """Operations of one forward pass of m5 over so many tokens that look at `context` others on average; `scored` of them
    go through the head."""
    projections = HIDDEN * HEAD * (2 * HEADS + 2 * KV_HEADS) + 3 * HIDDEN * INNER
    attention = 2 * HEADS * HEAD * context
    return 2.0 * (tokens * LAYERS * (projections + attention) + (scored * HIDDEN * VOCABULARY if head else 0))


def answered(prompts: int, answers: int, head: bool = True) -> float:
    """One forward pass over prompts, each once, and all their answers."""
    asked = forward(prompts * PROMPT, prompts, PROMPT / 2, head)
    return asked + forward(answers * ANSWER, answers * (ANSWER - 1), PROMPT + ANSWER / 2, head)


def operations(stage: str) -> float:
    """Of one step as the stages' scripts have it; a backward pass costs two forward ones."""
    if stage == "sft":
        return 3 * answered(16, 16)
    if stage == "reward":
        return 3 * answered(16, 32, head=False)
    if stage == "dpo":  # the reference was read before
        return 3 * answered(16, 32)
    if stage in ("grpo", "rloo"):  # generation, reference, update
        return 5 * answered(8, 64)
    if stage == "ppo":  # generation, reference and 4 epochs of the policy; reward, values and 4 epochs of the critic
        return (2 + 4 * 3) * answered(64, 64) + (2 + 4 * 3) * answered(64, 64, head=False)
    if stage == "pretrain":
        return 3 * forward(8 * 128, 8 * 128, 64)
    if stage.startswith("decode batch "):
        batch = int(stage.removeprefix("decode batch "))
        return answered(batch, batch)
    raise ValueError(f"no formula for {stage!r}")


if __name__ == "__main__":
    main(
        Stage(
            "roofline",
            "square matrix products",
            [Contestant("bridle", bridle)],
            steps=30,
            quick_steps=10,
            rounds=3,
            models=(),
        )
    )
