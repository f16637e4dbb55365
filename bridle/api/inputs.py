"""Prompts, texts and rows as a Python caller gives them, made into records."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from bridle.core.errors import DataError, brief_repr
from bridle.core.records import Completion, LabelerKind, Message, Pair, Prompt, Rating, Role

Text = str | Sequence[Mapping[str, str]]  # a prompt: the user's words, or messages that end with the user's
# A prompt with an answer and whether it is good, or with the better answer and the worse one.
Judged = tuple[Text, str, bool] | tuple[Text, str, str]

Score = Callable[[Sequence[Any], Sequence[str]], Sequence[float | None]]  # prompts as they were given, answers


def as_prompts(given: Sequence[Text]) -> list[Prompt]:
    """Prompts as records. `meta["given"]` keeps each as it was given, for that is what a reward function is shown."""
    if isinstance(given, str):
        raise DataError("prompts are a list, and a single text was given; put it into a list")
    return [as_prompt(raw, number) for number, raw in enumerate(given)]


def as_prompt(raw: Text, number: int) -> Prompt:
    if isinstance(raw, str):
        return Prompt.from_text(raw, {"given": raw})
    try:
        messages = tuple(Message(as_role(turn["role"]), str(turn["content"])) for turn in raw)
    except (TypeError, KeyError, ValueError):
        messages = ()
    if not messages or messages[-1].role != "user":
        raise DataError(
            f"prompt {number} is {described_value(raw)}, where text is needed, or messages such as "
            "[{'role': 'user', 'content': '…'}] that end with the user's"
        )
    return Prompt(messages, {"given": raw})


def as_role(role: str) -> Role:
    if role not in get_args(Role):
        raise ValueError(role)
    return role  # type: ignore[return-value]


def demonstrations_of(examples: Sequence[tuple[Text, str]]) -> list[tuple[Prompt, str]]:
    rows = checked_rows(examples, "a prompt and its answer", 2)
    return list(zip(as_prompts([row[0] for row in rows]), [row[1] for row in rows], strict=True))


def preferences_of(given: Sequence[tuple[Text, str, str]]) -> list[Pair]:
    """Comparisons as records. The pairs of a prompt share its weight, 1: pairs of one ranking say less than as many others."""
    return as_pairs(checked_rows(given, "a prompt, the better answer and the worse one", 3))


def judged_of(given: Sequence[Judged]) -> tuple[list[Pair], list[tuple[Prompt, Rating]]]:
    """Comparisons, and votes on single answers, as records."""
    what = "a prompt, an answer and whether it is good, or a prompt, the better answer and the worse one,"
    rows = checked_rows(given, what, 3, last=(str, bool))
    votes = [row for row in rows if isinstance(row[2], bool)]
    asked = as_prompts([row[0] for row in votes])
    return as_pairs([row for row in rows if isinstance(row[2], str)]), [
        (prompt, Rating(Completion(prompt.id, answer), "", LabelerKind.PERSON, "vote", float(good)))
        for prompt, (_, answer, good) in zip(asked, votes, strict=True)
    ]


def as_pairs(rows: Sequence[tuple[Any, ...]]) -> list[Pair]:
    prompts = as_prompts([row[0] for row in rows])
    count: dict[str, int] = {}
    for prompt in prompts:
        count[prompt.id] = count.get(prompt.id, 0) + 1
    return [
        Pair(p, Completion(p.id, better), Completion(p.id, worse), 1 / count[p.id])
        for p, (_, better, worse) in zip(prompts, rows, strict=True)
    ]


def checked_rows(given: Sequence[Any], what: str, size: int, last: tuple[type, ...] = (str,)) -> list[tuple[Any, ...]]:
    """Each row as a tuple of `size`, texts but for the first; `last`: what the last part may be."""
    rows = []
    for number, row in enumerate(given):
        if isinstance(row, str) or not isinstance(row, Sequence) or len(row) != size:
            raise DataError(f"row {number} is {described_value(row)}, where {what} are needed, as a tuple of {size}")
        for part, kinds in zip(row[1:], [*[(str,)] * (size - 2), last], strict=True):
            if not isinstance(part, kinds):
                needed = "an answer's text" if kinds == (str,) else "an answer's text, or True or False,"
                raise DataError(f"row {number} holds {described_value(part)} where {needed} is needed")
        rows.append(tuple(row))
    return rows


def described_value(value: object) -> str:
    text = value if isinstance(value, str) else brief_repr(value)
    return f"{type(value).__name__} {text[:60]!r}"
