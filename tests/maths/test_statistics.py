"""Statistics against hand-computed values, against brute force, and by the coverage of their intervals."""

import math
from itertools import combinations

import numpy as np
import pytest

from bridle.core.errors import DataError
from bridle.maths.statistics import (
    accuracy,
    best_of_n_kl,
    bootstrap_interval,
    ece,
    expected_best_of_n,
    fit_temperature,
    mean_and_se,
    wilson_interval,
    win_rate,
)


def test_mean_and_se_by_hand() -> None:
    mean, se = mean_and_se([1.0, 2.0, 3.0, 6.0])
    assert mean == 3.0
    assert se == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3 / 4))
    assert math.isnan(mean_and_se([5.0])[1])


def test_win_rate_counts_ties_as_one_half() -> None:
    result = win_rate([1.0, 2.0, 3.0, 0.0], [0.0, 2.0 + 1e-9, 4.0, -1.0])
    assert (result.rate, result.n) == (0.625, 4)  # win, tie, loss, win
    assert result.low < result.rate < result.high
    swapped = win_rate([0.0, 2.0 + 1e-9, 4.0, -1.0], [1.0, 2.0, 3.0, 0.0])
    assert swapped.rate == 1 - result.rate


def test_bootstrap_agrees_with_the_normal_interval_and_repeats_itself() -> None:
    values = np.random.default_rng(1).normal(size=400)
    mean, se = mean_and_se(values)
    low, high = bootstrap_interval(values, resamples=4000)
    assert (low, high) == pytest.approx((mean - 1.96 * se, mean + 1.96 * se), abs=0.1 * se)
    assert bootstrap_interval(values, resamples=4000) == (low, high)
    assert bootstrap_interval(values, resamples=4000, seed=1) != (low, high)
    assert bootstrap_interval([2.0, 2.0]) == (2.0, 2.0)


def test_bootstrap_in_blocks_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(50.0)
    whole = bootstrap_interval(values)
    monkeypatch.setattr("bridle.maths.statistics.BLOCK", 50 * 7)
    assert bootstrap_interval(values) == whole


@pytest.mark.parametrize("truth", [0.5, 0.62])
def test_win_rate_interval_covers_the_truth(truth: float) -> None:
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(300):
        wins = generator.random(120) < truth
        result = win_rate(wins.astype(float), 1.0 - wins, resamples=400)
        covered += result.low <= truth <= result.high
    assert 0.91 <= covered / 300 <= 0.98


