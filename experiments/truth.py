"""E17 on the playground: long practice on a reward model turns down, long practice on answers that are checked does not.

PPO on the reward model without a KL penalty, as in E3, beside GRPO on word problems, whose reward is whether the number is right. Of both
the true quality is measured along the run: gold in points, and the share of held-out problems solved. A run on gold itself (E3's control)
rises too: what turns is not the method but a reward that is a copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bridle.stages.methods import METHODS
from bridle.stages.workspace import Work
from experiments.harness import Claim, Experiment, Row
from experiments.playground import EVERY, HALF, Floats, Halves, gold_of, in_lab, peak_of, train_kept, train_kept_by

LONG = {"steps": 72}  # of GRPO: three times the recipe's
FALL = 1.0  # points of gold
SLACK = 0.05  # of the problems
PROBLEMS = 2_000_000  # seeds of these begin here


def measure_in(work: Work, prompts: Halves, settings: Mapping[str, Any], long: Mapping[str, Any] = LONG) -> Row:
    learnt = train_kept(work, "unbridled", settings)
    row = turn_of(
        "PPO", {step: tuple(gold_of(work, folder, half) for half in prompts) for step, folder in learnt.items()}
    )
    checked = train_kept_by(METHODS["grpo"], work, "long-grpo", long)
    branch = work.data.branch
    assert branch is not None
    solved = {step: solved_of(work, folder) for step, folder in {0: work.project.model(branch), **checked}.items()}
    return row | turn_of("GRPO", {step: (right[:HALF], right[HALF:]) for step, right in solved.items()})


def turn_of(name: str, measured: Mapping[int, Sequence[Floats]]) -> dict[str, float]:
    """By step what was measured on two halves of the prompts: the peak is chosen on the first, and the second says what it, the start and
    the end are worth."""
    peak, end = peak_of({step: choose for step, (choose, _) in measured.items()}), max(measured)
    worth = {step: float(score.mean()) for step, (_, score) in measured.items()}
    found = {"start": worth[0], "peak": worth[peak], "end": worth[end], "step of the peak": float(peak)}
    found |= {"fall": worth[peak] - worth[end], "rise": worth[end] - worth[0]}
    return {f"{name}: {figure}": value for figure, value in found.items()}


def solved_of(work: Work, folder: Path) -> Floats:
    """Of each held-out problem whether the policy's fresh answer is right, [P]."""
    policy, checkable = work.read_policy(folder), work.data.checkable()
    problems = work.data.world.held_out_prompts(2 * HALF, PROBLEMS + work.recipe.seed, "math")
    answered = work.answer(policy, work.fitting(policy, problems), "experiment")
    return np.array([float(score or 0) for score in checkable.verifier(answered.prompts, answered.completions)])


EXPERIMENT = Experiment(
    name="E17",
    title="practice on a learnt reward turns down in the end, practice on checked answers does not",
    setting="Playground; E3's PPO without a KL penalty on the reward model (40 steps), and GRPO on word problems as the recipe has it but "
    f"for {LONG['steps']} steps. Quality is gold in points, and the share of held-out problems that are solved, of fresh answers to {HALF} "
    f"prompts; a peak is chosen by {HALF} others among policies {EVERY} steps apart, the start among them.",
    measure=in_lab(measure_in),
    seeds=range(5),
    claims=[
        Claim("PPO: fall", "PPO on the reward model: gold at the peak less gold at the end", "interval", at_least=FALL),
        Claim("GRPO: fall", "GRPO on checked answers: share solved at the peak less that at the end", "interval", at_most=SLACK),
        Claim("GRPO: rise", "GRPO: share solved at the end less that at the start", "interval", at_least=0),
        Claim("PPO: rise", "PPO: gold at the end less SFT's"),
        Claim("PPO: step of the peak", "PPO: step of the peak"),
        Claim("GRPO: start", "GRPO: share solved at the start"),
        Claim("GRPO: end", "GRPO: share solved at the end"),
        Claim("GRPO: step of the peak", "GRPO: step of the peak"),
    ],
)  # fmt: skip
