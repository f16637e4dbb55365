"""Dialogues in every spelling that rows have them in, as turns of system, user and assistant."""

from __future__ import annotations

import re
from typing import Any

from bridle.core.records import Message, Role
from bridle.feedback.importing.forms.fields import Row, answer_text, is_empty, number_in, parsed, text_of
from bridle.feedback.importing.reasons import Note, Reason, Skip

Turns = tuple[Message, ...]

ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "customer"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bot", "ai", "bard", "bing", "claude", "chatbot"), "assistant"),
}  # fmt: skip
OF_TOOLS = {
    *("tool", "tools", "function", "observation", "ipython", "function_call", "function_response", "function_result"),
    *("tool_call", "tool_calls", "tool_response", "tool_result", "environment"),
}
PAIRED = {
    "input": "user",
    "question": "user",
    "instruction": "user",
    "output": "assistant",
    "answer": "assistant",
    "response": "assistant",
}
WHO, WHAT = ("role", "from", "speaker", "author", "sender"), ("content", "value", "text", "message", "parts")
JUDGED = frozenset(
    """
    feedback good is_good label preferred rating rejected reward score thumbs thumbs_up vote annotation annotations scores ratings
    votes thumbs_down is_bad liked
    """.split()
)
MEDIA, MEDIA_FIELD = re.compile(r"image|audio|video|file"), re.compile(r"images?|image_url|audios?|videos?")
TRAINED = (
    "weight",
    "train",
    "training",
    "loss",
    "trainable",
    "train_on_turn",
    "loss_weight",
)  # 0: a message not to be imitated
MASKED = ("masked", "mask", "loss_mask", "train_detail", "training_detail")  # which say as much in ways that differ
OF_MEDIA = {"image", "image_url", "audio", "video", "file", "inlineData", "inline_data", "fileData", "file_data"}
OF_CALLS = {"functionCall", "function_call", "functionResponse", "function_response", "toolUse", "toolResult"}

SPEAKERS: dict[str, Role] = {"System": "system", "Human": "user", "User": "user", "Assistant": "assistant"}
STYLES = [  # how the turns of a transcript begin
    re.compile(r"\n\n(Human|Assistant):"),
    re.compile(r"\n\n(User|Assistant):"),
    re.compile(r"\n(Human|User|Assistant):"),
    re.compile(r"\s*### ?(Human|User|Assistant|System):"),
]
SYSTEM_FIRST = re.compile(r"\s*System:(.*?)(?=\n+(?:Human|User):)", re.DOTALL)
SPEAKER_INSIDE = re.compile(r"\b(Human|Assistant):")
OPENS_TRANSCRIPT = re.compile(r"\s*(?:### ?)?(?:Human|User|System):")
CUE = re.compile(r"\s+(?:### ?)?Assistant:\s*\Z")  # where the answer goes


def speaks_inside(text: str) -> bool:
    """Whether a speaker's name stands in a text; most have neither, and that is found faster than where a word begins."""
    return ("Human:" in text or "Assistant:" in text) and SPEAKER_INSIDE.search(text) is not None


# --------------------------------------------------------------------------------------------------- messages


def messages(value: object, row: Row) -> Turns:
    """Messages of any spelling; one may stand without its list, and the list as text. Empty system messages are left out."""
    value = parsed(value, row)
    found = [value] if isinstance(value, dict) else value
    if not isinstance(found, list):
        raise Skip(Reason.WRONG_TYPE)
    turns = tuple(turn for message in found for turn in _turns_of(message, row))
    return without_empty_system(turns)


def without_empty_system(turns: Turns) -> Turns:
    return tuple(turn for turn in turns if turn.role != "system" or turn.content.strip())


