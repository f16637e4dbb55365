"""JSON in whatever layout: a line for each row, a list, objects one after another, rows under a key, columns.

Memory stays bounded whatever the file's size: a line, an entry of a list, or a value of an object is held alone and must be within
`LONGEST` characters. What is not a row is given as the reason why, and reading goes on: after a line at the next line; after an entry of a
list at the next line that begins like the list's first entry, or in a list without lines at the next object that begins with the same
field. Where there is none, reading ends with an error that names the place.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO, cast

from bridle.feedback.importing.files.row import UNDECODABLE, FileKind, RawRow, Unreadable, is_dialogue
from bridle.feedback.importing.reasons import LONGEST, Note, Reason

CHUNK = 2**16  # characters of a list that are read at once
EXCERPT = 400
BEGINNING = 4_000  # characters by which it is told what a value holds
WHITE = re.compile(r"[ \t\r\n]*")
ROWS_UNDER = {
    "data",
    "rows",
    "examples",
    "instances",
    "items",
    "records",
    "samples",
    "train",
    "validation",
    "valid",
    "dev",
    "eval",
    "test",
}
MESSAGE_FIRST = re.compile(r'\[\s*\{\s*"(?:role|content|from|value|name|weight)"\s*:')
LIST_OF_ROWS = re.compile(r"\[\s*(?:[{\[\]]|\Z)")
FIRST_FIELD = re.compile(r'\{\s*("(?:[^"\\]|\\.){0,200}")\s*:')

ROWS_FIRST = re.compile(  # an object that holds rows under a key, behind what is short
    r'\{\s*(?:"[^"\\]*"\s*:\s*(?:"(?:[^"\\]|\\.)*"|[-+.\w]+)\s*,\s*)*"(?P<key>'
    + "|".join(sorted(ROWS_UNDER))
    + r')"\s*:\s*(?=\[\s*(?:\[\s*)?\{)(?!'
    + MESSAGE_FIRST.pattern
    + r")\["
)
FIELD_NAME = re.compile(r'"([^"\\]*)"\s*:')
ANY_ENTRY = re.compile(r",\s*\{")
NEXT_OBJECT = re.compile(r"(?<=\n)\{")
LONGEST_SIGN = 1_000  # characters of what a later entry begins with

Position = Callable[[], int]


class JSONReader:
    """Python's reader of JSON, which notes a field that stands twice in an object (the last one counts), and keeps whole numbers of over
    4,300 digits as their digits."""

    def __init__(self) -> None:
        self.field_twice = False
        self.plain = json.JSONDecoder(object_pairs_hook=self._object)
        self.long_numbers = json.JSONDecoder(object_pairs_hook=self._object, parse_int=_whole_number)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        self.field_twice = self.field_twice or len(found) < len(pairs)
        return found

    def value(self, text: str, at: int = 0) -> tuple[Any, int]:
        """The value at a place, and the place behind it. ValueError or RecursionError where there is none."""
        self.field_twice = False
        try:
            return self.plain.raw_decode(text, at)
        except json.JSONDecodeError:
            raise
        except ValueError:
            return self.long_numbers.raw_decode(text, at)

    @property
    def notes(self) -> tuple[Note, ...]:
        """Of the value that was read last."""
        return (Note.FIELD_TWICE,) if self.field_twice else ()


def _whole_number(digits: str) -> int | str:
    return int(digits) if len(digits) < 4_000 else digits


def json_fault(error: ValueError | RecursionError, text: str) -> Reason:
    """Why a text is not JSON, where that can be told."""
    if isinstance(error, RecursionError):
        return Reason.TOO_DEEP
    start = text.lstrip()[:2]
    if start in ("//", "/*") or start.startswith("#"):
        return Reason.COMMENT
    if isinstance(error, json.JSONDecodeError):
        before, after = text[: error.pos].rstrip(), text[error.pos : error.pos + 2]
        if (
            start.startswith("{'")
            or after.startswith("'")
            or re.match(r"\b(None|True|False)\b", text[error.pos : error.pos + 6])
        ):
            return Reason.PYTHON
        if after in ("//", "/*"):
            return Reason.COMMENT
        if (before.endswith(",") and after[:1] in ("}", "]")) or "trailing comma" in error.msg:
            return Reason.TRAILING_COMMA
    return Reason.NOT_JSON


def json_kind(head: str, lines: int) -> FileKind | None:
    """What JSON begins so, by its first characters and the file's number of lines; None where it does not look like JSON."""
    start = head.lstrip(" \t\r\n")
    if start.startswith("["):
        return FileKind.LIST if LIST_OF_ROWS.match(start) else FileKind.LINES
    if not start.startswith("{"):
        return None
    line = start.partition("\n")[0]
    try:
        value, end = JSONReader().value(line)
    except (ValueError, RecursionError) as error:
        if lines <= 1 or line.strip() == "{":
            return FileKind.OBJECT  # which may be longer than what was looked at
        return FileKind.OBJECT if _open_at_end(error, line) and _begins_object(start) else FileKind.LINES
    after = line[end:].strip()
    return FileKind.OBJECT if lines <= 1 and (after or _rows_in(value)[0] is not None) else FileKind.LINES


