"""Weights that nothing trains, held in two bytes each, or half a byte: a reference, the base under an adapter, a reward model that scores.

The matrices of linear maps and of embeddings are held in bfloat16; norms, biases, adapters and heads of scores stay as they are. What a
matrix gives is in the type that it was in before: where products run in bfloat16 they read the same numbers as ever, elsewhere a matrix is
widened while it is used, forward and backward. What is written to a folder has the base as its own folder does (`policy.with_exact_base`).
Or the matrices of the layers' linear maps are held in four bits each (`four_bit.py`), the embeddings and the head in bfloat16: then an
adapter has learnt on other numbers than the folder's, and what is written has the base as it is here, unpacked.

Left out on purpose: experts in tensors of their own, embeddings of a kind of their own (Gemma's, which scales them), others' quantised
weights.
"""

from __future__ import annotations

from types import MethodType
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridle.core.errors import UnsupportedModel
from bridle.core.text import telling_line
from bridle.kernels.kernels import project_by
from bridle.models.decoder import Decoder, Trunk
from bridle.models.foreign import PROBE, Foreign, ForeignTrunk
from bridle.models.lora.adapter import chosen_maps
from bridle.models.lora.four_bit import FourBit, unpack_matrices
from bridle.models.lora.low_rank import shared_copy
from bridle.recipe.data import FrozenPrecision

Net = TypeVar("Net", bound=nn.Module)
NARROW = torch.bfloat16


def narrow_matrices(
    module: Decoder | Foreign | Trunk | ForeignTrunk, device: torch.device, held: FrozenPrecision = "bfloat16"
) -> bool:
    """Hold a network's matrices in bfloat16 from now on, or those of its maps in four bits, in place and on the device; whether any of them
    loses digits by that. UnsupportedModel where it has maps of a kind that four bits cannot hold."""
    trunk = module.model if isinstance(module, Decoder | Foreign) else module
    maps = [part for part in chosen_maps(module, []) if type(part) is nn.Linear or not isinstance(part, nn.Linear)]
    embeddings, head = [part for part in trunk.modules() if type(part) is nn.Embedding], module._modules.get("lm_head")
    if held == "nf4" and any(not isinstance(part, nn.Linear) for part in maps):
        raise UnsupportedModel(
            f"the linear layers of a {trunk.config.family} model are of another kind than PyTorch's (Conv1D), which is not held in four "
            "bits; set frozen_precision to 'bfloat16'"
        )
    rounded = False
    for part in [*maps, *embeddings, *([] if head is None else [head])]:
        weight = part.get_parameter("weight")
        low = weight.data.to(device, NARROW)
        if held == "nf4" and part in maps:
            low = FourBit.of(low)
        rounded |= not torch.equal(low.to(weight.dtype), weight.data.to(device))
        part._parameters["weight"] = nn.Parameter(low, requires_grad=False)
    module.to(device)
    if isinstance(trunk, ForeignTrunk):
        for part in [*maps, *embeddings]:
            part.forward = MethodType(widened_rows if isinstance(part, nn.Embedding) else widened_map, part)
        require_runs(trunk)
    return rounded


def widened_map(linear: nn.Module, x: Tensor) -> Tensor:
    """The forward of a linear map, whatever its weight is held in: in autocast's precision where autocast is on, else in x's."""
    kind, weight, bias = x.device.type, linear.get_parameter("weight"), linear._parameters["bias"]
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return project_by(x.to(dtype), [weight if isinstance(linear, nn.Linear) else weight.T], [bias])


def widened_rows(embedding: nn.Module, ids: Tensor) -> Tensor:
    return F.embedding(ids, embedding.get_parameter("weight")).float()


def require_runs(trunk: ForeignTrunk) -> None:
    """UnsupportedModel where transformers' network takes no part of its own that is held in bfloat16."""
    try:
        with torch.no_grad():
            trunk(torch.arange(PROBE, device=next(trunk.parameters()).device)[None] % trunk.config.vocab_size)
    except Exception as error:  # an interface of another kind may fail in any way
        raise UnsupportedModel(
            f"a {trunk.config.family} model does not run with its matrices in bfloat16 ({telling_line(str(error))}); set frozen_precision "
            "to 'float32'"
        ) from error


def is_narrow(module: nn.Module) -> bool:
    return any(weight.dtype == NARROW for weight in module.parameters())


def with_matrices(module: Net, exact: nn.Module | None) -> Net:
    """The network once more, in the processor's own memory, with the matrices of another in place of those that are held in bfloat16; None:
    with their own, widened."""
    found = unpack_matrices(shared_copy(module), torch.device("cpu")).cpu()
    theirs = {} if exact is None else dict(exact.named_parameters())
    for (name, weight), own in zip(found.named_parameters(), module.parameters(), strict=True):
        weight.requires_grad_(own.requires_grad)
        if weight.dtype == NARROW:
            weight.data = theirs[name].data if theirs else weight.data.float()
    return found
