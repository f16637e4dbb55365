"""A sweep at work: for each seed one project a setting, and before them one for what settings share. What is finished is not run again.

OUT/store.sqlite                       the data that all seeds begin with, as it was when the sweep began (imported data alone)
OUT/seed-0/up-to-reward/               a project: what all settings share, done once
OUT/seed-0/ppo.kl_coef=0.05/           a copy of it with a setting of its own, and the stages that read it
OUT/sweep.json                         the table
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, get_type_hints

from bridle.core.errors import NoUsableRows, ProjectError, TrainingStopped, UsageError
from bridle.core.files import whole_folder, write_json, write_text
from bridle.feedback.store.store import Store
from bridle.feedback.upkeep.backup import copy_of
from bridle.project.kept import read_result
from bridle.project.lock import held
from bridle.project.progress import Progress
from bridle.project.project import RECIPE_FILE, Project
from bridle.recipe.base import PathText
from bridle.recipe.documents import starter
from bridle.recipe.recipe import Recipe, hint, sections
from bridle.stages.workspace import Work
from bridle.sweep.chain import (
    EVALUATE,
    SweepPart,
    brought_models,
    chain_to,
    default_metric,
    read_by,
    require_read,
    run_stage,
    sweep_parts,
)
from bridle.sweep.grid import Setting, swept_method
from bridle.sweep.table import table_of

COPIED = ("models", "references", "runs", "cache")  # of a project, besides its store
STORE_FILE = "store.sqlite"


@dataclass(frozen=True)
class Sweep:
    """What is asked for. `source`: the project whose data is used, and whose recipe it is where no other was named; None on the playground
    where there is none. A metric is named as in docs/metrics.md, with a dot into what is nested."""

    recipe: Recipe
    settings: Sequence[Setting]
    seeds: Sequence[int]
    method: str
    metric: str
    out: Path
    source: Project | None = None

    @cached_property
    def recipes(self) -> list[Recipe]:
        return [self.recipe.with_settings(setting, "sweep") for setting in self.settings]

    @cached_property
    def chain(self) -> tuple[str, ...]:
        found = chain_to(self.recipes, self.method, self.metric)
        return tuple(name for name in found if name != "sft" or not self.answers_already)

    @property
    def answers_already(self) -> bool:
        """Whether the user's project has a model with a chat template of its own as its SFT, and that is to stay so."""
        source = self.source if self.recipe.model.path and self.method != "sft" else None
        return source is not None and source.shares_base(source.model("sft"))

    @property
    def teaches(self) -> bool:
        """Whether SFT is trained though the user's model may answer already: it is what is swept, or the user did so."""
        return self.method == "sft" or (self.source is not None and self.source.finished_folder("sft") is not None)

    @cached_property
    def reads(self) -> dict[str, set[str]]:
        return {name: read_by(self.recipes, name) for name in self.chain}

    @cached_property
    def parts(self) -> list[SweepPart]:
        return sweep_parts(self.reads, self.chain, self.settings)

    def folder(self, seed: int, name: str) -> Path:
        return self.out / f"seed-{seed}" / name

    def recipe_of(self, seed: int, part: SweepPart) -> Recipe:
        """Of the first setting of a part: the others differ in what no stage of it reads."""
        return self.recipes[part.settings[0]].with_settings({"seed": seed})


def plan_sweep(
    recipe: Recipe, settings: Sequence[Setting], method: str | None, metric: str | None, seeds: int, out: Path,
    source: Project | None,
) -> Sweep:  # fmt: skip
    """The sweep, once everything about it is checked that can be before a stage has run."""
    recipe = recipe.with_settings({"scale.store": ""})  # each seed has a copy of the data for itself
    recipes = [recipe.with_settings(setting, "sweep") for setting in settings]
    method = method or swept_method(settings)
    metric = metric or default_metric(recipes, method)
    if recipe.data.source == "store" and source is None:
        raise ProjectError(
            "this recipe is of imported data, and no project is here whose data could be used; run it in a project, name one with "
            "--project DIR, or set data.source = 'playground'"
        )
    there = source is None or isinstance(source.store, str) or source.store.exists()
    if recipe.data.source == "store" and source is not None and not there:
        raise NoUsableRows(f"{source.store} is not there yet; `bridle import FILE` brings what can be learnt from")
    first = recipe.seed
    sweep = Sweep(recipe, settings, range(first, first + seeds), method, metric, out.resolve(), source)
    require_read(sweep.reads, settings)
    changed = {key for setting in settings for key in setting}
    scored = next((part for part in sweep.parts if "reward" in part.stages), None)
    if metric == "proxy" and scored is not None and len(scored.settings) < len(settings):
        raise UsageError(
            f"proxy is the score by the project's reward model, which {' or '.join(sorted(changed))} makes another for each setting, so "
            "their scores cannot be compared; name another --metric"
        )
    return sweep


