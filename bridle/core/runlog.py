"""Projects and runs on disk: where things lie, what was measured, how far along, and stopping without losing anything.

project/bridle.toml · store.sqlite · models/NAME/ · runs/ppo-0001/
    recipe.toml      as it ran            parents.json    hashes of what it came from, threads
    metrics.jsonl    a line a step        checkpoints/    what resuming needs
    sitting.json     seconds at work, by part       result.json     written last: a run with it is finished
"""

from __future__ import annotations

import fcntl
import json
import math
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from bridle.core.errors import BridleError, Interrupted, ProjectError, TrainingStopped
from bridle.core.files import read_json, saving, write_json, write_text
from bridle.core.health import Health
from bridle.core.recipe import Recipe, load_recipe, starter, to_toml
from bridle.core.timeline import Node, Parts, added, recording, timed
from bridle.core.timeline import stage as marked_stage

RECIPE_FILE = "bridle.toml"
MARGIN = "  "


@dataclass(frozen=True)
class Project:
    """A folder with `bridle.toml`; everything that bridle writes lies in it."""

    folder: Path
    recipe: Recipe

    @classmethod
    def find(cls, start: Path) -> Project:
        """The nearest folder upward from `start` that holds a recipe."""
        if not start.is_dir():
            raise ProjectError(f"there is no folder {start}; name a project's folder")
        for folder in [start.resolve(), *start.resolve().parents]:
            if (folder / RECIPE_FILE).is_file():
                return cls(folder, load_recipe(folder / RECIPE_FILE))
        raise ProjectError(
            f"no {RECIPE_FILE} in {start} or above it; "
            "make a project with `bridle init DIR` or name one with --project DIR"
        )

    @classmethod
    def create(cls, folder: Path, recipe: Recipe) -> Project:
        """Write the recipe; a folder that is a project already, or holds other things, is left alone."""
        if (folder / RECIPE_FILE).exists():
            raise ProjectError(f"{folder} is a project already; run its commands there, or choose another folder")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ProjectError(f"{folder} exists and is not empty; choose a new folder for the project")
        write_text(folder / RECIPE_FILE, starter(recipe))
        return cls(folder, recipe)

    @property
    def store(self) -> Path:
        return self.folder / "store.sqlite"

    def model(self, name: str) -> Path:
        return self.folder / "models" / name

    def runs(self, stage: str) -> list[Path]:
        return sorted((self.folder / "runs").glob(f"{stage}-[0-9][0-9][0-9][0-9]"))

    def finished_folder(self, stage: str) -> Path | None:
        """The last finished run of a stage."""
        return next((f for f in reversed(self.runs(stage)) if (f / "result.json").is_file()), None)

    def finished(self, stage: str, key: str | None = None) -> dict[str, Any] | None:
        """Result of the last finished run of a stage; None where it has another key than the one that is asked for."""
        folder = self.finished_folder(stage)
        if folder is None or (key is not None and read_json(folder / "parents.json")["key"] != key):
            return None
        found: dict[str, Any] = read_json(folder / "result.json")
        return found


# A logged line's step, the number of steps, its figures; what it returns is not looked at.
OnLog = Callable[[int, int, Mapping[str, float | int | str | None]], object]


