"""C files as a library: compiled at their first use, kept in the user's cache, loaded where it is whole and nobody else can write it.

    ~/.cache/bridle/                          this user's, writable by nobody else, no link
        kernels-KEY-float32-SIZE-HASH.so      KEY: of what decides the code; SIZE and HASH: of the file's own bytes
        .kernels-….failed                     why the compiler failed: it is not asked again within the hour
        .kernels-….new                        on its way to its name

What keeps others out is the owner. The hash finds damage, such as a file cut short, which would end the process when it is
loaded; it keeps nobody out, for whoever may write there may name a file as he likes.
"""

import ctypes
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 30.0  # seconds that compiling may take; it takes two or three
REMEMBERED = 3600.0  # seconds for which a compiler that failed is not asked again
# Given names, a library and the libraries that it needs: loads it and looks the names up.
TRIAL = """
import ctypes, sys
try:
    for path in sys.argv[3:]:
        ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(sys.argv[2])
    for name in sys.argv[1].split():
        library[name]
except (OSError, AttributeError) as error:
    sys.exit(str(error))
"""


class Unavailable(Exception):
    """Why the compiled kernels cannot be had."""


class CompilerFailed(Unavailable):
    """It failed, took too long, or made what cannot be loaded: asked again at once, it would do the same."""


@dataclass(frozen=True)
class Code:
    """What a library is made of. `name` is for whoever looks into the cache; `machine` is what else decides the code; `functions` are
    those it must have, and `needs` the files of libraries that it finds functions in, which the process has loaded."""

    name: str
    sources: Sequence[Path]
    headers: Sequence[Path]
    flags: Sequence[str]
    machine: str
    functions: Sequence[str]
    needs: Sequence[str]

    def key(self, compiler: str) -> str:
        files = [file.read_bytes() for file in (*self.sources, *self.headers)]
        return hashlib.sha256(b"|".join([*files, repr((compiler, self.flags, self.machine)).encode()])).hexdigest()[:16]


