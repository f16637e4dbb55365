"""Weights, gradients and moments divided over the ranks (FSDP2, torch.distributed.fsdp.fully_shard; Zhao 2023,
arxiv.org/abs/2304.11277): each holds its piece of every layer, and has a layer whole only while it runs.

A module that is divided has two forms over one set of numbers: the divided one trains; the plain one, with all weights whole, is what the
engine packs, an audit asks and a model's folder is written from. Only what learns is divided: the frozen base under an adapter stays as
it is on every rank. Ties stay tied, for an embedding and the head that is its own are one weight of one group.
Left out for now: dividing what is only read (a reference, a reward model that scores), Muon, moments in the processor's memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bridle.compute.parallel import gathered, world_size
from bridle.compute.recomputing import Layered
from bridle.core.timeline import timed

Part = TypeVar("Part")
Form = dict[nn.Module, tuple[type[nn.Module], dict[str, Any]]]  # class and attributes of each part of a module


@dataclass
class Divided:
    """The plain form of a module that is divided, and its weights, which are empty while the other form is on."""

    plain: Form
    weights: list[nn.Parameter]
    whole: bool = False


DIVIDED: WeakKeyDictionary[nn.Module, Divided] = WeakKeyDictionary()


def form_now(module: nn.Module) -> Form:
    return {
        part: (
            type(part),
            {name: copy(value) if isinstance(value, dict) else value for name, value in part.__dict__.items()},
        )
        for part in module.modules()
    }


def take_form(form: Form) -> None:
    for part, (kind, attributes) in form.items():
        part.__class__ = kind
        part.__dict__.clear()
        part.__dict__.update(attributes)


def learning_weights(module: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in module.parameters() if weight.requires_grad]


def divide(modules: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Divide what learns of the networks among some modules over the ranks, and hand the pieces to the optimisers, which have not stepped
    yet. A lone head stays whole."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # nothing of ours writes into it
    piece_of: dict[nn.Parameter, nn.Parameter] = {}
    for module in modules:
        trunks = [part for part in module.modules() if isinstance(part, Layered)]
        weights = learning_weights(module)
        if not trunks or not weights:
            continue
        kept = Divided(form_now(module), weights)
        frozen = {weight for weight in module.parameters() if not weight.requires_grad}
        for layer in [layer for trunk in trunks for layer in trunk.parts()]:
            fully_shard(layer, ignored_params=frozen)
        root = fully_shard(module, ignored_params=frozen)
        register_fsdp_forward_method(module, "hidden")  # by which trainers read it; then a head has its weight too
        for part in groups_of(module):
            part.set_gradient_divide_factor(1.0)  # a sum: a loss divides by the count of all ranks
            part.set_force_sum_reduction_for_comms(True)  # all that gloo knows
        root.set_reduce_scatter_unused_params(True)  # by a rank that had no rows
        piece_of |= dict(zip(weights, learning_weights(module), strict=True))
        DIVIDED[module] = kept
        empty(kept)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [piece_of.get(weight, weight) for weight in group["params"]]


def groups_of(module: nn.Module) -> list[Any]:
    """The parts of a divided module that are gathered by themselves."""
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def empty(kept: Divided) -> None:
    for weight in kept.weights:
        weight.data = weight.data.new_empty(0)


@contextmanager
def in_plain_form(*modules: nn.Module) -> Iterator[None]:
    """Have divided modules in their plain form while the block runs, on every rank, to be read and not to be changed."""
    with ExitStack() as forms:
        for module in modules:
            kept = DIVIDED.get(module)
            if kept is not None and not kept.whole:
                forms.callback(divide_again, kept, take_plain_form(module, kept))
        yield


def make_whole(module: nn.Module) -> None:
    """Give a module that is divided its plain form, for good."""
    kept = DIVIDED.get(module)
    if kept is not None and not kept.whole:
        take_plain_form(module, kept)
        kept.plain, kept.weights = {}, []  # by which the module would stay in memory


def take_plain_form(module: nn.Module, kept: Divided) -> Form:
    """The form that it had."""
    reshard([module])
    before = form_now(module)
    with timed("sync"):
        for weight, piece in zip(kept.weights, learning_weights(module), strict=True):
            weight.data = whole_tensor(piece.detach())
    take_form(kept.plain)
    kept.whole = True
    return before


def divide_again(kept: Divided, form: Form) -> None:
    kept.whole = False
    take_form(form)
    empty(kept)


def reshard(modules: Sequence[nn.Module]) -> None:
    """Let go of what was gathered: after a step it is of the weights before."""
    for module in modules:
        if module in DIVIDED and not DIVIDED[module].whole:
            for part in groups_of(module):
                part.reshard()


# ------------------------------------------------------------------------------------------------ ranks pass by pass


def lockstep(parts: Sequence[Part], *modules: nn.Module) -> Iterator[Part]:
    """This rank's parts of an optimiser step, one pass each. Where weights are divided every rank makes as many, for each brings the others
    its pieces: a rank with fewer parts makes up for them by passes that add nothing. Gradients are added up in the last pass alone."""
    divided: list[Any] = [module for module in modules if module in DIVIDED and not DIVIDED[module].whole]
    passes = max(gathered(len(parts))) if divided else len(parts)
    for number in range(passes):
        for module in divided:
            module.set_requires_gradient_sync(number == passes - 1)
        if number < len(parts):
            yield parts[number]
        else:
            add_nothing(divided)


def add_nothing(modules: Sequence[Any]) -> None:
    """A pass over one token by modules in the order of a trainer's own pass; its gradient is zero."""
    token = torch.zeros(1, 1, dtype=torch.long, device=next(modules[0].parameters()).device)
    found = [module.hidden(token) for module in modules]
    if torch.is_grad_enabled():
        torch.autograd.backward(found, [torch.zeros_like(hidden) for hidden in found])


# ------------------------------------------------------------------------------------------------- tensors in pieces


def is_piece(tensor: Any) -> bool:
    if world_size() == 1:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole_tensor(tensor: Any) -> Tensor:
    """A tensor that may be divided, whole. Every rank must call it."""
    found: Tensor = tensor.full_tensor() if is_piece(tensor) else tensor
    return found


def my_piece(tensor: Any) -> Tensor:
    """What this rank holds of it."""
    found: Tensor = tensor.to_local() if is_piece(tensor) else tensor
    return found


def divided_like(tensor: Tensor, like: Any) -> Tensor:
    """A whole tensor as this rank holds another of its shape."""
    if not is_piece(like) or tensor.shape != like.shape:  # a step counter is whole everywhere
        return tensor
    from torch.distributed.tensor import distribute_tensor

    found: Tensor = distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return found
