"""Each form of rows: what is read of it, how it is told, and why a row of it is skipped."""

from typing import Any

import pytest

from bridle.cli.project import import_
from bridle.feedback.importing.formats import FIELDS, READERS, Form, ImportedRow, read_example
from bridle.feedback.importing.reasons import Note, Reason, Skip

Row = dict[str, Any]
GOOD = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
H, A = "\n\nHuman: Why?", "\n\nAssistant: "


def turn(role: object, content: object) -> Row:
    return {"role": role, "content": content}


def said(name: str, text: str) -> Row:
    return {"from": name, "value": text}


def read(row: Row, form: Form | None = None) -> ImportedRow:
    return read_example(row, form)[0]


def turns(example: ImportedRow) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.prompt.messages]


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
    assert (example.form, example.kind) == (form, "preferences")


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
    assert (example.form, example.kind) == (form, "demonstrations")


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
    assert (example.form, example.kind) == (form, "prompts")


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
        ({"prompt": f"{H}\n\nAssistant:"}, Form.PROMPT, "prompts", f"{H}\n\nAssistant:"),
        ({"prompt": "Human: Why?"}, Form.HH, "prompts", "Why?"),
        (GOOD | {"messages": [USER, ANSWER]}, Form.MESSAGES, "demonstrations", "Why?"),
        (GOOD, Form.PROMPT, "prompts", "Why?"),
        ({"prompt": "Why?", "completion": "x", "label": True}, Form.COMPLETION, "demonstrations", "Why?"),
        ({"conversations": [HUMAN, GPT], "kto_tag": True}, Form.SHAREGPT, "demonstrations", "Why?"),
    ],
)
def test_a_form_that_is_named_is_taken_at_its_word(row: Row, form: Form, kind: str, prompt: str) -> None:
    example = read(row, form)
    assert (example.form, example.kind, example.prompt.text) == (form, kind, prompt)


# ---------------------------------------------------------------------------------------------- what is skipped


def transcripts(chosen: str, rejected: str) -> Row:
    return {"chosen": chosen, "rejected": rejected}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, Reason.UNKNOWN_FIELDS),
        ({"question": "Why?", "answer": "Because."}, Reason.UNKNOWN_FIELDS),
        ({"instruction": "Why?", "output_1": "x", "output_2": "y", "preference": 1}, Reason.UNKNOWN_FIELDS),
        ({"prompt": None, "messages": None}, Reason.UNKNOWN_FIELDS),
        ({"prompt": "Why?", "chosen": "x"}, Reason.ONE_SIDE),
        (GOOD | {"chosen": None}, Reason.ONE_SIDE),
        ({"conversations": [HUMAN], "rejected": GPT}, Reason.ONE_SIDE),
        ({"messages": [USER, ANSWER], "label": True}, Reason.UNPAIRED),
        ({"prompt": "Why?", "completion": "x", "label": 0}, Reason.UNPAIRED),
        ({"conversations": [HUMAN, GPT], "kto_tag": False}, Reason.UNPAIRED),
        (GOOD | {"prompt": 3}, Reason.WRONG_TYPE),
        (GOOD | {"prompt": ["Why?"]}, Reason.WRONG_TYPE),
        (GOOD | {"prompt": [turn("user", None)]}, Reason.WRONG_TYPE),
        ({"prompt": "Why?", "completion": 3}, Reason.WRONG_TYPE),
        ({"messages": "Why?"}, Reason.WRONG_TYPE),
        ({"instruction": 3, "output": "x"}, Reason.WRONG_TYPE),
        ({"instruction": "x", "history": [["a"]], "output": "x"}, Reason.WRONG_TYPE),
        ({"conversations": [HUMAN, GPT], "system": 3}, Reason.WRONG_TYPE),
        (GOOD | {"prompt": [turn("tool", "x")]}, Reason.UNKNOWN_ROLE),
        (GOOD | {"prompt": [turn(["user"], "x")]}, Reason.UNKNOWN_ROLE),
        (GOOD | {"prompt": [{}]}, Reason.UNKNOWN_ROLE),
        ({"conversations": [HUMAN, said("function_call", "{}"), GPT]}, Reason.UNKNOWN_ROLE),
        (GOOD | {"prompt": []}, Reason.NO_USER_TURN),
        (GOOD | {"prompt": [USER, ANSWER]}, Reason.NO_USER_TURN),
        ({"prompt": [USER, ANSWER]}, Reason.NO_USER_TURN),
        ({"messages": [ANSWER]}, Reason.NO_USER_TURN),
        ({"messages": []}, Reason.NO_ANSWER),
        ({"messages": [USER]}, Reason.NO_ANSWER),
        ({"conversations": [HUMAN, GPT, HUMAN]}, Reason.NO_ANSWER),
        (GOOD | {"prompt": " \n"}, Reason.EMPTY_PROMPT),
        ({"instruction": "", "input": " ", "output": "x"}, Reason.EMPTY_PROMPT),
        (GOOD | {"chosen": []}, Reason.NO_ANSWER),
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


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("value", [None, 3, True, [], {}, [3], [[3]], "x", {"role": {}}, [{"role": "user"}]])
def test_no_value_of_any_field_breaks_a_form(form: Form, value: object) -> None:
    """Read or skipped, whatever stands in the fields: other errors would end an import in the middle."""
    for name in sorted(FIELDS[form]):
        for row in (
            {name: value},
            dict.fromkeys(FIELDS[form], "x") | {name: value},
            dict.fromkeys(FIELDS[form], value),
        ):
            for asked in (form, None):
                try:
                    assert read(row, asked).answers is not None
                except Skip as skip:
                    assert skip.reason in Reason


def test_a_field_that_the_named_form_needs_is_missed() -> None:
    for form in Form:
        with pytest.raises(Skip) as skip:
            read({"text": "Why?"}, form)
        assert skip.value.reason is Reason.MISSING_FIELD


def test_what_is_odd_is_noted() -> None:
    twice = f"{H}{A}One.\n\nAssistant: Two.{H}{A}"
    example, notes = read_example(transcripts(f"{twice}Human: x", f"{twice}y"))
    assert [role for role, _ in turns(example)] == ["user", "assistant", "assistant", "user"]
    assert example.answers == ("Human: x", "y") and notes == {Note.SAME_SPEAKER, Note.SPEAKER_INSIDE}
    assert read_example(transcripts(f"{H}{A}  x", f"{H}{A}y"))[1] == {Note.STRIPPED}
    assert read_example(GOOD)[1] == set()


def test_the_forms_are_one_list_everywhere() -> None:
    option = next(parameter for parameter in import_.params if parameter.name == "form")
    assert list(option.type.choices) == list(Form) == list(READERS) == list(FIELDS)
