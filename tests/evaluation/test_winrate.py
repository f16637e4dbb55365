"""Win rates: ties counted, length held equal, by category."""

from __future__ import annotations

import random

import pytest

from bridle.evaluation.winrate import length_controlled, win_rate_of


def test_ties_count_half_and_every_category_with_enough_rows_has_a_line() -> None:
    verdicts = [1.0] * 6 + [0.5] * 2 + [0.0] * 2 + [1.0] * 3
    categories = ["help"] * 6 + ["harm"] * 4 + ["rare"] * 3
    found = win_rate_of(verdicts, [10] * 13, [10] * 13, categories, [str(n) for n in range(13)])
    assert found["rate"] == pytest.approx(10 / 13) and found["ties"] == 2 and found["n"] == 13
    assert found["low"] < found["rate"] < found["high"]
    assert set(found["by_category"]) == {"help"} and found["by_category"]["help"]["rate"] == 1
    assert found["length_controlled"] is None  # all are of one length
    assert win_rate_of(verdicts, [10] * 13, [9] * 13, ["help"] * 13, [str(n) for n in range(13)])["by_category"] == {}


def test_a_win_rate_that_is_all_length_vanishes_under_control_and_one_that_is_not_stays() -> None:
    rng = random.Random(1)
    lengths = [(rng.randint(50, 150), rng.randint(20, 120)) for _ in range(3000)]
    by_length = [float(a - b + rng.gauss(0, 20) > 0) for a, b in lengths]
    assert sum(by_length) / 3000 > 0.7
    controlled = length_controlled(by_length, *zip(*lengths, strict=True))
    assert controlled is not None and abs(controlled["value"] - 0.5) < 0.05
    by_merit = [float(rng.random() < 0.7) for _ in lengths]
    controlled = length_controlled(by_merit, *zip(*lengths, strict=True))
    assert (
        controlled is not None
        and abs(controlled["value"] - 0.7) < 0.06
        and controlled["low"] < 0.7 < controlled["high"]
    )
    assert length_controlled([1.0], [3], [4]) is None and length_controlled([1.0, 0.0], [3, 3], [3, 3]) is None
