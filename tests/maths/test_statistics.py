"""Statistics against hand-computed values, against brute force, and by the coverage of their intervals."""

import importlib.util
import math
from itertools import combinations
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from bridle.core.errors import DataError
from bridle.maths.statistics import (
    accuracy,
    best_of_n_kl,
    confidence_sequence,
    ece,
    expected_best_of_n,
    fit_temperature,
    mean_and_se,
    mean_interval,
    pass_at_k,
    proportion,
    student_quantile,
    wilson_interval,
    win_rate,
)


@pytest.fixture
def coverage() -> ModuleType:
    """The script as a module: `experiments/` is no package."""
    path = Path(__file__).parents[2] / "experiments" / "coverage.py"
    spec = importlib.util.spec_from_file_location("experiments_coverage", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mean_and_se_by_hand() -> None:
    mean, se = mean_and_se([1.0, 2.0, 3.0, 6.0])
    assert mean == 3.0
    assert se == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3 / 4))
    assert math.isnan(mean_and_se([5.0])[1])


# ------------------------------------------------------------------------------------------------ means, by group


def test_values_that_share_a_group_have_the_standard_error_of_groups() -> None:
    values, names = [1.0, 3.0, 2.0, 2.0, 9.0, 7.0], ["a", "a", "b", "b", "c", "c"]
    assert mean_and_se(values, names) == pytest.approx(mean_and_se([2.0, 2.0, 8.0]))
    assert mean_and_se(values, range(6)) == pytest.approx(mean_and_se(values))
    mixed = [4, 1, 3, 0, 5, 2]
    assert mean_and_se([values[i] for i in mixed], [names[i] for i in mixed]) == pytest.approx(
        mean_and_se(values, names)
    )
    assert mean_and_se([4.0, 6.0], ["a", "a"])[0] == 5.0 and math.isnan(mean_and_se([4.0, 6.0], ["a", "a"])[1])


def test_groups_of_different_sizes_by_hand() -> None:
    mean, se = mean_and_se([0.0, 3.0, 3.0], ["a", "b", "b"])
    assert (mean, se) == (2.0, pytest.approx(math.sqrt(2 / 1 * ((-2) ** 2 + (1 + 1) ** 2)) / 3))


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (19, 2.0930), (1000, 1.9623)]
)
def test_the_quantiles_of_student(degrees: int, quantile: float) -> None:
    assert student_quantile(0.95, degrees) == pytest.approx(quantile, abs=1e-4)


def test_an_interval_of_a_mean_is_as_wide_as_few_groups_make_it() -> None:
    names = [0, 0, 1, 1, 2, 2]
    mean, se = mean_and_se([1.0, 3.0, 2.0, 2.0, 9.0, 7.0], names)
    low, high = mean_interval([1.0, 3.0, 2.0, 2.0, 9.0, 7.0], names)
    assert (low, high) == pytest.approx((mean - 4.3027 * se, mean + 4.3027 * se), abs=1e-3)
    assert mean_interval([2.0, 2.0]) == (2.0, 2.0) and math.isnan(mean_interval([2.0])[0])


@pytest.mark.parametrize("each", ["4 each", "1 to 8"])
def test_a_mean_is_covered_by_prompt_and_not_by_answer(coverage: ModuleType, each: str) -> None:
    by_answer, by_prompt, student = coverage.mean_coverage(16, each, 400)
    assert by_answer < 0.72 and by_prompt > 0.89 and 0.92 <= student <= 0.98


# ------------------------------------------------------------------------------------------------ shares


def test_win_rate_counts_ties_as_one_half() -> None:
    result = win_rate([1.0, 2.0, 3.0, 0.0], [0.0, 2.0 + 1e-9, 4.0, -1.0])
    assert (result.rate, result.n) == (0.625, 4)  # win, tie, loss, win
    assert result.low < result.rate < result.high
    swapped = win_rate([0.0, 2.0 + 1e-9, 4.0, -1.0], [1.0, 2.0, 3.0, 0.0])
    assert (swapped.rate, swapped.low, swapped.high) == pytest.approx((0.375, 1 - result.high, 1 - result.low))


def test_a_few_wins_and_no_loss_prove_little() -> None:
    five, none, one = win_rate([1.0] * 5, [0.0] * 5), win_rate([0.0] * 5, [1.0] * 5), win_rate([1.0], [0.0])
    assert (five.rate, five.high) == (1.0, 1.0) and five.low == pytest.approx(wilson_interval(4, 4)[0])
    assert (none.low, none.high) == (0.0, pytest.approx(1 - five.low))
    assert (one.rate, one.low, one.high) == (1.0, 0.0, 1.0)
    assert win_rate([0.0] * 5, [0.0] * 5).low < 0.25, "ties alone"


