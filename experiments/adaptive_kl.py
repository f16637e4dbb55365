"""E5: `maths/kl.py: KLControl` holds a KL, on the world of tables, from weights β that differ 105-fold.

For each target the β whose exact optimum lies that far from the reference is found by enumeration; runs begin at a 15th of it, at it,
and at 7 times it. The controller sees what a trainer sees: the mean k1 of a step's answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bridle.maths.kl import KLControl
from experiments.harness import Claim, Experiment, Row
from experiments.tabular import (
    Practice,
    answer_logp,
    beta_for,
    kl_between,
    label,
    learn_reward,
    make_world,
    practise,
    scores,
)

TARGETS = (1.0, 2.0, 4.0)  # nats an answer
STARTS = (1 / 15, 1.0, 7.0)  # of the equilibrium's β
NAMES = ("low", "right", "high")
PRACTICE = Practice(steps=400, answers=128, updates=4, learning_rate=0.05)
SLOW = Practice(steps=400, answers=128, learning_rate=0.02)  # one small update a step: the KL follows β late
LAST = PRACTICE.steps // 4


def off_target(
    seed: int, cells: Sequence[tuple[float, float]], steered: bool, practice: Practice
) -> list[tuple[float, float]]:
    """For each target and start of β: the mean KL of the last quarter over the target, less 1; and the highest KL."""
    world = make_world([seed] * len(cells))
    reward_RA = learn_reward(world, label(world, world.reference_RSV, 1500, 0.25, "labels"))
    reference_RA = answer_logp(world.reference_RSV)
    controls = []
    for run, (target, start) in enumerate(cells):
        beta = float(beta_for(reference_RA[run : run + 1], reward_RA[run : run + 1], target)[0])
        controls.append(KLControl(beta * start, target if steered else None))
    kls: list[Tensor] = []

    def observe(step: int, table_RSV: Tensor, controls: Sequence[KLControl]) -> None:
        if step % 10 == 0 or step > PRACTICE.steps - LAST:
            kls.append(kl_between(answer_logp(table_RSV), reference_RA))

    practise(world, scores(reward_RA), controls, practice, observe)
    kl_RC = torch.stack(kls, 1)
    return [
        (float(kl_C[-LAST:].mean()) / target - 1, float(kl_C.max()))
        for (target, _), kl_C in zip(cells, kl_RC, strict=True)
    ]


def measure(seed: int) -> Row:
    cells = [(target, start) for target in TARGETS for start in STARTS]
    names = [f"{target:g} {name}" for target in TARGETS for name in NAMES]
    row = {}
    for name, (off, highest) in zip(names, off_target(seed, cells, True, PRACTICE), strict=True):
        row |= {name: off, f"highest {name}": highest}
    for name, (off, _) in zip(names, off_target(seed, cells, False, PRACTICE), strict=True):
        row[f"fixed {name}"] = off
    for name, (off, _) in zip(names, off_target(seed, cells, True, SLOW), strict=True):
        row[f"slow {name}"] = off
    return row


EXPERIMENT = Experiment(
    name="E5",
    title="adaptive KL holds a target from starts that differ 105-fold",
    setting="World of tables; a linear reward model of 1,500 pairs with 25% of the labels turned round; 400 steps of 128 answers "
    "with 4 updates each, gain .1 a step. Figures: mean exact KL of the last quarter over the target, less 1. `slow` "
    "figures are of a policy that makes one small update a step, which no bound is set for.",
    measure=measure,
    seeds=range(5),
    claims=[
        Claim(f"{target:g} {name}", f"target {target:g}, β from {words}", "every", at_least=-0.1, at_most=0.1)
        for target in TARGETS
        for name, words in zip(NAMES, ("a 15th of the equilibrium's", "the equilibrium's", "7 times it"), strict=True)
    ],
    controls=[
        *(Claim(f"fixed {t:g} low", f"target {t:g}, a 15th of β and no steering", "every", at_least=0.1) for t in TARGETS),
        *(Claim(f"fixed {t:g} high", f"target {t:g}, 7 times β and no steering", "every", at_most=-0.1) for t in TARGETS),
    ],
)  # fmt: skip
