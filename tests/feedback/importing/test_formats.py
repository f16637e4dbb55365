"""Each form of rows: what is read of it, how it is told, and why a row of it is skipped."""

from collections.abc import Iterator
from typing import Any

import pytest

from bridle.core.errors import UsageError
from bridle.feedback.importing.formats import FORMS, READERS, Form, named_form, read_row
from bridle.feedback.importing.forms.documents import examples_of_forms, table_of_forms, what_it_becomes, with_table
from bridle.feedback.importing.forms.fields import answers_by_names
from bridle.feedback.importing.forms.imported import ImportedRow
from bridle.feedback.importing.forms.verdicts import winner_of
from bridle.feedback.importing.reasons import Note, Reason, Skip
from tests.house.source import ROOT

Row = dict[str, Any]
GOOD = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
H, A = "\n\nHuman: Why?", "\n\nAssistant: "


def turn(role: object, content: object) -> Row:
    return {"role": role, "content": content}


def said(name: str, text: str) -> Row:
    return {"from": name, "value": text}


def read(row: Row, form: Form | None = None) -> ImportedRow:
    (example,), _ = read_row(row, form)
    return example


def turns(example: ImportedRow) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.prompt.messages]


EXAMPLES = {form: [row for name, row in examples_of_forms() if name is form] for form in Form}
USER, ANSWER, OTHER = turn("user", "Why?"), turn("assistant", "Because."), turn("assistant", "No.")
HUMAN, GPT, GPT_OTHER = said("human", "Why?"), said("gpt", "Because."), said("gpt", "No.")

# ------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize(
    ("row", "form"),
    [
        (GOOD, Form.PREFERENCE),
        (GOOD | {"margin": 0.5, "prompt_id": "x", "messages": [USER, ANSWER]}, Form.PREFERENCE),
        (GOOD | {"prompt": [USER]}, Form.PREFERENCE),
        (GOOD | {"prompt": [HUMAN]}, Form.PREFERENCE),
        (GOOD | {"chosen": [ANSWER], "rejected": [OTHER]}, Form.PREFERENCE),
        (GOOD | {"chosen": ANSWER, "rejected": OTHER}, Form.PREFERENCE),
        (GOOD | {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, Form.PREFERENCE),  # UltraFeedback, binarized
        (GOOD | {"prompt": [USER], "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, Form.PREFERENCE),
        ({"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, Form.PREFERENCE),
        ({"prompt": None, "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, Form.PREFERENCE),
        ({"chosen": f"{H}{A}Because.", "rejected": f"{H}{A}No."}, Form.HH),
        ({"chosen": "Human: Why? \n\nAssistant:Because.\n", "rejected": f"{H}{A}No."}, Form.HH),
        ({"prompt": f"{H}\n\nAssistant:", "chosen": " Because.", "rejected": " No."}, Form.HH),
        ({"prompt": f"{H}{A}", "chosen": f"{H}{A}Because.", "rejected": f"{H}{A}No."}, Form.HH),
        ({"conversations": [HUMAN], "chosen": GPT, "rejected": GPT_OTHER}, Form.SHAREGPT),
        ({"conversations": [HUMAN], "chosen": "Because.", "rejected": "No."}, Form.SHAREGPT),
        ({"conversations": [USER], "chosen": [ANSWER], "rejected": [OTHER], "system": ""}, Form.SHAREGPT),
        ({"instruction": "Why?", "input": "", "chosen": "Because.", "rejected": "No."}, Form.ALPACA),
        ({"instruction": "Why?", "chosen": "Because.", "rejected": "No."}, Form.ALPACA),
    ],
)
def test_every_form_of_preferences_gives_the_same(row: Row, form: Form) -> None:
    example = read(row)
    assert turns(example) == [("user", "Why?")] and example.answers == ("Because.", "No.")
    assert (example.form, example.kinds) == (form, ["preference"])
    assert [verdict.ranking for verdict in example.verdicts] == [((0,), (1,))] and not example.imitate


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"prompt": "Why?", "completion": "Because."}, Form.COMPLETION),
        ({"prompt": [USER], "completion": [ANSWER]}, Form.COMPLETION),
        ({"prompt": "Why?", "completion": [USER, ANSWER], "chosen": None, "rejected": None}, Form.COMPLETION),
        ({"prompt": f"{H}\n\nAssistant:", "completion": " Because."}, Form.HH),
        ({"messages": [USER, ANSWER]}, Form.MESSAGES),
        ({"messages": [USER, ANSWER], "prompt": "Why?", "label": None, "category": "x"}, Form.MESSAGES),
        ({"conversations": [HUMAN, GPT], "id": "7"}, Form.SHAREGPT),
        ({"conversations": [said("user", "Why?"), said("assistant", "Because.")]}, Form.SHAREGPT),
        ({"instruction": "Why?", "input": "", "output": "Because."}, Form.ALPACA),
        ({"instruction": "Why?", "output": "Because.", "text": "Why? Because."}, Form.ALPACA),
        ({"instruction": "Why?", "input": " \n", "output": "Because."}, Form.ALPACA),
    ],
)
def test_every_form_of_demonstrations_gives_the_same(row: Row, form: Form) -> None:
    example = read(row)
    assert turns(example) == [("user", "Why?")] and example.answers == ("Because.",)
    assert (example.form, example.kinds) == (form, ["demonstration"]) and example.imitate


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"prompt": "Why?"}, Form.PROMPT),
        ({"prompt": [USER], "data_source": "x", "label": 1}, Form.PROMPT),
        ({"prompt": f"{H}\n\nAssistant:"}, Form.HH),
    ],
)
def test_every_form_of_prompts_gives_the_same(row: Row, form: Form) -> None:
    example = read(row)
    assert turns(example) == [("user", "Why?")] and example.answers == ()
    assert (example.form, example.kinds) == (form, ["prompt"])


