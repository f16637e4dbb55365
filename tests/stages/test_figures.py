"""Figures that stages work out themselves: gold, agreement of labels, right answers; what shares a prompt, and what ties."""

from types import SimpleNamespace
from typing import Any

import pytest

from bridle.core.records import Completion, Judgement, LabelerKind, Prompt
from bridle.evaluation.answers import Answered
from bridle.feedback.rankings import Item
from bridle.maths.statistics import proportion
from bridle.playground.gold import GoldScore
from bridle.recipe.online import GRPOSection
from bridle.stages.data import Checkable
from bridle.stages.observe import clear_agreement, gold_metrics
from bridle.stages.practice import check_answers

PROMPTS = [Prompt.from_text(f"Question {i}?", {"family": "help"}) for i in range(4)]


def test_the_standard_error_of_gold_is_by_prompt() -> None:
    points, flags = [1.0, 2.0, 2.5, 4.0], {"unparsable": 0, "flattery": 0, "repeated": 0, "complied": 0, "refused": 0}
    scores: list[Any] = [SimpleNamespace(points=p, flags=flags) for p in points]
    given: list[GoldScore] = scores
    once, thrice = gold_metrics(given, PROMPTS), gold_metrics(given * 3, PROMPTS * 3)
    assert once["gold_se"] > 0.5 and thrice["gold_se"] == pytest.approx(once["gold_se"])


def test_labels_agree_with_gold_by_half_where_they_tie_and_not_at_all_on_one_text() -> None:
    prompt = PROMPTS[0]
    item = Item("item", prompt, tuple(Completion(prompt.id, text) for text in ("good", "bad", "bad", "fair")))
    points = [2.0, 0.0, 1.0, 1.1]  # the same text twice, once cut off; the last two are too near to tell apart

    def agreed(*ranking: tuple[int, ...]) -> list[float]:
        judgement = Judgement("item", "someone", LabelerKind.PERSON, ranking, None)
        return sorted(clear_agreement(item, judgement, points))

    assert agreed((0,), (3,), (1, 2)) == [1.0, 1.0, 1.0, 1.0], "good over three, fair over the worse of the bad"
    assert agreed((0, 1, 2, 3)) == [0.5, 0.5, 0.5, 0.5]
    assert agreed((1, 2), (3,), (0,)) == [0.0, 0.0, 0.0, 0.0]


def test_right_answers_to_one_problem_are_one_piece_of_evidence_and_what_cannot_be_judged_is_none() -> None:
    verdicts = [1.0, 1.0, 0.0, None]

    def verifier(prompts: Any, completions: Any) -> list[float | None]:
        return [verdicts[PROMPTS.index(prompt)] for prompt in prompts]

    def checked(prompts: list[Prompt]) -> dict[str, float]:
        answered = Answered(prompts, [Completion(prompt.id, "7") for prompt in prompts])
        work: Any = SimpleNamespace(
            answer=lambda policy, prompts, purpose, number: answered,
            data=SimpleNamespace(shown_work=lambda p, c: {"worked": 1.0}),
        )
        return check_answers(work, None, prompts, Checkable([], prompts, verifier), "grpo-after", GRPOSection())  # type: ignore[arg-type]

    expected = proportion([1.0, 1.0, 0.0])
    for times in (1, 3):
        found = checked(PROMPTS * times)
        assert found["accuracy_after"] == pytest.approx(expected.rate) and found["worked_after"] == 1.0
        ends = found["accuracy_low_after"], found["accuracy_high_after"]
        assert ends == pytest.approx((expected.low, expected.high))
