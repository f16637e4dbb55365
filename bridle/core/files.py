"""Files and folders that are whole or absent: written beside their place, flushed to disk, then renamed into it.

    .NAME.5f2a91c0.new      being written, and locked (flock) as long as its process lives; where no lock is held it is rubbish
    .NAME.5f2a91c0.old      a whole folder that a new one was about to replace, where the system cannot swap the two in one step

A kill at any instant leaves the old or the new under NAME, or, without such a swap, the old as `.old` and nothing under NAME: whoever
reads or writes next puts it back.
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

from bridle.core.errors import BridleError, DataError, brief_repr
from bridle.core.forms import Fields, Form, form_fault
from bridle.core.text import json_text

Found = TypeVar("Found")
Rest = TypeVarTuple("Rest")

LEFT = re.compile(
    r"\.(?P<name>.+)\.([0-9a-f]{8}|[0-9]+)\.(?P<kind>new|old)", re.DOTALL
)  # earlier versions: the process's number
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # fcntl.h, linux/fs.h
TAKEN = {errno.ENOTEMPTY, errno.EEXIST}


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn a failure of the disk into one sentence; what was saved before stays as it was."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BridleError(f"no space left while saving {path}; free some and run the same command again") from error
        if (taken := next((folder for folder in path.parents if folder.is_file()), None)) is not None:
            raise BridleError(
                f"could not save {path}: {taken} is a file where a folder is needed; choose another place"
            ) from error
        raise BridleError(f"could not save {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole: a reader sees the old text or the new one, never half of it."""
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary(path, Path.touch) as new:
            with open(new, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)


def write_json(path: Path, value: object) -> None:
    """A number that is not finite is written as null: JSON has no word for it."""
    write_text(path, json_text(finite_or_none(value), indent=2) + "\n")


