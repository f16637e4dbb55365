"""DPO on fresh answers: which pairs they make, what holds it, and the next-token term that offline DPO has too."""

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from bridle.core.errors import NoUsableRows
from bridle.core.records import FinishReason, Reward
from bridle.models.batches import Compared, Group
from bridle.models.policy import Policy
from bridle.project.run import Run
from bridle.recipe.offline import DPOSection
from bridle.training import dpo
from tests.models.tiny import policy as tiny_policy
from tests.training.practice import PROMPTS, Cast, cast, constant, low_ids, token_means
from tests.training.runs import STOP, dying_at, groups, metrics, run_in, same, session, weights

CONFIG = DPOSection(online_rounds=2, online_prompts=6, online_answers=3, batch_size=3, missing_stop_penalty=0.0)


def with_settings(**settings: Any) -> DPOSection:
    return DPOSection.model_validate({**CONFIG.model_dump(), **settings})


def train(who: Cast, reward: Reward, config: DPOSection, run: Run) -> dict[str, float]:
    return dpo.train_online(who.policy, who.reference, reward, PROMPTS, config, who.session(run))


def test_no_prompts_is_said(tmp_path: Path) -> None:
    who = cast()
    with pytest.raises(NoUsableRows, match="online DPO needs prompts"):
        dpo.train_online(who.policy, who.reference, constant, [], CONFIG, who.session(run_in(tmp_path)))


# ------------------------------------------------------------------------------------------------- 1. the pairs


def test_every_two_answers_of_unequal_reward_are_a_pair_and_a_prompt_weighs_one() -> None:
    who = cast()
    rollout = who.roll_out(lambda prompts, answers: [1.0, 3.0, 1.0, 5.0, 5.0, 5.0], PROMPTS[:2], group_size=3)
    first, second = dpo.rank_answers(rollout, who.policy.template.prompt_ids(rollout.prompts), 3)
    assert [pair[:3] for pair in first.pairs] == [(1, 0, 0.5), (1, 2, 0.5)] and second.pairs == []
    assert first.answers == [list(c.token_ids) for c in rollout.completions[:3]]
    assert first.prompt == who.policy.template.prompt_ids([PROMPTS[0]])[0] != second.prompt


def test_an_answer_that_was_cut_off_loses_to_one_that_ended_by_the_missing_stop_alone() -> None:
    """All scores are equal: what ranks the answers is the reward, which the penalty is taken from."""
    who = cast()
    rollout = who.roll_out(constant, group_size=4, penalty=0.5)
    ended = [c.finish_reason is FinishReason.STOP for c in rollout.completions]
    ranked = dpo.rank_answers(rollout, who.policy.template.prompt_ids(rollout.prompts), 4)
    expected = []
    for first in range(0, len(ended), 4):
        own = ended[first : first + 4]
        expected.append({(a, b) for a, b in product(range(4), repeat=2) if own[a] and not own[b]})
    assert any(expected), "the test needs a prompt with both endings"
    assert [{pair[:2] for pair in group.pairs} for group in ranked] == expected


