"""Who should pause: made-up sittings, of steady people and of people who tire."""

import math
import random
from collections.abc import Sequence

import pytest
from scipy.stats import fisher_exact, mannwhitneyu

from bridle.feedback.quality.tiredness import FEWEST, Moment, fewer_right_p, is_tired, rank_sum_z


def sitting(
    rng: random.Random, count: int, seconds: Sequence[float], right: Sequence[float], gold: float = 0.15
) -> list[Moment]:
    """Seconds and the chance to be right, at its beginning and its end."""
    moments = list[Moment]()
    for place in range(count):
        share = place / count
        usual = seconds[0] + (seconds[1] - seconds[0]) * share
        chance = right[0] + (right[1] - right[0]) * share
        known = (rng.random() < chance) if rng.random() < gold else None
        moments.append((usual * rng.lognormvariate(0, 0.5), known))
    return moments


@pytest.mark.parametrize(
    ("seconds", "right"),
    [
        ((20, 20), (0.85, 0.85)),  # steady
        ((20, 20), (0.5, 0.5)),  # a coin, all the time
        ((30, 12), (0.7, 0.9)),  # learning
        ((30, 12), (0.9, 0.9)),
        ((12, 30), (0.9, 0.9)),  # slower and as careful
        ((20, 20), (0.95, 0.4)),  # worse and as fast: for the owner to see
    ],
)
def test_steady_people_are_left_alone(seconds: Sequence[float], right: Sequence[float]) -> None:
    """Looked at every ten answers through a sitting of 200, as the page does."""
    rng, disturbed = random.Random(7), 0
    for _ in range(25):
        moments = sitting(rng, 200, seconds, right)
        disturbed += any(is_tired(moments[:seen]) for seen in range(10, 201, 10))
    assert disturbed <= 3


def test_who_tires_is_noticed() -> None:
    rng = random.Random(7)
    noticed = 0
    for _ in range(25):
        moments = sitting(rng, 200, (12, 30), (1.0, 0.3))
        noticed += any(is_tired(moments[:seen]) for seen in range(10, 201, 10))
    assert noticed >= 18


@pytest.mark.parametrize(
    "moments",
    [
        [],
        [(5.0, True)] * (FEWEST // 2) + [(50.0, False)] * (FEWEST // 2 - 1),  # too few
        [(5.0, None)] * 50 + [(50.0, None)] * 50,  # no gold
        [(5.0, True)] * 50 + [(50.0, True)] * 50,  # as right
        [(None, True)] * 50 + [(None, False)] * 50,  # nobody knows how fast
        [(5.0, True)] * 50 + [(5.0, False)] * 50,  # as fast
    ],
)
def test_nothing_is_said_without_evidence_of_both(moments: list[Moment]) -> None:
    assert not is_tired(moments)
    assert is_tired([(5.0, True)] * 50 + [(50.0, False)] * 50)


def test_the_two_tests_are_the_known_ones() -> None:
    rng = random.Random(3)
    before, after = [rng.random() for _ in range(40)], [rng.random() + 0.2 for _ in range(30)]
    p = mannwhitneyu(after, before, alternative="greater", method="asymptotic", use_continuity=False).pvalue
    z = rank_sum_z(before, after)
    assert p == pytest.approx(0.5 * math.erfc(z / 2**0.5), rel=1e-9)
    for right in ((5, 2), (3, 3), (4, 0)):
        first, second = [True] * right[0] + [False] * (5 - right[0]), [True] * right[1] + [False] * (6 - right[1])
        table = [[right[1], 6 - right[1]], [right[0], 5 - right[0]]]
        assert fewer_right_p(first, second) == pytest.approx(fisher_exact(table, alternative="less").pvalue)
