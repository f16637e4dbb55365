"""The state of a run that is not over: every tensor and number that decides what the next step will be.

    runs/ppo-0001/checkpoints/step-000012/
        state.safetensors    policy.…, critic.…, optimizer.0.…   all tensors of modules and optimisers; under an adapter its own alone
        state.json           step, named values (β, …), the recipe's hash, versions, and the manifest: every tensor's
                             shape, dtype and hash; last a hash of all these

A checkpoint is whole or absent, loading is strict, and the last good one is taken when the newest is damaged. The newest few
are kept, and the one of the greatest selection score, a metric that the trainer chooses (never gold, which no real run has).
Random numbers are not state: each step draws from a generator seeded by (seed, stage, step).
"""

import errno
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bridle.compute.parallel import process_rank
from bridle.compute.sharding import divided_like, is_piece, whole_tensor
from bridle.core.errors import BridleError, CheckpointError, TrainingStopped, described_value
from bridle.core.files import finite_or_none, read_json, read_record, remove_folder, tidy, whole_folder, write_json
from bridle.core.forms import form_fault
from bridle.core.records import content_hash
from bridle.core.timeline import timed

KEEP = 2
FORM = 3  # of state.json: a checkpoint of another form is refused by name
EARLIER_FORM = 2  # is read too: it says the same in other words
NOTED = {"step": int, "values": dict, "health": dict, "stepped": list, "tensors": dict, "recipe_hash": str}
DAMAGE = (BridleError, SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError)


@dataclass
class TrainingState:
    """Named modules and optimisers, and the run's health, by reference: saving reads them, restoring writes into them."""

    modules: Mapping[str, nn.Module]
    optimizers: Sequence[torch.optim.Optimizer]
    health: dict[str, dict[str, Any]] = field(default_factory=dict)


@timed("save")
def save_checkpoint(
    folder: Path,
    step: int,
    state: TrainingState,
    values: Mapping[str, Any],
    recipe_hash: str,
    *,
    keep: int = KEEP,
    selection_score: float | None = None,
) -> None:
    """Save the state after `step` steps; the newest `keep` checkpoints are kept, and the one of the greatest `selection_score`.

    Weights that are not finite are not saved: TrainingStopped, and the checkpoints before stay as they are. Of ranks that share a step
    each must call it, and the first one writes: it can be restored on any number.
    """
    tensors, broken = gather(state)
    if broken:
        raise TrainingStopped(
            f"{broken[0]} is not finite after step {step}, which was not saved; lower the learning rate, and resume from the "
            f"checkpoint before or begin anew without {folder.parent}"
        )
    if process_rank():
        return
    with whole_folder(folder / f"step-{step:06d}") as new:
        save_tensors(tensors, new / "state.safetensors")
        notes = finite_or_none(
            {
                "form": FORM,
                "step": step,
                "selection_score": selection_score if math.isfinite(selection_score or 0.0) else None,
                "values": dict(values),
                "health": state.health,
                "recipe_hash": recipe_hash,
                "versions": {"bridle": version("bridle"), "torch": torch.__version__},
                "stepped": [
                    any(value is not None for entries in optimizer.state.values() for value in entries.values())
                    for optimizer in state.optimizers
                ],
                "tensors": {name: described(tensor) for name, tensor in tensors.items()},
            }
        )  # hashed as they are written
        write_json(new / "state.json", {**notes, "sha256": content_hash(notes)})
    found = steps_of(folder)
    scores = {path: selection_score_of(path) for path in found}
    best = max(found, key=lambda path: (scores[path], found.index(path)))
    for old in found[:-keep]:
        if old != best:
            remove_folder(old)


