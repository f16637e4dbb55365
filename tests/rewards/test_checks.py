"""Kinds of checks: what each takes for right, what it does not, what it refuses, and how a policy would cheat it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bridle.core.errors import DataError
from bridle.core.records import Completion, FinishReason, Prompt
from bridle.rewards.verifiers import KINDS, VERSE_ENDS, all_of, check_of, same_check, weighed
from tests.models.tiny import one_sentence

QUESTION = Prompt.from_text("?")
POEM = "白日依山盡，黃河入海流。欲窮千里目，更上一層樓。"
FIVE = {"lines": 4, "characters": 5}
FORMAT = ["think", "answer"]


def worth(kind: str, expected: Any, text: str, ended: FinishReason = FinishReason.STOP) -> float | None:
    return same_check(check_of(kind, expected))([QUESTION], [Completion(QUESTION.id, text, finish_reason=ended)])[0]


@pytest.mark.parametrize(
    ("kind", "expected", "text", "right"),
    [
        ("answer", "72", "#### 72", True),
        ("answer", 72, "The answer is 72 clips.", True),
        ("answer", "$72", "\\boxed{72}", True),
        ("answer", "72 km", "\\boxed{72 m}", False),
        ("answer", "3/4", "\\boxed{0.75}", True),
        ("answer", "0.333", "\\boxed{1/3}", False),
        ("answer", "So it is.\n#### 72", "#### 72", True),
        ("answer", ["72", "73"], "#### 73", True),
        ("answer", "72", "It is 71 or 72.", False),
        ("answer", "72", "The answer is 71 or 72.", False),
        ("answer", "72", "#### 71\n#### 72", False),
        ("answer", "72", "71 72 73 74", False),
        ("answer", "3", "\\boxed{2+1}", False),
        ("exact", "Paris", "Paris", True),
        ("exact", "Paris", " Paris\n", True),
        ("exact", ["Paris", "paris"], "The answer is paris.", True),
        ("exact", "Paris", "Paris, London", False),
        ("exact", "Paris", "paris", False),
        ("choice", "B", "B", True),
        ("choice", "(B)", "The answer is B.", True),
        ("choice", "B", "\\boxed{(B)}", True),
        ("choice", "B", "（B）", True),
        ("choice", "B", "A B C D", False),
        ("choice", "B", "The answer is A or B.", False),
        ("choice", "B", "\\boxed{A} \\boxed{B}", False),
        ("choice", "B", "Bananas", False),
        ("choice", "B", "b", False),
        ("verse", FIVE, POEM, True),
        ("verse", FIVE, POEM.replace("。", "。\n"), True),
        ("verse", FIVE, POEM[:-1], True),
        ("verse", FIVE, POEM[:12], False),
        ("verse", FIVE, POEM + "好", False),
        ("verse", FIVE, POEM + "Good luck!", False),
        ("verse", FIVE, "白日依山盡，" * 4, False),  # one line four times
        ("verse", FIVE, "山山山山山，水水水水水，日日日日日，月月月月月。", False),
        ("verse", FIVE, "abcde, fghij, klmno, pqrst.", False),
        ("verse", FIVE, "12345，23456，34567，45678。", False),
        ("verse", {"lines": 4, "characters": 7}, POEM, False),
        ("tags", FORMAT, "<think>3 + 9</think>\n<answer>12</answer>", True),
        ("tags", FORMAT, "<think></think><answer>12</answer>", False),
        ("tags", FORMAT, "<think> </think><answer>12</answer>", False),
        ("tags", FORMAT, "<answer>12</answer><think>3 + 9</think>", False),
        ("tags", FORMAT, "<think>a</think><answer>12</answer> or 13", False),
        ("tags", FORMAT, "Well. <think>a</think><answer>12</answer>", False),
        ("tags", FORMAT, "<think>a</think><answer>12</answer><answer>13</answer>", False),
        ("tags", FORMAT, "<think>a<think>b</think></think><answer>12</answer>", False),
        ("tags", FORMAT, "<think>a<answer>13</answer></think><answer>12</answer>", False),
        ("tags", FORMAT, "<think>a</think><answer>12", False),
    ],
)
def test_what_is_right(kind: str, expected: Any, text: str, right: bool) -> None:
    assert worth(kind, expected, text) == float(right)
    assert worth(kind, expected, text, FinishReason.LENGTH) == 0.0, "cut off is wrong, whatever it says"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("answer", "twelve"), ("answer", "71 or 72"), ("answer", ""), ("answer", []), ("answer", None), ("answer", True),
        ("answer", {"a": 1}),
        ("exact", ""), ("exact", None), ("exact", [""]),
        ("choice", "AB"), ("choice", ""), ("choice", "b"), ("choice", ["A", "B"]),
        ("verse", FIVE | {"rhyme": 1}), ("verse", {"lines": 4}), ("verse", {"lines": 0, "characters": 5}),
        ("verse", {"lines": True, "characters": 5}), ("verse", 5),
        ("tags", []), ("tags", "think"), ("tags", ["<think>"]), ("tags", [1]),
        ("magic", "1"),
    ],
)  # fmt: skip
def test_what_no_answer_could_meet_is_refused_at_once(kind: str, expected: Any) -> None:
    with pytest.raises(DataError) as caught:
        check_of(kind, expected)
    assert one_sentence(str(caught.value))


def test_a_prompt_without_a_check_cannot_be_judged() -> None:
    from bridle.rewards.verifiers import Verifier

    assert Verifier(lambda prompt: None)([QUESTION], [Completion(QUESTION.id, "12")]) == [None]


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_pays_for_silence(kind: str) -> None:
    from bridle.rewards.verifiers import Verifier

    verify = Verifier(lambda prompt: lambda text: 1.0)
    assert verify([QUESTION], [Completion(QUESTION.id, " \n")]) == [0.0], kind


def test_checks_are_weighed() -> None:
    form, right = check_of("tags", FORMAT), check_of("answer", "12")
    both = weighed([(1.0, form), (3.0, right)])
    assert both("<think>a</think><answer>12</answer>") == 1.0
    assert both("<think>a</think><answer>13</answer>") == 0.25
    assert both("#### 12") == 0.75 and both("12") == 0.0
    assert (
        all_of([form, right])("#### 12") == 0.0 and all_of([form, right])("<think>a</think><answer>12</answer>") == 1.0
    )
    for weights in ([0.0, 0.0], [1.0, -1.0], []):
        with pytest.raises(DataError):
            weighed([(weight, form) for weight in weights])


def test_tang_poems_have_their_form(data_folder: Path) -> None:
    """Of the regulated ones (four or eight lines of five or seven characters) all do but for those with a character lost (□)."""
    counts = Counter[str]()
    for path in sorted((data_folder / "tang-poems").glob("poet.tang.*.json")):
        for poem in json.loads(path.read_text("utf-8")):
            text = "".join(poem["paragraphs"])
            rows = [row for row in VERSE_ENDS.split(text) if row]
            sizes = {len(row) for row in rows}
            if len(rows) in (4, 8) and len(sizes) == 1 and sizes <= {5, 7}:
                check = check_of("verse", {"lines": len(rows), "characters": len(rows[0])})
                counts["met" if check(text) else "lost" if "□" in text else "missed"] += 1
                other = check_of("verse", {"lines": len(rows), "characters": 12 - len(rows[0])})
                counts["other form"] += bool(other(text))
    assert counts == {"met": 2763, "lost": 12, "other form": 0}
