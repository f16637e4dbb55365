"""When to stop and where to roll back to, from what is known at checkpoints: pure functions of named state.

A calibrated reward model states how much better a policy's answers are than the reference's, in log-odds. Near the reference that is
true; with each nat further away it promises more than it keeps. So the truth is taken to be

    log-odds of beating the reference  =  what is stated  −  c · KL          c ≥ 0: what a nat costs of what is promised

and audits, a few fresh comparisons with the reference's answers whenever the policy has moved on, tell c. It is one number, which
all audits tell together, and those far away tell best. The best checkpoint is the one with the most left, and a run is stopped when an
earlier one is better than the newest with a set probability. Where the reward is the truth c is 0, and nothing is stopped.
Not here: who is asked, and what a checkpoint is.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bridle.core.errors import DataError

LEAST, MOST, STEPS = (
    0.01,
    10.0,
    120,
)  # of c in log-odds a nat: 0, and steps of one ratio, each as likely before any audit
AUDIT_EVERY = 0.25  # of √KL
SURE = 0.95
SPREAD = 1.96  # standard errors on either side of a 95% interval

Floats = NDArray[np.float64]


class Left(NamedTuple):
    """What the audits leave of a checkpoint's log-odds of beating the reference, with a 95% interval."""

    mean: float
    low: float
    high: float


class Audited(NamedTuple):
    """`cost` c as expected, the `best` checkpoint by it, the probability that an earlier one is better than the newest (`past`), and
    what is left of each."""

    cost: float
    best: int
    past: float
    left: list[Left]

    @property
    def stop(self) -> bool:
        return self.past >= SURE


def judge_checkpoints(
    stated: Sequence[float],
    kl: Sequence[float],
    audits: tuple[ArrayLike, ArrayLike, ArrayLike],
    *,
    noise: float = 0.0,
    stated_se: Sequence[float] | None = None,
) -> Audited:
    """Checkpoints [C], the newest last: the mean log-odds that the calibrated reward model states of beating the reference, with its
    standard error (None: it is exact), and the KL in nats. By a mean that dips by chance nothing is stopped. `audits` so far, [n] each: the
    log-odds stated of that very pair, the KL of the policy that answered, and 1 where its answer was preferred to the reference's, 0, or
    one half for a tie. `noise`: the share of judgements that slip, as agreement tells it."""
    claim, far = np.asarray(stated, dtype=np.float64), np.asarray(kl, dtype=np.float64)
    error = np.zeros_like(claim) if stated_se is None else np.asarray(stated_se, dtype=np.float64)
    pair, moved, won = (np.asarray(column, dtype=np.float64) for column in audits)
    if not claim.size or not claim.shape == far.shape == error.shape or not pair.shape == moved.shape == won.shape:
        raise DataError(
            f"each checkpoint needs its stated log-odds and its KL, each audit its log-odds, KL and outcome, but there are "
            f"{claim.shape}, {far.shape}, {pair.shape}, {moved.shape} and {won.shape}"
        )
    if not 0 <= noise < 0.5:
        raise DataError(f"the share of judgements that slip must lie from 0 to under one half, got {noise:g}")
    cost_G = costs()
    win_GN = noise + (1 - 2 * noise) / (1 + np.exp(np.clip(cost_G[:, None] * moved - pair, -500, 500)))
    win_GN = np.clip(win_GN, 1e-12, 1 - 1e-12)
    log_G = (won * np.log(win_GN) + (1 - won) * np.log(1 - win_GN)).sum(1)
    belief_G = np.exp(log_G - log_G.max())
    belief_G /= belief_G.sum()
    cost = float(belief_G @ cost_G)
    left_GC = claim - cost_G[:, None] * far
    past = float(belief_G @ sure_of_an_earlier(left_GC, error))
    most, least = (float(cost_G[np.searchsorted(belief_G.cumsum(), share).clip(0, STEPS)]) for share in (0.975, 0.025))
    mean_C = claim - cost * far
    below_C, above_C = (np.hypot((bound - cost) * far, SPREAD * error) for bound in (most, least))
    left = [Left(*row) for row in zip(mean_C, mean_C - below_C, mean_C + above_C, strict=True)]
    return Audited(cost, int(mean_C.argmax()), past, left)


def sure_of_an_earlier(left_GC: Floats, error_C: Floats) -> Floats:
    """[G]: the probability that the best of the earlier checkpoints is better than the newest, each normal about what is left of it."""
    if len(error_C) == 1:
        return np.zeros(len(left_GC))
    spread = np.hypot(error_C[:-1], error_C[-1]).clip(1e-9)
    z_GC = (left_GC[:, :-1] - left_GC[:, -1:]) / spread / math.sqrt(2)
    found: Floats = 0.5 + 0.5 * np.vectorize(math.erf)(z_GC).max(1)
    return found


def fit_scale_and_noise(gaps: ArrayLike) -> tuple[float, float]:
    """(scale, noise) under which noise + (1 − 2 noise) σ(scale · gap) tells best that the preferred answer of each pair was preferred:
    `gaps` [n] are the score of the preferred less that of the other. The scale turns a reward's points into log-odds, and the
    noise is the share of judgements that slip whatever the gap. By trying both on a grid, the scale in inverse deviations of the gaps."""
    gap = np.asarray(gaps, dtype=np.float64)
    if not gap.size or not np.isfinite(gap).all() or not gap.any():
        raise DataError(
            f"to calibrate a reward takes pairs with scores that are finite and differ, got {gap.size} pairs"
        )
    size = float(np.sqrt(np.square(gap).mean()))
    scale_S, noise_N = np.geomspace(0.02, 20, 80) / size, np.linspace(0, 0.45, 46)
    win_SP = 1 / (1 + np.exp(-np.clip(scale_S[:, None] * gap, -500, 500)))
    log_SN = np.stack([np.log(np.clip(n + (1 - 2 * n) * win_SP, 1e-12, 1)).sum(1) for n in noise_N], axis=1)
    best = np.unravel_index(int(log_SN.argmax()), log_SN.shape)
    return float(scale_S[best[0]]), float(noise_N[best[1]])


def costs() -> Floats:
    return np.concatenate([[0.0], np.geomspace(LEAST, MOST, STEPS)])


def relative_slope(training: Sequence[float], held_out: Sequence[float], last: int = 3) -> float:
    """How much a held-out reward model's score rose for each point that the training one's rose, over the last checkpoints; 1 is as much,
    and nan where the training one's did not rise. It sees what the training labels happened to say, and no fault that both models share."""
    if len(training) != len(held_out) or last < 1:
        raise DataError(f"each checkpoint needs both scores, but there are {len(training)} and {len(held_out)}")
    if len(training) <= last or (rose := training[-1] - training[-1 - last]) <= 0:
        return float("nan")
    return (held_out[-1] - held_out[-1 - last]) / rose
