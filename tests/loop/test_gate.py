"""The gate: what is no better passes hardly ever, however often one looks; what is better passes; and nothing passes out of bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bridle.core.errors import DataError
from bridle.loop.gate import Bound, judge_candidate, spent_on
from bridle.maths.statistics import evidence_above_half

LOOPS, CANDIDATES, MOST = 1000, 4, 400


def test_evidence_by_hand() -> None:
    bets = 0.5 + (np.arange(64) + 0.5) / 128
    assert evidence_above_half(0, 0) == 0
    assert evidence_above_half(2, 3) == pytest.approx(math.log(np.mean((2 * bets) ** 2 * (2 - 2 * bets))))
    assert evidence_above_half([1.5], [3]).item() < 0, "one half of the values is no sign of more"
    for total, n in ((-1, 3), (4, 3), (math.nan, 3), (1, math.inf)):
        with pytest.raises(DataError, match="0 <= total <= n"):
            evidence_above_half(total, n)


@pytest.mark.parametrize("ties", [0.0, pytest.param(0.4, marks=pytest.mark.slow)])  # a tie moves the evidence less
def test_a_against_a_is_promoted_in_at_most_one_loop_of_twenty(ties: float) -> None:
    """A loop tries four candidates that are no better, and looks after every comparison."""
    rng, passed, sent_back = np.random.default_rng(int(10 * ties)), 0, 0
    for _ in range(LOOPS):
        decisions = []
        for number in range(1, CANDIDATES + 1):
            won = np.where(rng.random(MOST) < ties, 0.5, rng.random(MOST) < 0.5)
            decisions.append(judge_candidate(won, alpha=spent_on(number), most=MOST).decision)
        passed += "better" in decisions
        sent_back += "worse" in decisions
    assert passed <= 0.05 * LOOPS and sent_back <= 0.05 * LOOPS


def test_what_is_better_passes_and_what_is_worse_is_sent_back_early() -> None:
    rng = np.random.default_rng(1)
    for rate, wanted in ((0.65, "better"), (0.35, "worse")):
        found = [judge_candidate(rng.random(MOST) < rate, alpha=0.05, most=MOST) for _ in range(200)]
        assert np.mean([one.decision == wanted for one in found]) > 0.95
        assert np.median([one.n for one in found]) < 120
        assert all(one.low <= one.rate <= one.high for one in found)


def test_it_is_decided_at_the_first_look_and_later_comparisons_change_nothing() -> None:
    first = judge_candidate([1.0] * 30, alpha=0.05, most=500)
    assert first.decision == "better" and first.n < 10
    assert judge_candidate([1.0] * 30 + [0.0] * 400, alpha=0.05, most=500) == first
    assert judge_candidate([0.0] * 400, alpha=0.05, most=500).decision == "worse"


def test_not_shown_is_a_verdict_of_its_own() -> None:
    even = [1.0, 0.0] * 50
    assert judge_candidate(even, alpha=0.05, most=100).decision == "not_better"
    assert judge_candidate(even, alpha=0.05, most=101).decision == "undecided"
    assert judge_candidate([], alpha=0.05, most=10).decision == "undecided"
    assert "not better, as far as it was asked: won 0.500 of 100" in str(judge_candidate(even, alpha=0.05, most=100))


def test_out_of_bounds_whatever_it_won() -> None:
    bounds = [
        Bound("refuses_benign", 0.4, at_most=0.1),
        Bound("length", 1.0, at_most=1.5),
        Bound("kl", math.nan, at_most=9),
    ]
    found = judge_candidate([1.0] * 50, alpha=0.05, most=50, bounds=bounds)
    assert found.decision == "out_of_bounds" and len(found.broken) == 2
    assert "refuses_benign 0.4, where at most 0.1 is asked" in str(found)


def test_a_level_is_spent_over_all_candidates() -> None:
    assert sum(spent_on(number) for number in range(1, 10_000)) == pytest.approx(0.05, rel=1e-3)
    assert spent_on(1) == 0.025
    for bad in (0, -1):
        with pytest.raises(DataError, match="count from 1"):
            spent_on(bad)


@pytest.mark.parametrize("wins", [[2.0], [-1.0], [math.nan], [[1.0]]])
def test_what_is_no_comparison_is_refused(wins: list[float]) -> None:
    with pytest.raises(DataError, match="leave out what could not be judged"):
        judge_candidate(wins, alpha=0.05, most=10)
