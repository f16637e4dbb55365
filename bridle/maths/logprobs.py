"""Log-probs of taken tokens straight from hidden states, a slice of rows at a time.

The whole [N, V] matrix of logits is never held in float32: each slice's logits are made, read and dropped, and made
again for the gradient. That saves most of the memory of a step, and time too, for a slice stays in the processor's cache.
Shapes: N selected tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SLICE = 2**19  # numbers of one slice of logits: 2 MiB in float32


def linear_logprobs(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(hidden · weightᵀ / temperature) at the targets, [N], in float32 or wider.

    The products run in autocast's precision where autocast is on, in that of `hidden_ND` elsewhere.
    """
    kind = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ND.dtype
    with torch.autocast(kind, enabled=False):
        result: Tensor = _LinearLogprobs.apply(hidden_ND, weight_VD, targets_N, temperature, dtype)
        return result


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, temperature: float, dtype: torch.dtype
    ) -> Tensor:
        hidden, weight = hidden_ND.to(dtype), weight_VD.to(dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        logp_N = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        for rows in row_slices(hidden, weight):
            logits_NV = scaled(hidden[rows] @ weight.T, wide, temperature)
            logp_N[rows] = logits_NV.log_softmax(1).gather(1, targets_N[rows, None])[:, 0]
        ctx.save_for_backward(hidden, weight, targets_N)
        ctx.temperature, ctx.dtypes = temperature, (hidden_ND.dtype, weight_VD.dtype)
        return logp_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """d log p(y) / d logits = onehot(y) - softmax(logits)."""
        hidden, weight, targets_N = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=grad_N.dtype, device=weight.device)
        for rows in row_slices(hidden, weight):
            scaled_grad_N1 = grad_N[rows, None] / ctx.temperature
            probs_NV = scaled(hidden[rows] @ weight.T, grad_N.dtype, ctx.temperature).softmax(1)
            grad_NV = probs_NV.mul_(-scaled_grad_N1).scatter_add_(1, targets_N[rows, None], scaled_grad_N1)
            grad_low_NV = grad_NV.to(hidden.dtype)
            grad_hidden[rows] = grad_low_NV @ weight
            grad_weight += grad_low_NV.T @ hidden[rows]
        return grad_hidden.to(ctx.dtypes[0]), grad_weight.to(ctx.dtypes[1]), None, None, None


def scaled(logits_NV: Tensor, dtype: torch.dtype, temperature: float) -> Tensor:
    wide_NV = logits_NV.to(dtype)
    return wide_NV if temperature == 1.0 else wide_NV / temperature


def row_slices(hidden_ND: Tensor, weight_VD: Tensor) -> list[slice]:
    size = max(1, SLICE // len(weight_VD))
    return [slice(start, start + size) for start in range(0, len(hidden_ND), size)]