@dataclass
class Run:
    """One run of one stage. Used as a context: Ctrl-C inside it asks for a stop at the next safe point."""

    stage: str
    folder: Path
    key: str
    threads: int | None
    resumed: bool
    progress: Progress
    earlier_seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)
    stop_asked: bool = False
    last_save: int = 0
    health: Health = field(default_factory=Health)
    cannot_learn: str | None = None
    on_log: OnLog | None = None  # of whoever calls from Python
    failure: Exception | None = None  # what it raised
    kept: bool = True  # False: a folder that goes when the run ends, in which nothing need be saved
    on_step: Callable[[int, int], object] | None = None  # told of the end of every step: how many are done, of how many
    earlier_parts: Parts = field(default_factory=dict)
    node: Node | None = None  # where the parts of this sitting add up

    @classmethod
    def begin(
        cls,
        project: Project,
        stage: str,
        key: str,
        parents: Mapping[str, Any],
        progress: Progress,
        recipe: Recipe | None = None,
    ) -> Run:
        """A new folder, or the last one where it was begun with the same key and not finished."""
        health = Health((recipe or project.recipe).guard)
        folders = project.runs(stage)
        if folders and not (folders[-1] / "result.json").exists() and (folders[-1] / "parents.json").exists():
            last = folders[-1]
            noted = read_json(last / "parents.json")
            if noted["key"] == key:
                return cls(stage, last, key, noted.get("threads"), True, progress, sitting_seconds(last), health=health)
            if (last / "checkpoints").exists():
                raise ProjectError(
                    f"{last} is unfinished and was begun with another recipe or other parents; "
                    f"restore {last / 'recipe.toml'} as {project.folder / RECIPE_FILE} to finish it, "
                    f"or remove {last} to begin anew"
                )
            shutil.rmtree(last)  # it ended before anything was kept
            folders = folders[:-1]
        number = 1 + max((int(f.name.rsplit("-", 1)[1]) for f in folders), default=0)
        folder = project.folder / "runs" / f"{stage}-{number:04d}"
        with saving(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "recipe.toml", to_toml(recipe or project.recipe))
        write_json(folder / "parents.json", {"stage": stage, "key": key, **parents})
        return cls(stage, folder, key, None, False, progress, health=health)

    def __enter__(self) -> Run:
        self._lock = open(self.folder / "lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise ProjectError(f"another process is at work in {self.folder}; wait for it, or stop it") from error
        self.earlier_parts = sitting(self.folder).get("parts", {})
        if (kept := recording()) is not None:
            kept.runs.append(self.folder)
        self._mark = marked_stage(self.stage)
        self.node = self._mark.__enter__()
        self._handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._asked)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._mark.__exit__(kind, error, trace)
        if error is not None:
            with suppress(BridleError):  # the error that is on its way tells more
                self.note_sitting()
        self._lock.close()
        self.progress.clear()
        if isinstance(error, TrainingStopped) and self.last_save:
            self.progress.say(f"the state after step {self.last_save} is kept in {self.checkpoints}")

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.stop_asked:
            raise KeyboardInterrupt
        self.stop_asked = True
        self.progress.say("stopping at the next safe point (once more to stop at once) …")

    @property
    def keep(self) -> int:
        """Newest checkpoints that stay."""
        return self.health.limits.keep_checkpoints

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def seconds(self) -> float:
        """Seconds at work in all sittings."""
        return self.earlier_seconds + time.monotonic() - self.started

    def record_device(self, threads: int, device: str) -> None:
        """A resumed run must keep its thread count: sums are cut up by it."""
        self.threads = threads
        noted = read_json(self.folder / "parents.json")
        write_json(self.folder / "parents.json", {**noted, "threads": threads, "device": device})

    def rewind(self, step: int) -> None:
        """Drop metrics of steps that will be done again."""
        self.last_save = step
        path = self.folder / "metrics.jsonl"
        if path.exists():
            kept = [line for line in path.read_text("utf-8").splitlines() if complete_before(line, step)]
            write_text(path, "".join(f"{line}\n" for line in kept))

    @timed("log")
    def log(self, step: int, total: int, figures: Mapping[str, float | int | str]) -> None:
        """Append a line to metrics.jsonl (non-finite numbers as null), look after the run's health, move the progress line,
        call `on_log`."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}
        line = json.dumps({"step": step, **clean, "seconds": round(self.seconds, 3)})
        with saving(self.folder / "metrics.jsonl"), open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")
        warnings, self.cannot_learn = self.health.look(figures)
        for sentence in warnings:
            self.progress.say(sentence)
        self.progress.update(step + 1, total, clean)
        try:
            if self.on_log is not None:
                self.on_log(step, total, clean)
        except Exception as error:
            self.failure = error  # the step is saved first

    def due(self, done: int, every: int, total: int) -> bool:
        """Whether to save after `done` steps, called at the end of each: when the time has come, at the end, when a stop was
        asked for or is needed."""
        if self.on_step is not None:
            self.on_step(done, total)
        if not self.kept:
            self.stop_if_needed(done, total)
            return False
        stopping = self.stop_asked or self.failure is not None or self.cannot_learn is not None
        return stopping or done - self.last_save >= every or done == total

    def saved(self, done: int, total: int) -> None:
        """Tell that the state after `done` steps is on disk; stops here when the user asked for it, or nothing can be learnt."""
        self.last_save = done
        self.note_sitting()
        self.stop_if_needed(done, total)

    @timed("save")
    def note_sitting(self) -> None:
        """Keep the seconds at work, in all and by part (see core/timeline.py)."""
        if self.kept:
            write_json(self.folder / "sitting.json", {"seconds": round(self.seconds, 3), "parts": self.parts()})

    def parts(self) -> Parts:
        """Seconds and calls of each part, of all sittings."""
        return added(self.earlier_parts, {} if self.node is None else self.node.parts())

    def stop_if_needed(self, done: int, total: int) -> None:
        if self.failure is not None:
            raise self.failure
        if self.cannot_learn is not None and done < total:
            raise TrainingStopped(
                f"{self.stage} stopped after step {done} of {total}: {self.cannot_learn} (guard.dead_steps = 0 goes on all the same)"
            )
        if done < total:
            self.stop_if_asked(f"{self.stage} stopped after step {done} of {total}")

    @contextmanager
    def keeping(self, done: int, save: Callable[[], None]) -> Iterator[None]:
        """Save the state after `done` steps before an error inside comes through (a reward of the user's, say): what was
        learnt until then is not lost. Nothing inside may change that state."""
        try:
            yield
        except Exception:
            if done > self.last_save and self.kept:
                save()
                self.last_save = done
            raise

    def stop_if_asked(self, words: str) -> None:
        if self.stop_asked:
            saved = f"everything is saved in {self.folder}, run the same command again to go on"
            raise Interrupted(f"{words}; {saved if self.kept else 'nothing is kept, for it was given no folder'}")

    def whole(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """A run's figures with what was warned of and the seconds."""
        said = self.health.state["said"]
        return {**result, **({"warnings": dict(said)} if said else {}), "seconds": round(self.seconds, 2)}

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        whole = self.whole(result)
        self.note_sitting()
        write_json(self.folder / "result.json", whole)
        if self.stop_asked:
            raise Interrupted(f"{self.stage} is finished and saved in {self.folder}; nothing after it was begun")
        return whole


def sitting(folder: Path) -> dict[str, Any]:
    """What a run noted of its time: `seconds`, and `parts` by name; nothing before its first save."""
    path = folder / "sitting.json"
    return dict(read_json(path)) if path.exists() else {}


def sitting_seconds(folder: Path) -> float:
    """Seconds at work in the sittings before: up to the last step that was logged, or noted, whichever is later."""
    noted = float(sitting(folder).get("seconds", 0.0))
    return max([noted, *(float(line.get("seconds", 0.0)) for line in read_metrics(folder)[-1:])])


def complete_before(line: str, step: int) -> bool:
    try:
        return int(json.loads(line)["step"]) < step
    except (json.JSONDecodeError, KeyError, ValueError):
        return False  # a line cut off by a kill


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if complete_before(line, 2**62)]


