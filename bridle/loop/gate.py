"""The gate: a candidate is promoted only with proof that its answers are better, and sent back by the same kind of proof.

Each comparison is of one prompt's answers by the candidate and by what is served, by whoever decides: audit labels or a judge, never users'
votes alone, who like to be flattered. After every one the evidence may be looked at (`evidence_above_half`), and the first time that it is
enough the candidate is better: a candidate that is no better passes with probability α at most, however often one looks. A loop tries
many candidates: the k-th is given α / (k (k + 1)), so that *any* that is no better passes with probability α at most, for ever.
What is better must also be safe: bounds on what it changed besides. Pure functions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from bridle.core.errors import DataError
from bridle.maths.statistics import confidence_sequence, evidence_above_half

Decision = Literal["better", "worse", "not_better", "undecided", "out_of_bounds"]


@dataclass(frozen=True)
class Bound:
    """What must hold of a candidate besides; a `value` of nan holds nowhere."""

    name: str
    value: float
    at_least: float = -math.inf
    at_most: float = math.inf

    @property
    def holds(self) -> bool:
        return self.at_least <= self.value <= self.at_most

    def __str__(self) -> str:
        sides = [f"at least {self.at_least:g}"] * (self.at_least > -math.inf)
        sides += [f"at most {self.at_most:g}"] * (self.at_most < math.inf)
        return f"{self.name} {self.value:.3g}, where {' and '.join(sides)} is asked"


@dataclass(frozen=True)
class GateVerdict:
    """After `n` comparisons, of which the candidate won the share `rate` (ties ½), with an interval that holds at every look. `evidence`
    is how much better "better" tells them than "no better"; `needed` decides. `broken`: the bounds that do not hold."""

    decision: Decision
    n: int
    rate: float
    low: float
    high: float
    evidence: float
    needed: float
    broken: tuple[str, ...] = ()

    def __str__(self) -> str:
        won = f"won {self.rate:.3f} of {self.n:,} comparisons ({self.low:.3f} to {self.high:.3f} at every look)"
        won = won if self.n else "nothing was compared"
        words = {
            "better": f"better: {won}; evidence {self.evidence:.3g}, {self.needed:.3g} is enough",
            "worse": f"worse: {won}",
            "not_better": f"not better, as far as it was asked: {won}; evidence {self.evidence:.3g} of {self.needed:.3g}",
            "undecided": f"undecided yet: {won}; evidence {self.evidence:.3g} of {self.needed:.3g}",
            "out_of_bounds": f"refused, for {'; '.join(self.broken)} ({won})",
        }
        return words[self.decision]


def spent_on(number: int, level: float = 0.05) -> float:
    """The probability of passing by chance that the number-th candidate (from 1) is given: level / (number (number + 1)), which add up to
    `level`."""
    if number < 1 or not 0 < level < 1:
        raise DataError(f"candidates count from 1, and the level lies between 0 and 1, got {number} and {level:g}")
    return level / (number * (number + 1))


def judge_candidate(wins: ArrayLike, *, alpha: float, most: int, bounds: Sequence[Bound] = ()) -> GateVerdict:
    """Of the comparisons so far, in their order: 1 where the candidate's answer was preferred, 0 where the other's, ½ for a tie; of one
    prompt one. `alpha`: `spent_on` its number. `most`: comparisons that it is given at most. It is decided at the first look at which
    there is evidence enough, and what comes later changes nothing; out of bounds whatever it won."""
    won = np.asarray(wins, dtype=np.float64)
    if won.ndim != 1 or not ((won >= 0) & (won <= 1)).all():
        raise DataError("each comparison is 1, 0 or one half; leave out what could not be judged, and count it")
    if not 0 < alpha < 1 or most < 1:
        raise DataError(f"alpha lies between 0 and 1, and at least one comparison is needed, got {alpha:g} and {most}")
    won, counts = won[:most], np.arange(1, len(won[:most]) + 1)
    better, worse = (evidence_above_half(one.cumsum(), counts) for one in (won, 1 - won))
    decided = np.flatnonzero(np.maximum(better, worse) >= -math.log(alpha))
    n = int(decided[0]) + 1 if len(decided) else len(won)
    total = float(won[:n].sum())
    low, high = confidence_sequence(total, n, level=1 - alpha)
    decision: Decision = "not_better" if n == most else "undecided"
    if len(decided):
        decision = "better" if better[n - 1] >= worse[n - 1] else "worse"
    broken = tuple(str(bound) for bound in bounds if not bound.holds)
    evidence = math.exp(min(float(better[n - 1]), 700.0)) if n else 1.0
    rate = total / n if n else math.nan
    return GateVerdict("out_of_bounds" if broken else decision, n, rate, low, high, evidence, 1 / alpha, broken)
