"""One row as it stands in a file, and the words of what a file is."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any, NamedTuple

from bridle.feedback.importing.reasons import Note, Reason

UNDECODABLE = "\udcff"  # stands in decoded text for bytes that the file's encoding does not have; no encoding gives it


class Unreadable(Exception):
    """Why a file cannot be read: a sentence that its name begins, such as "is an image; what is imported is text"."""


class FileKind(StrEnum):
    LINES = "JSON lines"
    LIST = "JSON list"
    OBJECT = "JSON object"
    TEXT = "plain text"
    DELIMITED = "CSV"
    EXCEL = "Excel"
    PARQUET = "Parquet"
    ARROW = "Arrow"
    ZIP = "zip archive"
    TAR = "tar archive"

    @property
    def unit(self) -> str:
        """What the numbers of its rows count."""
        return "line" if self in (FileKind.LINES, FileKind.DELIMITED, FileKind.TEXT) else "row"


class RawRow(NamedTuple):
    """One row as it stands in a file."""

    number: int  # of the line, or of the entry or row; from 1
    value: (
        dict[str, Any] | list[Any] | Reason | None
    )  # its fields, or messages alone; why there are none; None for a blank line
    text: str = ""  # as it stands there, at least its beginning; empty for a row of a table
    position: int = 0  # bytes of the file that were read so far
    entry: str = ""  # the file in an archive or folder, or the sheet
    notes: tuple[Note, ...] = ()

    @property
    def excerpt(self) -> str:
        """Its beginning on one line, without anything that a terminal would obey."""
        plain = self.text[:400] or json.dumps(self.value, ensure_ascii=False, default=str)[:400]
        line = "".join(sign if sign.isprintable() else "\ufffd" for sign in " ".join(plain.split()))
        return line if len(line) <= 100 else line[:99] + "…"


def is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_dialogue(value: object) -> bool:
    """A list of messages: a row by itself, where any other list of objects is a list of rows."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and is_message(one) for one in value)


def is_message(value: dict[str, Any]) -> bool:
    return ("role" in value and ("content" in value or "tool_calls" in value)) or ("from" in value and "value" in value)
