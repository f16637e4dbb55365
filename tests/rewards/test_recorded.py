"""What imported rows say their answers are checked against: in columns of their own, in the store as solutions, and back as checks."""

import json
from typing import Any, get_args

import pytest

from bridle.core.errors import DataError, RecipeError
from bridle.core.records import CANONICAL
from bridle.feedback.importing.formats import read_row
from bridle.recipe.online import CheckKind, RewardSource
from bridle.recipe.recipe import Recipe
from bridle.rewards.recorded import check_in, fixed_check, own_check
from bridle.rewards.sandbox.kinds import SANDBOXED, Sandbox
from bridle.rewards.verifiers import KINDS, Check
from tests.models.tiny import one_sentence

BRIEF = ["no_commas", {"name": "words", "most": 3}]


def check_of_row(kind: str = "", **columns: Any) -> Check | None:
    (row,), _ = read_row({"prompt": "Why?", **columns})
    return own_check(row.prompt, row.solutions, kind, Sandbox())


@pytest.mark.parametrize(
    ("columns", "met", "missed"),
    [
        ({"constraints": BRIEF}, "One two.", "One, two."),
        ({"constraints": json.dumps(BRIEF)}, "One two.", "One, two."),  # as a table has it
        ({"constraints": BRIEF, "solution": "12"}, "#### 12", "#### 13"),
        ({"constraints": BRIEF, "solution": "12"}, "#### 12", "a b c d e #### 12"),
        ({"answer_pattern": "[ab]+"}, "abba", "abc"),
        ({"json_schema": {"type": "array"}}, "[]", "{}"),
        ({"json_schema": {"type": "array"}, "constraints": ["json"]}, "[1]", "[]"),
        ({"verse": {"lines": 1, "characters": 2}}, "白日", "白日依"),
        ({"solution": "12"}, "#### 12", "12"),
        ({"completion": "One two.", "constraints": BRIEF}, "Three four.", "One, two."),  # a demonstration as well
    ],
)
def test_a_row_says_what_its_answers_are_checked_by(columns: dict[str, Any], met: str, missed: str) -> None:
    check = check_of_row(**columns)
    assert check is not None and check(met) and not check(missed)


def test_a_plain_solution_is_checked_by_the_kind_that_the_recipe_names() -> None:
    exact, choice = check_of_row("exact", solution="Paris"), check_of_row("choice", solution="B")
    assert exact is not None and exact("Paris") and not exact("Rome")
    assert choice is not None and choice("(B)") and not choice("A B")
    share = check_of_row("constraint_share", constraints=BRIEF)
    assert share is not None and share("a, b") == 0.5
    answer = check_of_row("answer", solution="1/2")
    assert answer is not None and answer("\\boxed{50%}")
    assert check_of_row(solution="Paris") is None, "without one it has to be a number"
    assert check_of_row("schema", constraints=BRIEF, solution="12") is None, "nothing of this kind"


@pytest.mark.parametrize(
    "columns",
    [
        {"constraints": []}, {"constraints": "none"}, {"constraints": 3}, {"json_schema": {}}, {"json_schema": "a file"},
        {"verse": "free"}, {"answer_pattern": " "},
    ],
)  # fmt: skip
def test_a_column_of_another_form_is_no_check(columns: dict[str, Any]) -> None:
    (row,), read = read_row({"prompt": "Why?", **columns})
    assert row.solutions == () and row.kinds == ["prompt"] and not read.read & set(columns)


def test_a_constraint_that_is_not_known_names_its_prompt_when_the_data_is_read() -> None:
    with pytest.raises(DataError, match="the prompt 'Why\\?' cannot be checked: 'rhyme' is not a constraint") as caught:
        check_of_row(constraints=[{"name": "rhyme"}])
    assert one_sentence(str(caught.value))


def test_a_check_is_told_from_a_solution_that_looks_like_one() -> None:
    assert check_in(CANONICAL.encode({"check": "pattern", "expected": "a"})) == ("pattern", "a")
    for text in ('{"check":', '{"check":"a"}', '{"check":"a","expected":1,"more":2}', "[1]", "12", '{"a":1}'):
        assert check_in(text) is None


def test_every_kind_can_be_named_in_the_recipe() -> None:
    assert set(get_args(CheckKind)) == {"", *KINDS, *SANDBOXED}


def test_a_source_may_expect_the_same_of_every_answer() -> None:
    source = RewardSource(name="form", kind="verifier", check="tags", expected=["think", "answer"])
    assert fixed_check(source)("<think>a</think><answer>b</answer>")
    with pytest.raises(RecipeError, match="the reward source 'form' cannot check") as caught:
        fixed_check(source.model_copy(update={"expected": "think"}))
    assert one_sentence(str(caught.value))


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "learned", "check": "tags"}, {"kind": "learned", "expected": 1}, {"kind": "learned", "allow_execution": True},
        {"kind": "verifier", "expected": ["think"]}, {"kind": "verifier", "check": "magic"},
        {"kind": "verifier", "check": "tests", "unsafe_execution": True}, {"kind": "verifier", "check_seconds": 0.0},
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together(settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe().with_settings({"reward_source": [{"name": "a", **settings}]})
    assert one_sentence(str(caught.value))


def test_a_source_of_before_keeps_its_hash() -> None:
    """Newer settings at their default are not part of it."""
    before = {"name": "right", "kind": "verifier", "path": "", "task": "", "weight": 1.0}
    recipe = Recipe().with_settings({"reward_source": [{"name": "right", "kind": "verifier"}]})
    other = Recipe().with_settings({"reward_source": [{"name": "right", "kind": "verifier", "check": "answer"}]})
    from bridle.recipe.recipe import stated_source

    assert stated_source(recipe.reward_source[0].model_dump(mode="json")) == before
    assert recipe.hash_of("reward_source") != other.hash_of("reward_source")
