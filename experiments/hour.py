"""E18 on the playground: the same hours of labelers, spent on writing demonstrations or on comparing answers.

All begin with one SFT on a few demonstrations. Then people write more of them, and SFT is made again on all; or they rank four answers of
SFT to a prompt, and DPO learns from that. Seconds are counted in words, read at 238 and composed at 19 a minute, and `PLACED` for each
answer that is put in its place (adults reading silently: Brysbaert 2019, doi.org/10.1016/j.jml.2019.104047; composing at a keyboard:
Karat 1999, doi.org/10.1145/302979.303160). They are an assumption, and what comes out moves with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bridle.stages.label import label_simulated
from bridle.stages.methods import METHODS
from bridle.stages.sample import sample
from bridle.stages.workspace import Work
from experiments.harness import Claim, Experiment, Row
from experiments.playground import HALF, SETTINGS, gold_of, halves, lab_folder, with_base

READ, COMPOSED = 238 / 60, 19 / 60  # words a second
PLACED = 3.0  # seconds
BEGUN = 500  # demonstrations that all begin with
HOURS = (2, 5, 10)


def measure(seed: int, settings: Mapping[str, Any] = SETTINGS) -> Row:
    begun = project(seed, settings, "begun", BEGUN)
    try:
        prompts = halves(begun).score
        row = {"SFT": float(gold_of(begun, begun.project.model("sft"), prompts).mean())}
        row |= {"seconds to write": seconds_to_write(begun), "seconds to rank": seconds_to_rank(begun)}
    finally:
        begun.close()
    for hours in HOURS:
        written = project(seed, settings, f"written-{hours}", BEGUN + round(3600 * hours / row["seconds to write"]))
        compared = project(seed, settings, f"compared-{hours}", BEGUN, round(3600 * hours / row["seconds to rank"]))
        try:
            sample(compared, reuse=True)
            label_simulated(compared, reuse=True)
            METHODS["dpo"].train(compared, reuse=True)
            for how, work, model in (("written", written, "sft"), ("compared", compared, "dpo")):
                row[f"{how}, {hours} h"] = float(gold_of(work, work.project.model(model), prompts).mean())
        finally:
            written.close()
            compared.close()
        row[f"compared - written, {hours} h"] = row[f"compared, {hours} h"] - row[f"written, {hours} h"]
    return row


def project(seed: int, settings: Mapping[str, Any], name: str, demonstrations: int, rankings: int = 0) -> Work:
    """A project of its own with its SFT, where people make so many rankings; nobody's hours go into held-out ones."""
    sizes = {"data.demonstrations": demonstrations, "data.compared_heldout": 1}
    sizes |= {"data.train_prompts": rankings} if rankings else {}
    work = with_base(seed, settings, lab_folder(), f"hours/{name}", **sizes)
    METHODS["sft"].train(work, reuse=True)
    return work


def words(text: str) -> int:
    return len(text.split())


def seconds_to_write(work: Work) -> float:
    """A demonstration: its prompt read, its answer composed; mean of those that all begin with."""
    found = work.data.demonstrations()
    return float(np.mean([words(prompt.text) / READ + words(answer) / COMPOSED for prompt, answer in found]))


def seconds_to_rank(work: Work) -> float:
    """A ranking: the prompt and its answers read, each put in its place; mean of SFT's answers to the prompts that all begin with."""
    policy, k = work.read_policy(work.project.model("sft")), work.recipe.sampling.answers
    answered = work.answer(policy, work.fitting(policy, work.data.few_train_prompts(HALF, "to be read")), "experiment")
    pairs = zip(answered.prompts, answered.completions, strict=True)
    return float(np.mean([(words(prompt.text) + k * words(one.text)) / READ + k * PLACED for prompt, one in pairs]))


EXPERIMENT = Experiment(
    name="E18",
    title="an hour of labelers is better spent on comparing than on writing",
    setting=f"Playground; SFT on {BEGUN} demonstrations, then so many hours of labelers. Written: SFT on those and as many more as they "
    "write. Compared: DPO on as many rankings of four answers of that SFT as they make. Reading at 238 words a minute, composing at 19, "
    f"{PLACED:g} s for each answer that is put in its place. Gold in points, of fresh answers to {HALF} held-out prompts.",
    measure=measure,
    seeds=range(5),
    claims=[
        Claim(f"compared - written, {HOURS[-1]} h", f"{HOURS[-1]} hours compared less written", at_least=0),
        *(Claim(f"compared - written, {hours} h", f"{hours} hours compared less written") for hours in HOURS[:-1]),
        Claim("SFT", "gold before"),
        *(Claim(f"{how}, {hours} h", f"gold after {hours} hours: {how}") for hours in HOURS for how in ("written", "compared")),
        Claim("seconds to write", "seconds to write a demonstration"),
        Claim("seconds to rank", "seconds to rank four answers"),
    ],
)  # fmt: skip
