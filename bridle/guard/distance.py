"""How far the policy's answers are from those that the reward model was trained on, in the features that its head reads.

A reward model is good where it has learnt. An answer's features are the hidden state of its last token, D numbers; those of the
training answers are a cloud. Two distances from it: Mahalanobis', with a shrunk covariance (Lee 2018, arxiv.org/abs/1807.03888; Ledoit
and Wolf 2004), and that to the nearest neighbours (Sun 2022, arxiv.org/abs/2204.06507). Neither has a unit that means anything, so both
are read as a rank among training answers that the cloud does not hold: .5 is "as near as they are", 1 "farther than any of them".
On the playground the first finds tuned answers a little sooner, and costs an eighth (docs/guard.md); the second sees what lies in a
hole of the cloud.
At most `MOST` training answers are read, evenly spaced, half of them for the cloud; distances are taken a block at a time.
Shapes: N training answers, B answers of the policy, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bridle.compute.device import Device
from bridle.core.errors import DataError
from bridle.guard.signals import Measured
from bridle.maths.statistics import Groups, mean_and_se
from bridle.models.batches import by_length, last_states, make_batch
from bridle.models.policy import RewardModel

MOST = 4096
NEIGHBOURS = 5
BLOCK = 256  # answers whose distances to the whole cloud are held at once

Kind = Literal["mahalanobis", "neighbours"]


@torch.no_grad()
def answer_features(
    model: RewardModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], device: Device
) -> Tensor:
    """What the reward model's head reads of answers given as ids, [B, D] in float32."""
    out = torch.zeros(len(answers), model.module.config.hidden_size)
    for rows in by_length([len(p) + len(a) for p, a in zip(prompts, answers, strict=True)], 128):
        batch = make_batch([prompts[i] for i in rows], [answers[i] for i in rows], model.template.pad_id, device.torch)
        with device.autocast():
            out[rows] = last_states(model.module, batch).float().cpu()
    return out


@dataclass(frozen=True)
class Cloud:
    """Training answers as points: whitened by a shrunk covariance, around their mean. `usual`: distances of training answers that are not
    among them, sorted, by kind."""

    mean_D: Tensor
    whiten_DD: Tensor  # (x - mean) @ whiten has the identity as its covariance
    points_ND: Tensor  # whitened
    usual: dict[Kind, Tensor]

    def distances(self, features_BD: Tensor, kind: Kind) -> Tensor:
        """[B] in float64: Mahalanobis' distance to the mean, or the mean of those to the nearest `NEIGHBOURS` points."""
        white_BD = (_points(features_BD) - self.mean_D) @ self.whiten_DD
        if kind == "mahalanobis":
            return white_BD.norm(dim=1)
        nearest = min(NEIGHBOURS, len(self.points_ND))
        blocks = [torch.cdist(some, self.points_ND) for some in white_BD.split(BLOCK)]
        return torch.cat([block.topk(nearest, largest=False).values.mean(1) for block in blocks])


def fit_cloud(features_ND: Tensor) -> Cloud:
    """A cloud of half of the training answers, measured on the other half. DataError for fewer than eight, or features that are not
    finite."""
    features = _points(features_ND)
    if len(features) < 8:
        raise DataError(f"distances need the features of 8 training answers at least, got {len(features)}")
    features = features[torch.linspace(0, len(features) - 1, min(MOST, len(features))).round().long()]
    inside, outside = features[::2], features[1::2]
    mean_D = inside.mean(0)
    values, vectors = torch.linalg.eigh(shrunk_covariance(inside))
    whiten_DD = vectors * values.clamp(min=1e-12).rsqrt()
    cloud = Cloud(mean_D, whiten_DD, (inside - mean_D) @ whiten_DD, {})
    kinds: tuple[Kind, ...] = ("mahalanobis", "neighbours")
    cloud.usual.update({kind: cloud.distances(outside, kind).sort().values for kind in kinds})
    return cloud


def shrunk_covariance(points_ND: Tensor) -> Tensor:
    """(1 - ρ) S + ρ m I with S the covariance, m its mean variance, and the ρ that is nearest the truth in mean square (Ledoit and Wolf
    2004, "A well-conditioned estimator for large-dimensional covariance matrices"): well-conditioned with fewer points than features."""
    count, size = points_ND.shape
    centred = points_ND - points_ND.mean(0)
    covariance = centred.T @ centred / count
    target = covariance.diagonal().mean() * torch.eye(size, dtype=centred.dtype)
    apart = (covariance - target).square().sum()
    noise = (centred.square().sum(1).square().sum() / count - covariance.square().sum()) / count
    share = 1.0 if apart == 0 else float((noise / apart).clamp(0, 1))
    return (1 - share) * covariance + share * target


@dataclass(frozen=True, slots=True)
class Distance:
    """`rank`: mean over answers of their rank among training answers, which is the probability that one of the policy's is farther away
    than one of these: .5 where they are alike, 1 where all are beyond. `beyond`: share farther away than 95% of them, .05 where alike."""

    rank: Measured
    beyond: float


def feature_distance(cloud: Cloud, features_BD: Tensor, kind: Kind = "mahalanobis", groups: Groups = None) -> Distance:
    """Distance of the policy's answers from the reward model's training answers."""
    found_B, usual = cloud.distances(features_BD, kind), cloud.usual[kind]
    below, above = (torch.searchsorted(usual, found_B, right=right).double() for right in (False, True))
    rank_B = ((below + above) / 2 / len(usual)).numpy()
    beyond = float(np.mean(found_B.numpy() > float(usual.quantile(0.95))))
    return Distance(Measured(*mean_and_se(rank_B, groups), len(rank_B)), beyond)


def _points(features: Tensor) -> Tensor:
    bad = int((~torch.isfinite(features)).any(1).sum())
    if bad or not len(features):
        found = f"those of {bad} of {len(features)} answers are not" if bad else "there are none"
        raise DataError(f"features must be finite numbers, and {found}; look at the reward model's weights")
    return features.detach().cpu().double()
