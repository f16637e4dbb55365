"""Lesson 4, solved.

The mean of the others is (Σ r − r_k) / (K − 1). The rewards carry no gradient, so the loss' gradient is
−A_k ∇ log π(y_k), averaged. In bridle: `bridle/maths/advantages.py: leave_one_out`, and
`bridle/maths/losses.py: rloo` for the loss (with PPO's clip, the next lesson, for when several steps are
taken on the same answers).

1. r_k − mean = (K − 1)/K · (r_k − mean of the others): too short by (K − 1)/K, the same for every answer.
   So it is nothing but a smaller learning rate while all groups have the same size, and a bias between
   prompts with 2 answers and prompts with 8.
2. Either depends on the answer itself: when the answer is the best one, its own reward becomes the
   baseline, and it is not reinforced. The average is then no longer the gradient of the expected reward;
   the sum over all groups shows by how much.
"""

from torch import Tensor


def policy_gradient_loss(logp_NK: Tensor, reward_NK: Tensor) -> Tensor:
    K = reward_NK.shape[1]
    others_NK = (reward_NK.sum(1, keepdim=True) - reward_NK) / (K - 1)
    return -((reward_NK - others_NK) * logp_NK).mean(1)
