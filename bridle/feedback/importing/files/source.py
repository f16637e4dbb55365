"""A file, an archive or a folder of others as one stream of numbered rows.

    source = RowSource("rows.jsonl.gz")
    for row in source:
        print(row.number, row.value)
    print(source.kind, source.done)

The first bytes decide what a file is; its name only tells a table of one column, and plain text, from lines that are no JSON. Memory
stays bounded whatever its size. Texts are read twice, first for their encoding.
"""

from __future__ import annotations

import csv
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from bridle.core.errors import DataError, brief_repr
from bridle.core.files import file_hash
from bridle.core.records import content_hash
from bridle.core.text import one_line
from bridle.feedback.importing.files import unpacking
from bridle.feedback.importing.files.delimited import delimited_rows, dialect_of
from bridle.feedback.importing.files.encodings import survey, undecodable_handler
from bridle.feedback.importing.files.json_text import JsonRows, JsonText, json_kind, line_rows
from bridle.feedback.importing.files.kinds import (
    SUFFIXES_OF_JSON,
    SUFFIXES_OF_TABLES,
    SUFFIXES_OF_TEXT,
    require_rows,
    table_or_archive,
)
from bridle.feedback.importing.files.row import UNDECODABLE, FileKind, RawRow, Unreadable
from bridle.feedback.importing.files.tables import arrow_rows, excel_rows, saved_dataset
from bridle.feedback.importing.reasons import Reason

DAMAGE = (EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, NotImplementedError)
SAMPLE = 2**16  # characters by which the kind of a text is told
LONGEST_NAME = 200  # characters of a file's name in an archive that are reported
LONGEST_DOCUMENT = 2**16  # characters of plain text that are one row


class RowSource:
    """The rows of what stands at a path, in order. Iterating raises DataError, with the place, where it cannot be read or read on."""

    def __init__(self, path: str | Path, encoding: str | None = None) -> None:
        self.path, self.encoding = Path(path), encoding
        self.done: list[str] = []  # what was done to it, a sentence each; it grows while rows are read
        self.kinds: list[FileKind] = []
        self.entries: list[str] = []  # the names of the files in an archive or folder that hold rows
        self.files = self._files()
        self.size = sum(path.stat().st_size for path in self.files)
        self.entry = self.place = ""  # where in it reading stands

    @property
    def kind(self) -> str:
        names = list(dict.fromkeys(map(str, self.kinds)))
        return f"{len(self.kinds)} files: {', '.join(names)}" if len(self.kinds) > 1 else "".join(names)

    @property
    def unit(self) -> str:
        """What the numbers of rows count."""
        units = {kind.unit for kind in self.kinds}
        return units.pop() if len(units) == 1 else "row"

    @property
    def sha256(self) -> str:
        """Of the bytes of its files, and in a folder of their names."""
        if self.files == [self.path]:
            return file_hash(self.path)
        return content_hash([[path.relative_to(self.path).as_posix(), file_hash(path)] for path in self.files])

    def _files(self) -> list[Path]:
        path = self.path
        if path.is_symlink() and ".git/annex/objects" in path.readlink().as_posix() and not path.exists():
            raise DataError(f"{path} is a link of git-annex to a file that is not here; fetch it with `git annex get`")
        if not path.exists():
            raise DataError(f"there is no file {path}; see that its name is right")
        if not path.is_dir():
            if not path.is_file():
                raise DataError(
                    f"{path} is not a file that can be read twice (a pipe or a device); save its content as a file and import that"
                )
            return [path]
        try:
            files = saved_dataset(path)
        except Unreadable as error:
            raise DataError(f"{path} {error}") from error
        files = unpacking.listed_files(path, self.done) if files is None else files
        if not files:
            raise DataError(f"{path} is a folder without a file of rows; name a file, or a folder that holds some")
        return files

    def __iter__(self) -> Iterator[RawRow]:
        before = 0
        for path in self.files:
            inside = path.relative_to(self.path).as_posix() if path != self.path else ""
            was = path.stat()
            for row in self._rows_of(path, inside):
                yield row._replace(position=before + row.position) if before else row
            now = path.stat()
            if (was.st_size, was.st_mtime_ns) != (now.st_size, now.st_mtime_ns):
                raise DataError(
                    f"{path} changed while it was read; import it when it is whole (nothing of it was stored)"
                )
            before += was.st_size
        if len(self.entries) > 1:
            self.done.append(f"{len(self.entries):,} files in it: {unpacking.some_of(self.entries)}")

    def _rows_of(self, path: Path, inside: str) -> Iterator[RawRow]:
        self.entry, self.place = inside, "its beginning"
        try:
            with path.open("rb") as raw:
                for packed in unpacking.unpack_files(raw, self.done):
                    name = "/".join(part for part in (inside, packed.name) if part)
                    self.entry, self.place = one_line(name, LONGEST_NAME), "its beginning"  # a name may hold anything
                    for row in self._rows_in(packed, raw):
                        self.place = f"{self.kinds[-1].unit} {row.number}"
                        yield row._replace(entry="/".join(filter(None, (self.entry, row.entry)))) if self.entry else row
        except Unreadable as error:
            raise DataError(f"{self._name} {error}") from error
        except (*DAMAGE, OSError) as error:
            words = error.strerror if isinstance(error, OSError) else None
            if words is not None and not isinstance(error, gzip.BadGzipFile):
                raise DataError(f"{self._name} cannot be read after {self.place}: {words}") from error
            raise DataError(
                f"{self._name} breaks off or is damaged after {self.place} ({error}); fetch it again"
            ) from error

    @property
    def _name(self) -> str:
        return f"{self.path} ({self.entry})" if self.entry else str(self.path)

    def _rows_in(self, packed: unpacking.Packed, raw: BinaryIO) -> Iterator[RawRow]:
        with packed.open() as stream:
            head = unpacking.read_head(stream)
        if not head and self.entry:
            return
        kind = table_or_archive(head)
        if kind in (FileKind.PARQUET, FileKind.ARROW, FileKind.ZIP):
            self._begin(FileKind.EXCEL if kind is FileKind.ZIP else kind)
            with packed.open() as stream, unpacking.seekable(stream) as file:
                yield from (
                    excel_rows(file, self.size, self.done)
                    if kind is FileKind.ZIP
                    else arrow_rows(file, kind, self.size)
                )
        else:
            require_rows(head)
            yield from self._text_rows(packed, raw)

    def _begin(self, kind: FileKind) -> None:
        self.kinds.append(kind)
        if self.entry:
            self.entries.append(self.entry)

    def _text_rows(self, packed: unpacking.Packed, raw: BinaryIO) -> Iterator[RawRow]:
        with packed.open() as stream:
            found = survey(stream, self.encoding)
        if found.note:
            self.done.append(f"{self.entry}: {found.note}" if self.entry else found.note)
        with _decoded(packed, found.encoding) as text:
            sample = text.read(SAMPLE)
        kind, dialect = _kind_of_text(sample, found.lines, self.entry or self.path.name)
        self._begin(kind)
        undecodable = Reason.NOT_UTF8 if found.encoding.startswith("utf-8") else Reason.UNDECODABLE
        with _decoded(packed, found.encoding, "" if dialect else "\n") as text:
            rows: Iterator[RawRow]
            if dialect is not None:
                rows = delimited_rows(text, dialect, raw.tell, self.done)
            elif kind is FileKind.TEXT:
                rows = _paragraphs(text, raw.tell)
            elif kind is FileKind.LINES:
                rows = line_rows(text, raw.tell)
            else:
                rows = JsonRows(JsonText(text), raw.tell, self.done).rows()
            for row in rows:
                yield row._replace(value=undecodable) if row.value is Reason.UNDECODABLE else row


