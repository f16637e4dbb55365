"""The curve of over-optimisation gives back the numbers it was drawn by, turns where it must, and listens to what is known best."""

import math

import numpy as np
import pytest

from bridle.core.errors import DataError
from bridle.guard.overoptimisation import CurveForm, GainCurve, fit_gain_curve

KL = np.array([0.0, 0.3, 1.0, 2.5, 6.0, 14.0])
ONES = np.ones(len(KL))


def test_the_two_forms_by_hand() -> None:
    assert GainCurve(2.0, 1.0, "rl").gain([0.0, 1.0, math.e]) == pytest.approx([0.0, 2.0, math.e])
    assert GainCurve(2.0, 1.0, "best-of-n").gain([0.0, 0.5, 2.0]) == pytest.approx([0.0, 0.75, 0.0])


@pytest.mark.parametrize(("form", "top"), [("rl", math.exp(1.4 / 0.8 - 1)), ("best-of-n", 1.4 / 1.6)])
def test_a_made_curve_is_found_again_and_its_top(form: CurveForm, top: float) -> None:
    made = GainCurve(1.4, 0.8, form)
    found = fit_gain_curve(KL, made.gain(np.sqrt(KL)), ONES, form)
    assert found is not None and found[:2] == pytest.approx(made[:2])
    assert made.peak == pytest.approx(top) and made.peak is not None
    beside = made.gain(np.array([made.peak - 0.01, made.peak, made.peak + 0.01]))
    assert beside.argmax() == 1


@pytest.mark.parametrize("form", ["rl", "best-of-n"])
def test_noise_moves_it_as_little_as_it_must(form: CurveForm) -> None:
    made, rng = GainCurve(1.4, 0.8, form), np.random.default_rng(0)
    errors = np.full(len(KL), 0.1)
    found = [
        fit_gain_curve(KL, made.gain(np.sqrt(KL)) + 0.1 * rng.normal(size=len(KL)), errors, form) for _ in range(400)
    ]
    means = np.mean([one[:2] for one in found if one is not None], axis=0)
    assert means == pytest.approx(made[:2], abs=0.02)


def test_what_is_known_better_weighs_more() -> None:
    """By the square of the error: a point of a tenth of the error counts as a hundred."""
    kl, gain = np.array([1.0, 1.0, 4.0, 4.0]), np.array([1.0, 3.0, 1.0, 1.0])
    found = fit_gain_curve(kl, gain, np.array([0.1, 1.0, 1.0, 1.0]))
    assert found is not None and found.a == pytest.approx((100 * 1.0 + 3.0) / 101)


def test_where_points_are_missing_there_is_no_curve_and_no_top_where_it_climbs() -> None:
    made = GainCurve(1.0, 0.5, "rl")
    for kl in ([0.0, -0.1, 1.0, 2.0], [2.0, 2.0, 2.0]):
        assert fit_gain_curve(kl, made.gain(np.sqrt(np.maximum(kl, 0))), np.ones(len(kl))) is None
    assert fit_gain_curve([-0.1, 0.5, 1.0, 2.0], [9.0, 0.5, 1.0, 1.5], np.ones(4)) == fit_gain_curve(
        [0.5, 1.0, 2.0], [0.5, 1.0, 1.5], np.ones(3)
    )
    assert GainCurve(1.0, 0.0, "rl").peak is None and GainCurve(1.0, -0.5, "best-of-n").peak is None
    assert GainCurve(-1.0, 0.5, "best-of-n").peak is None, "it falls from the start"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (([1.0, 2.0], [1.0], [1.0, 1.0]), "its KL, gain and error"),
        (([1.0, 2.0, 3.0], [1.0, math.nan, 1.0], [1.0] * 3), "finite numbers"),
        (([1.0, 2.0, 3.0], [1.0] * 3, [1.0, 0.0, 1.0]), "errors above 0"),
    ],
)
def test_what_is_no_point_is_refused(columns: tuple[list[float], ...], words: str) -> None:
    kl, gain, error = columns
    with pytest.raises(DataError, match=words):
        fit_gain_curve(kl, gain, error)
