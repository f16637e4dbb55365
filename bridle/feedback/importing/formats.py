"""The forms of rows that users bring, each read for what it says: a prompt with its answers, and what somebody said of these.

The table FORMS holds every form: its name, how a row of it is told, and what reads it. The first that fits is taken. What a form takes
of a row counts as read; the rule that no row is kept as less than it says stands in one place, `require_nothing_lost`: a field that by
its name is an answer, a vote, a tie, a system turn, a history or a weight, says something, and was not read, skips the row.
docs/data.md shows an example of each form (examples.toml) and what becomes of it.
Not covered: tool calls, images, audio and video; token ids.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any

from bridle.core.errors import UsageError
from bridle.core.records import Message, Prompt
from bridle.feedback.importing.files.row import is_utf8
from bridle.feedback.importing.forms import compared, exports, plain, published, slots
from bridle.feedback.importing.forms.asked import (
    ALSO_DIALOGUES,
    DIALOGUES,
    HISTORIES,
    QUESTIONS,
    SYSTEMS,
    dialogue_field,
    language_of,
)
from bridle.feedback.importing.forms.compared import CHOSEN, FINE, REJECTED, is_compared
from bridle.feedback.importing.forms.fields import IGNORED, Row, by_names, is_empty, list_in_text, strings_in
from bridle.feedback.importing.forms.imported import ImportedRow
from bridle.feedback.importing.forms.plain import (
    ANSWERS,
    CHECKS,
    SOLUTIONS,
    answer_field,
    has_score,
    has_vote,
    is_checkable,
)
from bridle.feedback.importing.forms.slots import LISTS, SLOT, answer_slots, listed_field
from bridle.feedback.importing.forms.turns import speaks_inside, transcript_prompt
from bridle.feedback.importing.forms.verdicts import (
    ABOUT,
    AGAINST,
    BY_CRITERION,
    FOR,
    TIE_FLAGS,
    VERDICTS,
    VOTES,
    WEIGHTS,
    is_judging,
    vote_of,
    word,
)
from bridle.feedback.importing.reasons import Note, Reason, Skip

Read = Callable[[Row], ImportedRow | list[ImportedRow]]


class Form(StrEnum):
    HH = "hh"
    PREFERENCE = "preference"
    PROMPT = "prompt"
    COMPLETION = "completion"
    MESSAGES = "messages"
    SHAREGPT = "sharegpt"
    ALPACA = "alpaca"
    VOTE = "vote"
    RATING = "rating"
    CHECKABLE = "checkable"
    TWO_ANSWERS = "two-answers"
    LIST = "list"
    RANKED_OUTPUT = "ranked-output"
    STEPWISE = "stepwise"
    TEXT = "text"
    SUMMARIZE = "summarize-feedback"
    SHP = "shp"
    ARENA = "arena"
    PRM800K = "prm800k"
    MATH_SHEPHERD = "math-shepherd"
    OASST = "oasst"
    LABEL_STUDIO = "label-studio"
    ARGILLA = "argilla"
    OPEN_WEBUI = "open-webui"


KNOWN_FORMS = (
    "{prompt}, {prompt, completion}, {messages}, {prompt, chosen, rejected}, {chosen, rejected} with whole dialogues, {conversations}, "
    "{instruction, input, output} and the others of docs/data.md; `--map FIELD=prompt,…` names fields of your own"
)
MAPPED = (  # what a field of the user's can be mapped to
    *(
        "prompt",
        "system",
        "history",
        "context",
        "messages",
        "completion",
        "chosen",
        "rejected",
        "response_a",
        "response_b",
    ),
    *(
        "winner",
        "completions",
        "ranks",
        "scores",
        "label",
        "labels",
        "score",
        "solution",
        *CHECKS,
        "text",
        "tie",
        "annotator",
        "strength",
    ),
    *("margin", "weight", "confidence", "language", IGNORED),
)


def _is_transcript(row: Row) -> bool:
    text = row.look("prompt")
    if isinstance(text, str):
        return transcript_prompt(text, set()) is not None
    text = row.look("text")
    return "prompt" not in row and isinstance(text, str) and plain.TURN_MARKS.match(text) is not None


def _has_instruction(row: Row) -> bool:
    return "instruction" in row and "prompt" not in row


def _whole_texts(row: Row) -> bool:
    """Both sides are texts, and nothing else asks."""
    apart = row.first((*QUESTIONS, *DIALOGUES)) is not None
    return not apart and isinstance(row.look(row.first(CHOSEN) or ""), str)


def _is_answered(row: Row) -> bool:
    return answer_field(row) is not None and (row.first(QUESTIONS) or dialogue_field(row)) is not None


def hh(row: Row) -> ImportedRow:
    return compared.compare_transcripts(row) if is_compared(row) else plain.transcribed(row)


def sharegpt(row: Row) -> ImportedRow:
    return compared.compare_sharegpt(row) if is_compared(row) else plain.demonstrate_sharegpt(row)


def alpaca(row: Row) -> ImportedRow:
    return compared.compare_alpaca(row) if is_compared(row) else plain.demonstrate_alpaca(row)


@dataclass(frozen=True)
class FormReader:
    form: Form
    fits: Callable[[Row], bool]
    read: Read


FORMS = (
    FormReader(Form.OPEN_WEBUI, exports.is_open_webui, exports.open_webui),
    FormReader(Form.LABEL_STUDIO, lambda row: {"data", "annotations"} <= set(row), exports.label_studio),
    FormReader(Form.ARGILLA, exports.is_argilla, exports.argilla),
    FormReader(Form.OASST, exports.is_tree, exports.tree),
    FormReader(Form.SUMMARIZE, lambda row: isinstance(row.look("info"), dict), published.summarize_feedback),
    FormReader(
        Form.PRM800K,
        lambda row: isinstance(row.look("label"), dict) and "steps" in row.look("label"),
        published.prm800k,
    ),
    FormReader(
        Form.MATH_SHEPHERD,
        lambda row: plain.STEP_MARK in str(row.look("input")) and "label" in row,
        plain.math_shepherd,
    ),
    FormReader(Form.SHP, lambda row: {"human_ref_a", "human_ref_b", "labels"} <= set(row), published.shp),
    FormReader(Form.ARENA, published.is_arena, published.arena),
    FormReader(
        Form.STEPWISE, lambda row: isinstance(row.look("completions"), list) and "labels" in row, plain.stepwise
    ),
    FormReader(Form.SHAREGPT, lambda row: is_compared(row) and "conversations" in row, sharegpt),
    FormReader(Form.ALPACA, lambda row: is_compared(row) and _has_instruction(row), alpaca),
    FormReader(Form.HH, lambda row: is_compared(row) and _is_transcript(row), hh),
    FormReader(Form.PREFERENCE, is_compared, compared.preference),
    FormReader(Form.TWO_ANSWERS, lambda row: bool(answer_slots(row)), slots.in_slots),
    FormReader(Form.LIST, lambda row: listed_field(row) is not None, slots.in_list),
    FormReader(
        Form.RANKED_OUTPUT,
        lambda row: isinstance(row.look("output"), list) and not _holds_turns(row),
        slots.ranked_output,
    ),
    FormReader(Form.VOTE, lambda row: (_is_answered(row) or _is_dialogue(row)) and has_vote(row), plain.voted),
    FormReader(Form.RATING, lambda row: (_is_answered(row) or _is_dialogue(row)) and has_score(row), plain.rated),
    FormReader(Form.CHECKABLE, is_checkable, plain.checkable),
    FormReader(Form.HH, _is_transcript, hh),
    FormReader(Form.ALPACA, lambda row: _has_instruction(row) and "output" in row, alpaca),
    FormReader(Form.COMPLETION, _is_answered, plain.completion),
    FormReader(Form.MESSAGES, lambda row: "messages" in row, plain.last_of_messages),
    FormReader(
        Form.SHAREGPT, lambda row: dialogue_field(row) in (*DIALOGUES[1:], *ALSO_DIALOGUES[2:], "data"), sharegpt
    ),
    FormReader(Form.PROMPT, lambda row: (row.first(QUESTIONS) or dialogue_field(row)) is not None, plain.prompt_alone),
    FormReader(Form.TEXT, lambda row: "text" in row, plain.document),
)
READERS: Mapping[Form, Read] = {entry.form: entry.read for entry in FORMS}


def _holds_turns(row: Row) -> bool:
    return any(isinstance(part, dict) for part in row.look("output"))


def _is_dialogue(row: Row) -> bool:
    return dialogue_field(row) is not None


def read_row(
    values: Mapping[str, Any],
    form: Form | None = None,
    mapping: Mapping[str, str] | None = None,
    to_judge: bool = False,
) -> tuple[list[ImportedRow], Row]:
    """What a row says, and the row with what was read of it. Raises Skip, with the reason.

    `form=None`: the row's fields tell it. A form that is named is taken at its word: other fields are left unread. `mapping` gives
    fields of the user's the names that forms know. `to_judge`: several answers without a word of which is better are kept.
    """
    if (
        set(values) == {"row_idx", "row", "truncated_cells"}
        and not values["truncated_cells"]
        and isinstance(values["row"], dict)
    ):
        values = values["row"]  # as the Hub's viewer gives rows
    row = Row(values, mapping, to_judge)
    _refuse_media(row)
    if form is not Form.PROMPT:  # whose answers are left aside
        _refuse_removed(row)
    read = READERS[form] if form else _reader_of(row)
    language, rubric, found = language_of(row), row.take("rubric"), read(row)
    read_examples = found if isinstance(found, list) else [found]
    topic = plain.problem_kind(row) if any(one.solutions for one in read_examples) else ""
    stated = {"lang": language, "rubric": rubric, "topic": topic, "red_team": is_red_team(row)}
    meta = {name: value for name, value in stated.items() if value}
    examples = [finished(one, row, meta) for one in read_examples]
    if form is None:
        require_nothing_lost(row, examples)
    return examples, row


def is_red_team(row: Row) -> bool:
    """Whether a row marks its prompt as one to attack a model with, whose answers `bridle revise` revises. Skip where it says neither."""
    stated = word(row.take("red_team"))
    if stated not in {"", *FOR, *AGAINST}:
        raise Skip(Reason.UNCLEAR_MARK, "red_team")
    return stated in FOR


def named_form(name: str | None) -> Form | None:
    """The form of a name; None for none. Raises UsageError."""
    if name is None or name in list(Form):
        return Form(name) if name else None
    raise UsageError(f"--format: {name!r} is not a form of rows; the forms are {', '.join(Form)}")


def parse_mapping(texts: Iterable[str]) -> dict[str, str]:
    """What --map was given ("question=prompt,reply=completion"), by the user's field. Raises UsageError."""
    found: dict[str, str] = {}
    for text in ",".join(texts).split(","):
        if not text.strip():
            continue
        field, _, name = (part.strip() for part in text.partition("="))
        if not field or name not in MAPPED:
            raise UsageError(
                f"--map: {text.strip()!r} is not FIELD=NAME with a name that rows are read under; the names are {', '.join(MAPPED)}"
            )
        if field in found or (name != IGNORED and name in found.values()):
            raise UsageError(f"--map: {text.strip()!r} names a field or a target a second time; each stands for one")
        found[field] = name
    return found


