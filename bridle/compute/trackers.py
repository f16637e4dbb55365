"""What gets a run's metrics besides metrics.jsonl: TensorBoard and Weights & Biases, each an `on_log`.

They get numbers alone: no prompt, no answer, no other text of a run. What they raise is said once and ends no run.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bridle.core.errors import UsageError
from bridle.core.files import read_record, write_json
from bridle.project.run import Run
from bridle.recipe.base import TrainerSection
from bridle.recipe.recipe import Recipe, sections

Say = Callable[[str], object]
Write = Callable[[int, Mapping[str, float]], object]  # a step's number, and its metrics
End = Callable[[bool], object]  # whether the run ended well
TENSORBOARD_FOLDER = "tensorboard"  # in a run's folder
WANDB_FILE = "wandb.json"  # there: the id of its run at W&B and, offline, how many steps that has
# W&B would send the terminal's lines, the command's words and the code around it too, in which prompts and answers may stand.
NUMBERS_ALONE = {"console": "off", "disable_code": True, "disable_git": True, "x_disable_meta": True}
FINISH_SECONDS = 60.0  # that the end of a run waits for W&B; what it has not sent by then stays on the disk


class Tracker:
    """An `on_log` that hands a step's numbers on, opened at the first of them with the step's number. Once it has raised something, that
    is said, and it gets nothing more."""

    def __init__(self, name: str, begin: Callable[[int], tuple[Write, End]], say: Say) -> None:
        self.name, self.begin, self.say = name, begin, say
        self.opened: tuple[Write, End] | None = None
        self.failed = False

    def __call__(self, step: int, total: int, metrics: Mapping[str, float | int | str | None]) -> None:
        if self.failed:
            return
        with self.going_on():
            if self.opened is None:
                self.opened = self.begin(step)
            self.opened[0](step, {name: value for name, value in metrics.items() if isinstance(value, int | float)})

    def close(self, well: bool = True) -> None:
        """The run has ended, `well` or not; another may be tracked after it."""
        opened, self.opened = self.opened, None
        if opened is not None:
            with self.going_on():
                opened[1](well)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self.failed:
                reason = str(error).strip() or type(error).__name__
                self.say(f"{self.name} failed, and gets nothing more of this run, which goes on: {reason}")
            self.failed = True


def tensorboard_tracker(folder: Path, say: Say) -> Tracker:
    """UsageError where TensorBoard is not installed. Of a resumed run, steps that are done again take the place of what was written."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("TensorBoard is not installed; install it by `pip install 'bridle[track]'`") from error

    def begin(first: int) -> tuple[Write, End]:
        writer = SummaryWriter(str(folder), purge_step=first)

        def write(step: int, numbers: Mapping[str, float]) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        return write, lambda well: writer.close()

    return Tracker("TensorBoard", begin, say)


def wandb_tracker(folder: Path | None, named: Mapping[str, str], config: Mapping[str, Any], say: Say) -> Tracker:
    """UsageError where wandb is not installed. `named`: project and name of the run there. With a `folder`, where the run's id is kept,
    a later session goes on in the same run, and sends no step that this has."""
    try:
        import wandb
    except ImportError as error:
        raise UsageError("wandb is not installed; install it by `pip install 'bridle[wandb]'`") from error

    def begin(first: int) -> tuple[Write, End]:
        place = None if folder is None else folder / WANDB_FILE
        known = {} if place is None or not place.exists() else read_record(place, id=str, steps=int)
        noted = {"id": known.get("id") or secrets.token_hex(8), "steps": known.get("steps", 0)}
        if folder is not None and place is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(place, noted)
        settings = wandb.Settings(**NUMBERS_ALONE, silent=True, finish_timeout=FINISH_SECONDS)
        run = wandb.init(
            **named, id=noted["id"], resume="allow", config=dict(config), dir=folder, reinit="create_new", settings=settings
        )  # fmt: skip
        offline = bool(run.offline)
        there = noted["steps"] if offline else run.step  # offline nobody can be asked what it has
        say(f"W&B: offline; `wandb sync {Path(run.dir).parent}` sends it" if offline else f"W&B: {run.url}")

        def write(step: int, numbers: Mapping[str, float]) -> None:
            if step < there:
                return
            run.log(dict(numbers), step=step)
            if offline and place is not None:
                write_json(place, {**noted, "steps": step + 1})

        return write, lambda well: run.finish(exit_code=0 if well else 1)

    return Tracker("W&B", begin, say)


@contextmanager
def tracked(run: Run, recipe: Recipe, project: str) -> Iterator[None]:
    """Hand what a run of the command line logs to what [track] names, while the block runs. `project`: what it is called at W&B where the
    recipe and the environment say nothing."""
    section, trackers = recipe.track, list[Tracker]()
    for name in dict.fromkeys(section.to):
        if name == "tensorboard":
            trackers.append(tensorboard_tracker(run.folder / TENSORBOARD_FOLDER, run.progress.say))
        else:
            named = {
                "project": section.project or os.environ.get("WANDB_PROJECT") or project,
                "name": run.folder.name,
            }
            trackers.append(wandb_tracker(run.folder, named, public_settings(run, recipe), run.progress.say))
    well = False

    def log(step: int, total: int, metrics: Mapping[str, float | int | str | None]) -> None:
        for tracker in trackers:
            tracker(step, total, metrics)

    run.on_log = log if trackers else None
    try:
        yield
        well = True
    finally:
        for tracker in trackers:
            tracker.close(well)


def public_settings(run: Run, recipe: Recipe) -> dict[str, Any]:
    """What W&B shows of a run's settings: those of the model's shape, of data, sampling and trainers. No section with questions or texts
    of the user's, and no path, is among them."""
    whole = recipe.model_dump(mode="json")
    trained = [name for name, section in sections().items() if issubclass(section, TrainerSection)]
    private = ("path", "file", "template_kwargs")
    public = {
        name: {key: value for key, value in whole[name].items() if key not in private}
        for name in ("model", "data", "sampling", *trained)
    }
    return {"stage": run.stage, "seed": recipe.seed, **public}
