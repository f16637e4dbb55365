"""The forms of rows that users bring, each read into one record: a prompt with no answer, one, or a better and a worse.

    hh          {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": "…"}   transcripts in the manner of Anthropic's
                HH-RLHF; also with the transcript in "prompt", which then ends with "\\n\\nAssistant:"
    preference  {"prompt", "chosen", "rejected"}   each text or messages; messages may repeat the prompt, or replace it
    prompt      {"prompt"}                         text or messages that end with the user
    completion  {"prompt", "completion"}           text or messages
    messages    {"messages"}                       the last is the assistant's: the answer; those before are the prompt
    sharegpt    {"conversations"}                  the same; with {"chosen", "rejected"} the prompt of these
    alpaca      {"instruction", "input", "output"} or {"instruction", "input", "chosen", "rejected"}

Messages are {"role", "content"} or {"from", "value"}, of system, user (human) and assistant (gpt). The form is told by
the fields; a field that is null counts as absent, and fields of no meaning here are left unread.
Not covered: unpaired votes, ratings and rankings, margins and scores; tool calls and images.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

from bridle.core.records import Message, Prompt, Role
from bridle.feedback.importing.readers import is_utf8
from bridle.feedback.importing.reasons import Note, Reason, Skip

Fields = Mapping[str, Any]
Turns = tuple[Message, ...]
Read = tuple[Turns, tuple[str, ...]]  # the prompt's turns, and the answers

SPEAKER = re.compile(r"\n\n(Human|Assistant):")
SPEAKER_INSIDE = re.compile(r"\b(Human|Assistant):")
PROMPT_TRANSCRIPT = re.compile(r"\s*(Human|Assistant):.*\n\nAssistant:\s*", re.DOTALL)
ROLES: dict[str, Role] = {
    "system": "system", "user": "user", "human": "user", "Human": "user", "assistant": "assistant", "gpt": "assistant",
    "Assistant": "assistant",
}  # fmt: skip


class Form(StrEnum):
    HH = "hh"
    PREFERENCE = "preference"
    PROMPT = "prompt"
    COMPLETION = "completion"
    MESSAGES = "messages"
    SHAREGPT = "sharegpt"
    ALPACA = "alpaca"


FIELDS = {
    Form.HH: {"prompt", "completion", "chosen", "rejected"},
    Form.PREFERENCE: {"prompt", "chosen", "rejected"},
    Form.PROMPT: {"prompt"},
    Form.COMPLETION: {"prompt", "completion"},
    Form.MESSAGES: {"messages"},
    Form.SHAREGPT: {"system", "conversations", "chosen", "rejected"},
    Form.ALPACA: {"system", "history", "instruction", "input", "output", "chosen", "rejected"},
}
KNOWN_FORMS = (
    "{prompt}, {prompt, completion}, {messages}, {prompt, chosen, rejected}, {chosen, rejected} with whole dialogues, "
    "{conversations} or {instruction, input, output}, as JSON lines, a JSON list or Parquet"
)


@dataclass(frozen=True)
class ImportedRow:
    """What one row says. Answers: none, one (a demonstration), or two (the chosen one, then the rejected)."""

    form: Form
    prompt: Prompt
    answers: tuple[str, ...]

    @property
    def kind(self) -> str:
        return ("prompts", "demonstrations", "preferences")[len(self.answers)]


def read_example(row: Fields, form: Form | None = None) -> tuple[ImportedRow, set[Note]]:
    """The record of a row, and what is worth noting of it. Raises Skip, with the reason.

    `form=None`: the row's fields tell it. A form that is named is taken at its word: other fields are left unread.
    """
    there = {name: value for name, value in row.items() if value is not None}
    notes: set[Note] = set()
    form = form or form_of(there)
    prompt, answers = READERS[form](there, notes)
    texts = [turn.content for turn in prompt] + list(answers)
    _check(prompt, answers, texts)
    if any(turn.role == following.role for turn, following in pairwise(prompt)):
        notes.add(Note.SAME_SPEAKER)
    if any(SPEAKER_INSIDE.search(text) for text in texts):
        notes.add(Note.SPEAKER_INSIDE)
    return ImportedRow(form, Prompt(prompt), answers), notes


def form_of(row: Fields) -> Form:
    """The form that a row's fields tell; nulls are left out of it before. Raises Skip where they tell none."""
    compared = "chosen" in row or "rejected" in row
    transcript = isinstance(row.get("prompt"), str) and PROMPT_TRANSCRIPT.fullmatch(row["prompt"])
    if compared and "conversations" in row:
        return Form.SHAREGPT
    if compared and "instruction" in row and "prompt" not in row:
        return Form.ALPACA
    if compared:
        whole = "prompt" not in row and isinstance(row.get("chosen"), str)
        return Form.HH if transcript or whole else Form.PREFERENCE
    if form := _answered_form(row):
        if row.get("label") in (0, 1) or row.get("kto_tag") in (0, 1):  # True and False are 1 and 0
            raise Skip(Reason.UNPAIRED)
        return Form.HH if transcript and form is Form.COMPLETION else form
    if "prompt" in row:
        return Form.HH if transcript else Form.PROMPT
    raise Skip(Reason.UNKNOWN_FIELDS)


