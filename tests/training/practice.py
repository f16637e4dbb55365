"""What the tests of trainers that learn from their own answers share: a tiny cast, prompts, and rewards without a model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bridle.core.records import Completion, Prompt, Reward
from bridle.generation.engine import Engine
from bridle.generation.sampling import Sampling
from bridle.models.policy import Policy
from bridle.rewards.rollout import Rollout, roll_out
from tests.models.tiny import policy as tiny_policy
from tests.models.tiny import template
from tests.training.runs import DEVICE

PROMPTS = [Prompt.from_text(f"What is {i} + {i % 7}?") for i in range(12)]
NEW_TOKENS = 10


@dataclass
class Cast:
    """A policy that was loaded into the engine, and its frozen reference."""

    policy: Policy
    reference: Policy
    engine: Engine

    def roll_out(self, reward: Reward, prompts: Sequence[Prompt] = PROMPTS[:4], group_size: int = 4) -> Rollout:
        sampling = Sampling(NEW_TOKENS, 1.0)
        return roll_out(self.policy, self.engine, reward, prompts, sampling, DEVICE, seed=1, group_size=group_size)


def cast(dtype: torch.dtype = torch.float32) -> Cast:
    policy, reference = tiny_policy(dtype=dtype), tiny_policy(dtype=dtype)
    with torch.no_grad():  # some answers end, others are cut off
        for module in (policy.module, reference.module):
            module.output_weight()[template().eos_id] *= 1.5
    engine = Engine(dtype)
    engine.load(policy)
    return Cast(policy, reference, engine)


def low_ids(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
    """Share of an answer's tokens in the lower third of the vocabulary, special ones apart."""
    return [sum(3 <= t < 100 for t in c.token_ids) / len(c.token_ids) for c in completions]


def constant(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
    return [0.3] * len(completions)


def token_means(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
    """Something that differs between all answers: the mean of their token ids, in hundreds."""
    return [sum(c.token_ids) / len(c.token_ids) / 100 for c in completions]


def answer_logprob(policy: Policy, rollout: Rollout, row: int) -> Tensor:
    """log π of one answer's tokens by themselves, [L], with the gradient."""
    ids = rollout.batch.ids_BW[row, : int(rollout.batch.lengths_B[row])]
    logp_TV = policy.module(ids[None, :-1])[0].log_softmax(-1)
    start = int(rollout.batch.prompt_lengths_B[row]) - 1
    return logp_TV[start:].gather(1, ids[start + 1 :, None])[:, 0]