def _turns_of(message: object, row: Row) -> list[Message]:
    if isinstance(message, list) and len(message) == 2 and all(isinstance(part, str) for part in message):
        return [Message("user", message[0]), Message("assistant", message[1])]
    if not isinstance(message, dict):
        raise Skip(Reason.WRONG_TYPE)
    speaker = next((message[name] for name in WHO if not is_empty(message.get(name))), None)
    if speaker is None:
        return _pair_in(message, row)
    speaker = speaker.get("role") if isinstance(speaker, dict) else speaker
    if not isinstance(speaker, str):
        raise Skip(Reason.UNKNOWN_ROLE)
    row.roles.add(speaker)
    plain = speaker.strip().lower().replace("-", "_")
    place = next((name for name in WHAT if message.get(name) is not None), "content")
    other = {str(name): inner for name, inner in message.items() if name not in (*WHO, place) and not is_empty(inner)}
    if plain in OF_TOOLS or "tool_calls" in other or "function_call" in other:
        raise Skip(Reason.TOOLS)
    if plain not in ROLES:
        raise Skip(Reason.UNKNOWN_ROLE, speaker)
    for name in other:
        if name in JUDGED or MEDIA_FIELD.fullmatch(name):
            raise Skip(Reason.UNREAD_VOTE if name in JUDGED else Reason.IMAGES, name)
    row.inside += [name for name in other if name not in TRAINED]
    if ROLES[plain] == "assistant":
        row.trained = _trained(other)
    return [Message(ROLES[plain], content_text(message.get(place)))]


def _trained(other: dict[str, Any]) -> float | None:
    """What a message says that it counts in training; a word of unknown meaning cannot be told as a number."""
    marks = [other[name] for name in TRAINED if name in other]
    marks += [float("nan") for name in MASKED if name in other and other[name] is not False]
    worth = [
        number_in(int(str(mark).lower() == "true") if str(mark).lower() in ("true", "false") else mark)
        for mark in marks
    ]
    return min((float("nan") if mark is None else mark for mark in worth), default=None)


def require_trained(row: Row) -> None:
    """Raise Skip where the answer that was read last is not to be imitated, or only in part."""
    if row.trained == 0:
        raise Skip(Reason.NOT_TRAINED)
    if row.trained not in (None, 1):
        raise Skip(Reason.UNREAD_WEIGHT)


def _pair_in(message: dict[str, Any], row: Row) -> list[Message]:
    """A message whose fields are who speaks: {"human": …, "assistant": …}, {"input": …, "output": …}."""
    turns = []
    for name, inner in message.items():
        plain = str(name).strip().lower()
        role = ROLES.get(plain) or PAIRED.get(plain)
        if role is None and not is_empty(inner):
            row.inside.append(str(name))
        elif role is not None and inner is not None:
            row.roles.add(str(name))
            turns.append(Message(role, text_of(inner)))  # type: ignore[arg-type]
    if not turns:
        raise Skip(Reason.UNKNOWN_ROLE)
    order = {"system": 0, "user": 1, "assistant": 2}
    return sorted(turns, key=lambda turn: order[turn.role])


def holds_any(part: dict[str, Any], names: set[str]) -> bool:
    return any(not is_empty(part[name]) for name in names & part.keys())


def is_parts(value: object) -> bool:
    """Whether it is one message's content in parts, and not messages."""
    return isinstance(value, list) and any(
        isinstance(part, dict) and "type" in part and not any(name in part for name in WHO) for part in value
    )


def content_text(value: object) -> str:
    """A message's text, be it in parts. A part that is not text is not left out: such a row is skipped."""
    if isinstance(value, str):
        return value
    parts = [value] if isinstance(value, dict) else value
    if not isinstance(parts, list) or not parts:
        raise Skip(Reason.WRONG_TYPE)
    texts = []
    for part in parts:
        if isinstance(part, dict) and (MEDIA.search(str(part.get("type", "text"))) or holds_any(part, OF_MEDIA)):
            raise Skip(Reason.IMAGES)
        if isinstance(part, dict) and ("tool" in str(part.get("type")) or holds_any(part, OF_CALLS)):
            raise Skip(Reason.TOOLS)
        text = part.get("text") if isinstance(part, dict) else part
        texts.append(text_of(text.get("value") if isinstance(text, dict) else text))
    return "\n".join(texts)


