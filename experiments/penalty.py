"""E4: what the KL penalty does, on the world of tables: it shrinks the fall, and buys no gold that stopping earlier would not.

The same seed, world, labels, reward model and random numbers under five β; β is in deviations of the reward model's score a nat. Gold is
exact, in deviations of the reference's. The fall is how far gold at the end lies under the highest that it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bridle.maths.kl import KLControl
from experiments.harness import Claim, Experiment, Row
from experiments.tabular import (
    Labels,
    Practice,
    Reward,
    World,
    answer_logp,
    kl_between,
    label,
    learn_reward,
    make_world,
    mean_and_sd,
    pair_accuracy,
    practise,
    scores,
)

BETAS = (0.0, 0.03, 0.1, 0.3, 1.0)
PAIRS, NOISE = 1500, 0.25
PRACTICE = Practice(steps=300)
EVERY = 5
EQUAL_KL = np.array([0.25, 0.5, 1.0, 1.5, 2.0])  # nats


def curves(world: World, reward: Reward, betas: Sequence[float], practice: Practice) -> tuple[Tensor, Tensor]:
    """Exact KL and gain of gold, in deviations of the reference's, of each run at every fifth step: [R, C] each."""
    reference_RA, (mean_R, sd_R) = answer_logp(world.reference_RSV), world.mean_sd_R
    kls, gains = [], []

    def observe(step: int, table_RSV: Tensor, controls: Sequence[KLControl]) -> None:
        if step % EVERY == 0:
            logp_RA = answer_logp(table_RSV)
            kls.append(kl_between(logp_RA, reference_RA))
            gains.append((mean_and_sd(logp_RA, world.gold.points_RA)[0] - mean_R) / sd_R)

    practise(world, reward, [KLControl(beta) for beta in betas], practice, observe)
    return torch.stack(kls, 1), torch.stack(gains, 1)


def at_equal_kl(kl_C: Tensor, gain_C: Tensor) -> np.ndarray:
    """Gain where the run first reaches each KL; not a number where it never does."""
    highest_C = np.maximum.accumulate(kl_C.numpy())
    return np.interp(EQUAL_KL, highest_C, gain_C.numpy(), right=np.nan)


def measure(seed: int) -> Row:
    world = make_world([seed] * len(BETAS))
    labels = label(world, world.reference_RSV, PAIRS, NOISE, "labels")
    kl_RC, gain_RC = curves(world, scores(learn_reward(world, labels)), BETAS, PRACTICE)
    peak_R, end_R = gain_RC.amax(1), gain_RC[:, -1]
    row = {}
    for beta, peak, end, kl in zip(BETAS, peak_R.tolist(), end_R.tolist(), kl_RC[:, -1].tolist(), strict=True):
        row |= {f"peak {beta:g}": peak, f"end {beta:g}": end, f"fall {beta:g}": peak - end, f"KL {beta:g}": kl}
    for less, more in zip(BETAS, BETAS[1:], strict=False):
        row[f"fall {less:g} less {more:g}"] = row[f"fall {less:g}"] - row[f"fall {more:g}"]
    row |= {f"kept {beta:g}": row[f"end {beta:g}"] / row[f"peak {beta:g}"] for beta in BETAS[3:]}
    for run, beta in enumerate(BETAS[1:4], 1):
        more = at_equal_kl(kl_RC[run], gain_RC[run]) - at_equal_kl(kl_RC[0], gain_RC[0])
        row[f"equal KL {beta:g}"] = float(np.nanmean(more))
    row["peak .3 over 0"] = row["peak 0.3"] - row["peak 0"]
    return row | controls(seed)


def controls(seed: int) -> Row:
    """A random reward, gold itself, a learning rate of 0, and labels that are coins."""
    world = make_world([seed])
    noise_RA = torch.randn(world.gold.points_RA.shape, generator=world.draws[0], dtype=torch.float64)
    _, random_RC = curves(world, scores(noise_RA), [0.0], PRACTICE)
    sd_R1 = world.mean_sd_R[1][:, None]
    _, gold_RC = curves(world, lambda answer: world.gold.score(answer, "reward") / sd_R1, [0.0], PRACTICE)
    calls = world.gold.calls["reward"]
    still = practise(
        world, scores(noise_RA), [KLControl(0.0)], Practice(steps=2, learning_rate=0.0), lambda *state: None
    )
    labels = label(world, world.reference_RSV, PAIRS, NOISE, "labels")
    coins = torch.rand(labels.won_RP.shape, generator=world.draws[0]) < 0.5
    shuffled = learn_reward(world, Labels(labels.first_RP, labels.second_RP, coins))
    return {
        "random reward": float(random_RC[0, -1]),
        "gold as reward": float(gold_RC[0, -1]),
        "fall of gold as reward": float(gold_RC[0].amax() - gold_RC[0, -1]),
        "calls of gold": calls,
        "moved at rate 0": float((still - world.reference_RSV).abs().max()),
        "shuffled labels": float(
            pair_accuracy(shuffled, label(world, world.reference_RSV, 4000, 0.0, "evaluation"))[0]
        ),
    }


CALLS = PRACTICE.steps * PRACTICE.answers
EXPERIMENT = Experiment(
    name="E4",
    title="the KL penalty shrinks the fall and does not better the gold at equal KL",
    setting="World of tables; a linear reward model of 1,500 pairs with 25% of the labels turned round; 300 steps at five β. Gold"
    " is exact, in standard deviations (sd) of the reference's; the fall is its peak less its end.",
    measure=measure,
    seeds=range(16),
    claims=[
        Claim("fall 0", "the fall at β = 0: the cliff is there", at_least=0.5),
        *(
            Claim(f"fall {less:g} less {more:g}", f"the fall at β = {less:g} less that at β = {more:g}", "mean", at_least=0)
            for less, more in zip(BETAS, BETAS[1:], strict=False)
        ),
        Claim("kept 0.3", "share of its own peak that β = .3 keeps", "mean", at_least=0.9),
        Claim("kept 1", "share of its own peak that β = 1 keeps", "mean", at_least=0.9),
        *(
            Claim(f"equal KL {beta:g}", f"gold of β = {beta:g} less that of β = 0 at equal KL, sd", at_most=0.1)
            for beta in BETAS[1:4]
        ),
        Claim("peak .3 over 0", "highest gold of β = .3 less that of β = 0, sd", at_most=0.1),
    ],
    controls=[
        Claim("random reward", "gain of gold from a random reward", "unrefuted", at_most=0),
        Claim("gold as reward", "gain of gold where gold is the reward: the ceiling", at_least=1),
        Claim("fall of gold as reward", "the fall where gold is the reward", "every", at_most=0.1),
        Claim("calls of gold", "calls of gold that it made", "every", at_least=CALLS, at_most=CALLS),
        Claim("moved at rate 0", "largest change of a number at learning rate 0", "every", at_most=0),
        Claim("shuffled labels", "accuracy of a reward model that learnt from coins", "unrefuted", at_least=0.5, at_most=0.5),
    ],
)  # fmt: skip
