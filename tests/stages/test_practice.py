"""What a run that practises on checkable answers asks before it starts: which prompts are within reach, and what is measured."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from bridle.core.errors import NoUsableRows, RecipeError
from bridle.core.records import Completion, FinishReason, Prompt
from bridle.recipe.online import GRPOSection, PPOSection
from bridle.recipe.recipe import Recipe
from bridle.rewards.verifiers import check_of, same_check
from bridle.stages.data import Checkable
from bridle.stages.practice import check_answers, within_reach
from tests.models.tiny import one_sentence

PROMPTS = [Prompt.from_text(f"{i}") for i in range(5)]
RIGHT = (0, 1, 2, 3, 4)  # of four answers to each prompt


class Answers:
    """A stage's work whose policy gets the prompt i right in RIGHT[i] of every four answers."""

    def __init__(self) -> None:
        self.spoken: list[str] = []
        self.progress = SimpleNamespace(say=self.spoken.append)
        self.data = SimpleNamespace(shown_work=lambda prompts, completions: {})

    def answer(self, policy: Any, prompts: Sequence[Prompt], label: str, number: int = 0) -> Any:
        completions = [
            Completion(p.id, "yes" if number % 4 < RIGHT[int(p.text)] else "no", finish_reason=FinishReason.STOP)
            for p in prompts
        ]
        return SimpleNamespace(prompts=list(prompts), completions=completions)


CHECKABLE = Checkable(PROMPTS, PROMPTS, same_check(check_of("exact", "yes")))


def chosen(section: str, **settings: Any) -> tuple[list[str], dict[str, int], list[str]]:
    recipe = Recipe().with_settings({f"{section}.{name}": value for name, value in settings.items()})
    work: Any = Answers()
    kept, left_out = within_reach(work, None, PROMPTS, CHECKABLE, dict(recipe)[section])  # type: ignore[arg-type]
    return [prompt.text for prompt in kept], left_out, work.spoken


@pytest.mark.parametrize("section", ["grpo", "rloo"])
def test_prompts_out_of_reach_are_left_out_and_counted(section: str) -> None:
    kept, left_out, spoken = chosen(section, min_right=0.25, max_right=0.5, filter_answers=8)
    assert kept == ["1", "2"] and left_out == {"too_hard": 1, "too_easy": 2}
    assert spoken == ["prompts: 2 of 5 used; 1 are too hard and 2 too easy at the start"]
    assert chosen(section, min_right=0.1, filter_answers=4)[0] == ["1", "2", "3", "4"]
    assert chosen(section) == (["0", "1", "2", "3", "4"], {}, []), "nobody is asked where nothing is left out"


def test_where_none_is_within_reach_the_run_does_not_begin() -> None:
    with pytest.raises(NoUsableRows, match="2 are too hard and 3 too easy") as caught:
        chosen("grpo", min_right=0.3, max_right=0.4, filter_answers=4)
    assert one_sentence(str(caught.value))
    with pytest.raises(RecipeError, match="min_right = 0.8 is above max_right = 0.2"):
        Recipe().with_settings({"grpo.min_right": 0.8, "grpo.max_right": 0.2})


def test_several_answers_to_each_problem_give_pass_at_k() -> None:
    work: Any = Answers()
    found = check_answers(work, None, PROMPTS, CHECKABLE, "grpo-after", GRPOSection(heldout_answers=4))  # type: ignore[arg-type]
    assert found["accuracy_after"] == pytest.approx(0.5) and found["pass_at_k_after"] == pytest.approx(0.8)
    assert found["accuracy_low_after"] < 0.4 and found["accuracy_high_after"] > 0.6, (
        "answers to a problem are no draws of their own"
    )
    one = check_answers(work, None, PROMPTS, CHECKABLE, "grpo-before", PPOSection())  # type: ignore[arg-type]
    assert one["accuracy_before"] == pytest.approx(0.8) and "pass_at_k_before" not in one
