"""Drawing tokens: temperature, nucleus and top-k, without sorting the vocabulary.

Random numbers depend on nothing but a counter. Nucleus and top-k are both taken of the whole distribution, and a token
is kept that both keep.
Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bridle.core.errors import RecipeError
from bridle.maths.logprobs import row_slices

FEW = 16  # likeliest tokens that are looked at first
GOLDEN = -7046029254386353131  # 2⁶⁴/φ as a signed 64-bit number
MIX1 = -4658895280553007687
MIX2 = -7723592293110705685


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. Reinforcement learning needs the plain distribution: `plain` tells whether this is one."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise RecipeError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise RecipeError(f"temperature must be 0 (always the likeliest token) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise RecipeError(f"top_p must be within (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise RecipeError(f"top_k must be 0 (all tokens) or more, got {self.top_k}")

    @property
    def plain(self) -> bool:
        return self.top_p == 1 and self.top_k == 0 and self.temperature > 0


def scramble(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64 (wrapping) arithmetic (Steele 2014, doi.org/10.1145/2660193.2660195)."""
    x = (x ^ unsigned_shift(x, 30)) * MIX1
    x = (x ^ unsigned_shift(x, 27)) * MIX2
    return x ^ unsigned_shift(x, 31)


def unsigned_shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def signed(number: int) -> int:
    """The same 64 bits read as a signed number, which is what PyTorch's integers are."""
    return (number + 2**63) % 2**64 - 2**63


def uniforms(seed: int, samples_B: Tensor, position_B: Tensor, attempt: int = 0) -> Tensor:
    """One number in [0, 1) for each (seed, sample, position, try), float64; shapes broadcast.

    The counter is hashed, so a sample's numbers are the same alone, in any batch, in any order, and after a restart.
    """
    x = scramble(samples_B * GOLDEN + scramble(torch.tensor(signed(seed), device=samples_B.device)))
    x = scramble(x + position_B * GOLDEN)
    x = scramble(x + signed((attempt + 1) * MIX1))
    return unsigned_shift(x, 11).double() * 2.0**-53


def inverse_cdf(cumulative_BV: Tensor, u_B: Tensor) -> Tensor:
    """The first token whose cumulative mass exceeds u · total: a token without mass is never drawn."""
    highest = 1 - torch.finfo(cumulative_BV.dtype).eps
    threshold_B1 = u_B.to(cumulative_BV.dtype).clamp(max=highest)[:, None] * cumulative_BV[:, -1:]
    drawn_B1 = torch.searchsorted(cumulative_BV, threshold_B1, right=True)
    return drawn_B1[:, 0].clamp_(max=cumulative_BV.shape[1] - 1)


def draw_truncated(probs_BV: Tensor, u_B: Tensor, top_p: float, top_k: int) -> tuple[Tensor, Tensor]:
    """Tokens [B] and log-probs [B] under the nucleus (Holtzman 2020) or top-k distribution, renormalised.

    A token is kept while the likelier ones hold less than top_p, and are fewer than top_k. A trained model's nucleus is
    a few tokens, so only the likeliest FEW of a row are looked at, and eight times as many where those were not enough.
    """
    V = probs_BV.shape[1]
    tokens_B = torch.empty(len(u_B), dtype=torch.long, device=u_B.device)
    logprobs_B = torch.empty(len(u_B), dtype=probs_BV.dtype, device=u_B.device)
    rows, width = torch.arange(len(u_B), device=u_B.device), min(V, FEW)
    while len(rows):
        best_RW, ids_RW = probs_BV[rows].topk(width)
        kept_RW = best_RW.cumsum(1) - best_RW < top_p
        if top_k:
            kept_RW &= torch.arange(width, device=u_B.device) < top_k
        cumulative_RW = torch.where(kept_RW, best_RW, 0.0).cumsum(1)
        drawn_R1 = inverse_cdf(cumulative_RW, u_B[rows])[:, None]
        tokens_B[rows] = ids_RW.gather(1, drawn_R1)[:, 0]
        logprobs_B[rows] = (best_RW.gather(1, drawn_R1) / cumulative_RW[:, -1:]).log()[:, 0]
        open_R = kept_RW[:, -1] if width < V else torch.zeros_like(kept_RW[:, -1])
        rows, width = rows[open_R], min(V, 8 * width)
    return tokens_B, logprobs_B


def draw(
    logits_BV: Tensor, settings: Sampling, seed: int, samples_B: Tensor, position_B: Tensor
) -> tuple[Tensor, Tensor]:
    """One token a row and its log-prob under the distribution that was sampled from: (tokens [B], logprobs [B]).

    A slice of rows at a time: what is made of logits on the way is several times their size.
    """
    parts = [
        draw_slice(logits_BV[rows], settings, seed, samples_B[rows], position_B[rows])
        for rows in row_slices(*logits_BV.shape)
    ]
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([logprobs for _, logprobs in parts])


def draw_slice(
    logits_BV: Tensor, settings: Sampling, seed: int, samples_B: Tensor, position_B: Tensor
) -> tuple[Tensor, Tensor]:
    wide_BV = logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()
    if settings.temperature == 0:
        best_B = wide_BV.argmax(1)
        return best_B, torch.zeros_like(wide_BV[:, 0])  # the likeliest token, with probability one
    logp_BV = (wide_BV / settings.temperature).log_softmax(1)
    probs_BV = logp_BV.exp()
    u_B = uniforms(seed, samples_B, position_B)
    if not settings.plain:
        return draw_truncated(probs_BV, u_B, settings.top_p, settings.top_k)
    drawn_B = inverse_cdf(probs_BV.cumsum(1), u_B)
    return drawn_B, logp_BV.gather(1, drawn_B[:, None])[:, 0]
