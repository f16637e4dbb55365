"""Advantages: what an action brought beyond what was expected. Shapes: B sequences, T tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor


def place_at_end(reward_B: Tensor, mask_BT: Tensor) -> Tensor:
    """[B, T] of zeros with each sequence's reward at its last masked token: the stop token, where there is one."""
    T = mask_BT.shape[1]
    last_B = torch.where(mask_BT, torch.arange(T, device=mask_BT.device), -1).amax(1)
    if bool((last_B < 0).any()):
        raise ValueError("a sequence without a single masked token cannot be rewarded")
    placed_BT = torch.zeros(mask_BT.shape, dtype=reward_B.dtype, device=reward_B.device)
    return placed_BT.scatter(1, last_B[:, None], reward_B[:, None])


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation and returns (Schulman 2016, eq. 16, arxiv.org/abs/1506.02438).

    δ_t = r_t + γ V_{t+1} - V_t;  A_t = δ_t + γλ A_{t+1};  R_t = A_t + V_t. The mask of a sequence is one run of tokens,
    after which value and advantage are zero: an answer that ended has no future. Both results are zero off the mask.
    """
    advantages_BT = torch.zeros_like(rewards_BT)
    next_value_B = torch.zeros_like(rewards_BT[:, 0])
    next_advantage_B = torch.zeros_like(next_value_B)
    for t in range(rewards_BT.shape[1] - 1, -1, -1):
        inside_B = mask_BT[:, t]
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        next_advantage_B = torch.where(inside_B, delta_B + gamma * lam * next_advantage_B, 0.0)
        next_value_B = torch.where(inside_B, values_BT[:, t], 0.0)
        advantages_BT[:, t] = next_advantage_B
    return advantages_BT, torch.where(mask_BT, advantages_BT + values_BT, 0.0)


def whiten(x_BT: Tensor, mask_BT: Tensor, *, eps: float = 1e-8) -> Tensor:
    """(x - mean) / √(var + eps) over the masked tokens alone, biased variance, zero elsewhere (Ziegler 2019's code).

    `x` is of a whole rollout step: taken before the step is cut into minibatches, micro-batches and ranks' shares, so none of
    them changes it. Where all are equal they say nothing: zero.
    """
    inside_N = x_BT[mask_BT]
    mean, var = inside_N.mean(), inside_N.var(unbiased=False)
    differ = inside_N.amax() > inside_N.amin()
    return torch.where(mask_BT & differ, (x_BT - mean) * (var + eps).rsqrt(), 0.0)


def flat_groups(rewards_B: Tensor, group_size: int) -> Tensor:
    """Which groups of `group_size` answers to one prompt all got the same reward, and so say nothing, [G] bool.

    The largest is the smallest. A deviation cannot tell: the mean of equal numbers may be off by a last digit, and an optimiser that
    divides by the gradient's size (Adam, Muon) makes whole steps of that.
    """
    if group_size < 2 or len(rewards_B) % group_size:
        raise ValueError(f"{len(rewards_B)} rewards do not make groups of {group_size}; a group needs at least two")
    rewards_GK = rewards_B.view(-1, group_size)
    return rewards_GK.amax(1) == rewards_GK.amin(1)


def group_relative(rewards_B: Tensor, group_size: int, *, std_power: float = 1.0, eps: float = 1e-4) -> Tensor:
    """(r - mean) / (std + eps)^p within each group of `group_size` answers to one prompt, [B], groups one after another.

    p = 1 is GRPO (Shao 2024, §4.1.2, arxiv.org/abs/2402.03300), p = 0 Dr. GRPO, which leaves prompts of little variance their
    little weight (Liu 2025, arxiv.org/abs/2503.20783). The deviation divides by n - 1, as in the authors' code. A group
    whose rewards are all equal says nothing: zero. Groups are whole: no minibatch and no rank holds a part of one.
    """
    flat_G, rewards_GK = flat_groups(rewards_B, group_size), rewards_B.view(-1, group_size)
    centred_GK = rewards_GK - rewards_GK.mean(1, keepdim=True)
    spread_G1 = rewards_GK.std(1, keepdim=True)
    return torch.where(flat_G[:, None], 0.0, centred_GK / (spread_G1 + eps) ** std_power).flatten()


def normalised_each(
    parts: Sequence[tuple[float, Tensor]], group_size: int, std_power: float = 1.0, eps: float = 1e-4
) -> Tensor:
    """Σ_k w_k A_k, [B], where A_k is `group_relative` of the k-th reward alone, over the standard deviation of the sum in the step
    (GDPO: Liu 2026, arxiv.org/abs/2601.05242). Added first, a reward of large spread drowns the others, and sums that happen to be equal
    say nothing; the weights then weigh advantages, not rewards. Groups where nothing differs stay at 0 and out of that deviation.
    """
    parts_KB = torch.stack(
        [weight * group_relative(part_B, group_size, std_power=std_power, eps=eps) for weight, part_B in parts]
    )
    added_B = parts_KB.sum(0)
    # Two rewards that pull against each other leave a rounding error; nothing is learnt from it.
    useful_B = (added_B.abs() > 1e-3).view(-1, group_size).any(1).repeat_interleave(group_size)
    spread = added_B[useful_B].std(correction=0) if bool(useful_B.any()) else added_B.new_ones(())
    return torch.where(useful_B, added_B / (spread + eps), 0.0)


def leave_one_out(rewards_B: Tensor, group_size: int) -> Tensor:
    """r_i less the mean of the *other* answers to the same prompt, [B], groups one after another (RLOO: Ahmadian 2024,
    arxiv.org/abs/2402.14740; Kool 2019). The baseline does not depend on the answer, so the gradient has no bias.
    """
    return group_relative(rewards_B, group_size, std_power=0.0) * (group_size / (group_size - 1))