def _answered_form(row: Fields) -> Form | None:
    if "prompt" in row and "completion" in row:
        return Form.COMPLETION
    if "messages" in row:
        return Form.MESSAGES
    if "conversations" in row:
        return Form.SHAREGPT
    return Form.ALPACA if "instruction" in row and "output" in row else None


# ------------------------------------------------------------------------------------------------ form by form


def _hh(row: Fields, notes: set[Note]) -> Read:
    if "prompt" not in row:
        return _compared(row, None, notes)
    text = _field(row, "prompt")
    if not isinstance(text, str):
        raise Skip(Reason.WRONG_TYPE)
    prompt = _transcript(text, notes)
    if prompt[-1] == Message("assistant", ""):  # where the answer goes
        prompt = prompt[:-1]
    rest = {name: v.removeprefix(text).strip() if isinstance(v, str) else v for name, v in row.items()}
    if "completion" in row:
        return _completed(rest, prompt)
    return _compared(rest, prompt, notes) if "chosen" in row or "rejected" in row else (prompt, ())


def _preference(row: Fields, notes: set[Note]) -> Read:
    return _compared(row, _prompt(row["prompt"]) if "prompt" in row else None, notes)


def _prompt_alone(row: Fields, notes: set[Note]) -> Read:
    return _prompt(_field(row, "prompt")), ()


def _completion(row: Fields, notes: set[Note]) -> Read:
    return _completed(row, _prompt(_field(row, "prompt")))


def _dialogue_of_messages(row: Fields, notes: set[Note]) -> Read:
    return _demonstrated(_messages(_field(row, "messages")))


def _sharegpt(row: Fields, notes: set[Note]) -> Read:
    turns = _system(row) + _messages(_field(row, "conversations"))
    return _compared(row, turns, notes) if "chosen" in row or "rejected" in row else _demonstrated(turns)


def _alpaca(row: Fields, notes: set[Note]) -> Read:
    """The input, where there is one, follows the instruction after a blank line; `history` holds earlier questions and answers."""
    parts = [_text(_field(row, "instruction")), _text(row.get("input", ""))]
    earlier = row.get("history", [])
    if not isinstance(earlier, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in earlier):
        raise Skip(Reason.WRONG_TYPE)
    before = [
        m for asked, answer in earlier for m in (Message("user", _text(asked)), Message("assistant", _text(answer)))
    ]
    asked = "\n\n".join(part for part in parts if part.strip())
    prompt = (*_system(row), *before, Message("user", asked))
    if "chosen" in row or "rejected" in row:
        return _compared(row, prompt, notes)
    return prompt, (_text(_field(row, "output")),)


READERS: Mapping[Form, Callable[[Fields, set[Note]], Read]] = {
    Form.HH: _hh,
    Form.PREFERENCE: _preference,
    Form.PROMPT: _prompt_alone,
    Form.COMPLETION: _completion,
    Form.MESSAGES: _dialogue_of_messages,
    Form.SHAREGPT: _sharegpt,
    Form.ALPACA: _alpaca,
}


