"""E12: practice on answers that can be checked lifts held-out exact match, and a reward that is drawn at random does not."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bridle.core.records import Completion, Prompt
from bridle.maths.statistics import pass_at_k
from bridle.stages.methods import METHODS
from bridle.stages.workspace import Work
from experiments.harness import Claim, Experiment, Row
from experiments.playground import Floats, lab_folder, opened

SAMPLES = 15  # answers to a prompt, in training and in measuring
SETTINGS = {
    "data.source": "playground",
    "data.heldout_prompts": 256,
    "guard.audits": "off",
    "grpo.branch_problems": 2200,  # as in `bridle demo --recipe verifiable`
}
ONLINE = {"group_size": SAMPLES, "prompts_per_step": 16, "steps": 24}
KEPT = {"scored_by": "verifier", "answers": SAMPLES, "rounds": 4}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "GRPO": ("grpo", ONLINE),
    "RLOO": ("rloo", {**ONLINE, "scored_by": "verifier", "missing_stop_penalty": 0.0, "kl_coef": 0.02}),
    "shortest": ("best-of-n", {**KEPT, "keep": "shortest", "epochs": 3}),  # one of a prompt, where "all" imitates five
    "all": ("best-of-n", {**KEPT, "keep": "threshold"}),
    "random": ("grpo", ONLINE),
}


def draw(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
    """Right or wrong by a coin that knows nothing but the answer, so that a resumed run sees it fall as before."""
    return [float(random.Random(completion.id).random() < 0.5) for completion in completions]


class Solved(NamedTuple):
    """What came of 15 answers to each held-out problem: exact match, the share of problems with a right answer among them, tokens of right
    answers; and these by problem, nan where none is right, [P]."""

    figures: dict[str, float]
    lengths_P: Floats


def solved_by(work: Work, folder: Path) -> Solved:
    checkable, policy = work.data.checkable(), work.read_policy(folder)
    prompts = work.fitting(policy, checkable.heldout)
    rounds = [work.answer(policy, prompts, "experiment", number) for number in range(SAMPLES)]
    right_KP = np.array([checkable.verifier(one.prompts, one.completions) for one in rounds], dtype=float)
    lengths_KP = np.array([[len(answer.token_ids) for answer in one.completions] for one in rounds])
    count_P = right_KP.sum(axis=0)
    lengths_P = np.divide(
        (right_KP * lengths_KP).sum(axis=0), count_P, out=np.full(len(count_P), np.nan), where=count_P > 0
    )
    figures = {
        "right": float(right_KP.mean()),
        f"pass@{SAMPLES}": float(pass_at_k(right_KP.T, SAMPLES).mean()),
        "length": float(lengths_KP[right_KP > 0].mean()) if right_KP.any() else 0.0,
    }
    return Solved(figures, lengths_P)


def shorter_by(few: Solved, many: Solved) -> float:
    """The share by which right answers are shorter, over the problems that both solve: who solves more of the long ones is not longer for
    that."""
    both = ~np.isnan(few.lengths_P) & ~np.isnan(many.lengths_P)
    return float(1 - few.lengths_P[both].mean() / many.lengths_P[both].mean())


def measure(seed: int) -> Row:
    base = opened(lab_folder() / "base", {**SETTINGS, "seed": 0})
    METHODS["pretrain"].train(base, reuse=True)
    work = opened(lab_folder() / f"checked-{seed}", {**SETTINGS, "seed": seed})
    if not (own := work.project.model("base")).exists():
        shutil.copytree(base.project.model("base"), own)
    base.close()
    try:
        METHODS["sft"].train(work, reuse=True)
        found = {}
        for arm, (method, settings) in ARMS.items():
            reward = draw if arm == "random" else None
            name = f"checked-{arm.lower()}"
            METHODS[method].train(work, name=name, settings=settings, reward=reward, reuse=True)
            found[arm] = solved_by(work, work.project.model(name))
        start = solved_by(work, work.project.model("arithmetic"))
    finally:
        work.close()
    row = {f"start: {name}": value for name, value in start.figures.items()}
    for arm, one in found.items():
        row |= {f"{arm}: {name}": value for name, value in one.figures.items()}
        row[f"{arm}: gain"] = 100 * (one.figures["right"] - start.figures["right"])
        lost = start.figures[f"pass@{SAMPLES}"] - one.figures[f"pass@{SAMPLES}"]
        row[f"{arm}: variety lost"] = 100 * lost
    row["shorter"] = shorter_by(found["shortest"], start)
    row["shorter than all"] = shorter_by(found["shortest"], found["all"])
    row["no loss"] = 100 * (found["shortest"].figures["right"] - found["all"].figures["right"])
    return row


EXPERIMENT = Experiment(
    name="E12",
    title="practice on checkable answers lifts exact match, and a random reward does not",
    setting="Playground's word problems; all seeds share one base model and differ in everything after. From the arithmetic branch, "
    f"{SAMPLES} answers a prompt. Exact match, pass@{SAMPLES} and tokens of right answers over {SAMPLES} answers to each of 256 held-out "
    "problems.",
    measure=measure,
    seeds=range(5),
    claims=[
        Claim("GRPO: gain", "GRPO: points of exact match gained", "mean", at_least=25),
        Claim("RLOO: gain", "RLOO: points of exact match gained", "mean", at_least=25),
        Claim("shortest: gain", "the shortest right answers imitated: points gained", "mean", at_least=15),
        Claim(
            "shorter than all",
            "the shortest: right answers shorter by this share than where all right ones are imitated, over problems that both solve",
            "mean",
            at_least=0.15,
        ),
        Claim("shorter", "the same, than at the start, where lucky guesses are among the right ones"),
        Claim("no loss", "points of exact match, the shortest less all", at_least=-2),
        Claim("GRPO: variety lost", f"GRPO: points of pass@{SAMPLES} lost", "mean", at_most=3),
        Claim("RLOO: variety lost", f"RLOO: points of pass@{SAMPLES} lost", "mean", at_most=3),
        Claim("shortest: variety lost", f"shortest: points of pass@{SAMPLES} lost", "mean", at_most=3),
        Claim("start: right", "exact match at the start", "mean", at_most=0.5),
    ],
    controls=[Claim("random: gain", "points gained by a reward drawn at random", "mean", at_most=2)],
)
