"""Reward models on held-out pairs: ties, equal texts, and pairs that share a prompt."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from bridle.core.errors import DataError
from bridle.core.records import Completion, Prompt
from bridle.evaluation.reward_tests import AnswerPair, pair_accuracy
from bridle.models.policy import RewardModel
from bridle.models.scorer import scorer_from
from bridle.rewards.learned import LearnedReward
from tests.models.tiny import policy, template
from tests.training.runs import DEVICE


def constant_reader() -> LearnedReward:
    scorer = scorer_from(policy().module, torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(scorer.score.weight)
    return LearnedReward(RewardModel(scorer, template(), "test"), DEVICE, same_tokens=False)


def pair(question: str, better: str, worse: str) -> AnswerPair:
    prompt = Prompt.from_text(question)
    return prompt, Completion(prompt.id, better), Completion(prompt.id, worse)


def figures_of(
    scores: Callable[[str], float | None], pairs: Sequence[AnswerPair], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The figures of a reward model that scores a text so."""
    reader = constant_reader()
    monkeypatch.setattr(LearnedReward, "__call__", lambda self, prompts, answers: [scores(a.text) for a in answers])
    return pair_accuracy(reader, pairs, lambda line: None)


PAIRS = [pair(f"Is {i} odd?", f"It is {i} indeed.", f"No, {i} is not.") for i in range(6)]


def test_a_reward_model_that_scores_all_alike_is_right_on_half() -> None:
    found = pair_accuracy(constant_reader(), PAIRS, lambda line: None)
    assert found["pair_accuracy"] == 0.5 and found["pair_accuracy_low"] < 0.25 < 0.75 < found["pair_accuracy_high"]


def test_pairs_of_equal_text_are_left_out_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    same = [pair("Same?", "Yes.", "Yes."), pair("Again?", "No.", "No.")]
    told: list[str] = []
    found = pair_accuracy(constant_reader(), [*PAIRS, *same], told.append)
    assert (found["pair_accuracy"], found["heldout_pairs"]) == (0.5, 6)
    assert told == ["2 of 8 held-out pairs are of equal text and left out"]
    right = figures_of(lambda text: float("indeed" in text), [*PAIRS, *same], monkeypatch)
    assert (right["pair_accuracy"], right["heldout_pairs"]) == (1.0, 6) and 0.5 < right["pair_accuracy_low"] < 0.6
    none = pair_accuracy(constant_reader(), same, told.append)
    assert none["pair_accuracy"] is None and none["heldout_pairs"] == 0


def test_an_answer_of_two_tests_is_scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def scored(self: LearnedReward, prompts: Sequence[Prompt], answers: Sequence[Completion]) -> list[float]:
        asked.extend(answer.text for answer in answers)
        return [float("indeed" in answer.text) for answer in answers]

    reader, known = constant_reader(), dict[str, float]()
    monkeypatch.setattr(LearnedReward, "__call__", scored)
    few = pair_accuracy(reader, PAIRS[:4], print, known)
    whole = pair_accuracy(reader, PAIRS, print, known)
    assert (few["pair_accuracy"], whole["pair_accuracy"]) == (1.0, 1.0) and whole["heldout_pairs"] == 6
    assert sorted(asked) == sorted(answer.text for _, *both in PAIRS for answer in both)


def test_pairs_of_one_prompt_are_one_piece_of_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    more = [pair(f"Is {i} odd?", f"It is {i} indeed.", f"No, {i} is {k} more.") for i in range(6) for k in "abcd"]
    once, often = (figures_of(lambda text: float("indeed" in text), pairs, monkeypatch) for pairs in (PAIRS, more))
    assert often["heldout_pairs"] == 24 and often["pair_accuracy_low"] == pytest.approx(once["pair_accuracy_low"])


def test_an_answer_that_cannot_be_scored_is_not_taken_for_nought(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no finite number"):
        figures_of(lambda text: None if "indeed" in text else 1.0, PAIRS, monkeypatch)
