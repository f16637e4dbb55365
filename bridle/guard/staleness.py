"""Whether a reward model still knows today's answers: fresh judgements against the probabilities that it states itself.

Its accuracy alone cannot tell. As a policy learns, its answers grow alike, their scores come close, and a model that is as good as ever is
right less often; but it then says so: its probabilities come close to one half. It is stale where more judgements go the other way than
it states. So with the calibrated probability p that the first answer is preferred, what is tested is

    fresh    P(first preferred) = (1 − ε) p + ε (1 − p)   for some ε up to a tolerance, no model being calibrated to the last digit
    stale    the same with a larger ε, from .1 to .8:  an accuracy of a then falls to a − ε (2a − 1), by a tenth of 2a − 1 at ε = .1

by a ratio of likelihoods, a mixture over those ε and over when it began, every 100 judgements. Where the model is fresh the mixture
never rises in the mean, so with probability 1 − `level` it never reaches 1 / level, however long and however often one looks (Wald 1945;
Ville 1939; Robbins 1970; for mixtures over the beginning Shin, Ramdas and Rinaldo 2022, arxiv.org/abs/2203.03532). Judgements must be
fresh: not among those that the model was trained on, or that its temperature was fitted on, and of one answer pair each.
Not here: a model that is too modest, which harms nobody; which of its faults the policy uses, which an audit tells.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bridle.core.errors import DataError

REVERSED = (0.1, 0.2, 0.4, 0.8)  # shares of the judgements that go the other way than stated
TOLERANCE = 0.05
BEGINS = 100  # judgements after which it may have begun, again and again
HIGHEST = 1e250  # evidence enough, and far from what a number can hold

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Staleness:
    """After so many `judgements`: the accuracy that the model states for itself on them, and what it was; the share that goes the other
    way than stated, as estimated; the highest evidence so far (1 / level raises the alarm); and after how many judgements it did."""

    judgements: int
    stated: float
    measured: float
    reversed: float
    evidence: float
    alarm: int | None


def evidence_of(probabilities: ArrayLike, outcomes: ArrayLike, *, tolerance: float = TOLERANCE) -> Floats:
    """How much better "stale" tells the judgements than "fresh", after each: at `1 / level` the model is held to be stale.

    probabilities [n, …] that the first answer is preferred, as the model states them, in the order of the judgements; outcomes of the
    same shape: 1 where it was, 0 where the other was, one half for a tie. Further axes are streams of their own.
    """
    stated, won = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    if stated.shape != won.shape or not stated.ndim:
        raise DataError(
            f"each probability needs its outcome, but there are {stated.shape} and {won.shape}; give both in the same order"
        )
    for name, numbers in (("probabilities", stated), ("outcomes", won)):
        if numbers.size and not (numbers.min() >= 0 and numbers.max() <= 1):
            raise DataError(
                f"{name} must lie in 0 to 1, got {numbers.min():g} to {numbers.max():g}; leave out what has none"
            )
    if not 0 < tolerance < REVERSED[0]:
        raise DataError(f"the tolerance must lie between 0 and {REVERSED[0]}, got {tolerance:g}")
    fresh = blur(stated, tolerance)
    stale = np.stack([blur(stated, share) for share in REVERSED], -1)
    ratio = won[..., None] * stale / fresh[..., None] + (1 - won)[..., None] * (1 - stale) / (1 - fresh)[..., None]
    begun, found = np.zeros(ratio.shape[1:]), np.empty(stated.shape)
    for n in range(len(stated)):
        start = n // BEGINS + 1  # the j-th beginning weighs 1 / j (j + 1): all of them weigh 1
        if n % BEGINS == 0:
            begun = begun + 1 / (start * (start + 1))
        begun = np.minimum(begun * ratio[n], HIGHEST)
        found[n] = begun.mean(-1) + 1 / (start + 1)  # and those that are still to come
    return found


def blur(probability: Floats, share: float) -> Floats:
    """The probability where a share of the judgements goes the other way."""
    return probability + share * (1 - 2 * probability)


def staleness(
    probabilities: ArrayLike, outcomes: ArrayLike, *, level: float = 0.05, tolerance: float = TOLERANCE
) -> Staleness:
    """The test on all judgements since the model was made, in their order, [n] each; a false alarm has at most probability `level`."""
    if not 0 < level < 1:
        raise DataError(f"the chance of a false alarm must lie between 0 and 1 (0.05 is usual), got {level:g}")
    evidence = evidence_of(probabilities, outcomes, tolerance=tolerance)
    if not len(evidence):
        return Staleness(0, math.nan, math.nan, 0.0, 1.0, None)
    stated, measured = favoured(probabilities, outcomes)
    lost, sure = float((stated - measured).sum()), float((2 * stated - 1).sum())
    raised = np.flatnonzero(evidence >= 1 / level)
    return Staleness(
        len(evidence),
        float(stated.mean()),
        float(measured.mean()),
        min(1.0, max(0.0, lost / sure)) if sure else 0.0,
        float(evidence.max()),
        int(raised[0]) + 1 if len(raised) else None,
    )


def favoured(probabilities: ArrayLike, outcomes: ArrayLike) -> tuple[Floats, Floats]:
    """Of the answer that the model favours: its probability, one half or more, and whether it was preferred."""
    stated, won = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    return np.maximum(stated, 1 - stated), np.where(stated >= 0.5, won, 1 - won)


def judgements_to_notice(
    probabilities: ArrayLike, drop: float, *, level: float = 0.05, tolerance: float = TOLERANCE
) -> int | None:
    """About how many judgements of pairs like these (their stated probabilities) notice that accuracy fell by `drop`, .1 for 10 points:
    log(4 / level) and the price of not knowing when it began, over what one judgement brings. None where it is within the tolerance."""
    stated, _ = favoured(probabilities, probabilities)
    sure = float((2 * stated - 1).mean())
    share = drop / sure if sure else math.inf
    if share <= tolerance:
        return None
    truth, fresh = blur(stated, min(share, 1.0)), blur(stated, tolerance)
    gains = [
        float((truth * np.log(q / fresh) + (1 - truth) * np.log((1 - q) / (1 - fresh))).mean())
        for q in (blur(stated, one) for one in REVERSED)
    ]
    if (gain := max(gains)) <= 0:
        return None
    return math.ceil(math.log(2 * len(REVERSED) / level) / gain)


def labels_to_refresh(found: Staleness, trained_on: int) -> int:
    """How many labels a refresh should begin with: the share that goes the other way of those that the model was trained on, 100 at least
    where it is stale; none where it is not. It is a beginning: a learning curve says more (`bridle label plan`)."""
    return 0 if found.alarm is None else max(100, math.ceil(found.reversed * trained_on))


def where_it_fails(
    probabilities: ArrayLike, outcomes: ArrayLike, groups: Sequence[Hashable]
) -> list[tuple[Hashable, int, float]]:
    """Each group of prompts with its judgements, and how many of them went the other way beyond what was stated; the most first.
    There fresh labels are needed first."""
    stated, measured = favoured(probabilities, outcomes)
    if len(groups) != len(stated):
        raise DataError(f"each judgement needs its group, but there are {len(groups)} and {len(stated)}")
    lost: dict[Hashable, list[float]] = defaultdict(list)
    for group, surplus in zip(groups, (stated - measured).tolist(), strict=True):
        lost[group].append(surplus)
    return sorted(((group, len(all_), sum(all_)) for group, all_ in lost.items()), key=lambda one: -one[2])
