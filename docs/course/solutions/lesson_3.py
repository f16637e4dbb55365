"""Lesson 3, solved.

`torch.triu_indices` lists the pairs i < j of columns; column i was ranked above column j. `logsigmoid` is
the logarithm of σ without the detour over a number that may round to 0. The mean over the last axis is the
division by K(K−1)/2. In bridle: `bridle/maths/losses.py: bradley_terry`, where each pair is a row and its
weight is 1 over the number of pairs of its ranking.

1. Nothing happens: only differences count. So a score alone says nothing; a score less the mean score of
   some answers that you know does. That is why reward models are centred after training.
2. People then prefer the better of two answers with probability at most 3/4, however good it is, and σ(x) =
   3/4 at x = log 3 = 1.10. Noise makes a reward model modest, but with enough labels it still has the right
   order.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def ranking_loss(scores_RK: Tensor) -> Tensor:
    better, worse = torch.triu_indices(scores_RK.shape[1], scores_RK.shape[1], offset=1)
    return -logsigmoid(scores_RK[:, better] - scores_RK[:, worse]).mean(1)