@contextmanager
def _decoded(packed: unpacking.Packed, encoding: str, newline: str = "\n") -> Iterator[TextIO]:
    with packed.open() as stream:
        text = io.TextIOWrapper(stream, encoding, undecodable_handler(), newline)
        try:
            yield text
        finally:
            text.detach()  # it would close the stream, which is read again


def _kind_of_text(sample: str, lines: int, name: str) -> tuple[FileKind, type[csv.Dialect] | None]:
    suffixes = {suffix.lower() for suffix in Path(name).suffixes}
    kind = json_kind(sample, lines)
    if kind is None and not suffixes & SUFFIXES_OF_JSON:
        dialect = dialect_of(sample, len(sample) < SAMPLE, certain=bool(suffixes & SUFFIXES_OF_TABLES))
        is_text = bool(suffixes & SUFFIXES_OF_TEXT)
        if dialect is not None and not (is_text and dialect.delimiter != "\t"):
            return FileKind.DELIMITED, dialect
        kind = FileKind.TEXT if is_text else None
        if kind is None and sample.count("\0") > len(sample) / 50:
            raise Unreadable(f"is neither text nor a table that can be read: it begins with {brief_repr(sample[:16])}")
    return kind or FileKind.LINES, None


def _paragraphs(file: TextIO, position: Callable[[], int]) -> Iterator[RawRow]:
    """Plain text: what blank lines part, and of what goes on for long as much as a document may have."""
    number, begun, held, length = 0, 1, list[str](), 0
    while True:
        line = file.readline(LONGEST_DOCUMENT)
        if held and (not line.strip() or length > LONGEST_DOCUMENT):
            text = "".join(held).strip()
            yield RawRow(begun, Reason.UNDECODABLE if UNDECODABLE in text else {"text": text}, text, position())
            held, length = [], 0
        if not line:
            return
        number += line.endswith("\n")
        if line.strip():
            begun = begun if held else number
            held.append(line)
            length += len(line)
