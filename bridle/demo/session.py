"""Seconds, threads and arithmetic of a demo that may be stopped and resumed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridle.compute.device import Device, as_begun
from bridle.core.errors import DataError
from bridle.core.files import read_record, write_json
from bridle.core.forms import SECONDS
from bridle.project.kept import ARITHMETIC, THREADS
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe
from bridle.stages.workspace import WAY_ON, Work

DEMO_FILE = "demo.json"
DEMO = {"seconds": SECONDS, "began?": SECONDS, "threads?": THREADS, "arithmetic?": ARITHMETIC}


def read_demo(folder: Path) -> dict[str, Any]:
    """What demo.json keeps."""
    try:
        return read_record(folder / DEMO_FILE, DEMO)
    except DataError as error:
        raise DataError(
            f"{error}; remove it, and this session's threads and arithmetic are kept from now on"
        ) from error


def passing_settings(recipe: Recipe) -> dict[str, Any]:
    """Those of a session, by dotted key: another session of the same demo may have others."""
    return {"guard.other_arithmetic": recipe.guard.other_arithmetic, "track": recipe.track.model_dump(mode="json")}


@dataclass
class DemoSession:
    """One session of a demo; threads, arithmetic (`device.as_begun`) and the seconds of all sessions are kept in demo.json.

    A session that was killed counts up to the last file that its runs wrote.
    """

    path: Path
    threads: int | None
    earlier: float
    finished: bool
    began: float
    device: str = ""
    noted: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def begin(cls, project: Project) -> DemoSession:
        path = project.folder / DEMO_FILE
        noted = read_demo(project.folder) if path.exists() else {}
        earlier = float(noted.get("seconds", 0.0))
        if killed := noted.get("began"):
            written = [file.stat().st_mtime for file in project.folder.glob("runs/*/*")]
            earlier += max(0.0, max(written, default=0.0) - killed)
        finished = (project.folder / "summary.json").exists()
        kept: dict[str, Any] = {name: noted[name] for name in ("threads", "arithmetic") if name in noted}
        return cls(path, noted.get("threads"), earlier, finished, time.time(), noted=kept)

    @property
    def seconds(self) -> float:
        """Of all sessions; a look at a finished demo adds nothing."""
        return self.earlier + (0.0 if self.finished else time.time() - self.began)

    def note(self, device: Device) -> None:
        self.threads, self.device = device.threads, str(device)
        if not (self.finished and "arithmetic" in self.noted):  # of a finished demo nothing is computed any more
            self.noted = {"threads": device.threads, "arithmetic": device.arithmetic}
        write_json(self.path, {**self.noted, "seconds": round(self.earlier, 1), "began": self.began})

    def end(self) -> None:
        if self.threads is not None:
            write_json(self.path, {**self.noted, "seconds": round(self.seconds, 1)})


def keep_device(work: Work, noted: Mapping[str, Any]) -> None:
    """Compute as the demo did when it began, in the first process and in the second; ProjectError where that cannot be had."""
    allowed = work.recipe.guard.other_arithmetic
    device, sentences, _ = as_begun(noted, work.device, work.project.folder, WAY_ON, allowed)
    for sentence in sentences:
        work.progress.say(sentence)
    work.compute_on(device)
