"""Rows by the names of their columns: a `datasets.Dataset` or whatever else gives dicts, and conversations. Which column means what is
known to `bridle import` (feedback/importing/formats.py); here stands which rows a call learns from.

A row that cannot be used is left out and counted by its reason, with its number. Where more than `data.drop_limit` of the rows cannot,
the call is refused.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import combinations, islice
from typing import Any, Generic, TypeVar

import numpy as np

from bridle.core.errors import DataError, NoUsableRows, UsageError, described_value
from bridle.core.records import Completion, Pair, Prompt
from bridle.feedback.importing.formats import Form, read_row
from bridle.feedback.importing.forms.imported import ImportedRow
from bridle.feedback.importing.reasons import Skip
from bridle.project.progress import Progress
from bridle.recipe.data import DataSection
from bridle.stages.data import next_source

T = TypeVar("T")
Columns = tuple[str, ...]
MOST_READ = 100_000  # rows of a stream, where no limit is given
TRIED = 100  # first rows, after which none is read where none of them could be used
NUMBERS = 3  # numbers of rows that are counted of each reason

Demonstration = tuple[Prompt, str]
Vote = tuple[Prompt, str, float]  # an answer, and 1 where it is good


@dataclass(frozen=True)
class Needed(Generic[T]):
    """What a call learns from: its name in messages, the columns of rows that have it, best first, what it makes of a row (nothing of one
    that says something else), and the form that rows are read as, where their columns are not to tell it."""

    what: str
    forms: tuple[Columns, ...]
    made: Callable[[ImportedRow], list[T]]
    form: Form | None = None


def demonstrations_in(row: ImportedRow) -> list[Demonstration | str]:
    """An answer to a prompt, or a text that is learnt whole."""
    if row.document:
        return [row.document]
    return [(row.prompt, row.answers[0])] if row.imitate else []


def pairs_in(row: ImportedRow) -> list[Pair]:
    """A pair for every two answers of which the row says that one is better, the weight of its verdict shared among them."""
    answers, found = [Completion(row.prompt.id, text) for text in row.answers], list[Pair]()
    for verdict in row.verdicts:
        if verdict.criterion is not None:
            continue
        places = [(a, b) for upper, lower in combinations(verdict.ranking, 2) for a in upper for b in lower]
        strength = verdict.strength if verdict.margin is None else verdict.margin
        found += [
            Pair(row.prompt, answers[a], answers[b], verdict.weight / len(places), strength=strength) for a, b in places
        ]
    return found


def votes_and_pairs_in(row: ImportedRow) -> list[Pair | Vote]:
    """The same, and each answer that the row calls good or bad by itself."""
    stated = [one for one in row.opinions if one.kind == "vote" and one.criterion is None]
    votes = [(row.prompt, row.answers[one.answer], one.value) for one in stated if one.value is not None]
    return [*pairs_in(row), *votes]


def prompts_in(row: ImportedRow) -> list[Prompt]:
    return [row.prompt] if row.prompt.messages else []


DEMONSTRATIONS = Needed(
    "a demonstration",
    (("prompt", "completion"), ("messages",), ("text",), ("instruction", "output")),
    demonstrations_in,
)
COMPARISONS = Needed("a comparison", (("prompt", "chosen", "rejected"), ("chosen", "rejected")), pairs_in)
JUDGED = Needed(
    "an answer that is good or bad", (("prompt", "completion", "label"), *COMPARISONS.forms), votes_and_pairs_in
)
PROMPTS = Needed("a prompt", (("prompt",), ("messages",)), prompts_in, Form.PROMPT)


# ------------------------------------------------------------------------------------------------------- reading


def row_list(data: Iterable[Any], what: str) -> list[Any]:
    """The rows of a user's data; DataError, with the way out, for what is not a list of rows."""
    if isinstance(data, str):
        raise DataError(f"{what} are a list, and a single text was given; put it into a list")
    if isinstance(data, Mapping):
        splits = [str(name) for name, value in data.items() if "column_names" in dir(value)]
        way = f"give one of its splits, data[{splits[0]!r}]" if splits else "give a list with a dict for each row"
        raise DataError(f"{what} are a list, and a dict of {', '.join(map(str, data))} was given; {way}"[:400])
    if "iterrows" in dir(data):
        raise DataError(f"{what} are a list, and a table was given; give its rows, data.to_dict('records')")
    try:
        rows = list(data) if isinstance(data, Sized) else read_stream(data, what)
    except TypeError as error:
        raise DataError(f"{what} are a list, got {described_value(data)}") from error
    if rows and all(isinstance(row, Mapping) and {"role", "content"} == row.keys() for row in rows):
        raise DataError(f"{what} are a list, and a single conversation was given; put it into a list")
    return [
        {name: plain_value(value) for name, value in row.items()} if isinstance(row, Mapping) else row for row in rows
    ]


def read_stream(data: Iterable[Any], what: str) -> list[Any]:
    """All rows of what has no length, such as a generator or a `datasets.IterableDataset`; DataError where it does not end."""
    rows = list(islice(data, MOST_READ + 1))
    if len(rows) > MOST_READ:
        raise DataError(
            f"{what} come from a stream that did not end within {MOST_READ:,} rows; say how many to take: bridle.mixture([(rows, 1)], "
            "limit=10_000)"
        )
    Progress(live=False, every=math.inf).say(f"{what}: {len(rows):,} rows were read from a stream, to its end")
    return rows


