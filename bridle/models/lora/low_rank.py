"""Adapters of low rank, LoRA (Hu 2021, arxiv.org/abs/2106.09685, §4.1): W x + s B A x, W frozen, s = α / r.

A linear map of the network gets a part more, `lora` with A [r, in] and B [out, r], and keeps its own name and weight: what reads
Hugging Face's names finds them, adapted or not. Training adds the two products beside W's; for decoding and saving, W + s B A is made
in float32, in a copy: the weights that are trained with are never merged in place.

Left out on purpose: dropout (sampled and trained log-probs must agree), DoRA, biases.
Shapes: r rank, in and out widths of the map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridle.kernels import kernels
from bridle.kernels.kernels import join, project
from bridle.models.lora.four_bit import is_four_bit, unpack_matrices

Net = TypeVar("Net", bound=nn.Module)
NAME = "lora"  # of the part that a linear map gets


class LowRank(nn.Module):
    """x ↦ s B A x. As peft begins: A uniform within ±1/√in (He 2015 with a = √5), B zero, so that at first nothing changes."""

    def __init__(self, like: Tensor, sizes: tuple[int, int], r: int, scale: float) -> None:
        super().__init__()
        (inputs, outputs), wide = sizes, torch.promote_types(like.dtype, torch.float32)
        self.A = nn.Parameter(torch.zeros(r, inputs, dtype=wide, device=like.device))
        self.B = nn.Parameter(torch.zeros(outputs, r, dtype=wide, device=like.device))
        self.scale = scale

    def begin(self, generator: torch.Generator) -> None:
        drawn = torch.empty(self.A.shape)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            self.A.copy_(drawn)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.A), self.B * self.scale)  # thin: the scale is the smaller factor's

    @torch.no_grad()
    def delta(self) -> Tensor:
        """s B A [out, in], in float32 or wider."""
        wide = torch.promote_types(self.A.dtype, torch.float32)
        return self.B.to(wide) @ self.A.to(wide) * self.scale


def low_rank_of(linear: nn.Module) -> LowRank | None:
    found = linear._modules.get(NAME)
    return found if isinstance(found, LowRank) else None


def is_linear(module: nn.Module) -> bool:
    """PyTorch's linear map, or the one of GPT-2's kind, whose weight is [in, out]; transformers is not loaded to ask."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def add_low_rank(linear: nn.Module, r: int, scale: float) -> LowRank:
    """Give a linear map an adapter that is zero yet."""
    weight = linear.get_parameter("weight")
    sizes = weight.shape[::-1] if isinstance(linear, nn.Linear) else weight.shape
    found = LowRank(weight, (sizes[0], sizes[1]), r, scale)
    linear.add_module(NAME, found)
    if with_low_rank not in linear._forward_hooks.values():  # left by an adapter that was merged, or taken off
        linear.register_forward_hook(with_low_rank)
    return found


