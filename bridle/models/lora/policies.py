"""Policies with adapters: begun on a base, read with the base that they were trained on, saved alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from bridle.core.errors import ModelError, UsageError
from bridle.core.files import file_hash, whole_folder
from bridle.core.records import content_hash
from bridle.models.contents import has_content
from bridle.models.lora.adapter import Adapter, adapt
from bridle.models.lora.peft_files import ADAPTER_FILES, attach_saved, read_adapter, write_adapter
from bridle.models.policy import Policy, RewardModel
from bridle.recipe.data import LoRASection


def learner(policy: Policy, config: LoRASection, generator: torch.Generator) -> Policy:
    """The policy with a new adapter, which alone learns. The one that is given stays as it is, on the same weights: a reference that
    takes no memory."""
    return replace(policy, module=adapt(policy.module, config, generator), adapter=Adapter(config, *lies_in(policy)))


def lies_in(policy: Policy) -> tuple[str, str]:
    """The folder that holds a policy as it is, and its content hash; empty where it was trained since it was loaded."""
    return ("", "") if policy.step else (policy.source.place, policy.source.content)


def is_content(policy: Policy, content: str) -> bool:
    """Whether a content hash, by either rule, is of the folder that a policy lies in."""
    place, own = lies_in(policy)
    return content == own or (bool(place) and has_content(Path(place), content))


def load_adapted(folder: Path, base: Policy) -> Policy:
    """A policy with the adapter of a folder, to be trained further. ModelError where it is of another base."""
    adapter, tensors = read_adapter(folder)
    if adapter.base_hash and not is_content(base, adapter.base_hash):
        place, content = lies_in(base)
        raise ModelError(
            f"the adapter {folder} was trained on {adapter.base or 'another model'} with the content {adapter.base_hash[:16]}…, and "
            f"{place or 'this base'} has {content[:16] or 'another'}…; name the base that it was trained on"
        )
    module = attach_saved(base.module, adapter, tensors, folder)
    origin = content_hash([base.origin, {name: file_hash(folder / name) for name in ADAPTER_FILES}])
    return replace(base, module=module, origin=origin, adapter=Adapter(adapter.config, *lies_in(base)))


def save_adapter(folder: Path, model: Policy | RewardModel) -> None:
    """Write a model's adapter alone. UsageError where there is none, or something lies there."""
    if model.adapter is None:
        raise UsageError("the model has no adapter to save; it is trained with lora_r above 0, or loaded with one")
    if folder.exists():
        raise UsageError(f"{folder} exists; name a new folder for the adapter")
    with whole_folder(folder) as new:
        write_adapter(new, model.module, model.adapter)
