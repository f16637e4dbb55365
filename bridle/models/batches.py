"""From token ids to tensors: padding on the right, masks from lengths (never from ids), log-probs at the taken tokens.

Shapes: B sequences, T = width - 1 predictions. Column t holds what concerns the token at position t + 1: its log-prob,
its mask, the value of the state just before it. So every [B, T] tensor of a batch lines up with every other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bridle.maths.logprobs import linear_logprobs
from bridle.models.decoder import Decoder


@dataclass(frozen=True)
class Batch:
    """Prompts with their completions. Example with pad 0, prompt [5, 6], completion [7, 1]: ids [5, 6, 7, 1, 0],
    mask [F, T, T, F]: the predictions of 7 and of the stop token 1 count, those of 6 and of the padding do not."""

    ids_BW: Tensor
    prompt_lengths_B: Tensor
    lengths_B: Tensor

    @property
    def mask_BT(self) -> Tensor:
        t = torch.arange(self.ids_BW.shape[1] - 1, device=self.ids_BW.device)
        return (t >= self.prompt_lengths_B[:, None] - 1) & (t < self.lengths_B[:, None] - 1)

    def rows(self, index: Tensor) -> Batch:
        """Some of the sequences, as wide as the longest of them."""
        width = int(self.lengths_B[index].max())
        return Batch(self.ids_BW[index, :width], self.prompt_lengths_B[index], self.lengths_B[index])

    def __len__(self) -> int:
        return len(self.lengths_B)


def pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | None = None) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], device=device)


def make_batch(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    pad_id: int,
    device: torch.device | None = None,
) -> Batch:
    joined = [[*p, *c] for p, c in zip(prompts, completions, strict=True)]
    return Batch(
        pad(joined, pad_id, device),
        torch.tensor([len(p) for p in prompts], device=device),
        torch.tensor([len(j) for j in joined], device=device),
    )


def masked_logprobs(policy: Decoder, batch: Batch, temperature: float = 1.0) -> Tensor:
    """log π of the completions' tokens alone, [N], row after row: most of a batch's logits are never made."""
    mask_BT = batch.mask_BT
    hidden_ND = policy.hidden(batch.ids_BW)[:, :-1][mask_BT]
    return linear_logprobs(hidden_ND, policy.output_weight(), batch.ids_BW[:, 1:][mask_BT], temperature)


def spread(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    """Put N values back where the mask holds; zeros elsewhere."""
    return torch.zeros(mask_BT.shape, dtype=values_N.dtype, device=values_N.device).masked_scatter(mask_BT, values_N)


def sequence_logprobs(policy: Decoder, batch: Batch, temperature: float = 1.0) -> Tensor:
    """log π of each completion token, [B, T], zero off the mask."""
    return spread(masked_logprobs(policy, batch, temperature), batch.mask_BT)


def slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in batches of `size` of similar length, shortest first: little padding, few shapes."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[s] for s in slices(len(order), size)]