def _reader_of(row: Row) -> Read:
    open_forms: list[FormReader] = row.known.setdefault(_reader_of, list(FORMS))
    for entry in tuple(open_forms):
        before = row.looks
        if entry.fits(row):
            return entry.read
        if row.looks == before:  # without a look at a value it fits no row of these names
            open_forms.remove(entry)
    listed = [value for value in row.fields.values() if isinstance(value, list) and value]
    ids = any(all(type(part) is int for part in value) for value in listed)
    raise Skip(Reason.TOKEN_IDS if ids else Reason.UNKNOWN_FIELDS)


# ------------------------------------------------------------------------------------------ no row as less than it says

MEDIA = re.compile(
    r"(?:image|img|picture|photo|video|audio|screenshot)s?(?:_(?:url|path|file|base64|b64|bytes|name|data|list)s?)*|pixel_values"
)
PLACEHOLDER = re.compile(r"\A\s*<\|?(?:image|video|audio)(?:_pad)?\|?>|<\|?(?:image|video|audio)(?:_pad)?\|?>\s*\Z")
REMOVED = ("deleted", "is_deleted", "removed", "is_removed", "discarded", "is_discarded", "exclude", "excluded", "skip", "is_spam", "spam",
           "cancelled", "was_cancelled")  # fmt: skip
