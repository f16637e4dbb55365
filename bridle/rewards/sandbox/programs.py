"""Programs that answers hold, run on inputs, their outputs compared here: the expected output never enters the process that runs them.

What it keeps out and what it does not stands at the top of `namespace.py`. Nothing is run unless `allow_execution` says so.
"""

import functools
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bridle.core.errors import BridleError

OUTPUT = 2**20  # bytes of output that are read
FENCED_PROGRAM = re.compile(r"^```(?:python|py)?[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)
NOT_SET_UP, TOO_LONG = 125, 124  # as namespace.py exits
LAUNCHER = Path(__file__).with_name("namespace.py")
GRACE = 60.0  # seconds beyond its limit after which the launcher itself is killed: it should have ended long before


@dataclass(frozen=True)
class ProgramLimits:
    """Of one run of one program: seconds by the clock, bytes of memory a process, processes, bytes of files."""

    seconds: float = 5.0
    memory: int = 512 * 2**20
    processes: int = 16
    files: int = 16 * 2**20


@dataclass(frozen=True)
class Ran:
    ended: Literal["done", "failed", "time", "output"]
    output: bytes = b""


def program_in(text: str) -> str | None:
    """The one fenced program of an answer, or all of it where nothing is fenced; None where there are several, for which is meant?"""
    found = FENCED_PROGRAM.findall(text)
    return text if not found and "```" not in text else found[0] if len(found) == 1 else None


def run_program(program: str, given: str, limits: ProgramLimits, *, apart: bool = True) -> Ran:
    """Run a Python program on what it reads from standard input. `apart`: in namespaces of its own; BridleError where none can be had."""
    executable = os.path.realpath(sys.executable)
    with (
        tempfile.TemporaryDirectory(prefix="bridle-") as folder,
        tempfile.TemporaryFile() as source,
        tempfile.TemporaryFile() as standard_input,
    ):
        for file, text in ((source, program), (standard_input, given)):
            file.write(text.encode("utf-8", "replace"))
            file.seek(0)
        job = {
            "folder": folder, "prefix": sys.base_prefix, "executable": executable, "program": source.fileno(), "apart": apart,
            "seconds": limits.seconds, "cpu": int(limits.seconds) + 1, "memory": limits.memory, "processes": limits.processes,
            "files": limits.files,
        }  # fmt: skip
        if not apart:
            job["processes"] = 10_000  # the user's own count too there
        process = subprocess.Popen(
            [executable, "-I", "-S", "-B", str(LAUNCHER), json.dumps(job)], stdin=standard_input, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={}, pass_fds=[source.fileno()], cwd="/", start_new_session=True,
        )  # fmt: skip
        try:
            output = read_output(process, limits.seconds)
            if output is None or len(output) > OUTPUT:
                process.send_signal(signal.SIGTERM)  # the launcher kills what it began, and waits for it
            _, fault = process.communicate(timeout=GRACE)
        except subprocess.TimeoutExpired:
            fault = b"the launcher did not end"
        finally:
            process.kill()
            process.communicate()
        if process.returncode == NOT_SET_UP:
            raise BridleError(
                f"a program could not be run apart from this machine ({fault.decode('utf-8', 'replace')[:200]}): it needs Linux 5.12 with "
                "user namespaces, or root's right to make others; `unsafe_execution = true` runs it without"
            )
    if output is not None and len(output) > OUTPUT:
        return Ran("output")
    if output is None or process.returncode == TOO_LONG:
        return Ran("time")
    return Ran("done" if process.returncode == 0 else "failed", output)


def read_output(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """Up to a byte more than may be written; None where nobody closed it in time."""
    assert process.stdout is not None
    found, until = b"", time.monotonic() + seconds + GRACE
    while len(found) <= OUTPUT:
        if not select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
            return None
        if not (part := os.read(process.stdout.fileno(), OUTPUT + 1 - len(found))):
            break
        found += part
    return found


@functools.cache
def namespaces_fault() -> str:
    """Why programs cannot be run apart from this machine; empty where they can."""
    try:
        ran = run_program("print('a')", "", ProgramLimits(seconds=30.0))
    except BridleError as error:
        return str(error)
    return "" if ran == Ran("done", b"a\n") else f"a program that prints a letter ended as {ran.ended!r}"
