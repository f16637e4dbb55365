"""A model as a whole folder, whatever it lies in: a folder already, a GGUF file, an adapter with its base."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from bridle.core.errors import ModelError
from bridle.models.files.gguf import unpacked
from bridle.models.files.kinds import adapter_base, is_adapter
from bridle.models.lora.peft_files import ADAPTER_FILES, ADAPTER_FOLDER
from bridle.models.lora.policies import load_adapted
from bridle.models.policy import load_policy, save_policy


@contextmanager
def as_whole(place: Path) -> Iterator[Path]:
    """A folder that holds a whole model; what had to be unpacked, or merged into its base, goes when the block ends."""
    if not is_adapter(place):
        with unpacked(place) as folder:
            yield folder
        return
    with tempfile.TemporaryDirectory(prefix="bridle-merged-") as passing:
        folder = Path(passing) / "model"
        save_policy(folder, load_adapted(place, load_policy(base_of(place), torch.device("cpu"))))
        yield folder


def base_of(place: Path) -> Path:
    """The folder that an adapter calls its base. ModelError where it is not here."""
    base, named = adapter_base(place)
    if base is None:
        raise ModelError(
            f"{place} is a LoRA adapter of {named!r}, which is not a folder here; write where its base lies as base_model_name_or_path "
            "into its adapter_config.json"
        )
    return base


def keep_adapter(place: Path, model: Path) -> None:
    """Keep an adapter beside the model that it was merged into, to be trained further."""
    if is_adapter(place):
        (model / ADAPTER_FOLDER).mkdir()
        for name in ADAPTER_FILES:
            shutil.copyfile(place / name, model / ADAPTER_FOLDER / name)
