"""A project on disk: its recipe, and where models and runs lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridle.core.errors import ProjectError, UsageError
from bridle.core.files import read_json, write_text
from bridle.recipe.documents import starter
from bridle.recipe.recipe import Recipe, load_recipe

RECIPE_FILE = "bridle.toml"


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
        """The folder of a model; UsageError where the name is not that of one folder in `models/`."""
        if name in ("", "..") or name != Path(name).name:
            raise UsageError(
                f"{name!r} is not the name of a model; a name is one folder's in {self.folder / 'models'}, such as 'sft', without a path"
            )
        return self.folder / "models" / name

    def reference(self, content: str) -> Path:
        """Where a model that another was held to is kept, by its content hash."""
        return self.folder / "references" / content

    def runs(self, stage: str) -> list[Path]:
        return sorted((self.folder / "runs").glob(f"{stage}-[0-9][0-9][0-9][0-9]"))

    def run(self, named: Path) -> Path:
        """The folder of a run, by its name, by its path in the project, or by any path; `named` itself where none of them is a run."""
        places = (self.folder / "runs" / named, self.folder / named, named)
        for place in places:
            if (place / "parents.json").is_file():
                return place
        if runs := self.runs(named.name):
            raise ProjectError(f"{named} is not a run folder; the last run of {named.name} is {runs[-1].name}")
        return named

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