def test_a_share_counts_groups_and_not_what_they_hold() -> None:
    plain, names = [1.0, 1.0, 0.0, 1.0, 0.0], [0, 1, 2, 3, 4]
    one, four = proportion(plain), proportion(plain * 4, names * 4)
    assert (four.rate, four.low, four.high) == pytest.approx((one.rate, one.low, one.high)) and (one.n, four.n) == (
        5,
        20,
    )
    assert proportion(plain * 4).high - proportion(plain * 4).low < 0.7 * (four.high - four.low)
    skewed = proportion([1.0] * 16 + [0.0] * 4, [0] * 16 + [1, 2, 3, 4])  # one prompt speaks for most
    assert skewed.low < 0.2 < 0.98 < skewed.high
    lost_by_one = proportion([0.0] * 10 + [1.0] * 90, [0] * 10 + [*range(1, 91)])
    assert lost_by_one.low < 0.68, "all losses are one prompt's: as sure as ten prompts make it"


def test_a_plain_share_is_covered_at_every_p(coverage: ModuleType) -> None:
    ps = np.arange(0.05, 0.9501, 0.001)
    assert coverage.exact_coverage(coverage.ours, 5, ps).mean() >= 0.93
    assert min(coverage.exact_coverage(coverage.ours, n, ps).min() for n in (20, 21, 28, 35, 36, 38, 50)) >= 0.92
    assert coverage.exact_coverage(wilson_interval, 20, ps).min() < 0.92, "plain Wilson"
    assert coverage.exact_coverage(coverage.bootstrap, 20, ps).mean() < 0.91, "what was before"


@pytest.mark.parametrize("kind", ["half of them ties", "4 each, half alike", "1 to 8, all alike"])
def test_ties_and_comparisons_that_share_a_prompt_are_covered(
    coverage: ModuleType, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage, "PS", np.array([0.05, 0.2, 0.5, 0.9]))
    assert coverage.share_coverage(kind, 5, 250).mean() >= 0.93
    assert coverage.share_coverage(kind, 20, 400).min() >= 0.92


