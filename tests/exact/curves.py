"""Three steps of five trainers, as one process takes them or as ranks that share each step: what they log and the weights they leave."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bridle.compute.sharding import DIVIDED
from bridle.generation.engine import Engine
from bridle.generation.rollout import RolloutSession
from bridle.models.lora.policies import learner
from bridle.models.policy import Policy, RewardModel
from bridle.models.scorer import scorer_from
from bridle.project.run import Run
from bridle.recipe.data import LoRASection, ModelSection
from bridle.recipe.offline import DPOSection, RewardSection, SFTSection
from bridle.recipe.online import GRPOSection, PPOSection
from bridle.recipe.services import ScaleSection
from bridle.training import dpo, grpo, ppo, reward, sft
from tests.exact.steps import EXAMPLES, NEW_TOKENS, PROMPTS, token_points
from tests.models.tiny import policy as tiny_policy
from tests.models.tiny import template
from tests.training.runs import DEVICE, groups, metrics, run_in, session

STEPS, RATE = 3, 3e-3
TIED, UNTIED = "qwen3", "llama"  # whether the embedding is the head


def tiny(seed: int = 0, shape: str = TIED) -> Policy:
    policy = tiny_policy(shape, seed)
    return replace(policy, template=replace(policy.template, stop_ids=frozenset(range(1, 75))))


def online(run: Run) -> RolloutSession:
    return RolloutSession(run, DEVICE, 0, Engine(torch.float32), NEW_TOKENS)


def by_sft(run: Run) -> list[torch.nn.Module]:
    """Steps of five rows, of which one rank has three and the other two, so it makes a pass less; and one of a single row."""
    policy, config = tiny(), SFTSection(batch_size=5, micro_batch=2, epochs=1, optimizer="adamw", learning_rate=RATE)
    sft.train(policy, EXAMPLES[:11], config, session(run))
    return [policy.module]


def by_reward(run: Run) -> list[torch.nn.Module]:
    """Its layers are run again in the backward pass."""
    run.model = ModelSection(checkpoint_activations=True)
    model = RewardModel(scorer_from(tiny().module, torch.Generator().manual_seed(0)), template(), "made")
    config = RewardSection(batch_size=5, micro_batch=2, score_size=0.1)
    reward.train(model, groups(15, seed=0), config, 1, RATE, session(run))
    return [model.module]


def by_dpo(run: Run) -> list[torch.nn.Module]:
    policy, config = tiny(shape=UNTIED), DPOSection(batch_size=5, micro_batch=2, learning_rate=RATE, observe_every=0)
    dpo.train(policy, tiny(5, UNTIED), groups(15, seed=0), config, session(run), run.folder / "cache")
    return [policy.module]


def by_ppo(run: Run) -> list[torch.nn.Module]:
    policy = tiny()
    critic = scorer_from(policy.module, torch.Generator().manual_seed(0))
    config = PPOSection(
        steps=STEPS, prompts_per_step=7, epochs=1, minibatches=2, batch_size=2, learning_rate=RATE, critic_learning_rate=RATE,
        pretrain_coef=0.1,
    )  # fmt: skip
    ppo.train(ppo.Actors(policy, tiny(5), critic), token_points, PROMPTS, EXAMPLES, config, online(run))
    return [policy.module, critic]


def by_grpo(run: Run) -> list[torch.nn.Module]:
    """By an adapter: its frozen base is not divided."""
    policy = learner(tiny(), LoRASection(r=2), torch.Generator().manual_seed(0))
    config = GRPOSection(
        steps=STEPS, prompts_per_step=3, group_size=3, minibatches=1, batch_size=3, learning_rate=RATE, kl_coef=0.1
    )
    grpo.train(policy, tiny(5), token_points, PROMPTS, config, online(run))
    return [policy.module]


TRAINERS: dict[str, Callable[[Run], list[torch.nn.Module]]] = {
    "sft": by_sft, "reward": by_reward, "dpo": by_dpo, "ppo": by_ppo, "grpo": by_grpo,
}  # fmt: skip
WAYS = {"data": ScaleSection(), "shard": ScaleSection(shard=True)}


def curves(folder: Path, scale: ScaleSection, names: Iterable[str] = TRAINERS) -> dict[str, Any]:
    """By trainer its logged lines and the weights that it leaves."""
    found = {}
    for name in names:
        run = run_in(folder / name)
        run.scale = scale
        modules = TRAINERS[name](run)
        divided = [module in DIVIDED for module in modules]
        found[name] = (metrics(run.folder), [module.state_dict() for module in modules], divided)
    return found
