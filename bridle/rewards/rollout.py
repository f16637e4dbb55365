"""A step's prompts, answered and scored: what every trainer that learns from its own answers begins with.

Shapes: B answers, T predictions (see models/batches.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from bridle.core.errors import TrainingStopped
from bridle.core.records import Completion, FinishReason, Prompt, Reward
from bridle.core.timeline import timed
from bridle.generation.engine import Engine, answer_prompts
from bridle.generation.sampling import Sampling
from bridle.models.batches import Batch, make_batch, sequence_logprobs, spread
from bridle.models.device import Device
from bridle.models.policy import Policy
from bridle.models.randomness import shuffled

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
    faults: dict[str, int] = field(default_factory=dict)  # why: None, nan, infinite, misshapen


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
    max_unscored: float = 1.0,
) -> Rollout:
    """Answer each prompt `group_size` times and score; the answers to a prompt stand together.

    An answer whose reward is None, not finite or no number is left out and counted by its fault, never taken for 0, and its
    whole group with it. Raises TrainingStopped where more than the share `max_unscored` has such a reward, or none is left.
    """
    asked = [prompt for prompt in prompts for _ in range(group_size)]
    with timed("answer"):
        completions = answer_prompts(engine, policy, asked, sampling, seed=seed)
    stale = {c.weight_stamp for c in completions} - {policy.stamp}
    if stale:
        raise TrainingStopped(f"answers come from weights {sorted(stale)} where {policy.stamp} was expected")
    with timed("score"):
        scores = one_each(reward(asked, completions), len(completions))
    faults = Counter(fault for score in scores if (fault := fault_of(score)) is not None)
    broken = {i // group_size for i, score in enumerate(scores) if fault_of(score) is not None}
    kept = [i for i in range(len(scores)) if i // group_size not in broken]
    left_out, unusable = len(scores) - len(kept), faults.total()
    if not kept or unusable > max_unscored * len(scores):
        why = ", ".join(f"{count} {fault}" for fault, count in faults.items())
        few = (
            f"none of {len(scores)} answers" if not kept else f"only {len(scores) - unusable} of {len(scores)} answers"
        )
        raise TrainingStopped(
            f"{few} got a finite reward to learn from ({why}); look at the reward source before going on, "
            "which must give a number for each answer, or None where it cannot judge"
        )
    with timed("batch"):
        asked, completions = [asked[i] for i in kept], [completions[i] for i in kept]
        score_B = torch.tensor([float(scores[i]) for i in kept], device=device.torch)
        cut_off_B = torch.tensor([c.finish_reason is FinishReason.LENGTH for c in completions], device=device.torch)
        batch = make_batch(
            policy.template.prompt_ids(asked), [c.token_ids for c in completions], policy.template.pad_id, device.torch
        )
        mask_BT = batch.mask_BT
        flat = [logp for c in completions for logp in c.sampled_logprobs]
        precision = policy.module.output_weight().dtype  # float32, but for tests that need more digits
        old_logp_BT = spread(torch.tensor(flat, dtype=precision, device=device.torch), mask_BT)
        reward_B = score_B - missing_stop_penalty * cut_off_B
        return Rollout(batch, mask_BT, old_logp_BT, score_B, reward_B, completions, asked, left_out, dict(faults))


def one_each(scores: Any, answers: int) -> list[Any]:
    """What a reward source gave, as a list with an entry for each answer; TrainingStopped where it is none."""
    try:
        listed = list(scores)
    except TypeError:
        raise TrainingStopped(
            f"the reward source gave {described(scores)} for {answers} answers; it must give a list with a number for each"
        ) from None
    if len(listed) != answers:
        raise TrainingStopped(
            f"the reward source gave {len(listed)} scores for {answers} answers; it must give one for each"
        )
    return listed


def fault_of(score: Any) -> str | None:
    """Why this reward cannot be used; None where it is a finite number."""
    if score is None:
        return "None"
    if not isinstance(score, Real) and not (isinstance(score, Tensor) and score.ndim == 0):
        return f"misshapen: {described(score)}"
    number = float(score)
    return None if math.isfinite(number) else "nan" if math.isnan(number) else "infinite"


def described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return (
        f"a {type(value).__name__} of {len(value)}" if isinstance(value, list | tuple) else f"a {type(value).__name__}"
    )


@timed("reference")
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
    """What the answers look like: length in tokens, share cut off, share of distinct texts; the spread of their scores, and
    the answers without one, by fault where there are any."""
    completions, score_B = rollout.completions, rollout.score_B
    flat = bool(
        (score_B == score_B[0]).all()
    )  # a mean of equal numbers may be off by a last digit, and so the deviation
    return {
        **({"score_sd": 0.0 if flat else float(score_B.std(correction=0))} if len(completions) > 1 else {}),
        "length": sum(len(c.token_ids) for c in completions) / len(completions),
        "cut_off": sum(c.finish_reason is FinishReason.LENGTH for c in completions) / len(completions),
        "distinct": len({c.text for c in completions}) / len(completions),
        "unscored": rollout.unscored,
        **{f"unscored_{fault}": count for fault, count in rollout.faults.items()},
    }


@timed("observe")
def observed(observe: Observe | None, rollout: Rollout) -> Mapping[str, float]:
    """What `observe`, if there is one, has to tell of a step's answers."""
    return {} if observe is None else observe(rollout.prompts, rollout.completions)
