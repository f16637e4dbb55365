"""How often the 95% intervals of bridle/maths/statistics.py hold the truth, by simulation: python experiments/coverage.py [REPEATS]

1. A mean over prompts with several answers each, of which most of the variance is the prompt's: by answers, and by prompt.
2. A win rate from n prompts, for p from .05 to .95: mean and least coverage. With one comparison a prompt it is summed and not
   simulated, and beside it stand plain Wilson and the percentile bootstrap over prompts.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np

from bridle.maths.statistics import mean_and_se, mean_interval, proportion, wilson_interval

ALIKE = 0.85  # share of an answer's variance that is its prompt's
EACH: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "4 each": lambda rng, n: np.full(n, 4),
    "1 to 8": lambda rng, n: rng.integers(1, 9, n),
}
PS = np.arange(0.05, 0.951, 0.05)
Interval = tuple[float, float]


def mean_coverage(prompts: int, each: str, repeats: int, seed: int = 0) -> list[float]:
    """Of ± 1.96 standard errors by answers and by prompt, and of Student's interval by prompt."""
    rng, held = np.random.default_rng(seed), np.zeros(3)
    for _ in range(repeats):
        names = np.repeat(np.arange(prompts), EACH[each](rng, prompts))
        own, shared = rng.normal(size=len(names)), rng.normal(size=prompts)[names]
        values = math.sqrt(ALIKE) * shared + math.sqrt(1 - ALIKE) * own
        (mean, apart), (_, by_prompt) = mean_and_se(values), mean_and_se(values, names)
        low, high = mean_interval(values, names)
        held += (abs(mean) <= 1.96 * apart, abs(mean) <= 1.96 * by_prompt, low <= 0 <= high)
    return list(held / repeats)


def draw(kind: str, p: float, prompts: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes of mean p, and the prompt of each."""
    if kind == "half of them ties":
        ties = min(p, 1 - p)  # half of the rarer side's outcomes, and as many of the other's, become ties
        return rng.choice([1.0, 0.5, 0.0], prompts, p=[p - ties / 2, ties, 1 - p - ties / 2]), np.arange(prompts)
    each, _, how = kind.partition(", ")
    names = np.repeat(np.arange(prompts), EACH[each](rng, prompts))
    own, shared = rng.random(len(names)) < p, (rng.random(prompts) < p)[names]
    follows = rng.random(len(names)) < {"apart": 0.0, "half alike": 0.5**0.5, "all alike": 1.0}[how]
    return np.where(follows, shared, own).astype(float), names


def share_coverage(kind: str, prompts: int, repeats: int, seed: int = 0) -> np.ndarray:
    """Of `proportion`, for each p of PS."""
    rng, held = np.random.default_rng(seed), np.zeros(len(PS))
    for i, p in enumerate(PS):
        for _ in range(repeats):
            found = proportion(*draw(kind, p, prompts, rng))
            held[i] += found.low <= p <= found.high
    return held / repeats


def binomial(n: int, p: float) -> np.ndarray:
    return np.array([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])


def exact_coverage(interval: Callable[[int, int], Interval], n: int, ps: np.ndarray) -> np.ndarray:
    """Of the interval of k wins of n, summed over k, for each p."""
    ends = [interval(k, n) for k in range(n + 1)]
    held_PK = np.array([[low - 1e-9 <= p <= high + 1e-9 for low, high in ends] for p in ps])
    return np.array([(held_K * binomial(n, p)).sum() for held_K, p in zip(held_PK, ps, strict=True)])


def ours(k: int, n: int) -> Interval:
    found = proportion([1.0] * k + [0.0] * (n - k))
    return found.low, found.high


def bootstrap(k: int, n: int) -> Interval:
    """The percentile bootstrap with endless resamples: a resample of k wins of n holds a binomial number of wins."""
    below = np.cumsum(binomial(n, k / n))
    return float(np.argmax(below >= 0.025)) / n, float(np.argmax(below >= 0.975)) / n


def main(repeats: int) -> None:
    print(
        f"{repeats} repeats\n\n| prompts | answers | ± 1.96 by answers | ± 1.96 by prompt | Student by prompt |\n"
        + "|---" * 5
        + "|"
    )
    for each in EACH:
        for prompts in (4, 8, 16, 64):
            cells = [f"{held:.3f}" for held in mean_coverage(prompts, each, repeats)]
            print(f"| {prompts} | {each} | {' | '.join(cells)} |", flush=True)
    print(
        "\n| comparisons | prompts | mean over p | least | Wilson: mean, least | bootstrap: mean, least |\n"
        + "|---" * 6
        + "|"
    )
    for prompts in (5, 20, 50):
        for kind in (
            "one",
            "half of them ties",
            "4 each, apart",
            "4 each, half alike",
            "1 to 8, half alike",
            "1 to 8, all alike",
        ):
            if kind == "one":
                fine = np.arange(0.05, 0.9501, 0.001)
                found, *others = (exact_coverage(f, prompts, fine) for f in (ours, wilson_interval, bootstrap))
            else:
                found, others = share_coverage(kind, prompts, repeats), []
            cells = [f"{held.mean():.3f}, {held.min():.3f}" for held in others] or ["", ""]
            print(f"| {kind} | {prompts} | {found.mean():.3f} | {found.min():.3f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
