"""Prompts, texts and rows as a Python caller gives them, made into records."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from bridle.api.rows import (
    COMPARISONS,
    DEMONSTRATIONS,
    JUDGED,
    PROMPTS,
    Demonstration,
    Vote,
    by_columns,
    read_rows,
    row_list,
)
from bridle.core.errors import DataError, described_value
from bridle.core.records import Completion, LabelerKind, Message, Pair, Prompt, Rating, Role

Text = str | Sequence[Mapping[str, str]]  # a prompt: the user's words, or messages that end with the user's
Row = Mapping[str, Any]  # by columns, as a `datasets.Dataset` gives it
Examples = Iterable[tuple[Text, str] | Row | Sequence[Row]]  # (prompt, answer), rows, conversations
Comparisons = Iterable[tuple[Text, str, str] | Row]  # (prompt, better answer, worse answer), rows
Judged = Iterable[tuple[Text, str, bool] | tuple[Text, str, str] | Row]  # (prompt, answer, whether it is good) too
Prompts = Iterable[Text | Row]

Score = Callable[..., Sequence[float | None]]  # of prompts as they were given, answers, and columns (api/rewards.py)


def as_prompts(given: Prompts) -> list[Prompt]:
    """A prompt for each entry, as records. `meta["given"]` keeps it as it was given, for that is what a reward function is shown."""
    rows = row_list(given, "prompts")
    prompts = prompts_of(rows)
    if len(prompts) < len(rows):
        raise DataError(f"{len(rows) - len(prompts)} of {len(rows)} rows hold no prompt; leave them out, or mend them")
    return prompts


def prompts_of(given: Prompts) -> list[Prompt]:
    """The same, rows by columns left out that hold none; what else such a row holds is `meta["columns"]`."""
    rows = row_list(given, "prompts")
    if rows and isinstance(rows[0], Mapping):
        return [with_columns(prompt, rows[number]) for number, [prompt] in read_rows(rows, PROMPTS)]
    return [as_prompt(raw, number) for number, raw in enumerate(rows)]


def with_columns(prompt: Prompt, row: Mapping[str, Any]) -> Prompt:
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt.messages]
    given = row.get("prompt", prompt.text if len(turns) == 1 else turns)
    return Prompt(prompt.messages, {"given": given, "columns": {k: v for k, v in row.items() if k != "prompt"}})


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


def demonstrations_of(examples: Examples) -> list[Demonstration | str]:
    """Answers to imitate, and texts that are learnt whole."""
    rows = row_list(examples, "examples")
    if by_columns(rows):
        return [one for _, found in read_rows(rows, DEMONSTRATIONS) for one in found]
    rows = checked_rows(rows, "a prompt and its answer", 2)
    return list(zip(as_prompts([row[0] for row in rows]), [row[1] for row in rows], strict=True))


def preferences_of(given: Comparisons) -> list[Pair]:
    """Comparisons as records. Those of a prompt share its weight, 1: pairs of one ranking say less than as many others."""
    rows = row_list(given, "comparisons")
    if by_columns(rows):
        return with_shared_weight([pairs for _, pairs in read_rows(rows, COMPARISONS)])
    return with_shared_weight(as_pairs(checked_rows(rows, "a prompt, the better answer and the worse one", 3)))


def judged_of(given: Judged) -> tuple[list[Pair], list[tuple[Prompt, Rating]]]:
    """Comparisons, and votes on single answers, as records."""
    rows = row_list(given, "rows")
    if by_columns(rows):
        found = [each for _, each in read_rows(rows, JUDGED)]
        pairs = [those for each in found if (those := [one for one in each if isinstance(one, Pair)])]
        votes: list[Vote] = [one for each in found for one in each if not isinstance(one, Pair)]
    else:
        what = "a prompt, an answer and whether it is good, or a prompt, the better answer and the worse one,"
        rows = checked_rows(rows, what, 3, last=(str, bool))
        pairs, single = (
            as_pairs([row for row in rows if isinstance(row[2], str)]),
            [row for row in rows if isinstance(row[2], bool)],
        )
        asked = as_prompts([row[0] for row in single])
        votes = [(prompt, answer, float(good)) for prompt, (_, answer, good) in zip(asked, single, strict=True)]
    return with_shared_weight(pairs), [
        (prompt, Rating(Completion(prompt.id, answer), "", LabelerKind.PERSON, "vote", good))
        for prompt, answer, good in votes
    ]


def as_pairs(rows: Sequence[tuple[Any, ...]]) -> list[list[Pair]]:
    prompts = as_prompts([row[0] for row in rows])
    return [
        [Pair(p, Completion(p.id, better), Completion(p.id, worse))]
        for p, (_, better, worse) in zip(prompts, rows, strict=True)
    ]


def with_shared_weight(judged: Sequence[Sequence[Pair]]) -> list[Pair]:
    count = Counter(pairs[0].prompt.id for pairs in judged)
    return [replace(pair, weight=pair.weight / count[pair.prompt.id]) for pairs in judged for pair in pairs]


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
