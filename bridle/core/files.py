"""Files that are whole or absent: written beside their place, flushed to disk, then renamed into it."""

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bridle.core.errors import BridleError, DataError


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn a failure of the disk into one sentence; what was saved before stays as it was."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BridleError(f"no space left while saving {path}; free some and run the same command again") from error
        raise BridleError(f"could not save {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole: a reader sees the old text or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    with saving(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """A number that is not finite is written as null: JSON has no word for it."""
    write_text(path, json.dumps(finite_or_none(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite_or_none(value: Any) -> Any:
    """The same with None for every number that is not finite, however deep it stands."""
    if isinstance(value, Mapping):
        return {key: finite_or_none(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that takes its place only when the block ends well; an older one is replaced as a whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    with saving(path):
        try:
            for left_over in path.parent.glob(f".{path.name}.*.new"):  # of a process that was killed while saving
                shutil.rmtree(left_over, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            for new in [*temporary.rglob("*"), temporary]:
                flush(new)
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
            flush(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if old.exists() and not path.exists():
                os.replace(old, path)
            shutil.rmtree(old, ignore_errors=True)


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