EARLIER = [("system", "Be short."), ("user", "Hello"), ("assistant", "Hi.\n\nI am here."), ("user", "Why?")]
SPOKEN = [said({"user": "human", "assistant": "gpt"}.get(role, role), text) for role, text in EARLIER]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [turn(*each) for each in EARLIER]},
        {"messages": [*(turn(*each) for each in EARLIER), ANSWER]},
        {"conversations": [*SPOKEN, GPT]},
        {"conversations": [*SPOKEN[1:], GPT], "system": "Be short."},
        {"conversations": SPOKEN, "chosen": GPT, "rejected": GPT_OTHER},
        {"chosen": [*SPOKEN, GPT], "rejected": [*SPOKEN, GPT_OTHER]},
        GOOD | {"chosen": [*SPOKEN, GPT], "rejected": [*SPOKEN, GPT_OTHER]},  # the prompt is the last of several
        GOOD | {"prompt": "Hello", "chosen": [*SPOKEN, GPT], "rejected": [*SPOKEN, GPT_OTHER]},  # or the first
        {
            "system": "Be short.",
            "history": [["Hello", "Hi.\n\nI am here."]],
            "instruction": "Why?",
            "output": "Because.",
        },
    ],
)
def test_earlier_turns_belong_to_the_prompt(row: Row) -> None:
    assert turns(read(row)) == EARLIER


def test_earlier_turns_of_a_transcript_belong_to_the_prompt() -> None:
    shared = "\n\nHuman: Hello\n\nAssistant: Hi.\n\nI am here.\n\nHuman: Why?\n\nAssistant:"
    for row in (
        {"chosen": f"{shared} Because.", "rejected": f"{shared} No."},
        {"prompt": shared, "chosen": "Because.", "rejected": "No."},
        {"prompt": shared},
    ):
        assert turns(read(row)) == EARLIER[1:]


def test_the_input_of_an_instruction_follows_it() -> None:
    example = read({"instruction": "Add.", "input": "1 2", "output": "3"})
    assert turns(example) == [("user", "Add.\n\n1 2")]


@pytest.mark.parametrize(
    ("row", "form", "kind", "prompt"),
    [
        ({"prompt": f"{H}\n\nAssistant:"}, Form.PROMPT, "prompt", f"{H}\n\nAssistant:".strip("\n")),
        ({"prompt": "Human: Why?"}, Form.HH, "prompt", "Why?"),
        (GOOD | {"messages": [USER, ANSWER]}, Form.MESSAGES, "demonstration", "Why?"),
        (GOOD, Form.PROMPT, "prompt", "Why?"),
        ({"prompt": "Why?", "completion": "x", "label": True}, Form.COMPLETION, "demonstration", "Why?"),
        ({"conversations": [HUMAN, GPT], "kto_tag": True}, Form.SHAREGPT, "demonstration", "Why?"),
    ],
)
def test_a_form_that_is_named_is_taken_at_its_word(row: Row, form: Form, kind: str, prompt: str) -> None:
    example = read(row, form)
    assert (example.form, example.kinds, example.prompt.text) == (form, [kind], prompt)