class Progress:
    """One line on standard error that is written over at a terminal, and a line now and then elsewhere, or never (`every` is
    infinite): then nothing is written but what is said."""

    def __init__(
        self, write: Callable[[str], Any] | None = None, live: bool | None = None, every: float = 15.0
    ) -> None:
        self.write = write or sys.stderr.write
        self.live = sys.stderr.isatty() if live is None else live
        self.every = every
        self.title = ""
        self.width = 0
        self.later = 0.0  # seconds that the stages after this one are expected to take
        self.began = self.last = time.monotonic()
        self.first_done: tuple[int, float] | None = None

    def begin(self, title: str, later: float = 0.0) -> None:
        self.clear()
        self.title, self.later = title, later
        self.began = self.last = time.monotonic()
        self.first_done = None
        self.write(f"{title}\n")

    def update(self, done: int, total: int, figures: Mapping[str, Any] | None = None) -> None:
        now = time.monotonic()
        if self.first_done is None:
            self.first_done = (done, now)  # what a first step costs more than others is left out of the rate
        if now - self.last < (0.2 if self.live else self.every) and (done < total or self.every == math.inf):
            return
        self.last = now
        known = [f"{k} {v:.3g}" for k, v in (figures or {}).items() if isinstance(v, float)]
        text = f"{MARGIN}{done}/{total}  {self.left(done, total, now)}  {'  '.join(known[:5])}"
        if self.live:
            self.write("\r" + text[:118].ljust(self.width))
            self.width = min(118, len(text))
        else:
            self.write(text + "\n")

    def left(self, done: int, total: int, now: float) -> str:
        since, at = self.first_done or (done, now)
        if done <= since:
            return "…"
        seconds = (now - at) / (done - since) * (total - done)
        whole = f", {clock(seconds + self.later)} to the end" if self.later else ""
        return f"{clock(seconds)} left{whole}"

    def say(self, text: str) -> None:
        self.clear()
        self.write(f"{MARGIN}{text}\n")

    def clear(self) -> None:
        if self.live and self.width:
            self.write("\r" + " " * self.width + "\r")
        self.width = 0


def clock(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


def count_through(items: int, progress: Progress) -> Callable[[int], None]:
    """A callback that adds up and moves the progress line."""
    done = 0

    def add(more: int) -> None:
        nonlocal done
        done += more
        progress.update(done, items)

    return add


def chunked(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
