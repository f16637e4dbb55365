"""GRPO: groups that say nothing, the first ratio, the KL term, what a reward makes likelier, and going on where it stopped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bridle.core.errors import NoUsableRows
from bridle.core.records import Completion, Prompt, Reward, Scores
from bridle.generation.rollout import Rollout, reference_logprobs
from bridle.maths.advantages import group_relative
from bridle.models.batches import Cut, make_batch, spread
from bridle.project.run import Run
from bridle.recipe.online import GRPOSection
from bridle.rewards.weighted import Source, WeightedSum
from bridle.training import grpo
from tests.models.tiny import policy as tiny_policy
from tests.models.tiny import template
from tests.training.practice import PROMPTS, Cast, cast, constant, low_ids, token_means
from tests.training.runs import DEVICE, dying_at, metrics, run_in, same, weights

CONFIG = GRPOSection(steps=2, prompts_per_step=4, group_size=4, batch_size=64, kl_coef=0.0, checkpoint_every=2)


def for_some(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
    """A reward that differs within a group for every other prompt of `PROMPTS`, and is 1 for the rest."""
    odd = {prompt.id for prompt in PROMPTS[1::2]}
    means = token_means(prompts, completions)
    return [mean if prompt.id in odd else 1.0 for prompt, mean in zip(prompts, means, strict=True)]


def with_settings(**settings: Any) -> GRPOSection:
    return GRPOSection.model_validate({**CONFIG.model_dump(), **settings})


def train(who: Cast, reward: Reward, config: GRPOSection, run: Run) -> dict[str, float]:
    return grpo.train(who.policy, who.reference, reward, PROMPTS, config, who.session(run))


def test_no_prompts_is_said(tmp_path: Path) -> None:
    who = cast()
    with pytest.raises(NoUsableRows, match="GRPO needs prompts to answer"):
        grpo.train(who.policy, who.reference, constant, [], CONFIG, who.session(run_in(tmp_path)))


# ------------------------------------------------------------------------------------ 1. groups that say nothing


@pytest.mark.parametrize("kl_coef", [0.0, 0.5])
def test_a_reward_that_never_differs_changes_no_weight(kl_coef: float, tmp_path: Path) -> None:
    who = cast()
    before = weights(who.policy.module)
    figures = train(who, constant, with_settings(kl_coef=kl_coef), run_in(tmp_path))
    assert same(before, who.policy.module)
    assert [line["without_variance"] for line in metrics(tmp_path)] == [1.0, 1.0]
    assert figures["reward"] == pytest.approx(0.3) and figures["logprob_gap"] == 0.0


def test_groups_without_variance_are_counted_and_left_out_of_the_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    plain = grpo.grpo

    def watch(*tensors: Tensor, **settings: Any) -> Any:
        seen.append(tensors[3])
        return plain(*tensors, **settings)

    monkeypatch.setattr(grpo, "grpo", watch)
    train(cast(), for_some, with_settings(steps=3, minibatches=1), run_in(tmp_path))  # a pass: each prompt once
    shares = [line["without_variance"] for line in metrics(tmp_path)]
    assert sum(shares) / 3 == pytest.approx(0.5) and max(shares) < 1, "half of the prompts differ"
    assert all(bool(adv.all()) for adv in seen)
    assert [len(adv) for adv in seen] == [round(16 * (1 - share)) for share in shares]


def test_a_group_whose_rewards_hardly_differ_still_trains(tmp_path: Path) -> None:
    """Advantages of a millionth, in rewards: a small signal is one, and only equal rewards are none."""
    who = cast()
    before = weights(who.policy.module)

    def nearly_flat(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        return [1e-6 * (i % 4) for i in range(len(completions))]

    figures = train(who, nearly_flat, with_settings(steps=1, std_power=0.0), run_in(tmp_path))
    assert figures["without_variance"] == 0 and figures["grad_norm"] > 0 and not same(before, who.policy.module)


def test_what_says_nothing_does_not_thin_out_what_does() -> None:
    """The mean is over the tokens of useful answers: groups without variance beside them change no weight."""
    found = []
    for beside in ([], [PROMPTS[0], PROMPTS[2]]):
        who = cast(torch.float64)
        rollout = who.roll_out(for_some, PROMPTS[1:2])
        adv = torch.cat([group_relative(rollout.reward_B, 4), torch.zeros(4 * len(beside))])
        if beside:
            rollout = joined(rollout, who.roll_out(for_some, beside))
        optimizers = [torch.optim.SGD(who.policy.module.parameters(), 0.05)]
        config = with_settings(minibatches=1, clip_norm=1e6)
        figures = grpo.improve_by_groups(who.policy, who.steps(optimizers), rollout, rollout.old_logp_BT, adv, config)
        found.append((weights(who.policy.module), figures))
    for name, tensor in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], tensor, rtol=1e-9, atol=1e-11)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-6, abs=1e-9)


def joined(first: Rollout, second: Rollout) -> Rollout:
    """One step of the answers of two."""
    completions, prompts = first.completions + second.completions, first.prompts + second.prompts
    ids = template().prompt_ids(prompts)
    batch = make_batch(ids, [c.token_ids for c in completions], template().pad_id, DEVICE.torch)
    flat = torch.tensor([logp for c in completions for logp in c.sampled_logprobs], dtype=first.old_logp_BT.dtype)
    return Rollout(
        batch, batch.mask_BT, spread(flat, batch.mask_BT), torch.cat([first.score_B, second.score_B]),
        torch.cat([first.reward_B, second.reward_B]), completions, prompts, 0,
    )  # fmt: skip


def test_a_missing_stop_alone_can_make_a_group_differ(tmp_path: Path) -> None:
    figures = train(cast(), constant, with_settings(steps=1, missing_stop_penalty=0.5), run_in(tmp_path))
    assert figures["without_variance"] < 1 and figures["grad_norm"] > 0


@pytest.mark.parametrize(("power", "ratio"), [(0.0, 10.0), (1.0, 1.0)])
def test_advantages_are_in_rewards_or_in_deviations(power: float, ratio: float, tmp_path: Path) -> None:
    """Ten times the rewards give ten times the gradient, or the same."""
    norms = [
        train(
            cast(), lambda p, c: [scale * (s or 0) for s in token_means(p, c)],  # noqa: B023
            with_settings(steps=1, minibatches=1, std_power=power), run_in(tmp_path / str(scale)),
        )["grad_norm"]
        for scale in (10.0, 100.0)
    ]  # fmt: skip
    assert norms[1] / norms[0] == pytest.approx(ratio, rel=1e-2)


def test_the_clip_has_two_sides_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, seen = grpo.grpo, set[tuple[Any, ...]]()

    def watch(*tensors: Tensor, **settings: Any) -> Any:
        seen.add(tuple(settings[name] for name in ("clip", "clip_high", "kl_coef", "surrogate")))
        return plain(*tensors, **settings)

    monkeypatch.setattr(grpo, "grpo", watch)
    chosen = with_settings(steps=1, clip=0.1, clip_high=0.28, kl_coef=0.03, surrogate="cispo")
    train(cast(), low_ids, chosen, run_in(tmp_path))
    assert seen == {(0.1, 0.28, 0.03, "cispo")}


def test_each_source_can_be_normalised_by_itself(tmp_path: Path) -> None:
    """The larger of two sources that pull in opposite directions wins by their sum; each by itself, the one of greater weight."""

    def scored(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Scores:
        low = low_ids(prompts, completions)
        return WeightedSum(
            [Source("low", 2.0, lambda *_: low), Source("high", 1.0, lambda *_: [-100 * one for one in low])]
        )(prompts, completions)

    gained = {}
    for normalise in ("sum", "each"):
        who, folder = cast(), tmp_path / normalise
        train(who, scored, with_settings(steps=6, normalise=normalise), run_in(folder))
        lines = metrics(folder)
        gained[normalise] = lines[-1]["reward_low"] - lines[0]["reward_low"]
    assert gained["sum"] < 0 < gained["each"]


def test_a_group_with_an_answer_that_cannot_be_judged_is_left_out_whole(tmp_path: Path) -> None:
    def reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        return [None if i == 5 else score for i, score in enumerate(low_ids(prompts, completions))]

    figures = train(cast(), reward, with_settings(steps=1), run_in(tmp_path))
    assert figures["unscored"] == 4 and 0 <= figures["without_variance"] <= 1


# ------------------------------------------------------------------------------------------------- 2. the update


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_first_ratio_is_one(temperature: float, tmp_path: Path) -> None:
    config = with_settings(steps=1, minibatches=1, temperature=temperature, kl_coef=0.1)
    figures = train(cast(), low_ids, config, run_in(tmp_path))
    assert 0 < figures["logprob_gap"] < 1e-4
    assert figures["clip_fraction"] == 0
    assert abs(figures["kl"]) < 1e-4 and abs(figures["kl_loss"]) < 1e-6, "it has not left its reference yet"


def test_the_kl_is_that_of_whole_answers_against_the_reference(tmp_path: Path) -> None:
    who = cast()
    who.reference = tiny_policy(seed=5)
    rollout = who.roll_out(low_ids)
    for batch_size in (1, 4, 64):
        found_BT = reference_logprobs(rollout, who.reference, 1.0, Cut(batch_size), DEVICE)
        for row in range(len(rollout.batch)):
            ids = rollout.batch.ids_BW[row, : int(rollout.batch.lengths_B[row])]
            with torch.no_grad():
                logp = who.reference.module(ids[None, :-1]).log_softmax(-1)[0].gather(1, ids[1:, None])[:, 0]
            start = int(rollout.batch.prompt_lengths_B[row]) - 1
            torch.testing.assert_close(found_BT[row][rollout.mask_BT[row]], logp[start:], rtol=0, atol=1e-4)
        assert not found_BT[~rollout.mask_BT].any()
    figures = train(who, low_ids, with_settings(steps=1), run_in(tmp_path))
    assert figures["kl"] > 1.0 and figures["kl_se"] > 0


def test_the_logged_kl_counts_negative_estimates_as_what_they_are(tmp_path: Path) -> None:
    """An answer that its reference finds likelier estimates less than nothing: the mean is over the signed ones."""
    who, estimates = cast(), list[float]()
    with torch.no_grad():  # sharper than the policy: it likes the likely answers more, and the others less
        who.reference.module.output_weight().mul_(1.1)

    def observe(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> dict[str, float]:
        for ids, answer in zip(template().prompt_ids(prompts), completions, strict=True):
            whole, taken = torch.tensor([[*ids, *answer.token_ids]]), torch.tensor(answer.token_ids)
            with torch.no_grad():
                logp_TV = who.reference.module(whole[:, :-1])[0].log_softmax(-1)[-len(taken) :]
            estimates.append(sum(answer.sampled_logprobs) - float(logp_TV.gather(1, taken[:, None]).sum()))
        return {}

    session = who.session(run_in(tmp_path), observe=observe)
    figures = grpo.train(who.policy, who.reference, low_ids, PROMPTS, with_settings(steps=1), session)
    found = torch.tensor(estimates)
    assert int((found < -0.01).sum()) >= 3 and int((found > 0.01).sum()) >= 3, "the test needs both signs"
    assert figures["kl"] == pytest.approx(float(found.mean()), abs=1e-4)
    assert figures["kl_se"] == pytest.approx(float(found.view(4, 4).mean(1).std()) / 2, abs=1e-4), (
        "by prompt: 4 of 4 answers"
    )


@pytest.mark.parametrize("length_power", [0.0, 1.0])
def test_micro_batches_change_nothing_but_the_memory(length_power: float) -> None:
    """In float64, plain gradient steps: weights differ by what the gradients differ, and by nothing else."""
    found = []
    for batch_size in (1, 3, 64):
        who = cast(torch.float64)
        rollout = who.roll_out(low_ids)
        away_BT = 0.5 * torch.randn(rollout.mask_BT.shape, generator=torch.Generator().manual_seed(0))
        reference_BT = torch.where(rollout.mask_BT, rollout.old_logp_BT - away_BT, 0.0)
        config = with_settings(
            batch_size=batch_size, epochs=2, minibatches=2, clip_norm=1e6, kl_coef=0.1, length_power=length_power
        )
        optimizers = [torch.optim.SGD(who.policy.module.parameters(), 0.05)]
        before = weights(who.policy.module)
        adv = group_relative(rollout.reward_B, 4)
        figures = grpo.improve_by_groups(who.policy, who.steps(optimizers), rollout, reference_BT, adv, config)
        assert not same(before, who.policy.module)
        found.append((weights(who.policy.module), figures))
    for cut in found[:-1]:
        for name, tensor in found[-1][0].items():
            torch.testing.assert_close(cut[0][name], tensor, rtol=1e-9, atol=1e-11)
        assert cut[1] == pytest.approx(found[-1][1], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("length_power", [0.0, 1.0])
def test_the_first_update_by_hand(length_power: float) -> None:
    """On its own answers the ratio's gradient is that of log π: its mean over tokens, or over answers of their means."""
    who = cast(torch.float64)
    rollout = who.roll_out(token_means)
    adv, lengths = group_relative(rollout.reward_B, 4), rollout.mask_BT.sum(1)
    assert bool(adv.all()) and len(set(lengths.tolist())) > 1, "the test needs uneven answers, and all of them"
    losses = []
    for row, completion in enumerate(rollout.completions):
        ids = rollout.batch.ids_BW[row, : int(rollout.batch.lengths_B[row])]
        logp_TV = who.policy.module(ids[None, :-1])[0].log_softmax(-1)[-len(completion.token_ids) :]
        taken = logp_TV[torch.arange(len(logp_TV)), torch.tensor(completion.token_ids)]
        losses.append(-adv[row] * (taken.mean() if length_power else taken.sum()))
    loss = torch.stack(losses).sum() / (len(losses) if length_power else int(lengths.sum()))
    loss.backward()
    module = who.policy.module
    expected = {name: p.detach() - 0.05 * p.grad for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    config = with_settings(length_power=length_power, minibatches=1, clip_norm=1e6)
    optimizers = [torch.optim.SGD(module.parameters(), 0.05)]
    grpo.improve_by_groups(who.policy, who.steps(optimizers), rollout, rollout.old_logp_BT, adv, config)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=0, atol=1e-6)


