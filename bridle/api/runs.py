"""A training called from Python as a run: kept in a folder, or in memory alone."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bridle.api.models import Model, Result, quiet
from bridle.compute.device import Device, as_begun, choose_as
from bridle.compute.randomness import generator
from bridle.compute.trackers import Tracker, tensorboard_tracker, wandb_tracker
from bridle.core.errors import ProjectError
from bridle.core.files import write_json, write_text
from bridle.core.records import content_hash
from bridle.guard.health import Health
from bridle.models.lora.adapter import branch
from bridle.models.lora.policies import learner
from bridle.models.policy import Policy
from bridle.project.kept import KEYED, read_parents, session_seconds
from bridle.project.lock import held
from bridle.project.progress import Progress
from bridle.project.run import OnLog, Run
from bridle.recipe.base import TrainerSection, name_of_function
from bridle.recipe.documents import to_toml
from bridle.recipe.recipe import Recipe
from bridle.stages.methods import METHODS


def run_key(
    stage: str, recipe: Recipe, names: Sequence[str], model: Model, data: object, reference: Model | None = None,
    judge: object = None,
) -> str:  # fmt: skip
    """Hash of what decides a run; `judge` is what can be compared of a reward, of which a function cannot."""
    held_to = None if reference is None or reference is model else reference.policy.stamp
    chosen = model.policy.template.settings.chosen(model.policy.template.source)
    written = [data, chosen] if chosen else data
    return content_hash([stage, recipe.hash_of(*names), model.policy.stamp, held_to, judge, written])


def reference_of(model: Model, reference: Model | None, before: Policy) -> Policy:
    return before if reference is None or reference is model else reference.policy


def progress_of(on_log: OnLog | None) -> Progress:
    """A line that moves, unless `on_log` shows how far it is."""
    return Progress() if on_log is None else quiet()


def announce(method: str) -> None:
    """Say what begins, before the data is read."""
    quiet().begin(METHODS[method].title)


@contextmanager
def training(
    model: Model, stage: str, key: str, recipe: Recipe, folder: str | Path | None, on_log: OnLog | None
) -> Iterator[tuple[Run, Policy]]:
    """A run, and the policy as it is now, to be held to and to go back to: a run that does not end well changes nothing. What learns is a
    copy, or an adapter on the same weights: these may be another model's too."""
    policy, device = model.policy, model.device
    before = replace(policy)
    if recipe.lora.on and stage != "reward":
        new = learner(policy, recipe.lora, generator(recipe.seed, "lora"))
        policy.module, policy.adapter = new.module, new.adapter
    elif stage != "reward":
        policy.module = branch(policy.module)
    policy.origin = content_hash([before.stamp, key])  # other weights under a name of their own
    threads, well = torch.get_num_threads(), False
    try:
        with tempfile.TemporaryDirectory() as passing:
            place = Path(passing) / stage if folder is None else Path(folder)
            require_run_or_nothing(place)
            with held(place / ".lock", place):
                run = open_run(place, stage, key, recipe, device)
                model.device = device_of(run, device)
                run.progress, run.on_log, run.kept = progress_of(on_log), on_log, folder is not None
                with run:
                    yield run, before
        well = True
    except BaseException:
        policy.module, policy.adapter = before.module, before.adapter
        policy.origin, policy.step = before.origin, before.step
        raise
    finally:
        if isinstance(on_log, Tracker):
            on_log.close(well)
        if model.device is not device:
            choose_as(device.arithmetic, threads)
            model.device = device
        torch.set_num_threads(threads)


def require_run_or_nothing(folder: Path) -> None:
    """ProjectError where something else lies there; a file that begins with a dot is what is left of a run that was killed as it began."""
    begun = (folder / "parents.json").exists()
    if not begun and folder.exists() and (not folder.is_dir() or any(f.name[0] != "." for f in folder.iterdir())):
        raise ProjectError(f"{folder} exists and holds no run; name a new folder for this one")


def open_run(folder: Path, stage: str, key: str, recipe: Recipe, device: Device) -> Run:
    """A new run in an empty folder, or the one that was begun there with the same key."""
    begun = (folder / "parents.json").exists()
    if not begun:
        begins = {"stage": stage, "key": key, "threads": device.threads, "arithmetic": device.arithmetic}
        write_json(folder / "parents.json", begins)
    noted = read_parents(folder, KEYED)
    if noted["key"] != key:
        raise ProjectError(
            f"{folder} holds a run of {noted['stage']} that was begun with other settings, other data or another model; "
            "name another folder, or remove it to begin anew"
        )
    own = words_of_own(recipe)
    write_text(
        folder / "recipe.toml",
        (f"# The caller's own, in place of what stands here: {own}\n" if own else "") + to_toml(recipe),
    )
    return Run(
        stage, folder, key, noted.get("threads"), begun, quiet(), session_seconds(folder),
        limits=recipe.guard, model=recipe.model, watch=Health(recipe.guard), noted=noted,
    )  # fmt: skip


def words_of_own(recipe: Recipe) -> str:
    """Optimisers and schedules that the call brings, by name; empty where it brings none."""
    return ", ".join(
        f"{name}.{kind} = {name_of_function(one)}"
        for name, section in recipe
        if isinstance(section, TrainerSection)
        for kind, one in section.brought.items()
    )


def device_of(run: Run, device: Device) -> Device:
    """The device on which a run that is resumed computes as it began; a new one stays on the model's."""
    way = "call it where that can be had, with a model loaded in that precision, or name another folder to begin anew"
    found, sentences, _ = as_begun(run.noted, device, run.folder, way)
    for sentence in sentences:
        run.progress.say(sentence)
    torch.set_num_threads(found.threads)
    return found


def finish(run: Run, metrics: Mapping[str, Any]) -> Result:
    return run.finish(metrics) if run.kept else run.with_warnings(metrics)


def tensorboard(folder: str | Path) -> OnLog:
    """An `on_log` that writes every number for TensorBoard, under its name in metrics.jsonl. Needs the extra `track`.

    A folder holds one training: `on_log=bridle.tensorboard("tb/ppo")`, then `tensorboard --logdir tb`.
    """
    return tensorboard_tracker(Path(folder), quiet().say)


def wandb(
    *, project: str = "", name: str = "", config: Mapping[str, Any] | None = None, folder: str | Path | None = None
) -> OnLog:
    """An `on_log` that sends every number to Weights & Biases, under its name in metrics.jsonl. Needs the extra `wandb`.

    `config` is shown beside them there, and is all that is sent besides numbers. Give it the call's own `folder`, and a resumed call goes
    on in the same run of W&B and sends no step twice; without one each call is a run of its own. The environment means what it always
    does to wandb: WANDB_MODE=offline keeps all of it on this machine, in `folder` where there is one.
    """
    named = {key: value for key, value in (("project", project), ("name", name)) if value}
    return wandb_tracker(None if folder is None else Path(folder), named, config or {}, quiet().say)
