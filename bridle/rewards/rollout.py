"""A step's prompts, answered and scored: what every trainer that learns from its own answers begins with.

Shapes: B answers, T predictions (see models/batches.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bridle.core.errors import TrainingStopped
from bridle.core.records import Completion, FinishReason, Prompt, Reward
from bridle.generation.engine import Engine, answer_prompts
from bridle.generation.sampling import Sampling
from bridle.models.batches import Batch, make_batch, sequence_logprobs, spread
from bridle.models.device import Device
from bridle.models.policy import Policy
from bridle.models.randomness import shuffled

GAP_ALARM = 0.05  # nats a token; bfloat16 stays near .01

# Looks at a step's answers for the log, and steers nothing.
Observe = Callable[[Sequence[Prompt], Sequence[Completion]], Mapping[str, float]]


@dataclass(frozen=True)
class Rollout:
    """The answers of one step that could be scored, as tensors. Off the mask every [B, T] tensor is zero."""

    batch: Batch
    mask_BT: Tensor
    old_logp_BT: Tensor  # of the distribution that was sampled from
    score_B: Tensor  # from the reward source
    reward_B: Tensor  # the same with the missing-stop penalty taken off
    completions: list[Completion]
    prompts: list[Prompt]
    unscored: int


def take_prompts(prompts: Sequence[Prompt], step: int, count: int, seed: int, purpose: str) -> list[Prompt]:
    """The next `count` prompts of an endless series of shuffled passes."""
    taken = [divmod(number, len(prompts)) for number in range(step * count, (step + 1) * count)]
    orders = {epoch: shuffled(len(prompts), seed, purpose, epoch) for epoch in {epoch for epoch, _ in taken}}
    return [prompts[int(orders[epoch][position])] for epoch, position in taken]


def roll_out(
    policy: Policy,
    engine: Engine,
    reward: Reward,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    device: Device,
    seed: int,
    *,
    missing_stop_penalty: float = 0.0,
    group_size: int = 1,
) -> Rollout:
    """Answer each prompt `group_size` times and score; the answers to a prompt stand together.

    An answer whose reward is None or not finite is left out and counted, never taken for 0, and its whole group with it.
    """
    asked = [prompt for prompt in prompts for _ in range(group_size)]
    completions = answer_prompts(engine, policy, asked, sampling, seed=seed)
    stale = {c.weight_stamp for c in completions} - {policy.stamp}
    if stale:
        raise TrainingStopped(f"answers come from weights {sorted(stale)} where {policy.stamp} was expected")
    scores = reward(asked, completions)
    if len(scores) != len(completions):
        raise TrainingStopped(
            f"the reward source gave {len(scores)} scores for {len(completions)} answers; it must give one for each"
        )
    broken = {i // group_size for i, score in enumerate(scores) if score is None or not math.isfinite(score)}
    kept = [i for i in range(len(scores)) if i // group_size not in broken]
    if not kept:
        raise TrainingStopped(
            f"none of {len(scores)} answers got a finite reward; look at the reward source before going on"
        )
    asked, completions = [asked[i] for i in kept], [completions[i] for i in kept]
    score_B = torch.tensor([float(scores[i] or 0.0) for i in kept], device=device.torch)
    cut_off_B = torch.tensor([c.finish_reason is FinishReason.LENGTH for c in completions], device=device.torch)
    batch = make_batch(
        policy.template.prompt_ids(asked), [c.token_ids for c in completions], policy.template.pad_id, device.torch
    )
    mask_BT = batch.mask_BT
    flat = [logp for c in completions for logp in c.sampled_logprobs]
    old_logp_BT = spread(torch.tensor(flat, dtype=torch.float32, device=device.torch), mask_BT)
    reward_B = score_B - missing_stop_penalty * cut_off_B
    return Rollout(batch, mask_BT, old_logp_BT, score_B, reward_B, completions, asked, len(scores) - len(kept))


@torch.no_grad()
def reference_logprobs(
    rollout: Rollout, reference: Policy, temperature: float, batch_size: int, device: Device
) -> Tensor:
    """log π_ref of the answers' tokens, [B, T], zero off the mask. Answers to a prompt that share a batch read it once."""
    found_BT = torch.zeros_like(rollout.old_logp_BT)
    for part in torch.arange(len(rollout.batch)).split(batch_size):
        rows = rollout.batch.rows(part.to(device.torch))
        with device.autocast():
            logp_MT = sequence_logprobs(reference.module, rows, temperature)
        found_BT[part, : logp_MT.shape[1]] = logp_MT.to(found_BT)
    return found_BT


def answer_figures(rollout: Rollout) -> dict[str, float]:
    """What the answers look like: length in tokens, share cut off, share of distinct texts, answers without a reward."""
    completions = rollout.completions
    return {
        "length": sum(len(c.token_ids) for c in completions) / len(completions),
        "cut_off": sum(c.finish_reason is FinishReason.LENGTH for c in completions) / len(completions),
        "distinct": len({c.text for c in completions}) / len(completions),
        "unscored": rollout.unscored,
    }


def gap_warning(gap: float) -> str | None:
    """A sentence where the engine's log-probs differ too much from those of the training pass."""
    if gap <= GAP_ALARM:
        return None
    return (
        f"the engine's log-probs differ from the training pass by {gap:.3f} nats a token on average; "
        "set model.precision to float32 if this stays"
    )
