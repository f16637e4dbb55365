"""Agreement of people: Krippendorff's alpha and raw agreement, with bootstrap intervals over items.

Krippendorff 2019, Content Analysis, ch. 12. With n_uc how often unit u got value c, m_u of its ratings and n of all (units with fewer
than two ratings drop out), the coincidences and the disagreement of a metric δ² are

    o_ck = Σ_u n_uc (n_uk − [c = k]) / (m_u − 1)        alpha = 1 − (n − 1) Σ_ck o_ck δ²_ck / Σ_ck n_c n_k δ²_ck

1 is perfect agreement, 0 what chance gives where the values are as frequent as they are. Raw agreement is Σ_c o_cc / n: how often another
rating of the same unit says the same.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bridle.feedback.quality.votes import Floats, Votes

METRICS = ("nominal", "ordinal", "interval")
RESAMPLES = 1000
MOST_PERIODS, FEWEST_ITEMS, PERIOD_RESAMPLES = 8, 30, 200  # of agreement over time
SURE = 0.95  # share of the resamples that must have a value for there to be an interval
CELLS = 20_000_000  # numbers of a batch of resamples


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95% interval; None where there is none, and `why`."""

    value: float | None
    low: float | None = None
    high: float | None = None
    why: str = ""


def measure_agreement(
    values: ArrayLike, units: ArrayLike, clusters: ArrayLike | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """Raw agreement ("raw") and alpha by each of METRICS, of ratings [n]: their values, numbers, and what was rated.

    Intervals are percentiles over resamples of the `clusters` (default: the units), whose coincidences add up: a resample costs a sum
    over the distinct patterns that clusters have, not over ratings. Alpha is undefined where all ratings are alike, 0 / 0.
    """
    category_C, code = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True)
    unit_of, unit = np.unique(np.asarray(units), return_inverse=True)
    size = len(category_C)
    counts_UC = (
        np.bincount(unit * size + code, minlength=len(unit_of) * size).reshape(len(unit_of), size).astype(np.float64)
    )
    rated_U = counts_UC.sum(1)
    both_U = rated_U >= 2
    if not both_U.any():
        nothing = Estimate(None, why="nobody judged what another judged")
        return {"raw": nothing, **dict.fromkeys(METRICS, nothing)}
    cluster_U = np.arange(len(unit_of))
    if clusters is not None:
        cluster_U[unit] = np.unique(np.asarray(clusters), return_inverse=True)[1]
    counts_UC, cluster_U = counts_UC[both_U], np.unique(cluster_U[both_U], return_inverse=True)[1]
    o_UCC = counts_UC[:, :, None] * (counts_UC[:, None, :] - np.eye(size)) / (rated_U[both_U] - 1)[:, None, None]
    o_GS = np.stack([np.bincount(cluster_U, cell) for cell in o_UCC.reshape(-1, size * size).T], axis=1)
    patterns = np.unique(o_GS.round(12), axis=0, return_counts=True)
    pattern_PS, frequency_P = (np.asarray(each, dtype=np.float64) for each in patterns)
    measured = by_metric(frequency_P[None] @ pattern_PS, category_C)
    drawn = resampled(pattern_PS, frequency_P, resamples, seed)
    found = {}
    for name, values_B in by_metric(drawn, category_C).items():
        found[name] = with_interval(measured[name][0], values_B)
    return found


def resampled(pattern_PS: Floats, frequency_P: Floats, resamples: int, seed: int) -> Floats:
    """Coincidences [resamples, S] of clusters drawn with replacement, as many as there are."""
    rng, count = np.random.default_rng(seed), int(frequency_P.sum())
    batch = max(1, CELLS // len(frequency_P))
    sizes = [min(batch, resamples - done) for done in range(0, resamples, batch)]
    share_P = frequency_P / count
    return np.concatenate([rng.multinomial(count, share_P, size) @ pattern_PS for size in sizes])


def by_metric(o_BS: Floats, category_C: Floats) -> dict[str, Floats]:
    """Raw agreement and alphas [B] of coincidences [B, C²]; nan where undefined."""
    size = len(category_C)
    o_BCC = o_BS.reshape(-1, size, size)
    n_BC = o_BCC.sum(2)
    n_B = n_BC.sum(1)
    rank_BC = np.cumsum(n_BC, axis=1) - n_BC / 2
    distances = {
        "nominal": 1 - np.eye(size)[None],
        "ordinal": (rank_BC[:, :, None] - rank_BC[:, None, :]) ** 2,
        "interval": ((category_C[:, None] - category_C[None, :]) ** 2)[None],
    }
    found = {"raw": np.trace(o_BCC, axis1=1, axis2=2) / n_B}
    for name, distance_BCC in distances.items():
        observed = (o_BCC * distance_BCC).sum((1, 2))
        expected = (n_BC[:, :, None] * n_BC[:, None, :] * distance_BCC).sum((1, 2))
        found[name] = np.where(expected > 0, 1 - (n_B - 1) * observed / np.where(expected > 0, expected, 1), np.nan)
    return found


def with_interval(value: float, values_B: Floats) -> Estimate:
    if not np.isfinite(value):
        return Estimate(None, why="undefined, for all judgements that can be compared say the same")
    known = values_B[np.isfinite(values_B)]
    if len(known) < SURE * len(values_B):
        return Estimate(float(value), why="no interval, for too few items are judged by several")
    low, high = np.quantile(known, [0.025, 0.975])
    if low == high:
        return Estimate(float(value), why="no interval, for nothing varies")
    return Estimate(float(value), float(low), float(high))


def agreement_of(votes: Votes) -> dict[str, Estimate]:
    """Of the votes on their units, in canonical slots and never in displayed sides; resampled by item."""
    return measure_agreement(votes.verdict_V, votes.unit_V, votes.item_V)


@dataclass(frozen=True, slots=True)
class Period:
    """Alpha (nominal) of the `items` that several people judged and that were judged last between two times, in seconds since 1970."""

    begin: float
    end: float
    items: int
    alpha: Estimate


def agreement_over_time(votes: Votes) -> list[Period]:
    """Up to MOST_PERIODS groups of as many items, in the order of time; one where there are few. Items of an unknown time are left out."""
    last_I = np.full(len(votes.items), -np.inf)
    np.maximum.at(last_I, votes.item_J, votes.time_J)
    several = np.flatnonzero((np.bincount(votes.item_J, minlength=len(last_I)) > 1) & np.isfinite(last_I))
    order, found = several[np.argsort(last_I[several], kind="stable")], []
    for group in np.array_split(order, np.clip(len(order) // FEWEST_ITEMS, 1, MOST_PERIODS)) if len(order) else ():
        of_group_V = np.isin(votes.item_V, group)
        values = votes.verdict_V[of_group_V], votes.unit_V[of_group_V], votes.item_V[of_group_V]
        alpha = measure_agreement(*values, resamples=PERIOD_RESAMPLES)["nominal"]
        found.append(Period(float(last_I[group[0]]), float(last_I[group[-1]]), len(group), alpha))
    return found
