"""Decoding beside transformers' generate: python benchmarks/decode.py [--quick]"""

from __future__ import annotations

from functools import partial
from itertools import product

import peer
from harness import KEEP_MEMORY, MODEL, MODELS, SIZE, Contestant, Stage, Trial, main
from texts import ANSWER, PROMPT, prompts

BATCHES, TOP_PS = (1, 16, 64), (1.0, 0.9)


def named(batch: int, top_p: float) -> str:
    return f"batch {batch}" + (f", top-p {top_p}" if top_p < 1 else "")


def bridle(trial: Trial, precision: str) -> None:
    """No token ends an answer, on either side: all are of the same length."""
    from dataclasses import replace

    import bridle
    from bridle.core.records import Prompt
    from bridle.generation.engine import Engine
    from bridle.generation.sampling import Sampling

    model = bridle.load(MODELS / MODEL, precision=precision)
    policy = replace(model.policy, template=replace(model.policy.template, stop_ids=frozenset()))
    engine = Engine(model.device.precision)
    engine.load(policy)
    for top_p, batch in product(TOP_PS, BATCHES):
        ids = model.policy.template.prompt_ids([Prompt.from_text(p) for p in prompts(batch)])
        for step in range(trial.steps):
            found = engine.generate(ids, Sampling(ANSWER, 1.0, top_p), stamp=policy.stamp, seed=step)
            assert {len(answer.token_ids) for answer in found} == {ANSWER} and len(found) == batch
            trial.step(step, named(batch, top_p))


def generate(trial: Trial, dtype: str, static: bool, fast: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(MODELS / MODEL, dtype=dtype, **peer.attention(fast)).eval().to(device)
    if fast:
        torch.set_float32_matmul_precision("medium")
    cache = {"cache_implementation": "static"} if static else {}
    tokens = peer.tokenizer(MODEL, "left")
    torch.manual_seed(0)
    for top_p, batch in product(TOP_PS, BATCHES):
        asked = tokens(prompts(batch), return_tensors="pt").to(device)
        for step in range(trial.steps):
            with torch.inference_mode():
                ids_BW = model.generate(
                    input_ids=asked["input_ids"], attention_mask=asked["attention_mask"], max_new_tokens=ANSWER,
                    min_new_tokens=ANSWER, do_sample=True, temperature=1.0, top_p=top_p, top_k=0, **cache,
                )  # fmt: skip
            assert ids_BW.shape == (batch, PROMPT + ANSWER)
            trial.step(step, named(batch, top_p))


def hf(name: str, dtype: str, static: bool = False, fast: bool = True) -> Contestant:
    run = partial(generate, dtype=dtype, static=static, fast=fast)
    return Contestant(name, run, "trl", KEEP_MEMORY if fast else {})


if __name__ == "__main__":
    main(
        Stage(
            "decode",
            f"{ANSWER} tokens to prompts of {PROMPT}, {SIZE} parameters",
            [
                Contestant("bridle", partial(bridle, precision="auto")),
                Contestant("bridle float32", partial(bridle, precision="float32")),
                hf("generate", "float32", fast=False),
                hf("generate float32 fast", "float32"),
                hf("generate static", "float32", static=True),
                hf("generate bf16", "bfloat16"),
                hf("generate bf16 static", "bfloat16", static=True),
            ],
            steps=4,
            quick_steps=2,
            tokens={named(b, p): b * ANSWER for p, b in product(TOP_PS, BATCHES)},
        )
    )