def test_wilson_by_hand_and_at_the_edges() -> None:
    assert wilson_interval(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert wilson_interval(10, 10) == pytest.approx((0.7224672, 1.0), abs=1e-6)


def test_accuracy() -> None:
    result = accuracy([True, True, False, True])
    assert (result.rate, result.n) == (0.75, 4)
    assert (result.low, result.high) == wilson_interval(0.75 * 3, 3), "an effective number of three"


def test_ece_by_hand() -> None:
    # two bins: {.1 (0), .3 (1), .5 (0)} mean .3 against 1/3; {.8 (1)} against 1; .5 is a right edge
    assert ece([0.1, 0.3, 0.5, 0.8], [0, 1, 0, 1], bins=2) == pytest.approx(3 / 4 * (1 / 3 - 0.3) + 1 / 4 * 0.2)
    assert ece([0.0, 1.0], [0, 1]) == 0.0
    assert ece([0.0, 1.0], [1, 0]) == 1.0
    assert ece([0.7, 0.65], [1, 0], bins=10) == pytest.approx(abs(0.5 - 0.675))  # .7 closes its bin


def test_ece_of_soft_outcomes_and_weights() -> None:
    chances = np.linspace(0, 1, 11)
    assert ece(chances, chances) == pytest.approx(0.0), "whoever is as sure as the truth is calibrated"
    assert ece([0.6, 0.6], [0.5, 0.9], [3, 1]) == pytest.approx(0.0)
    probabilities, outcomes, weights = [0.2, 0.25, 0.9], [0, 1, 1], [1, 3, 2]
    repeated = [np.repeat(values, weights) for values in (probabilities, outcomes)]
    assert ece(probabilities, outcomes, weights) == pytest.approx(ece(*repeated)) != ece(probabilities, outcomes)


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
        (lambda: ece([0.2], [-1]), "outcomes range from -1"),
        (lambda: ece([0.2, 0.3], [1, 1], [1]), "probabilities has 2 entries and weights has 1"),
        (lambda: ece([0.2, 0.3], [1, 1], [0, 0]), "not all 0"),
        (lambda: fit_temperature([0.2, 0.3], [2, -1]), "weights must be 0 or more"),
        (lambda: expected_best_of_n([[1.0, 2.0]], 3), "n = 3"),
        (lambda: expected_best_of_n([[1.0, math.inf]], 1), "scores_PN holds 1 of 2"),
        (lambda: mean_interval([1.0], level=95), "0.95 is usual"),
        (lambda: proportion([0.5, 1.2]), "0.5 to 1.2"),
        (lambda: mean_and_se([1.0, 2.0], ["a"]), "1 entries and values has 2"),
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


def test_the_bounds_of_a_temperature_count_weights_as_repeats_too() -> None:
    assert fit_temperature([1.0, 100.0], [1e9, 1.0]) == pytest.approx(0.01, rel=1e-2), "the second hardly happened"


def test_a_temperature_stays_within_bounds_where_there_is_no_best() -> None:
    assert fit_temperature([1.0, 1.0]) == pytest.approx(0.01, rel=1e-3), "all right"
    assert fit_temperature([-1.0, -1.0]) == pytest.approx(100.0, rel=1e-3), "all wrong"
    assert fit_temperature([0.0, 0.0]) == 1.0
    with pytest.raises(DataError, match="finite"):
        fit_temperature([1.0, float("nan")])


# ---------------------------------------------------------------------------------------------- looked at again and again


def test_a_confidence_sequence_by_hand() -> None:
    """After one win M(p) = B(2, 1) / p = 1 / 2p, which is under 20 from 1/40 on; nothing is known before."""
    assert confidence_sequence(1, 1) == (pytest.approx(1 / 40), 1.0)
    assert confidence_sequence(0, 1) == (0.0, pytest.approx(39 / 40))
    assert confidence_sequence(0, 0) == (0.0, 1.0)
    low, high = confidence_sequence(70, 100)
    assert confidence_sequence(30, 100) == (pytest.approx(1 - high), pytest.approx(1 - low))
    narrow, wide = wilson_interval(70, 100), confidence_sequence(70, 100, level=0.99)
    assert wide[0] < low < narrow[0] < 0.7 < narrow[1] < high < wide[1]
    for bad in ((3, 2), (-1, 2), (0, -1)):
        with pytest.raises(DataError, match="a share needs"):
            confidence_sequence(*bad)


@pytest.mark.parametrize("p", [0.03, 0.5, 0.8])
@pytest.mark.parametrize("ties", [0.0, 0.5])
def test_it_holds_at_every_look_where_one_look_does_not(p: float, ties: float) -> None:
    """1,000 streams of 600, looked at after each value, half of the values ties: a miss at any look is a miss."""
    rng = np.random.default_rng(0)
    tie = ties * min(p, 1 - p)
    uniform = rng.random((600, 1000))
    total = np.cumsum(np.where(uniform < p - tie, 1.0, np.where(uniform < p + tie, 0.5, 0.0)), axis=0)
    n = np.arange(1, 601)
    lgamma = np.array([math.lgamma(1 + k / 2) for k in range(1203)])
    at = np.rint(2 * total).astype(int)
    mixture = lgamma[at] + lgamma[2 * n[:, None] - at] - lgamma[2 * (n[:, None] + 1)]
    log_m = mixture - total * math.log(p) - (n[:, None] - total) * math.log(1 - p)
    missed = log_m >= math.log(20)
    for look, stream in ((5, 0), (99, 1), (599, 2), (300, 3)):  # what was just computed is the function
        low, high = confidence_sequence(total[look, stream], int(n[look]))
        assert (low <= p <= high) == (not missed[look, stream])
    assert missed.any(0).mean() <= 0.05
    z = (total - n[:, None] * p) / np.sqrt(n[:, None] * p * (1 - p))
    if not ties:
        assert (np.abs(z[20:]) > 1.96).any(0).mean() > 0.2


@pytest.mark.parametrize(
    ("right", "total", "k"), [(0, 5, 3), (1, 5, 1), (1, 5, 3), (3, 6, 2), (4, 6, 3), (5, 5, 2), (2, 4, 4)]
)
def test_pass_at_k_is_that_of_all_choices_of_k(right: int, total: int, k: int) -> None:
    """Chen's formula, by counting: and not 1 − (1 − c/N)^k, which is too small."""
    row = [1.0] * right + [0.0] * (total - right)
    counted = np.mean([max(chosen) for chosen in combinations(row, k)])
    assert pass_at_k([row], k)[0] == pytest.approx(counted)
    assert pass_at_k([row], k)[0] == pytest.approx(1 - math.comb(total - right, k) / math.comb(total, k))


def test_pass_at_k_wants_right_or_wrong() -> None:
    with pytest.raises(DataError):
        pass_at_k([[0.5, 1.0]], 1)
    with pytest.raises(DataError):
        pass_at_k([[0.0, 1.0]], 3)
