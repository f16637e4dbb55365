"""A second process of the demo, which saves time and no more: `python -m bridle.demo.second FOLDER THREADS SETTINGS [--profile]`.

It reads names of stages from its standard input, a line each, does them one after another, and ends at the word "end".
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bridle.core.errors import ProjectError
from bridle.core.processes import python_environment, python_module
from bridle.core.timeline import record, recording, timed
from bridle.demo.session import keep_device, read_demo
from bridle.demo.stages import STAGES
from bridle.project.profile import leave
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.stages.workspace import Work

END = "end"
LEFT = ".profile-second.json"  # what the second process recorded, for the first one to take


def share_threads(work: Work) -> None:
    """From here on two stages at a time, each on half of the threads."""
    half = work.device.threads // 2
    work.device = replace(work.device, threads=half, why="and a second process")
    torch.set_num_threads(half)
    work.progress.say(f"two stages at a time from here, {half} thread{'s' * (half > 1)} each")


class SecondProcess:
    """A second process of the demo, given stages by name; the first one starts it, with the `settings` of its own session. What it leaves
    undone, for whatever reason, is left to the first process, which meets the reason itself. Leaving the context stops it."""

    def __init__(self, folder: Path, settings: Mapping[str, Any] | None = None) -> None:
        self.folder, self.settings = folder, settings or {}
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> SecondProcess:
        return self

    def give(self, name: str, threads: int) -> None:
        if self.process is None:
            self.process = subprocess.Popen(
                second_process_command(self.folder, threads, self.settings, recording() is not None),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=python_environment(),
                start_new_session=True,  # Ctrl-C reaches the first process, which passes it on once
            )  # fmt: skip
        self._write(name)

    def _write(self, word: str) -> None:
        assert self.process is not None and self.process.stdin is not None
        with suppress(BrokenPipeError):  # it ended; what it was given is done by the first process
            self.process.stdin.write(f"{word}\n")
            self.process.stdin.flush()

    def wait(self, progress: Progress) -> None:
        """Until it has done all that it was given; shows what it shows."""
        if self.process is None:
            return
        with timed("wait"):
            self._write(END)
            if self.process.poll() is None:
                progress.begin("Waiting for the second process; what it did, and is still doing")
                assert self.process.stdout is not None
                for line in self.process.stdout:
                    progress.say(line.strip())
            self.process.wait()

    def __exit__(self, *error: object) -> None:
        """Stop it as Ctrl-C would: what is unfinished is saved."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.communicate()  # waits, and closes both pipes, broken or not


def second_process_command(
    folder: Path, threads: int, settings: Mapping[str, Any] | None = None, profile: bool = False
) -> list[str]:
    words = [str(folder), str(threads), json.dumps(settings or {})]
    return [*python_module("bridle.demo.second"), *words, *(["--profile"] if profile else [])]


def run_second_process(folder: Path, threads: int, settings: Mapping[str, Any], profile: bool = False) -> None:
    """Do the stages that are read, one after another. It dies with the process that started it."""
    recorded = record("bridle demo, second process") if profile else None
    given: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            given.put(line.strip())
            if line.strip() == END:
                return
        os._exit(1)  # the pipe broke: the first process is gone

    threading.Thread(target=listen, daemon=True).start()
    progress = Progress(write=lambda text: print(text, end="", flush=True), live=False)
    found = Project.find(folder)
    work = Work(replace(found, recipe=found.recipe.with_settings(settings)), progress, threads=threads)
    by_name = {stage.name: stage for stage in STAGES}
    try:
        keep_device(work, {**read_demo(folder), "threads": threads})
        while (name := given.get()) != END:
            with suppress(ProjectError):  # the first process is at the last stage; what else there is, it meets itself
                by_name[name].run(work)
    finally:
        work.close()
        if recorded is not None:
            leave(recorded, folder / LEFT)


if __name__ == "__main__":
    run_second_process(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]), "--profile" in sys.argv[4:])
