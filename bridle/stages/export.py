"""A model of the project as a folder for others: in the type that it came in, with what its numbers lose by that."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import bridle
from bridle.core.errors import ModelError, UsageError
from bridle.core.files import whole_folder, write_text
from bridle.feedback.exporting.card import listed_counts
from bridle.feedback.store.versions import lineage_of, model_versions, snapshot_contents
from bridle.guard.stopping import SPREAD
from bridle.models.files.export import export_policy, export_reward_model
from bridle.models.files.hub import push_folder, require_repository
from bridle.models.lora.peft_files import ADAPTER_FILES, ADAPTER_FOLDER, read_adapter
from bridle.models.policy import load_reward_model
from bridle.project.kept import read_parents, read_result
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


def push_model(
    work: Work, name: str, repository: str, dtype: str = "", public: bool = False, adapter: bool = False
) -> dict[str, Any]:
    """The same to a repository ORG/NAME on a hub, with a card; it is made where there is none, and private unless it is to be `public`."""
    require_repository(repository)
    with tempfile.TemporaryDirectory(dir=work.project.folder, prefix=".push.") as passing:  # a disk that holds models
        place = Path(passing) / "model"
        found = export_adapter(work, name, place) if adapter else export_model(work, name, place, dtype)
        write_text(place / "README.md", model_card(work, name, adapter))
        return {**found, "exported": push_folder(place, repository, public)}


# ------------------------------------------------------------------------------------------------ the card


def model_card(work: Work, name: str, adapter: bool = False) -> str:
    """README.md of a model's repository: what it came from, what it learnt from, what was measured of it and what was not. Nobody is
    named, and no place on this machine."""
    from jinja2 import Environment

    folder = work.project.model(name)
    content, rewards = work.registry.content(folder), (folder / "bridle_reward.json").is_file()
    lineage = lineage_of(model_versions(work.store), content)
    learnt = [
        (one.name, task, snapshot_contents(work.store, snapshot))
        for one in lineage
        for task, snapshot in one.snapshots.items()
    ]
    measured = metrics_of_model(work, name, content)
    text = Path(__file__).with_name("model_card.md.jinja").read_text("utf-8")
    return Environment(trim_blocks=True).from_string(text).render(
        name=name, version=lineage[0], lineage=lineage, names={one.hash: one.name for one in lineage}, learnt=learnt, metrics=measured,
        playground=work.data.knows_gold, scores=rewards, adapter=adapter,
        scored=any(figure.startswith("proxy") for _, figure, *_ in measured), counts=listed_counts, bridle=bridle.__version__,
    )  # fmt: skip


def metrics_of_model(work: Work, name: str, content: str) -> list[tuple[str, str, float, float | None, float | None]]:
    """(run, figure, value, low, high) of all that was measured of a model as it is now, where it was trained and where it was evaluated;
    the ends of a 95% interval, or None."""
    rows = []
    for stage in (name, f"evaluate-{name}"):
        run = work.project.finished_folder(stage)
        result = {} if run is None else read_result(run)
        of = result.get("model") if stage == name or run is None else read_parents(run)["parents"].get("model")
        for figure, value in result.items() if of == content else ():
            if type(value) is not float or figure.endswith(("_se", "_low", "_high")) or figure == "seconds":
                continue
            low, high = result.get(f"{figure}_low"), result.get(f"{figure}_high")
            if (error := result.get(f"{figure}_se")) is not None:
                low, high = value - SPREAD * error, value + SPREAD * error
            rows.append((stage, figure, value, low, high))
    return rows