def _open_at_end(error: ValueError | RecursionError, text: str) -> bool:
    return (
        isinstance(error, json.JSONDecodeError)
        and error.pos >= len(text.rstrip())
        and "Unterminated string" not in error.msg
    )


def _begins_object(text: str) -> bool:
    """Whether a text of several lines is an object, or the beginning of one."""
    try:
        JSONReader().value(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text.rstrip()) - 16 or "Unterminated string" in error.msg
    except (ValueError, RecursionError):
        return False
    return True


# ------------------------------------------------------------------------------------------------- JSON lines


def line_rows(file: TextIO, position: Position) -> Iterator[RawRow]:
    number, decoder = 0, JSONReader()
    while line := file.readline(LONGEST):
        number += 1
        if len(line) >= LONGEST and not line.endswith("\n"):
            excerpt = line[:EXCERPT]
            while (line := file.readline(2**20)) and not line.endswith("\n"):
                pass
            yield RawRow(number, Reason.TOO_LONG, excerpt, position())
            continue
        if not line.strip(" \t\r\n\f\v"):
            yield RawRow(number, None, line[:EXCERPT], position())
            continue
        for value in _values_of(line, decoder):
            yield RawRow(number, value, line, position(), notes=decoder.notes)


def _values_of(line: str, decoder: JSONReader) -> list[Any]:
    """What stands on a line: one value as a rule; several objects where somebody lost the line ends."""
    if UNDECODABLE in line:
        return [Reason.UNDECODABLE]
    start = cast(re.Match[str], WHITE.match(line)).end()
    found = []
    try:
        while start < len(line):
            value, end = decoder.value(line, start)
            start = cast(re.Match[str], WHITE.match(line, end)).end()
            found.append(value if isinstance(value, dict) or is_dialogue(value) else Reason.NOT_OBJECT)
    except (ValueError, RecursionError) as error:
        return [json_fault(error, line)]
    return found if len(found) == 1 or all(isinstance(value, dict) for value in found) else [Reason.NOT_JSON]


# ------------------------------------------------------------------------------------- text read on as it is needed


