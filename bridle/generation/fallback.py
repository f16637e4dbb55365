"""Decoding what transformers runs: its own module and key/value cache under the engine's loop. Right, and slow.

Shapes: B rows, T new positions, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from bridle.models.foreign import Foreign


@dataclass(frozen=True)
class Fallback:
    """A copy of a policy's module in the engine's precision, and the stamp that says whose weights they are."""

    module: Foreign
    stamp: str

    @property
    def max_positions(self) -> int:
        return self.module.config.max_positions

    @property
    def device(self) -> torch.device:
        return self.module.output_weight().device

    def begin(self, lengths: Sequence[int], width: int, slots: int) -> FallbackDecoding:
        """Rows of such lengths, padded on the left to `width`, to be answered within `slots`."""
        return FallbackDecoding(self, lengths, width, slots)


def pack_foreign(module: Foreign, stamp: str, dtype: torch.dtype) -> Fallback:
    copy = deepcopy(module)
    for parameter in copy.parameters():  # not buffers: rotary frequencies in bfloat16 would lose late positions
        parameter.data = parameter.data.to(dtype)
    return Fallback(copy, stamp)


class FallbackDecoding:
    """Rows under way: transformers' cache, and which slots hold tokens of a row, `seen` [B, S], for padding does not."""

    def __init__(self, packed: Fallback, lengths: Sequence[int], width: int, slots: int) -> None:
        self.module, self.end = packed.module, 0
        self.cache = packed.module.model.new_cache()
        padding_B = torch.tensor([width - n for n in lengths], device=packed.device)
        self.seen_BS = torch.arange(slots, device=packed.device) >= padding_B[:, None]

    def keep(self, rows: Tensor) -> None:
        self.cache.reorder_cache(rows)
        self.seen_BS = self.seen_BS[rows]

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Run T new tokens through the model; logits of the last one, [B, V]."""
        self.end += ids_BT.shape[1]
        hidden_BTD = self.module.model.step(ids_BT, self.seen_BS[:, : self.end], self.cache)
        return self.module.logits(hidden_BTD[:, -1])