def with_low_rank(linear: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """What a map that transformers calls gives: `through` does the same for ours."""
    found = low_rank_of(linear)
    return output if found is None else output + found(inputs[0])


def through(x: Tensor, *linears: nn.Linear) -> Tensor:
    """x [..., D] through several linear maps at once and their adapters, where they have some; their outputs side by side."""
    adapters = [low_rank_of(linear) for linear in linears]
    if not any(adapter is not None for adapter in adapters):
        return project(x, *linears)
    A = torch.cat([adapter.A for adapter in adapters if adapter is not None])
    B = torch.block_diag(
        *(
            x.new_zeros(linear.out_features, 0) if adapter is None else adapter.B * adapter.scale
            for linear, adapter in zip(linears, adapters, strict=True)
        )
    )
    own = [list(linear.parameters(recurse=False)) for linear in linears]  # the weight, and the bias where there is one
    if kernels.wish == "torch" or any(parameter.requires_grad for parameters in own for parameter in parameters):
        return project(x, *linears) + F.linear(F.linear(x, A), B)
    weights, biases = [first for first, *_ in own], [bias for _, *rest in own for bias in rest]
    y: Tensor = _Adapted.apply(x, A, B, weights, biases)
    return y


class _Adapted(torch.autograd.Function):
    """x Wᵀ + (x Aᵀ) Bᵀ, of a W that is frozen. What the adapter adds is added in place, to the gradient of x too: sums as wide as W's
    outputs would cost more time than its products, and only x and x Aᵀ wait for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
        kind, rows = x.dtype, x.reshape(-1, x.shape[-1])
        hidden = rows @ A.to(kind).T
        y = F.linear(rows, join(weights, kind), join(biases, kind) if biases else None)
        y.addmm_(hidden, B.to(kind).T)
        ctx.save_for_backward(x, hidden, A, B, *weights)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, hidden, A, B, *weights = ctx.saved_tensors
        kind, rows, grad_rows = x.dtype, x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        grad_hidden = grad_rows @ B.to(kind)
        grad_A, grad_B = grad_hidden.T @ rows, grad_rows.T @ hidden
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_rows @ join(weights, kind)).addmm_(grad_hidden, A.to(kind)).view_as(x)
        return grad_x, grad_A.to(A.dtype), grad_B.to(B.dtype), None, None


# ------------------------------------------------------------------------------------------------- merging and sharing


def merged_weight(linear: nn.Module) -> Tensor:
    """W + s B A, a tensor of its own where there is an adapter; else the weight itself."""
    weight, found = linear.get_parameter("weight"), low_rank_of(linear)
    if found is None:
        return weight
    delta = found.delta()
    return weight.detach().to(delta.dtype) + (delta if isinstance(linear, nn.Linear) else delta.T)


def merged_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a network without adapters that computes the same, by the names that they have here, one after another."""
    adapted = {f"{name}.weight": part for name, part in module.named_modules() if low_rank_of(part) is not None}
    inside = tuple(f"{name.removesuffix('.weight')}.{NAME}." for name in adapted)
    for name, tensor in module.state_dict().items():
        if not name.startswith(inside or ("\n",)):
            yield name, merged_weight(adapted[name]) if name in adapted else tensor


def merged_copy(module: Net) -> Net:
    """The same function as a network without adapters, with numbers of its own."""
    found = unpack_matrices(deepcopy(module))
    for part in list(found.modules()):
        if low_rank_of(part) is not None:
            part.get_parameter("weight").data = merged_weight(part).data
            del part._modules[NAME]
    return found.requires_grad_(True)


def without_adapter(module: Net) -> Net:
    """The base of an adapted network, over the same numbers."""
    found = shared_copy(module)
    for part in list(found.modules()):
        part._modules.pop(NAME, None)
    return found


def same_function(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks hold the same numbers to the bit, merged."""
    pairs = zip(merged_tensors(one), merged_tensors(other), strict=False)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def become(module: nn.Module, began: nn.Module) -> None:
    """Make a network again what it was as it began, as which another was kept."""
    module.load_state_dict(began.state_dict(), strict=False)
    if not is_adapted(began):
        for part in module.modules():
            if isinstance(part, LowRank):
                nn.init.zeros_(part.B)


def nearly_same(one: nn.Module, other: nn.Module) -> bool:
    """The same up to the rounding of a product that another machine may have made, and of matrices that are held in fewer bits."""
    apart = (
        0.25 if is_four_bit(one) or is_four_bit(other) else 2**-7
    )  # the widest gap of NF4's levels is .3 of a block's largest number
    rounded = any(weight.dtype == torch.bfloat16 for module in (one, other) for weight in module.parameters())

    def alike(x: Tensor, y: Tensor) -> bool:
        if rounded:
            return float((x.float() - y.float()).abs().max()) <= apart * float(y.abs().max())
        return torch.allclose(x, y, rtol=1e-5, atol=1e-6)

    pairs = zip(merged_tensors(one), merged_tensors(other), strict=True)
    return all(a == b and x.shape == y.shape and alike(x, y) for (a, x), (b, y) in pairs)


def is_adapted(module: nn.Module) -> bool:
    return any(isinstance(part, LowRank) for part in module.modules())


def shared_copy(module: Net, keep_what_learns: bool = False) -> Net:
    """The network once more over the same numbers, frozen: only its Parameters are others, so that it stays apart from what is added to
    one of the two. `keep_what_learns`: what the other trains is copied, and so stays as it is now."""
    known: dict[int, Any] = {id(buffer): buffer for buffer in module.buffers()}
    for weight in module.parameters():
        own = weight.detach().clone() if keep_what_learns and weight.requires_grad else weight.detach()
        known[id(weight)] = nn.Parameter(own, requires_grad=False)
    return deepcopy(module, known)
