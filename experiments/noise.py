"""E8: what noisy labels do to a reward model.

A linear world: an answer is 20 numbers, its gold a weighted sum of them. A person prefers an answer by σ(gap of gold), which is
the clean label, and then slips with probability ε. The reward model is linear and learns by bridle's own loss from the
slipped labels alone. What must come out (none of it is fitted to):

    accuracy on slipped labels = (1 - 2ε) × accuracy on clean ones + ε         a 70% score on 25% noise is a 90% model
    the mean size of the log-odds that it predicts is at most log((1 - ε) / ε)    1.10 nats at 25%
    expected calibration error at most .05 after its temperature was fitted    on other pairs than it is measured on
    accuracy grows with the logarithm of the pairs; on shuffled labels it is one half

Each seed draws another world, other pairs, other slips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bridle.maths.losses import bradley_terry
from bridle.maths.statistics import ece, fit_temperature
from experiments.harness import Claim, Experiment, Row

NOISES = (0.0, 0.1, 0.25, 0.4)
SIZES = (125, 250, 500, 1000, 2000)
PAIRS = 2000
WIDTH = 20


class Drawn(NamedTuple):
    """Pairs of answers as the difference of their numbers; +1 where the first was preferred, -1 where the second."""

    difference_PD: Tensor
    clean_P: Tensor
    slipped_P: Tensor


def draw(gold_D: Tensor, pairs: int, noise: float, generator: torch.Generator) -> Drawn:
    difference_PD = torch.randn(pairs, 2, len(gold_D), generator=generator, dtype=torch.float64).diff(dim=1)[:, 0]
    likes = torch.rand(pairs, generator=generator, dtype=torch.float64) < (difference_PD @ gold_D).sigmoid()
    slips = torch.rand(pairs, generator=generator, dtype=torch.float64) < noise
    return Drawn(difference_PD, likes * 2.0 - 1, (likes ^ slips) * 2.0 - 1)


def learn(difference_PD: Tensor, label_P: Tensor, ridge: float = 1e-3) -> Tensor:
    """The weights of a linear reward model, to the optimum: Bradley-Terry's loss, and a light pull to zero."""
    weight_D = torch.zeros(difference_PD.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_D], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        gap_P = label_P * (difference_PD @ weight_D)
        total = bradley_terry(gap_P, torch.zeros_like(gap_P), torch.ones_like(gap_P), count=len(gap_P))[0]
        total = total + ridge / 2 * weight_D.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    return weight_D.detach()


def right(gap_P: Tensor, label_P: Tensor) -> float:
    """Share of pairs whose preferred answer scores higher; a tie counts half."""
    return float((gap_P * label_P).sign().mean() + 1) / 2


def one_seed(noise: float, pairs: int, seed: int, shuffled: bool = False) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    gold_D = torch.randn(WIDTH, generator=generator, dtype=torch.float64) * (2 / WIDTH**0.5)
    train, fitted, test = (draw(gold_D, n, noise, generator) for n in (pairs, 2000, 5000))
    label_P = train.slipped_P
    if shuffled:
        label_P = label_P * (torch.randint(2, (pairs,), generator=generator) * 2 - 1)
    weight_D = learn(train.difference_PD, label_P)
    gap_P = test.difference_PD @ weight_D
    temperature = fit_temperature((fitted.difference_PD @ weight_D * fitted.slipped_P).numpy())

    def error(t: float) -> float:
        return ece((gap_P.abs() / t).sigmoid().numpy(), (gap_P * test.slipped_P > 0).numpy())

    return {
        "clean": right(gap_P, test.clean_P),
        "slipped": right(gap_P, test.slipped_P),
        "gold": right(gap_P, test.difference_PD @ gold_D),
        "log_odds": float(gap_P.abs().mean()),
        "ece_before": error(1.0),
        "ece_after": error(temperature),
    }


def measure(seed: int, noises: Sequence[float] = NOISES, sizes: Sequence[int] = SIZES) -> Row:
    """Of each ε the figures of the most pairs, the calibration of the fewest, and what a doubling of the pairs brings."""
    row = {}
    for noise in noises:
        by_size = [one_seed(noise, pairs, seed) for pairs in sizes]
        found, few = by_size[-1], by_size[0]
        found["off"] = found["slipped"] - ((1 - 2 * noise) * found["clean"] + noise)
        found["doubling"] = float(np.polyfit(np.log2(sizes), [one["clean"] for one in by_size], 1)[0])
        found |= {f"few {name}": few[name] for name in ("ece_before", "ece_after")}
        row |= {f"{name} {noise:g}": value for name, value in found.items()}
    return row | {"shuffled": one_seed(0.25, sizes[-1], seed, shuffled=True)["clean"]}


def bound(noise: float) -> float:
    return math.log((1 - noise) / noise) if noise else math.inf


EXPERIMENT = Experiment(
    name="E8",
    title="what noisy labels do to a reward model follows from the share of slips",
    setting="A linear world of 20 numbers; 2,000 pairs, of which a share ε is labelled wrong; 5,000 fresh pairs. ECE: expected "
    "calibration error, its temperature fitted on other pairs.",
    measure=measure,
    seeds=range(20),
    claims=[
        *(Claim(f"off {e:g}", f"ε = {e:g}: accuracy on slipped labels less (1 − 2ε)·clean + ε", "unrefuted", at_least=0, at_most=0)
          for e in NOISES[1:]),
        *(Claim(f"log_odds {e:g}", f"ε = {e:g}: mean size of the log-odds, at most log((1 − ε)/ε)", "mean", at_most=bound(e))
          for e in NOISES[1:]),
        *(Claim(f"ece_after {e:g}", f"ε = {e:g}: ECE after the temperature", "mean", at_most=0.05) for e in NOISES),
        *(Claim(f"few ece_after {e:g}", f"ε = {e:g}: the same with 125 pairs", "mean", at_most=0.05) for e in NOISES),
        *(Claim(f"doubling {e:g}", f"ε = {e:g}: clean accuracy that a doubling of the pairs brings", at_least=0) for e in NOISES),
    ],
    controls=[Claim("shuffled", "clean accuracy from shuffled labels", "unrefuted", at_least=0.5, at_most=0.5)],
)  # fmt: skip
