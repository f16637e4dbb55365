"""A model of the project as a folder for others: in the type that it came in, with what its numbers lose by that."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from bridle.core.errors import ModelError, UsageError
from bridle.core.files import whole_folder
from bridle.models.files.export import export_policy, export_reward_model
from bridle.models.files.hub import push_folder, require_repository
from bridle.models.lora.peft_files import ADAPTER_FILES, ADAPTER_FOLDER, read_adapter
from bridle.models.policy import load_reward_model
from bridle.stages.workspace import Work, require_model


def export_model(work: Work, name: str, place: Path, dtype: str = "") -> dict[str, Any]:
    """Write a model of the project to a folder outside of `models/`; its content hash there, and the loss."""
    if place.absolute().parent == (work.project.folder / "models").absolute():
        raise UsageError(
            f"{place} would be another model of this project; name a folder outside of {work.project.folder / 'models'}"
        )
    folder = work.project.model(name)
    rewards = (folder / "bridle_reward.json").is_file()
    require_model(work, name, scores=rewards)
    if rewards:
        found = export_reward_model(place, load_reward_model(folder, work.device.torch, work.verify), dtype)
    else:
        found = export_policy(place, work.read_policy(folder), dtype)
    what = "score" if rewards else "logit"
    return {
        "exported": str(place),
        f"largest_{what}_difference": found.largest,
        f"mean_{what}_difference": found.mean,
        "probe_tokens": found.tokens,
        "model": found.content,
    }


def export_adapter(work: Work, name: str, place: Path) -> dict[str, Any]:
    """Write the adapter that a model of the project was left with, alone, to a new folder; its rank, and where its base lies."""
    folder = work.project.model(name)
    require_model(work, name, scores=(folder / "bridle_reward.json").is_file())
    if not (folder / ADAPTER_FOLDER).is_dir():
        raise ModelError(
            f"models/{name} was left with no adapter; export it whole, without --adapter, or train one with lora.r above 0"
        )
    if place.exists():
        raise UsageError(f"{place} exists; name a new folder for the adapter")
    adapter, _ = read_adapter(folder / ADAPTER_FOLDER)
    with whole_folder(place) as new:
        for file in ADAPTER_FILES:
            shutil.copyfile(folder / ADAPTER_FOLDER / file, new / file)
    return {"exported": str(place), "r": adapter.config.r, "base": adapter.base}


def push_model(work: Work, name: str, repository: str, dtype: str = "", public: bool = False) -> dict[str, Any]:
    """The same to a repository ORG/NAME on a hub, which is made where there is none, and private unless it is to be `public`."""
    require_repository(repository)
    with tempfile.TemporaryDirectory(dir=work.project.folder, prefix=".push.") as passing:  # a disk that holds models
        place = Path(passing) / "model"
        found = export_model(work, name, place, dtype)
        return {**found, "exported": push_folder(place, repository, public)}
