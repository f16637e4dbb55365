"""Decoding what transformers runs: its own module and key/value cache under the engine's loop. Right, and slow.

Shapes: B rows, T new positions, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bridle.models.foreign import Foreign
from bridle.models.lora.low_rank import merged_copy


@dataclass(frozen=True)
class Fallback:
    """A copy of a policy's module in the engine's precision, and the stamp that says whose weights they are."""

    module: Foreign
    stamp: str
    joins = False  # transformers' caches come in many kinds: rows leave them, none may be added
    least_rows = 4  # below this a CPU's products take other ways, and a row's last digits would depend on its company

    @property
    def max_positions(self) -> int:
        return self.module.config.max_positions

    @property
    def vocabulary(self) -> int:
        return self.module.config.vocab_size

    @property
    def device(self) -> torch.device:
        return self.module.output_weight().device

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[FallbackDecoding, Tensor]:
        """Run prompts through the model: the rows under way and their logits, [B, V]."""
        width = max(map(len, prompts))
        ids_BT = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=self.device)
        padding_B1 = torch.tensor([[width - len(p)] for p in prompts], device=self.device)
        decoding = FallbackDecoding(self.module, torch.arange(width, device=self.device) >= padding_B1)
        return decoding, decoding.forward(ids_BT)

    def gather(self, parts: Sequence[tuple[FallbackDecoding, Tensor]]) -> FallbackDecoding:
        """Rows of a decoding, which is used up. A row may be taken more than once: the answers to one prompt."""
        ((decoding, rows),) = parts
        decoding.cache.reorder_cache(rows)
        decoding.seen_BS = decoding.seen_BS[rows]
        return decoding


def pack_foreign(module: Foreign, stamp: str, dtype: torch.dtype) -> Fallback:
    copy = merged_copy(module)
    for parameter in copy.parameters():  # not buffers: rotary frequencies in bfloat16 would lose late positions
        parameter.data = parameter.data.to(dtype)
    return Fallback(copy, stamp)


class FallbackDecoding:
    """Rows under way: transformers' cache, and which slots hold tokens of a row, `seen` [B, S], for padding does not."""

    def __init__(self, module: Foreign, seen_BS: Tensor) -> None:
        self.module, self.seen_BS = module, seen_BS
        self.cache = module.model.new_cache()

    def full(self, live: list[int]) -> bool:
        return False  # the cache grows with every token

    def join(self, other: FallbackDecoding, rows: Tensor, places: Tensor) -> bool:
        return False

    def step(self, tokens_B: Tensor) -> Tensor:
        """The next token of every row; logits [B, V]."""
        self.seen_BS = F.pad(self.seen_BS, (0, 1), value=True)
        return self.forward(tokens_B[:, None])

    def forward(self, ids_BT: Tensor) -> Tensor:
        hidden_BTD = self.module.model.step(ids_BT, self.seen_BS, self.cache)
        return self.module.logits(hidden_BTD[:, -1])
