"""A regression suite: what a row may be, what is refused with its line, and when a candidate is shown to be no worse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridle.core.errors import DataError
from bridle.core.records import Completion, FinishReason
from bridle.evaluation.suite import Suite, SuiteCheck, compare_passes, passed_by, read_checks, suite_check
from bridle.loop.gate import Bound
from bridle.loop.turn import suite_bounds
from bridle.rewards.sandbox.kinds import Sandbox
from tests.tiny_project import bridle, complaint, done

GOOD: list[Any] = [
    {"name": "short", "prompt": "A joke, please.", "constraints": [{"name": "words", "most": 4}]},
    {"prompt": "What is 2 + 3?", "solution": "5"},
    {"prompt": "And 2 + 2?", "check": "answer", "expected": 4},
    {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi."}], "answer_pattern": "[A-Z].*"},
    {"prompt": "Which is right?", "check": "choice", "expected": "B"},
]  # fmt: skip


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def answer(text: str, reason: FinishReason = FinishReason.STOP) -> Completion:
    return Completion("p", text, (), (), reason, "w+0", {})


def test_rows_are_checked_as_imported_ones_are(tmp_path: Path) -> None:
    suite = Suite(read_checks(written(tmp_path / "suite.jsonl", *GOOD), Sandbox()))
    assert [one.name for one in suite.checks] == ["short", "What is 2 + 3?", "And 2 + 2?", "Hi.", "Which is right?"]
    assert [turn.role for turn in suite.checks[3].prompt.messages] == ["system", "user"]
    good = [answer(text) for text in ("One, two.", "#### 5", "The answer is 4.", "Hello.", "(B)")]
    bad = [answer(text) for text in ("One two three four five.", "#### 6", "It is 4 or 5.", "hello", "")]
    cut_off = [answer(one.text, FinishReason.LENGTH) for one in good]
    assert passed_by(suite.checks, good + bad + cut_off).tolist() == [[True, False, False]] * 5


def test_a_version_is_of_the_rows_and_not_of_their_layout(tmp_path: Path) -> None:
    first = Suite(read_checks(written(tmp_path / "a", *GOOD), Sandbox())).version
    spaced = [json.dumps(dict(reversed(row.items())), indent=None, separators=(" ,", ": ")) for row in GOOD]
    assert Suite(read_checks(written(tmp_path / "b", "", *spaced, "  "), Sandbox())).version == first
    changed = [*GOOD[:1], {**GOOD[1], "solution": "6"}, *GOOD[2:]]
    assert Suite(read_checks(written(tmp_path / "c", *changed), Sandbox())).version != first


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("{", "it is not JSON"),
        ("[1]", "it is not an object"),
        ({"prompt": "Hi"}, "nothing that it states can be checked"),
        ({"prompt": "Hi", "solution": "Paris"}, "needs `check` and `expected`"),
        ({"solution": "5"}, "fields of no known form"),
        ({"prompt": "", "solution": "5"}, "empty turn"),
        ({"prompt": "Hi", "constraints": [{"name": "wordz", "most": 3}]}, "wordz"),
        ({"prompt": "Hi", "constraints": [{"name": "words", "mots": 3}]}, "mots"),
        ({"prompt": "Hi", "check": "exact"}, "goes with `expected`"),
        ({"prompt": "Hi", "check": "exactly", "expected": "a"}, "is not a kind of check"),
        ({"prompt": "Hi", "check": "answer", "expected": "a cat"}, "is not a number"),
        ({"prompt": "Hi", "tests": [{"input": "1", "output": "1"}]}, "allow_execution"),
        (GOOD[0], "it repeats line 1"),
        ('{"prompt": "Hi", "prompt": "Ho", "solution": "5"}', "it is not JSON"),
    ],
)
def test_a_bad_row_is_refused_in_one_sentence_with_its_line(tmp_path: Path, row: Any, why: str) -> None:
    with pytest.raises(DataError, match="line 3 of the suite .* is not a check: ") as caught:
        read_checks(written(tmp_path / "suite.jsonl", GOOD[0], "", row, GOOD[1]), Sandbox())
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_suite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_checks(tmp_path / "none.jsonl", Sandbox())
    (tmp_path / "latin").write_bytes(b'{"prompt": "caf\xe9"}\n')
    with pytest.raises(DataError, match="not UTF-8"):
        read_checks(tmp_path / "latin", Sandbox())
    with pytest.raises(DataError, match="at least 5 are needed"):
        Suite(read_checks(written(tmp_path / "few", *GOOD[:4]), Sandbox()))


def checks(count: int) -> list[SuiteCheck]:
    return [suite_check({"prompt": f"Question {number}", "solution": "1"}, Sandbox()) for number in range(count)]


def test_what_got_worse_is_named_the_worst_first() -> None:
    old = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], dtype=bool)
    new = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]], dtype=bool)
    found = compare_passes(checks(5), new, old)
    assert [(one["name"], one["served"], one["candidate"]) for one in found["worse"]] == [
        ("Question 0", 4, 0), ("Question 4", 4, 2), ("Question 1", 2, 1),
    ]  # fmt: skip
    assert (found["checks"], found["answers"], found["lost"]) == (5, 4, 1)
    differences = np.array([-1, -0.25, 1, 0, -0.5])
    half = 2.7764451 * differences.std(ddof=1) / np.sqrt(5)  # Student's t at 4 degrees of freedom
    assert (found["difference"], found["low"]) == pytest.approx((differences.mean(), differences.mean() - half))


def held(new_CK: Any, old_CK: Any, margin: float = 0.1) -> list[Bound]:
    bounds = suite_bounds(compare_passes(checks(len(new_CK)), new_CK, old_CK), margin)
    return [bound for bound in bounds if not bound.holds]


def test_equals_pass_and_what_lost_a_quarter_does_not() -> None:
    """60 checks that pass with other probabilities each, 8 answers of both: what is equal is seldom refused, what is worse always."""
    rng, at_random = np.random.default_rng(0), (60, 8)
    equal, worse = 0, 0
    for _ in range(40):
        rates = rng.beta(2, 0.5, size=(60, 1))
        old = rng.random(at_random) < rates
        equal += bool(held(rng.random(at_random) < rates, old))
        worse += bool(held(rng.random(at_random) < 0.75 * rates, old))
    assert equal <= 2 and worse == 40


def test_nothing_that_always_passed_may_always_fail() -> None:
    old = np.ones((200, 8), dtype=bool)
    new = old.copy()
    assert not held(new, old)
    new[7, :7] = False
    assert not held(new, old), "one check of 200 weighs little"
    new[7] = False
    assert [bound.name for bound in held(new, old)] == ["suite_lost"]


def test_two_models_of_a_project_by_the_command_line(finished_demo: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "suite.jsonl", *GOOD)
    asked = ("evaluate", "ppo", "sft", "--suite", file, "--project", finished_demo)
    found = json.loads(done(*asked, "--json", "--answers", "3"))
    assert (found["checks"], found["answers"]) == (5, 3) and found["low"] <= found["difference"] <= found["high"]
    assert found == json.loads(done(*asked, "--json", "--answers", "3")), "the same again"
    first, second, *worse = done(*asked, "--answers", "3").splitlines()
    assert first == f"5 checks, 3 answers each, version {found['version'][:16]}"
    assert second.startswith(f"ppo passes {found['candidate']:.3f}, sft {found['served']:.3f}: by")
    assert len(worse) == max(1, len(found["worse"]))
    assert "say `bridle evaluate A B --suite FILE`" in complaint(bridle(*asked[:2], *asked[3:]))
    assert "--by verifier judges otherwise" in complaint(bridle(*asked, "--by", "verifier"))
    assert "--answers 2 at least" in complaint(bridle(*asked, "--answers", "1"))
    assert "none.jsonl cannot be read" in complaint(bridle(*asked[:4], tmp_path / "none.jsonl", *asked[5:]))
    file.write_text(json.dumps({**GOOD[0], "prompt": "long " * 2000}) + "\n" + file.read_text())
    assert "1 prompts of the suite leave no room" in complaint(bridle(*asked))
