"""One optimiser step of every trainer on a tiny model in float64, for the gradient that its optimisers find.

Answers, prompts and rows are uneven; several answers share a prompt, so that the packed path is taken.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridle.core.records import Completion, Prompt
from bridle.generation.engine import Engine
from bridle.generation.rollout import RolloutSession
from bridle.models.batches import Group, Rated
from bridle.models.policy import Policy, RewardModel
from bridle.models.scorer import scorer_from
from bridle.recipe.offline import DPOSection, KTOSection, ORPOSection, PretrainSection, RewardSection, SFTSection
from bridle.recipe.online import GRPOSection, PPOSection, REBELSection, RejectionSection, RLOOSection
from bridle.training import dpo, grpo, kto, ppo, pretrain, rebel, rejection, reward, rloo, sft
from tests.exact.checks import caught_gradients
from tests.models.tiny import policy as tiny_policy
from tests.models.tiny import random_ids, template
from tests.training.runs import DEVICE, groups, metrics, run_in, session

NO_CLIP, NEW_TOKENS = 1e9, 7
CUT: dict[str, int] = {}  # micro_tokens of every step that is made, where a test wants some
EXAMPLES = [(p, a) for i, p in enumerate(random_ids(4, 2, 6)) for a in random_ids(3, 1, 8, seed=10 + i)]
PROMPTS = [
    Prompt.from_text(text) for text in ("Hi", "What is 2 + 3?", "And the rain?", "Tell me a joke about cats.", "Why")
]


@dataclass(frozen=True)
class Step:
    """Gradients by optimiser step, optimiser and parameter, and what was logged."""

    gradients: list[list[Tensor]]
    metrics: list[dict[str, Any]]


def tiny(seed: int = 0) -> Policy:
    """A quarter of its tokens are stops, so answers are of every length, and some are cut off."""
    policy = tiny_policy("llama", seed, torch.float64)
    return replace(policy, template=replace(policy.template, stop_ids=frozenset(range(1, 75))))


def token_points(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
    return [sum(c.token_ids) / len(c.token_ids) / 100 for c in completions]


def caught(train: Callable[[Path], object]) -> Step:
    with tempfile.TemporaryDirectory() as folder, caught_gradients() as found:
        train(Path(folder))
        return Step(found, metrics(Path(folder) / "run"))


def practising(folder: Path) -> RolloutSession:
    return RolloutSession(run_in(folder / "run"), DEVICE, 0, Engine(torch.float64), NEW_TOKENS)


def pretrain_step(size: int, rows: int = 6) -> Step:
    ids_RT = torch.tensor([row[:9] for row in random_ids(rows, 9, 9)])
    config = PretrainSection(batch_size=rows, length=8, optimizer="adamw", clip_norm=NO_CLIP, **CUT)
    return caught(lambda f: pretrain.train(tiny(), ids_RT, rows * 8, config, session(run_in(f / "run"))))


def sft_step(size: int, count: int = 12) -> Step:
    config = SFTSection(batch_size=count, micro_batch=size, epochs=1, optimizer="adamw", clip_norm=NO_CLIP, **CUT)
    return caught(lambda f: sft.train(tiny(), EXAMPLES[:count], config, session(run_in(f / "run"))))


def reward_step(size: int) -> Step:
    model = RewardModel(scorer_from(tiny().module, torch.Generator().manual_seed(0)).double(), template(), "made")
    config = RewardSection(batch_size=5, micro_batch=size, clip_norm=NO_CLIP, score_size=0.1, **CUT)
    return caught(
        lambda f: reward.train(model, groups(5, seed=0), config, 1, 1e-3, session(run_in(f / "run")))
    )  # fmt: skip


def dpo_step(size: int, loss: str = "dpo") -> Step:
    config = DPOSection.model_validate(
        {"batch_size": 5, "micro_batch": size, "clip_norm": NO_CLIP, "loss": loss, **CUT}
    )
    return caught(
        lambda f: dpo.train(tiny(), tiny(5), groups(5, seed=0), config, session(run_in(f / "run")), f / "cache")
    )  # fmt: skip


def orpo_step(size: int) -> Step:
    config = ORPOSection(batch_size=5, micro_batch=size, clip_norm=NO_CLIP, **CUT)
    return caught(
        lambda f: dpo.train(tiny(), None, groups(5, seed=0), config, session(run_in(f / "run")), f / "cache")
    )  # fmt: skip


def kto_step(size: int, count: int = 5) -> Step:
    """Comparisons, and a vote by itself; the estimated KL is above 0."""
    config = KTOSection(batch_size=6, micro_batch=size, clip_norm=NO_CLIP, undesirable_weight=1.3, **CUT)
    given = [*groups(count, seed=0), Group([7, 8], [[20, 21, 1]], ratings=[Rated(0, 1.0)])]
    return caught(
        lambda f: kto.train(tiny(), tiny(5), given, config, session(run_in(f / "run")), f / "cache")
    )  # fmt: skip


def online_dpo_step(size: int) -> Step:
    config = DPOSection(
        online_rounds=1, online_prompts=5, online_answers=4, batch_size=5, micro_batch=size, learning_rate=0.0,
        clip_norm=NO_CLIP, sft=0.2, **CUT,
    )  # fmt: skip
    return caught(
        lambda f: dpo.train_online(tiny(), tiny(5), token_points, PROMPTS, config, practising(f))
    )  # fmt: skip


def rejection_step(size: int) -> Step:
    config = RejectionSection(rounds=1, prompts_per_round=5, answers=4, learning_rate=0.0, clip_norm=NO_CLIP, **CUT)
    return caught(
        lambda f: rejection.train(tiny(), tiny(5), token_points, PROMPTS, config, practising(f))
    )  # fmt: skip


def grpo_step(size: int, length_power: float = 0.0, prompts: int = 5) -> Step:
    config = GRPOSection(
        steps=1, prompts_per_step=prompts, group_size=4, minibatches=1, batch_size=4 * size or 64, learning_rate=0.0,
        kl_coef=0.1, clip_norm=NO_CLIP, length_power=length_power, **CUT,
    )  # fmt: skip
    return caught(
        lambda f: grpo.train(tiny(), tiny(5), token_points, PROMPTS, config, practising(f))
    )  # fmt: skip


def rloo_step(size: int, prompts: int = 5) -> Step:
    config = RLOOSection(
        steps=1,
        prompts_per_step=prompts,
        group_size=4,
        batch_size=4 * size or 64,
        learning_rate=0.0,
        clip_norm=NO_CLIP,
        **CUT,
    )
    return caught(
        lambda f: rloo.train(tiny(), tiny(5), token_points, PROMPTS, config, practising(f))
    )  # fmt: skip


def rebel_step(size: int, prompts: int = 6) -> Step:
    config = REBELSection(
        steps=1, prompts_per_step=prompts, epochs=1, minibatches=1, batch_size=2 * size or 64, learning_rate=0.0,
        clip_norm=NO_CLIP, **CUT,
    )  # fmt: skip
    return caught(
        lambda f: rebel.train(tiny(), tiny(5), token_points, PROMPTS, config, practising(f))
    )  # fmt: skip


def ppo_step(size: int, answers: int = 12, shared_trunk: bool = False) -> Step:
    """Two optimiser steps of policy and critic, at the same weights, with demonstrations mixed in."""
    config = PPOSection(
        steps=1, prompts_per_step=answers, epochs=1, minibatches=2, batch_size=size or 64, learning_rate=0.0,
        critic_learning_rate=0.0, kl_target=0.0, clip_norm=NO_CLIP, pretrain_coef=0.1, **CUT,
    )  # fmt: skip
    policy = tiny()
    critic = scorer_from(policy.module, torch.Generator().manual_seed(0)).double()
    if shared_trunk:
        critic.model = policy.module.model
    return caught(
        lambda f: ppo.train(
            ppo.Actors(policy, tiny(5), critic), token_points, PROMPTS, EXAMPLES, config, practising(f)
        )
    )  # fmt: skip


STEPS: dict[str, Callable[[int], Step]] = {  # by the sequences (prompts, groups) of a micro-batch; 0: all at once
    "sft": sft_step,
    "reward": reward_step,
    "dpo": dpo_step,
    "ipo": partial(dpo_step, loss="ipo"),
    "simpo": partial(dpo_step, loss="simpo"),
    "orpo": orpo_step,
    "kto": kto_step,
    "grpo by tokens": partial(grpo_step, length_power=0.0),
    "grpo between": partial(grpo_step, length_power=0.5),
    "grpo by answers": partial(grpo_step, length_power=1.0),
    "dpo online": online_dpo_step,
    "rloo": rloo_step,
    "rebel": rebel_step,
    "ppo": ppo_step,
    "ppo, one trunk": partial(ppo_step, shared_trunk=True),
}
FEW: dict[str, Callable[[int], Step]] = {  # those without micro-batches, and fewer rows than ranks
    "pretrain": pretrain_step,
    "best of n": rejection_step,
    "pretrain few": partial(pretrain_step, rows=2),
    "sft few": partial(sft_step, count=2),
    "kto few": partial(kto_step, count=1),
    "grpo few": partial(grpo_step, prompts=2),
    "rloo few": partial(rloo_step, prompts=2),
    "rebel few": partial(rebel_step, prompts=2),
    "ppo few": partial(ppo_step, answers=3),
}
SHARED: dict[int, list[str]] = {  # by ranks
    2: ["sft", "reward", "dpo", "kto", "grpo by tokens", "ppo"],
    3: [name for name in (*STEPS, *FEW) if name not in ("ipo", "simpo", "orpo", "grpo between")],
}
