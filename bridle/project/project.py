"""A project on disk: its recipe, and where models and runs lie."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridle.core.errors import DataError, ProjectError, StoreError, UsageError
from bridle.core.files import read_record, saving, tidy, write_json, write_text
from bridle.project.kept import KEYED, read_parents, read_result
from bridle.project.lock import held
from bridle.project.names import LONGEST_NAME, is_name
from bridle.recipe.documents import starter
from bridle.recipe.recipe import Recipe, load_recipe

RECIPE_FILE = "bridle.toml"
LOOKED_AT = {"size": int, "modified": int, "changed": int, "sha256": str}
REGISTRATIONS = {...: {"files?": {...: LOOKED_AT}, "names?": {...: str}}}  # as stages/registry.py keeps them


@dataclass(frozen=True)
class Project:
    """A folder with `bridle.toml`; everything that bridle writes lies in it."""

    folder: Path
    recipe: Recipe

    @classmethod
    def find(cls, start: Path) -> Project:
        """The nearest folder upward from `start` that holds a recipe; what a kill left of its models and runs is put right."""
        if not start.is_dir():
            raise ProjectError(f"there is no folder {start}; name a project's folder")
        if (folder := project_folder(start)) is not None:
            for kept in ("models", "references", "runs", "cache"):
                tidy(folder / kept)
            return cls(folder, load_recipe(folder / RECIPE_FILE))
        raise ProjectError(
            f"no {RECIPE_FILE} in {start} or above it; "
            "make a project with `bridle init DIR` or name one with --project DIR"
        )

    @classmethod
    def create(cls, folder: Path, recipe: Recipe, why: Mapping[str, str] | None = None) -> Project:
        """Write the recipe, with the reason of some of its values; a folder that is a project already, or holds other things, is left
        alone."""
        require_new(folder)
        with held(
            folder / f".{RECIPE_FILE}.lock", folder, lambda _: None
        ):  # whoever makes it too is done in an instant
            require_new(folder)
            write_text(folder / RECIPE_FILE, starter(recipe, why))
        return cls(folder, recipe)

    @property
    def store(self) -> Path | str:
        """Its file, or the address of a database."""
        return self.recipe.scale.store or self.folder / "store.sqlite"

    @property
    def registered(self) -> Path:
        """What the model folders held when they were registered."""
        return self.folder / "models.json"

    def registrations(self) -> dict[str, dict[str, Any]]:
        """What `models.json` keeps of each model folder."""
        if not self.registered.exists():
            return {}
        try:
            return read_record(self.registered, REGISTRATIONS)
        except DataError as error:
            raise DataError(
                f"{self.registered} is damaged; remove it, and every model is registered anew when it is next used ({error})"
            ) from error

    def note_in_registry(self, key: str, entry: Mapping[str, Any]) -> None:
        """Put an entry into `models.json`."""
        with saving(self.registered):
            lock = os.open(self.folder, os.O_RDONLY)  # two processes may register at once
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                write_json(self.registered, {**self.registrations(), key: entry})
            finally:
                os.close(lock)

    def require_store(self) -> None:
        """Refuse to begin with a new, empty store where the one that this project had is gone."""
        if isinstance(self.store, str):
            return
        there, kept = self.store.is_file() and self.store.stat().st_size > 0, self.registrations()
        if not there and (self.store.name in kept or any(entry.get("names") for entry in kept.values())):
            raise StoreError(
                f"{self.store} is gone or empty, and this project was at work with it; put it back, or remove {self.registered} to begin "
                "with a new store"
            )

    def model(self, name: str) -> Path:
        """The folder of a model; UsageError where the name is not that of one folder in `models/`."""
        if not is_name(name):
            raise UsageError(
                f"{name[:80]!r} is not the name of a model; a name is one folder's in {self.folder / 'models'}, such as 'sft', without a "
                f"path, of letters, digits, '_', '-' and '.', at most {LONGEST_NAME} bytes"
            )
        return self.folder / "models" / name

    def place_for(self, name: str) -> Path:
        """The same of a model that is about to be trained; ProjectError where what lies there could not be replaced when it is."""
        folder = self.model(name)
        if self.shares_base(folder):
            return folder
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            what = "link" if folder.is_symlink() else "file"
            raise ProjectError(
                f"{folder} is a {what}, which no model that is trained replaces; move it away, or rename it"
            )
        return folder

    def shares_base(self, folder: Path) -> bool:
        """Whether a model's folder is another name of the base: a link beside it, which a model that is trained under that name ends."""
        return folder.is_symlink() and os.readlink(folder) == "base"

    def lock(self, name: str) -> Path:
        """What a process holds while it is at work on a model, or on a stage that leaves none: no two may."""
        return self.folder / "runs" / f".{self.model(name).name}.lock"

    def reference(self, content: str) -> Path:
        """Where a model that another was held to is kept, by its content hash."""
        return self.folder / "references" / content

    def runs(self, stage: str) -> list[Path]:
        """The runs of a stage, the oldest first. A link in the place of one is refused: bridle writes into runs, and into no folder
        outside the project."""
        if not is_name(stage):
            raise UsageError(f"{stage[:80]!r} is not the name of a stage, so no run can be called after it")
        found = sorted((self.folder / "runs").glob(f"{stage}-[0-9][0-9][0-9][0-9]"))
        for run in found:
            if run.is_symlink():
                raise ProjectError(
                    f"{run} is a link, and bridle writes into runs of this project alone; remove the link"
                )
        return found

    def run(self, named: Path) -> Path:
        """The folder of a run of this project, by its name, by its path in the project, or by any path that leads there."""
        runs = self.folder / "runs"
        # os.path, for it is sure to say no where the words can be no path
        places = [
            place for place in (runs / named, self.folder / named, named) if os.path.isfile(place / "parents.json")
        ]
        for place in places:
            if (found := place.resolve()).parent == runs.resolve():
                return runs / found.name
        if places:
            raise ProjectError(
                f"{named} is not a run of this project, and its report would be written there; name its project with --project, or a "
                f"run in {runs}"
            )
        if is_name(named.name) and (others := self.runs(named.name)):
            raise ProjectError(f"{named} is not a run folder; the last run of {named.name} is {others[-1].name}")
        raise ProjectError(f"{named} is not a run folder; those of this project are in {runs}")

    def finished_folder(self, stage: str) -> Path | None:
        """The last finished run of a stage."""
        return next((f for f in reversed(self.runs(stage)) if (f / "result.json").is_file()), None)

    def finished(self, stage: str, key: str | None = None) -> dict[str, Any] | None:
        """Result of the last finished run of a stage; None where it has another key than the one that is asked for."""
        folder = self.finished_folder(stage)
        if folder is None or (key is not None and read_parents(folder, KEYED)["key"] != key):
            return None
        return read_result(folder)


def project_folder(start: Path) -> Path | None:
    """The nearest folder upward from `start` that holds a recipe."""
    folders = (start.resolve(), *start.resolve().parents)
    return next((folder for folder in folders if (folder / RECIPE_FILE).is_file()), None)


def require_new(folder: Path) -> None:
    """ProjectError where a project lies there already, or anything but what is left of one that was about to be made."""
    if (folder / RECIPE_FILE).exists():
        raise ProjectError(f"{folder} is a project already; run its commands there, or choose another folder")
    if folder.exists() and (
        not folder.is_dir() or any(not file.name.startswith(f".{RECIPE_FILE}.") for file in folder.iterdir())
    ):
        raise ProjectError(f"{folder} exists and is not empty; choose a new folder for the project")