def mixture(sources: Sequence[tuple[Iterable[Any], float]], *, limit: int | None = None, seed: int = 0) -> list[Any]:
    """Rows of several sources, (rows, weight) each, for any call that takes rows: of every source the share that its weight is of all
    weights, as near as whole rows allow at every point, none twice, until one has no more or `limit` rows are there; both are said, with
    the counts. The same seed gives the same rows. A source that has a length is shuffled by it, a stream is read from its beginning."""
    if not sources or not all(map(is_weighted, sources)) or (limit is not None and limit < 1):
        raise UsageError(
            "a mixture is a list of (rows, weight), weights above 0, with a limit of at least 1 or none, got "
            f"{[described_value(one)[:80] for one in sources]} and limit {limit}"
        )
    weights = [weight for _, weight in sources]
    rng, most = random.Random(seed), MOST_READ + 1 if limit is None else limit
    queues = [in_order(data, rng) for data, _ in sources]
    rows, taken, ended = list[Any](), [0] * len(sources), ""
    while len(rows) < most and not ended:
        place = next_source(taken, weights)
        new = list(islice(queues[place], 1))
        rows += new
        taken[place] += len(new)
        ended = "" if new else f"source {place + 1} has no more"
    if limit is None and not ended:
        raise DataError(f"no source of the mixture ended within {MOST_READ:,} rows; say how many to take: limit=10_000")
    counts = ", ".join(f"{count:,} of source {place}" for place, count in enumerate(taken, 1))
    Progress(live=False, every=math.inf).say(
        f"mixture: {len(rows):,} rows, {counts}; {ended or f'that is limit = {limit:,}'}"
    )
    return rows


def is_weighted(source: Any) -> bool:
    """Whether it is rows with a weight."""
    whole = isinstance(source, tuple | list) and len(source) == 2
    return whole and isinstance(source[1], int | float) and 0 < source[1] < math.inf


def in_order(data: Iterable[Any], rng: random.Random) -> Iterator[Any]:
    """The rows of a source: shuffled, or of a stream as they come."""
    if not isinstance(data, Sized):
        return iter(data)
    rows = row_list(data, "rows")
    return iter(rng.sample(rows, len(rows)))


def plain_value(value: Any) -> Any:
    """A list or a number, where a table or a dataset gives NumPy's."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def by_columns(rows: Sequence[Any]) -> bool:
    """Whether the first row is one by columns, or a conversation."""
    return bool(rows) and (isinstance(rows[0], Mapping) or is_conversation(rows[0]))


def is_conversation(row: object) -> bool:
    return isinstance(row, list) and bool(row) and all(isinstance(part, Mapping) for part in row)


def read_rows(rows: Sequence[Any], needed: Needed[T]) -> list[tuple[int, list[T]]]:
    """What the rows hold that can be used, each with its number; what became of the others is said, or refused."""
    kept, left_out = list[tuple[int, list[T]]](), dict[str, list[int]]()
    for number, row in enumerate(rows):
        fault, found = read_one(row, number, needed)
        if fault:
            left_out.setdefault(fault, []).append(number)
        else:
            kept.append((number, found))
        if number + 1 == TRIED and not kept:
            break
    if left_out and not kept:
        fault, [first, *_] = next(iter(left_out.items()))
        raise NoUsableRows(
            f"row {first}{with_columns_named(rows[first])} is not {needed.what} ({fault}), nor is one of the others; "
            f"{way_to(needed, rows[first])}"
        )
    if left_out:
        report_left_out(left_out, len(rows))
    return kept


def read_one(row: Any, number: int, needed: Needed[T]) -> tuple[str, list[T]]:
    """Why a row cannot be used, or what it holds."""
    values = {"messages": row} if is_conversation(row) else row
    if not isinstance(values, Mapping):
        raise DataError(
            f"row {number} is {described_value(row)}, where a dict by columns or a conversation is needed, as the first row is"
        )
    if needed.form is Form.PROMPT and "prompt" in values:
        values = {"prompt": values["prompt"]}  # the others are for the reward
    try:
        examples, _ = read_row(values, needed.form)
    except Skip as skip:
        return f"{skip.reason} ({skip.field})" if skip.field else str(skip.reason), []
    found = [made for example in examples for made in needed.made(example)]
    kinds = ", ".join(dict.fromkeys(kind for example in examples for kind in example.kinds)) or "nothing"
    return "" if found else f"it is a {kinds}", found


def report_left_out(left_out: Mapping[str, Sequence[int]], rows: int) -> None:
    """Say which rows cannot be used, and why; NoUsableRows where they are too many."""
    counted = "; ".join(f"{len(numbers):,}: {reason} ({numbered(numbers)})" for reason, numbers in left_out.items())
    count, limit = sum(map(len, left_out.values())), DataSection().drop_limit
    if count > limit * rows:
        raise NoUsableRows(
            f"{count:,} of {rows:,} rows cannot be used, more than half: {counted}; mend them, or leave them out"
        )
    Progress(live=False, every=math.inf).say(f"rows: {count:,} of {rows:,} left out, {counted}")


def numbered(numbers: Sequence[int]) -> str:
    first = ", ".join(f"{number:,}" for number in numbers[:NUMBERS])
    return f"row{'s' if len(numbers) > 1 else ''} {first}{', …' if len(numbers) > NUMBERS else ''}"


def with_columns_named(row: Any) -> str:
    return f" with the columns {', '.join(map(str, row))[:200]}" if isinstance(row, Mapping) else ""


def way_to(needed: Needed[T], row: Any) -> str:
    """The form that the row's columns are nearest to, and what it lacks of that."""
    names = [str(name).lower() for name in row] if isinstance(row, Mapping) else ["messages"]
    nearest = max(
        needed.forms, key=lambda form: sum(bool(get_close_matches(name, names, 1)) for name in form) / len(form)
    )
    missing = [name for name in nearest if name not in names]
    form = f"{{{', '.join(nearest)}}}"
    return f"the nearest form is {form}: " + (
        f"rename or add {' and '.join(missing)}" if missing else "look at what these columns hold"
    )
