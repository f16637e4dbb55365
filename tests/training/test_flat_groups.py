"""Where no reward differs nothing is learnt: no optimiser step, in any precision, and the log and the guard say so.

Adam and Muon divide by the size of a gradient, so what rounding leaves of equal numbers would be walked on as far as a signal.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bridle.core.records import Completion, Prompt, Reward
from bridle.generation.rollout import RolloutSession, minibatches
from bridle.guard.health import Health
from bridle.models.policy import Policy
from bridle.models.scorer import Scorer
from bridle.project.run import Run
from bridle.recipe.base import TrainerSection
from bridle.recipe.online import GRPOSection, PPOSection, REBELSection, RLOOSection
from bridle.recipe.watching import GuardSection
from bridle.training import grpo, ppo, rebel, rloo
from tests.exact.checks import caught_gradients
from tests.models.tiny import policy as tiny_policy
from tests.training.practice import PROMPTS, cast, constant, long_answers, token_means
from tests.training.runs import metrics, run_in, same, weights

SIZES = {"grpo": 8, "rloo": 8, "rebel": 2}  # answers to a prompt


def settings(name: str, prompts: int, **changed: Any) -> TrainerSection:
    raw: dict[str, Any] = {"steps": 3, "prompts_per_step": prompts, "minibatches": 2, "missing_stop_penalty": 0.0}
    if name == "rebel":
        return REBELSection.model_validate({**raw, **changed})
    section = GRPOSection if name == "grpo" else RLOOSection
    return section.model_validate({**raw, "group_size": SIZES[name], **changed})


def train(
    name: str, policy: Policy, reference: Policy, reward: Reward, config: TrainerSection, session: RolloutSession
) -> dict[str, float]:
    trainers: dict[str, Any] = {"grpo": grpo.train, "rloo": rloo.train, "rebel": rebel.train}
    found: dict[str, float] = trainers[name](policy, reference, reward, PROMPTS, config, session)
    return found


def warned(run: Run) -> set[str]:
    assert isinstance(run.watch, Health)
    return set(run.watch.state["warned"])


def flat_but_for(useful: int, size: int) -> Reward:
    """The answers to the first so many prompts of a step differ in reward, all others have .3."""

    def reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        means = token_means(prompts, completions)
        return [mean if i < useful * size else 0.3 for i, mean in enumerate(means)]

    return reward


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("prompts", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SIZES)
def test_equal_rewards_move_nothing(
    name: str, dtype: torch.dtype, prompts: int, optimizer: str, tmp_path: Path
) -> None:
    """One group by itself too. No moment is touched, no weight decays, and both signs are raised."""
    run = run_in(tmp_path)
    policy, reference, session = long_answers(dtype, run, tokens=30)
    before = weights(policy.module)
    with caught_gradients() as optimizer_steps:
        figures = train(name, policy, reference, constant, settings(name, prompts, optimizer=optimizer), session)
    assert same(before, policy.module) and not optimizer_steps
    for line in metrics(tmp_path):
        assert line["without_variance"] == 1 and line["grad_norm"] == 0
        assert name == "grpo" or line["kl"] == 0
    assert {"flat groups", "dead reward"} <= warned(run)
    assert name != "rebel" or figures["loss"] == figures["reward_gap"] == 0


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_one_flat_group_that_survives_moves_nothing(name: str, tmp_path: Path) -> None:
    """Of two groups one has an answer that cannot be judged: the step is then of a single group."""

    def reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        return [None, *[0.3] * (len(completions) - 1)]

    who = cast()
    before = weights(who.policy.module)
    figures = train(name, who.policy, who.reference, reward, settings(name, 2), who.session(run_in(tmp_path)))
    assert figures["unscored"] == 8 and figures["without_variance"] == 1 and same(before, who.policy.module)


@pytest.mark.parametrize("name", ["rloo", "rebel"])
def test_a_flat_group_is_flat_whatever_its_kl(name: str, tmp_path: Path) -> None:
    """Seven of eight, from a policy that has left its reference: the KL in the net rewards makes none of them differ in reward."""
    who, run = cast(), run_in(tmp_path, limits=GuardSection(max_flat_groups=0.8))
    config = settings(name, 8, kl_coef=0.5)
    figures = train(name, who.policy, tiny_policy(seed=5), flat_but_for(1, SIZES[name]), config, who.session(run))
    assert [line["without_variance"] for line in metrics(tmp_path)] == [0.875] * 3
    assert warned(run) >= {"flat groups"} and "dead reward" not in warned(run)
    assert figures["grad_norm"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rebel_begins_with_the_first_minibatch_that_says_something(dtype: torch.dtype, tmp_path: Path) -> None:
    """Eight minibatches of one pair, of which one differs in reward. Before it nothing has moved, so all log-odds are where they ought to
    be; after it the others hold theirs."""
    policy, reference, session = long_answers(dtype, run_in(tmp_path), tokens=30)
    config = settings("rebel", 8, steps=1, epochs=1, minibatches=8, optimizer="adamw")
    minis = minibatches(torch.arange(8), 2, config, 0, "rebel-minibatches", 0)  # type: ignore[arg-type]
    before = [int(mini[0, 0]) for mini in minis].index(0)
    assert before >= 2, "the test needs flat pairs first"
    with caught_gradients() as optimizer_steps:
        train("rebel", policy, reference, flat_but_for(1, 2), config, session)
    assert len(optimizer_steps) == 8 - before and any(bool(gradient.any()) for gradient in optimizer_steps[0])


@pytest.mark.parametrize("name", ["rloo", "rebel"])
def test_equal_rewards_far_from_the_reference_lead_back_to_it(name: str, tmp_path: Path) -> None:
    """What differs is the KL alone: the objective's own pull, and still a dead reward."""
    who, run = cast(), run_in(tmp_path)
    reference = tiny_policy(seed=5)
    before = weights(who.policy.module)
    train(name, who.policy, reference, constant, settings(name, 4, kl_coef=0.5, steps=6), who.session(run))
    lines = metrics(tmp_path)
    assert not same(before, who.policy.module) and lines[-1]["kl"] < lines[0]["kl"]
    assert all(line["without_variance"] == 1 for line in lines) and {"flat groups", "dead reward"} <= warned(run)
    still = cast()
    train(
        name, still.policy, reference, constant, settings(name, 4, kl_coef=0.0), still.session(run_in(tmp_path / "0"))
    )
    assert same(before, still.policy.module), "without a KL penalty nothing pulls"


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_rewards_move_no_policy_of_ppo(dtype: torch.dtype, shared: bool, tmp_path: Path) -> None:
    """Engine and training pass differ in the last digits, and the critic is wrong by much: neither is a signal."""
    run = run_in(tmp_path)
    policy, reference, session = long_answers(dtype, run, tokens=30)
    critic = Scorer(policy.module.model if shared else tiny_policy().module.model)
    torch.nn.init.normal_(critic.score.weight)
    before = weights(policy.module)
    config = PPOSection(steps=3, prompts_per_step=8, batch_size=8, missing_stop_penalty=0.0)
    ppo.train(ppo.Actors(policy, reference, critic), constant, PROMPTS, [], config, session)
    assert same(before, policy.module) and {line["kl"] for line in metrics(tmp_path)} == {0.0}
    assert "dead reward" in warned(run)
    assert len({line["value_loss"] for line in metrics(tmp_path)}) == 3  # the critic learns what there is to expect
