"""Lesson 5, solved.

The reward of a token is its score less its price, the advantage what is to come less V; neither carries a
gradient. The ratio is the exponential of a difference of log-probs: 1 on fresh answers, and its slope by
log π is the ratio itself. In bridle: `bridle/maths/kl.py: k1`, `bridle/maths/advantages.py: gae` (with λ =
1 it is this A; a smaller λ trusts the critic more), `bridle/maths/losses.py: clipped_policy`, and the loop
around them in `bridle/training/ppo.py`.

1. None: Σ_y π(y) ∇ log π(y) = ∇ Σ_y π(y) = 0, on average. As a loss it is noise and no bridle. In the
   reward it multiplies ∇ log π, and that average is the gradient of the KL.
2. The clipped term alone has slope 0 wherever the ratio is outside, whichever way it went. A good token
   that the last step made much less likely by accident could never come back. The smaller of the two terms
   is clipped only where that is the cautious side.
"""

import torch
from torch import Tensor


def ppo_loss(
    logp_BT: Tensor, old_BT: Tensor, reference_BT: Tensor, score_BT: Tensor, value_BT: Tensor, beta: float, clip: float
) -> Tensor:
    reward_BT = score_BT - beta * (old_BT - reference_BT)
    to_come_BT = reward_BT.flip(1).cumsum(1).flip(1)
    advantage_BT = to_come_BT - value_BT
    ratio_BT = (logp_BT - old_BT).exp()
    return -torch.minimum(ratio_BT * advantage_BT, ratio_BT.clamp(1 - clip, 1 + clip) * advantage_BT).sum(1)
