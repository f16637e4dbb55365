"""Statistics of an evaluation: means, win rates and shares with honest intervals, calibration, best-of-n.

Everything is numpy and pure: the same input gives the same output. A value that is not a finite number is refused and never
dropped: what could not be judged is masked, and counted, by the caller. `groups` name what each value belongs to, its prompt as a
rule: values of one group are not independent, and groups are what is counted. Without them each value is a group of its own.
Left out on purpose: tests of significance; an interval says more.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bridle.core.errors import DataError

TIE = 1e-6  # scores nearer than this are a tie
BETS = 64  # of `evidence_above_half`

Floats = NDArray[np.float64]
Groups = Sequence[Hashable] | None


@dataclass(frozen=True, slots=True)
class Proportion:
    """Mean of `n` outcomes from 0 to 1, with the interval from `low` to `high`."""

    rate: float
    low: float
    high: float
    n: int


def mean_and_se(values: ArrayLike, groups: Groups = None) -> tuple[float, float]:
    """Mean and its standard error, by group:  sqrt(G/(G−1) Σ_g (Σ_{i in g} (x_i − mean))²) / n  (Liang and Zeger 1986).

    With G groups of one size it is that of the groups' means, with every value a group s / sqrt(n). One group alone has no
    standard error: nan. It rests on G − 1 differences, so at few groups ±1.96 of it is short: `mean_interval`.
    """
    numbers = _finite(values, "values")
    index = _group_index(groups, numbers)
    mean, count = float(numbers.mean()), int(index.max()) + 1
    if count == 1:
        return mean, math.nan
    surplus_G = np.bincount(index, numbers - mean)
    return mean, math.sqrt(count / (count - 1) * float(surplus_G @ surplus_G)) / numbers.size


def mean_interval(values: ArrayLike, groups: Groups = None, *, level: float = 0.95) -> tuple[float, float]:
    """The mean's interval, ± Student's quantile at G − 1 degrees of freedom times `mean_and_se` (Student 1908); nan for one group.

    Where all values are equal it has no width: they say nothing of what was not seen. Outcomes from 0 to 1 have `proportion`.
    """
    mean, error = mean_and_se(values, groups)
    _check_level(level)
    degrees = int(_group_index(groups, np.asarray(values)).max())
    half = student_quantile(level, degrees) * error if degrees else math.nan
    return mean - half, mean + half


def student_quantile(level: float, degrees: int) -> float:
    """The t with P(|T| < t) = `level`:  T = sqrt(ν) tan θ, where θ has a density as cos(θ)^(ν−1) has."""
    angle = np.linspace(0, math.pi / 2, 20_001)
    mass = np.cumsum(np.cos((angle[1:] + angle[:-1]) / 2) ** (degrees - 1))
    return math.sqrt(degrees) * math.tan(np.interp(level, mass / mass[-1], angle[1:]))


def proportion(values: ArrayLike, groups: Groups = None, *, level: float = 0.95) -> Proportion:
    """Mean of values [n] from 0 to 1 (a win, a loss, a share; a tie is one half), with Wilson's interval on an effective number of them:

        n_eff = min(p(1−p) / var(p),  n² / Σ_g n_g² − 1)                    (Kish 1965; Franco et al. 2019)

    var is that of `mean_and_se`, by group. It and p hold one added win and one added loss, so that neither is 0. The second bound is
    what n outcomes are worth where those of a group are all alike: the number of groups, if all have one size; less one, for a
    sample's variance is p(1−p) / (n − 1). Ties and groups of mixed outcomes make the interval wide rather than short. It covers 95% on
    average, and no p from .05 to .95 less than 92% from 20 groups up; plain Wilson falls to 91.7% (experiments/coverage.py).
    """
    numbers = _finite(values, "values")
    if numbers.min() < 0 or numbers.max() > 1:
        raise DataError(f"shares range from {numbers.min():g} to {numbers.max():g}, but must lie in 0 to 1")
    index = _group_index(groups, numbers)
    sizes, added = np.bincount(index), int(index.max()) + 1
    mean, error = mean_and_se([*numbers, 1.0, 0.0], [*index, added, added + 1])
    effective = min(mean * (1 - mean) / error**2, numbers.size**2 / float(sizes @ sizes) - 1)
    rate = float(numbers.mean())
    low, high = wilson_interval(rate * effective, effective, level=level) if effective > 0 else (0.0, 1.0)
    return Proportion(rate, low, high, numbers.size)


def outcomes(scores_a: ArrayLike, scores_b: ArrayLike) -> Floats:
    """1 where A's score is higher, 0 where B's is, one half for a tie (|a − b| < 1e-6): scores [n] each."""
    a, b = _finite(scores_a, "scores_a"), _finite(scores_b, "scores_b")
    _check_same_length(a, b, "scores_a", "scores_b")
    return np.where(np.abs(a - b) < TIE, 0.5, np.where(a > b, 1.0, 0.0))


def win_rate(scores_a: ArrayLike, scores_b: ArrayLike, groups: Groups = None, *, level: float = 0.95) -> Proportion:
    """How often A's answer beats B's to the same prompt: the `proportion` of `outcomes`. `groups`: the prompts, where some come twice."""
    return proportion(outcomes(scores_a, scores_b), groups, level=level)


def wilson_interval(successes: float, n: float, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927; Brown, Cai, DasGupta 2001): sound near 0 and 1 and for small n.

    (p + z²/2n ± z sqrt(p(1−p)/n + z²/4n²)) / (1 + z²/n). n may be an effective number, which is not whole: `proportion`.
    """
    if not 0 <= successes <= n or n <= 0:
        raise DataError(f"a share needs 0 <= successes <= n and n > 0, got {successes:g} of {n:g}")
    _check_level(level)
    p, z = successes / n, NormalDist().inv_cdf((1 + level) / 2)
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def confidence_sequence(total: float, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of a mean of values from 0 to 1, after n of them that add up to `total`, which may be looked at after every value:
    with probability `level` the true mean lies in it at *all* n at once, so whoever stops when they like is not deceived.

        {p : M_n(p) < 1 / (1 − level)},   M_n(p) = B(1 + S, 1 + n − S) / (p^S (1 − p)^(n − S))     S the total, B the beta function

    M is how much better a uniform mixture of means tells the values than p does; of the true p it is a martingale that begins at 1
    (values between 0 and 1: it falls in the mean, by the inequality of means), and Ville's inequality bounds its highest (Ville 1939;
    Robbins 1970; Howard 2021, arxiv.org/abs/1810.08240). Each value's mean, given those before, must be the same. Values of one
    prompt are not apart: give each prompt's mean as one value. It is wider than `wilson_interval`, which holds for one look alone.
    """
    if not 0 <= total <= n or n < 0:
        raise DataError(f"a share needs 0 <= total <= n, got {total:g} of {n}")
    _check_level(level)
    limit = -math.log(1 - level)
    mixture = math.lgamma(1 + total) + math.lgamma(1 + n - total) - math.lgamma(2 + n)

    def believed(p: float) -> bool:
        wins, losses = total * math.log(p) if total else 0.0, (n - total) * math.log1p(-p) if n > total else 0.0
        return mixture - wins - losses < limit

    def edge(inside: float, outside: float) -> float:
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if believed(middle) else (inside, middle)
        return outside  # on the side of too wide

    least, most = 1e-300, 1 - 1e-16
    mean = min(max(total / n, least), most) if n else 0.5
    return (
        0.0 if not total or believed(least) else edge(mean, least),
        1.0 if total == n or believed(most) else edge(mean, most),
    )


def evidence_above_half(totals: ArrayLike, counts: ArrayLike) -> Floats:
    """Logarithm of the evidence that a mean of values from 0 to 1 lies above one half, after `counts` of them that add up to `totals`,
    of any shape [...]: it may be looked at after every value, and where the mean is one half or less it ever reaches log(1 / α) with
    probability α at most.

        E_n = mean over bets p of (2p)^S (2(1 − p))^(n − S)       p evenly from one half to 1, S the total

    Each term is what a bet of 2p − 1 of one's fortune on every value brings, a value between 0 and 1 bringing no more; where one half is
    the mean it does not grow, and Ville's inequality bounds its highest (Ville 1939; Waudby-Smith and Ramdas 2024,
    doi.org/10.1093/jrsssb/qkad009). With 80% power at α = .05 a win rate of .55 takes some 1,450 values, .57 730, .6 320, .65 135.
    """
    total, n = np.broadcast_arrays(np.asarray(totals, dtype=np.float64), np.asarray(counts, dtype=np.float64))
    if not ((total >= 0) & (total <= n) & np.isfinite(n)).all():
        raise DataError(
            "a mean from 0 to 1 needs 0 <= total <= n of each; give the sum of the values, and how many there are"
        )
    bet_G = 0.5 + (np.arange(BETS) + 0.5) / (2 * BETS)
    log_G = total[..., None] * np.log(2 * bet_G) + (n - total)[..., None] * np.log(2 * (1 - bet_G))
    highest = log_G.max(-1)
    found: Floats = highest + np.log(np.exp(log_G - highest[..., None]).mean(-1))
    return found


def accuracy(correct: ArrayLike, groups: Groups = None, *, level: float = 0.95) -> Proportion:
    """Share of outcomes [n] that are right (each 0 or 1), with the interval of `proportion`."""
    return proportion(_zero_or_one(correct, "correct"), groups, level=level)


def ece(probabilities: ArrayLike, outcomes: ArrayLike, weights: ArrayLike | None = None, *, bins: int = 10) -> float:
    """Expected calibration error (Naeini 2015; Guo 2017, eq. 3): Σ_bin (w_bin / w) |mean outcome − mean probability|.

    probabilities [n] in [0, 1] of the event, outcomes [n] 1 where it happened, between 0 and 1 where that is not sure;
    weights [n], by default equal. `bins` of equal width, right edge included. 0 is perfect; it has a positive bias of order
    sqrt(bins / n), so compare runs at equal n.
    """
    probability, happened = _shares(probabilities, "probabilities"), _shares(outcomes, "outcomes")
    _check_same_length(probability, happened, "probabilities", "outcomes")
    w = _weights(weights, probability, "probabilities")
    if bins < 1:
        raise DataError(f"bins is {bins}, but the calibration error needs at least 1 bin (10 is usual)")
    bin_of = np.digitize(probability, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    surplus = np.bincount(bin_of, weights=w * (happened - probability), minlength=bins)
    return float(np.abs(surplus).sum() / w.sum())


def logistic_regression(features: ArrayLike, outcomes: ArrayLike, *, prior: float = 2.0) -> tuple[Floats, Floats]:
    """The w that tells outcomes [n], 0 to 1, best by σ(x · w) of features [n, F], and its standard errors [F]: Newton's method on
    Σ log(1 + exp(-±x · w)) + Σ w² / 2 prior², whose prior keeps w finite where a feature tells all. Without an intercept."""
    x, y = np.asarray(features, dtype=np.float64), _shares(outcomes, "outcomes")
    w, precision = np.zeros(x.shape[1]), np.eye(x.shape[1]) / prior**2
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        hessian = (x.T * (p * (1 - p))) @ x + precision
        step = np.linalg.solve(hessian, x.T @ (y - p) - precision @ w)
        w += step
        if np.abs(step).max() < 1e-9:
            break
    return w, np.sqrt(np.diag(np.linalg.inv(hessian)))


def fit_temperature(gaps: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The T > 0 under which σ(gap / T) tells best how often the first was right: minimises Σ w log(1 + exp(-gap / T)) (Guo 2017, §4.2).

    gaps [n]: score of the preferred minus that of the other, or a logit with its sign turned where the class is 0. The
    loss is convex in 1 / T, so golden sections of log T find it. T is held within a hundredth and a hundred of the
    gaps' root mean square: where all are right, or no more than a coin would be, no finite or positive T is the best.
    """
    g = _finite(gaps, "gaps")
    w = _weights(weights, g, "gaps")
    size = math.sqrt(np.average(g * g, weights=w))
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


