"""CSV and its kin: the delimiter and the way of quoting are found in the first lines, and reported.

The first line names the fields. Of the delimiters comma, semicolon, tab and bar that one is taken which cuts the first line into most
fields and all others of the sample into as many. A quote inside quotes is doubled, or stands behind a backslash where the file has such.
"""

import csv
import re
from collections.abc import Callable, Iterator
from io import StringIO
from typing import TextIO

from bridle.feedback.importing.files.row import UNDECODABLE, RawRow, Unreadable
from bridle.feedback.importing.reasons import LONGEST, Reason

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
NOTHING = ("", "nan", "NaN")  # how a table has an absent value
LONGEST_NAME = 100  # characters of a field's name, where the file's own name does not say that it is a table
FORMULA = re.compile(
    r"'*[=+\-@\t\r]"
)  # begins what a spreadsheet would run; the apostrophes before it are of those who prevent that


class _Plain(csv.excel):
    strict = True  # what stands behind a closing quote, and a quote that never closes, are errors and not guesses


class _Backslash(_Plain):
    doublequote = False
    escapechar = "\\"


def dialect_of(head: str, whole: bool, certain: bool) -> type[csv.Dialect] | None:
    """How the table that begins so is written; None where it is none. `certain`: its name says that it is one, of one column at least."""
    lines = StringIO(
        head, newline=""
    ).readlines()  # as the file is read: a text may hold U+2028, which splitlines would part
    if not whole and len(lines) > 1:
        lines = lines[:-1]
    kind = _Backslash if '\\"' in head and '""' not in head.replace(',""', "").replace('"",', "") else _Plain
    found, most = None, 1 if not certain else 0
    asked = _asked_delimiter(lines)
    for delimiter in [asked] if asked else DELIMITERS:
        tried = type("Found", (kind,), {"delimiter": delimiter})
        widths = _widths(lines[bool(asked) :], tried)
        names = next(csv.reader(lines[bool(asked) : bool(asked) + 1], tried), []) if widths else []
        fits = bool(names) and (certain or (len(widths) > 1 and len(set(widths)) == 1 and all(map(_is_name, names))))
        agreed = widths.count(len(names)) / len(widths) if widths else 0
        if fits and len(names) > most and agreed >= 0.5:
            found, most = tried, len(names)
    return found


def _asked_delimiter(lines: list[str]) -> str | None:
    """Excel's own first line: sep=;"""
    first = lines[0].rstrip("\r\n").strip('"') if lines else ""
    return first[4:] if first.lower().startswith("sep=") and len(first) == 5 else None


def _widths(lines: list[str], dialect: type[csv.Dialect]) -> list[int]:
    widths = []
    reader = csv.reader(lines, dialect)
    while True:
        try:
            widths.append(len(next(reader)))
        except StopIteration:
            return [width for width in widths if width]
        except csv.Error:
            widths.append(-1)
            if reader.line_num >= len(lines):  # the sample ends inside quotes
                return [width for width in widths[:-1] if width]


def _is_name(text: str) -> bool:
    return (
        bool(text.strip())
        and len(text) <= LONGEST_NAME
        and text.replace(" ", "_").replace(".", "_").replace("-", "_").isidentifier()
    )


def delimited_rows(
    file: TextIO, dialect: type[csv.Dialect], position: Callable[[], int], done: list[str]
) -> Iterator[RawRow]:
    csv.field_size_limit(LONGEST)
    lines = _Lines(file)
    reader = csv.reader(lines, dialect)
    first = next(reader)
    header = field_names(next(reader, []) if "".join(first).lower().startswith("sep=") else first)
    quoting = ", quotes behind a backslash" if dialect.escapechar else ""
    done.append(
        f"fields are cut at each {DELIMITERS.get(dialect.delimiter, repr(dialect.delimiter))}{quoting}; the first line names them"
    )
    while True:
        number = lines.number + 1
        lines.held = ""
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            excerpt = RawRow(0, None, lines.held).excerpt
            if "unexpected end" in str(error):
                raise Unreadable(
                    f"has a quote in the row that begins on line {number:,} which never closes ({excerpt}), so no "
                    "later row can be told; mend it there (nothing of the file was stored)"
                ) from error
            reason = Reason.TOO_LONG if "limit" in str(error) else Reason.QUOTING
            yield RawRow(number, reason, lines.held, position())
            continue
        yield RawRow(number, _value(header, fields, lines.held), lines.held, position())


class _Lines:
    """The lines of a file, counted; the beginning of those of one row is held for the report."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.number, self.held = file, 0, ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.file.readline(LONGEST)
        if not line:
            raise StopIteration
        self.number += 1
        if len(self.held) < 400:
            self.held += line[:400]
        return line


def field_names(header: list[str]) -> list[str]:
    """The names of a table's columns; one without a name, as pandas writes its index, is called by its number."""
    names = [name.strip() or f"column {number}" for number, name in enumerate(header, 1)]
    twice = next((name for n, name in enumerate(names) if name in names[:n]), None)
    if twice is not None:
        raise Unreadable(
            f"has two columns that are called {twice!r}, of which one would be lost; give each a name of its own"
        )
    return names


def _value(header: list[str], fields: list[str], text: str) -> dict[str, str | None] | Reason | None:
    if not any(field.strip() for field in fields):
        return None
    if len(fields) != len(header):
        return Reason.FIELD_COUNT
    if any(UNDECODABLE in field for field in fields):
        return Reason.UNDECODABLE
    cells = zip(header, map(unguarded, fields), strict=True)
    return {name: None if field.strip() in NOTHING else field for name, field in cells}


def guarded(text: str) -> str:
    """A cell with an apostrophe before it where a spreadsheet would take it for a formula."""
    return f"'{text}" if FORMULA.match(text) else text


def unguarded(text: str) -> str:
    """The same without that apostrophe."""
    return text[1:] if text[:1] == "'" and FORMULA.match(text) else text
