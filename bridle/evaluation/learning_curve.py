"""What more judgements would buy: a curve through what a reward model reached with fewer of them, and what a further vote tells."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

RATES, CEILINGS = (0.1, 0.6, 11), (0.5, 1.0, 101)  # from, to, how many
LEVEL = 0.9  # of the interval of a forecast


@dataclass(frozen=True)
class Forecast:
    """Accuracy with `count` judgements, and its 90% interval."""

    count: int
    accuracy: float
    low: float
    high: float


def forecast(counts: ArrayLike, accuracies: ArrayLike, errors: ArrayLike, wanted: Sequence[int]) -> list[Forecast]:
    """Accuracies [N] with so many judgements, and their standard errors, carried on to other numbers of judgements.

    The curve is accuracy(n) = ceiling − gap × n^−rate, a power law down to an error that no data removes (Hestness 2017, eq. 2; Rosenfeld
    2020). A few points determine no single one, so all rates and ceilings of a grid are taken, each with its best gap ≥ 0 and weighed by
    its likelihood exp(−χ²/2); the forecast is their mean, its interval between their quantiles. Rates are those that were published, .1 to
    .6: with faster ones a curve may end where the points do. ValueError: fewer than two counts, or errors that are not above 0.
    """
    n, found, error = (np.asarray(values, dtype=float) for values in (counts, accuracies, errors))
    if len(np.unique(n)) < 2 or not (n > 0).all() or not (error > 0).all():
        raise ValueError(f"a curve needs two counts above 0 and errors above 0, got counts {n} and errors {error}")
    rate, ceiling = (grid.ravel() for grid in np.meshgrid(np.linspace(*RATES), np.linspace(*CEILINGS)))
    fall_GN = (n / n.max()) ** -rate[:, None]
    weight_N = error**-2.0
    short_GN = ceiling[:, None] - found
    gap = np.maximum(((short_GN * fall_GN) @ weight_N) / ((fall_GN**2) @ weight_N), 0.0)
    misfit = ((short_GN - gap[:, None] * fall_GN) ** 2) @ weight_N
    likelihood = np.exp(-(misfit - misfit.min()) / 2)
    curves = []
    for count in wanted:
        reached = ceiling - gap * (count / n.max()) ** -rate
        low, high = weighted_quantiles(reached, likelihood, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        curves.append(Forecast(count, float(np.average(reached, weights=likelihood)), low, high))
    return curves


def weighted_quantiles(
    values: NDArray[np.float64], weights: NDArray[np.float64], levels: Sequence[float]
) -> list[float]:
    order = np.argsort(values)
    places = np.searchsorted(np.cumsum(weights[order]) / weights.sum(), levels).clip(max=len(values) - 1)
    return [float(value) for value in values[order][places]]


def vote_information(skill: float, votes: int) -> float:
    """What so many independent votes on one pair tell of which answer is better, in bits: their mutual information with the truth, where
    each is right with chance `skill`, of 0 to 1, and either answer is as likely before (Cover & Thomas, 2.4).

    It grows ever more slowly: a first vote on a new pair tells at least as much as a further one on the same.
    """
    right = np.arange(votes + 1)
    ways = np.array([comb(votes, k) for k in right], dtype=float)
    if_first = ways * skill**right * (1 - skill) ** (votes - right)
    if_second = if_first[::-1]
    both = (if_first + if_second) / 2
    return float(_bits(if_first, both) + _bits(if_second, both)) / 2


def _bits(chance: NDArray[np.float64], of: NDArray[np.float64]) -> float:
    there = chance > 0
    return float(np.sum(chance[there] * np.log2(chance[there] / of[there])))
