"""Lesson 6, solved.

The two brackets are how far each answer has moved from its reference; β times that is its implicit reward,
and the rest is lesson 3. In bridle: `bridle/maths/losses.py: dpo`, which also knows labels that are wrong
now and then (cDPO).

1. That policy and reference are not the same model: a different precision, dropout left on, the prompt
   counted in one of them, a mean over tokens in place of the sum. It costs one look, and finds much.
2. To answers that were in no pair, which nobody judged. It is called displacement. Look at the chosen
   answers' own log-prob, and, better, sample and read.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo_loss(
    chosen_P: Tensor, rejected_P: Tensor, reference_chosen_P: Tensor, reference_rejected_P: Tensor, beta: float
) -> Tensor:
    moved_P = (chosen_P - reference_chosen_P) - (rejected_P - reference_rejected_P)
    return -logsigmoid(beta * moved_P)
