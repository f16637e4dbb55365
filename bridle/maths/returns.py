"""The units that a critic predicts in: mean and standard deviation of returns, over the steps of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

RECENT = 0.1  # the share of a step's returns in the mean and the variance, once there were ten steps
ROUNDING = 1.2e-7  # of float32, which rewards are


@dataclass(frozen=True)
class ReturnScale:
    """A critic that says v means mean + deviation · v, and learns (R - mean) / deviation: then neither its rate nor its clip depends
    on the units of the reward (value normalisation: Yu 2021, §5.1, arxiv.org/abs/2103.01955). After no step: those units themselves.

    PopArt (van Hasselt 2016, arxiv.org/abs/1602.07714) also rescales the critic's head, so that what it means stays where the mean
    moves. Left out: the mean moves to where the returns went, and the critic has to follow (docs/failures.md).
    """

    mean: float = 0.0
    var: float = 1.0
    steps: int = 0

    @property
    def deviation(self) -> float:
        """1 where returns do not differ by more than rounding."""
        deviation = math.sqrt(self.var)
        return deviation if deviation > ROUNDING * abs(self.mean) else 1.0

    def after(self, returns_N: Tensor) -> ReturnScale:
        """With the returns of one step more: the mean over steps of the first ten, from then on one that forgets."""
        share = max(1 / (self.steps + 1), RECENT)
        mean, var = float(returns_N.double().mean()), float(returns_N.double().var(correction=0))
        moved = mean - self.mean
        spread = (1 - share) * (self.var + share * moved**2) + share * var
        return ReturnScale(self.mean + share * moved, spread, self.steps + 1)

    def normalised(self, returns: Tensor) -> Tensor:
        return (returns - self.mean) / self.deviation

    def in_rewards(self, values: Tensor) -> Tensor:
        """The inverse of `normalised`: in units of the reward."""
        return self.mean + self.deviation * values