# ------------------------------------------------------------------------------------------------- transcripts


def transcript(text: str, notes: set[Note]) -> Turns:
    """A text such as "Human: …\\n\\nAssistant: …" as turns. Raises Skip where it is none."""
    system: Turns = ()
    body = text
    if found := SYSTEM_FIRST.match(text):
        system, body = (Message("system", found[1].strip()),), body[found.end() :]
    body = "\n\n" + body.strip("\n").lstrip()
    splits = [style.split(body) for style in STYLES]
    fitting = [parts for parts in splits if len(parts) > 1 and not parts[0].strip()]
    if not fitting:
        raise Skip(Reason.NOT_TRANSCRIPT)
    _, *parts = fitting[0] if len(fitting[0]) > 3 else max(fitting, key=len)  # of one turn another style may make more
    spoken = list(zip(parts[::2], parts[1::2], strict=True))
    if any(stated.strip() and stated != f" {stated.strip()}" for _, stated in spoken):
        notes.add(Note.STRIPPED)
    return without_empty_system(system + tuple(Message(SPEAKERS[who], stated.strip()) for who, stated in spoken))


def transcript_prompt(text: str, notes: set[Note]) -> Turns | None:
    """The turns of a prompt that is a transcript up to the cue for the answer; None where it is none."""
    if not OPENS_TRANSCRIPT.match(text) or not (cue := CUE.search(text)):
        return None
    return transcript(text[: cue.start()], notes)


# --------------------------------------------------------------------------------------------- prompt and answer


def demonstrated(turns: Turns) -> tuple[Turns, str]:
    """A dialogue that ends with an answer: what comes before is its prompt."""
    if not turns or turns[-1].role != "assistant":
        raise Skip(Reason.NO_ANSWER)
    return turns[:-1], turns[-1].content


def side(value: object, prompt: Turns | None, row: Row) -> tuple[Turns, str]:
    """The prompt and the answer that one side of a comparison tells. Messages may repeat the prompt, or some turns of it, with or
    without its system message, and with more turns round it."""
    value = parsed(value, row)
    if isinstance(value, dict) and {"text", "content"} & value.keys() and not any(name in value for name in WHO):
        name = "content" if "content" in value else "text"
        row.inside += [key for key, held in value.items() if key != name and not is_empty(held)]
        value = content_text(value[name])
    if is_parts(value):
        value = content_text(value)
    if isinstance(value, list | dict):
        before, answer = demonstrated(messages(value, row))
        return (before, answer) if prompt is None else (together(prompt, before), answer)
    text = answer_text(value)
    return (prompt, text) if prompt is not None else demonstrated(transcript(text, row.notes))


def together(prompt: Turns, before: Turns) -> Turns:
    """The prompt, which stands apart, with the turns that an answer's dialogue has before it."""
    asked, repeated = [tuple(turn for turn in turns if turn.role != "system") for turns in (prompt, before)]
    if before == prompt or (repeated and repeated == asked[-len(repeated) :]) or not before:
        longer = prompt if any(turn.role == "system" for turn in prompt) or len(asked) > len(repeated) else before
        return longer or prompt
    if len(asked) == 1 and asked[0] in repeated:
        systems = tuple(turn for turn in prompt if turn.role == "system")
        return before if not systems or before[0].role == "system" else systems + before
    raise Skip(Reason.NO_ANSWER)


def with_system(system: str, turns: Turns, row: Row) -> Turns:
    """The turns with the system message that stands beside them. One inside them as well is joined to it, and noted."""
    if not system.strip():
        return turns
    if turns and turns[0].role == "system":
        if turns[0].content.strip() == system.strip():
            return turns
        row.notes.add(Note.TWO_SYSTEMS)
        system, turns = f"{system}\n\n{turns[0].content}", turns[1:]
    return (Message("system", system), *turns)
