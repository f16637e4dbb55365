"""A row's fields: their names made plain, which of them were read, and what their values can be."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache, wraps
from typing import Any, TypeVar

from bridle.feedback.importing.reasons import Note, Reason, Skip

T = TypeVar("T")
IGNORED = "ignore"  # what a field can be mapped to, to be left unread whatever it is
LIKE_MESSAGES = re.compile(r"""\s*\[?\s*\{.{0,200}?["'](?:role|from|content|value)["']\s*:""", re.DOTALL)
LONGEST_NAMES = 10_000  # characters of a row's names from which on nothing is remembered of them
LISTED = frozenset(  # fields that hold lists, which a table's column has as text
    """
    completions responses answers generations outputs candidates replies scores ratings ranks labels votes annotations history
    """.split()
)
NOTHING = ("", "[]", "{}", "null", "none", "nan")  # how an absent value is spelt as text


def plain_name(name: str) -> str:
    return (
        _plain_name(name) if len(name) <= 100 else _plain_name.__wrapped__(name)
    )  # a file may invent names of any length


@lru_cache(1_000)
def _plain_name(name: str) -> str:
    return re.sub(r"[\s-]+|(?<=[a-z0-9])(?=[A-Z])", "_", name.strip()).lower()


@lru_cache(100)
def answers_by_names(names: tuple[str, ...]) -> dict[Any, Any]:
    """What rows with fields of these names, in this order, answer whatever their values are (`by_names`)."""
    return {}


class Row:
    """One row: `fields` by plain name, absent values left out. What a form takes of it counts as read; what it looks at does not.

    `mapping` gives a field of the user's (or a path to one, "data.question") the name that a form knows.
    """

    def __init__(
        self, values: Mapping[str, Any], mapping: Mapping[str, str] | None = None, to_judge: bool = False
    ) -> None:
        values, self.to_judge = dict(values), to_judge  # whether answers that nobody compared are to be
        mapped = {new: taken_out(values, old) for old, new in (mapping or {}).items() if new != IGNORED}
        self.ignored = {plain_name(old) for old, new in (mapping or {}).items() if new == IGNORED}
        self.names: dict[str, str] = {}  # as the file spells them
        self.fields: dict[str, Any] = {}
        self.inside: list[str] = []  # fields inside messages, and ignored ones, that were left unread; each counts once
        for name, value in [*values.items(), *((new, value) for new, value in mapped.items())]:
            plain = plain_name(name)
            if plain in self.ignored and not is_empty(value):
                self.inside.append(name)
            if is_absent(value) or plain in self.ignored or (plain in self.fields and name != plain):
                continue  # of "Prompt" and "prompt" the second is meant
            self.fields[plain], self.names[plain] = value, name
        self.looks = 0  # how often a value was looked at
        names = tuple(self.fields)
        self.known = answers_by_names(names) if sum(map(len, names)) < LONGEST_NAMES else {}
        self.read: set[str] = set()
        self.roles: set[str] = set()  # who speaks, as the file names them
        self.notes: set[Note] = set()
        self.trained: float | None = (
            None  # what the assistant's message that was read last counts in training, where it says so
        )
        for name in LISTED & self.fields.keys():
            if (found := list_in_text(self.fields[name])) is not None:
                self.fields[name] = found
                self.notes.add(Note.PARSED)

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def look(self, name: str) -> Any:
        """The value, None where it is absent."""
        if name not in self.fields:
            return None
        self.looks += 1
        return self.fields[name]

    def take(self, name: str) -> Any:
        """The same. It counts as read."""
        self.read.add(name)
        return self.look(name)

    def need(self, name: str) -> Any:
        if name not in self.fields:
            raise Skip(Reason.MISSING_FIELD)
        return self.take(name)

    def first(self, names: Collection[str]) -> str | None:
        """The first of these names that the row has."""
        return next(iter(self.among(names)), None)

    def among(self, names: Collection[str]) -> list[str]:
        """Those of these names that the row has, in their order."""
        return [] if self.fields.keys().isdisjoint(names) else [name for name in names if name in self.fields]

    def unread(self) -> list[str]:
        """What was left unread, as the file spells it."""
        apart = [
            self.names[name] for name, value in self.fields.items() if name not in self.read and not is_empty(value)
        ]
        return list(dict.fromkeys(apart + self.inside))


def by_names(ask: Callable[[Row], T]) -> Callable[[Row], T]:
    """A question to a row that its fields' names alone may answer: where no value was looked at, the answer holds for all rows of the
    same names, and is not sought again. Most rows of a file have the same names."""

    @wraps(ask)
    def remembered(row: Row) -> T:
        if ask in row.known:
            return row.known[ask]  # type: ignore[no-any-return]
        before = row.looks
        found = ask(row)
        if row.looks == before:
            row.known[ask] = found
        return found

    return remembered


def taken_out(values: dict[str, Any], path: str) -> Any:
    """The value of a field, or of one inside others ("data.question"); a field itself is not left behind."""
    if path in values:
        return values.pop(path)
    found: Any = values
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def is_absent(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_empty(value: object) -> bool:
    """Whether a field says nothing: absent, empty, or spelt so."""
    if isinstance(value, str):
        stated = value.strip()
        return len(stated) <= 4 and stated.lower() in NOTHING
    return is_absent(value) or (isinstance(value, list | dict) and not value)


def text_of(value: object) -> str:
    if not isinstance(value, str):
        ids = isinstance(value, list) and bool(value) and all(type(part) is int for part in value)
        raise Skip(Reason.TOKEN_IDS if ids else Reason.WRONG_TYPE)
    return value


def answer_text(value: object) -> str:
    """An answer's text; a number as it is written."""
    if isinstance(value, bool):
        raise Skip(Reason.TRUE_OR_FALSE)
    if isinstance(value, int | float):
        try:
            return str(value)
        except ValueError as error:  # thousands of digits
            raise Skip(Reason.WRONG_TYPE) from error
    return text_of(value)


def number_in(value: object) -> float | None:
    """A finite number, be it spelt as text; None where it is none. True and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def parsed(value: object, row: Row) -> object:
    """What a text holds where that is a list or messages, as a table that went through CSV does: JSON, or Python's spelling of it."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        found = _python_value(value)
    if found is None:
        if LIKE_MESSAGES.match(value):
            raise Skip(Reason.BROKEN_JSON)
        return value
    if isinstance(found, list | dict) and LIKE_MESSAGES.match(value):
        row.notes.add(Note.PARSED)
        return found
    return value


def list_in_text(value: object) -> list[Any] | None:
    """The list that a text spells; None where it spells none."""
    if not isinstance(value, str) or value.lstrip()[:1] != "[":
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, list):
            return found
    return None


def _python_value(text: str) -> object:
    try:
        return ast.literal_eval(text) if LIKE_MESSAGES.match(text) and len(text) < 10**6 else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def listed(value: object) -> list[Any]:
    """A list; of anything else an empty one."""
    return value if isinstance(value, list) else []


def strings_in(value: object, keys: Collection[str] = ("role", "from")) -> Iterator[str]:
    """Every text inside a value, of whatever depth, but for who speaks."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, list):
            waiting += found
        elif isinstance(found, dict):
            waiting += [inner for key, inner in found.items() if key not in keys]
