"""REBEL: the regression by hand, where it comes to rest, what a reward makes likelier, and going on where it stopped."""

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from bridle.core.errors import NoUsableRows
from bridle.core.records import Completion, Prompt, Reward
from bridle.project.run import Run
from bridle.recipe.online import REBELSection
from bridle.training import rebel
from tests.training.practice import PROMPTS, Cast, answer_logprob, cast, constant, low_ids, token_means
from tests.training.runs import dying_at, metrics, run_in, same, weights

CONFIG = REBELSection(
    steps=2, prompts_per_step=6, batch_size=64, epochs=1, minibatches=1, kl_coef=0.0, missing_stop_penalty=0.0,
    checkpoint_every=2,
)  # fmt: skip


def with_settings(**settings: Any) -> REBELSection:
    return REBELSection.model_validate({**CONFIG.model_dump(), **settings})


def train(who: Cast, reward: Reward, config: REBELSection, run: Run, seed: int = 0) -> dict[str, float]:
    return rebel.train(who.policy, who.reference, reward, PROMPTS, config, who.session(run, seed))


def test_no_prompts_is_said(tmp_path: Path) -> None:
    who = cast()
    with pytest.raises(NoUsableRows, match="REBEL needs prompts to answer"):
        rebel.train(who.policy, who.reference, constant, [], CONFIG, who.session(run_in(tmp_path)))


# ------------------------------------------------------------------------------------------------ 1. the update


def test_the_first_update_by_hand() -> None:
    """Nothing has moved: the error is the difference of rewards, and its gradient that of the log-odds over η."""
    who = cast(torch.float64)
    rollout = who.roll_out(token_means, group_size=2)
    module, reward_B = who.policy.module, rollout.reward_B
    losses = []
    for row in range(0, len(rollout.batch), 2):
        odds = answer_logprob(who.policy, rollout, row).sum() - answer_logprob(who.policy, rollout, row + 1).sum()
        losses.append(((odds - odds.detach()) / 0.5 - (reward_B[row] - reward_B[row + 1])).square())
    torch.stack(losses).mean().backward()
    expected = {name: p.detach() - 0.01 * p.grad for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    optimizers = [torch.optim.SGD(module.parameters(), 0.01)]
    config = with_settings(eta=0.5, clip_norm=1e6)
    figures = rebel.improve_by_pairs(who.policy, who.steps(optimizers), rollout, reward_B, config)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=0, atol=1e-5)
    gaps = reward_B.view(-1, 2).diff(dim=1)
    assert figures["loss"] == pytest.approx(float(gaps.square().mean()), rel=1e-3)


def test_a_pair_of_equal_rewards_among_others_keeps_its_log_odds() -> None:
    """It pulls nothing at first, and back as soon as it has moved: left out it would be free to go along with the others."""
    who = cast(torch.float64)
    rollout = who.roll_out(token_means, group_size=2)
    reward_B = rollout.reward_B.clone()
    reward_B[2:4] = 0.3
    optimizers = [torch.optim.SGD(who.policy.module.parameters(), 1e-4)]
    config = with_settings(epochs=40, clip_norm=1e6)
    rebel.improve_by_pairs(who.policy, who.steps(optimizers), rollout, reward_B, config)
    with torch.no_grad():
        now = [float(answer_logprob(who.policy, rollout, row).sum()) for row in range(8)]
    moved = torch.tensor([new - float(old) for new, old in zip(now, rollout.old_logp_BT.sum(1), strict=True)])
    away_P = (moved - reward_B).view(-1, 2).diff(dim=1).flatten().abs()
    assert float(away_P.max()) < 0.03, away_P


