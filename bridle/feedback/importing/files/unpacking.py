"""Files out of what they are packed in: gzip, bz2, xz, zstd, zip, tar, folders, one in another; only streams are read, nothing is written
under a name that an archive gives.

What unpacks to over 200 times its size is refused once that is a gigabyte: the zip bombs.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from bridle.feedback.importing.files.kinds import HEAD, packing_of, table_or_archive
from bridle.feedback.importing.files.row import FileKind, Unreadable

BOMB_BYTES, BOMB_TIMES = 2**30, 200
DEEPEST = 4  # packings and archives in one another
HELD = 2**24  # bytes of an archive's file that are held in memory; more goes to a temporary file
LEFT_OUT = ("__MACOSX", "Thumbs.db", "desktop.ini", "LICENSE", "LICENCE", "README", "CITATION", "MANIFEST")
METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "dataset-metadata.json")
LEFT_OUT_SUFFIXES = (
    *(".md", ".rst", ".py", ".sh", ".ipynb", ".lock", ".sha256", ".md5", ".yaml", ".yml", ".cfg", ".toml", ".log"),
    *(".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".wav", ".mp3", ".mp4"),
)


@dataclass(frozen=True)
class Packed:
    """A file, or one in an archive or folder, as a stream of its own bytes that can be opened again from its beginning."""

    name: str  # in the archive or folder; empty for the file itself
    open: Callable[[], AbstractContextManager[BinaryIO]]


class _Bounded(io.RawIOBase):
    """A stream that ends with an error where it has become far longer than what it was packed in."""

    def __init__(self, file: Any, packed: Callable[[], int]) -> None:
        self.file, self.packed, self.unpacked = file, packed, 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.unpacked

    def readinto(self, buffer: Any) -> int:
        found = self.file.read(len(buffer))
        buffer[: len(found)] = found
        self.unpacked += len(found)
        if self.unpacked > max(BOMB_BYTES, BOMB_TIMES * self.packed()):
            raise Unreadable(
                f"unpacks to over {BOMB_TIMES} times its size, as a zip bomb does; unpack it yourself and import what is in it"
            )
        return len(found)


def unpack_files(file: BinaryIO, done: list[str]) -> Iterator[Packed]:
    """The files of rows in an open file, in the order in which they stand there; `done` gets a line for what was unpacked and left out.

    Raises Unreadable, OSError, EOFError and what the standard library raises for damage.
    """
    yield from _inside(Packed("", _again(file)), done, 0)


def _inside(packed: Packed, done: list[str], depth: int) -> Iterator[Packed]:
    if depth > DEEPEST:
        raise Unreadable(f"is packed more than {DEEPEST} times; unpack it yourself and import what is in it")
    with packed.open() as file:
        head = read_head(file)
    packing, kind = packing_of(head), table_or_archive(head)
    if packing is not None:
        done += [] if depth and f"{packing} unpacked" in done else [f"{packing} unpacked"]
        yield from _inside(Packed(packed.name, lambda: _decompressed(packed, packing)), done, depth + 1)
    elif kind is FileKind.TAR:
        yield from _of_tar(packed, done, depth)
    elif kind is FileKind.ZIP:
        yield from _of_zip(packed, done, depth)
    else:
        yield packed


def read_head(file: BinaryIO) -> bytes:
    """The first bytes, HEAD of them where there are so many."""
    parts, left = [], HEAD
    while left and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


@contextmanager
def _decompressed(packed: Packed, packing: str) -> Iterator[BinaryIO]:
    with packed.open() as raw:
        opened: Any
        if packing == "gzip":
            opened = gzip.open(raw)
        elif packing == "bz2":
            opened = bz2.open(raw)
        elif packing == "xz":
            opened = lzma.open(raw)
        else:
            opened = _zstd(raw)
        with opened:
            yield cast(BinaryIO, io.BufferedReader(_Bounded(opened, raw.tell), HEAD))


def _zstd(raw: BinaryIO) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise Unreadable(
            "is packed with zstd, and pyarrow, which unpacks that, is not installed; `pip install 'bridle[hub]'`, or run `zstd -d`"
        ) from error
    shielded = io.BufferedReader(_Bounded(raw, raw.tell))  # which is closed with it, and not the file
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(shielded, "r"), "zstd")


# ---------------------------------------------------------------------------------------------------- archives


def _of_tar(packed: Packed, done: list[str], depth: int) -> Iterator[Packed]:
    """A tar is read once from end to end, so each of its files is copied out, to memory or to a file without a name."""
    left_out: list[str] = []
    done.append("tar unpacked")
    with packed.open() as file, tarfile.open(fileobj=file, mode="r|") as archive:
        for member in archive:
            if member.isdir():
                continue
            content = archive.extractfile(member) if member.isfile() else None
            if content is None or not is_data(member.name):
                left_out.append(member.name)
                continue
            with tempfile.SpooledTemporaryFile(HELD) as copy:
                shutil.copyfileobj(content, copy)
                yield from _inside(Packed(_joined(packed.name, member.name), _again(copy)), done, depth + 1)
    note_left_out(left_out, done)


def _again(copy: Any) -> Callable[[], AbstractContextManager[BinaryIO]]:
    @contextmanager
    def opened() -> Iterator[BinaryIO]:
        copy.seek(0)
        yield copy

    return opened


def _of_zip(packed: Packed, done: list[str], depth: int) -> Iterator[Packed]:
    left_out = []
    with packed.open() as stream, seekable(stream) as file, zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if (document := _document(names)) == "xl/":
            yield Packed(packed.name, _again(file))
            return
        if document is not None:
            raise Unreadable(document)
        done.append("zip unpacked")
        for member in archive.infolist():
            if member.is_dir():
                continue
            if not is_data(member.filename):
                left_out.append(member.filename)
                continue
            if member.flag_bits & 1:
                raise Unreadable("is an encrypted zip archive; unpack it with its password and import what is in it")
            yield from _inside(Packed(_joined(packed.name, member.filename), _member(archive, member)), done, depth + 1)
    note_left_out(left_out, done)


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Callable[[], AbstractContextManager[BinaryIO]]:
    @contextmanager
    def opened() -> Iterator[BinaryIO]:
        with archive.open(member) as file:
            yield cast(BinaryIO, io.BufferedReader(_Bounded(file, lambda: member.compress_size), HEAD))

    return opened


def _document(names: list[str]) -> str | None:
    """What a zip archive is that is a document of a program: "xl/" for Excel's, for others what to do with it."""
    if "[Content_Types].xml" in names:
        if any(name.startswith("xl/") for name in names):
            return "xl/"
        return "is a Word or PowerPoint document; save it as plain text or CSV"
    if any(name.endswith("data.pkl") for name in names):
        return "is a PyTorch file, a pickle, which is a program and is not run; write its rows as JSON lines"
    if names and all(name.endswith(".npy") for name in names):
        return "is a NumPy archive (.npz); write its rows as JSON lines"
    if "mimetype" in names and "content.xml" in names:
        return "is an OpenDocument file; save it as .xlsx or CSV"
    return None


