"""One process beside this one that checks regular expressions, schemas and symbolic equality, and is killed where it hangs.

A regular expression or a simplification can take for ever on an answer that was written for it. `signal.alarm` works in the main
thread alone and does not interrupt what runs in C; a process can be killed. The limit of time starts when the check starts: neither the
start of the process nor imports count. It is not a boundary against programs: nothing that an answer holds is run here.
"""

import json
import os
import select
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from bridle.core.errors import BridleError
from bridle.core.processes import python_environment, python_module

STARTING = 120.0  # seconds that a start with its imports may take on a machine that is busy


@dataclass
class Checker:
    """`killed` counts the checks that took more than `seconds`; they are not met."""

    seconds: float = 5.0
    killed: int = 0
    process: subprocess.Popen[bytes] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def met(self, kind: str, expected: Any, text: str) -> bool:
        """Whether the child says so in time."""
        task = json.dumps({"kind": kind, "expected": expected, "text": text}).encode() + b"\n"
        with self.lock:
            for again in (True, False):  # one that was ended from outside is started again, once
                process = self.started()
                assert process.stdin is not None
                try:
                    process.stdin.write(task)
                    process.stdin.flush()
                except BrokenPipeError:
                    self.stop()
                    continue
                answer = self.line(STARTING)
                if answer == b"began":
                    answer = self.line(self.seconds)
                    self.killed += answer is None
                if answer in (b"met", b"missed"):
                    return answer == b"met"
                self.stop()
                if answer is None or not again:
                    return False  # it took too long, or more memory than it may have
        return False

    def started(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            self.process = subprocess.Popen(
                python_module("bridle.rewards.sandbox.child"), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, env=python_environment(), start_new_session=True,
            )  # fmt: skip
        return self.process

    def line(self, seconds: float) -> bytes | None:
        """The next line; empty where the child is gone, None where it takes longer."""
        assert self.process is not None and self.process.stdout is not None
        place, until, found = self.process.stdout.fileno(), time.monotonic() + seconds, b""
        while not found.endswith(b"\n"):
            if not select.select([place], [], [], max(0.0, until - time.monotonic()))[0]:
                return None
            if not (sign := os.read(place, 1)):
                return b""
            found += sign
        return found.strip()

    def stop(self) -> None:
        """Kill the child and reap it."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def __del__(self) -> None:
        self.stop()


def require_package(name: str, what: str) -> None:
    """Raises BridleError where an extra's package is not installed."""
    from importlib.util import find_spec

    if find_spec(name) is None:
        raise BridleError(
            f"{what} needs the package {name.replace('_', '-')}, which is not installed; `pip install 'bridle[verify]'` brings it"
        )