KEPT = ("keep", "include", "included", "use", "is_valid", "valid", "enabled")
TRAINING = ("train", "trainable", "use_for_training", "is_train")
TAKEN_BACK = {"discarded", "draft", "rejected", "deleted", "cancelled", "canceled", "skipped", "removed", "invalid"}
ANSWERING = frozenset(  # words in the names of fields that hold an answer, or what it is checked by
    """
    answer answers response responses completion completions output outputs reply replies target targets solution solutions chosen
    rejected generation generations generated summary code text content body highlights gpt gpt4 chatgpt bot assistant loser pos neg
    tests test label winner distractor step steps best worst
    """.split()
)
TOOLS = ("tools", "functions", "available_tools")
ALONE = frozenset(
    """
    result outcome annotation answer pick choose feedback label labels best quality
    """.split()
)
MEANT = {
    **dict.fromkeys(
        (
            *(
                *SYSTEMS,
                *HISTORIES,
                *DIALOGUES,
                "context",
                "contexts",
                "input",
                "passage",
                "passages",
                "choices",
                "options",
            ),
            *("document", "documents", "paragraph", "article", "background", "evidence", "story", "table"),
            *("instructions", "preamble", "persona", "character", "option_a", "option_b"),
        ),
        Reason.UNREAD_TURN,
    ),
    **dict.fromkeys(
        (*TIE_FLAGS, *BY_CRITERION, "votes", "annotations", *set(VOTES) | set(VERDICTS) - ALONE), Reason.UNREAD_VOTE
    ),
    **dict.fromkeys((*ANSWERS, *CHOSEN, *REJECTED, *LISTS, *SOLUTIONS, "positive", "negative"), Reason.UNREAD_ANSWER),
    **dict.fromkeys((*WEIGHTS, *TRAINING), Reason.UNREAD_WEIGHT),
}