class JsonText:
    """The text of a file, read on as it is needed: `held` begins at the file's character `before`, `at` is next in it."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.held, self.at, self.before = file, "", 0, 0
        self.decoder = JSONReader()

    @property
    def beginning(self) -> str:
        return self.held[self.at : self.at + EXCERPT]

    @property
    def place(self) -> int:
        return self.before + self.at

    def more(self) -> bool:
        """Read on, at least as much again as is held, so that a long entry is begun anew few times. False at the end."""
        found = self.file.read(max(CHUNK, len(self.held) - self.at))
        if found:
            self.held, self.at, self.before = self.held[self.at :] + found, 0, self.before + self.at
        return bool(found)

    def sign(self) -> str:
        """The next character that is not white space; it stays next. Empty at the end."""
        while True:
            self.at = cast(re.Match[str], WHITE.match(self.held, self.at)).end()
            if self.at < len(self.held) or not self.more():
                return self.held[self.at : self.at + 1]

    def begins(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        while len(self.held) - self.at < BEGINNING and self.more():
            pass
        return pattern.match(self.held, self.at)

    def find(self, pattern: re.Pattern[str], overlap: int) -> bool:
        """Go to where a pattern of at most `overlap` characters is found next, without holding what is passed. False at the end."""
        while (found := pattern.search(self.held, self.at)) is None:
            self.at = max(self.at, len(self.held) - overlap)
            if not self.more():
                return False
        self.at = found.start()
        return True

    def value(self) -> tuple[Any, str]:
        """The JSON value that begins here, and its text; a reason, and nothing taken, where there is none."""
        while True:
            fault: Reason | None = None
            try:
                value, end = self.decoder.value(self.held, self.at)
                cut = end > len(self.held) - 4  # 1 may go on as 1e+3
            except json.JSONDecodeError as error:
                # An error at the end, or a string that does not end: the value goes on in what was not read yet.
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.held) - 16
                fault = json_fault(error, self.held)
            except (ValueError, RecursionError) as error:
                cut, fault = False, json_fault(error, "")
            if cut and len(self.held) - self.at >= LONGEST:
                fault = Reason.TOO_LONG
            elif cut and self.more():
                continue
            if fault is None and end - self.at > LONGEST:
                fault = Reason.TOO_LONG
            if fault is not None:
                return fault, self.beginning
            text, self.at = self.held[self.at : end], end
            return value, text


# ------------------------------------------------------------------------- lists and objects, one after another


@dataclass
class JsonRows:
    """The rows of what stands in a file one after another: lists of rows, objects, objects that hold the rows under a key."""

    text: JsonText
    position: Position
    done: list[str]  # what is to be reported of the file
    number: int = 0

    def rows(self) -> Iterator[RawRow]:
        text = self.text
        while sign := text.sign():
            if sign == "[" and not text.begins(MESSAGE_FIRST):
                yield from self.entries()
            elif sign == "{" and (found := text.begins(ROWS_FIRST)):
                yield from self.under_keys(found)
            elif sign in "[{":
                yield from self.whole()
            else:
                self.give_up(Reason.NOT_JSON, text.place, text.beginning)

    def row(self, value: Any, excerpt: str) -> RawRow:
        self.number += 1
        if isinstance(value, Reason):
            excerpt = excerpt or "it ends there"
        if UNDECODABLE in excerpt:
            value = Reason.UNDECODABLE
        elif not isinstance(value, dict | Reason) and not is_dialogue(value):
            value = Reason.NOT_OBJECT
        return RawRow(self.number, value, excerpt, self.position(), notes=self.text.decoder.notes)

    def give_up(self, fault: Reason, place: int, excerpt: str) -> None:
        found = RawRow(0, fault, excerpt or "it ends there").excerpt
        raise Unreadable(
            f"is {fault} at character {place:,}, row {self.number + 1:,} ({found}), and no later row can be told from it; mend "
            "it there (nothing of the file was stored)"
        )

    def entries(self) -> Iterator[RawRow]:
        """The entries of the list that begins here, one by one, and its end."""
        text = self.text
        text.at += 1
        text.sign()
        gap = text.held[: text.at].rpartition("[")[2]
        indent = gap.rpartition("\n")[2] if "\n" in gap else None  # of an entry that has a line of its own
        first_field = FIRST_FIELD.match(text.held, text.at)
        next_entry = _next_entry(indent, first_field[1] if first_field else None)
        comma = False  # whether a comma, or the end, is what may come next
        while (sign := text.sign()) != "]":
            if comma and sign == ",":
                text.at, comma = text.at + 1, False
                continue
            place = text.place
            value, excerpt = (Reason.NOT_JSON, text.beginning) if comma else text.value()
            comma = not isinstance(value, Reason)
            if isinstance(value, Reason) and not self.go_to(next_entry):
                self.give_up(value, place, excerpt)
            yield self.row(value, excerpt)
        text.at += 1

    def go_to(self, next_entry: re.Pattern[str]) -> bool:
        """Go to a later entry, or to the list's end where nothing between could be one. False where there is none."""
        text = self.text
        if text.more() or next_entry.search(text.held, text.at):
            found = text.find(next_entry, LONGEST_SIGN)
            text.at += found and text.held[text.at] == ","
            return found
        end = text.held.rstrip()
        if not end.endswith("]") or ANY_ENTRY.search(text.held, text.at):
            return False
        text.at = len(end) - 1
        return True

    # ------------------------------------------------------------------------------------------------ objects

    def under_keys(self, found: re.Match[str]) -> Iterator[RawRow]:
        """The rows of an object that holds them under keys; its other fields are left unread, which is reported."""
        text, keys, others = self.text, [found["key"]], FIELD_NAME.findall(found[0])[:-1]
        text.at = found.end() - 1
        yield from self.entries()
        while text.sign() == ",":
            text.at += 1
            text.sign()
            key = text.value()[0]
            if not isinstance(key, str) or isinstance(key, Reason) or text.sign() != ":":
                break
            text.at += 1
            if text.sign() == "[" and key in ROWS_UNDER and text.begins(LIST_OF_ROWS):
                keys.append(key)
                yield from self.entries()
                continue
            others.append(key)
            value, excerpt = text.value()
            if isinstance(value, Reason):
                self.give_up(value, text.place, excerpt)
        if text.sign() != "}":
            self.give_up(Reason.NOT_JSON, text.place, text.beginning)
        text.at += 1
        self.done.append(_of_keys(keys, others))

    def whole(self) -> Iterator[RawRow]:
        """The value that begins here: a row, or an object of rows or columns. Where it is none, the next line that begins one is next."""
        text, place = self.text, self.text.place
        value, excerpt = text.value()
        if isinstance(value, Reason):
            if value is Reason.TOO_LONG and not self.number:
                raise Unreadable(
                    f"is one JSON object of more than {LONGEST // 2**20} MiB without rows under a key, which would have to be held "
                    "whole; write its rows as JSON lines"
                )
            text.at += 1
            if not text.find(NEXT_OBJECT, 4):
                self.give_up(value, place, excerpt)
            yield self.row(value, excerpt)
            return
        alone = not self.number and not text.sign()
        rows, layout = _rows_in(value) if alone and isinstance(value, dict) else (None, "")
        if rows is None:
            yield self.row(value, excerpt)
            return
        self.done.append(layout)
        for row in rows:
            bad = UNDECODABLE in excerpt and UNDECODABLE in json.dumps(row, ensure_ascii=False)
            yield self.row(Reason.UNDECODABLE if bad else row, "" if isinstance(row, dict) else excerpt[:EXCERPT])


