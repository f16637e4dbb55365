"""Statistics of an evaluation: means, win rates and shares with honest intervals, calibration, best-of-n.

Everything is numpy and pure: the same input gives the same output, the bootstrap's seed included. A value that is not a
finite number is refused and never dropped: what could not be judged is masked, and counted, by the caller.
Left out on purpose: tests of significance; an interval says more.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bridle.core.errors import DataError

TIE = 1e-6  # scores nearer than this are a tie
BLOCK = 4_000_000  # draws held in memory at once by the bootstrap (32 MB of indices)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WinRate:
    """Share of `n` prompts won, ties one half, with the interval from `low` to `high`."""

    rate: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of `n` outcomes that are right, with the interval from `low` to `high`."""

    rate: float
    low: float
    high: float
    n: int


def mean_and_se(values: ArrayLike) -> tuple[float, float]:
    """Mean and its standard error, s / sqrt(n) with s over n − 1. One value has no standard error: nan."""
    numbers = _finite(values, "values")
    if numbers.size == 1:
        return float(numbers[0]), math.nan
    return float(numbers.mean()), float(numbers.std(ddof=1) / math.sqrt(numbers.size))


def bootstrap_interval(
    values: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979): values [n], one for each prompt, drawn with replacement.

    Prompts are what is drawn, so several answers to a prompt must be averaged before. When all values are equal the
    interval has no width; a share near 0 or 1 is better served by `wilson_interval`.
    """
    numbers = _finite(values, "values")
    _check_level(level)
    if resamples < 1:
        raise DataError(f"resamples is {resamples}, but a bootstrap needs at least 1 (2000 is usual)")
    generator = np.random.default_rng(seed)
    rows = max(1, BLOCK // numbers.size)
    means = [
        numbers[generator.integers(numbers.size, size=(min(rows, resamples - done), numbers.size))].mean(axis=1)
        for done in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def win_rate(
    scores_a: ArrayLike, scores_b: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> WinRate:
    """How often A's answer beats B's on the same prompt: scores [n] each, ties (|a − b| < 1e-6) one half.

    The interval is a bootstrap over prompts; both answers of a prompt stay together.
    """
    a, b = _finite(scores_a, "scores_a"), _finite(scores_b, "scores_b")
    _check_same_length(a, b, "scores_a", "scores_b")
    wins = np.where(np.abs(a - b) < TIE, 0.5, np.where(a > b, 1.0, 0.0))
    low, high = bootstrap_interval(wins, level=level, resamples=resamples, seed=seed)
    return WinRate(float(wins.mean()), low, high, wins.size)


def wilson_interval(successes: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927; Brown, Cai, DasGupta 2001): sound near 0 and 1 and for small n.

    (p + z²/2n ± z sqrt(p(1−p)/n + z²/4n²)) / (1 + z²/n)
    """
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"a share needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    _check_level(level)
    share, z = successes / n, NormalDist().inv_cdf((1 + level) / 2)
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def accuracy(correct: ArrayLike, *, level: float = 0.95) -> Accuracy:
    """Share of outcomes [n] that are right (each 0 or 1), with Wilson's interval."""
    outcomes = _zero_or_one(correct, "correct")
    low, high = wilson_interval(int(outcomes.sum()), outcomes.size, level=level)
    return Accuracy(float(outcomes.mean()), low, high, outcomes.size)


