"""Log-probs of taken tokens straight from hidden states, a slice of rows at a time.

The whole [N, V] matrix of logits is not held, but where it is small: each slice's logits are made, read and dropped, and made
again for the gradient. That saves most of the memory of a step, and time too where a slice stays in the processor's cache.
Shapes: N selected tokens, D hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from bridle.kernels.kernels import built, compiled

SLICE = 2**19  # numbers of one slice of logits: 2 MiB in float32, which stay in the processor's cache from pass to pass
LONG_SLICE = 2**22  # where each row is read once from end to end
KEPT = 2**24  # up to so many are kept for the gradient, 32 MiB in bfloat16; where there are more they are made again
LEAST_ROWS = 64  # of a slice: each slice reads the whole weight, and three rows at a time take ten times as long


def linear_logprobs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    temperature: float = 1.0,
    bias_V: Tensor | None = None,
    soft_cap: float = 0.0,
) -> Tensor:
    """log softmax(logits / temperature) at the targets, [N], in float32 or wider; logits = hidden · weightᵀ + bias.

    A soft cap c > 0 squeezes logits into (-c, c) as c · tanh(logits / c) (Gemma 2, arxiv.org/abs/2408.00118, §2).
    The products run in autocast's precision where autocast is on, in that of `hidden_ND` elsewhere.
    """
    kind = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ND.dtype
    with torch.autocast(kind, enabled=False):
        result: Tensor = _LinearLogprobs.apply(hidden_ND, weight_VD, targets_N, temperature, bias_V, soft_cap, dtype)
        return result


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        temperature: float,
        bias_V: Tensor | None,
        soft_cap: float,
        dtype: torch.dtype,
    ) -> Tensor:
        hidden, weight = hidden_ND.to(dtype), weight_VD.to(dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        logp_N = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        run = None if bias_V is not None or soft_cap else compiled(dtype, hidden)
        if run is None:
            for rows in row_slices(len(hidden), len(weight)):
                logits_NV = scaled(hidden[rows] @ weight.T, wide, temperature, bias_V, soft_cap)
                logp_N[rows] = logits_NV.log_softmax(1).gather(1, targets_N[rows, None])[:, 0]
            ctx.save_for_backward(hidden, weight_VD, targets_N, bias_V)
        else:
            hidden, targets_N, total_N = hidden.contiguous(), targets_N.contiguous(), torch.empty_like(logp_N)
            ctx.kept = []
            for rows in row_slices(len(hidden), len(weight), LONG_SLICE):
                logits_NV = hidden[rows] @ weight.T
                taken = (1 / temperature, logits_NV, targets_N[rows])
                run("logprobs_forward", *logits_NV.shape, *taken, logp_N[rows], total_N[rows])
                if len(hidden) * len(weight) <= KEPT:
                    ctx.kept.append(logits_NV)
            ctx.save_for_backward(hidden, weight_VD, targets_N, bias_V, total_N)
        ctx.temperature, ctx.soft_cap, ctx.dtypes = temperature, soft_cap, (hidden_ND.dtype, weight_VD.dtype)
        return logp_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, Tensor | None, None, None, Tensor | None, None, None]:
        """d log p(y) / d logits = onehot(y) - softmax(logits). A weight that is frozen has no gradient made."""
        hidden, weight_VD, targets_N, bias_V, *more = ctx.saved_tensors
        weight = weight_VD.to(hidden.dtype)  # again: no copy has waited
        learns = ctx.needs_input_grad[1]
        if more:
            grad_hidden, grad_weight = compiled_gradient(ctx, weight, grad_N, learns)
            found = None if grad_weight is None else grad_weight.to(ctx.dtypes[1])
            return grad_hidden.to(ctx.dtypes[0]), found, None, None, None, None, None
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=grad_N.dtype, device=weight.device) if learns else None
        grad_bias = None if bias_V is None else torch.zeros_like(bias_V)
        for rows in row_slices(len(hidden), len(weight)):
            scaled_grad_N1 = grad_N[rows, None] / ctx.temperature
            logits_NV = scaled(hidden[rows] @ weight.T, grad_N.dtype, ctx.temperature, bias_V, ctx.soft_cap)
            probs_NV = logits_NV.softmax(1)
            grad_NV = probs_NV.mul_(-scaled_grad_N1).scatter_add_(1, targets_N[rows, None], scaled_grad_N1)
            if ctx.soft_cap:  # d tanh(x) / dx = 1 - tanh²(x)
                grad_NV *= 1 - (logits_NV * (ctx.temperature / ctx.soft_cap)).square()
            if grad_bias is not None:
                grad_bias += grad_NV.sum(0)
            grad_low_NV = grad_NV.to(hidden.dtype)
            grad_hidden[rows] = grad_low_NV @ weight
            if grad_weight is not None:
                grad_weight += grad_low_NV.T @ hidden[rows]
        found = None if grad_weight is None else grad_weight.to(ctx.dtypes[1])
        return grad_hidden.to(ctx.dtypes[0]), found, None, None, grad_bias, None, None


def compiled_gradient(ctx: Any, weight: Tensor, grad_N: Tensor, learns: bool) -> tuple[Tensor, Tensor | None]:
    """The gradients of hidden and of a weight that learns, by the compiled kernels; each slice of logits becomes its gradient in place."""
    hidden, _, targets_N, _, total_N = ctx.saved_tensors
    kept, ctx.kept = ctx.kept[::-1], []  # for they are written over
    run, grad_N, grad_hidden = built(hidden.dtype), grad_N.contiguous(), torch.empty_like(hidden)
    grad_weight = torch.zeros(weight.shape, dtype=grad_N.dtype) if learns and not len(hidden) else None
    for rows in row_slices(len(hidden), len(weight), LONG_SLICE):
        logits_NV = kept.pop() if kept else hidden[rows] @ weight.T
        taken = (1 / ctx.temperature, logits_NV, targets_N[rows])
        run("logprobs_backward", *logits_NV.shape, *taken, total_N[rows], grad_N[rows])
        grad_hidden[rows] = logits_NV @ weight
        if learns:
            part = (logits_NV.T @ hidden[rows]).to(grad_N.dtype)
            grad_weight = part if grad_weight is None else grad_weight.add_(part)
    return grad_hidden, grad_weight


def scaled(
    raw_NV: Tensor, dtype: torch.dtype, temperature: float, bias_V: Tensor | None = None, soft_cap: float = 0.0
) -> Tensor:
    logits_NV = raw_NV.to(dtype)
    if bias_V is not None:
        logits_NV = logits_NV + bias_V
    if soft_cap:
        logits_NV = soft_cap * (logits_NV / soft_cap).tanh()
    return logits_NV if temperature == 1.0 else logits_NV / temperature


def row_slices(rows: int, vocabulary: int, numbers: int | None = None) -> list[slice]:
    """Slices of so many rows of logits that are small enough to be held at once: `numbers` of them, None for `SLICE`."""
    size = max(LEAST_ROWS, (SLICE if numbers is None else numbers) // vocabulary)
    return [slice(start, start + size) for start in range(0, rows, size)]
