"""What the project's models came from, by what their runs noted, and whether the project still holds that.

A model is its content. The run that made `models/ppo` as it is now is the one whose result names that hash, be it the last of its stage
or not; a folder that no run made was put there by hand, and nothing is known of its parents. A parent that is gone warns of nothing; one
that was trained anew, or replaced, does.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridle.core.errors import DataError, ModelError
from bridle.core.files import whole_folder
from bridle.models.contents import loaded_files
from bridle.models.lora.peft_files import ADAPTER_FILES, ADAPTER_FOLDER
from bridle.project.kept import read_parents, read_result
from bridle.project.project import Project
from bridle.stages.registry import Registry

OWN_NAMES = re.compile(r"base|sft|reward(-member-\d+)?")  # parents whose key is the name of their folder
UNMEASURED = ("sample", "label", "judge")  # what they left in the store stays as good as it was


@dataclass(frozen=True)
class Made:
    """A model that a finished run left: the run's folder, the model's content hash, and what the run noted of its parents."""

    run: Path
    model: str
    noted: Mapping[str, Any]


@dataclass(frozen=True)
class Reference:
    """What a model's KL is measured against: its name and content hash, and a folder that holds it; None: no folder does any more."""

    name: str
    hash: str
    folder: Path | None


class Lineage:
    """The models of a project as they are now. Each is hashed once: make a new one after a model was written."""

    def __init__(self, project: Project) -> None:
        self.project, self.registry = project, Registry(project)
        results = sorted(project.folder.glob("runs/*/result.json"), key=lambda path: (path.stat().st_mtime_ns, path))
        self.made = [
            made for path in results if (made := made_by(path.parent)) is not None
        ]  # in the order of their end
        self.hashes: dict[Path, str | None] = {}

    def present(self, folder: Path) -> str | None:
        """Content hash of the model in a folder; None where there is none."""
        if folder not in self.hashes:
            self.hashes[folder] = None
            if os.path.isfile(folder / "config.json"):  # which is sure to say no where the words can be no path
                with suppress(ModelError):  # what names files that are not its own holds no model
                    self.hashes[folder] = self.registry.content(folder)
        return self.hashes[folder]

    def maker(self, content: str | None, name: str = "") -> Made | None:
        """The run that made this content: the last that left it as `name`, else the first of all, for later ones changed nothing."""
        found = [made for made in self.made if made.model == content]
        named = [made for made in found if model_name(made.noted["stage"]) == name]
        return named[-1] if named else found[0] if found else None

    def places(self, noted: Mapping[str, Any]) -> dict[str, Path]:
        """Where the models among a run's parents lie, by their keys there."""
        places = {key: f"models/{key}" for key in noted if OWN_NAMES.fullmatch(key)} | {"critic": "models/reward"}
        if "sft" in noted:  # a base beside it is a reward model's own, whose folder earlier versions did not note
            places.pop("base", None)
        evaluated = noted["stage"].removeprefix("evaluate-")
        if evaluated != noted["stage"]:  # what it is of; against SFT some are measured, and no more
            places.pop("sft", None)
            places = {"model": f"models/{evaluated}", **places}
        else:
            for key in ("start", "reference"):  # earlier versions did not note their names
                if (made := self.maker(noted.get(key))) is not None:
                    places[key] = f"models/{model_name(made.noted['stage'])}"
        for source in noted.get("reward_source", ()):
            if path := source.get("path"):
                places[source_key(source["name"], noted)] = path
        places |= noted.get("folders", {})
        return {key: self.project.folder / place for key, place in places.items() if key in noted}

    def parents(self, noted: Mapping[str, Any]) -> dict[Path, str]:
        """The folders of the models among a run's parents, and their content then."""
        return {place: noted[key] for key, place in self.places(noted).items()}

    def parents_of(self, folder: Path) -> dict[Path, str]:
        """The same of the run that made a model; of one that was trained further under its own name, of the runs before as well."""
        found: dict[Path, str] = {}
        content, seen = self.present(folder), set[str | None]()
        while content not in seen and (made := self.maker(content, folder.name)) is not None:
            seen.add(content)
            parents = self.parents(made.noted)
            content = parents.pop(folder, None)
            found = {**parents, **found}
        return found

    def changed(self, parents: Mapping[Path, str]) -> dict[Path, str]:
        """Those of these models in whose place the project holds another now."""
        return {place: then for place, then in parents.items() if self.present(place) not in (None, then)}

    def stale(self, models: Iterable[Path]) -> list[str]:
        """A sentence for each of these models, and of those that they descend from, one of whose parents was replaced; what such a one
        descends from besides is left out, for it must be made anew first."""
        found, seen, left = list[str](), set[Path](), list(models)
        while left:
            if (folder := left.pop(0)) in seen:
                continue
            seen.add(folder)
            parents = self.parents_of(folder)
            if not (changed := self.changed(parents)):
                left += parents
                continue
            name = self.name(folder)
            kept = [path for then in changed.values() if self.present(path := self.project.reference(then)) == then]
            where = f" ({', '.join(f'references/{path.name[:16]}…' for path in kept)})" if kept else ""
            found.append(
                f"{name} descends from {self.others(changed)} than the project holds now; train {name} again, or put back what it "
                f"came from{where}"
            )
        return found

    def outdated(self, runs: Iterable[Path]) -> list[str]:
        """A sentence for the runs among these, evaluations and the like, whose metrics are of other models than the project holds now;
        one for each that left a model in whose place there is another."""
        found, others = list[str](), dict[str, list[str]]()
        left = {made.run: made.model for made in self.made}
        for run in runs:
            noted = read_parents(run)
            own = self.project.model(model_name(noted["stage"]))
            if run in left:
                if self.present(own) not in (None, left[run]):
                    found.append(
                        f"models/{own.name} is another model than {run.name} left; that run's metrics are not its"
                    )
            elif noted["stage"].partition("-")[0] not in UNMEASURED:
                parents = {place: then for place, then in self.parents(noted).items() if place != own}
                if changed := self.changed(parents):
                    others.setdefault(self.others(changed), []).append(run.name)
        return found + [
            f"{', '.join(names)}: made with {what} than the project holds now; run the same again for metrics of what it holds"
            for what, names in others.items()
        ]

    def reference(self, name: str) -> Reference | None:
        """What a model of the project is measured against: what its run was held to or, where it was held to nothing, began from; SFT
        for a model of which no run tells; nothing for `base`, and where there is no SFT."""
        model, usual = self.project.model(name), self.project.model("sft")
        made = self.maker(self.present(model), name)
        noted = {} if made is None else made.noted
        key = next((key for key in ("reference", "start", "sft") if key in noted), None)
        if key is None:
            content = None if name == "base" else self.present(usual)
            return None if content is None else Reference("sft", content, usual)
        content, place = str(noted[key]), self.places(noted).get(key)
        held = [folder for folder in (self.project.reference(content), place) if folder is not None]
        there = next((folder for folder in held if self.present(folder) == content), None)
        return Reference(key if place is None else self.name(place), content, there)

    def others(self, folders: Iterable[Path]) -> str:
        return " and ".join(f"another {self.name(folder)}" for folder in folders)

    def name(self, folder: Path) -> str:
        models = self.project.folder / "models"
        return folder.name if folder.parent == models else str(folder)


