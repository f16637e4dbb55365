"""KL divergence between the policy and its frozen reference: estimators, and control of the penalty's weight.

All in nats. With ρ = log π(a) - log π_ref(a) on the policy's own tokens (Schulman, joschu.net/blog/kl-approx.html):
k1 = ρ is unbiased and may be negative; k3 = exp(-ρ) - 1 + ρ is unbiased, never negative and less noisy.
As a *penalty in the reward* only k1 gives the gradient of KL(π‖π_ref): k3 there nearly cancels it, and k1 as a *loss*
has gradient zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bridle.core.errors import RecipeError, TrainingStopped


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
    ceiling, for a product never leaves 0. Ziegler 2019 (arxiv.org/abs/1909.08593, §2.2) with the gain stated per step, whatever
    the batch size. Raises RecipeError for numbers that cannot steer, and TrainingStopped for a KL that is not finite.
    """

    beta: float
    target: float | None = None
    gain: float = 0.1
    floor: float = 1e-6
    ceiling: float = 10.0

    def __post_init__(self) -> None:
        target = 1.0 if self.target is None else self.target
        finite = all(map(math.isfinite, (self.beta, target, self.gain, self.floor, self.ceiling)))
        if not finite or self.beta < 0 or target <= 0 or not 0 <= self.gain <= 1 or not self.floor <= self.ceiling:
            raise RecipeError(
                "β needs finite numbers: itself at least 0, a target above 0 (None leaves β fixed), a gain from 0 to 1 and a floor "
                f"no higher than the ceiling, got {self}"
            )
        if self.target is not None and not (self.gain and 0 < self.floor <= self.beta <= self.ceiling):
            raise RecipeError(
                "β is steered by products, so with a target it needs a gain above 0 and to begin between a floor above 0 and the "
                f"ceiling, got {self}; a target of None leaves β fixed"
            )

    def after(self, kl: float) -> KLControl:
        if not math.isfinite(kl):
            raise TrainingStopped(
                f"the KL to the reference is {kl}, by which β cannot be steered; look at the reference's weights, or set "
                "model.precision to float32"
            )
        if self.target is None:
            return self
        error = max(-1.0, min(1.0, (kl - self.target) / self.target))
        return replace(self, beta=max(self.floor, min(self.ceiling, self.beta * (1 + self.gain * error))))