def steps_of(folder: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return sorted(folder.glob("step-*"), key=lambda path: (len(path.name), path.name))


def selection_score_of(path: Path) -> float:
    """A checkpoint's selection score; -inf where it has none or cannot be read."""
    try:
        notes = read_json(path / "state.json")
        score = notes["merit"] if notes["form"] == EARLIER_FORM else notes["selection_score"]
    except (BridleError, KeyError, TypeError):
        score = None
    return -math.inf if form_fault(score, float) else float(score)


def described(tensor: Tensor) -> dict[str, Any]:
    """A tensor's line of the manifest. Its bytes are hashed here once, and once when they are read again."""
    data = tensor.cpu().reshape(-1).contiguous().view(torch.uint8).numpy()
    return {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "sha256": hashlib.sha256(data.data).hexdigest(),
    }


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Notes and tensors of one checkpoint, all that its manifest names and nothing else, or CheckpointError with what is wrong."""
    notes = read_record(path / "state.json", form=int, sha256=str)
    if content_hash({name: value for name, value in notes.items() if name != "sha256"}) != notes["sha256"]:
        raise CheckpointError("its state.json was changed after it was saved")
    if notes["form"] == EARLIER_FORM:
        notes = as_written_now(notes)
    elif notes["form"] != FORM:
        return notes, {}
    if wrong := [name for name, kind in NOTED.items() if type(notes.get(name)) is not kind]:
        raise CheckpointError(f"its state.json needs {wrong[0]} as {NOTED[wrong[0]].__name__}")
    if path.name != f"step-{notes['step']:06d}":
        raise CheckpointError(f"it holds step {notes['step']}")
    tensors, manifest = load_file(path / "state.safetensors"), notes["tensors"]
    if set(tensors) != set(manifest):
        lone = min(set(tensors) ^ set(manifest))
        raise CheckpointError(f"its manifest and its tensors differ ({lone} is in one of them only)")
    for name, tensor in tensors.items():
        if described(tensor) != manifest[name]:
            raise CheckpointError(f"its tensor {name} is not the one that was saved")
    return notes, tensors


def as_written_now(notes: Mapping[str, Any]) -> dict[str, Any]:
    """The notes of a checkpoint of form 2, under the names of form 3: other words, and the last metrics where each trainer had its own."""
    values = dict(notes["values"])
    metrics = values.pop("figures", None) or values.pop("last", None)
    if metrics is None and (losses := values.get("last_losses")):
        metrics = {"loss": sum(losses) / len(losses)}
    if metrics is None:
        metrics = {"loss": values["loss_average"]} if "loss_average" in values else {}
    health = {{"said": "warned"}.get(name, name): found for name, found in notes["health"].items()}
    return {**notes, "form": FORM, "values": {**values, "metrics": metrics}, "health": health}


@timed("restore")
def restore_checkpoint(
    folder: Path, state: TrainingState, recipe_hash: str, say: Callable[[str], None]
) -> tuple[int, dict[str, Any]]:
    """Fill `state` from the newest good checkpoint; (steps done, values), or (0, {}) where there is none."""
    tidy(folder)
    found = steps_of(folder)[::-1]
    for path in found:
        try:
            notes, tensors = read_checkpoint(path)
        except DAMAGE as error:
            say(f"checkpoint {path.name} is damaged ({error}); trying the one before it")
            continue
        if notes["recipe_hash"] != recipe_hash:
            raise CheckpointError(
                f"{path} was written under another recipe; restore that recipe, or remove {folder.parent} to start anew"
            )
        if notes["form"] != FORM:
            raise CheckpointError(
                f"{path} was written by bridle {notes['versions']['bridle']} in form {notes['form']} of checkpoints, and this version "
                f"reads forms {EARLIER_FORM} and {FORM}; finish the run with the version that began it, or remove "
                f"{folder.parent} to start anew"
            )
        scatter(tensors, state, notes["stepped"], path)
        state.health.clear()
        state.health.update(notes["health"])
        names = ", ".join([*state.modules, f"{len(state.optimizers)} optimisers", *notes["values"]])
        say(f"resuming after step {notes['step']} (restored: {names})")
        return int(notes["step"]), notes["values"]
    if found:
        say("no good checkpoint is left; starting from the beginning")
    return 0, {}


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, with notes in its header. The library wraps a full disk in its own exception; here it is an OSError."""
    try:
        save_file(tensors, path, {"format": "pt", **(metadata or {})})
    except SafetensorError as error:
        raise OSError(errno.ENOSPC if "No space" in str(error) else errno.EIO, str(error)) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path)


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors; where some of its weights are frozen, under an adapter, those that learn alone."""
    learns = {name: parameter.requires_grad for name, parameter in module.named_parameters(remove_duplicate=False)}
    return {name: t for name, t in module.state_dict().items() if all(learns.values()) or learns.get(name, False)}


def gather(state: TrainingState) -> tuple[dict[str, Tensor], list[str]]:
    """All that a checkpoint holds, and the names of what is not finite. What ranks have pieces of is whole on the first alone, in the
    processor's memory, and on the others only while it passes."""
    tensors, broken = dict[str, Tensor](), list[str]()

    def keep(name: str, tensor: Tensor) -> None:
        found = whole_tensor(tensor.detach()).contiguous()
        if found.is_floating_point() and not bool(torch.isfinite(found).all()):
            broken.append(name)
        if not is_piece(tensor):
            tensors[name] = found
        elif process_rank() == 0:
            tensors[name] = found.cpu()

    for name, module in state.modules.items():
        for key, tensor in trained_state(module).items():
            keep(f"{name}.{key}", tensor)
    for index, optimizer in enumerate(state.optimizers):
        for number, entries in optimizer.state_dict()["state"].items():
            for key, tensor in entries.items():
                if tensor is None:  # of a caller's optimiser: what it does not use
                    continue
                if not isinstance(tensor, Tensor | int | float):
                    raise TrainingStopped(
                        f"the optimiser's state holds {key!r}, {described_value(tensor)}, which no checkpoint can; bring one of "
                        "tensors and numbers"
                    )
                keep(f"optimizer.{index}.{number}.{key}", torch.as_tensor(tensor))
    return tensors, broken


def scatter(tensors: dict[str, Tensor], state: TrainingState, stepped: Sequence[bool], path: Path) -> None:
    """Fill modules and optimisers, strictly: every weight, every trained weight's moments, and nothing over.

    An optimiser that had not stepped yet (GRPO while no group differs) has no moments to give back.
    """
    left = set(tensors)
    for name, module in state.modules.items():
        expected = trained_state(module)
        own = {key: tensors[f"{name}.{key}"] for key in expected if f"{name}.{key}" in tensors}
        if missing := sorted(set(expected) - set(own)):
            raise CheckpointError(f"{path} lacks {len(missing)} tensors of {name} (such as {missing[0]})")
        if wrong := [key for key in own if own[key].shape != expected[key].shape]:
            raise CheckpointError(f"{path} holds {name}.{wrong[0]} in another shape than this run's")
        placed = {key: divided_like(own[key], expected[key]) for key in own}
        module.load_state_dict(placed, strict=False)  # what is frozen is not in it
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
            entries[number] = {field: divided_like(t, parameter) for field, t in entries[number].items()}
        entries = {number: found for number, found in entries.items() if found}
        optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    if left:
        raise CheckpointError(f"{path} holds {len(left)} tensors that this run has no place for (such as {min(left)})")