def _refuse_media(row: Row) -> None:
    for name in _media_named(row):
        if not is_empty(row.look(name)):
            raise Skip(Reason.TOOLS if name in TOOLS else Reason.IMAGES)


@by_names
def _media_named(row: Row) -> list[str]:
    return [name for name in row if name in TOOLS or MEDIA.fullmatch(name)]


@by_names
def _refuse_removed(row: Row) -> None:
    """Raise Skip where the row itself says that it does not count."""
    for name in (name for name in TRAINING if name in row):
        if vote_of(row.take(name)) == 0:
            raise Skip(Reason.NOT_TRAINED, name)
    flags = [name for name in REMOVED if name in row and word(row.look(name)) in FOR]
    flags += [name for name in KEPT if name in row and word(row.look(name)) in AGAINST]
    row.read.update(name for name in KEPT if word(row.look(name)) in FOR)
    if flags or word(row.look("status")) in TAKEN_BACK:
        raise Skip(Reason.DISCARDED, (flags or ["status"])[0])
    if word(row.look("status")) in FINE:
        row.take("status")


def require_nothing_lost(row: Row, examples: Sequence[ImportedRow]) -> None:
    """Raise Skip where a field that means something was left unread, but where all its texts stand in what was read."""
    stated = {text.strip() for example in examples for text in example.texts}
    answered = any(example.answers or example.document for example in examples)
    asked_alone = not any(example.answers for example in examples)
    imitated = any(example.imitate for example in examples)
    options = {"a", "b", "c"} <= row.fields.keys()  # of a multiple choice
    for name, value in row.fields.items():
        if name in row.read or name in row.ignored or is_empty(value):
            continue
        if name == "reward_model" and isinstance(value, str) and not value.lstrip().startswith("{"):
            continue  # the name of one
        reason = MEANT.get(name) or (
            Reason.UNREAD_ANSWER if SLOT.fullmatch(name) and isinstance(value, str | list) else None
        )
        if options and name == "a":
            reason = Reason.UNREAD_TURN
        if reason is Reason.UNREAD_VOTE and not answered:
            reason = None
        if reason is None and asked_alone and not (name == "label" and answered) and _may_answer(name, value):
            reason = Reason.UNREAD_ANSWER
        if reason is None and imitated and is_judging(name, value):
            reason = Reason.UNREAD_VOTE
        if reason is None or (reason is Reason.UNREAD_TURN and name != "input" and isinstance(value, int | float)):
            continue
        texts = [text.strip() for text in strings_in(value)]
        if not texts or not set(texts) <= stated:
            raise Skip(reason, row.names[name])


