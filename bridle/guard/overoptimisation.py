"""The curve of over-optimisation: how much is gained at a distance from where the policy set out (Gao 2022, arxiv.org/abs/2210.10760).

    d = √KL        RL:  R(d) = d (a − b log d)        best-of-n:  R(d) = d (a − b d)

a is what the first steps gain, b what the reward model's faults take away of it. Both forms are linear in a and b, so the fit is exact.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bridle.core.errors import DataError

LEAST_POINTS = 3  # at a distance above 0: two make any curve of two numbers

CurveForm = Literal["rl", "best-of-n"]


class GainCurve(NamedTuple):
    a: float
    b: float
    form: CurveForm

    def gain(self, distance_N: ArrayLike) -> NDArray[np.float64]:
        """At distances √KL; 0 at 0."""
        return terms(distance_N, self.form) @ [self.a, self.b]

    @property
    def peak(self) -> float | None:
        """The distance √KL at which it turns down; None where it nowhere does."""
        if self.b <= 0 or (self.form == "best-of-n" and self.a <= 0):
            return None
        found = self.a / (2 * self.b) if self.form == "best-of-n" else np.exp(min(self.a / self.b - 1, 700.0))
        return float(found)


def fit_gain_curve(kl: ArrayLike, gain: ArrayLike, error: ArrayLike, form: CurveForm = "rl") -> GainCurve | None:
    """Least squares through what was gained, [n] each: KL in nats, gain, and its standard error, by whose square a point weighs less.

    A point at a KL of 0 or less tells nothing, for every curve is 0 there. None where fewer than three distances are left, or one alone.
    """
    kl_N, gain_N, error_N = (np.asarray(column, dtype=np.float64) for column in (kl, gain, error))
    if not kl_N.shape == gain_N.shape == error_N.shape or kl_N.ndim != 1:
        raise DataError(
            f"each point of a curve needs its KL, gain and error, but there are {kl_N.shape}, {gain_N.shape} and {error_N.shape}"
        )
    if not all(map(math.isfinite, [*kl_N, *gain_N, *error_N])) or (error_N <= 0).any():
        raise DataError("a curve needs points of finite numbers, with errors above 0; leave out what was not measured")
    there = kl_N > 0
    if there.sum() < LEAST_POINTS or np.ptp(kl_N[there]) == 0:
        return None
    weight_N = 1 / error_N[there]
    rows = terms(np.sqrt(kl_N[there]), form) * weight_N[:, None]
    (a, b), *_ = np.linalg.lstsq(rows, gain_N[there] * weight_N)
    return GainCurve(float(a), float(b), form)


def terms(distance_N: ArrayLike, form: CurveForm) -> NDArray[np.float64]:
    """What a and b are multiplied with, [n, 2]."""
    d = np.asarray(distance_N, dtype=np.float64)
    lost = d * d if form == "best-of-n" else d * np.log(np.where(d > 0, d, 1.0))
    return np.stack([d, -lost], axis=-1)
