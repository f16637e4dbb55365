"""What a row asks: its question, with the system turn and the earlier turns that stand beside it."""

from __future__ import annotations

from collections.abc import Sequence

from bridle.core.records import Message
from bridle.feedback.importing.forms.fields import Row, answer_text, by_names, is_empty, parsed, text_of
from bridle.feedback.importing.forms.turns import (
    Turns,
    content_text,
    is_parts,
    messages,
    transcript_prompt,
    with_system,
)
from bridle.feedback.importing.reasons import Reason, Skip

SYSTEMS = ("system", "system_prompt", "system_message", "sys_prompt", "system_instruction", "sys", "system_content")
HISTORIES = tuple(
    """
    history chat_history dialogue_history dialog_history previous_turns past conversation_history previous_messages past_messages
    prior_messages past_conversation previous_conversation prior_conversation message_history previous_dialogue
    """.split()
)
DIALOGUES = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "contents", "turns")
QUESTIONS = tuple(
    """
    prompt instruction question query problem input user_prompt user_input post task_prompt user user_query user_message
    question_text prompt_text inputs human context
    """.split()
)
ALSO_DIALOGUES = ("context", "input", "items", "trajectory", "chat_messages")  # where they hold messages
ADDED = ("input", "context")  # text that follows an instruction after a blank line
LANGUAGES = ("language", "lang", "locale")


@by_names
def system_of(row: Row) -> str:
    """ShareGPT and Alpaca may name the system's message beside the dialogue, and often leave it empty."""
    name = row.first(SYSTEMS)
    if name is None or is_empty(row.look(name)):
        return ""
    value = parsed(row.take(name), row)
    if isinstance(value, dict):
        value = value.get("content", value.get("parts", value))
    return content_text(value)


@by_names
def history_of(row: Row) -> Turns:
    """Earlier questions and answers: pairs, or messages."""
    name = row.first(HISTORIES)
    if name is None or is_empty(row.look(name)):
        return ()
    value = parsed(row.take(name), row)
    if not isinstance(value, list):
        raise Skip(Reason.WRONG_TYPE)
    if len(alternating(value)) % 2:  # which of them answers cannot be told
        raise Skip(Reason.UNREAD_TURN, name)
    return alternating(value) or messages(value, row)


def alternating(value: object) -> Turns:
    """A list of texts as turns of the user and the assistant; none where it is none."""
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        return ()
    return tuple(Message("assistant" if n % 2 else "user", text) for n, text in enumerate(value))


def holds_messages(value: object, row: Row) -> bool:
    value = parsed(value, row) if isinstance(value, str) else value
    if isinstance(value, dict):
        return any(name in value for name in ("role", "from", "messages"))
    return isinstance(value, list) and all(isinstance(part, dict | list) for part in value)


@by_names
def dialogue_field(row: Row) -> str | None:
    """The field that holds the dialogue, other than `prompt`: messages, conversations …, or a context that is a list of messages."""
    named = (name for name in DIALOGUES if name in row and not isinstance(row.look(name), int | float | bool))
    listed = (
        name
        for name in ALSO_DIALOGUES
        if isinstance(row.look(name), list | dict) and holds_messages(row.look(name), row)
    )
    return next(named, None) or next(listed, None) or ("data" if alternating(row.look("data")) else None)


def dialogue(row: Row, name: str) -> Turns:
    """The whole dialogue of a field, with the system turn and the history beside it."""
    value = parsed(row.take(name), row)
    if isinstance(value, dict) and "messages" in value:
        if not is_empty(value.get("tools")):
            raise Skip(Reason.TOOLS)
        row.inside += [
            inner for inner, held in value.items() if inner not in ("messages", "tools") and not is_empty(held)
        ]
        value = value["messages"]
    return with_system(system_of(row), history_of(row) + (alternating(value) or messages(value, row)), row)


def question(row: Row, names: Sequence[str] = QUESTIONS, plain: bool = False) -> Turns:
    """The prompt of a row: text, taken as one turn of the user (`plain`) or split into turns where it is a transcript, or messages.
    What is to be added to an instruction follows it after a blank line."""
    name = row.first(names)
    if name is None:
        raise Skip(Reason.MISSING_FIELD)
    value = row.take(name)
    if isinstance(value, dict) and (
        inner := next((k for k in ("full_text", "text", "problem", "question") if k in value), None)
    ):
        row.inside += [key for key, held in value.items() if key != inner and not is_empty(held)]
        value = value[inner]
    if isinstance(value, dict) and "messages" in value:
        return dialogue(row, name)
    if is_parts(value):
        value = content_text(value)
    if holds_messages(value, row):
        return with_system(system_of(row), history_of(row) + messages(value, row), row)
    text = text_of(value)
    turns = None if plain else transcript_prompt(text, row.notes)
    if turns is None:
        added = [
            answer_text(row.take(more)) for more in ADDED if more != name and type(row.look(more)) in (str, int, float)
        ]
        turns = (Message("user", "\n\n".join(part for part in (text, *added) if part.strip())),)
    return with_system(system_of(row), history_of(row) + turns, row)


def asked(row: Row, plain: bool = False) -> Turns:
    """The prompt where it stands apart from the answers: in a field of its own, or a dialogue."""
    if row.first(("prompt",)):
        return question(row, plain=plain)
    name = dialogue_field(row)
    return dialogue(row, name) if name else question(row, plain=plain)


@by_names
def language_of(row: Row) -> str | None:
    name = row.first(LANGUAGES)
    value = row.look(name) if name else None
    if name is None or not isinstance(value, str) or not 0 < len(value.strip()) <= 20:
        return None
    row.take(name)
    return value.strip()
