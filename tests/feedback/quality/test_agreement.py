"""Alpha by Krippendorff's own example, by its definition over pairs of ratings, and by evalica; intervals; what is undefined."""

import itertools

import evalica
import numpy as np
import pandas as pd
import pytest

from bridle.feedback.quality.agreement import METRICS, measure_agreement

# Krippendorff 2011, "Computing Krippendorff's alpha-reliability", data E: four observers, twelve units.
EXAMPLE = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 ."""
PUBLISHED = {"nominal": 0.743, "ordinal": 0.815, "interval": 0.849}


def ratings(table: str) -> tuple[list[int], list[int]]:
    """Values and units of what is not missing."""
    cells = [(int(cell), unit) for row in table.split("\n")[1:] for unit, cell in enumerate(row.split()) if cell != "."]
    return [value for value, _ in cells], [unit for _, unit in cells]


def random_table(seed: int, observers: int = 5, units: int = 40) -> np.ndarray:
    """Ratings from 0 to 3 that agree more than by chance, a third of them missing (nan)."""
    rng = np.random.default_rng(seed)
    truth_U = rng.integers(0, 4, units)
    table = np.where(rng.random((observers, units)) < 0.5, truth_U, rng.integers(0, 4, (observers, units))).astype(
        float
    )
    table[rng.random(table.shape) < 0.33] = np.nan
    return table


def by_definition(table: np.ndarray, metric: str) -> float:
    """1 − observed / expected disagreement, over all pairs of ratings written out."""
    columns = [column[np.isfinite(column)] for column in table.T]
    columns = [column for column in columns if len(column) > 1]
    values = np.concatenate(columns)
    size_of = {value: int((values == value).sum()) for value in set(values)}

    def distance(a: float, b: float) -> float:
        if metric == "nominal":
            return float(a != b)
        if metric == "interval":
            return (a - b) ** 2
        low, high = sorted((a, b))
        within = sum(size for value, size in size_of.items() if low <= value <= high)
        return (within - (size_of[a] + size_of[b]) / 2) ** 2 if a != b else 0.0

    observed = sum(
        distance(a, b) / (len(column) - 1) for column in columns for a, b in itertools.permutations(column, 2)
    )
    expected = sum(distance(a, b) for a, b in itertools.permutations(values, 2)) / (len(values) - 1)
    return 1 - observed / expected


def measured(table: np.ndarray, resamples: int = 50):
    observer, unit = np.nonzero(np.isfinite(table))
    return measure_agreement(table[observer, unit], unit, resamples=resamples)


def test_the_published_example() -> None:
    found = measure_agreement(*ratings(EXAMPLE), resamples=50)
    assert {name: round(found[name].value or 0, 3) for name in METRICS} == PUBLISHED


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_alpha_by_its_definition_and_by_evalica(metric: str, seed: int) -> None:
    table = random_table(seed)
    value = measured(table)[metric].value
    assert value == pytest.approx(by_definition(table, metric), abs=1e-12)
    assert value == pytest.approx(evalica.alpha(pd.DataFrame(table), metric, solver="naive").alpha, abs=1e-9)


def test_raw_agreement_is_the_share_of_other_ratings_that_say_the_same() -> None:
    table = random_table(0)
    shares = [
        np.mean([b == a for j, b in enumerate(column) if j != i])
        for column in (column[np.isfinite(column)] for column in table.T)
        if len(column) > 1
        for i, a in enumerate(column)
    ]
    assert measured(table)["raw"].value == pytest.approx(np.mean(shares), abs=1e-12)


def test_intervals_are_those_of_items_drawn_with_replacement() -> None:
    table, rng = random_table(1, units=60), np.random.default_rng(0)
    found = measured(table, resamples=2000)
    for metric in ("nominal", "interval"):
        drawn = []
        for _ in range(400):
            chosen = rng.integers(0, 60, 60)
            resample = table[:, chosen]
            observer, unit = np.nonzero(np.isfinite(resample))
            drawn.append(measure_agreement(resample[observer, unit], unit, resamples=1)[metric].value)
        low, high = np.quantile(np.array(drawn, dtype=float), [0.025, 0.975])
        assert found[metric].low == pytest.approx(low, abs=0.04) and found[metric].high == pytest.approx(high, abs=0.04)


def test_units_of_one_item_are_drawn_together() -> None:
    values, units = [0, 0, 1, 1] * 30, np.repeat(np.arange(60), 2)
    values[:4] = [0, 1, 1, 0]
    apart = measure_agreement(values, units)["nominal"]
    together = measure_agreement(values, units, np.repeat(np.arange(20), 6))["nominal"]
    assert apart.value == together.value and apart.low is not None and together.low is not None
    assert together.low < apart.low  # the two that disagree come together, or not at all


@pytest.mark.parametrize(
    ("values", "units", "why"),
    [
        ([1, 1, 1, 1], [0, 0, 1, 1], "undefined"),
        ([0, 1, 1], [0, 1, 2], "nobody judged what another judged"),
        ([1, 1, 0], [0, 0, 1], "undefined"),  # the rating that differs stands alone, and drops out
    ],
)
def test_what_has_no_alpha_says_why(values: list[int], units: list[int], why: str) -> None:
    found = measure_agreement(values, units)
    for name in METRICS:
        assert found[name].value is None and why in found[name].why


def test_the_order_of_the_ratings_does_not_matter() -> None:
    values, units = ratings(EXAMPLE)
    order = np.random.default_rng(0).permutation(len(values))
    assert measure_agreement(np.array(values)[order], np.array(units)[order]) == measure_agreement(values, units)