@contextmanager
def seekable(file: BinaryIO) -> Iterator[BinaryIO]:
    """The file itself where one can go back in it, else a copy without a name."""
    if isinstance(file, io.BufferedReader) and isinstance(file.raw, _Bounded):
        with tempfile.SpooledTemporaryFile(HELD) as copy:
            shutil.copyfileobj(file, copy)
            copy.seek(0)
            yield cast(BinaryIO, copy)
    else:
        yield file


# ----------------------------------------------------------------------------------------------------- folders


def listed_files(folder: Path, done: list[str]) -> list[Path]:
    """The files of rows in a folder and in those below it, by name."""
    found, left_out = [], []
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        inside = path.relative_to(folder)
        if not any(part.startswith(".") for part in inside.parts) and is_data(inside.as_posix()):
            found.append(path)
        else:
            left_out.append(inside.as_posix())
    note_left_out(left_out, done)
    return found


def is_data(name: str) -> bool:
    """False for what lies beside rows in archives and folders and is none: a README, a script, a system's own files."""
    parts = name.split("/")
    last = parts[-1]
    other = last.startswith(("._", ".", *LEFT_OUT)) or last in METADATA or last.lower().endswith(LEFT_OUT_SUFFIXES)
    return not other and not any(part in LEFT_OUT for part in parts)


def note_left_out(names: list[str], done: list[str]) -> None:
    if names:
        done.append(f"left out, as no files of rows: {some_of(names)}")


def some_of(names: list[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _joined(outer: str, name: str) -> str:
    return f"{outer}/{name}" if outer else name