# --------------------------------------------------------------------------------- what the forms are made of


def _field(row: Fields, name: str) -> object:
    if name not in row:
        raise Skip(Reason.MISSING_FIELD)
    return row[name]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Skip(Reason.WRONG_TYPE)
    return value


def _system(row: Fields) -> Turns:
    """ShareGPT and Alpaca may name the system's message beside the dialogue, and often leave it empty."""
    text = _text(row.get("system", ""))
    return (Message("system", text),) if text.strip() else ()


def _prompt(value: object) -> Turns:
    return (Message("user", value),) if isinstance(value, str) else _messages(value)


def _compared(row: Fields, prompt: Turns | None, notes: set[Note]) -> Read:
    """Two answers to one prompt, which stands apart or is what both dialogues share."""
    if "chosen" not in row and "rejected" not in row:
        raise Skip(Reason.MISSING_FIELD)
    if "chosen" not in row or "rejected" not in row:
        raise Skip(Reason.ONE_SIDE)
    (before, chosen), (other, rejected) = (_side(row[name], prompt, notes) for name in ("chosen", "rejected"))
    if before != other:
        raise Skip(Reason.DIVERGES)
    return before, (chosen, rejected)


def _completed(row: Fields, prompt: Turns) -> Read:
    before, answer = _side(_field(row, "completion"), prompt, set())
    return before, (answer,)


def _side(value: object, prompt: Turns | None, notes: set[Note]) -> tuple[Turns, str]:
    """The prompt and the answer that one side tells. Messages may repeat the prompt, with more turns round it."""
    if prompt is None:
        turns = _transcript(value, notes) if isinstance(value, str) else _messages(value)
    elif isinstance(value, str):
        return prompt, value
    else:
        turns = _messages(value)
    before, (answer,) = _demonstrated(turns)
    if prompt is None or before == prompt or (len(prompt) == 1 and prompt[0] in before):
        return before, answer
    if before:
        raise Skip(Reason.NO_ANSWER)
    return prompt, answer


def _demonstrated(turns: Turns) -> tuple[Turns, tuple[str]]:
    """A dialogue that ends with an answer: what comes before is its prompt."""
    if not turns or turns[-1].role != "assistant":
        raise Skip(Reason.NO_ANSWER)
    return turns[:-1], (turns[-1].content,)


def _transcript(text: str, notes: set[Note]) -> Turns:
    before, *parts = SPEAKER.split("\n\n" + text.lstrip())
    if before.strip() or not parts:
        raise Skip(Reason.NOT_TRANSCRIPT)
    spoken = list(zip(parts[::2], parts[1::2], strict=True))
    if any(text.strip() and text != f" {text.strip()}" for _, text in spoken):
        notes.add(Note.STRIPPED)
    return tuple(Message(ROLES[speaker], text.strip()) for speaker, text in spoken)


def _messages(value: object) -> Turns:
    """Messages of either spelling; one may stand without its list."""
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise Skip(Reason.WRONG_TYPE)
    turns = []
    for message in messages:
        role = message.get("role") or message.get("from")
        if not isinstance(role, str) or role not in ROLES:
            raise Skip(Reason.UNKNOWN_ROLE)
        content = message.get("content")
        turns.append(Message(ROLES[role], _text(message.get("value") if content is None else content)))
    return tuple(turns)


def _check(prompt: Turns, answers: tuple[str, ...], texts: list[str]) -> None:
    if not prompt or prompt[-1].role != "user":
        raise Skip(Reason.NO_USER_TURN)
    if not all(turn.content.strip() for turn in prompt):
        raise Skip(Reason.EMPTY_PROMPT)
    if not all(answer.strip() for answer in answers):
        raise Skip(Reason.EMPTY_ANSWER)
    if len(answers) == 2 and answers[0].strip() == answers[1].strip():
        raise Skip(Reason.IDENTICAL)
    # JSON can spell what UTF-8 cannot (half of a surrogate pair) and what PostgreSQL does not take (NUL).
    if not all(is_utf8(text) and "\0" not in text for text in texts):
        raise Skip(Reason.UNSTORABLE)
