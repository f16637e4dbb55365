"""IFEval's rows as published become constraints: a right and a wrong answer for every instruction, and none taken for less than it asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bridle.feedback.importing.formats import read_row
from bridle.feedback.importing.forms.ifeval import LANGUAGES, instructions
from bridle.feedback.importing.reasons import Reason, Skip
from bridle.feedback.store.store import Store
from bridle.rewards.constraints import CONSTRAINTS
from bridle.rewards.recorded import check_in, own_check
from bridle.rewards.sandbox.kinds import Sandbox
from tests.tiny_project import done

# Instruction, arguments, an answer that follows it, one that does not.
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["cat", "sun"]}, "The cat lay in the sun.", "The cat lay still."),
    ("keywords:frequency", {"keyword": "cat", "frequency": 2, "relation": "at least"}, "A cat, a cat.", "A cat."),
    ("keywords:frequency", {"keyword": "cat", "frequency": 2, "relation": "less than"}, "A cat.", "A cat, a cat."),
    ("keywords:forbidden_words", {"forbidden_words": ["dog"]}, "A cat.", "A dog."),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "at least"}, "Quick quiz.", "Quick."),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 1, "let_relation": "less than"}, "None.", "# One"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "One.", "One. Two."),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "One. Two.", "One."),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "one two three", "one two"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "one two", "one two three"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One.\n\nStill.\n***\nTwo.", "One.\n\nTwo."),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "First it rained.\n\nThen it stopped.",
        "Then it stopped.\n\nFirst it rained.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] of [place]", "[name] of a place"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Dear you.\n\nP.P.S: come.", "Dear you.\n\nP.S. come."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n* two", "* one\n* two\n* three"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "It may be."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "This *matters*.", "This matters."),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\nOne.\nSection 2\nTwo.",
        "Section 1\nOne.",
    ),
    ("detectable_format:json_format", {}, '{"a": 1}', "a is 1"),
    ("detectable_format:title", {}, "<<Cats>>\nThey sleep.", "# Cats\nThey sleep."),
    ("combination:two_responses", {}, "Yes, it is.\n******\nNo, it is not.", "Yes, it is."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Who are you?"}, "Who are you? A cat.", "A cat."),
    ("startend:end_checker", {"end_phrase": "Is that all?"}, "It is so. Is that all?", "It is so. Is that all? Yes."),
    ("startend:quotation", {}, '"It is so."', "It is so."),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "OH NO it is", "OH it is"),
    ("change_case:english_capital", {}, "IT IS SO.", "It is so."),
    ("change_case:english_capital", {}, "IT IS SO.", "ЭТО ТАК."),
    ("change_case:english_lowercase", {}, "it is so.", "It is so."),
    ("punctuation:no_comma", {}, "It is so.", "It is, well, so."),
    *(("language:response_language", {"language": code}, text, "It is so.") for code, text in {
        "ar": "هذا صحيح", "he": "זה נכון", "hi": "यह सही है", "ja": "それは正しい", "ko": "그것은 맞다", "ru": "Это так", "th": "มันถูกต้อง",
    }.items()),
]  # fmt: skip
EVERY_ARGUMENT = dict.fromkeys(
    key for _, arguments, _, _ in CASES for key in arguments
)  # as a table has it: null where it has none


def asked(ids: list[str], arguments: list[Any]) -> dict[str, Any]:
    return {"key": 1001, "prompt": "Tell me of cats.", "instruction_id_list": ids, "kwargs": arguments}


def met(row: dict[str, Any], answer: str) -> bool:
    (read,), whole = read_row(row)
    assert not set(row) - whole.read - {"key"} and check_in(read.solutions[0]) is not None
    check = own_check(read.prompt, read.solutions, "", Sandbox())
    assert check is not None
    return check(answer) == 1


@pytest.mark.parametrize(
    ("name", "arguments", "right", "wrong"), CASES, ids=[f"{name}-{n}" for n, (name, *_) in enumerate(CASES)]
)
def test_an_instruction_is_followed_or_not(name: str, arguments: dict[str, Any], right: str, wrong: str) -> None:
    for given in (arguments, {**EVERY_ARGUMENT, **arguments}):
        assert met(asked([name], [given]), right) and not met(asked([name], [given]), wrong)


def test_every_mapped_id_is_tried() -> None:
    assert {name for name, *_ in CASES} == set(instructions()) and len(instructions()) == 25
    assert {arguments["language"] for name, arguments, *_ in CASES if name.startswith("language")} == set(LANGUAGES)
    assert "language" in CONSTRAINTS


def test_all_instructions_of_a_row_have_to_be_met_and_json_in_a_table_will_do() -> None:
    names, arguments = (
        ["punctuation:no_comma", "length_constraints:number_words"],
        [{}, {"num_words": 2.0, "relation": "at least"}],
    )
    for row in (
        asked(names, arguments),
        {**asked([], []), "instruction_id_list": json.dumps(names), "kwargs": json.dumps(arguments)},
    ):
        assert met(row, "It is.") and not met(row, "It, well") and not met(row, "Yes")
    assert met(asked(names, [json.dumps(one) for one in arguments]), "It is.")


@pytest.mark.parametrize(
    ("ids", "arguments", "named"),
    [
        (["language:response_language"], [{"language": "en"}], 'language:response_language {"language": "en"}'),
        (["punctuation:no_comma", "count:conjunctions"], [{}, {"small_n": 3}], "count:conjunctions"),
        (["length_constraints:number_words"], [{"num_words": 3, "relation": "about"}], "length_constraints:number_words"),
        (["length_constraints:number_words"], [{"num_words": 0, "relation": "less than"}], "length_constraints:number_words"),
        (["length_constraints:number_words"], [{"num_words": 0, "relation": "at least"}], "length_constraints:number_words"),
        (["length_constraints:number_words"], [{"num_words": "3", "relation": "at least"}], "length_constraints:number_words"),
        (["keywords:existence"], [{"keywords": []}], "keywords:existence"),
        (["keywords:existence"], [{"keywords": "cat"}], "keywords:existence"),
        (["keywords:letter_frequency"], [{"letter": "ab", "let_frequency": 2, "let_relation": "at least"}], "keywords:letter_frequency"),
        (["startend:end_checker"], [{}], "startend:end_checker"),
        (["startend:end_checker"], [None], "startend:end_checker"),
        (["punctuation:no_comma"], [], "which must be lists of one length"),
        ([], [], "which must be lists of one length"),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_is_refused_with_its_name(ids: list[str], arguments: list[Any], named: str) -> None:
    with pytest.raises(Skip) as caught:
        read_row(asked(ids, arguments))
    assert caught.value.reason is Reason.UNCHECKED and named in caught.value.field


def test_the_report_counts_and_names_them(tmp_path: Path) -> None:
    rows = [
        asked(["punctuation:no_comma"], [{}]),
        {**asked(["count:conjunctions"], [{"small_n": 3}]), "prompt": "Tell me of dogs."},
    ]
    (tmp_path / "ifeval.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done("init", tmp_path / "p")
    found = json.loads(done("import", tmp_path / "ifeval.jsonl", "--project", tmp_path / "p", "--json"))
    skipped = json.dumps(found)
    assert found["rows"] == 2 and Reason.UNCHECKED in skipped and "count:conjunctions" in skipped
    with Store.open(tmp_path / "p/store.sqlite") as store:
        assert [prompt.text for prompt in store.prompts()] == ["Tell me of cats."]
