"""What a nat costs is learnt from audits; a run is stopped past its best checkpoint, and never where the reward keeps its word."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from bridle.core.errors import DataError
from bridle.guard.stopping import costs, fit_scale_and_noise, judge_checkpoints, relative_slope

KL = [0.0, 0.2, 0.7, 1.6, 3.0, 4.5]
STATED = [0.0, 0.5, 1.0, 1.6, 2.2, 2.7]
NONE: tuple[list[float], list[float], list[float]] = ([], [], [])


def audits(cost: float, at: int, count: int, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Comparisons at a checkpoint that come out as often as they must."""
    odds = STATED[at] - cost * KL[at]
    wins = round(count * (noise + (1 - 2 * noise) / (1 + math.exp(-odds))))
    return np.full(count, STATED[at]), np.full(count, KL[at]), np.arange(count) < wins


@pytest.mark.parametrize("noise", [0.0, 0.25])
@pytest.mark.parametrize(("cost", "best"), [(0.9, 2), (0.6, 3), (1.4, 1)])
def test_the_checkpoint_with_the_most_left_is_kept(cost: float, best: int, noise: float) -> None:
    assert int(np.argmax([s - cost * k for s, k in zip(STATED, KL, strict=True)])) == best, "by hand"
    found = judge_checkpoints(STATED, KL, audits(cost, 4, 2000, noise), noise=noise)
    assert found.best == best and found.cost == pytest.approx(cost, rel=0.15) and found.stop


@pytest.mark.parametrize("noise", [0.0, 0.25])
def test_a_reward_that_keeps_its_word_is_let_alone(noise: float) -> None:
    found = judge_checkpoints(STATED, KL, audits(0.0, 4, 100, noise), noise=noise)
    assert found.best == len(KL) - 1 and found.past < 0.1 and not found.stop


def test_slips_that_are_not_told_look_like_a_cost() -> None:
    given = audits(0.0, 5, 400, 0.25)
    assert (
        judge_checkpoints(STATED, KL, given).cost > 0.25 > 0.1 > judge_checkpoints(STATED, KL, given, noise=0.25).cost
    )


def test_few_audits_stop_nothing_and_more_are_surer() -> None:
    past = [judge_checkpoints(STATED, KL, audits(1.0, 4, count)).past for count in (0, 12, 48, 200)]
    assert past[0] < 0.8 and past == sorted(past) and past[-1] > 0.99
    assert not judge_checkpoints([0.0], [0.0], NONE).stop, "there is nothing to roll back to"


def test_the_belief_by_hand() -> None:
    """One audit that was lost: a cost is believed by the chance of losing under it."""
    chance = 1 / (1 + np.exp(STATED[2] - costs() * KL[2]))
    found = judge_checkpoints(STATED[:3], KL[:3], ([STATED[2]], [KL[2]], [0.0]))
    assert found.cost == pytest.approx(float((chance * costs()).sum() / chance.sum()))
    earlier = np.array([max(0.0, 0.5 - 0.2 * c) > 1.0 - 0.7 * c for c in costs()])
    assert found.past == pytest.approx(float(chance[earlier].sum() / chance.sum()))
    tie = judge_checkpoints(STATED[:3], KL[:3], ([STATED[2]], [KL[2]], [0.5])).cost
    assert judge_checkpoints(STATED[:3], KL[:3], ([STATED[2]], [KL[2]], [1.0])).cost < tie < found.cost


def test_the_slope_of_a_held_out_model() -> None:
    assert relative_slope([0, 1, 2, 3, 5], [0, 1, 2, 2.5, 3]) == pytest.approx(2 / 4)
    assert math.isnan(relative_slope([0, 1, 2], [0, 1, 2])) and math.isnan(relative_slope([3, 2, 1, 0], [0, 0, 0, 0]))


def test_a_standard_error_of_what_is_stated_by_hand() -> None:
    """Where no cost is believed in but none at all: Φ(d / √(σ² + σ²)), of the better of two earlier ones."""
    stated, kl, error = [0.0, 1.0, 0.9], [0.0, 0.0, 0.0], [0.0, 0.3, 0.4]
    found = judge_checkpoints(stated, kl, NONE, stated_se=error)
    assert found.past == pytest.approx(NormalDist().cdf(0.1 / 0.5)) and found.best == 1
    assert found.left[2] == pytest.approx((0.9, 0.9 - 1.96 * 0.4, 0.9 + 1.96 * 0.4))
    assert judge_checkpoints(stated, kl, NONE).past == pytest.approx(1.0)
    assert judge_checkpoints([0.0, 0.9], [0.0, 0.0], NONE, stated_se=[0.0, 0.4]).past < 0.02


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(DataError, match="each checkpoint needs"):
        judge_checkpoints([0.0, 1.0], [0.0], NONE)
    with pytest.raises(DataError, match="each checkpoint needs"):
        judge_checkpoints([0.0], [0.0], ([1.0], [], []))
    with pytest.raises(DataError, match="each checkpoint needs"):
        judge_checkpoints([0.0], [0.0], NONE, stated_se=[0.0, 1.0])
    with pytest.raises(DataError, match="slip"):
        judge_checkpoints([0.0], [0.0], NONE, noise=0.5)
    with pytest.raises(DataError, match="both scores"):
        relative_slope([0, 1], [0])


def test_what_is_left_of_each_checkpoint_with_its_interval() -> None:
    found = judge_checkpoints(STATED, KL, audits(0.6, 4, 300))
    means = [s - found.cost * k for s, k in zip(STATED, KL, strict=True)]
    assert [one.mean for one in found.left] == pytest.approx(means)
    assert all(one.low <= one.mean <= one.high for one in found.left)
    assert found.left[4].low < STATED[4] - 0.6 * KL[4] < found.left[4].high
    wide = judge_checkpoints(STATED, KL, audits(0.6, 4, 30)).left[4]
    assert wide.high - wide.low > 1.5 * (found.left[4].high - found.left[4].low)


@pytest.mark.parametrize(("scale", "noise"), [(0.8, 0.0), (0.8, 0.2), (3.0, 0.1)])
def test_what_a_point_means_is_learnt_from_comparisons(scale: float, noise: float) -> None:
    draws = np.random.default_rng(5)
    gaps = draws.normal(0, 2, 20_000)
    won = draws.random(gaps.size) < noise + (1 - 2 * noise) / (1 + np.exp(-scale * gaps))
    found = fit_scale_and_noise(np.where(won, gaps, -gaps))
    assert found[0] == pytest.approx(scale, rel=0.12) and found[1] == pytest.approx(noise, abs=0.02)


@pytest.mark.parametrize("gaps", [[], [0.0, 0.0], [1.0, math.nan]])
def test_pairs_that_say_nothing_of_a_reward_are_refused(gaps: list[float]) -> None:
    with pytest.raises(DataError, match="finite and differ"):
        fit_scale_and_noise(gaps)
