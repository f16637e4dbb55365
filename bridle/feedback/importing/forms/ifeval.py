"""IFEval's rows: a prompt, the ids of the instructions in it and their arguments, as constraints that a verifier checks.

    {"key": 1, "prompt": …, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}

After the published ids (Zhou 2023, arxiv.org/abs/2311.07911), one row of the table each. A row with an instruction that no constraint
checks, or with arguments of another kind, is skipped with the instruction's name: it asks for more than could be checked. What is checked
is ours and no copy of theirs: stricter in places (all of the answer is one of the options; case counts in what is repeated), and blind
where a program is: "English" in capitals is any language in Latin letters, "Russian" any in Cyrillic ones.
"""

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from bridle.feedback.importing.forms.fields import Row
from bridle.feedback.importing.reasons import Reason, Skip

IDS, ARGUMENTS = "instruction_id_list", "kwargs"
Given = Mapping[str, Any]  # arguments of one instruction, without those that are null
Constraint = Mapping[str, Any]

OPTIONS = ["My answer is yes.", "My answer is no.", "My answer is maybe."]
RELATIONS: Mapping[str, Callable[[int], dict[str, int]]] = {
    "less than": lambda n: {"most": n - 1},
    "at most": lambda n: {"most": n},
    "at least": lambda n: {"least": n},
    "more than": lambda n: {"least": n + 1},
}
LANGUAGES = ("ar", "he", "hi", "ja", "ko", "ru", "th")  # with a script that few others have
MOST = 10**6
LATIN = {"name": "language", "code": "latin"}


def in_relation(name: str, count: str, relation: str = "relation", **same: str) -> Callable[[Given], list[Constraint]]:
    """A count in a relation; `same`: our arguments by theirs."""
    return lambda given: [{"name": name, **renamed(given, same), **RELATIONS[given[relation]](whole(given[count]))}]


def at_least(name: str, count: str, **same: str) -> Callable[[Given], list[Constraint]]:
    return lambda given: [{"name": name, **renamed(given, same), "least": whole(given[count])}]


def exactly_so_many(name: str, count: str, **fixed: str) -> Callable[[Given], list[Constraint]]:
    return lambda given: [{"name": name, **fixed, "least": whole(given[count]), "most": whole(given[count])}]


def with_arguments(name: str, **same: str) -> Callable[[Given], list[Constraint]]:
    return lambda given: [{"name": name, **renamed(given, same)}]


def always(*constraints: Constraint) -> Callable[[Given], list[Constraint]]:
    return lambda given: list(constraints)


def paragraph_start(given: Given) -> list[Constraint]:
    return [
        *exactly_so_many("paragraphs", "num_paragraphs")(given),
        {"name": "paragraph_start", "paragraph": whole(given["nth_paragraph"]), "word": given["first_word"]},
    ]


def response_language(given: Given) -> list[Constraint]:
    if given["language"] not in LANGUAGES:
        raise ValueError("its script is that of other languages too")
    return [{"name": "language", "code": given["language"]}]


def renamed(given: Given, same: Mapping[str, str]) -> dict[str, Any]:
    return {ours: given[theirs] for ours, theirs in same.items()}


def whole(value: Any) -> int:
    """A count; a table has made a float of it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ValueError("no whole number")
    return int(value)


@cache
def instructions() -> Mapping[str, Callable[[Given], list[Constraint]]]:
    """Every published instruction by its id: what makes constraints of its arguments."""
    return {
        "keywords:existence": with_arguments("keywords", words="keywords"),
        "keywords:frequency": in_relation("keyword_count", "frequency", word="keyword"),
        "keywords:forbidden_words": with_arguments("no_keywords", words="forbidden_words"),
        "keywords:letter_frequency": in_relation("letter_count", "let_frequency", "let_relation", letter="letter"),
        "language:response_language": response_language,
        "length_constraints:number_sentences": in_relation("sentences", "num_sentences"),
        "length_constraints:number_paragraphs": exactly_so_many("paragraphs", "num_paragraphs", mark="***"),
        "length_constraints:number_words": in_relation("words", "num_words"),
        "length_constraints:nth_paragraph_first_word": paragraph_start,
        "detectable_content:number_placeholders": at_least("placeholders", "num_placeholders"),
        "detectable_content:postscript": with_arguments("postscript", mark="postscript_marker"),
        "detectable_format:number_bullet_lists": exactly_so_many("bullets", "num_bullets"),
        "detectable_format:constrained_response": always({"name": "one_of", "choices": OPTIONS}),
        "detectable_format:number_highlighted_sections": at_least("highlights", "num_highlights"),
        "detectable_format:multiple_sections": at_least("sections", "num_sections", mark="section_spliter"),
        "detectable_format:json_format": always({"name": "json"}),
        "detectable_format:title": always({"name": "title", "angular": True}),
        "combination:two_responses": always({"name": "two_answers"}),
        "combination:repeat_prompt": with_arguments("repeats", words="prompt_to_repeat"),
        "startend:end_checker": with_arguments("ends_with", words="end_phrase"),
        "startend:quotation": always({"name": "quoted"}),
        "change_case:capital_word_frequency": in_relation("capital_words", "capital_frequency", "capital_relation"),
        "change_case:english_capital": always({"name": "upper_case"}, LATIN),
        "change_case:english_lowercase": always({"name": "lower_case"}, LATIN),
        "punctuation:no_comma": always({"name": "no_commas"}),
    }


def instructions_in(row: Row) -> list[Constraint]:
    """What the row's instructions ask, as constraints; none where it has none. Skip, with its name, for the first that none checks."""
    if IDS not in row:
        return []
    ids, arguments = list_in_cell(row.look(IDS)), list_in_cell(row.look(ARGUMENTS))
    if not ids or arguments is None or len(arguments) != len(ids):
        raise Skip(Reason.UNCHECKED, f"{IDS} and {ARGUMENTS}, which must be lists of one length")
    found: list[Constraint] = []
    for name, given in zip(ids, arguments, strict=True):
        given = value_in_cell(given)
        if not isinstance(name, str) or name not in instructions() or not isinstance(given, dict):
            raise Skip(Reason.UNCHECKED, str(name)[:80])
        try:
            asked = instructions()[name]({key: value for key, value in given.items() if value is not None})
            found += [of_its_form(constraint) for constraint in asked]
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            stated = {key: value for key, value in given.items() if value is not None}
            raise Skip(Reason.UNCHECKED, f"{name} {json.dumps(stated, ensure_ascii=False)}"[:80]) from error
    return found


def of_its_form(constraint: Constraint) -> Constraint:
    """The same; ValueError where its words are none, or all or no answers would meet it, which would end a run as it begins."""
    for key in ("words", "word", "mark", "letter"):
        value = constraint.get(key, "-")
        in_list = key == "words" and constraint["name"] in ("keywords", "no_keywords")
        words = value if in_list and isinstance(value, list) else [] if in_list else [value]
        if not 1 <= len(words) <= 100 or not all(
            isinstance(one, str) and 0 < len(one.strip()) <= 1000 for one in words
        ):
            raise ValueError("no words")
    if len(constraint.get("letter", "-")) > 1 or not 0 <= constraint.get("most", 0) <= MOST:
        raise ValueError("no letter, or a count that none has")
    if constraint.get("least", 1) == 0 and "most" not in constraint or constraint.get("least", 0) > MOST:
        raise ValueError("a count that all have, or none")
    return constraint


def list_in_cell(value: object) -> list[Any] | None:
    found = value_in_cell(value)
    return found if isinstance(found, list) else None


def value_in_cell(value: object) -> object:
    """What a table's column holds as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
