"""One run of one stage: its lock, its log, when to save and when to stop.

runs/ppo-0001/
    recipe.toml      as it ran            parents.json    hashes of what it came from, threads, arithmetic
    metrics.jsonl    a line a step        checkpoints/    what resuming needs
    session.json     seconds at work, by part       result.json     written last: a run with it is finished
    lock             while a process is at work here
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

from bridle.core.errors import BridleError, Interrupted, ProjectError, TrainingStopped, WaitingForLabels
from bridle.core.files import finite_or_none, remove_folder, saving, write_json, write_text
from bridle.core.records import Completion, FinishReason, Prompt
from bridle.core.timeline import Node, Parts, Workers, added, outermost_seconds, recording, timed, workers_added
from bridle.core.timeline import stage as marked_stage
from bridle.project.kept import KEYED, SESSION_FILE, read_parents, read_session, session_seconds
from bridle.project.lock import held
from bridle.project.metrics import complete_before, logged_lines
from bridle.project.progress import Progress
from bridle.project.project import RECIPE_FILE, Project
from bridle.recipe.data import ModelSection
from bridle.recipe.documents import to_toml
from bridle.recipe.recipe import Recipe
from bridle.recipe.services import ScaleSection
from bridle.recipe.watching import GuardSection

# A logged line's step, the number of steps, its metrics; what it returns is not looked at.
OnLog = Callable[[int, int, Mapping[str, float | int | str | None]], object]


STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class StepAnswers:
    """A step's answers as a policy gave them before it learnt from them: `scores` are what the reward source says of each, `kl` in nats an
    answer, `entropy` in nats a token where it is known, `disagreement` that of an ensemble. `step` counts from 0, of `total`."""

    step: int
    total: int
    prompts: Sequence[Prompt]
    completions: Sequence[Completion]
    scores: Sequence[float]
    kl: float
    entropy: float | None = None
    disagreement: float | None = None

    @property
    def cut_off(self) -> float:
        """Share of answers."""
        return sum(one.finish_reason is FinishReason.LENGTH for one in self.completions) / len(self.completions)


@dataclass(frozen=True)
class Signal:
    """What a step had to learn from, handed by the trainer to whatever watches the run; by this a run may be stopped.

    `comparable`: some of what was compared (answers, groups, pairs) differed in reward. `grad_norm`: the gradient norm, None where no
    optimiser step was taken. `frozen`: the policy is held still on purpose, as while a critic warms up. `kl`: how far the answers'
    policy is from the reference, nats an answer; `gold`: their mean true quality; each None where nobody knows it. `answers`: those of
    the step, where a trainer learns from its own.
    """

    comparable: bool = True
    grad_norm: float | None = None
    frozen: bool = False
    kl: float | None = None
    gold: float | None = None
    answers: StepAnswers | None = None


@dataclass(frozen=True)
class Until:
    """What may end a run before its last step as if that were its last: the model is kept, and the result says why (`ended`).

    `reached` looks at the signals of all steps so far and gives the reason, or None. `rule` is the same in words, and part of what
    makes two runs the same.
    """

    rule: str
    reached: Callable[[Sequence[Signal]], str | None]


class Watch(Protocol):
    """What looks at every logged step. Its `state` lies in the checkpoints and steers a resumed run as it would have.

    After a look: `ended`, why the run ends here as if that were its last step; `waits`, what it has to wait for; `kl_factor`, by which
    trainers multiply their KL weight.
    """

    state: dict[str, dict[str, Any]]

    @property
    def ended(self) -> str | None: ...

    @property
    def waits(self) -> str | None: ...

    @property
    def kl_factor(self) -> float: ...

    def resume(self) -> list[str]:
        """The state was restored: find out what was waited for; what is to be said."""

    def look(self, metrics: Mapping[str, Any], signal: Signal) -> tuple[list[str], str | None]:
        """(warnings that are new, why the run must stop or None)."""

    def warnings(self) -> dict[str, str]:
        """Every warning of the run so far, by name."""


@dataclass
class Run:
    """One run of one stage. Used as a context: Ctrl-C, SIGTERM or SIGHUP inside it asks for a stop at the next safe point.

    `noted`: of a run that is resumed, what its parents.json said.
    """

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
    limits: GuardSection = field(default_factory=GuardSection)
    model: ModelSection = field(default_factory=ModelSection)
    scale: ScaleSection = field(default_factory=ScaleSection)
    watch: Watch | None = None
    cannot_learn: str | None = None
    until: Until | None = None
    ended: str | None = None  # why `until` ended it
    on_log: OnLog | None = None  # of whoever calls from Python
    failure: Exception | None = None  # what it raised
    kept: bool = True  # False: a folder that goes when the run ends, in which nothing need be saved
    on_step: Callable[[int, int], object] | None = None  # called after every step: how many are done, of how many
    # Measures for the log after so many steps, of how many, and steers nothing; no metrics where it is not due.
    evaluate: Callable[[int, int], Mapping[str, float]] | None = None
    earlier_parts: Parts = field(default_factory=dict)
    node: Node | None = None  # where the parts of this session add up
    earlier_workers: Workers = field(default_factory=dict)
    met: Workers = field(default_factory=dict)  # what all who share this session had done when they last met
    noted: Mapping[str, Any] = field(default_factory=dict)
    leader: Path | None = None  # of a run that ranks share the folder of the first one's, whose checkpoints all read

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
        """A new folder, or the last one where it was begun with the same key and not finished. Whoever calls it holds the stage's lock."""
        whole = recipe or project.recipe
        sections: dict[str, Any] = {"limits": whole.guard, "model": whole.model, "scale": whole.scale}
        folders = project.runs(stage)
        if folders and not (folders[-1] / "result.json").exists() and (folders[-1] / "parents.json").exists():
            last = folders[-1]
            noted = read_parents(last, KEYED)
            if noted["key"] == key:
                seconds, threads = session_seconds(last), noted.get("threads")
                return cls(stage, last, key, threads, True, progress, seconds, noted=noted, **sections)
            if (last / "checkpoints").exists():
                raise ProjectError(
                    f"{last} is unfinished and was begun with another recipe or other parents; "
                    f"restore {last / 'recipe.toml'} as {project.folder / RECIPE_FILE} to finish it, "
                    f"or remove {last} to begin anew"
                )
            with held(last / "lock", last):  # a process of an earlier version knows no other lock
                remove_folder(last)  # it ended before anything was kept
            folders = folders[:-1]
        if folders and holds_no_run(folders[-1]):
            folders = folders[:-1]
        number = 1 + max((int(f.name.rsplit("-", 1)[1]) for f in folders), default=0)
        folder = project.folder / "runs" / f"{stage}-{number:04d}"
        with saving(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "recipe.toml", to_toml(whole))
        write_json(folder / "parents.json", {"stage": stage, "key": key, **parents})
        return cls(stage, folder, key, None, False, progress, **sections)

    @classmethod
    def follow(cls, folder: Path, progress: Progress, recipe: Recipe, found: Mapping[str, Any]) -> Run:
        """What another rank begun or resumed, as it `found` it, in a folder of this one's own that nobody keeps."""
        write_json(folder / "parents.json", found["noted"])
        return cls(
            folder=folder, progress=progress, limits=recipe.guard, model=recipe.model, scale=recipe.scale, **found
        )

    def __enter__(self) -> Run:
        self._lock = held(self.folder / "lock", self.folder)
        self._lock.__enter__()
        earlier = read_session(self.folder)
        self.earlier_parts, self.earlier_workers = earlier.get("parts", {}), earlier.get("workers", {})
        if (kept := recording()) is not None:
            kept.runs.append(self.folder)
        self._mark = marked_stage(self.stage)
        self.node = self._mark.__enter__()
        self._handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup wants it ignored
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
                self.note_session()
        self._lock.__exit__(None, None, None)
        self.progress.clear()
        if isinstance(error, TrainingStopped) and self.last_save:
            self.progress.say(f"the state after step {self.last_save} is kept in {self.checkpoints}")
        if error is None:
            self.stop_after()  # where it was asked for since it was finished

    def _asked(self, number: int, frame: FrameType | None) -> None:
        """A signal came. It may come anywhere, so nothing is done here but to note it; what is to be said is left to the progress."""
        if not self.stop_asked:
            self.stop_asked = True
            self.progress.notice = "stopping at the next safe point (once more to stop at once) …"
        elif number != signal.SIGHUP:  # a terminal that closes sends one of these, and the shell in it another
            raise KeyboardInterrupt

    @property
    def keep(self) -> int:
        """Newest checkpoints that stay."""
        return self.limits.keep_checkpoints

    @property
    def checkpoints(self) -> Path:
        return (self.leader or self.folder) / "checkpoints"

    @property
    def seconds(self) -> float:
        """Seconds at work in all sessions."""
        return self.earlier_seconds + time.monotonic() - self.started

    def record_device(
        self, threads: int, device: str, arithmetic: Mapping[str, str] | None = None, other: bool = False
    ) -> None:
        """A resumed run must keep its thread count, for sums are cut up by it, and its arithmetic (see `device.as_begun`); where it resumes
        with another, the device of before stays noted."""
        self.threads = threads
        earlier = [*self.noted.get("earlier_devices", []), self.noted.get("device", "unknown")] if other else None
        found = {"arithmetic": dict(arithmetic) if arithmetic else None, "earlier_devices": earlier}
        self.note(threads=threads, device=device, **{name: value for name, value in found.items() if value})

    def note(self, **found: Any) -> None:
        """Put more into the run's parents.json."""
        write_json(self.folder / "parents.json", {**read_parents(self.folder), **found})

    def rewind(self, step: int) -> None:
        """Drop metrics of steps that will be done again."""
        self.last_save = step
        path = self.folder / "metrics.jsonl"
        if path.exists():
            kept = [line for line in logged_lines(self.folder) if complete_before(line, step)]
            write_text(path, "".join(f"{line}\n" for line in kept))

    @timed("log")
    def log(
        self, step: int, total: int, metrics: Mapping[str, float | int | str], signal: Signal | None = None
    ) -> None:
        """Append a line to metrics.jsonl (non-finite numbers as null), ask the watch, move the progress line, call `on_log`."""
        clean = finite_or_none(metrics)
        line = json.dumps({"step": step, **clean, "seconds": round(self.seconds, 3)})
        with saving(self.folder / "metrics.jsonl"), open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self.watch is not None:
            warnings, self.cannot_learn = self.watch.look(metrics, signal or Signal())
            for sentence in warnings:
                self.progress.say(sentence)
            self.ended = self.ended or self.watch.ended
        self.progress.update(step + 1, total, clean)
        try:
            if self.on_log is not None:
                self.on_log(step, total, clean)
        except Exception as error:
            self.failure = error  # the step is saved first

    def due(self, done: int, every: int, total: int) -> bool:
        """Whether the state after `done` steps is to be saved: the time has come, it is the end, or a stop was asked for or is
        needed."""
        reasons = (self.failure, self.cannot_learn, self.ended, None if self.watch is None else self.watch.waits)
        stopping = self.stop_asked or any(why is not None for why in reasons)
        return self.kept and (stopping or done - self.last_save >= every or done == total)

    def saved(self, done: int) -> None:
        """Note that the state after `done` steps is on disk."""
        self.last_save = done
        self.note_session()

    def end_step(self, done: int, total: int) -> None:
        """Report the end of a step to whoever listens (the profile)."""
        if self.on_step is not None:
            self.on_step(done, total)

    @timed("save")
    def note_session(self) -> None:
        """Keep the seconds at work, in all and by part (see core/timeline.py), and where several shared it those of each."""
        if self.kept:
            workers = workers_added(self.earlier_workers, self.met if len(self.met) > 1 else {})
            shared = {"workers": workers} if workers else {}
            write_json(self.folder / SESSION_FILE, {"seconds": round(self.seconds, 3), "parts": self.parts(), **shared})

    def parts(self) -> Parts:
        """Seconds and calls of each part, of all sessions."""
        return added(self.earlier_parts, {} if self.node is None else self.node.parts())

    def workers(self, own: str) -> Workers:
        """What this process, by its `own` name, has done in this session, and those that handed in what they did: what one of these does
        not account for it waited."""
        if self.node is None:
            return {}
        seconds = round(time.monotonic() - self.started, 3)
        found: Workers = {own: {"seconds": seconds, "parts": self.node.parts()}}
        for name, parts in self.node.workers.items():
            idle = {"wait": {"seconds": max(0.0, seconds - outermost_seconds(parts)), "calls": 0}}
            found[name] = {"seconds": seconds, "parts": added(parts, idle)}
        return found

    def meet(self, everyone: Sequence[Workers]) -> None:
        """All who share this run tell how far they are."""
        self.met = {name: worker for workers in everyone for name, worker in workers.items()}

    def stop_if_needed(self, done: int, total: int) -> None:
        """Stop after `done` steps, all saved, where `on_log` failed, nothing can be learnt, or the user asked for it."""
        if self.failure is not None:
            raise self.failure
        if self.watch is not None and self.watch.waits is not None:
            raise WaitingForLabels(
                f"{self.stage} waits after step {done} of {total} {self.watch.waits}, and then the same command resumes it"
            )
        if done == total or self.ended is not None:
            return
        if self.cannot_learn is not None:
            raise TrainingStopped(
                f"{self.stage} stopped after step {done} of {total}: {self.cannot_learn} (guard.dead_steps = 0 would continue all the same)"
            )
        self.stop_if_asked(f"{self.stage} stopped after step {done} of {total}")

    @contextmanager
    def saving_on_error(self, done: int, save: Callable[[], None]) -> Iterator[None]:
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
            saved = f"everything is saved in {self.folder}, run the same command again to resume"
            raise Interrupted(f"{words}; {saved if self.kept else 'nothing is kept, for it was given no folder'}")

    def with_warnings(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """A run's result with its warnings, why it ended where that was before its time, and the seconds."""
        warnings = {} if self.watch is None else self.watch.warnings()
        noted = {name: value for name, value in (("warnings", warnings), ("ended", self.ended)) if value}
        return {**result, **noted, "seconds": round(self.seconds, 2)}

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        whole = self.with_warnings(result)
        self.note_session()
        write_json(self.folder / "result.json", whole)
        self.stop_after()
        return whole

    def stop_after(self) -> None:
        if self.stop_asked and self.kept:
            raise Interrupted(f"{self.stage} is finished and saved in {self.folder}; nothing after it was begun")


def holds_no_run(folder: Path) -> bool:
    """Whether a run was killed there before it had a key: another begins in its folder."""
    return folder.is_dir() and all(file.name == "recipe.toml" or file.name[0] == "." for file in folder.iterdir())