def test_every_pass_of_every_round_takes_its_groups_in_an_order_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same groups in each round, so that nothing but the seed can change their order."""
    who, seen = cast(), list[int]()
    fixed = [Group(g.prompt, g.answers[:3], [Compared(0, 1)]) for g in groups(6, seed=0)]
    compare = dpo.compare_answers

    def watch(policy: Policy, chosen: Sequence[Group], *others: Any) -> dict[str, float]:
        seen.extend(fixed.index(group) for group in chosen)
        return compare(policy, chosen, *others)

    monkeypatch.setattr(dpo, "rank_answers", lambda rollout, prompt_ids, size: fixed)
    monkeypatch.setattr(dpo, "compare_answers", watch)
    train(who, low_ids, with_settings(online_rounds=3, epochs=2, batch_size=1), run_in(tmp_path))
    passes = [tuple(seen[start : start + 6]) for start in range(0, len(seen), 6)]
    assert len(passes) == 6 and all(sorted(order) == list(range(6)) for order in passes)
    assert len(set(passes)) == 6, passes


def test_a_reward_that_never_differs_changes_no_weight(tmp_path: Path) -> None:
    who = cast()
    before = weights(who.policy.module)
    figures = train(who, constant, CONFIG, run_in(tmp_path))
    assert same(before, who.policy.module) and figures["without_pairs"] == 1 and "loss" not in figures


def test_the_first_step_of_a_run_is_at_log_two_and_of_each_round_with_a_reference_that_follows(tmp_path: Path) -> None:
    found = {}
    for reference in ("start", "round"):
        config = with_settings(online_rounds=3, batch_size=6, learning_rate=3e-3, online_reference=reference)
        train(cast(), token_means, config, run_in(tmp_path / reference))
        found[reference] = [line["loss"] for line in metrics(tmp_path / reference)]
    assert found["start"][0] == pytest.approx(math.log(2), abs=1e-5)
    assert found["round"] == pytest.approx([math.log(2)] * 3, abs=1e-5)
    assert abs(found["start"][2] - math.log(2)) > 1e-3


# ---------------------------------------------------------------------------------------------- 2. the whole loop


def test_what_is_rewarded_becomes_likelier(tmp_path: Path) -> None:
    config = with_settings(online_rounds=10, online_prompts=18, batch_size=9, learning_rate=2e-3, beta=0.1)
    train(cast(), low_ids, config, run_in(tmp_path))
    rewards = [line["reward"] for line in metrics(tmp_path)]
    assert sum(rewards[-3:]) / 3 - rewards[0] > 0.2, rewards


def test_the_kl_is_measured_from_the_start_whatever_the_reference(tmp_path: Path) -> None:
    for reference in ("start", "round"):
        config = with_settings(online_rounds=6, online_reference=reference, learning_rate=2e-3)
        train(cast(), low_ids, config, run_in(tmp_path / reference))
        kl = [line["kl"] for line in metrics(tmp_path / reference)]
        assert abs(kl[0]) < 1e-3 and kl[-1] > 0.1, kl


def test_a_rate_of_zero_changes_no_weight_and_the_reference_stays(tmp_path: Path) -> None:
    who = cast()
    before, theirs = weights(who.policy.module), weights(who.reference.module)
    train(who, low_ids, with_settings(learning_rate=0.0), run_in(tmp_path / "still"))
    assert same(before, who.policy.module)
    train(who, low_ids, CONFIG, run_in(tmp_path / "moved"))
    assert not same(before, who.policy.module) and same(theirs, who.reference.module)


@pytest.mark.parametrize("reference", ["start", "round"])
@pytest.mark.parametrize("line", [1, 3])
def test_a_run_that_died_ends_as_one_that_was_left_alone(line: int, reference: str, tmp_path: Path) -> None:
    config = with_settings(online_rounds=3, online_reference=reference)
    whole, resumed = cast(), cast()
    expected = train(whole, low_ids, config, run_in(tmp_path / "whole"))
    with dying_at(line):
        train(cast(), low_ids, config, run_in(tmp_path / "cut"))
    assert train(resumed, low_ids, config, run_in(tmp_path / "cut")) == expected
    assert same(weights(whole.policy.module), resumed.policy.module) and resumed.policy.stamp == whole.policy.stamp
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_simpo_learns_from_fresh_answers_and_its_kl_is_still_measured(tmp_path: Path) -> None:
    """The reference is not in its loss: another one changes nothing, where it changes DPO's weights."""
    found = {}
    for loss, drifted in product(("simpo", "dpo"), (False, True)):
        who, folder = cast(), tmp_path / loss / str(drifted)
        if drifted:
            with torch.no_grad():
                who.reference.module.output_weight().mul_(1.3)
        config = with_settings(online_rounds=3, loss=loss, learning_rate=2e-3)
        train(who, low_ids, config, run_in(folder))
        found[loss, drifted] = who.policy.module
        assert metrics(folder)[-1]["kl"] > 1e-3
        assert ("chosen_moved" in metrics(folder)[0]) == (loss == "dpo")
    assert same(weights(found["simpo", False]), found["simpo", True])
    assert not same(weights(found["dpo", False]), found["dpo", True])


# ------------------------------------------------------------------------------------------ 3. the next-token term


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_the_chosen_answers_are_imitated_by_the_mean_over_their_tokens(loss: str) -> None:
    """Pairs of weight 1 and a half; answers of two, three and one tokens: -log π / length, weighted like the pairs."""
    logp, length = torch.tensor([-2.0, -6.0, -1.5]).requires_grad_(), torch.tensor([2, 3, 1])
    pairs = torch.tensor([0, 1]), torch.tensor([2, 2]), torch.tensor([1.0, 0.5])
    plain, told = dpo.preference_loss(logp, torch.zeros(3), length, pairs, with_settings(loss=loss), torch.tensor(1.5))
    mixed, stats = dpo.preference_loss(
        logp, torch.zeros(3), length, pairs, with_settings(loss=loss, sft=0.3), torch.tensor(1.5)
    )
    imitation = (2 / 2 + 0.5 * 6 / 3) / 1.5
    assert float(stats["sft_loss"]) == pytest.approx(imitation) and "sft_loss" not in told
    assert float(mixed.detach()) == pytest.approx(float(plain.detach()) + 0.3 * imitation)
    gradient = torch.autograd.grad(mixed - plain, logp)[0]
    assert gradient.tolist() == pytest.approx([-0.3 / 2 / 1.5, -0.3 * 0.5 / 3 / 1.5, 0.0])


def test_it_keeps_the_chosen_answers_likely(tmp_path: Path) -> None:
    moved = {}
    for weight in (0.0, 1.0):
        config = DPOSection(batch_size=4, epochs=6, learning_rate=5e-3, sft=weight)
        folder = tmp_path / str(weight)
        dpo.train(tiny_policy(), tiny_policy(), groups(12, seed=0), config, session(run_in(folder)), folder / "cache")
        moved[weight] = metrics(folder)[-1]["chosen_moved"]
    assert moved[1.0] > moved[0.0] + 1, moved


def test_the_length_of_an_answer_is_that_of_its_tokens_without_the_prompt(tmp_path: Path) -> None:
    one = Group([7, 8, 9, 10], [[20, 21, STOP], [30, STOP]], [(1, 0, 1.0)])
    config = DPOSection(batch_size=1, sft=0.5)
    dpo.train(tiny_policy(), tiny_policy(), [one], config, session(run_in(tmp_path)), tmp_path / "cache")
    line = metrics(tmp_path)[0]
    assert line["sft_loss"] == pytest.approx(-line["chosen_logp"] / 2, rel=1e-5)
