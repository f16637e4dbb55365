"""What the project's model folders held when they were registered, so that a folder whose bytes changed since is noticed, and cheaply.

    models.json    {"models/sft": {"files": {"config.json": {"size", "modified", "changed", "sha256"}, …},
                                   "names": {content hash: what the content is called}}, …,
                   "store.sqlite": …}    the project has a store: one that is gone is not made anew

A file is read and hashed again only where its size or one of its two times differs from what is kept. A content is called by its hash.
One that an earlier version registered or noted keeps the name that it has there, a hash by the rule before: by it finished runs are found
again.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridle.core.errors import BridleError, DataError, ModelError
from bridle.core.files import file_hash, final_place, read_whole
from bridle.feedback.store.store import LearntFrom, Store
from bridle.models.contents import earlier_hash, hash_of_files, loaded_files
from bridle.project.kept import read_result
from bridle.project.project import Project

# A file that changed so shortly before it was read may change again within the same tick of the file system's clock, and nobody would see.
SETTLED_NS = 2_000_000_000

Files = Mapping[str, Mapping[str, Any]]  # size, times and hash of each loaded file, by its name in the folder


@dataclass(frozen=True)
class Entry:
    """What is kept of one model folder: its files when they were last looked at, and the names of the contents that were registered."""

    files: Files = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


class Registry:
    """The `models.json` of a project. The store keeps what is registered too, as the parent of what descends from it."""

    def __init__(self, project: Project) -> None:
        self.project = project

    def content(self, folder: Path) -> str:
        """The name of what a model folder holds now, whatever is registered. ModelError where it cannot be told what of it is loaded."""
        entry = self.entry(folder)
        files = looked_at(folder, entry.files)
        if not self.holds(folder) and files != entry.files:
            with suppress(BridleError):  # it would only save the next one the work
                self.keep(folder, Entry(files, entry.names))
        return self.name(folder, Entry(files, entry.names), set())

    def verify(self, folder: Path, store: Store) -> str:
        """The same of a model of the project that is about to be used: registered where it is new, refused where its bytes are not those
        that were registered under its name."""
        entry = self.entry(folder)
        files = looked_at(folder, entry.files)
        content = hash_of(files)
        if content in entry.names:
            if files != entry.files:
                self.keep(folder, Entry(files, entry.names))
            return entry.names[content]
        before = store.model_hashes(folder.name) | self.left_as(folder.name)
        if (before or entry.names) and not before & {content, earlier_name(folder, files)}:
            self.refuse_unless_wanted(folder, entry.files, files)
        return self.enter(folder, Entry(files, entry.names), store, folder.name)

    def register(
        self, folder: Path, store: Store, kind: str, parent: str | None = None, learnt: LearntFrom | None = None
    ) -> str:
        """Keep what is being saved, under its temporary name yet, as the model of the name that it will have; what the content is
        called. So no other process, and no kill, meets a model there that is not registered."""
        entry = self.entry(folder)
        return self.enter(folder, Entry(looked_at(folder, entry.files), entry.names), store, kind, parent, learnt)

    def enter(
        self,
        folder: Path,
        entry: Entry,
        store: Store,
        kind: str,
        parent: str | None = None,
        learnt: LearntFrom | None = None,
    ) -> str:
        model = final_place(folder).name
        name = self.name(folder, entry, store.model_hashes(model))
        store.add_model_version(model, kind=kind, weights_sha256=name, parent=parent, learnt=learnt)
        self.keep(folder, Entry(entry.files, {**entry.names, hash_of(entry.files): name}))
        return name

    def refuse_unless_wanted(self, folder: Path, then: Files, now: Files) -> None:
        if self.project.recipe.guard.changed_models == "register":
            return
        odd = [n for n in sorted({*then, *now}) if then.get(n, {}).get("sha256") != now.get(n, {}).get("sha256")]
        which = f" ({', '.join(odd[:4])} changed)" if then else ""
        raise ModelError(
            f"models/{folder.name} is not what was registered under that name{which}; put that back, give this one a folder of its own, "
            "or register it as it is now: the same command with --set guard.changed_models=register"
        )

    def name(self, folder: Path, entry: Entry, registered: set[str]) -> str:
        """What a content is called: as before, as an earlier version registered or noted it, or by its hash."""
        if (content := hash_of(entry.files)) in entry.names:
            return entry.names[content]
        earlier = earlier_name(folder, entry.files)
        return earlier if earlier in registered or earlier in self.noted_by_runs() else content

    # ----------------------------------------------------------------------------------------------- what is on disk

    def entry(self, folder: Path) -> Entry:
        kept = self.project.registrations().get(self.key(folder), {})
        return Entry(kept.get("files", {}), kept.get("names", {}))

    def keep(self, folder: Path, entry: Entry) -> None:
        self.project.note_in_registry(self.key(folder), {"files": entry.files, "names": entry.names})

    def key(self, folder: Path) -> str:
        """A folder of the project by its path in it, another by its whole path."""
        path, home = Path(os.path.abspath(final_place(folder))), os.path.abspath(self.project.folder)
        return str(path.relative_to(home) if path.is_relative_to(home) else path)

    def present(self) -> dict[str, str]:
        """What the project's model folders hold now: their contents, and the folders' names."""
        folders = [path.parent for path in sorted(self.project.folder.glob("models/*/config.json"))]
        found = dict[str, str]()
        for folder in folders:
            with suppress(ModelError):  # what cannot be read is none
                found.setdefault(self.content(folder), folder.name)
        return found

    def holds(self, folder: Path) -> bool:
        """Whether a folder is that of a model of the project, and not one elsewhere that a setting names."""
        return Path(self.key(folder)).parent == Path("models")

    def left_as(self, name: str) -> set[str]:
        """The hashes of the models that finished runs left under this name."""
        found = set[str]()
        for run in self.project.runs("pretrain" if name == "base" else name):
            with suppress(DataError, KeyError):  # unfinished, damaged, or of a stage that leaves no model
                found.add(read_result(run)["model"])
        return found

    def noted_by_runs(self) -> set[str]:
        """Every hash by the rule before that a run noted of its parents or its result."""
        paths = [*self.project.folder.glob("runs/*/parents.json"), *self.project.folder.glob("runs/*/result.json")]
        return {found for path in paths for found in re.findall('"([0-9a-f]{64})"', path.read_text("utf-8", "replace"))}


def open_store(project: Project) -> Store:
    """The project's store, made where it has none yet. StoreError where it had one, and that is gone."""
    project.require_store()
    store = Store.open(project.store)
    if isinstance(project.store, Path) and project.store.name not in project.registrations():
        project.note_in_registry(project.store.name, {"files": {}, "names": {}})
    return store


def hash_of(files: Files) -> str:
    return hash_of_files({name: file["sha256"] for name, file in files.items()})


def earlier_name(folder: Path, files: Files) -> str:
    """The hash of the same folder by the rule before."""
    return earlier_hash(folder, {name: file["sha256"] for name, file in files.items()})


@read_whole
def looked_at(folder: Path, known: Files) -> Files:
    """The loaded files of a folder; those that are as `known` says are not read again."""
    return {name: look_at(folder / name, known.get(name, {})) for name in loaded_files(folder)}


def look_at(path: Path, known: Mapping[str, Any]) -> Mapping[str, Any]:
    found = path.stat()
    stamp = {"size": found.st_size, "modified": found.st_mtime_ns, "changed": found.st_ctime_ns}
    if known and stamp == {key: known[key] for key in stamp}:
        return known
    settled = max(found.st_mtime_ns, found.st_ctime_ns) < time.time_ns() - SETTLED_NS
    return {**stamp, **({} if settled else {"modified": 0, "changed": 0}), "sha256": file_hash(path)}