def ece(probabilities: ArrayLike, outcomes: ArrayLike, *, bins: int = 10) -> float:
    """Expected calibration error (Naeini 2015; Guo 2017, eq. 3): Σ_bin (n_bin / n) |mean outcome − mean probability|.

    probabilities [n] in [0, 1] of the event, outcomes [n] 1 where it happened; `bins` of equal width, right edge
    included. 0 is perfect; it has a positive bias of order sqrt(bins / n), so compare runs at equal n.
    """
    probability, happened = _finite(probabilities, "probabilities"), _zero_or_one(outcomes, "outcomes")
    _check_same_length(probability, happened, "probabilities", "outcomes")
    if bins < 1:
        raise DataError(f"bins is {bins}, but the calibration error needs at least 1 bin (10 is usual)")
    if probability.min() < 0 or probability.max() > 1:
        raise DataError(
            f"probabilities range from {probability.min():g} to {probability.max():g}, but must lie in 0 to 1"
        )
    bin_of = np.digitize(probability, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    surplus = np.bincount(bin_of, weights=happened - probability, minlength=bins)
    return float(np.abs(surplus).sum() / probability.size)


def fit_temperature(gaps: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The T > 0 under which σ(gap / T) tells best how often the first was right: minimises Σ w log(1 + exp(-gap / T)) (Guo 2017, §4.2).

    gaps [n]: score of the preferred minus that of the other, or a logit with its sign turned where the class is 0. The
    loss is convex in 1 / T, so golden sections of log T find it. T is held within a hundredth and a hundred of the
    gaps' root mean square: where all are right, or no more than a coin would be, no finite or positive T is the best.
    """
    g = _finite(gaps, "gaps")
    w = np.ones_like(g) if weights is None else _finite(weights, "weights")
    _check_same_length(g, w, "gaps", "weights")
    size = float(np.sqrt(np.mean(g * g)))
    if size == 0:
        return 1.0  # equal scores mean one half at any temperature

    def loss(log_t: float) -> float:
        return float((w * np.logaddexp(0.0, -g / math.exp(log_t))).sum())

    low, high, golden = math.log(size / 100), math.log(size * 100), (math.sqrt(5) - 1) / 2
    while high - low > 1e-6:
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if loss(a) <= loss(b) else (a, high)
    return math.exp((low + high) / 2)


def expected_best_of_n(scores_PN: ArrayLike, n: int, values_PN: ArrayLike | None = None) -> Floats:
    """Expected value [P] of the answer with the highest score among n, from N >= n answers to each of P prompts.

    Unbiased, with no simulation (Nakano 2021, WebGPT):  Σ_i C(i−1, n−1) / C(N, n) value_(i), i the rank by score.
    `scores_PN` choose and `values_PN` count: pass gold as values to see what choosing by the reward model is worth; the
    scores themselves by default. Equal scores are ranked by position, which is fair where answers are exchangeable.
    """
    scores = np.asarray(scores_PN, dtype=np.float64)
    values = scores if values_PN is None else np.asarray(values_PN, dtype=np.float64)
    if scores.ndim != 2 or scores.shape != values.shape:
        raise DataError(f"best_of_n needs scores and values of shape [P, N], got {scores.shape} and {values.shape}")
    _finite(scores.ravel(), "scores_PN")
    _finite(values.ravel(), "values_PN")
    answers = scores.shape[1]
    if not 1 <= n <= answers:
        raise DataError(f"best_of_n needs 1 <= n <= {answers} (the answers at hand for each prompt), got n = {n}")
    weights = np.array([math.comb(i, n - 1) / math.comb(answers, n) for i in range(answers)])  # i counts from 0 here
    ranked = np.take_along_axis(values, np.argsort(scores, axis=1, kind="stable"), axis=1)
    return np.asarray(ranked @ weights, dtype=np.float64)


def best_of_n_kl(n: int) -> float:
    """Upper bound of KL(best-of-n || policy) in nats, log n − (n − 1)/n (Beirami 2024, arxiv.org/abs/2401.01879).

    Equality holds where scores are continuous and so never tie.
    """
    if n < 1:
        raise DataError(f"best-of-n needs n >= 1, got {n}")
    return math.log(n) - (n - 1) / n


def _finite(values: ArrayLike, name: str) -> Floats:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or numbers.size == 0:
        raise DataError(f"{name} must be a list of at least one number, got shape {numbers.shape}")
    bad = int((~np.isfinite(numbers)).sum())
    if bad:
        raise DataError(
            f"{name} holds {bad} of {numbers.size} entries that are no finite number; leave out what could not be "
            "judged and report how many there were"
        )
    return numbers


def _zero_or_one(values: ArrayLike, name: str) -> Floats:
    numbers = _finite(values, name)
    if not np.isin(numbers, (0.0, 1.0)).all():
        raise DataError(f"{name} must hold only 0 and 1 (False and True), got {numbers.min():g} to {numbers.max():g}")
    return numbers


def _check_same_length(a: Floats, b: Floats, name_a: str, name_b: str) -> None:
    if a.size != b.size:
        raise DataError(f"{name_a} has {a.size} entries and {name_b} has {b.size}, but they must pair up one to one")


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise DataError(f"the level of an interval must lie between 0 and 1 (0.95 is usual), got {level:g}")
