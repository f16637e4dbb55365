"""Answers to a step's prompts by groups: what stands together, what is left out together, what a missing stop costs."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bridle.compute.steps import Steps
from bridle.core.errors import TrainingStopped
from bridle.core.records import Completion, FinishReason, Prompt, Reward
from bridle.generation.engine import Engine
from bridle.generation.rollout import (
    Asking,
    Rollout,
    RolloutSession,
    answer_metrics,
    end_step,
    minibatches,
    reference_logprobs,
    reread,
    roll_out,
    rollout_metrics,
    rollouts,
    take_prompts,
)
from bridle.models.batches import Cut
from bridle.project.progress import Progress
from bridle.project.run import Run
from bridle.recipe.online import GRPOSection
from bridle.recipe.watching import GuardSection
from tests.models.tiny import one_sentence, template
from tests.models.tiny import policy as tiny_policy
from tests.training.practice import cast, in_order, spare_run
from tests.training.runs import DEVICE

PROMPTS = [Prompt.from_text(f"What is {i} + {i % 7}?") for i in range(4)]


def answered(
    reward: Reward,
    group_size: int,
    penalty: float = 0.0,
    prompts: Sequence[Prompt] = PROMPTS,
    max_unscored: float = 1.0,
) -> Rollout:
    policy = tiny_policy()
    with torch.no_grad():  # some answers end, others are cut off
        policy.module.output_weight()[template().eos_id] *= 1.5
    asking = Asking("test", in_order(prompts, seed=1), len(prompts), group_size, penalty=penalty)
    session = RolloutSession(spare_run(max_unscored), DEVICE, 1, Engine(torch.float32), 10)
    return roll_out(0, policy, reward, asking, session)


def numbered(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
    return [float(i) for i in range(len(completions))]


def test_the_answers_to_a_prompt_stand_together_and_differ() -> None:
    rollout = answered(numbered, 3)
    assert [p.text for p in rollout.prompts] == [p.text for p in PROMPTS for _ in range(3)]
    assert [c.prompt_id for c in rollout.completions] == [p.id for p in rollout.prompts]
    assert rollout.score_B.tolist() == list(range(12)) and rollout.unscored == 0
    texts = [c.text for c in rollout.completions]
    assert all(len(set(texts[start : start + 3])) > 1 for start in range(0, 12, 3)), "one answer, three times"


def test_the_tensors_hold_each_answer_in_its_place() -> None:
    rollout = answered(numbered, 3)
    for row, (prompt, completion) in enumerate(zip(rollout.prompts, rollout.completions, strict=True)):
        length = int(rollout.batch.lengths_B[row])
        start = int(rollout.batch.prompt_lengths_B[row])
        assert rollout.batch.ids_BW[row, start:length].tolist() == list(completion.token_ids)
        assert rollout.batch.ids_BW[row, :start].tolist() == template().prompt_ids([prompt])[0]
        assert rollout.old_logp_BT[row][rollout.mask_BT[row]].tolist() == pytest.approx(completion.sampled_logprobs)
    assert not rollout.old_logp_BT[~rollout.mask_BT].any()


@pytest.mark.parametrize("bad", [None, float("nan"), float("-inf")])
def test_an_answer_without_a_score_takes_its_group_with_it(bad: float | None) -> None:
    """Answers 4 of the groups 0-2, 3-5, 6-8, 9-11, then 9 and 11: groups 1 and 3 go, and no other."""
    whole = answered(numbered, 3)
    rollout = answered(lambda p, c: [bad if i in (4, 9, 11) else float(i) for i in range(len(c))], 3)
    assert rollout.score_B.tolist() == [0, 1, 2, 6, 7, 8]
    assert rollout.unscored == 6, "the whole groups are counted"
    assert answer_metrics(rollout)["unscored"] == 6
    kept = [whole.completions[i] for i in (0, 1, 2, 6, 7, 8)]
    assert rollout.completions == kept and [p.id for p in rollout.prompts] == [c.prompt_id for c in kept]
    assert len(rollout.batch) == 6 and int(rollout.mask_BT.sum()) == sum(len(c.token_ids) for c in kept)


def test_one_bad_answer_in_every_group_leaves_nothing_and_stops() -> None:
    with pytest.raises(TrainingStopped, match="none of 8 answers got a finite reward"):
        answered(lambda p, c: [None if i % 2 else 1.0 for i in range(len(c))], 2)


def test_a_score_of_zero_is_a_score() -> None:
    rollout = answered(lambda p, c: [0.0] * len(c), 2)
    assert rollout.unscored == 0 and rollout.score_B.tolist() == [0.0] * 8


def test_a_missing_stop_costs_the_penalty_in_groups_too() -> None:
    rollout = answered(numbered, 3, penalty=0.75)
    cut_off = [c.finish_reason is FinishReason.LENGTH for c in rollout.completions]
    assert set(cut_off) == {True, False}, "the test needs both"
    paid = [i - 0.75 * cut for i, cut in enumerate(cut_off)]
    assert rollout.reward_B.tolist() == paid and rollout.score_B.tolist() == list(range(12))


def test_the_reward_source_is_asked_once_for_each_answer_beside_its_prompt() -> None:
    asked: list[tuple[str, str]] = []

    def reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        asked.extend((p.id, c.prompt_id) for p, c in zip(prompts, completions, strict=True))
        return [1.0] * len(completions)

    answered(reward, 2)
    assert len(asked) == 8 and all(ours == theirs for ours, theirs in asked)


def test_figures_tell_what_the_answers_look_like() -> None:
    rollout = answered(numbered, 3)
    found = answer_metrics(rollout)
    assert found["length"] == pytest.approx(float(rollout.mask_BT.sum()) / 12)
    assert found["cut_off"] == sum(c.finish_reason is FinishReason.LENGTH for c in rollout.completions) / 12
    assert found["distinct"] == len({c.text for c in rollout.completions}) / 12


def test_the_log_has_the_reward_that_is_learnt_from_and_the_entropy_of_what_was_drawn() -> None:
    rollout = answered(numbered, 3, penalty=0.75)
    drawn = [logp for c in rollout.completions for logp in c.sampled_logprobs]
    found = rollout_metrics(rollout, torch.arange(12.0), cast().session())
    paid = sum(i - 0.75 * (c.finish_reason is FinishReason.LENGTH) for i, c in enumerate(rollout.completions))
    assert found["reward"] == pytest.approx(paid / 12) and found["reward"] < 5.5
    assert found["entropy"] == pytest.approx(-sum(drawn) / len(drawn), rel=1e-5) and found["entropy"] > 0
    assert found["kl"] == pytest.approx(5.5)


def test_the_best_step_has_the_greatest_reward_less_its_kl() -> None:
    ends: list[float] = []
    steps: Any = SimpleNamespace(grad_norm=1.0, total=2, end=lambda step, metrics, score, signal: ends.append(score))
    end_step(steps, answered(numbered, 3), {"reward": 2.0, "kl": 3.0}, 0.5)
    assert ends == [0.5]


def test_two_trainers_take_their_prompts_in_orders_of_their_own() -> None:
    prompts = PROMPTS * 5
    orders = {purpose: take_prompts(prompts, 0, 20, 0, purpose) for purpose in ("ppo-prompts", "grpo-prompts")}
    assert orders["ppo-prompts"] != orders["grpo-prompts"]


def test_answers_are_drawn_anew_at_every_step_and_by_every_trainer() -> None:
    """One prompt, the same weights: nothing but the random numbers can make its answers differ."""
    who = cast()
    found = [
        tuple(
            c.token_ids
            for c in roll_out(step, who.policy, numbered, Asking(stream, PROMPTS[:1], 1, 3), session).completions
        )
        for stream, seed in (("one", 0), ("two", 0), ("one", 1))
        for session in [who.session(seed=seed)]
        for step in (0, 1)
    ]
    assert len(set(found)) == 6


def test_every_pass_of_every_step_takes_its_groups_in_an_order_of_its_own() -> None:
    config, seen = GRPOSection(epochs=2, minibatches=2), []
    for seed, label, step in ((0, "one", 0), (0, "one", 1), (0, "one", 2), (1, "one", 0), (0, "two", 0)):
        parts = [part.tolist() for part in minibatches(torch.arange(1, 9), 2, config, seed, label, step)]
        assert [len(part) for part in parts] == [4] * 4
        seen += [tuple(a for a, _ in first + second) for first, second in (parts[:2], parts[2:])]
        assert all(b == a + 1 for part in parts for a, b in part)
    assert all(sorted(places) == list(range(2, 18, 2)) for places in seen), "the answers of groups 1 to 8, each once"
    assert len(set(seen)) == 10


def test_a_reference_without_finite_log_probs_is_told_before_anything_is_learnt() -> None:
    rollout, broken = answered(numbered, 3), tiny_policy()
    with torch.no_grad():
        broken.module.output_weight()[5] = math.nan
    with pytest.raises(TrainingStopped, match="the reference's log-probs of 12 of 12 answers are not finite"):
        reference_logprobs(rollout, broken, 1.0, Cut(8), DEVICE)


@pytest.mark.parametrize("whose", ["policy", "reference"])
def test_of_the_two_that_are_read_the_broken_one_is_named(whose: str) -> None:
    rollout, models = answered(numbered, 2), {"policy": tiny_policy(), "reference": tiny_policy()}
    with torch.no_grad():
        models[whose].module.output_weight()[5] = math.nan
    with pytest.raises(TrainingStopped, match=f"the {whose}'s log-probs of 8 of 8 .*look at the {whose}'s") as caught:
        reread(rollout, models["policy"], models["reference"], GRPOSection(), 2, DEVICE)
    assert one_sentence(str(caught.value))


# --------------------------------------------------------------------------------------------- rewards that are none


@pytest.mark.parametrize(
    ("score", "fault"),
    [
        (None, "None"), (math.nan, "nan"), (-math.inf, "infinite"), ("1.0", "misshapen: a str"),
        ([1.0], "misshapen: a list of 1"), (torch.zeros(1), "misshapen: a tensor of shape [1]"),
        (torch.tensor(math.nan), "nan"), (np.float32("inf"), "infinite"), pytest.param(10**400, "infinite", id="huge"),
        (np.zeros(3), "misshapen: a ndarray"),
    ],
)  # fmt: skip
def test_a_reward_that_is_no_number_is_named_masked_and_counted(score: Any, fault: str) -> None:
    rollout = answered(lambda p, c: [score if i == 5 else float(i) for i in range(len(c))], 2)
    assert rollout.score_B.tolist() == [0, 1, 2, 3, 6, 7], "its group goes with it"
    assert rollout.unscored == 2 and rollout.faults == {fault: 1}
    figures = answer_metrics(rollout)
    assert figures["unscored"] == 2 and figures[f"unscored_{fault}"] == 1


@pytest.mark.parametrize("number", [1, True, 0.5, np.float32(0.5), np.int64(3), torch.tensor(0.25)])
def test_every_kind_of_number_is_a_reward(number: Any) -> None:
    rollout = answered(lambda p, c: [number] * len(c), 2)
    assert rollout.score_B.tolist() == [float(number)] * 8 and rollout.faults == {}


def test_a_tensor_of_rewards_is_one_number_each() -> None:
    assert answered(lambda p, c: torch.arange(8.0), 2).score_B.tolist() == list(range(8))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        (None, "gave a NoneType for 8 answers"), (1.0, "gave a float for 8 answers"),
        (torch.tensor(1.0), r"gave a tensor of shape \[\] for 8 answers"), ([1.0] * 9, "9 scores for 8 answers"),
        (torch.zeros(8, 1), r"8 misshapen: a tensor of shape \[1\]"), ([[1.0]] * 8, "8 misshapen: a list of 1"),
    ],
)  # fmt: skip
def test_rewards_of_the_wrong_shape_end_before_anything_is_learnt(scores: Any, told: str) -> None:
    with pytest.raises(TrainingStopped, match=told) as caught:
        answered(lambda p, c: scores, 2)
    assert one_sentence(str(caught.value))


def test_over_a_share_without_reward_the_run_stops() -> None:
    def some(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        return [None, math.nan, *([1.0] * 6)]

    assert answered(some, 1, max_unscored=0.25, prompts=PROMPTS * 2).unscored == 2
    with pytest.raises(TrainingStopped, match=r"only 6 of 8 answers got a finite reward .*\(1 None, 1 nan\)"):
        answered(some, 1, max_unscored=0.24, prompts=PROMPTS * 2)


def test_what_is_left_out_with_its_group_does_not_count_against_the_source() -> None:
    rollout = answered(lambda p, c: [None if i in (0, 3, 6) else 1.0 for i in range(len(c))], 3, max_unscored=0.25)
    assert rollout.unscored == 9 and rollout.faults == {"None": 3}, "three of twelve had none, nine are left out"


@pytest.mark.parametrize("equal", [0.0, 0.1, -1e9])
def test_rewards_that_are_all_equal_have_no_spread_at_all(equal: float) -> None:
    assert answer_metrics(answered(lambda p, c: [equal] * len(c), 3))["score_sd"] == 0.0


def test_answers_to_one_prompt_are_one_piece_of_evidence_of_the_kl() -> None:
    """However they came to share it: answers of a group, or a prompt that a step draws twice."""
    session = RolloutSession(spare_run(), DEVICE, 1, Engine(torch.float32), 10)
    grouped, twice = answered(numbered, 2), answered(numbered, 1, prompts=[p for p in PROMPTS for _ in range(2)])
    kl_B = torch.tensor([0.0, 2.0, 5.0, 7.0, 1.0, 1.0, 4.0, 2.0])
    for rollout in (grouped, twice):
        figures = rollout_metrics(rollout, kl_B, session)
        assert figures["kl_se"] == pytest.approx(float(kl_B.view(4, 2).mean(1).std()) / 2)
    assert math.isnan(rollout_metrics(answered(numbered, 3, prompts=PROMPTS[:1]), kl_B[:3], session)["kl_se"])


def test_the_spread_of_rewards_is_told() -> None:
    assert answer_metrics(answered(numbered, 3))["score_sd"] == pytest.approx(np.std(np.arange(12.0)))
    assert "score_sd" not in answer_metrics(answered(numbered, 1, prompts=PROMPTS[:1])), "one answer has none"


@pytest.mark.parametrize(("steps", "said"), [(1, ["prompts: 3 of 4 are answered, 3 a step"]), (2, [])])
def test_prompts_that_no_step_will_ask_are_said(steps: int, said: list[str], tmp_path: Path) -> None:
    lines: list[str] = []
    policy, progress = tiny_policy(), Progress(lines.append, live=False)
    run = Run("test", tmp_path, "key", 1, False, progress, limits=GuardSection())
    session = RolloutSession(run, DEVICE, 1, Engine(torch.float32), 4)
    left = Steps(session, {"policy": policy.module}, [], steps, 1)
    found = list(rollouts(left, policy, numbered, Asking("test", PROMPTS, 3), session))
    assert len(found) == steps and [line.strip() for line in lines] == said