def test_a_rate_of_zero_changes_no_weight_and_the_reference_stays(tmp_path: Path) -> None:
    who = cast()
    before, theirs = weights(who.policy.module), weights(who.reference.module)
    train(who, low_ids, with_settings(learning_rate=0.0), run_in(tmp_path / "still"))
    assert same(before, who.policy.module)
    train(who, low_ids, CONFIG, run_in(tmp_path / "moved"))
    assert not same(before, who.policy.module) and same(theirs, who.reference.module)


# ---------------------------------------------------------------------------------------------- 3. the whole loop


def test_what_is_rewarded_becomes_likelier(tmp_path: Path) -> None:
    config = GRPOSection(steps=12, prompts_per_step=6, group_size=6, learning_rate=3e-3, kl_coef=0.0)
    figures = train(cast(), low_ids, config, run_in(tmp_path))
    rewards = [line["reward"] for line in metrics(tmp_path)]
    assert sum(rewards[-3:]) / 3 - rewards[0] > 0.25, rewards
    assert figures["steps"] == 12 and figures["reward"] == rewards[-1]


def test_the_kl_term_holds_the_policy_nearer_to_the_reference(tmp_path: Path) -> None:
    kl = {}
    for beta in (0.0, 1.0):
        folder = tmp_path / str(beta)
        train(cast(), low_ids, with_settings(steps=8, learning_rate=2e-3, kl_coef=beta), run_in(folder))
        kl[beta] = sum(line["kl"] for line in metrics(folder)[-3:]) / 3
    assert kl[1.0] < 0.75 * kl[0.0], kl


def test_each_step_writes_under_a_new_stamp(tmp_path: Path) -> None:
    stamps: list[str] = []
    who = cast()

    def observe(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> dict[str, float]:
        stamps.append(completions[0].weight_stamp)
        return {"seen": len(completions)}

    session = who.session(run_in(tmp_path), observe=observe)
    grpo.train(who.policy, who.reference, low_ids, PROMPTS, with_settings(steps=3), session)
    assert len(set(stamps)) == 3
    assert [line["seen"] for line in metrics(tmp_path)] == [16, 16, 16]


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


def test_a_finished_run_returns_the_same_figures_again(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    expected = train(cast(), low_ids, CONFIG, run)
    assert train(cast(), low_ids, CONFIG, run) == expected
    assert len(metrics(tmp_path)) == 2
