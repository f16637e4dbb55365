"""Constraints: each with texts that meet it and texts that do not, among them those that a policy would try."""

import json
from typing import Any

import pytest

from bridle.core.errors import DataError
from bridle.core.files import strict_json
from bridle.rewards.constraints import CONSTRAINTS, constraint_of, constraints_of
from bridle.rewards.verifiers import check_of
from tests.models.tiny import one_sentence

LIST = "- one\n- two\n- three"
# Constraint, arguments, texts that meet it, texts that do not.
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("words", {"least": 3, "most": 5}, ["One two three.", "我爱你", "我 爱 你", "a b. c - - - d", "私は猫"],
     ["One two.", "one two three four five six", "我爱", "我 爱", "one . . . . two", "我爱你们大家"]),
    ("characters", {"least": 3, "most": 5}, ["abc", "我爱你", "a b c", "abc \n\n\n"],
     ["ab", "a     b", "a\u200b\u200b\u200bb", "abcdef", "我爱你们大家"]),
    ("sentences", {"least": 2, "most": 2}, ["One. Two!", "一。二！", "It is 3.5 m. Yes", "One\nTwo"],
     ["One", "One. . . .", "One. Two. Three.", "It is 3.5 m."]),
    ("paragraphs", {"least": 2, "most": 2}, ["One\n\ntwo", "One\n***\ntwo", "一\n\n\n\n二"], ["One\ntwo", "One\n\n-\n", "a\n\nb\n\nc"]),
    ("paragraphs", {"least": 2, "most": 2, "mark": "***"}, ["One\n\none\n***\ntwo", "One\n\n ***\n\ntwo"],
     ["One\n\ntwo", "One\n***\ntwo\n***\nthree", "One *** two", "***\nOne\n***"]),
    ("title", {"angular": True}, ["<<A cat>>\nIt sleeps."], ["# A cat\nIt sleeps.", "<<.>>\nIt sleeps."]),
    ("lines", {"most": 2}, ["One\ntwo", "One\n\n\ntwo"], ["a\nb\nc"]),
    ("bullets", {"least": 3, "most": 3}, [LIST, "So:\n* one\n• two\n  - three"],
     ["- one\n- two", "- \n- \n- ", "- one\n- .\n- .", LIST + "\n- 4",
     "-one\n-two\n-three"]),
    ("numbered", {"least": 2}, ["1. one\n2. two", "1) one\n2) two\n3) three", "1、一\n2、二"],
     ["1. one", "1. one\n1. two", "2. one\n1. two", "1.\n2.", "1. one\n3. three"]),
    ("sections", {"least": 2}, ["# A\none\n## B\ntwo"], ["# A\n# B\n", "# A\none", "one\ntwo"]),
    ("sections", {"least": 2, "mark": "Section"}, ["Section 1\none\nSECTION 2\ntwo"],
     ["Section 1\nSection 2\n", "In Section 1 and Section 2"]),
    ("highlights", {"least": 2}, ["*one* and **two**"], ["*one* and two", "** and **", "* a * b *", "*.* *.*", "2 * 3 * 4"]),
    ("placeholders", {"least": 2}, ["Dear [name], [day]"], ["[name] [name]", "[] []", "[.] [,]", "(name) (day)"]),
    ("title", {}, ["<<A cat>>\nIt sleeps.", "# A cat\nIt sleeps."], ["<<A cat>>", "<<>>\nIt sleeps.", "A cat\nIt sleeps.", "It <<A>>\nb"]),
    ("postscript", {}, ["Dear you.\n\nP.S. Come soon."], ["P.S. Come soon.", "Dear you.\nP.S.", "Dear you. P.S. come"]),
    ("postscript", {"mark": "P.P.S"}, ["Dear you.\nP.P.S Come."], ["Dear you.\nP.S. Come."]),
    ("two_answers", {}, ["Yes.\n******\nNo."], ["Yes.", "Yes.\n******\nyes.", "Yes.\n******\n", "a\n******\nb\n******\nc"]),
    ("keywords", {"words": ["cat", "Haus"]}, ["The Cat is in the haus.", "ＣＡＴ haus"],
     ["The cat.", "concatenate Haus", "cat, houses Hausboot"]),
    ("keywords", {"words": ["猫"]}, ["我有一只猫咪"], ["我有一只狗"]),
    ("no_keywords", {"words": ["cat", "狗"]}, ["A dog.", "concatenate"], ["A Cat.", "a cat\u200b.", "c\u200bat", "我有狗", "ｃａｔ"]),
    ("keyword_count", {"word": "cat", "least": 2, "most": 2}, ["cat, CAT"], ["cat", "cat cat cat", "cat cats"]),
    ("letter_count", {"letter": "e", "most": 1}, ["No.", "Eh"], ["Eel"]),
    ("letter_count", {"letter": "!", "least": 2}, ["Oh!!", "！！"], ["Oh!"]),
    ("capital_words", {"least": 2, "most": 3}, ["A BIG CAT"], ["BIG", "A B C D", "AA BB CC DD"]),
    ("starts_with", {"words": "Well,"}, ["Well, it is.", "\nWell, yes"], ["well, it is", "It is. Well, ", "Well,"]),
    ("ends_with", {"words": "Any questions?"}, ["So it is. Any questions?", "So. Any questions?\n"],
     ["Any questions?", "So. Any questions? Yes", "So. any questions?"]),
    ("repeats", {"words": "How many?"}, ["How many? Two."], ["Two.", "How many?", "how many? Two"]),
    ("paragraph_start", {"paragraph": 2, "word": "then"}, ["First.\n\nThen it was."],
     ["Then it was.", "First.\n\nThey", "Then.\n\nFirst", "a\n\nthence"]),
    ("one_of", {"choices": ["Yes.", "No."]}, ["Yes.", " No.\n"], ["Yes. No.", "yes", "Yes. Indeed."]),
    ("upper_case", {}, ["OH NO 3!"], ["Oh", "3!", "我爱你"]),
    ("lower_case", {}, ["oh no 3!"], ["Oh", "3!", "我爱你"]),
    ("no_commas", {}, ["One and two."], ["One, two", "一，二", "一、二", "...", "﹐one"]),
    ("quoted", {}, ['"So it is."', "“So”", "「是」"], ["So it is.", '"So" it "is"', '""', '"', "'So'", '"So'] ),
    ("json", {}, ['{"a": 1}', "[1]", '```json\n{"a": 1}\n```'],
     ["{}", "[]", "1", '"a"', '{"a": 1', '{"a": NaN}', '{"a": 1, "a": 2}', 'Here: {"a": 1}', "[" * 10_000, f"[{'9' * 401}]", "[1e999]"]),
    ("language", {"code": "zh"}, ["我爱猫。", "我们今天去看大猫和小猫好吗，用AI好不好啊啊"],
     ["I love you", "私は猫です", "我 love you", "123", "나는", "我爱猫。OK"]),
    ("language", {"code": "ja"}, ["私は猫が好きです"], ["我爱你", "Hai"]),
    ("language", {"code": "latin"}, ["I love you so 我", "Ça va très bien"], ["我爱你", "Я тебя", "..."]),
    ("language", {"code": "ko"}, ["나는 고양이"], ["我爱你"]),
    ("language", {"code": "ru"}, ["Я тебя люблю"], ["Ya tebya"]),
    ("language", {"code": "ar"}, ["أنا أحبك"], ["ana"]),
    ("language", {"code": "hi"}, ["मैं तुमसे"], ["main"]),
    ("language", {"code": "th"}, ["ฉันรักคุณ"], ["chan"]),
    ("language", {"code": "el"}, ["Σε αγαπώ"], ["Se agapo"]),
    ("language", {"code": "he"}, ["אני אוהב"], ["ani"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "met", "missed"), CASES)