def run_sweep(sweep: Sweep, progress: Progress, wait: bool = False) -> dict[str, Any]:
    """Do what is missing; the table, which OUT/sweep.json keeps. A run that was stopped because it could learn nothing costs its setting
    that seed, and is named."""
    sweep.out.mkdir(parents=True, exist_ok=True)
    with held(sweep.out / ".sweep.lock", sweep.out, progress.say if wait else None):
        keep_data(sweep)
        failed = do_parts(sweep, progress, wait)
        rows = [
            [
                None if (seed, number) in failed else results_of(sweep, seed, number).get(sweep.metric)
                for seed in sweep.seeds
            ]
            for number in range(len(sweep.settings))
        ]
        table = table_of(sweep.settings, sweep.seeds, rows, sweep.metric)
        left_out = [{"seed": s, "setting": dict(sweep.settings[n]), "why": why} for (s, n), why in failed.items()]
        found = {"method": sweep.method, **table, "failed": left_out, "out": str(sweep.out)}
        write_json(sweep.out / "sweep.json", found)
        return found


def do_parts(sweep: Sweep, progress: Progress, wait: bool) -> dict[tuple[int, int], str]:
    """Every part for every seed, one after another; why a run could learn nothing, by seed and the setting's number."""
    left, threads, failed = Remaining(sweep), None, dict[tuple[int, int], str]()
    for seed in sweep.seeds:
        for part in sweep.parts:
            if (seed, part.settings[0]) in failed:
                continue
            work = Work(begin_part(sweep, seed, part), progress, threads, wait)
            try:
                if any((seed, part.name, name) in left.waiting for name in part.stages):
                    progress.say(f"{part.name}, seed {seed}")
                    threads = work.device.threads  # one number for all, however busy the machine is later
                for name in part.stages:
                    progress.later = left.after(seed, part, name)
                    left.note(seed, part, name, run_stage(work, name, sweep.teaches))
            except TrainingStopped as error:
                progress.say(f"{part.name}, seed {seed}, is left out: {error}")
                failed |= {(seed, number): str(error) for number in part.settings}
            finally:
                progress.later = 0.0
                work.close()
            if part.last and (seed, part.settings[0]) not in failed:
                require_metric(sweep, results_of(sweep, seed, part.settings[0]))
    return failed


# --------------------------------------------------------------------------------------------------- projects, copied


def keep_data(sweep: Sweep) -> None:
    """Keep the imported data as it is now, for the seeds that begin later."""
    place = sweep.out / STORE_FILE
    if sweep.recipe.data.source != "store" or sweep.source is None or place.exists():
        return
    sweep.source.require_store()
    new = place.with_name(f".{place.name}.new")
    new.unlink(missing_ok=True)
    with Store.open(sweep.source.store) as store:
        copy_of(store, new)
    os.replace(new, place)


def begin_part(sweep: Sweep, seed: int, part: SweepPart) -> Project:
    """The project of a part, as it was left or begun: a copy of what comes before it. ProjectError where another recipe's is there."""
    folder, recipe = sweep.folder(seed, part.name), sweep.recipe_of(seed, part)
    if not (folder / RECIPE_FILE).exists():
        with whole_folder(folder) as new:
            write_text(new / RECIPE_FILE, starter(recipe))
            fill_part(sweep, new, sweep.folder(seed, part.origin) if part.origin else None)
    project = Project.find(folder)
    own = {"track": recipe.track.model_dump(mode="json"), "guard.other_arithmetic": recipe.guard.other_arithmetic}
    if project.recipe.with_settings(own) != recipe:
        raise ProjectError(
            f"{folder} is of a sweep with another recipe; give --out another folder, or remove {sweep.out} to begin anew"
        )
    return replace(project, recipe=recipe)


def fill_part(sweep: Sweep, new: Path, origin: Path | None) -> None:
    """What a new project begins with: all of another part's, or the imported data and what the user's project has that no stage makes."""
    store = sweep.out / STORE_FILE if origin is None else origin / STORE_FILE
    if store.exists():
        with Store.open(store) as found:
            copy_of(found, new / STORE_FILE)
    if origin is not None:
        for name in COPIED:
            if (origin / name).is_dir():
                link_folder(origin / name, new / name)
        return
    if (source := sweep.source) is None:
        return
    same_base = with_whole_paths(source.recipe, source.folder).model.path == sweep.recipe.model.path
    for name in brought_models(sweep.recipes, sweep.chain):
        place = source.folder / "models" / name
        if place.is_dir() and (name != "base" or same_base):
            link_folder(place, new / "models" / name)


def link_folder(place: Path, new: Path) -> None:
    """A copy that takes no room where the file system has links: no file of a finished run or a model is written into, they are replaced.
    Checkpoints and locks are no part of what is finished."""
    shutil.copytree(
        place, new, symlinks=True, copy_function=link_or_copy, ignore=shutil.ignore_patterns("checkpoints", "lock", ".*")
    )  # fmt: skip