def pass_at_k(right_PN: ArrayLike, k: int) -> Floats:
    """The chance [P] that of k answers one at least is right, from N >= k answers to each prompt, each 1 (right) or 0:
    1 − C(N − c, k) / C(N, k) with c right of N, unbiased (Chen 2021, eq. 1, arxiv.org/abs/2107.03374)."""
    right = np.asarray(right_PN, dtype=np.float64)
    if not np.isin(right, (0.0, 1.0)).all():
        raise DataError("pass@k needs answers that are right (1) or wrong (0)")
    return expected_best_of_n(right, k)


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


def _group_index(groups: Groups, values: NDArray[Any]) -> NDArray[np.intp]:
    """The number of each value's group, from 0."""
    if groups is None:
        return np.arange(values.size)
    if len(groups) != values.size:
        raise DataError(
            f"groups has {len(groups)} entries and values has {values.size}, but each value needs its group"
        )
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(name, len(number)) for name in groups])


def _shares(values: ArrayLike, name: str) -> Floats:
    numbers = _finite(values, name)
    if numbers.min() < 0 or numbers.max() > 1:
        raise DataError(f"{name} range from {numbers.min():g} to {numbers.max():g}, but must lie in 0 to 1")
    return numbers


def _weights(values: ArrayLike | None, of: Floats, name: str) -> Floats:
    """Weights of `of`, by default equal."""
    weights = np.ones_like(of) if values is None else _finite(values, "weights")
    _check_same_length(of, weights, name, "weights")
    if weights.min() < 0 or not weights.sum():
        raise DataError(f"weights must be 0 or more and not all 0, got {weights.min():g} to {weights.max():g}")
    return weights


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