# ---------------------------------------------------------------------------------------------- what is skipped


def transcripts(chosen: str, rejected: str) -> Row:
    return {"chosen": chosen, "rejected": rejected}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, Reason.UNKNOWN_FIELDS),
        ({"note": "Why?", "reply to it": "Because."}, Reason.UNKNOWN_FIELDS),
        ({"instruction": "Why?", "output_1": "x", "output_2": "y"}, Reason.NO_VERDICT),
        ({"instruction": "Why?", "output_1": "x", "output_2": "y", "preference": "the longer"}, Reason.UNCLEAR_VERDICT),
        ({"prompt": None, "messages": None}, Reason.UNKNOWN_FIELDS),
        ({"prompt": "Why?", "chosen": "x"}, Reason.ONE_SIDE),
        (GOOD | {"chosen": None}, Reason.ONE_SIDE),
        ({"conversations": [HUMAN], "rejected": GPT}, Reason.ONE_SIDE),
        ({"messages": [USER, ANSWER], "label": "science"}, Reason.UNCLEAR_VOTE),
        ({"prompt": "Why?", "completion": "x", "label": 7}, Reason.UNCLEAR_VOTE),
        (GOOD | {"prompt": 3}, Reason.WRONG_TYPE),
        (GOOD | {"prompt": ["Why?"]}, Reason.WRONG_TYPE),
        (GOOD | {"prompt": [turn("user", None)]}, Reason.WRONG_TYPE),
        ({"prompt": "Why?", "completion": True}, Reason.TRUE_OR_FALSE),
        ({"messages": "Why?"}, Reason.WRONG_TYPE),
        ({"instruction": 3, "output": "x"}, Reason.WRONG_TYPE),
        ({"instruction": "x", "history": [["a"]], "output": "x"}, Reason.WRONG_TYPE),
        ({"conversations": [HUMAN, GPT], "system": 3}, Reason.WRONG_TYPE),
        (GOOD | {"prompt": [turn("narrator", "x")]}, Reason.UNKNOWN_ROLE),
        (GOOD | {"prompt": [turn(["user"], "x")]}, Reason.UNKNOWN_ROLE),
        (GOOD | {"prompt": [{}]}, Reason.UNKNOWN_ROLE),
        ({"conversations": [HUMAN, said("function_call", "{}"), GPT]}, Reason.TOOLS),
        (GOOD | {"prompt": []}, Reason.NO_USER_TURN),
        (GOOD | {"prompt": [USER, ANSWER]}, Reason.NO_USER_TURN),
        ({"prompt": [USER, ANSWER]}, Reason.NO_USER_TURN),
        ({"messages": [ANSWER]}, Reason.NO_USER_TURN),
        ({"messages": []}, Reason.NO_ANSWER),
        (GOOD | {"prompt": " \n"}, Reason.EMPTY_PROMPT),
        ({"instruction": "", "input": " ", "output": "x"}, Reason.EMPTY_PROMPT),
        (GOOD | {"chosen": []}, Reason.ONE_SIDE),
        (GOOD | {"chosen": [USER]}, Reason.NO_ANSWER),
        (GOOD | {"chosen": [turn("user", "Else?"), ANSWER]}, Reason.NO_ANSWER),
        (GOOD | {"chosen": [USER, OTHER, USER, ANSWER], "rejected": [USER, OTHER]}, Reason.DIVERGES),
        (GOOD | {"chosen": " "}, Reason.EMPTY_ANSWER),
        ({"instruction": "Why?", "output": ""}, Reason.EMPTY_ANSWER),
        (GOOD | {"chosen": "No. "}, Reason.IDENTICAL),
        (GOOD | {"chosen": "a\0b"}, Reason.UNSTORABLE),
        (GOOD | {"prompt": "\ud83d"}, Reason.UNSTORABLE),
        (transcripts("Because.", "No."), Reason.NOT_TRANSCRIPT),
        (transcripts(f"Note:{H}{A}x", f"Note:{H}{A}y"), Reason.NOT_TRANSCRIPT),
        (transcripts(f"{H}{A}x{H}", f"{H}{A}y{H}"), Reason.NO_ANSWER),
        (transcripts(f"{H}{A}x", f"{H}?{A}y"), Reason.DIVERGES),
        (transcripts(f"{H}{A}x", f"{H}{A}x{H}{A}y"), Reason.DIVERGES),
        (transcripts(f"{H}{A}", f"{H}{A}y"), Reason.EMPTY_ANSWER),
        (transcripts(f"{H}{A}x", f"{H}{A}x"), Reason.IDENTICAL),
        (transcripts(f"{A}x", f"{A}y"), Reason.NO_USER_TURN),
    ],
)
def test_a_row_that_cannot_be_used_has_a_reason(row: Row, reason: Reason) -> None:
    with pytest.raises(Skip) as skip:
        read(row)
    assert skip.value.reason is reason


