"""Prompts, texts and rows as a Python caller gives them, made into records."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from bridle.core.errors import DataError, brief_repr
from bridle.core.records import Completion, Message, Pair, Prompt, Role

Text = str | Sequence[Mapping[str, str]]  # a prompt: the user's words, or messages that end with the user's

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
    rows = checked_rows(given, "a prompt, the better answer and the worse one", 3)
    prompts = as_prompts([row[0] for row in rows])
    count: dict[str, int] = {}
    for prompt in prompts:
        count[prompt.id] = count.get(prompt.id, 0) + 1
    return [
        Pair(p, Completion(p.id, better), Completion(p.id, worse), 1 / count[p.id])
        for p, (_, better, worse) in zip(prompts, rows, strict=True)
    ]


def checked_rows(given: Sequence[Any], what: str, size: int) -> list[tuple[Any, ...]]:
    """Each row as a tuple of `size`, texts but for the first."""
    rows = []
    for number, row in enumerate(given):
        if isinstance(row, str) or not isinstance(row, Sequence) or len(row) != size:
            raise DataError(f"row {number} is {described_value(row)}, where {what} are needed, as a tuple of {size}")
        if wrong := [part for part in row[1:] if not isinstance(part, str)]:
            raise DataError(f"row {number} holds {described_value(wrong[0])} where an answer's text is needed")
        rows.append(tuple(row))
    return rows


def described_value(value: object) -> str:
    text = value if isinstance(value, str) else brief_repr(value)
    return f"{type(value).__name__} {text[:60]!r}"