def finite_or_none(value: Any) -> Any:
    """The same with None for every number that is not finite, however deep it stands."""
    if isinstance(value, Mapping):
        return {key: finite_or_none(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"), object_pairs_hook=without_repeats)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {reading_fault(error)}") from error


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of an object in JSON; ValueError where a key stands there twice, of which the first would go in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it says {brief_repr(twice)} twice; leave one of them out")
    return found


def strict_json(text: str) -> Any:
    """The value of somebody's JSON, as the standard has it. ValueError for anything else: a key twice, NaN, more depth than Python can
    follow, and a number of more than 400 signs or beyond all floats, which costs more than it can mean."""
    try:
        return json.loads(
            text, parse_constant=short_number, parse_int=short_number, parse_float=short_number,
            object_pairs_hook=without_repeats,
        )  # fmt: skip
    except RecursionError as error:
        raise ValueError("it nests too deep") from error


def short_number(text: str) -> int | float:
    if len(text) > 400 or not math.isfinite(number := float(text)):
        raise ValueError(f"it holds the number {brief_repr(text)}, which is out of range")
    return int(text) if text.lstrip("-").isdigit() else number


def read_record(path: Path, fields: Fields | None = None, /, **needed: Form) -> dict[str, Any]:
    """A JSON object that bridle wrote, of a form (core/forms.py); `needed`: keys of it, each with the form of its value."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise DataError(f"{path} is damaged: it must hold a JSON object, got {brief_repr(found)}")
    if fault := form_fault(found, {**needed, **(fields or {})}):
        raise DataError(f"{path} is damaged: {fault}")
    return found


def read_toml(path: Path) -> dict[str, Any]:
    """Tables of a TOML file; OSError where there is none, ValueError with what is wrong where it cannot be read."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(reading_fault(error)) from error


def reading_fault(error: ValueError | RecursionError) -> str:
    """What a reader of JSON or TOML could not take. Python's readers have errors of other kinds for what only nests too deep or is
    a number of thousands of digits."""
    if isinstance(error, RecursionError):
        return "its values nest too deep; write them flatter"
    text, advice, _ = str(error).partition("; use sys.set_int_max_str_digits")
    return f"it holds a number of too many digits ({text})" if advice else text


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that takes its place only when the block ends well; an older one is replaced as a whole, a link or a file never.

    Of two that write the same at once the last one stays.
    """
    path = path.absolute()
    with saving(path):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            what = "link" if path.is_symlink() else "file"
            raise BridleError(
                f"could not save {path}: it is a {what}, which no folder replaces; move it away, or choose another name"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary(path, Path.mkdir) as new:
            yield new
            for written in [*new.rglob("*"), new]:
                flush(written)
            try:
                put_in_place(new, path)
            finally:
                tidy(path.parent, path.name)
            flush(path.parent)


@contextmanager
def temporary(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A new file or folder beside `path`, locked, and removed at the end where it was not renamed; what processes that were killed left
    of the same name is put right first."""
    tidy(path.parent, path.name)
    held = None
    while held is None:
        new = temporary_name(path, "new")
        make(new)
        held = hold(new)
    try:
        yield new
    finally:
        remove_temporary(new)
        os.close(held)


def hold(new: Path) -> int | None:
    """Lock what was just made until the descriptor is closed; None where another process took it for rubbish before the lock was there.

    Where the file system knows no locks there is none, and nothing is tidied away.
    """
    with suppress(FileNotFoundError):
        descriptor = os.open(new, os.O_RDONLY)
        try:
            lock_temporary(descriptor)
            if os.path.samestat(os.fstat(descriptor), new.stat()):
                return descriptor
        except OSError as error:
            if not isinstance(error, BlockingIOError | FileNotFoundError):
                return descriptor
        os.close(descriptor)
    return None


def temporary_name(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{os.urandom(4).hex()}.{kind}")


def put_in_place(new: Path, path: Path) -> None:
    """Rename a folder into its place. Where the system cannot swap the two, the old one is renamed away first."""
    while not swap(new, path):
        with suppress(FileNotFoundError):
            os.replace(path, temporary_name(path, "old"))
        try:
            os.replace(new, path)
            return
        except OSError as error:
            if error.errno not in TAKEN:
                raise  # otherwise: meanwhile another process put its own there, or the old one back


def swap(new: Path, path: Path) -> bool:
    """Let two folders change names in one step; False where there are not two, or the system or the file system has no such step."""
    import ctypes  # here: most commands replace nothing, and `bridle --help` is to come at once

    try:
        rename = ctypes.CDLL(None)["renameat2"]
    except (AttributeError, TypeError):
        return False
    return bool(rename(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(path), RENAME_EXCHANGE) == 0)


def tidy(folder: Path, name: str | None = None) -> None:
    """Put right what processes that were killed while they saved left in a folder, of one name or of all: an old folder goes back where
    nothing has taken its place, the rest is removed. What a living process is writing stays; what may not be written to stays as it is."""
    for old in left_over(folder, "old", name):
        with suppress(OSError):
            if not put_back(old):
                remove_folder(old)
    for new in left_over(folder, "new", name):
        with suppress(OSError):
            descriptor = os.open(new, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                lock_temporary(descriptor)
                remove_temporary(new)
            finally:
                os.close(descriptor)


def left_over(folder: Path, kind: str, name: str | None) -> list[Path]:
    """Temporary files and folders of a kind, of one name or of all, the last written first."""
    found = []
    names = os.listdir(folder) if folder.is_dir() and os.access(folder, os.R_OK) else []
    for path in map(folder.joinpath, names):
        match = LEFT.fullmatch(path.name)
        if match and match["kind"] == kind and name in (None, match["name"]):
            with suppress(FileNotFoundError):
                status = path.lstat()
                if kind == "new" or stat.S_ISDIR(status.st_mode):  # a file or a link is never renamed away
                    found.append((status.st_mtime_ns, path))
    return [path for _, path in sorted(found, reverse=True)]


def put_back(old: Path) -> bool:
    """Give an old folder its name again; False where another has it."""
    try:
        os.replace(old, final_place(old))
    except OSError as error:
        if error.errno not in TAKEN:
            raise
        return False
    return True


def final_place(path: Path) -> Path:
    """Where the content of a temporary file or folder belongs; any other path as it is."""
    match = LEFT.fullmatch(path.name)
    return path if match is None else path.with_name(match["name"])


def lock_temporary(descriptor: int) -> None:
    """Lock a temporary file or folder until it is closed. OSError where a living process holds it, or where there are no locks."""
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_folder(folder: Path) -> None:
    """Remove a folder as a whole: whatever is left of it at a kill is rubbish by its name."""
    rubbish = temporary_name(final_place(folder), "new")
    os.replace(folder, rubbish)
    remove_temporary(rubbish)


def remove_temporary(path: Path) -> None:
    """Remove a temporary file or folder, which may be gone."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def read_whole(read: Callable[[Path, *Rest], Found]) -> Callable[[Path, *Rest], Found]:
    """Of a function that reads the folder that is its first argument: it reads again where the folder was replaced meanwhile, so never half
    of the old one and half of the new. An old folder that a kill left without its name is put back, or read where it is."""

    @wraps(read)
    def read_one(folder: Path, *rest: *Rest) -> Found:
        while True:
            here = standing(folder)
            before = folder_identity(here)
            try:
                found = read(here, *rest)
            except Exception:
                if folder_identity(here) == before:
                    raise
            else:
                if folder_identity(here) == before:
                    return found

    return read_one


def standing(folder: Path) -> Path:
    """Where the folder of that name is: there, put back if need be; or under a temporary name, where nothing may be written."""
    for old in [] if folder.exists() else left_over(folder.parent, "old", folder.name)[:1]:
        try:
            put_back(old)
        except OSError:
            return old if old.exists() else folder
    return folder


def folder_identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another that takes its name; None where there is none."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns


def flush(path: Path) -> None:
    """fsync a file, or a folder so that a rename in it is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
