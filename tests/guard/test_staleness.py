"""A stale reward model is noticed by its own probabilities; one that is right less often, and says so, is not."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from bridle.core.errors import DataError
from bridle.guard.staleness import (
    REVERSED,
    TOLERANCE,
    blur,
    evidence_of,
    judgements_to_notice,
    labels_to_refresh,
    staleness,
    where_it_fails,
)

Stream = tuple[np.ndarray, np.ndarray]


def streams(share: float, count: int = 200, length: int = 1500, width: float = 1.5, seed: int = 0) -> Stream:
    """Stated probabilities, and outcomes of which a share goes the other way than stated: [length, count]."""
    rng = np.random.default_rng(seed)
    stated = 1 / (1 + np.exp(-width * rng.normal(size=(length, count))))
    return stated, (rng.random(stated.shape) < blur(stated, share)).astype(float)


def test_the_evidence_by_hand() -> None:
    """Half of the weight is on now, half on later; each share weighs a quarter; a tie takes the middle of both likelihoods."""
    p, fresh = 0.9, blur(np.array(0.9), TOLERANCE)
    stale = [0.9 - 0.8 * share for share in REVERSED]
    won, lost = [q / fresh for q in stale], [(1 - q) / (1 - fresh) for q in stale]
    found = evidence_of([p, p, p], [1.0, 0.0, 0.5])
    expected, so_far = [], np.full(len(REVERSED), 0.5)
    for factor in (won, lost, np.add(won, lost) / 2):
        so_far = so_far * factor
        expected.append(so_far.mean() + 0.5)
    assert found.tolist() == pytest.approx(expected)
    assert evidence_of([0.1], [0.0]).tolist() == pytest.approx(expected[:1]), "the same seen from the other answer"


@pytest.mark.parametrize("share", [0.0, TOLERANCE])
def test_a_fresh_model_is_let_alone(share: float) -> None:
    assert (evidence_of(*streams(share)) >= 20).any(0).mean() <= 0.05


@pytest.mark.parametrize(("share", "mean"), [(TOLERANCE, 1.0), (0.0, None), (-0.1, None)])
def test_the_evidence_against_a_fresh_one_never_rises_in_the_mean(share: float, mean: float | None) -> None:
    """Summed over all outcomes of four judgements: 1 where as many as tolerated go the other way, less where fewer do."""
    stated = np.array([0.9, 0.4, 0.7, 0.55])
    won_NS = np.array(list(itertools.product([0.0, 1.0], repeat=4))).T
    truth_N1 = blur(stated, share)[:, None]
    chance_S = (won_NS * truth_N1 + (1 - won_NS) * (1 - truth_N1)).prod(0)
    expected = evidence_of(np.repeat(stated[:, None], 16, 1), won_NS) @ chance_S
    assert (np.diff([1, *expected]) <= 1e-12).all() and (mean is None) == (expected[-1] < 0.999)


def test_nor_is_one_whose_answers_grew_alike() -> None:
    stated, won = streams(0.0, width=0.3)
    right = ((stated > 0.5) == won).mean()
    assert right < 0.6, "its accuracy fell far"
    assert not (evidence_of(stated, won) >= 20).any()


@pytest.mark.parametrize(("share", "within"), [(0.2, 600), (0.5, 120)])
def test_a_stale_one_is_noticed_about_when_it_is_foretold(share: float, within: int) -> None:
    stated, won = streams(share)
    raised = evidence_of(stated, won) >= 20
    at = np.where(raised.any(0), raised.argmax(0) + 1, 10_000)
    drop = share * float((2 * np.maximum(stated, 1 - stated) - 1).mean())
    foretold = judgements_to_notice(stated[:, 0], drop)
    assert foretold is not None and np.median(at) < within and 0.5 < foretold / np.median(at) < 2


def test_it_is_noticed_after_a_long_time_of_being_fresh() -> None:
    stated, fresh = streams(0.0)
    _, stale = streams(0.6, seed=0)
    later = np.where(np.arange(len(stated))[:, None] < 1000, fresh, stale)
    raised = evidence_of(stated, later) >= 20
    assert raised[:1000].any(0).mean() < 0.05 and raised[:1200].any(0).mean() > 0.9


def test_what_is_told_of_it() -> None:
    stated, won = streams(0.5, count=1)
    found = staleness(stated[:, 0], won[:, 0])
    assert found.judgements == 1500 and found.alarm is not None and found.alarm < 200
    assert (
        found.stated > 0.7
        and found.measured == pytest.approx(0.5, abs=0.04)
        and found.reversed == pytest.approx(0.5, abs=0.1)
    )
    assert labels_to_refresh(found, 1000) == math.ceil(found.reversed * 1000) and labels_to_refresh(found, 10) == 100
    fresh = staleness(*(column[:, 0] for column in streams(0.0, count=1)))
    assert fresh.alarm is None and fresh.reversed < 0.1 and labels_to_refresh(fresh, 1000) == 0
    nothing = staleness([], [])
    assert (nothing.judgements, nothing.alarm, nothing.evidence) == (0, None, 1.0)


def test_what_can_never_be_noticed_is_said() -> None:
    assert judgements_to_notice(np.full(50, 0.75), 0.02) is None, "within the tolerance"
    few, many = (judgements_to_notice(np.full(50, 0.75), drop) for drop in (0.2, 0.1))
    assert few is not None and many is not None and few < many


def test_where_labels_are_needed_first() -> None:
    stated = [0.9] * 10 + [0.1] * 10
    won = (
        [1.0] * 9 + [0.0] + [1.0] * 8 + [0.0] * 2
    )  # the second ten go the other way: the model favours the second answer
    (first, second) = where_it_fails(stated, won, ["sums"] * 10 + ["jokes"] * 10)
    assert first == ("jokes", 10, pytest.approx(7.0)) and second == ("sums", 10, pytest.approx(0.0))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (([0.5, 0.6], [1.0]), "each probability needs its outcome"),
        (([1.2], [1.0]), "probabilities must lie in 0 to 1"),
        (([math.nan], [1.0]), "probabilities must lie in 0 to 1"),
        (([0.5], [2.0]), "outcomes must lie in 0 to 1"),
    ],
)
def test_what_is_no_probability_is_refused(given: tuple[list[float], list[float]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        evidence_of(*given)
    with pytest.raises(DataError, match="tolerance"):
        evidence_of([0.5], [1.0], tolerance=0.2)
    with pytest.raises(DataError, match="false alarm"):
        staleness([0.5], [1.0], level=0)
    with pytest.raises(DataError, match="needs its group"):
        where_it_fails([0.5], [1.0], [])