def _may_answer(name: str, value: object) -> bool:
    words = re.split(r"[_\d]+", name)
    return (
        not ANSWERING.isdisjoint(words) and words[-1] not in ABOUT and any(text.strip() for text in strings_in(value))
    )


# ------------------------------------------------------------------------------------------------------- what is kept


def trimmed(text: str) -> str:
    """A turn without the white space that no reader sees: around it; of several lines the first keeps its indentation."""
    inner = text.strip()
    return text.strip("\r\n").rstrip() if "\n" in inner else inner


def finished(example: ImportedRow, row: Row, meta: Mapping[str, Any]) -> ImportedRow:
    """The row as it is kept: trimmed, checked, and noted where something is odd; `meta` of its prompt, beside what its form says."""
    turns = tuple(
        turn if (text := trimmed(turn.content)) is turn.content else Message(turn.role, text)
        for turn in example.prompt.messages
    )
    answers = tuple(map(trimmed, example.answers))
    if meta or turns != example.prompt.messages or answers != example.answers:
        example = replace(example, prompt=Prompt(turns, {**meta, **example.prompt.meta}), answers=answers)
    _check(example)
    words = "\n".join(example.texts)
    if any(turn.role == following.role for turn, following in pairwise(turns)):
        row.notes.add(Note.SAME_SPEAKER)
    if speaks_inside(words) and not example.document:
        row.notes.add(Note.SPEAKER_INSIDE)
    if ("<" in words or "[" in words) and CONTROL.search(words):
        row.notes.add(Note.CONTROL)
    if any(answer[:1] == "[" and list_in_text(answer) is not None for answer in example.answers):
        row.notes.add(Note.LIST_TEXT)
    if turns and any(_repeats(answer, turns[-1].content) for answer in example.answers):
        row.notes.add(Note.REPEATS_PROMPT)
    return example


CONTROL = re.compile(
    r"<\|[\w ]{2,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|<｜[^｜\n]{1,40}｜>|</?(?:tool_call|tool_response)>"
)
REPEATED = 20  # characters of a prompt from which on an answer that begins with it repeats it


def _repeats(answer: str, prompt: str) -> bool:
    return answer == prompt or (len(prompt) >= REPEATED and answer.startswith(prompt))


def _check(example: ImportedRow) -> None:
    prompt, answers = example.prompt.messages, example.answers
    names = [one.annotator + (one.criterion or "") for one in example.stated]
    # JSON can spell what UTF-8 cannot (half of a surrogate pair) and what PostgreSQL does not take (NUL).
    words = "".join([*example.texts, *names, str(dict(example.prompt.meta))])
    if example.form == Form.TEXT:
        if not example.document.strip():
            raise Skip(Reason.EMPTY_TEXT)
    elif not prompt or prompt[-1].role != "user":
        raise Skip(Reason.NO_USER_TURN)
    if not all(turn.content.strip() for turn in prompt):
        raise Skip(Reason.EMPTY_PROMPT)
    if any("<" in turn.content and PLACEHOLDER.search(turn.content) for turn in prompt):
        raise Skip(Reason.IMAGES)
    if not all(answer.strip() for answer in answers):
        raise Skip(Reason.EMPTY_ANSWER)
    if len(answers) > 1 and len({answer.strip() for answer in answers}) == 1:
        raise Skip(Reason.IDENTICAL)
    if "\0" in words or not is_utf8(words):
        raise Skip(Reason.UNSTORABLE)
