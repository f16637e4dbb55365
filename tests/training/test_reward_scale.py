"""PPO on a reward in its user's units: what the critic predicts in, what is kept of it, and what β may become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bridle.core.records import Completion, Prompt, Reward
from bridle.maths.returns import ReturnScale
from bridle.models.policy import Policy
from bridle.project.metrics import read_metrics
from bridle.project.run import Run
from bridle.recipe.online import PPOSection
from bridle.recipe.recipe import Recipe
from bridle.training import ppo
from tests.exact.world import CUT_OFF_COSTS, PROMPTS, World, answer_logp_A, critic, practising
from tests.exact.world import PROMPT_IDS as IDS
from tests.training.runs import dying_at, metrics, run_in, same, weights

WORLD = World.made(0)


def config(factor: float = 1.0, **settings: Any) -> PPOSection:
    known = {
        "steps": 8, "prompts_per_step": 96, "batch_size": 96, "learning_rate": 0.03, "critic_learning_rate": 0.1,
        "kl_coef": 0.3 * factor, "missing_stop_penalty": CUT_OFF_COSTS * factor, "checkpoint_every": 2,
    }  # fmt: skip
    return PPOSection.model_validate({**known, **settings})


def affine(factor: float, shift: float) -> Reward:
    plain: Callable[..., Sequence[float | None]] = WORLD.reward()

    def reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        return [factor * float(score or 0) + shift for score in plain(prompts, completions)]

    return reward


def train(run: Run, section: PPOSection, reward: Reward) -> tuple[ppo.Actors, dict[str, float]]:
    actors = ppo.Actors(WORLD.policy(), WORLD.policy("reference"), critic())
    return actors, ppo.train(actors, reward, PROMPTS, [], section, practising(run))


def chances(policy: Policy) -> torch.Tensor:
    return torch.stack([answer_logp_A(policy.module.output_weight().detach(), ids).exp() for ids in IDS])


@pytest.mark.parametrize(("factor", "shift"), [(100.0, 0.0), (1000.0, 500.0), (0.001, 3.0)])
def test_a_reward_in_other_units_trains_the_same_policy_and_critic(factor: float, shift: float, tmp_path: Path) -> None:
    """With β and the penalty of being cut off in those units too. A reward is float32, and Adam repeats its last digits."""
    one, _ = train(run_in(tmp_path / "one"), config(), affine(1.0, 0.0))
    other, _ = train(run_in(tmp_path / "other"), config(factor), affine(factor, shift))
    torch.testing.assert_close(chances(other.policy), chances(one.policy), rtol=0, atol=2e-3)
    plain, scaled = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "other")
    for line, theirs in zip(plain, scaled, strict=True):
        for name in ("value_explained", "value_loss", "clip_fraction", "kl"):
            assert theirs[name] == pytest.approx(line[name], abs=5e-3), name
        assert theirs["beta"] == pytest.approx(factor * line["beta"], rel=1e-3)
    assert plain[-1]["value_explained"] > 0.3, "the test needs a critic that explains something"


@pytest.mark.parametrize(("normalise", "explains"), [("running", True), ("none", False)])
def test_off_by_name_alone_the_critic_is_in_units_of_the_reward(normalise: str, explains: bool, tmp_path: Path) -> None:
    """Where it can explain nothing of a reward around 50."""
    train(run_in(tmp_path), config(100.0, normalise_returns=normalise), affine(100.0, 50.0))
    assert (read_metrics(tmp_path)[-1]["value_explained"] > 0.3) == explains


def test_a_flat_reward_divides_by_nothing(tmp_path: Path) -> None:
    section = config(kl_coef=0.0, kl_target=0.0, missing_stop_penalty=0.0, steps=2)
    _, figures = train(run_in(tmp_path), section, lambda prompts, completions: [0.3] * len(completions))
    assert figures["value_loss"] < 1e-9, "the critic says the mean, and that is all there is"


@pytest.mark.parametrize("line", [1, 3, 4])
def test_a_run_that_died_goes_on_in_the_same_units(line: int, tmp_path: Path) -> None:
    section, reward = config(100.0, steps=4), affine(100.0, 50.0)
    whole, expected = train(run_in(tmp_path / "whole"), section, reward)
    with dying_at(line):
        train(run_in(tmp_path / "cut"), section, reward)
    resumed, found = train(run_in(tmp_path / "cut"), section, reward)
    assert found == expected and metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert same(weights(whole.policy.module), resumed.policy.module) and same(weights(whole.critic), resumed.critic)


def test_a_run_begun_before_there_was_a_scale_ends_as_it_began(tmp_path: Path) -> None:
    """Its checkpoint says nothing of returns, and its critic predicts in units of the reward."""
    old, reward = config(steps=4, normalise_returns="none"), affine(1.0, 0.0)
    whole, expected = train(run_in(tmp_path / "whole"), old, reward)
    with dying_at(3):
        train(run_in(tmp_path / "cut"), old, reward)
    resumed, found = train(run_in(tmp_path / "cut"), config(steps=4), reward)
    assert found == expected and same(weights(whole.critic), resumed.critic)
    assert Recipe().hash_of("ppo") != Recipe().with_settings({"ppo.normalise_returns": "none"}).hash_of("ppo")


def test_beta_is_steered_in_the_units_of_the_reward(tmp_path: Path) -> None:
    """A β of 120 is no larger for a reward of 0 to 1,000 than .12 for one of 0 to 1."""
    train(run_in(tmp_path), config(400.0, steps=2, kl_target=1e-9), affine(400.0, 0.0))
    first, second = read_metrics(tmp_path)
    assert first["beta"] == 120 and second["beta"] > 100


# ---------------------------------------------------------------------------------------------- mean and deviation


def test_the_first_ten_steps_count_alike_and_later_ones_fade() -> None:
    steps = 5 + 3 * torch.randn(10, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = ReturnScale()
    for returns in steps:
        scale = scale.after(returns)
    assert scale.mean == pytest.approx(float(steps.mean())) and scale.var == pytest.approx(
        float(steps.var(correction=0))
    )
    for _ in range(60):
        scale = scale.after(torch.tensor([-1.0, 1.0]))
    assert abs(scale.mean) < 0.02 and scale.deviation == pytest.approx(1, abs=0.1)


def test_values_go_there_and_back() -> None:
    scale = ReturnScale().after(torch.tensor([10.0, 20.0, 60.0]))
    values = torch.tensor([-1.0, 0.0, 2.5])
    torch.testing.assert_close(scale.normalised(scale.in_rewards(values)), values)
    assert float(scale.in_rewards(torch.tensor(0.0))) == pytest.approx(30)
    assert ReturnScale().in_rewards(values).tolist() == values.tolist() == ReturnScale().normalised(values).tolist()


@pytest.mark.parametrize("level", [0.0, 0.3, -1e6])
def test_returns_that_do_not_differ_have_the_deviation_one(level: float) -> None:
    assert ReturnScale().after(torch.full((7,), level)).deviation == 1.0


def test_what_rounding_leaves_is_no_deviation() -> None:
    """Of float32 numbers around 1,000 the last digit is 6e-5."""
    assert ReturnScale(mean=1000.0, var=5e-5**2, steps=1).deviation == 1.0
    assert ReturnScale(mean=1000.0, var=5e-3**2, steps=1).deviation == pytest.approx(5e-3)