def test_both_outcomes(name: str, arguments: dict[str, Any], met: list[str], missed: list[str]) -> None:
    check = constraint_of({"name": name, **arguments})
    assert [text for text in met if not check(text)] == []
    assert [text for text in missed if check(text)] == []


def test_every_constraint_has_a_case_and_none_is_met_by_silence() -> None:
    assert {name for name, *_ in CASES} == set(CONSTRAINTS) and len(CONSTRAINTS) >= 25
    for name, arguments, _, _ in CASES:
        check = check_of("constraints", [{"name": name, **arguments}])
        if name not in (
            "lines",
            "no_keywords",
            "letter_count",
        ):  # upper bounds alone, which the verifier's own rule holds
            assert not check(""), name
            assert not check("\u200b"), name


@pytest.mark.parametrize(
    "given",
    [
        "long", {"name": "long"}, {"least": 3}, 3, None, [], {"name": 3}, {"name": "words", 3: 4},
        {"name": "words"}, {"name": "words", "least": 0}, {"name": "words", "least": 5, "most": 3}, {"name": "words", "least": -1},
        {"name": "words", "least": "3"}, {"name": "words", "least": 3.0}, {"name": "words", "least": True}, {"name": "words", "atleast": 3},
        {"name": "keywords"}, "keywords", {"name": "keywords", "words": []}, {"name": "keywords", "words": "cat"},
        {"name": "keywords", "words": [""]}, {"name": "keywords", "words": [" "]}, {"name": "keywords", "words": [1]},
        {"name": "keyword_count", "word": "cat"}, {"name": "keyword_count", "least": 2},
        {"name": "letter_count", "letter": "ab", "least": 2}, {"name": "language", "code": "en"}, {"name": "language"}, "language",
        {"name": "no_commas", "least": 2}, {"name": "paragraph_start", "paragraph": 0, "word": "a"}, {"name": "json", "schema": {}},
    ],
)  # fmt: skip
def test_what_is_not_a_constraint_is_refused_when_it_is_read(given: Any) -> None:
    with pytest.raises(DataError) as caught:
        constraint_of(given)
    assert one_sentence(str(caught.value))


def test_a_list_is_met_whole_or_in_part() -> None:
    both = ["no_commas", {"name": "words", "least": 3}]
    whole, share = check_of("constraints", both), check_of("constraint_share", both)
    assert [whole(text) for text in ("a b c", "a, b, c", "a, b")] == [1, 0, 0]
    assert [share(text) for text in ("a b c", "a, b, c", "a, b")] == [1.0, 0.5, 0.0]
    for given in ([], "no_commas", None, {"name": "no_commas"}):
        with pytest.raises(DataError):
            constraints_of(given)
    assert constraint_of("no_commas")("a b") and constraint_of({"name": "postscript", "mark": None})(
        "a\nP.S. b"
    )  # null: not given


@pytest.mark.timeout(30)
def test_a_long_answer_takes_time_that_grows_with_it() -> None:
    texts = [piece * 4_000 for piece in ("*a ", "[", "1. ", "a\n\n", "****** ", "<<")]
    for name, arguments, _, _ in CASES:
        for text in texts:
            constraint_of({"name": name, **arguments})(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}',
        "[NaN]",
        "[Infinity]",
        "[" * 10_000,
        f"[{'1' * 401}]",
        "[1e400]",
        "[1e-" + "9" * 400 + "]",
        "{",
        "",
    ],
)
def test_json_is_read_strictly(text: str) -> None:
    with pytest.raises(ValueError):
        strict_json(text)


def test_good_json_is_read_as_it_is() -> None:
    value = {"a": [1, -2.5, "é", None, True, 10**300], "b": {}}
    assert strict_json(json.dumps(value)) == value
