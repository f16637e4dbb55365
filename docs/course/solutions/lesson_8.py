"""Lesson 8, solved.

Sorted by score, the running sum of the probabilities is F, and without the answer's own it is F(<s). The
differences of their n-th powers are what each answer wins; `scatter` puts them back in the answers' own
order. In bridle: `bridle/maths/statistics.py: expected_best_of_n` does the same from N drawn answers, and
`best_of_n_kl` is the bound.

1. Ask people about the answers as they are now: a few comparisons between the policy's answers and the
   reference's, again and again while it trains, and go back to where they last preferred it. It costs
   labels; the guard of bridle does so (docs/guard.md). The KL is a warning, and no more: where the cliff
   stands depends on the reward model.
2. It moves away and gets lower, and does not vanish. Five models err in different places, so an answer must
   deceive all of them. What all of them never saw, all of them may get wrong in the same way.
"""

import torch
from torch import Tensor


def best_of_n(chance_A: Tensor, score_A: Tensor, n: int) -> Tensor:
    order_A = score_A.argsort()
    up_to_A = chance_A[order_A].cumsum(0)
    below_A = up_to_A - chance_A[order_A]
    return torch.zeros_like(chance_A).scatter(0, order_A, up_to_A**n - below_A**n)
