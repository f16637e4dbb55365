"""Lesson 7, solved.

Mean and standard deviation are taken along a row, and `keepdim=True` keeps them as a column, so that each
is taken from its own row. Where all rewards are alike the numerator is 0 (but for rounding), and 0.0001 in
the denominator makes the quotient 0. In bridle: `bridle/maths/advantages.py: group_relative`, which sets
such a group to 0 exactly (`flat_groups`), for Adam makes whole steps of rounding errors; and
`bridle/maths/losses.py: grpo` for the loss.

1. Nothing: all rewards are 0, and so are all advantages. Leave such problems out until the model is better,
   make them easier, show it a solution (lesson 2), or draw larger groups if p is small but not 0. bridle
   leaves out what is out of reach with `min_right`.
2. Those that are nearly always or nearly never solved: there the std is small, and dividing by it makes
   their few differences large. Without the division the gradient is that of the mean chance of being right
   itself (lesson 4), which is what one wanted to raise.
"""

from torch import Tensor


def group_advantages(reward_GK: Tensor) -> Tensor:
    centred_GK = reward_GK - reward_GK.mean(1, keepdim=True)
    return centred_GK / (reward_GK.std(1, keepdim=True) + 1e-4)
