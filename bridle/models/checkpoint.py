"""The state of a run that is not over: every tensor and number that decides what the next step will be.

    runs/ppo-0001/checkpoints/step-000012/
        state.safetensors    policy.…, critic.…, optimizer.0.…   all tensors of modules and optimisers
        state.json           step, named values (β, …), the recipe's hash, the tensors' hash

A checkpoint is whole or absent, loading is strict, and the last good one is taken when the newest is damaged.
Random numbers are not state: each step draws from a generator seeded by (seed, stage, step).
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bridle.core.errors import BridleError, CheckpointError
from bridle.core.files import file_hash, read_json, whole_folder, write_json

KEEP = 2


@dataclass
class TrainingState:
    """Named modules and optimisers, by reference: saving reads them, restoring writes into them."""

    modules: Mapping[str, nn.Module]
    optimizers: Sequence[torch.optim.Optimizer]


def save_checkpoint(folder: Path, step: int, state: TrainingState, values: Mapping[str, Any], recipe_hash: str) -> None:
    """Save the state after `step` steps; the newest `KEEP` checkpoints stay."""
    with whole_folder(folder / f"step-{step:06d}") as new:
        save_tensors(gather(state), new / "state.safetensors")
        notes = {
            "step": step,
            "values": dict(values),
            "recipe_hash": recipe_hash,
            "stepped": [bool(optimizer.state) for optimizer in state.optimizers],
            "sha256": file_hash(new / "state.safetensors"),
        }
        write_json(new / "state.json", notes)
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old)


def restore_checkpoint(
    folder: Path, state: TrainingState, recipe_hash: str, say: Callable[[str], None]
) -> tuple[int, dict[str, Any]]:
    """Fill `state` from the newest good checkpoint; (steps done, values), or (0, {}) where there is none."""
    found = sorted(folder.glob("step-*"), reverse=True)
    for path in found:
        try:
            notes = read_json(path / "state.json")
            if notes["sha256"] != file_hash(path / "state.safetensors"):
                raise CheckpointError("its tensors do not have the hash that was saved with them")
            tensors = load_file(path / "state.safetensors")
        except (BridleError, KeyError, TypeError, OSError, SafetensorError) as error:
            say(f"checkpoint {path.name} is damaged ({error}); trying the one before it")
            continue
        if notes["recipe_hash"] != recipe_hash:
            raise CheckpointError(
                f"{path} was written under another recipe; restore that recipe, or remove {folder.parent} to start anew"
            )
        scatter(tensors, state, notes.get("stepped", [True] * len(state.optimizers)), path)
        names = ", ".join([*state.modules, f"{len(state.optimizers)} optimisers", *notes["values"]])
        say(f"resuming after step {notes['step']} (restored: {names})")
        return int(notes["step"]), notes["values"]
    if found:
        say("no good checkpoint is left; starting from the beginning")
    return 0, {}


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file. The library wraps a full disk in its own exception; here it is an OSError again."""
    try:
        save_file(tensors, path, {"format": "pt"})
    except SafetensorError as error:
        raise OSError(errno.ENOSPC if "No space" in str(error) else errno.EIO, str(error)) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path)


def gather(state: TrainingState) -> dict[str, Tensor]:
    tensors = {}
    for name, module in state.modules.items():
        for key, tensor in module.state_dict().items():
            tensors[f"{name}.{key}"] = tensor.detach().contiguous()
    for index, optimizer in enumerate(state.optimizers):
        for number, entries in optimizer.state_dict()["state"].items():
            for key, tensor in entries.items():
                tensors[f"optimizer.{index}.{number}.{key}"] = torch.as_tensor(tensor).detach().contiguous()
    return tensors


def scatter(tensors: dict[str, Tensor], state: TrainingState, stepped: Sequence[bool], path: Path) -> None:
    """Fill modules and optimisers, strictly: every weight, every trained weight's moments, and nothing over.

    An optimiser that had not stepped yet (GRPO while no group differs) has no moments to give back.
    """
    left = set(tensors)
    for name, module in state.modules.items():
        expected = module.state_dict()
        own = {key: tensors[f"{name}.{key}"] for key in expected if f"{name}.{key}" in tensors}
        if missing := sorted(set(expected) - set(own)):
            raise CheckpointError(f"{path} lacks {len(missing)} tensors of {name} (such as {missing[0]})")
        if wrong := [key for key in own if own[key].shape != expected[key].shape]:
            raise CheckpointError(f"{path} holds {name}.{wrong[0]} in another shape than this run's")
        module.load_state_dict(own)
        left -= {f"{name}.{key}" for key in own}
    for index, optimizer in enumerate(state.optimizers):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        entries: dict[int, dict[str, Tensor]] = {}
        for number, parameter in enumerate(parameters):
            prefix = f"optimizer.{index}.{number}."
            entries[number] = {key.removeprefix(prefix): tensors[key] for key in left if key.startswith(prefix)}
            if parameter.requires_grad and stepped[index] and not entries[number]:
                raise CheckpointError(f"{path} lacks the moments of parameter {number} of optimiser {index}")
            left -= {prefix + field for field in entries[number]}
        entries = {number: found for number, found in entries.items() if found}
        optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    if left:
        raise CheckpointError(f"{path} holds {len(left)} tensors that this run has no place for (such as {min(left)})")
