"""Replies on the disk: each a line, written whole as soon as it came, so that what was paid for once is there after a kill.

    {"key": "…", "text": "A", "probabilities": {"A": 0.8, "B": 0.2}, "finish_reason": "stop", "tokens": [412, 1]}

The key is the hash of all that was sent and of where, so that another model, prompt, rubric, order or setting is another call. What was
asked is not kept, nor is the key to the endpoint. The file is its owner's alone (0600). A line that a kill cut, or that is damaged,
counts for nothing.
"""

import json
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from bridle.core.errors import DataError
from bridle.core.files import saving
from bridle.core.forms import form_fault
from bridle.core.text import json_text
from bridle.rewards.judge.rulings import Reply

LINE = {
    "key": str, "text": str, "probabilities": {...: float}, "finish_reason": str, "tokens": [int],
}  # fmt: skip


class ReplyCache:
    """Opened as a context. `damaged` lines were left alone."""

    def __init__(self, path: Path) -> None:
        self.path, self.damaged = path, 0
        self.known: dict[str, Reply] = {}
        self.lock = threading.Lock()

    def __enter__(self) -> "ReplyCache":
        with saving(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self.file = os.open(self.path, flags, 0o600)
            os.fchmod(self.file, 0o600)
        content = self.path.read_bytes()
        for line in content.splitlines():
            self.read_line(line)
        if content and not content.endswith(b"\n"):
            os.write(self.file, b"\n")  # a kill cut the last line
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with saving(self.path):
            os.fsync(self.file)
            os.close(self.file)

    def read_line(self, line: bytes) -> None:
        try:
            found: Any = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or form_fault(found, LINE) or len(found["tokens"]) != 2:
            self.damaged += bool(line.strip())
            return
        read, written = found["tokens"]
        self.known[found["key"]] = Reply(
            found["text"], "", found["probabilities"], found["finish_reason"], (read, written), paid=False
        )

    def keep(self, key: str, reply: Reply) -> None:
        """Write a reply that was paid for. It is in the system's hands when this returns, whatever becomes of this process."""
        kept = {
            "key": key, "text": reply.text, "probabilities": dict(reply.probabilities), "finish_reason": reply.finish_reason,
            "tokens": list(reply.tokens),
        }  # fmt: skip
        line = json_text(kept).encode("utf-8", "backslashreplace") + b"\n"
        with self.lock, saving(self.path):
            if os.write(self.file, line) != len(line):
                raise DataError(
                    f"could not write all of a reply to {self.path}; free some space and run the same command again"
                )
            self.known[key] = reply