JUNK = (
    None,
    3,
    2.5,
    True,
    [],
    {},
    [3],
    [[3]],
    "x",
    {"role": {}},
    [{"role": "user"}],
    '[{"role": 1}]',
    "\ud83d",
    float("nan"),
)


def with_junk(value: Any, junk: object) -> Iterator[Any]:
    """The value with each of its parts, at any depth, replaced in turn."""
    yield junk
    for place, part in (
        enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    ):
        for other in with_junk(part, junk):
            yield [*value[:place], other, *value[place + 1 :]] if isinstance(value, list) else value | {place: other}


@pytest.mark.parametrize("form", list(Form))
def test_no_value_of_any_field_breaks_a_form(form: Form) -> None:
    """Read or skipped, whatever stands in the fields: other errors would end an import in the middle."""
    for example in EXAMPLES[form]:
        rows = [row for junk in JUNK for row in with_junk(example, junk) if isinstance(row, dict)]
        for row in [*rows, *({name: junk} for name in example for junk in JUNK)]:
            for asked in (form, None):
                try:
                    assert read_row(row, asked)[0]
                except Skip as skip:
                    assert skip.reason in Reason


def outcome(row: dict[str, Any]) -> object:
    try:
        examples, read = read_row(row)
    except Skip as skip:
        return skip.reason, skip.field
    return repr(examples), read.unread(), read.notes, read.roles


@pytest.mark.parametrize("form", list(Form))
def test_what_a_row_says_does_not_depend_on_rows_of_the_same_fields_before_it(form: Form) -> None:
    """What names alone answer is remembered for rows of the same names; what a value decides is not."""
    for example in EXAMPLES[form]:
        rows = [example, *(example | {name: junk} for name in example for junk in JUNK), example]
        alone = []
        for row in rows:
            answers_by_names.cache_clear()
            alone.append(outcome(row))
        answers_by_names.cache_clear()
        assert [outcome(row) for row in rows] == alone
        assert [outcome(row) for row in reversed(rows)] == alone[::-1]


def test_a_field_that_the_named_form_needs_is_missed() -> None:
    for form in Form:
        with pytest.raises(Skip) as skip:
            read({"note": "Why?"}, form)
        assert skip.value.reason in (Reason.MISSING_FIELD, Reason.UNKNOWN_FIELDS), form


def test_what_is_odd_is_noted() -> None:
    twice = f"{H}{A}One.\n\nAssistant: Two.{H}{A}"
    (example,), row = read_row(transcripts(f"{twice}Human: x", f"{twice}y"))
    assert [role for role, _ in turns(example)] == ["user", "assistant", "assistant", "user"]
    assert example.answers == ("Human: x", "y") and row.notes == {Note.SAME_SPEAKER, Note.SPEAKER_INSIDE}
    assert read_row(transcripts(f"{H}{A}  x", f"{H}{A}y"))[1].notes == {Note.STRIPPED}
    assert read_row(GOOD)[1].notes == set()


def test_the_forms_are_one_list_everywhere() -> None:
    assert list(READERS) and set(READERS) == set(Form) == {entry.form for entry in FORMS} == set(EXAMPLES)
    assert [named_form(name) for name in Form] == list(Form) and named_form(None) is None
    with pytest.raises(UsageError, match=r"'nothing' is not a form of rows; the forms are hh, preference"):
        named_form("nothing")


