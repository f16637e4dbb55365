"""RLOO: advantages with the KL in them, whole answers as actions, what a reward makes likelier, and going on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bridle.core.errors import NoUsableRows
from bridle.core.records import Completion, FinishReason, Prompt, Reward
from bridle.generation.rollout import reference_logprobs
from bridle.models.batches import Cut
from bridle.project.run import Run
from bridle.recipe.online import RLOOSection
from bridle.training import rloo
from tests.models.tiny import policy as tiny_policy
from tests.training.practice import PROMPTS, Cast, answer_logprob, cast, constant, low_ids, token_means
from tests.training.runs import DEVICE, dying_at, metrics, run_in, same, weights

CONFIG = RLOOSection(
    steps=2, prompts_per_step=4, group_size=4, batch_size=64, kl_coef=0.0, missing_stop_penalty=0.0, checkpoint_every=2
)


def with_settings(**settings: Any) -> RLOOSection:
    return RLOOSection.model_validate({**CONFIG.model_dump(), **settings})


def train(who: Cast, reward: Reward, config: RLOOSection, run: Run) -> dict[str, float]:
    return rloo.train(who.policy, who.reference, reward, PROMPTS, config, who.session(run))


def test_no_prompts_is_said(tmp_path: Path) -> None:
    who = cast()
    with pytest.raises(NoUsableRows, match="RLOO needs prompts to answer"):
        rloo.train(who.policy, who.reference, constant, [], CONFIG, who.session(run_in(tmp_path)))


# ------------------------------------------------------------------------------------------------ 1. advantages


def test_an_answers_kl_is_taken_from_its_reward_before_it_is_compared() -> None:
    who = cast()
    rollout = who.roll_out(token_means)
    kl_B = torch.linspace(-1, 3, 16)
    found = rloo.net_advantages(rollout, kl_B, with_settings(kl_coef=0.5))
    net = [float(reward - 0.5 * kl) for reward, kl in zip(rollout.reward_B, kl_B, strict=True)]
    for row in range(16):
        others = [net[i] for i in range(row // 4 * 4, row // 4 * 4 + 4) if i != row]
        assert float(found[row]) == pytest.approx(net[row] - sum(others) / 3, abs=1e-5)


def test_the_first_update_by_hand() -> None:
    """REINFORCE: the mean over answers of -A Σ log π, against a reference that is far away."""
    who = cast(torch.float64)
    who.reference = tiny_policy(seed=5, dtype=torch.float64)
    rollout = who.roll_out(token_means)
    reference_BT = reference_logprobs(rollout, who.reference, 1.0, Cut(64), DEVICE)
    kl_B = (rollout.old_logp_BT - reference_BT).sum(1)
    config = with_settings(kl_coef=0.2, clip_norm=1e6)
    adv_B = rloo.net_advantages(rollout, kl_B, config)
    assert len(set(rollout.mask_BT.sum(1).tolist())) > 1, "the test needs uneven answers"
    module = who.policy.module
    losses = [-adv_B[row] * answer_logprob(who.policy, rollout, row).sum() for row in range(16)]
    torch.stack(losses).mean().backward()
    expected = {name: p.detach() - 0.05 * p.grad for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    optimizers = [torch.optim.SGD(module.parameters(), 0.05)]
    figures = rloo.improve_by_answers(who.policy, who.steps(optimizers), rollout, adv_B, config)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=0, atol=1e-6)
    assert figures["clip_fraction"] == 0 and figures["approx_kl"] < 1e-8


def test_what_says_nothing_is_left_out_of_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    who, plain, seen = cast(), rloo.rloo, list[tuple[Tensor, int]]()

    def watch(logp_B: Tensor, old_B: Tensor, adv_B: Tensor, *, clip: float, count: Tensor) -> Any:
        seen.append((adv_B, int(count)))
        return plain(logp_B, old_B, adv_B, clip=clip, count=count)

    monkeypatch.setattr(rloo, "rloo", watch)
    rollout = who.roll_out(token_means, PROMPTS[:3])
    adv_B = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, -1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    rloo.improve_by_answers(
        who.policy, who.steps([torch.optim.SGD(who.policy.module.parameters(), 0.0)]), rollout, adv_B, CONFIG
    )
    assert [(adv.tolist(), count) for adv, count in seen] == [([1.0, -1.0, 0.0, 2.0], 4)]


def test_an_answer_is_clipped_as_a_whole() -> None:
    """Its tokens may each move as they like; once the whole answer is 1.2 times as likely nothing pulls it further."""
    who = cast(torch.float64)
    rollout = who.roll_out(token_means)
    module, adv_B = who.policy.module, torch.ones(16)
    rollout.old_logp_BT.sub_(torch.where(rollout.mask_BT, 0.2 / rollout.mask_BT.sum(1, keepdim=True), 0.0))
    before = weights(module)
    optimizers = [torch.optim.SGD(module.parameters(), 0.05)]
    figures = rloo.improve_by_answers(who.policy, who.steps(optimizers), rollout, adv_B, CONFIG)
    assert figures["clip_fraction"] == 1 and figures["grad_norm"] == 0 and same(before, module)
    assert figures["approx_kl"] == pytest.approx(0.5 * 0.2**2, rel=1e-4)


def test_micro_batches_change_nothing_but_the_memory() -> None:
    found = []
    for batch_size in (1, 3, 8, 64):
        who = cast(torch.float64)
        rollout = who.roll_out(low_ids)
        config = with_settings(batch_size=batch_size, epochs=2, minibatches=2, clip_norm=1e6)
        adv_B = rloo.net_advantages(rollout, torch.zeros(16), config)
        optimizers = [torch.optim.SGD(who.policy.module.parameters(), 0.05)]
        figures = rloo.improve_by_answers(who.policy, who.steps(optimizers), rollout, adv_B, config)
        found.append((weights(who.policy.module), figures))
    for cut in found[:-1]:
        for name, tensor in found[-1][0].items():
            torch.testing.assert_close(cut[0][name], tensor, rtol=1e-9, atol=1e-11)
        assert cut[1] == pytest.approx(found[-1][1], rel=1e-5, abs=1e-7)


# ---------------------------------------------------------------------------------------------- 2. the whole loop


def test_a_constant_reward_and_a_rate_of_zero_change_no_weight(tmp_path: Path) -> None:
    who = cast()
    before, theirs = weights(who.policy.module), weights(who.reference.module)
    figures = train(who, constant, CONFIG, run_in(tmp_path / "constant"))
    assert same(before, who.policy.module) and figures["without_variance"] == 1.0
    train(who, low_ids, with_settings(learning_rate=0.0), run_in(tmp_path / "still"))
    assert same(before, who.policy.module)
    train(who, low_ids, CONFIG, run_in(tmp_path / "moved"))
    assert not same(before, who.policy.module) and same(theirs, who.reference.module)


def test_a_group_whose_rewards_hardly_differ_still_trains(tmp_path: Path) -> None:
    who = cast()
    before = weights(who.policy.module)

    def nearly_flat(prompts: list[Prompt], completions: list[Completion]) -> list[float | None]:
        return [1e-6 * (i % 4) for i in range(len(completions))]

    figures = train(who, nearly_flat, with_settings(steps=1), run_in(tmp_path))
    assert figures["without_variance"] == 0 and figures["grad_norm"] > 0 and not same(before, who.policy.module)


def test_what_is_rewarded_becomes_likelier(tmp_path: Path) -> None:
    config = RLOOSection(steps=12, prompts_per_step=9, group_size=4, learning_rate=4e-3, kl_coef=0.0)
    figures = train(cast(), low_ids, config, run_in(tmp_path))
    rewards = [line["reward"] for line in metrics(tmp_path)]
    assert sum(rewards[-3:]) / 3 - rewards[0] > 0.25, rewards
    assert figures["steps"] == 12 and figures["reward"] == rewards[-1]


def test_the_kl_in_the_reward_holds_the_policy_nearer_to_the_reference(tmp_path: Path) -> None:
    kl = {}
    for beta in (0.0, 1.0):
        folder = tmp_path / str(beta)
        train(cast(), low_ids, with_settings(steps=10, learning_rate=3e-3, kl_coef=beta), run_in(folder))
        kl[beta] = sum(line["kl"] for line in metrics(folder)[-3:]) / 3
    assert kl[1.0] < 0.6 * kl[0.0], kl


def test_only_answers_that_were_cut_off_pay_for_the_missing_stop(tmp_path: Path) -> None:
    ends: list[FinishReason] = []

    def reward(prompts: list[Prompt], completions: list[Completion]) -> list[float | None]:
        ends.extend(c.finish_reason for c in completions)
        return [0.0] * len(completions)

    figures = train(cast(), reward, with_settings(steps=1, missing_stop_penalty=0.75), run_in(tmp_path))
    share = sum(end is FinishReason.LENGTH for end in ends) / len(ends)
    assert 0 < share < 1 and figures["reward"] == pytest.approx(-0.75 * share) and figures["cut_off"] == share


@pytest.mark.parametrize("line", [1, 3, 4])
def test_a_run_that_died_ends_as_one_that_was_left_alone(line: int, tmp_path: Path) -> None:
    """Four steps, saved after the second and the last."""
    config = with_settings(steps=4, kl_coef=0.1)
    whole, resumed = cast(), cast()
    expected = train(whole, low_ids, config, run_in(tmp_path / "whole"))
    with dying_at(line):
        train(cast(), low_ids, config, run_in(tmp_path / "cut"))
    assert train(resumed, low_ids, config, run_in(tmp_path / "cut")) == expected
    assert same(weights(whole.policy.module), resumed.policy.module) and resumed.policy.stamp == whole.policy.stamp
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
