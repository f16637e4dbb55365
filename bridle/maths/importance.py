"""Importance weights of answers that other weights drew than those that learn from them."""

from __future__ import annotations

from torch import Tensor


def truncated_importance(logp: Tensor, behaviour_logp: Tensor, *, cap: float) -> Tensor:
    """w = min(π / π_behaviour, cap) of the same actions by their log-probs, of any one shape: tokens, or whole answers by their sums.

    π is the policy as a step begins, to which the step's own ratios are taken: what moved before the step is weighed here and what moves in
    it is clipped there (decoupled PPO: Hilton 2021, arxiv.org/abs/2110.00641, eq. 2; asynchronous: AReaL, arxiv.org/abs/2505.24298, eq. 5).
    Truncated, a mean has a bias and a bounded variance (Ionides 2008, doi.org/10.1198/106186008X320456). No gradient; where both are 0, as
    off the mask, w is 1.
    """
    return (logp - behaviour_logp).detach().exp().clamp(max=cap)
