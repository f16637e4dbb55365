"""Lesson 2, solved.

Column t speaks of token t + 1. The answer's tokens are those from `prompt` to `prompt + answer − 1`, so
their columns are one lower: from `prompt − 1` to `prompt + answer − 2`. `torch.where` leaves out what does
not count; a product with the mask would not, where a log-prob of padding is −inf or not a number, for 0
times that is not 0. One sum is divided by one count, so a token weighs the same in a short row and in a
long one. In bridle: `bridle/models/batches.py: masked_logprobs`, `bridle/maths/losses.py: next_token`.

1. They are, and pretraining learns from them. Here the questions of the demonstrations are few and much
   alike; the model would spend its effort on foretelling questions that it is never asked to write.
2. It answers well as often, and badly as often, as its teachers do. Imitation has no idea of better and
   worse: to be better than the mean of its teachers the model needs somebody who compares. That is the next
   lesson.
"""

import torch
from torch import Tensor


def sft_loss(logp_BT: Tensor, prompt_B: Tensor, answer_B: Tensor) -> Tensor:
    column_T = torch.arange(logp_BT.shape[1])
    first_B, end_B = prompt_B - 1, prompt_B + answer_B - 1
    counts_BT = (column_T >= first_B[:, None]) & (column_T < end_B[:, None])
    return -torch.where(counts_BT, logp_BT, 0.0).sum() / counts_BT.sum()
