"""A policy, a reward model's trunk, a critic's: each may learn by an adapter, on base weights that all of them share and none moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from bridle.core.errors import ModelError, RecipeError, UsageError
from bridle.models.decoder import Decoder, Trunk
from bridle.models.foreign import Foreign, ForeignTrunk
from bridle.models.lora.four_bit import unpack_matrices
from bridle.models.lora.low_rank import NAME, add_low_rank, is_adapted, low_rank_of, shared_copy
from bridle.recipe.data import LoRASection

Network = TypeVar("Network", bound=Decoder | Foreign | Trunk | ForeignTrunk)
HEADS = {"lm_head", "score"}


@dataclass(frozen=True)
class Adapter:
    """What a model's adapter is; its numbers stand in the network. `base`: where the model lay that it is on; `base_hash`: what it was."""

    config: LoRASection
    base: str = ""
    base_hash: str = ""


def adapt(module: Network, config: LoRASection, generator: torch.Generator) -> Network:
    """The network with a new adapter on the same base weights, which are frozen; `module` itself stays as it is."""
    if is_adapted(module):
        raise UsageError("the model has an adapter already, which is trained further; leave r out, or merge it first")
    found = with_adapter(module, config)
    for part in found.modules():
        if (adapter := low_rank_of(part)) is not None:
            adapter.begin(generator)
    return found


def attach(module: Network, config: LoRASection, tensors: Mapping[str, Tensor], where: str) -> Network:
    """The same with the numbers of an adapter that was saved, by their names in the network. ModelError where they are not of one on such
    a network; `where`: the place that they came from."""
    found = with_adapter(module, config)
    learns = learning_tensors(found)
    if odd := sorted(set(learns) ^ set(tensors)):
        fault = "lacks" if odd[0] in learns else "holds"
        raise ModelError(
            f"the adapter {where} is not of this base model: it {fault} {odd[0]}; name the base that it was trained on"
        )
    for name, weight in learns.items():
        if weight.shape != tensors[name].shape:
            raise ModelError(
                f"the adapter {where} is not of this base model: {name} has shape {list(tensors[name].shape)}, where {list(weight.shape)} "
                "is needed; name the base that it was trained on"
            )
        weight.data.copy_(tensors[name])
    return found


def with_adapter(module: Network, config: LoRASection) -> Network:
    """The network with an adapter of zeros on the same base weights, which are frozen, and with parts of its own that learn whole."""
    found = shared_copy(module)
    whole = whole_parts(found, config.modules_to_save)
    for linear in chosen_maps(found, config.target_modules):
        if linear not in whole:
            add_low_rank(linear, config.r, config.scale)
    for part in whole:
        for weight in unpack_matrices(part).parameters():
            weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
            weight.requires_grad_(True)
    return found


def chosen_maps(module: Network, targets: Sequence[str]) -> list[nn.Module]:
    """The linear maps of the layers whose names end in one of these; of none all."""
    trunk = module.model if isinstance(module, Decoder | Foreign) else module
    maps = {f"model.{name}": part for name, part in trunk.linear_maps().items()}
    for target in targets:
        if not any(ends_in(name, [target]) for name in maps):
            ends = ", ".join(sorted({name.rpartition(".")[2] for name in maps}))
            raise RecipeError(
                f"target_modules names {target!r}, and no linear layer of the model is called that; it has {ends}"
            )
    return [part for name, part in maps.items() if not targets or ends_in(name, targets)]


def whole_parts(module: Network, names: Sequence[str]) -> list[nn.Module]:
    """The parts whose names end in one of these, be it in the middle of a word, as peft takes them: norm is every norm. A trunk has no
    head to find."""
    found = list[nn.Module]()
    for wanted in names:
        parts = [part for name, part in module.named_modules() if name.endswith(wanted)]
        if not parts and not (wanted in HEADS and isinstance(module, Trunk | ForeignTrunk)):
            tied = "; its head is tied to its embeddings, so name these" if wanted in HEADS else ""
            raise RecipeError(f"modules_to_save names {wanted!r}, and no part of the model is called that{tied}")
        found += parts
    return found


def ends_in(name: str, endings: Iterable[str]) -> bool:
    return any(f".{name}".endswith(f".{ending}") for ending in endings)


def learning_tensors(module: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of an adapted network that are trained, by name."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def branch(module: Network) -> Network:
    """The network again, to be trained apart from it: an adapter is copied and the base shared; without one, all is copied."""
    if not is_adapted(module):
        return deepcopy(module)
    found, learns = shared_copy(module, keep_what_learns=True), learning_tensors(module)
    for name, weight in found.named_parameters():
        weight.requires_grad_(name in learns)
    return found


def base_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """All weights but an adapter's matrices, by name."""
    return {name: weight for name, weight in module.named_parameters() if f".{NAME}." not in name}


def adapter_summary(module: nn.Module) -> str:
    """How much of a network its adapter trains, for the log."""
    learns = sum(weight.numel() for weight in learning_tensors(module).values())
    adapters, base = [part for part in module.modules() if low_rank_of(part) is not None], base_weights(module).values()
    experts = sum(weight.numel() for weight in base if weight.dim() > 2 and not weight.requires_grad)
    count = sum(weight.numel() for weight in base)
    left = (
        f"; {experts / count:.0%} of it are experts in tensors of their own, which stay as they are" if experts else ""
    )
    return f"an adapter on {len(adapters)} linear layers: {learns:,} weights learn, beside {count:,} of the base that do not{left}"
