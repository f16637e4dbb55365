"""Drawing tokens: temperature, nucleus and top-k, mostly without sorting the vocabulary.

Random numbers depend on nothing but a counter. Nucleus and top-k are both taken of the whole distribution, and a token
is kept that both keep; tokens of equal probability are kept or dropped together.
Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bridle.core.errors import RecipeError

TRIES = 6  # draws before a row's tokens are sorted
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
        if self.temperature < 0:
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


def uniforms(seed: int, samples_B: Tensor, position_B: Tensor, attempt: int) -> Tensor:
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
    threshold_B1 = u_B.to(cumulative_BV.dtype).clamp_(max=highest)[:, None] * cumulative_BV[:, -1:]
    drawn_B1 = torch.searchsorted(cumulative_BV, threshold_B1, right=True)
    return drawn_B1[:, 0].clamp_(max=cumulative_BV.shape[1] - 1)


def outside(probs_BV: Tensor, drawn_B: Tensor, top_p: float, top_k: int) -> Tensor:
    """Rows whose token truncation drops: the strictly likelier ones already hold top_p, or are top_k in number."""
    likelier_BV = probs_BV > probs_BV.gather(1, drawn_B[:, None])
    out_B = torch.zeros(len(drawn_B), dtype=torch.bool, device=drawn_B.device)
    if top_p < 1:
        out_B |= torch.where(likelier_BV, probs_BV, 0.0).sum(1) >= top_p
    if top_k:
        out_B |= likelier_BV.sum(1) >= top_k
    return out_B


def kept_mass(probs_BV: Tensor, drawn_B: Tensor, top_p: float, top_k: int) -> Tensor:
    """Mass of the tokens that truncation keeps, [B]: what a kept token's probability is divided by.

    Walks down from each row's drawn token, one distinct probability at a time, while the next one is still kept; a
    trained model's nucleus is a few tokens. Rows that need more than a few steps are sorted.
    """
    level_B1 = probs_BV.gather(1, drawn_B[:, None])
    for _ in range(4):
        below_B1 = torch.where(probs_BV < level_B1, probs_BV, -1.0).amax(1, keepdim=True)
        above_BV = probs_BV > below_B1
        ends_B1 = below_B1 < 0
        if top_p < 1:
            ends_B1 = ends_B1 | (torch.where(above_BV, probs_BV, 0.0).sum(1, keepdim=True) >= top_p)
        if top_k:
            ends_B1 = ends_B1 | (above_BV.sum(1, keepdim=True) >= top_k)
        if bool(ends_B1.all()):
            break
        level_B1 = torch.where(ends_B1, level_B1, below_B1)
    mass_B = torch.where(probs_BV >= level_B1, probs_BV, 0.0).sum(1)
    open_rows = (~ends_B1[:, 0]).nonzero()[:, 0]
    if len(open_rows):
        mass_B[open_rows] = kept(probs_BV[open_rows], top_p, top_k).sum(1)
    return mass_B


def kept(probs_BV: Tensor, top_p: float, top_k: int) -> Tensor:
    """The probabilities with zeros where truncation drops the token, by sorting."""
    ordered_BV = probs_BV.sort(1, descending=True).values
    before_BV = ordered_BV.cumsum(1) - ordered_BV
    kept_BV = before_BV < top_p
    if top_k:
        kept_BV &= torch.arange(probs_BV.shape[1], device=probs_BV.device) < top_k
    last_B1 = torch.where(kept_BV, ordered_BV, float("inf")).amin(1, keepdim=True)
    return torch.where(probs_BV >= last_B1, probs_BV, 0.0)


def draw(
    logits_BV: Tensor, settings: Sampling, seed: int, samples_B: Tensor, position_B: Tensor
) -> tuple[Tensor, Tensor]:
    """One token a row and its log-prob under the distribution that was sampled from: (tokens [B], logprobs [B]).

    Exact: draw from the whole distribution by inverse CDF, and again while the token lies outside what is kept. Rows
    still outside after `TRIES` draws (few under a nucleus, many where top-k cuts a flat distribution) are sorted, and
    draw among the kept tokens.
    """
    wide_BV = logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()
    if settings.temperature == 0:
        best_B = wide_BV.argmax(1)
        return best_B, torch.zeros_like(wide_BV[:, 0])  # the likeliest token, with probability one
    logp_BV = (wide_BV / settings.temperature).log_softmax(1)
    probs_BV = logp_BV.exp()
    cumulative_BV = probs_BV.cumsum(1)
    drawn_B = inverse_cdf(cumulative_BV, uniforms(seed, samples_B, position_B, 0))
    logprobs_B = logp_BV.gather(1, drawn_B[:, None])[:, 0]
    if settings.plain:
        return drawn_B, logprobs_B
    out_B = outside(probs_BV, drawn_B, settings.top_p, settings.top_k)
    for attempt in range(1, TRIES):
        if not bool(out_B.any()):
            break
        rows = out_B.nonzero()[:, 0]
        drawn_B[rows] = inverse_cdf(cumulative_BV[rows], uniforms(seed, samples_B[rows], position_B[rows], attempt))
        out_B[rows] = outside(probs_BV[rows], drawn_B[rows], settings.top_p, settings.top_k)
    rows = out_B.nonzero()[:, 0]
    if len(rows):
        left_RV = kept(probs_BV[rows], settings.top_p, settings.top_k)
        drawn_B[rows] = inverse_cdf(left_RV.cumsum(1), uniforms(seed, samples_B[rows], position_B[rows], TRIES))
    mass_B = kept_mass(probs_BV, drawn_B, settings.top_p, settings.top_k)
    return drawn_B, logp_BV.gather(1, drawn_B[:, None])[:, 0] - mass_B.log()
