import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from bridle.compute.device import Device
from bridle.core.errors import DataError
from bridle.guard.distance import (
    MOST,
    NEIGHBOURS,
    Kind,
    answer_features,
    feature_distance,
    fit_cloud,
    shrunk_covariance,
)
from bridle.models.policy import RewardModel, Task
from bridle.models.scorer import scorer_from
from bridle.rewards.learned import task_scores
from tests.models.tiny import CPU, policy, random_ids, template

KINDS: tuple[Kind, ...] = get_args(Kind)


def drawn(count: int, size: int = 6, seed: int = 0) -> Tensor:
    """Points whose features go together, far from 0 and of unlike scales."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    scales = torch.logspace(-2, 2, size, dtype=torch.float64)
    return torch.randn(count, size, generator=generator, dtype=torch.float64) @ mixing * scales + 7


@pytest.mark.parametrize("kind", KINDS)
def test_answers_like_the_training_ones_rank_in_their_middle_and_others_beyond(kind: Kind) -> None:
    cloud = fit_cloud(drawn(2000))
    same = feature_distance(cloud, drawn(1000, seed=1), kind)
    assert same.rank.value == pytest.approx(0.5, abs=0.04) and same.beyond == pytest.approx(0.05, abs=0.03)
    spread = feature_distance(cloud, (drawn(1000, seed=2) - 7) * 1.3 + 7, kind)
    assert spread.rank.value > same.rank.value + 5 * same.rank.se
    far = feature_distance(cloud, drawn(50, seed=3) + 1e4, kind)
    assert (far.rank.value, far.beyond) == (1.0, 1.0)
    one = feature_distance(cloud, drawn(1, seed=4), kind)
    assert 0 <= one.rank.value <= 1 and math.isnan(one.rank.se)


def test_a_tight_cluster_between_two_clouds_is_far_to_neighbours_alone() -> None:
    """Where the two differ: the mean of a cloud with a hole is no place that was trained on."""
    generator = torch.Generator().manual_seed(0)
    sides = (
        torch.randn(1000, 3, generator=generator)
        + 20 * torch.eye(3)[0] * torch.arange(1000)[:, None].remainder(4).sub(1.5).sign()
    )
    cloud, middle = fit_cloud(sides), torch.randn(100, 3, generator=generator) * 0.1
    assert feature_distance(cloud, middle, "neighbours").rank.value > 0.95
    assert feature_distance(cloud, middle, "mahalanobis").rank.value < 0.5


def test_distances_by_hand() -> None:
    points, asked = drawn(400), drawn(7, seed=1)
    cloud, inside = fit_cloud(points), points[::2]
    covariance = shrunk_covariance(inside)
    away = asked - inside.mean(0)
    squares = (away @ torch.linalg.inv(covariance) * away).sum(1)
    torch.testing.assert_close(cloud.distances(asked, "mahalanobis") ** 2, squares, rtol=1e-6, atol=0)
    between = asked[:, None] - inside[None]
    pairs = torch.einsum("bnd,de,bne->bn", between, torch.linalg.inv(covariance), between).sqrt().sort(1).values
    torch.testing.assert_close(
        cloud.distances(asked, "neighbours"), pairs[:, :NEIGHBOURS].mean(1), rtol=1e-5, atol=1e-6
    )


def test_the_covariance_is_shrunk_as_ledoit_and_wolf_do() -> None:
    points = drawn(12)
    centred = points - points.mean(0)
    sample = centred.T @ centred / 12
    mean = sample.trace() / 6
    apart = ((sample - mean * torch.eye(6)) ** 2).sum()
    noise = sum(((row[:, None] * row[None] - sample) ** 2).sum() for row in centred) / 12**2
    share = min(1.0, float(noise / apart))
    torch.testing.assert_close(shrunk_covariance(points), (1 - share) * sample + share * mean * torch.eye(6))
    few = shrunk_covariance(torch.randn(10, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    values = torch.linalg.eigvalsh(few)
    assert float(values[-1] / values[0]) < 100  # ten points in two hundred dimensions
    assert torch.equal(shrunk_covariance(torch.ones(9, 3, dtype=torch.float64)), torch.zeros(3, 3, dtype=torch.float64))


def test_no_more_than_so_many_training_answers_are_held() -> None:
    cloud = fit_cloud(torch.arange(5 * MOST, dtype=torch.float32)[:, None])
    assert len(cloud.points_ND) == len(cloud.usual["neighbours"]) == MOST / 2
    assert float(cloud.mean_D[0]) == pytest.approx(2.5 * MOST, rel=0.01)  # from all over them


@pytest.mark.parametrize(
    ("features", "why"),
    [
        (torch.full((9, 2), math.nan), "those of 9 of 9 answers are not"),
        (torch.tensor([[1.0, math.inf], *[[0.0, 0.0]] * 8]), "those of 1 of 9 answers are not"),
        (torch.zeros(0, 2), "there are none"),
        (torch.zeros(7, 2), "8 training answers at least, got 7"),
    ],
)
def test_features_that_make_no_cloud_are_refused(features: Tensor, why: str) -> None:
    with pytest.raises(DataError, match=why):
        fit_cloud(features)


def test_features_are_what_the_reward_models_head_reads() -> None:
    device = Device(CPU, torch.float32, 1, "test")
    scorer = scorer_from(policy().module, torch.Generator().manual_seed(0), tasks=2)
    model = RewardModel(scorer, template(), "made", [Task("one"), Task("two")])
    prompts, answers = random_ids(150, 1, 30, seed=1), random_ids(150, 1, 30, seed=2)
    features = answer_features(model, prompts, answers, device)
    scores = task_scores(model, prompts, answers, device)
    torch.testing.assert_close(features @ scorer.score.weight.T, scores, rtol=1e-4, atol=1e-5)
