"""What noisy labels do to a reward model: python experiments/noise.py [--seeds 20] [--pairs 2000]

A linear world: an answer is 20 numbers, its gold a weighted sum of them. A person prefers an answer by σ(gap of gold), which is
the clean label, and then slips with probability ε. The reward model is linear and learns by bridle's own loss from the
slipped labels alone. What must come out (none of it is fitted to):

    accuracy on slipped labels = (1 - 2ε) × accuracy on clean ones + ε         a 70% score on 25% noise is a 90% model
    the mean size of the log-odds that it predicts is at most log((1 - ε) / ε)    1.10 nats at 25%
    expected calibration error at most .05 after its temperature was fitted    on other pairs than it is measured on
    accuracy grows with the logarithm of the pairs; on shuffled labels it is one half

Intervals and standard errors are over seeds: each draws another world, other pairs, other slips.
"""

from __future__ import annotations

import argparse
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bridle.maths.losses import bradley_terry
from bridle.maths.statistics import ece, fit_temperature, mean_and_se

NOISES = (0.0, 0.1, 0.25, 0.4)
SIZES = (125, 250, 500, 1000, 2000)
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


def several(noise: float, pairs: int, seeds: int, shuffled: bool = False) -> dict[str, tuple[float, float]]:
    """Mean and standard error over seeds of every figure, and of how far the identity of the accuracies is off."""
    rows = [one_seed(noise, pairs, seed, shuffled) for seed in range(seeds)]
    for row in rows:
        row["off"] = row["slipped"] - ((1 - 2 * noise) * row["clean"] + noise)
    return {name: mean_and_se([row[name] for row in rows]) for name in rows[0]}


def slope(noise: float, seeds: int) -> tuple[float, float]:
    """Points of clean accuracy that a doubling of the pairs brings, with its standard error over seeds."""
    logs = np.log2(SIZES)
    found = [np.polyfit(logs, [one_seed(noise, n, seed)["clean"] for n in SIZES], 1)[0] for seed in range(seeds)]
    return mean_and_se(found)


def main(seeds: int, pairs: int) -> bool:
    """Print the table; whether everything came out as it must."""
    print(f"{pairs} pairs to learn from, {seeds} seeds; ± is one standard error over seeds\n")
    print(
        "| ε | clean | slipped | slipped - ((1-2ε) clean + ε) | against gold | log-odds | bound | ECE before → after | "
        f"the same of {SIZES[0]} pairs | a doubling of the pairs |"
    )
    print("|---" * 10 + "|")
    holds = True
    for noise in NOISES:
        found, (steep, steep_se) = several(noise, pairs, seeds), slope(noise, seeds)
        bound = math.log((1 - noise) / noise) if noise else math.inf
        cells = [f"{found[name][0]:.3f} ± {found[name][1]:.3f}" for name in ("clean", "slipped")]
        cells += [f"{found['off'][0]:+.4f} ± {found['off'][1]:.4f}"]
        cells += [f"{found[name][0]:.3f} ± {found[name][1]:.3f}" for name in ("gold", "log_odds")]
        few = several(noise, SIZES[0], seeds)
        cells += [f"{bound:.2f}", *(f"{f['ece_before'][0]:.3f} → {f['ece_after'][0]:.3f}" for f in (found, few))]
        print(f"| {noise} | {' | '.join(cells)} | {steep:+.4f} ± {steep_se:.4f} |", flush=True)
        holds &= abs(found["off"][0]) <= 2 * found["off"][1] + 1e-12
        holds &= (
            found["log_odds"][0] <= bound
            and max(f["ece_after"][0] for f in (found, few)) <= 0.05
            and steep > 2 * steep_se
        )
    mean, error = several(0.25, pairs, seeds, shuffled=True)["clean"]
    print(f"\nshuffled labels: {mean:.3f} ± {error:.3f}")
    holds &= abs(mean - 0.5) <= 2 * error
    print("all as it must be" if holds else "NOT all as it must be")
    return holds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=2000)
    given = parser.parse_args()
    raise SystemExit(0 if main(given.seeds, given.pairs) else 1)
