"""Files of others as numbered rows: JSON lines, a JSON list of objects, or Parquet. A file's first bytes decide what it is.

Memory stays bounded whatever the file's size: a line or an entry of a list is held alone and must be within `LONGEST`, a
Parquet table is read a few rows at a time. JSON may be gzipped, and is UTF-8 with or without a byte order mark.

A row that is not an object is given as the reason why, and reading goes on: after a line at the next line; after an entry of
a list that is not JSON at the next line that begins like the list's first entry. Where there is none, reading ends with an
error that names the place.
Not covered: CSV, UTF-16, objects over several lines outside a list.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO, cast

from bridle.core.errors import DataError
from bridle.feedback.importing.reasons import LONGEST, Reason

if TYPE_CHECKING:
    import pyarrow

GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
LIST_OF_OBJECTS = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*(?:[{\]]|\Z)")
HEAD = 2**16  # bytes in which the first sign of a list is looked for
CHUNK = 2**16  # characters of a list that are read at once
TABLE_ROWS = 64  # rows of a table that are held at once
PAGES = 2**20  # bytes of each column of a table that are read at once
WHITE = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder()


class FileKind(StrEnum):
    LINES = "JSON lines"
    LIST = "JSON list"
    TABLE = "Parquet"

    @property
    def unit(self) -> str:
        """What the numbers of its rows count."""
        return "line" if self is FileKind.LINES else "row"


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands in a file."""

    number: int  # of the line, or of the entry or row; from 1
    value: dict[str, Any] | Reason | None  # its fields, or why there are none; None for a blank line
    text: bytes | str  # as it stands there, at least its beginning; empty for a row of a table
    position: int  # bytes of the file that were read so far

    @property
    def excerpt(self) -> str:
        """Its beginning on one line, without anything that a terminal would obey."""
        text = self.text[:400] or json.dumps(self.value, ensure_ascii=False, default=str)[:400]
        plain = text.decode("utf-8-sig", errors="replace") if isinstance(text, bytes) else text
        line = "".join(sign if sign.isprintable() else "\ufffd" for sign in " ".join(plain.split()))
        return line if len(line) <= 100 else line[:99] + "…"


def file_kind(path: Path) -> FileKind:
    """What the content says that a file is: lines, where it is neither a table nor a list. Raises DataError."""
    if path.is_dir():
        raise DataError(f"{path} is a folder, but what can be imported is a file of rows; name one file in it")
    try:
        with path.open("rb") as raw, _unpacked(raw) as file:
            head = file.read(HEAD)
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}; see that its name is right") from error
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, "its beginning", error) from error
    if head.startswith(PARQUET):
        return FileKind.TABLE
    return FileKind.LIST if LIST_OF_OBJECTS.match(head) else FileKind.LINES


def read_rows(path: Path, kind: FileKind) -> Iterator[RawRow]:
    """Yield a file's rows in order. Raises DataError, with the place, where it cannot be read or read on."""
    number = 0
    try:
        with path.open("rb") as raw, _unpacked(raw) as file:
            reader = {FileKind.LINES: _lines, FileKind.LIST: _entries, FileKind.TABLE: _table}[kind]
            for row in reader(file, raw, path):
                number = row.number
                yield row
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, f"{kind.unit} {number}", error) from error


def _unpacked(file: BinaryIO) -> BinaryIO:
    zipped = file.read(len(GZIP)) == GZIP
    file.seek(0)
    return cast(BinaryIO, gzip.open(file)) if zipped else file


def _unreadable(path: Path, place: str, error: Exception) -> DataError:
    if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
        return DataError(f"{path} breaks off or is damaged after {place} ({error}); fetch it again")
    words = error.strerror if isinstance(error, OSError) and error.strerror else error
    return DataError(f"{path} cannot be read after {place}: {words}")


# ------------------------------------------------------------------------------------------------- JSON lines


def _lines(file: BinaryIO, raw: BinaryIO, path: Path) -> Iterator[RawRow]:
    number = 0
    while line := file.readline(LONGEST):
        number += 1
        if len(line) < LONGEST or line.endswith(b"\n"):
            yield RawRow(number, _object(line), line, raw.tell())
            continue
        while (rest := file.readline(LONGEST)) and not rest.endswith(b"\n"):
            pass
        yield RawRow(number, Reason.TOO_LONG, line, raw.tell())


def _object(line: bytes) -> dict[str, Any] | Reason | None:
    if not line.strip():
        return None
    try:
        value = json.loads(line.decode("utf-8-sig"))  # a file may open with a byte order mark
    except UnicodeDecodeError:
        return Reason.NOT_UTF8
    except (ValueError, RecursionError):
        return Reason.NOT_JSON
    return value if isinstance(value, dict) else Reason.NOT_OBJECT


# -------------------------------------------------------------------------------------------------- a JSON list


