"""What the tests of trainers that learn from their own answers share: a tiny cast, prompts, and rewards without a model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bridle.compute.device import Device
from bridle.compute.randomness import shuffled
from bridle.compute.steps import Steps
from bridle.core.records import Completion, Prompt, Reward
from bridle.generation.engine import Engine
from bridle.generation.rollout import Asking, Observe, Rollout, RolloutSession, roll_out
from bridle.models.decoder import Decoder
from bridle.models.policy import Policy
from bridle.project.progress import Progress
from bridle.project.run import Run
from bridle.recipe.watching import GuardSection
from tests.models.tiny import CPU, SHAPES, template
from tests.models.tiny import policy as tiny_policy
from tests.training.runs import DEVICE

PROMPTS = [Prompt.from_text(f"What is {i} + {i % 7}?") for i in range(12)]
NEW_TOKENS = 10


@dataclass
class Cast:
    """A policy that was loaded into the engine, and its frozen reference."""

    policy: Policy
    reference: Policy
    engine: Engine

    def session(
        self, run: Run | None = None, seed: int = 0, observe: Observe | None = None, tokens: int = NEW_TOKENS
    ) -> RolloutSession:
        """What a loop gets besides; without a run what needs none, one rollout or the update after it."""
        return RolloutSession(run or spare_run(), DEVICE, seed, self.engine, tokens, observe)

    def steps(self, optimizers: list[torch.optim.Optimizer]) -> Steps:
        """The steps of a loop that is never run, for one update."""
        return Steps(self.session(), {"policy": self.policy.module}, optimizers, 1, 1)

    def roll_out(
        self, reward: Reward, prompts: Sequence[Prompt] = PROMPTS[:4], group_size: int = 4, penalty: float = 0.0
    ) -> Rollout:
        """The first step's answers, prompts in the order that is given."""
        asking = Asking("test", in_order(prompts, seed=1), len(prompts), group_size, penalty=penalty)
        return roll_out(0, self.policy, reward, asking, self.session(seed=1))


def spare_run(max_unscored: float = 1.0) -> Run:
    """For what needs no folder: one rollout, or the update after it. All answers but one may lack a reward."""
    progress, limits = Progress(write=lambda text: None, live=False), GuardSection(max_unscored=max_unscored)
    return Run("test", Path("nowhere"), "key", 1, False, progress, limits=limits)


def in_order(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """Placed so that the first step of the stream "test" takes them as they stand in `prompts`."""
    order = shuffled(len(prompts), seed, "test-prompts", 0).tolist()
    return [prompts[order.index(place)] for place in range(len(prompts))]


def cast(dtype: torch.dtype = torch.float32) -> Cast:
    policy, reference = tiny_policy(dtype=dtype), tiny_policy(dtype=dtype)
    with torch.no_grad():  # some answers end, others are cut off
        for module in (policy.module, reference.module):
            module.output_weight()[template().eos_id] *= 1.5
    engine = Engine(dtype)
    engine.load(policy)
    return Cast(policy, reference, engine)


def long_answers(dtype: torch.dtype, run: Run, tokens: int = 400) -> tuple[Policy, Policy, RolloutSession]:
    """Policy, an equal reference and a session whose products are in `dtype`, for answers of up to so many tokens."""
    device = Device(CPU, dtype, 1, "test")
    policies = [tiny_policy(), tiny_policy()]
    for policy in policies:
        module = Decoder(replace(SHAPES["llama"], max_positions=512))
        module.load_state_dict(policy.module.state_dict())
        policy.module = module
    return policies[0], policies[1], RolloutSession(run, device, 0, Engine(dtype), tokens)


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