def link_or_copy(place: str, new: str) -> None:
    try:
        os.link(place, new)
    except OSError:
        shutil.copy2(place, new)


def with_whole_paths(recipe: Recipe, folder: Path) -> Recipe:
    """Files and folders that a recipe names from its own folder, by their whole paths, for projects that lie elsewhere."""
    whole = recipe.model_dump(mode="json")
    for section, model in sections().items():
        hints = get_type_hints(model, include_extras=True)
        for key in [key for key in model.model_fields if hints[key] == PathText]:
            whole[section][key] = whole_path(whole[section][key], folder)
    for source in whole["reward_source"]:
        source["path"] = whole_path(source["path"], folder)
    return recipe.with_settings(whole, "sweep")


def whole_path(text: str, folder: Path) -> str:
    """As it is where nothing lies there: a name of something else, or missed by who reads it."""
    place = folder / Path(text).expanduser()
    return str(place.resolve()) if text and place.exists() else text


# --------------------------------------------------------------------------------------------------- what came of it


def results_of(sweep: Sweep, seed: int, number: int) -> dict[str, Any]:
    """The metrics of a setting at a seed: of its evaluation, and what its own run alone knows."""
    part = next(part for part in sweep.parts if part.last and number in part.settings)
    project, found = Project(sweep.folder(seed, part.name), sweep.recipe), dict[str, Any]()
    for stage in (sweep.method, f"{EVALUATE}{sweep.method}"):
        if stage in sweep.chain and (folder := project.finished_folder(stage)) is not None:
            found |= flat(read_result(folder))
    return found


def flat(result: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Numbers, and what was not measured, by name, with a dot into what is nested."""
    found = dict[str, Any]()
    for name, value in result.items():
        if isinstance(value, dict):
            found |= flat(value, f"{above}{name}.")
        elif value is None or isinstance(value, int | float):
            found[f"{above}{name}"] = value
    return found


def require_metric(sweep: Sweep, found: Mapping[str, Any]) -> None:
    if sweep.metric not in found:
        raise UsageError(
            f"{sweep.chain[-1]} measured no {sweep.metric!r}; {hint(sweep.metric, list(found))} (the same command with another --metric "
            "takes what is finished)"
        )


class Remaining:
    """The stages that are left to do, by seed, part and name, and how long they are expected to take: as long as others of the name took,
    in this session or before."""

    def __init__(self, sweep: Sweep) -> None:
        self.seconds = dict[str, list[float]]()
        every = [(seed, part, name) for seed in sweep.seeds for part in sweep.parts for name in part.stages]
        self.all = len(every)
        self.waiting = {(seed, part.name, name) for seed, part, name in every}
        for seed, part, name in every:
            if run := Project(sweep.folder(seed, part.name), sweep.recipe).finished_folder(name):
                self.note(seed, part, name, read_result(run))

    def note(self, seed: int, part: SweepPart, name: str, result: Mapping[str, Any]) -> None:
        """It is done."""
        self.waiting.discard((seed, part.name, name))
        self.seconds.setdefault(name, []).append(float(result.get("seconds", 0.0)))

    def after(self, seed: int, part: SweepPart, name: str) -> float:
        """Seconds that all but this one are expected to take; one of a name that is new as long as others on the mean."""
        usual = {name: fmean(found) for name, found in self.seconds.items()}
        others = self.waiting - {(seed, part.name, name)}
        return sum(usual.get(stage, fmean(usual.values())) for _, _, stage in others) if usual else 0.0


def outline(sweep: Sweep) -> dict[str, Any]:
    """What there is to do, for --dry-run: `runs`, `left` of them, and how many there would be if nothing were shared (`alone`)."""
    left = Remaining(sweep)
    return {
        "method": sweep.method,
        "metric": sweep.metric,
        "settings": [dict(setting) for setting in sweep.settings],
        "seeds": list(sweep.seeds),
        "runs": left.all,
        "left": len(left.waiting),
        "alone": len(sweep.settings) * len(sweep.seeds) * len(sweep.chain),
        "parts": [
            {"name": part.name, "origin": part.origin, "stages": list(part.stages), "settings": len(part.settings)}
            for part in sweep.parts
        ],
        "out": str(sweep.out),
    }


def outline_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    """For the terminal."""
    settings, seeds = len(plan["settings"]), plan["seeds"]
    yield (
        f"{settings} setting{'s' * (settings > 1)} × {len(seeds)} seed{'s' * (len(seeds) > 1)} ({seeds[0]} to {seeds[-1]}), compared by "
        f"{plan['metric']}: {plan['runs']} runs, {plan['left']} of them to do, in {plan['out']}; {plan['alone']} if nothing were shared"
    )
    for part in plan["parts"]:
        shared = f", shared by {part['settings']} settings" if part["settings"] > 1 else ""
        copied = f", on a copy of {part['origin']}" if part["origin"] else ""
        yield f"  {part['name']}: {', '.join(part['stages'])}{shared}{copied}"