def _next_entry(indent: str | None, first_field: str | None) -> re.Pattern[str]:
    """How a later entry begins: on a line like the first one's, or with the same field."""
    if indent is not None:  # no string of JSON holds a bare line break, so what is found stands outside of strings
        return re.compile(rf"\n({re.escape(indent)}\{{|\])")
    return re.compile(rf",\s*\{{\s*{re.escape(first_field)}\s*:" if first_field else r",\s*\{")


def _of_keys(keys: list[str], others: list[str]) -> str:
    named = " and ".join(f"“{key}”" for key in keys)
    return f"the rows stand under {named}" + (f"; left unread beside: {', '.join(others[:8])}" if others else "")


def _rows_in(value: dict[str, Any]) -> tuple[list[Any] | None, str]:
    """The rows of a file that is one object, and how they stand in it; None where it is a row itself."""
    columns = list(value.values())
    if set(value) == {"columns", "index", "data"} and all(isinstance(column, list) for column in columns):
        return [
            dict(zip(value["columns"], row, strict=True)) for row in value["data"]
        ], "a table of pandas, read as rows"
    keys = [key for key, one in value.items() if key in ROWS_UNDER and _is_list_of_rows(one)]
    if keys:
        return [row for key in keys for row in value[key]], _of_keys(keys, [key for key in value if key not in keys])
    if columns and all(isinstance(column, dict) for column in columns):
        return _rows_by_number(value)
    if columns and all(isinstance(column, list) and not is_dialogue(column) for column in columns):
        return _rows_of_columns(value)
    return None, ""


def _is_list_of_rows(value: object) -> bool:
    rows = isinstance(value, list) and bool(value) and not is_dialogue(value)
    return rows and all(isinstance(one, dict) or is_dialogue(one) for one in cast(list[Any], value))


def _rows_of_columns(value: dict[str, list[Any]]) -> tuple[list[Any] | None, str]:
    names, columns = list(value), list(value.values())
    if len({len(column) for column in columns}) > 1:
        if not {"prompt", "chosen", "instruction", "messages"} & set(names):
            return None, ""
        lengths = ", ".join(f"{name}: {len(column):,}" for name, column in list(value.items())[:4])
        raise Unreadable(
            f"is an object of columns that differ in length ({lengths}), so which belong together is not known; write it again"
        )
    if not columns[0] or (len(names) == 1 and isinstance(columns[0][0], dict)):
        return None, ""
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)], "columns, read as rows"


def _rows_by_number(value: dict[str, dict[str, Any]]) -> tuple[list[Any] | None, str]:
    """pandas' ways: each row under its number, or in each column each cell under it."""
    columns = list(value.values())
    if all(key.isdigit() for key in value):
        return columns, "rows under their numbers"
    numbers = list(columns[0])
    if numbers and all(number.isdigit() for number in numbers) and all(list(column) == numbers for column in columns):
        return [{name: column[number] for name, column in value.items()} for number in numbers], "columns, read as rows"
    return None, ""
