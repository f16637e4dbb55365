"""Answers to tasks that others wrote, through our verifiers: right ones are right however they are stated, corrupted ones wrong.

The answers were drawn from reasoning-gym, once (reasoning_gym.json says how): the package needs twelve more, one of them a C extension.
"""

import json
from fractions import Fraction
from pathlib import Path

import pytest

from bridle.rewards.final_answers import quantity_of
from bridle.rewards.verifiers import check_of

ROWS: list[tuple[str, str, list[str]]] = json.loads(Path(__file__).with_name("reasoning_gym.json").read_text("utf-8"))[
    "rows"
]
STATED = ("Step by step.\n#### {}", "So \\boxed{{{}}} it is.", "Well, <answer>{}</answer>")


def corrupted(kind: str, answer: str, others: list[str]) -> list[str]:
    """Answers near it that are wrong: one more, another sign, a digit or letter less, both of two, and those of other questions."""
    near = [f"{answer} or {others[0]}", *others]
    if kind == "answer":
        found = quantity_of(answer)
        assert found is not None
        near += [
            str(found.number + 1),
            str(found.number + Fraction(1, 1000)),
            *([str(-found.number)] if found.number else []),
        ]
    return near if kind == "answer" else [one for one in (*near, answer[:-1], answer.swapcase()) if one != answer]


@pytest.mark.parametrize(("task", "kind", "answers"), ROWS, ids=[task for task, *_ in ROWS])
def test_answers_of_tasks_that_others_wrote(task: str, kind: str, answers: list[str]) -> None:
    assert len(answers) >= 2 and len(ROWS) >= 24
    for answer in answers:
        check, others = check_of(kind, answer), [one for one in answers if one != answer]
        wrong = others if kind == "symbolic" else corrupted(kind, answer, others)
        for form in STATED:
            assert check(form.format(answer)) == 1, (form, answer)
            for other in wrong:
                assert not check(form.format(other)), (form, answer, other)
        assert not check("") and not check("I do not know.")
        if kind == "exact":
            assert check(answer) == 1, "the whole text will do"
