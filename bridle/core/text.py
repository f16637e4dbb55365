"""What others wrote, on its way to a person: nothing in it is obeyed, nothing turns what stands around it, and its length is bounded.

Field names, rows, file names, settings, the strings of a model's folder, what templates, compilers and databases say: a terminal
obeys an escape sequence in it, a page or a terminal turns with an override, and a line end forges a line of ours. What is kept on
disk, and what `--json` prints, stays what was said.
"""

from __future__ import annotations

import json
import re
from typing import TextIO

# Control characters but tab and line end, line and paragraph separators, embeddings, overrides and isolates, halves of a character,
# marks that are hidden. Joiners and the marks of right-to-left scripts stay: those scripts need them.
NOT_SEEN = r"\x7f-\x9f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f"
IN_JSON = re.compile(f"[{NOT_SEEN}]")  # which escapes those below by itself
IN_TEXT = re.compile(rf"[\x00-\x08\x0b-\x1f{NOT_SEEN}]")
IN_A_LINE = re.compile(rf"[\x00-\x1f{NOT_SEEN}]")
LONGEST_LINE = 2_000  # characters
LENGTH_NOTE = 60  # characters that say how long a text is: one that is cut is not cut again


def visible(text: str) -> str:
    """Control characters as their pictures (␛), others that would be obeyed, or not be seen, as their escapes (\\u202e); line ends and
    tabs stay."""
    return IN_TEXT.sub(symbol, text)


def one_line(text: str, longest: int = LONGEST_LINE) -> str:
    """The same on one line, whatever line ends stand in it; of a longer one the beginning, its length and the end, which says how to
    mend it. What is cut leaves room for the words around it, in which it may be quoted."""
    beginning, end = (IN_A_LINE.sub(symbol, part) for part in (text[:longest], text[-longest:]))  # no more is looked at
    if max(len(text), len(beginning)) <= longest:
        return beginning
    note, kept = f"… ({len(text):,} characters, the middle left out) …", longest // 3
    return f"{beginning[: 9 * longest // 10 - kept - len(note)]}{note}{end[-kept:]}"


def beginning_of(text: str, longest: int) -> str:
    """A text of about so many characters; of a longer one its beginning, and how long it is."""
    if len(text) <= longest + LENGTH_NOTE:
        return text
    return f"{text[:longest]}… ({len(text):,} characters, the first {longest:,} shown)"


def telling_line(text: str, longest: int = 300) -> str:
    """Of what a library says in several lines the first, and where that only announces another ("Validation error for field 'x':") what it
    announces."""
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    end = next((number for number, line in enumerate(lines) if not line.endswith(":")), len(lines))
    return " ".join(lines[: end + 1])[:longest]


def symbol(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20 or code == 0x7F:
        return chr(0x2400 + min(code, 0x21))
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def json_text(value: object, indent: int | None = None) -> str:
    """JSON in which every script can be read and nothing is obeyed: what `visible` shows otherwise is written as JSON's own escape, so
    that it reads back as it was."""
    written = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return IN_JSON.sub(lambda found: json.dumps(found[0])[1:-1], written)


class VisibleStream:
    """A stream on which everything is visible, be it a library's warning; what its encoding does not have is written as an escape."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.encoding, self.errors = stream.encoding, stream.errors

    def write(self, text: str) -> int:
        encoding = self.encoding or "utf-8"
        escaped = "\r".join(map(visible, text.split("\r")))  # the line that moves goes back by it
        self.stream.write(escaped.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()
