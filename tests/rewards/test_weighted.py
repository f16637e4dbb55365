"""Several sources of reward: a weighted sum that never invents a score, and each one's mean by its name."""

import math
from collections.abc import Sequence

import pytest

from bridle.core.errors import TrainingStopped
from bridle.core.records import Completion, Prompt, Reward, Scores
from bridle.rewards.weighted import Source, WeightedSum
from tests.models.tiny import one_sentence

PROMPTS = [Prompt.from_text(text) for text in ("a", "b", "c")]
COMPLETIONS = [Completion(prompt.id, "yes") for prompt in PROMPTS]


def says(*scores: float | None) -> Reward:
    def reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        assert prompts == PROMPTS and completions == COMPLETIONS
        return list(scores)

    return reward


def test_scores_are_weighed_and_added() -> None:
    whole = WeightedSum([Source("good", 2.0, says(1.0, 0.0, -1.0)), Source("long", -0.5, says(4.0, 2.0, 6.0))])
    found = whole(PROMPTS, COMPLETIONS)
    assert list(found) == [0.0, -1.0, -5.0]
    assert found.metrics == {"reward_good": 0.0, "unscored_good": 0, "reward_long": 4.0, "unscored_long": 0}


def test_each_source_keeps_its_scores() -> None:
    """For those that normalise each before they add."""
    whole = WeightedSum([Source("good", 2.0, says(1.0, None, -1.0)), Source("long", -0.5, says(4.0, 2.0, 6.0))])
    assert whole(PROMPTS, COMPLETIONS).parts == [(2.0, [1.0, None, -1.0]), (-0.5, [4.0, 2.0, 6.0])]


@pytest.mark.parametrize("unknown", [None, math.nan, math.inf, -math.inf])
def test_what_one_source_cannot_judge_has_no_sum(unknown: float | None) -> None:
    """Never 0, whatever the weight: it is left out by whoever trains, and counted."""
    whole = WeightedSum([Source("good", 1.0, says(1.0, 2.0, 3.0)), Source("right", 0.0, says(1.0, unknown, 0.0))])
    found = whole(PROMPTS, COMPLETIONS)
    assert list(found) == [1.0, None, 3.0]
    assert found.metrics["unscored_right"] == 1 and found.metrics["reward_right"] == 0.5
    assert found.metrics["reward_good"] == 2.0


def test_a_source_that_could_judge_nothing_has_no_mean() -> None:
    whole = WeightedSum([Source("right", 1.0, says(None, None, None))])
    found = whole(PROMPTS, COMPLETIONS)
    assert list(found) == [None] * 3 and found.metrics == {"unscored_right": 3}


def test_what_a_source_reports_comes_along() -> None:
    """Each call's metrics come with its scores, so that two calls do not mix theirs."""

    def ensemble(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Scores:
        return Scores([1.0, 2.0, float(calls)], {"disagreement": 0.25 * calls})

    whole, calls = WeightedSum([Source("sure", 2.0, ensemble), Source("long", 1.0, says(1.0, 1.0, 1.0))]), 1
    first = whole(PROMPTS, COMPLETIONS)
    calls = 2
    second = whole(PROMPTS, COMPLETIONS)
    assert list(first) == [3.0, 5.0, 3.0] and list(second) == [3.0, 5.0, 5.0]
    assert [found.metrics["disagreement"] for found in (first, second)] == [0.25, 0.5]
    assert first.metrics["reward_sure"] == pytest.approx(4 / 3) and first.metrics["reward_long"] == 1.0


def test_a_source_with_too_few_scores_is_named() -> None:
    whole = WeightedSum([Source("good", 1.0, says(1.0, 2.0, 3.0)), Source("odd", 1.0, says(1.0))])
    with pytest.raises(TrainingStopped, match="source 'odd' gave 1 scores for 3 answers") as caught:
        whole(PROMPTS, COMPLETIONS)
    assert one_sentence(str(caught.value))