def test_the_documentation_shows_every_form_with_an_example_and_what_becomes_of_it() -> None:
    document = (ROOT / "docs" / "data.md").read_text("utf-8")
    assert with_table(document) == document, "write it again with `make docs`"
    for form, row in examples_of_forms():
        examples, _ = read_row(row)
        assert {example.form for example in examples} == {form}
        assert f"`{form}`" in table_of_forms() and all(what_it_becomes(example) in document for example in examples)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("system_prompt", "Be brief.", None),
        ("history", [["Hi", "Hello."]], None),
        ("passage", "A long story.", Reason.UNREAD_TURN),
        ("choices", ["a", "b"], Reason.UNREAD_TURN),
        ("response", "Else.", Reason.UNREAD_ANSWER),
        ("response_b", "Else.", Reason.UNREAD_ANSWER),
        ("generations", ["Because.", "No.", "Else."], Reason.UNREAD_ANSWER),
        ("better_response_id", 1, Reason.UNREAD_VOTE),
        ("votes", {"a": 2}, Reason.UNREAD_VOTE),
        ("train", False, Reason.NOT_TRAINED),
        ("weight", 0, Reason.NOT_TRAINED),
        ("weight", "heavy", Reason.UNREAD_WEIGHT),
        ("weight", 1e38, Reason.UNREAD_WEIGHT),
        ("weight", 1e-40, Reason.UNREAD_WEIGHT),
        ("winner", "the longer", Reason.UNCLEAR_VERDICT),
        ("tie", "maybe", Reason.UNCLEAR_VOTE),
        ("images", ["a.png"], Reason.IMAGES),
        ("tools", [{"name": "f"}], Reason.TOOLS),
        ("margin", -1, Reason.CONTRADICTED),
        ("generations", ["Because.", "No."], None),  # all of it stands in what was read
        ("messages", [USER, ANSWER], None),
        ("system", " ", None),
        ("tools", "[]", None),
        ("source", "web", None),
    ],
)
def test_no_comparison_is_kept_as_less_than_it_says(field: str, value: object, reason: Reason | None) -> None:
    row = GOOD | {field: value}
    if reason is None:
        assert read(row).kinds == ["preference"]
        return
    with pytest.raises(Skip) as skip:
        read(row)
    assert skip.value.reason is reason
    assert read_row(row, Form.PROMPT)[0] if reason not in (Reason.IMAGES, Reason.TOOLS) else True


@pytest.mark.parametrize(
    ("value", "tags", "outcome"),
    [
        ("a", "ab", (0, "")), ("Response B", "ab", (1, "")), ("model_a", "ab", (0, "")), ("[[B]]", "ab", (1, "")),
        ("right", "12", (1, "")),
        ("A>>B", "ab", (0, "")), ("B > A", "ab", (1, "")), ("A<B", "ab", (1, "")), ("A=B", "ab", (None, "tie")),
        ("tie (bothbad)", "ab", (None, "both_bad")),
        (1, "12", (0, "")), (2.0, "12", (1, "")), (0, "12", (None, "tie")), (1.5, "12", (None, "tie")),
        (1.9, "12", (1, "")), (1, "01", (1, "")), ("0", "01", (0, "")),
        (2, "02", (1, "")), (1, "0b", None),
        (1, "ab", None), (3, "12", None), (True, "01", None), ("a cat", "ab", None), ("the longer", "ab", None), ("data", "ab", None),
    ],
)  # fmt: skip
def test_a_verdict_is_read_for_one_meaning_or_none(value: object, tags: str, outcome: object) -> None:
    assert winner_of(value, list(tags)) == outcome


@pytest.mark.parametrize("value", [False, 0, -1, "bad", "0", "-1", "False", "thumbs down", "👎", "rejected", "No"])
def test_a_vote_against_is_never_one_to_imitate(value: object) -> None:
    for row in ({"prompt": "Why?", "completion": "No.", "label": value}, {"messages": [USER, OTHER], "is_good": value}):
        example = read(row)
        assert (example.kinds, example.imitate) == (["vote"], False) and example.opinions[0].value == 0.0


@pytest.mark.parametrize(
    ("value", "marked"), [(True, True), (1, True), ("yes", True), (False, None), (0, None), ("", None), (None, None)]
)
def test_a_prompt_is_marked_as_one_to_attack_with(value: object, marked: bool | None) -> None:
    (example,), row = read_row({"prompt": "How do I pick a lock?", "red_team": value})
    assert example.prompt.meta.get("red_team") == marked and "red_team" in row.read