def library_of(code: Code) -> Path:
    """The library in the user's cache: what was kept there where it is whole and ours, else compiled now, by what CC names, a command that
    may have options, else by the first compiler on the path. Raises Unavailable."""
    named = os.environ.get("CC", "").split()
    compiler = next((path for name in named[:1] or ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if compiler is None:
        raise Unavailable(f"CC names {named[0]}, which is not a program here" if named else "no C compiler")
    command = [compiler, *named[1:]]
    folder = cache_folder()
    try:
        stem = f"kernels-{code.key(' '.join(command))}-{code.name}"
        if (kept := kept_library(folder, stem)) is not None:
            return kept
        found = os.stat(compiler)
        note = folder / f".{stem}-{found.st_size:x}-{found.st_mtime_ns:x}.failed"  # forgotten with a new compiler
        forget(folder)
        if note.exists():
            why = note.read_text("utf-8", errors="replace")
            raise Unavailable(f"{why}; it was not asked again within the hour, remove {note} to ask it now")
        if not os.access(folder, os.W_OK):
            raise Unavailable(f"they are not yet in {folder}, where nothing can be written")
        try:
            return keep_library(compile_files(code, command), folder, stem, code)
        except CompilerFailed as error:
            with suppress(OSError):
                note.write_text(str(error), "utf-8", errors="replace")
            raise
    except OSError as error:
        raise Unavailable(f"no library can be made or kept in {folder}: {error.strerror or error}") from error


# ------------------------------------------------------------------------------------------------------ what is trusted


def cache_folder(name: str = "bridle") -> Path:
    """A folder in the user's cache, made where it is missing. Unavailable where there is none that only this user may write: what lies
    there is run."""
    named, mend = os.environ.get("XDG_CACHE_HOME", ""), "set XDG_CACHE_HOME to a folder of your own"
    try:
        root = Path(named) if os.path.isabs(named) else Path.home() / ".cache"  # one that is relative does not count
    except RuntimeError as error:
        raise Unavailable(f"no home folder is known to keep them in; {mend}") from error
    folder = root / name
    if not folder.is_absolute():
        raise Unavailable(f"{folder} is not an absolute path to keep them in; {mend}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise Unavailable(f"{folder} cannot be made: {error.strerror or error}; {mend}") from error
    if (why := "is a link" if stat.S_ISLNK(status.st_mode) else mistrust(status)) is not None:
        raise Unavailable(f"{folder} {why}, and what lies there would be run; {mend}")
    return folder


def mistrust(status: os.stat_result) -> str | None:
    """Why others may have written a file or a folder; None where they cannot."""
    if status.st_uid != os.geteuid():
        return "belongs to another user"
    return (
        "can be written by others (`chmod 700` would end that)"
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        else None
    )


def kept_library(folder: Path, stem: str) -> Path | None:
    """The library of this stem, where one is whole and ours; others of its name are removed."""
    for path in sorted(folder.glob(f"{stem}-*.so")):
        try:
            os.close(open_library(path))
            return path
        except OSError:
            with suppress(OSError):
                path.unlink()
    return None


def open_library(path: Path) -> int:
    """A descriptor of a library whose bytes are those of its name. OSError where they are not, or where others may have written it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if (why := mistrust(status)) is not None or not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} {why or 'is not a file'}")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read()
        if path.name != named_by_content(path.name.rsplit("-", 2)[0], data):
            raise OSError(f"{path} is not what was compiled: it is damaged")
        return descriptor
    except BaseException:
        os.close(descriptor)
        raise


def named_by_content(stem: str, data: bytes) -> str:
    return f"{stem}-{len(data)}-{hashlib.sha256(data).hexdigest()[:16]}.so"


def load_library(path: Path) -> ctypes.CDLL:
    """Load what was checked, whatever stands under its name by then. OSError where it does not load."""
    descriptor = open_library(path)  # stays open: the loader tells libraries apart by name, and its number is the name
    checked = Path(f"/proc/self/fd/{descriptor}")
    return ctypes.CDLL(str(checked if checked.exists() else path))


# ----------------------------------------------------------------------------------------------------------- compiling


def compile_files(code: Code, command: Sequence[str]) -> bytes:
    with tempfile.TemporaryDirectory() as made:
        folder, objects = Path(made), [f"{file.stem}.o" for file in code.sources]
        deadline = time.monotonic() + PATIENCE
        run_command([*command, *code.flags, "-c", *map(str, code.sources)], folder, deadline)
        run_command([*command, "-shared", *objects, "-lm", "-o", "kernels.so"], folder, deadline)
        if not (folder / "kernels.so").is_file():
            raise CompilerFailed(f"{Path(command[0]).name} made no library")
        return (folder / "kernels.so").read_bytes()


def keep_library(data: bytes, folder: Path, stem: str, code: Code) -> Path:
    """Write a library under its name once another process could load it: one that is cut short ends the process that tries."""
    kept = folder / named_by_content(stem, data)
    descriptor, temporary = tempfile.mkstemp(".new", f".{stem}-", folder)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        trial = [sys.executable, "-I", "-S", "-c", TRIAL, " ".join(code.functions), temporary, *code.needs]
        run_command(trial, folder, time.monotonic() + PATIENCE, "what was compiled does not load")
        os.replace(temporary, kept)  # by two at once: under one name the bytes are the same
        return kept
    finally:
        Path(temporary).unlink(missing_ok=True)


def run_command(line: Sequence[str], folder: Path, deadline: float, failure: str = "") -> None:
    """Run a command in a folder. CompilerFailed, with the line that says why, where it fails or goes on beyond the deadline."""
    failure = failure or f"{Path(line[0]).name} failed"
    with tempfile.TemporaryFile() as output:  # not a pipe, which a process left behind could keep open
        process = subprocess.Popen(
            line, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=output, start_new_session=True
        )
        try:
            status = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise CompilerFailed(f"{failure}: it was stopped after {PATIENCE:g} seconds") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it began
                process.wait()
        output.seek(0)
        lines = output.read(16_384).decode("utf-8", errors="replace").strip().splitlines()
        if status:  # what comes before the first error says where that stands, or warns
            first = next((line for line in lines if "error: " in line), lines[0] if lines else "")
            raise CompilerFailed(f"{failure}: {first[:300] or f'it ended with status {status}'}")


def forget(folder: Path) -> None:
    """Remove what is past its hour: failures, and what processes that were killed had not finished writing."""
    for left in folder.glob(".kernels-*"):
        with suppress(OSError):
            if abs(time.time() - left.lstat().st_mtime) > REMEMBERED:
                left.unlink()
