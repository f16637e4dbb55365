"""Importance weights against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from bridle.maths.importance import truncated_importance
from bridle.maths.losses import grpo, rebel


def test_by_hand() -> None:
    """Of tokens that are as likely as before, half as likely, one and a half times and four times as likely; and off the mask."""
    behaviour = torch.tensor([0.2, 0.4, 0.2, 0.1, 1.0], dtype=torch.float64).log()
    now = torch.tensor([0.2, 0.2, 0.3, 0.4, 1.0], dtype=torch.float64).log().requires_grad_()
    found = truncated_importance(now, behaviour, cap=2.0)
    assert found.tolist() == pytest.approx([1.0, 0.5, 1.5, 2.0, 1.0]) and not found.requires_grad


def test_a_weighed_token_counts_so_much_in_grpo() -> None:
    """With ratios of 1 and without a KL the loss is -Σ w A / count."""
    logp, adv = torch.full((2, 2), math.log(0.5)), torch.tensor([1.0, -2.0])
    weight, mask = torch.tensor([[1.0, 0.5], [2.0, 9.0]]), torch.tensor([[True, True], [True, False]])
    loss, _ = grpo(logp, logp, logp, adv, weight, mask, clip=0.2, clip_high=0.2, kl_coef=0.0, count=3)
    assert float(loss) == pytest.approx(-(1.0 * 1 + 0.5 * 1 - 2.0 * 2) / 3)


def test_a_weighed_pair_counts_so_much_in_rebel() -> None:
    old, rewards = torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    loss, _ = rebel(old, old, rewards, eta=1.0, count=2, weight_P=torch.tensor([0.5, 2.0]))
    assert float(loss) == pytest.approx((0.5 * 1 + 2.0 * 9) / 2)
