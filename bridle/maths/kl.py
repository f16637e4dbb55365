"""KL divergence between the policy and its frozen reference: estimators, and control of the penalty's weight.

All in nats. With ρ = log π(a) - log π_ref(a) on the policy's own tokens (Schulman, joschu.net/blog/kl-approx.html):
k1 = ρ is unbiased and may be negative; k3 = exp(-ρ) - 1 + ρ is unbiased, never negative and less noisy.
As a *penalty in the reward* only k1 gives the gradient of KL(π‖π_ref): k3 there nearly cancels it, and k1 as a *loss*
has gradient zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


def k1(logp_BT: Tensor, reference_logp_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """log π - log π_ref where the mask holds, zero elsewhere. Never clamped: a clamp would bias the penalty."""
    return torch.where(mask_BT, logp_BT - reference_logp_BT, 0.0)


def k3(logp_BT: Tensor, reference_logp_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """exp(-ρ) - 1 + ρ where the mask holds: for logs, and GRPO's loss term (whose gradient is that of KL(π_ref‖π))."""
    rho_BT = torch.where(mask_BT, logp_BT - reference_logp_BT, 0.0)
    return torch.expm1(-rho_BT) + rho_BT


def mean_k2(logp_BT: Tensor, old_logp_BT: Tensor, mask_BT: Tensor, tokens: Tensor | int) -> Tensor:
    """Σ ½ (log r)² / tokens, r = π / π_old: how far an update has moved from the policy that answered (Schulman's k2)."""
    return 0.5 * torch.where(mask_BT, logp_BT - old_logp_BT, 0.0).square().sum() / tokens


@dataclass(frozen=True)
class KLControl:
    """The weight β of the KL penalty, fixed (`target` None) or steered towards `target` nats per answer.

    After each rollout β is multiplied by 1 + gain · clip((KL - target) / target, -1, 1) and kept within floor and
    ceiling. Ziegler 2019 (arxiv.org/abs/1909.08593, §2.2) with the gain stated per step, whatever the batch size.
    """

    beta: float
    target: float | None = None
    gain: float = 0.1
    floor: float = 0.0
    ceiling: float = 10.0

    def after(self, kl: float) -> KLControl:
        if self.target is None:
            return self
        error = max(-1.0, min(1.0, (kl - self.target) / self.target))
        return replace(self, beta=max(self.floor, min(self.ceiling, self.beta * (1 + self.gain * error))))
