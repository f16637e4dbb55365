"""A judge in a verifier's place: asked of what could not be read and of nothing else, counted, and never taken for a zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from bridle.core.errors import RecipeError, UsageError
from bridle.core.records import Completion, FinishReason, Prompt
from bridle.recipe.recipe import Recipe
from bridle.rewards.judge.judge import Judge
from bridle.rewards.judge.questions import Question, Rubric
from bridle.rewards.judge.rulings import Reply
from bridle.rewards.standing_in import StandIn, stand_in_sentences
from bridle.rewards.verifiers import check_of, number_verifier, same_check, sentence_pattern
from bridle.rewards.weighted import Source, WeightedSum
from tests.models.tiny import one_sentence

QUESTION = Prompt.from_text("How many?")


class Scripted:
    """A model that replies by the text of the answer, and what it was asked."""

    def __init__(self, **replies: str) -> None:
        self.replies, self.asked = replies, list[str]()

    def __call__(self, questions: Sequence[Question], progress: Any) -> list[Reply]:
        self.asked += [question.messages[0].content for question in questions]
        return [self.reply(question) for question in questions]

    def reply(self, question: Question) -> Reply:
        found = next(reply for word, reply in self.replies.items() if word in question.messages[0].content.split())
        return Reply(fault="endpoint_error") if found == "fault" else Reply(found)


def scores(texts: Sequence[str], model: Scripted, expected: Any = 12, **cut: FinishReason) -> Any:
    reward = StandIn("sum", same_check(check_of("answer", expected), expected), Judge(model, Rubric(), "judge-1"))
    ended = [cut.get(f"at_{i}", FinishReason.STOP) for i in range(len(texts))]
    completions = [Completion(QUESTION.id, text, finish_reason=end) for text, end in zip(texts, ended, strict=True)]
    return reward([QUESTION] * len(texts), completions)


def test_only_what_states_nothing_readable_is_judged() -> None:
    model = Scripted(twelve="right", eleven="wrong")
    texts = ["#### 12", "#### 13", "It is twelve in all", "It is eleven", "It is twelve", "", "#### 12 or\n#### 13"]
    found = scores([*texts, "The answer is 12. The answer is 13."], model, at_4=FinishReason.LENGTH)
    assert list(found) == [1, 0, 1, 0, 0, 0, 0, 0], (
        "cut off, empty and undecided answers are wrong, whatever a judge would say"
    )
    assert len(model.asked) == 2
    assert "It is twelve in all" in model.asked[0] and "The right answer is known:\n12\n" in model.asked[0]
    assert "Is the answer right or wrong?" in model.asked[0] and "useless" not in model.asked[0]


def test_how_many_and_which_share_was_right_is_logged_by_name() -> None:
    found = scores(["twelve", "eleven", "eleven", "#### 1"], Scripted(twelve="right", eleven="wrong"))
    assert found.metrics == {"unparsed_sum": 3, "unjudged_sum": 0, "judged_right_sum": pytest.approx(1 / 3)}
    assert scores(["#### 12"], Scripted()).metrics == {"unparsed_sum": 0, "unjudged_sum": 0}
    steps: list[dict[str, float]] = [
        {"unparsed_sum": 3, "unjudged_sum": 1, "judged_right_sum": 0.5},
        {"unparsed_sum": 2, "unjudged_sum": 2},
    ]
    assert stand_in_sentences(steps) == [
        "Its verifier 'sum' could not read 5 answers of the logged steps. A judge stood in: it called 50% of them right, of those that it "
        "judged; it had no verdict on 3."
    ]
    assert stand_in_sentences([{"reward": 1.0}]) == []


@pytest.mark.parametrize(("reply", "kind"), [("fault", "endpoint_error"), ("perhaps", "unparsable"), ("", "empty")])
def test_a_judge_without_a_verdict_is_none_and_never_zero(reply: str, kind: str) -> None:
    model = Scripted(twelve=reply, eleven="wrong")
    found = scores(["twelve", "eleven"], model)
    assert list(found) == [None, 0] and found.metrics["unjudged_sum"] == 1 and found.metrics[f"judge_{kind}"] == 0.5
    completions = [Completion(QUESTION.id, text) for text in ("twelve", "eleven")]
    verifier = same_check(check_of("answer", 12), 12)
    whole = WeightedSum([Source("sum", 2.0, StandIn("sum", verifier, Judge(model, Rubric(), "judge-1")))])
    summed = whole([QUESTION] * 2, completions)
    assert list(summed) == [None, 0] and summed.metrics["unscored_sum"] == 1


def test_a_prompt_without_a_check_is_not_judged_either() -> None:
    verifier = number_verifier(lambda prompt: prompt.meta.get("answer"), sentence_pattern("The answer is {number}."))
    reward = StandIn("sum", verifier, Judge(Scripted(twelve="right"), Rubric("zh"), "judge-1"))
    known = Prompt.from_text("How many more?", {"answer": 12})
    found = reward([QUESTION, known], [Completion(QUESTION.id, "twelve"), Completion(known.id, "twelve")])
    assert list(found) == [None, None], "in Chinese the word is another"
    assert found.metrics["unparsed_sum"] == 1


def test_a_recipe_says_so_for_checks_that_read_an_answer() -> None:
    source = {"name": "sum", "kind": "verifier", "check": "answer", "unparsed": "judge"}
    (found,) = Recipe().with_settings({"reward_source": [source]}).reward_source
    assert found.unparsed == "judge"
    for wrong in ({"check": "tags", "expected": ["a"]}, {"kind": "judge", "check": ""}):
        with pytest.raises(RecipeError, match="unparsed = 'judge' is for a verifier") as caught:
            Recipe().with_settings({"reward_source": [{**source, **wrong}]})
        assert one_sentence(str(caught.value))


def test_without_a_judge_the_run_does_not_begin(tmp_path: Any) -> None:
    from bridle.project.project import Project
    from bridle.stages.rewards import reward_parents, training_reward
    from tests.stages.test_methods import Quiet

    source = {"name": "sum", "kind": "verifier", "check": "answer", "expected": 12, "unparsed": "judge"}
    Project.create(tmp_path / "p", Recipe().with_settings({"reward_source": [source]}))
    with Quiet(tmp_path / "p", {}) as work, pytest.raises(UsageError, match="no judge is named"):
        reward_parents(work)
    judge = {"judge.endpoint": "http://127.0.0.1:1/v1", "judge.model": "judge-1"}
    with Quiet(tmp_path / "p", judge) as work, Quiet(tmp_path / "p", {**judge, "judge.model": "judge-2"}) as other:
        noted = reward_parents(work)
        assert len(noted["stand_in"]) == 64 and noted["stand_in"] != reward_parents(other)["stand_in"]
        [part] = training_reward(work, None).sources  # type: ignore[arg-type, attr-defined]
        assert isinstance(part.reward, StandIn)