def test_micro_batches_change_nothing_but_the_memory() -> None:
    found = []
    for batch_size in (1, 3, 64):
        who = cast(torch.float64)
        rollout = who.roll_out(low_ids, group_size=2)
        config = with_settings(batch_size=batch_size, epochs=2, minibatches=2, clip_norm=1e6)
        optimizers = [torch.optim.SGD(who.policy.module.parameters(), 0.01)]
        before = weights(who.policy.module)
        figures = rebel.improve_by_pairs(who.policy, who.steps(optimizers), rollout, rollout.reward_B, config)
        assert not same(before, who.policy.module)
        found.append((weights(who.policy.module), figures))
    for cut in found[:-1]:
        for name, tensor in found[-1][0].items():
            torch.testing.assert_close(cut[0][name], tensor, rtol=1e-9, atol=1e-11)
        assert cut[1] == pytest.approx(found[-1][1], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("eta", [0.5, 2.0])
def test_solved_to_the_end_the_log_odds_have_moved_by_eta_times_the_difference(eta: float) -> None:
    who = cast()
    rollout = who.roll_out(lambda prompts, answers: [0.8, 0.2], PROMPTS[:1], group_size=2)
    assert len({c.token_ids for c in rollout.completions}) == 2, "the test needs two answers"
    optimizers = [torch.optim.SGD(who.policy.module.parameters(), 4e-4 * eta**2)]
    config = with_settings(eta=eta, epochs=40, clip_norm=1e6)
    rebel.improve_by_pairs(who.policy, who.steps(optimizers), rollout, rollout.reward_B, config)
    with torch.no_grad():
        now = [float(answer_logprob(who.policy, rollout, row).sum()) for row in (0, 1)]
    moved = [new - float(old) for new, old in zip(now, rollout.old_logp_BT.sum(1), strict=True)]
    assert moved[0] - moved[1] == pytest.approx(0.6 * eta, abs=0.02)


def test_at_the_optimum_of_the_kl_penalty_nothing_pulls(tmp_path: Path) -> None:
    """Where r = β (log π - log π_ref) + c the rewards net of the KL are all equal: the fixed point is π_ref exp(r/β)/Z."""
    who, beta = cast(torch.float64), 0.4
    with torch.no_grad():
        for name, parameter in who.reference.module.named_parameters():
            noise = torch.Generator().manual_seed(len(name))
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype))
    prompts_of = {prompt.id: prompt for prompt in PROMPTS}

    def best(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        scores: list[float | None] = []
        for completion in completions:
            ids = who.policy.template.prompt_ids([prompts_of[completion.prompt_id]])[0]
            whole = torch.tensor([[*ids, *completion.token_ids]])
            with torch.no_grad():
                logp = (
                    who.reference.module(whole[:, :-1]).log_softmax(-1)[0].gather(1, whole[0, 1:, None])[len(ids) - 1 :]
                )
            scores.append(beta * (math.fsum(completion.sampled_logprobs) - float(logp.sum())) + 3.0)
        return scores

    held = train(who, best, with_settings(steps=1, kl_coef=beta, learning_rate=0.0), run_in(tmp_path / "held"))
    free = train(who, best, with_settings(steps=1, learning_rate=0.0), run_in(tmp_path / "free"))
    assert held["reward_gap"] < 1e-4 and held["grad_norm"] < 1e-3
    assert free["reward_gap"] > 0.1 and free["grad_norm"] > 1


# ---------------------------------------------------------------------------------------------- 2. the whole loop


def test_a_constant_reward_and_a_rate_of_zero_change_no_weight(tmp_path: Path) -> None:
    """Equal rewards ask for log-odds that stay."""
    who = cast()
    before, theirs = weights(who.policy.module), weights(who.reference.module)
    figures = train(who, constant, CONFIG, run_in(tmp_path / "constant"))
    assert same(before, who.policy.module)
    assert figures["without_variance"] == 1.0 and figures["grad_norm"] == figures["loss"] == 0
    train(who, low_ids, with_settings(learning_rate=0.0), run_in(tmp_path / "still"))
    assert same(before, who.policy.module)
    train(who, low_ids, CONFIG, run_in(tmp_path / "moved"))
    assert not same(before, who.policy.module) and same(theirs, who.reference.module)


def test_what_is_rewarded_becomes_likelier(tmp_path: Path) -> None:
    config = REBELSection(steps=12, prompts_per_step=18, learning_rate=2e-3, kl_coef=0.0, eta=4.0)
    figures = train(cast(), low_ids, config, run_in(tmp_path))
    rewards = [line["reward"] for line in metrics(tmp_path)]
    assert sum(rewards[-3:]) / 3 - rewards[0] > 0.25, rewards
    assert figures["steps"] == 12 and figures["reward"] == rewards[-1]


def test_the_kl_in_the_reward_holds_the_policy_nearer_to_the_reference(tmp_path: Path) -> None:
    kl = {0.0: 0.0, 0.5: 0.0}  # over four seeds: of one alone the share is anything from a quarter to four fifths
    for beta, seed in product(
        kl, range(4)
    ):  # η β is to stay under 1: a step solved exactly takes that share of the KL back
        folder = tmp_path / f"{beta}-{seed}"
        config = with_settings(steps=10, epochs=2, learning_rate=2e-3, kl_coef=beta, eta=1.5)
        train(cast(), low_ids, config, run_in(folder), seed)
        kl[beta] += sum(line["kl"] for line in metrics(folder)[-3:]) / 3
    assert kl[0.5] < 0.6 * kl[0.0], kl


def test_a_pair_with_an_answer_that_cannot_be_judged_is_left_out_whole(tmp_path: Path) -> None:
    def reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        return [None if i == 5 else score for i, score in enumerate(low_ids(prompts, completions))]

    assert train(cast(), reward, with_settings(steps=1), run_in(tmp_path))["unscored"] == 2


@pytest.mark.parametrize("line", [1, 3, 4])
def test_a_run_that_died_ends_as_one_that_was_left_alone(line: int, tmp_path: Path) -> None:
    """Four steps, saved after the second and the last."""
    config = with_settings(steps=4, kl_coef=0.1, epochs=2, minibatches=2)
    whole, resumed = cast(), cast()
    expected = train(whole, low_ids, config, run_in(tmp_path / "whole"))
    with dying_at(line):
        train(cast(), low_ids, config, run_in(tmp_path / "cut"))
    assert train(resumed, low_ids, config, run_in(tmp_path / "cut")) == expected
    assert same(weights(whole.policy.module), resumed.policy.module) and resumed.policy.stamp == whole.policy.stamp
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
