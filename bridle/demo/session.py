"""Seconds and threads of a demo that may be stopped and resumed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from bridle.compute.device import Device
from bridle.core.files import read_json, write_json
from bridle.project.project import Project


@dataclass
class DemoSession:
    """One session of a demo; threads and the seconds of all sessions are kept in demo.json.

    A session that was killed counts up to the last file that its runs wrote.
    """

    path: Path
    threads: int | None
    earlier: float
    finished: bool
    began: float
    device: str = ""

    @classmethod
    def begin(cls, project: Project) -> DemoSession:
        path = project.folder / "demo.json"
        noted = read_json(path) if path.exists() else {}
        earlier = float(noted.get("seconds", 0.0))
        if killed := noted.get("began"):
            written = [file.stat().st_mtime for file in project.folder.glob("runs/*/*")]
            earlier += max(0.0, max(written, default=0.0) - killed)
        finished = (project.folder / "summary.json").exists()
        return cls(path, noted.get("threads"), earlier, finished, time.time())

    @property
    def seconds(self) -> float:
        """Of all sessions; a look at a finished demo adds nothing."""
        return self.earlier + (0.0 if self.finished else time.time() - self.began)

    def note(self, device: Device) -> None:
        self.threads, self.device = device.threads, str(device)
        write_json(self.path, {"threads": device.threads, "seconds": round(self.earlier, 1), "began": self.began})

    def end(self) -> None:
        if self.threads is not None:
            write_json(self.path, {"threads": self.threads, "seconds": round(self.seconds, 1)})