def test_wilson_by_hand_and_at_the_edges() -> None:
    assert wilson_interval(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert wilson_interval(10, 10) == pytest.approx((0.7224672, 1.0), abs=1e-6)


def test_wilson_covers_a_rare_event_where_the_plain_interval_fails() -> None:
    counts = np.random.default_rng(4).binomial(40, 0.05, size=2000)
    covered = [low <= 0.05 <= high for low, high in (wilson_interval(int(k), 40) for k in counts)]
    plain = [abs(k / 40 - 0.05) <= 1.96 * math.sqrt(k / 40 * (1 - k / 40) / 40) for k in counts]
    assert np.mean(covered) >= 0.93 > np.mean(plain)


def test_accuracy() -> None:
    result = accuracy([True, True, False, True])
    assert (result.rate, result.n) == (0.75, 4)
    assert (result.low, result.high) == wilson_interval(3, 4)


def test_ece_by_hand() -> None:
    # two bins: {.1 (0), .3 (1), .5 (0)} mean .3 against 1/3; {.8 (1)} against 1; .5 is a right edge
    assert ece([0.1, 0.3, 0.5, 0.8], [0, 1, 0, 1], bins=2) == pytest.approx(3 / 4 * (1 / 3 - 0.3) + 1 / 4 * 0.2)
    assert ece([0.0, 1.0], [0, 1]) == 0.0
    assert ece([0.0, 1.0], [1, 0]) == 1.0
    assert ece([0.7, 0.65], [1, 0], bins=10) == pytest.approx(abs(0.5 - 0.675))  # .7 closes its bin


def test_ece_of_calibrated_predictions_is_small() -> None:
    generator = np.random.default_rng(5)
    chances = generator.random(20_000)
    assert ece(chances, generator.random(20_000) < chances) < 0.02
    assert ece(chances, generator.random(20_000) < chances**2) > 0.1


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_equals_the_mean_over_all_subsets(n: int) -> None:
    generator = np.random.default_rng(6)
    scores, gold = generator.normal(size=(2, 3, 5))
    for measured in (scores, gold):
        brute = [
            np.mean([measured[p, max(some, key=lambda i: scores[p, i])] for some in combinations(range(5), n)])
            for p in range(3)
        ]
        assert expected_best_of_n(scores, n, measured) == pytest.approx(brute)
    assert expected_best_of_n(scores, n) == pytest.approx(expected_best_of_n(scores, n, scores))


def test_best_of_n_kl_bound() -> None:
    assert best_of_n_kl(1) == 0.0
    assert [best_of_n_kl(n) for n in (4, 15, 64)] == pytest.approx([0.636, 1.775, 3.174], abs=1e-3)


def test_best_of_n_kl_is_exact_for_many_equally_likely_answers_without_ties() -> None:
    cells, n = 20_000, 4
    ranks = np.arange(1, cells + 1) / cells
    chosen = ranks**n - (ranks - 1 / cells) ** n  # chance that the best of n lies in a cell; the policy has 1/cells
    assert float((chosen * np.log(chosen * cells)).sum()) == pytest.approx(best_of_n_kl(n), abs=1e-3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean_and_se([]), "at least one number"),
        (lambda: mean_and_se([1.0, math.nan]), "1 of 2 entries"),
        (lambda: win_rate([1.0], [1.0, 2.0]), "1 entries and scores_b has 2"),
        (lambda: wilson_interval(5, 4), "5 of 4"),
        (lambda: accuracy([0.0, 0.5]), "only 0 and 1"),
        (lambda: ece([1.2], [1]), "in 0 to 1"),
        (lambda: expected_best_of_n([[1.0, 2.0]], 3), "n = 3"),
        (lambda: expected_best_of_n([[1.0, math.inf]], 1), "scores_PN holds 1 of 2"),
        (lambda: bootstrap_interval([1.0], level=95), "0.95 is usual"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=words):
        call()


# ------------------------------------------------------------------------------------------------ temperature


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_the_temperature_that_made_the_outcomes_is_found(true: float) -> None:
    rng = np.random.default_rng(0)
    gap = rng.normal(0, 2 * true, 20_000)
    won = rng.random(20_000) < 1 / (1 + np.exp(-gap / true))
    assert fit_temperature(np.where(won, gap, -gap)) == pytest.approx(true, rel=0.05)


def test_a_temperature_is_the_minimum_and_weights_count_as_repeats() -> None:
    gaps, weights = np.array([2.0, 1.0, -1.5, 0.3]), np.array([3.0, 1.0, 2.0, 1.0])
    found = fit_temperature(gaps, weights)
    assert found == pytest.approx(fit_temperature(np.repeat(gaps, weights.astype(int))), rel=1e-5)

    def loss(t: float) -> float:
        return float((weights * np.log1p(np.exp(-gaps / t))).sum())

    assert loss(found) < min(loss(found * 1.01), loss(found / 1.01))


def test_a_temperature_stays_within_bounds_where_there_is_no_best() -> None:
    assert fit_temperature([1.0, 1.0]) == pytest.approx(0.01, rel=1e-3), "all right"
    assert fit_temperature([-1.0, -1.0]) == pytest.approx(100.0, rel=1e-3), "all wrong"
    assert fit_temperature([0.0, 0.0]) == 1.0
    with pytest.raises(DataError, match="finite"):
        fit_temperature([1.0, float("nan")])
