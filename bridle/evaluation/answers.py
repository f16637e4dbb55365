"""One fresh answer to each held-out prompt at temperature 1, and what can be measured of them.

KL is the sum over an answer's tokens of log π - log π_ref, its mean over answers with a
standard error by prompt; the proxy is the reward model's score in standard deviations of SFT's answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bridle.compute.device import Device
from bridle.core.records import Completion, FinishReason, Prompt, Reward
from bridle.core.timeline import timed
from bridle.generation.engine import Engine, answer_prompts
from bridle.generation.sampling import Sampling
from bridle.maths.statistics import mean_and_se
from bridle.models.batches import by_length, make_batch, sequence_logprobs
from bridle.models.policy import Policy


@dataclass(frozen=True)
class Answered:
    """A model's answers to `prompts`, in their order."""

    prompts: list[Prompt]
    completions: list[Completion]


def answer_all(
    policy: Policy,
    engine: Engine,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> Answered:
    with timed("pack"):
        engine.load(policy)
    with timed("answer"):
        completions = answer_prompts(engine, policy, prompts, Sampling(max_new_tokens), seed=seed, progress=progress)
    return Answered(list(prompts), completions)


@timed("kl")
@torch.no_grad()
def kl_of(answered: Answered, policy: Policy, reference: Policy, device: Device) -> tuple[float, float]:
    """KL(π‖π_ref) in nats per answer with its standard error, both sides by the same forward pass."""
    prompt_ids = policy.template.prompt_ids(answered.prompts)
    answer_ids = [c.token_ids for c in answered.completions]
    per_answer = torch.zeros(len(answer_ids))
    for rows in by_length([len(p) + len(a) for p, a in zip(prompt_ids, answer_ids, strict=True)], 64):
        batch = make_batch(
            [prompt_ids[i] for i in rows], [answer_ids[i] for i in rows], policy.template.pad_id, device.torch
        )
        with device.autocast():
            gap_BT = sequence_logprobs(policy.module, batch) - sequence_logprobs(reference.module, batch)
        per_answer[rows] = gap_BT.sum(1).float().cpu()
    return mean_and_se(per_answer.numpy(), [prompt.id for prompt in answered.prompts])


def text_metrics(answered: Answered) -> dict[str, float]:
    """Length in tokens with its standard error, share cut off, share of distinct texts."""
    completions = answered.completions
    count = len(completions)
    length, error = mean_and_se([len(c.token_ids) for c in completions], [prompt.id for prompt in answered.prompts])
    return {
        "length": length,
        "length_se": error,
        "cut_off": sum(c.finish_reason is FinishReason.LENGTH for c in completions) / count,
        "distinct": len({c.stripped for c in completions}) / count,
    }


@timed("score")
def proxy_scores(answered: Answered, reward: Reward) -> list[float]:
    """The reward model's scores; one that could not be judged is left as nan."""
    scores = reward(answered.prompts, answered.completions)
    return [float("nan") if s is None else float(s) for s in scores]