class _Text:
    """The text of a file, read on as it is needed: `held` begins at the file's character `before`, `at` is next in it."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.held, self.at, self.before = file, "", 0, 0

    @property
    def beginning(self) -> str:
        return self.held[self.at : self.at + 400]

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

    def find(self, indent: str) -> bool:
        """Go to the next line that begins an entry or ends the list, without holding what is passed. False if none does.

        No string of JSON holds a bare line break, so what is found stands outside of strings.
        """
        line = re.compile(rf"\n({indent}\{{|\])")
        while (found := line.search(self.held, self.at)) is None:
            self.at = max(self.at, len(self.held) - len(indent) - 2)
            if not self.more():
                return False
        self.at = found.start()
        return True

    def value(self) -> tuple[object, str]:
        """The JSON value that begins here, and its text; a reason, and nothing taken, where there is none."""
        while True:
            try:
                value, end = DECODER.raw_decode(self.held, self.at)
                cut, fault = end > len(self.held) - 4, None  # 1 may go on as 1e+3
            except json.JSONDecodeError as error:
                # An error at the end, or a string that does not end: the value goes on in what was not read yet.
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.held) - 16
                fault = Reason.NOT_JSON
            except (ValueError, RecursionError):  # a number of thousands of digits, nesting beyond the stack
                cut, fault = False, Reason.NOT_JSON
            if cut and len(self.held) - self.at >= LONGEST:
                fault = Reason.TOO_LONG
            elif cut and self.more():
                continue
            if fault is not None:
                return fault, self.beginning
            text, self.at = self.held[self.at : end], end
            return value, text


class _Place(StrEnum):
    """Where in a list the text stands, by what may come next."""

    OUTSIDE = "a list, or the end"
    ENTRY = "an entry, or the end of the list"
    COMMA = "a comma, or the end of the list"


SIGNS = {
    _Place.OUTSIDE: {"[": _Place.ENTRY},
    _Place.ENTRY: {"]": _Place.OUTSIDE},
    _Place.COMMA: {",": _Place.ENTRY, "]": _Place.OUTSIDE},
}


def _entries(file: BinaryIO, raw: BinaryIO, path: Path) -> Iterator[RawRow]:
    """The entries of a list, and of those that follow it in the file, one by one."""
    # Bytes that are no UTF-8 become half characters, so that only the entry that holds them is lost.
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as decoded:
        text = _Text(decoded)
        text.sign()
        gap = cast(re.Match[str], WHITE.match(text.held, text.at + 1)).group()
        indent = gap.rpartition("\n")[2] if "\n" in gap else ""  # of an entry that has a line of its own
        place, number = _Place.OUTSIDE, 0
        while (sign := text.sign()) or place is not _Place.OUTSIDE:
            if sign in SIGNS[place]:
                place = SIGNS[place][sign]
                text.at += 1
                continue
            number, start = number + 1, text.before + text.at
            value, excerpt = text.value() if place is _Place.ENTRY else (Reason.NOT_JSON, text.beginning)
            place = _Place.COMMA
            if isinstance(value, Reason):
                row = RawRow(number, value, excerpt or "it ends there", raw.tell())
                if not text.find(indent):
                    raise DataError(
                        f"{path} is {value} at character {start:,}, row {number:,} ({row.excerpt}), and no later row can be "
                        "told from it; mend it there (what was read before is in the store)"
                    )
                place = _Place.ENTRY
            elif not is_utf8(excerpt):
                row = RawRow(number, Reason.NOT_UTF8, excerpt, raw.tell())
            else:
                row = RawRow(number, value if isinstance(value, dict) else Reason.NOT_OBJECT, excerpt, raw.tell())
            yield row


def is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ------------------------------------------------------------------------------------------------------ Parquet


def _table(file: BinaryIO, raw: BinaryIO, path: Path) -> Iterator[RawRow]:
    if file is not raw:
        raise DataError(f"{path} is a gzipped Parquet file, and Parquet packs by itself; unpack it with gunzip first")
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{path} is a Parquet file, and pyarrow, which reads them, is not installed; `pip install 'bridle[hub]'`"
        ) from error
    size, number = path.stat().st_size, 0
    try:
        with pyarrow.parquet.ParquetFile(raw, pre_buffer=False, buffer_size=PAGES) as table:
            rows = table.metadata.num_rows
            for batch in table.iter_batches(TABLE_ROWS, use_threads=False):
                for value in _values(batch):
                    number += 1
                    yield RawRow(number, value, "", size * number // rows)
    except (pyarrow.ArrowException, OSError) as error:
        words = str(error).partition("\n")[0]
        raise DataError(
            f"{path} is damaged after row {number}, or no Parquet file ({words}); fetch it again"
        ) from error


def _values(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any] | Reason]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # raised before the first row is given
        for one in range(batch.num_rows):
            try:
                yield from batch.slice(one, 1).to_pylist()
            except UnicodeDecodeError:
                yield Reason.NOT_UTF8
