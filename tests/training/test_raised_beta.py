"""A KL weight that a rule of the guard has raised is the weight by which each method learns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bridle.generation.rollout import RolloutSession
from bridle.guard.watch import OnlineWatch
from bridle.models.policy import Policy
from bridle.models.scorer import critic_from, scorer_from
from bridle.recipe.online import GRPOSection, PPOSection, REBELSection, RLOOSection
from bridle.recipe.watching import GuardSection
from bridle.training import grpo, ppo, rebel, rloo
from tests.exact.steps import PROMPTS, practising, tiny, token_points

Train = Callable[[Policy, Policy, float, RolloutSession], Any]
FEW = {"steps": 1, "prompts_per_step": 4, "learning_rate": 1e-3}


def train_ppo(policy: Policy, reference: Policy, beta: float, session: RolloutSession) -> Any:
    config = PPOSection.model_validate(
        {**FEW, "kl_coef": beta, "kl_target": 0.0, "epochs": 1, "minibatches": 1, "critic_warmup": 0}
    )
    critic = critic_from(scorer_from(policy.module, torch.Generator().manual_seed(0)).double())
    return ppo.train(ppo.Actors(policy, reference, critic), token_points, PROMPTS, [], config, session)


def train_grpo(policy: Policy, reference: Policy, beta: float, session: RolloutSession) -> Any:
    config = GRPOSection.model_validate({**FEW, "kl_coef": beta, "group_size": 4})
    return grpo.train(policy, reference, token_points, PROMPTS, config, session)


def train_rloo(policy: Policy, reference: Policy, beta: float, session: RolloutSession) -> Any:
    config = RLOOSection.model_validate({**FEW, "kl_coef": beta, "group_size": 4})
    return rloo.train(policy, reference, token_points, PROMPTS, config, session)


def train_rebel(policy: Policy, reference: Policy, beta: float, session: RolloutSession) -> Any:
    config = REBELSection.model_validate({**FEW, "kl_coef": beta})
    return rebel.train(policy, reference, token_points, PROMPTS, config, session)


def learnt(train: Train, beta: float, factor: float, folder: Path) -> Tensor:
    """All weights after a step."""
    policy, session = tiny(), practising(folder)
    session.run.watch = watch = OnlineWatch(GuardSection())
    watch.own["kl_factor"] = factor
    train(policy, tiny(5), beta, session)
    return torch.cat([tensor.flatten() for tensor in policy.module.state_dict().values()])


@pytest.mark.parametrize("train", [train_ppo, train_grpo, train_rloo, train_rebel])
def test_beta_is_multiplied(train: Train, tmp_path: Path) -> None:
    raised, high, low = (
        learnt(train, beta, factor, tmp_path / f"{beta}-{factor}")
        for beta, factor in ((0.25, 4.0), (1.0, 1.0), (0.25, 1.0))
    )
    assert torch.equal(raised, high) and not torch.equal(raised, low)