def made_by(run: Path) -> Made | None:
    with suppress(DataError):  # a run whose files are damaged tells nothing
        result, noted = read_result(run), read_parents(run)
        return Made(run, result["model"], noted) if "model" in result else None
    return None


def model_name(stage: str) -> str:
    """The name of the model that a stage leaves."""
    return "base" if stage == "pretrain" else stage


def source_key(name: str, noted: Mapping[str, Any]) -> str:
    """The key of a reward source's model among a run's parents: its name, or one that no other parent has."""
    return f"reward_source.{name}" if f"reward_source.{name}" in noted else name


def keep_reference(project: Project, name: str) -> None:
    """Keep a model that a policy is about to be held to under its content hash, so that its KL can be measured against it whatever
    becomes of the model. The files are copies, for a link would change with a model that is written over in place: each content costs
    its size on the disk once."""
    registry, source = Registry(project), project.model(name)
    content = registry.content(source)
    kept = project.reference(content)
    if kept.is_dir() and registry.content(kept) == content:
        return
    with whole_folder(kept) as new:
        adapter = [f"{ADAPTER_FOLDER}/{file}" for file in ADAPTER_FILES]
        adapters = [file for file in adapter if (source / file).is_file()]
        for file in [*loaded_files(source), *adapters]:
            (new / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, new / file)
        if registry.content(source) != content:
            raise ModelError(f"{source} was replaced while it was copied to {kept}; run the same command again")
