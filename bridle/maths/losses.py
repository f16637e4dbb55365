"""Losses: tensors and numbers in, `(loss, stats)` out. Nothing here knows of models, files or settings.

Each loss is a sum divided by a count that the caller supplies: the count of the whole optimiser step on all ranks. The
gradient is then the same however the step is cut into micro-batches.
Shapes: B sequences, T tokens, N selected tokens, V vocabulary, P pairs, K answers to a prompt.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Stats = dict[str, Tensor]


def next_token(logp_N: Tensor, *, tokens: Tensor | int) -> tuple[Tensor, Stats]:
    """Cross entropy in nats: -Σ log p(target) / tokens. Pretraining and SFT differ in which tokens are selected."""
    loss = -logp_N.sum() / tokens
    return loss, {"loss": loss.detach()}


def clipped_policy(
    logp_BT: Tensor, old_logp_BT: Tensor, adv_BT: Tensor, mask_BT: Tensor, *, clip: float, tokens: Tensor | int
) -> tuple[Tensor, Stats]:
    """PPO's clipped surrogate, eq. 7 of arxiv.org/abs/1707.06347: -Σ min(r A, clip(r, 1-ε, 1+ε) A) / tokens.

    r = π(a|s) / π_old(a|s). `tokens` counts the masked tokens of the whole optimiser step on every rank.
    Stats: `clip_fraction` of tokens whose ratio left the interval, `approx_kl` = Σ ½ (log r)² / tokens (Schulman's k2).
    """
    log_ratio_BT = torch.where(mask_BT, logp_BT - old_logp_BT, 0.0)  # where, not a product: 0 times nan is nan
    ratio_BT = log_ratio_BT.exp()
    kept_BT = ratio_BT.clamp(1 - clip, 1 + clip)
    loss_BT = -torch.minimum(ratio_BT * adv_BT, kept_BT * adv_BT)
    loss = torch.where(mask_BT, loss_BT, 0.0).sum() / tokens
    with torch.no_grad():
        clipped = ((kept_BT != ratio_BT) & mask_BT).sum() / tokens
        approx_kl = 0.5 * log_ratio_BT.square().sum() / tokens
    return loss, {"policy_loss": loss.detach(), "clip_fraction": clipped, "approx_kl": approx_kl}


def clipped_value(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, *, clip: float, tokens: Tensor | int
) -> tuple[Tensor, Stats]:
    """Σ ½ max((v - R)², (v_clip - R)²) / tokens; v_clip stays within ±clip of the rollout's value (Schulman's code).

    Clipping keeps the critic from leaping after one batch of noisy returns; `clip` is in units of the return.
    """
    held_BT = old_values_BT + (values_BT - old_values_BT).clamp(-clip, clip)
    error_BT = torch.where(mask_BT, values_BT - returns_BT, 0.0)  # before squaring: a square's gradient at nan is nan
    held_error_BT = torch.where(mask_BT, held_BT - returns_BT, 0.0)
    loss = 0.5 * torch.maximum(error_BT.square(), held_error_BT.square()).sum() / tokens
    return loss, {"value_loss": loss.detach()}


def bradley_terry(
    chosen_P: Tensor, rejected_P: Tensor, weight_P: Tensor, *, count: Tensor | float
) -> tuple[Tensor, Stats]:
    """-Σ w log σ(s_chosen - s_rejected) / count (Ouyang 2022, eq. 1, arxiv.org/abs/2203.02155).

    With w = 1 / pairs of the prompt's ranking and `count` the prompts of the step, every prompt weighs the same however
    many of its answers were ranked. Stats: `accuracy`, weighted like the loss.
    """
    gap_P = chosen_P - rejected_P
    loss = (weight_P * F.softplus(-gap_P)).sum() / count
    accuracy = (weight_P * (gap_P > 0)).sum() / count
    return loss, {"loss": loss.detach(), "accuracy": accuracy.detach()}


def score_size(scores_B: Tensor, *, count: Tensor | float) -> Tensor:
    """Σ s² / count: pairs leave a score's level free, and a light pull to zero keeps it from drifting."""
    return scores_B.square().sum() / count
