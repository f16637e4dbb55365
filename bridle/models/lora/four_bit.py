"""Matrices in four bits a number: NF4, its constants quantised too (QLoRA: Dettmers 2023, arxiv.org/abs/2305.14314, §3), by bitsandbytes.

64 numbers share a constant of one byte, and 256 of these one of four: 4.13 bits a number. To all that reads it such a matrix is one in
bfloat16, whose numbers are unpacked for each product, forward and backward, and let go of.
"""

from __future__ import annotations

import logging
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from bridle.core.errors import UsageError

Part = TypeVar("Part", bound=nn.Module)
BLOCK = 64
SHARED = (torch.ops.aten.detach.default, torch.ops.aten.clone.default, torch.ops.aten.alias.default)


def quantiser() -> Any:
    """bitsandbytes' functions. UsageError where it is not installed."""
    # It warns that it lacks kernels for what is not asked of it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise UsageError(
            "frozen_precision = 'nf4' needs bitsandbytes, which is not installed; `pip install 'bridle[bits]'`, or set it to 'bfloat16'"
        ) from error
    return functional


class FourBit(Tensor):
    """A matrix [out, in] that nothing changes. What is done with it is done with its numbers in bfloat16; copies share what is packed."""

    packed: Tensor
    state: Any  # bitsandbytes' constants
    __torch_function__: Any = torch._C._disabled_torch_function_impl  # else whatever is made of it would be called one

    @staticmethod
    def __new__(cls, packed: Tensor, state: Any, shape: torch.Size) -> FourBit:
        found: FourBit = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bfloat16, device=packed.device)
        found.packed, found.state = packed, state
        return found

    @classmethod
    def of(cls, weight: Tensor) -> FourBit:
        """As near as four bits come. As one row: on a CPU bitsandbytes takes others' constants where a row ends within a block."""
        packed, state = quantiser().quantize_4bit(
            weight.to(torch.bfloat16).flatten(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        return cls(packed, state, weight.shape)

    def unpacked(self) -> Tensor:
        found: Tensor = quantiser().dequantize_4bit(self.packed, self.state)
        return found.view(self.shape)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func in SHARED:
            return cls(args[0].packed, args[0].state, args[0].shape)
        if func is torch.ops.aten.copy_.default and isinstance(args[0], FourBit):
            if isinstance(args[1], FourBit) and args[1].packed is args[0].packed:  # what a network was as it began
                return args[0]
            raise UsageError("a matrix in four bits cannot be written to; load the model anew")
        return func(*tree_map(in_bfloat16, args), **tree_map(in_bfloat16, kwargs or {}))


def in_bfloat16(given: Any) -> Any:
    return given.unpacked() if isinstance(given, FourBit) else given


def is_four_bit(module: nn.Module) -> bool:
    return any(isinstance(weight, FourBit) for weight in module.parameters())


def unpack_matrices(module: Part, device: torch.device | None = None) -> Part:
    """A network whose matrices in four bits lie in bfloat16 from now on, in place: the same numbers. `device`: where to, one after another,
    so that a card never holds all of them."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if isinstance(weight, FourBit):
                part._parameters[name] = nn.Parameter(
                    weight.unpacked().to(device or weight.device), requires_grad=False
                )
    return module
