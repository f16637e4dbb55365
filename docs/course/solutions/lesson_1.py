"""Lesson 1, solved.

`log_softmax` turns each row of logits into log-probs: log p_v = z_v − log Σ_w exp z_w. Row t speaks of
token t + 1, so the last row has nothing to say (`[:-1]`), and the first token nobody to foretell it
(`[1:]`). `gather` takes from each row the log-prob of the token that came. In bridle:
`bridle/maths/losses.py: next_token`.

1. It loses infinitely much. One such token ruins any mean, so a model must leave some probability for all
   that might come: an honest model is never quite sure. That is why training never drives a probability to
   0.
2. No. In the mean over all tokens each token weighs the same, in the mean of the two means a token of the
   short text weighs a hundred times as much. Take the first: else the loss, and what is learnt, would
   depend on how texts happen to be cut into batches. bridle therefore always divides one sum by one count.
"""

import torch
from torch import Tensor


def next_token_loss(logits_TV: Tensor, ids_T: Tensor) -> Tensor:
    logp_TV = torch.log_softmax(logits_TV[:-1], dim=1)
    return -logp_TV.gather(1, ids_T[1:, None]).mean()
