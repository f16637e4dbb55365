"""Drawing tokens: temperature, nucleus and top-k, almost without sorting.

Random numbers depend on nothing but a counter. Nucleus and top-k are both taken of the whole distribution, and a token
is kept that both keep.
Shapes: B rows, V vocabulary.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from bridle.core.errors import RecipeError, brief_repr
from bridle.kernels.kernels import compiled
from bridle.maths.logprobs import row_slices

COLDEST = 1e-6  # a lower temperature is 0: one token has all the probability, and logits over it would not be finite
MANY = 8192  # tokens; a smaller vocabulary is sorted as quickly as its most likely are found
FEW = 16
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
        for name, value, kinds in (
            ("max_new_tokens", self.max_new_tokens, int),
            ("top_k", self.top_k, int),
            ("temperature", self.temperature, int | float),
            ("top_p", self.top_p, int | float),
        ):
            if not isinstance(value, kinds) or isinstance(value, bool):
                needed = "a whole number" if kinds is int else "a number"
                raise RecipeError(f"{name} must be {needed}, got {brief_repr(value)}")
        if self.max_new_tokens < 1:
            raise RecipeError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise RecipeError(f"temperature must be 0 (always the most likely token) or more, got {self.temperature}")
        if self.temperature < COLDEST:
            object.__setattr__(self, "temperature", 0.0)
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


def as_signed(number: int) -> int:
    """The same 64 bits read as a signed number, which is what PyTorch's integers are."""
    return (number + 2**63) % 2**64 - 2**63


def uniforms(seed: int | Tensor, samples_B: Tensor, position_B: Tensor, attempt: int = 0) -> Tensor:
    """One number in [0, 1) for each (seed, sample, position, try), float64; shapes broadcast. Seeds in a tensor are `as_signed`.

    The counter is hashed, so a sample's numbers are the same alone, in any batch, in any order, and after a restart.
    """
    seed_B = seed if isinstance(seed, Tensor) else torch.tensor(as_signed(seed), device=samples_B.device)
    x = scramble(samples_B * GOLDEN + scramble(seed_B))
    x = scramble(x + position_B * GOLDEN)
    x = scramble(x + as_signed((attempt + 1) * MIX1))
    return unsigned_shift(x, 11).double() * 2.0**-53


def inverse_cdf(cumulative_BV: Tensor, u_B: Tensor) -> Tensor:
    """The first token whose cumulative mass exceeds u · total: a token without mass is never drawn."""
    highest = 1 - torch.finfo(cumulative_BV.dtype).eps
    threshold_B1 = u_B.to(cumulative_BV.dtype).clamp(max=highest)[:, None] * cumulative_BV[:, -1:]
    drawn_B1 = torch.searchsorted(cumulative_BV, threshold_B1, right=True)
    return drawn_B1[:, 0].clamp_(max=cumulative_BV.shape[1] - 1)


@cache
def block_size(vocabulary: int) -> int:
    """The largest divisor up to the root: about as many blocks of tokens as tokens in a block."""
    return next(size for size in range(math.isqrt(vocabulary), 0, -1) if vocabulary % size == 0)


def draw_all(probs_BV: Tensor, u_B: Tensor) -> Tensor:
    """Tokens [B] by inverse CDF: which block of tokens, then which token of it. A running sum over the whole vocabulary
    takes twice as long as softmax, and in float32 its errors grow along it."""
    blocks_BNW = probs_BV.unflatten(1, (-1, block_size(probs_BV.shape[1])))
    mass_BN = blocks_BNW.sum(2)
    cumulative_BN = mass_BN.cumsum(1)
    block_B = inverse_cdf(cumulative_BN, u_B)
    block_B1 = block_B[:, None]
    mass_B, upto_B = mass_BN.gather(1, block_B1)[:, 0], cumulative_BN.gather(1, block_B1)[:, 0]
    within_B = (1 - (upto_B - u_B * cumulative_BN[:, -1]) / mass_B).clamp_(min=0)  # u of the draw in the block
    rows_B = torch.arange(len(u_B), device=u_B.device)
    return block_B * blocks_BNW.shape[2] + inverse_cdf(blocks_BNW[rows_B, block_B].cumsum(1), within_B)


def draw_truncated(probs_BV: Tensor, u_B: Tensor, top_p: float, top_k: int) -> tuple[Tensor, Tensor]:
    """Tokens [B] and log-probs [B] under the nucleus (Holtzman 2020) or top-k distribution, renormalised.

    A token is kept while the more likely ones hold less than top_p, and are fewer than top_k. A trained model's nucleus is
    a few tokens: of a large vocabulary only the most likely FEW are looked at, and all where those were not enough.
    """
    V = probs_BV.shape[1]
    if V > MANY:
        best_BW, ids_BW = probs_BV.topk(FEW)
        rank_B1, logprobs_B, closed_B = draw_rank(best_BW, u_B, top_p, top_k)
        tokens_B = ids_BW.gather(1, rank_B1)[:, 0]
        rows = (~closed_B).nonzero()[:, 0]
        if len(rows):
            tokens_B[rows], logprobs_B[rows] = draw_sorted(probs_BV[rows], u_B[rows], top_p, top_k)
        return tokens_B, logprobs_B
    return draw_sorted(probs_BV, u_B, top_p, top_k)


def draw_sorted(probs_BV: Tensor, u_B: Tensor, top_p: float, top_k: int) -> tuple[Tensor, Tensor]:
    """`draw_truncated` by sorting values alone: the token is then found by its value and, among equals, by its number."""
    rising_BV = sorted_rows(probs_BV)
    falling_BV = rising_BV.flip(1)
    rank_B1, logprobs_B, _ = draw_rank(falling_BV, u_B, top_p, top_k)
    value_B1 = falling_BV.gather(1, rank_B1)
    less_B1, upto_equal_B1 = (torch.searchsorted(rising_BV, value_B1, right=right) for right in (False, True))
    equals_B1 = upto_equal_B1 - less_B1
    among_equals_B1 = rank_B1 - (probs_BV.shape[1] - upto_equal_B1)
    place_B1 = equals_B1.cumsum(0) - equals_B1 + among_equals_B1
    return (probs_BV == value_B1).nonzero()[place_B1[:, 0], 1], logprobs_B


def draw_rank(falling_BW: Tensor, u_B: Tensor, top_p: float, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Among the most likely tokens in falling order: the rank drawn [B, 1], its log-prob, and whether none but these are kept."""
    W = falling_BW.shape[1]
    upto_BW = falling_BW.cumsum(1)
    last_B1 = torch.searchsorted(upto_BW, torch.full_like(upto_BW[:, :1], top_p))
    closed_B = (last_B1 < W)[:, 0] | (0 < top_k <= W)
    last_B1 = last_B1.clamp_(max=min(top_k or W, W) - 1)
    total_B1 = upto_BW.gather(1, last_B1)  # what all kept tokens hold
    below_one = 1 - torch.finfo(upto_BW.dtype).eps
    threshold_B1 = u_B.to(upto_BW.dtype).clamp(max=below_one)[:, None] * total_B1
    rank_B1 = torch.searchsorted(upto_BW, threshold_B1, right=True).clamp_(max=W - 1)
    return rank_B1, (falling_BW.gather(1, rank_B1) / total_B1).log()[:, 0], closed_B


def sorted_rows(probs_BV: Tensor) -> Tensor:
    """Rows in rising order. On a CPU numpy sorts with vector instructions, some thirty times faster than torch."""
    if probs_BV.device.type == "cpu":
        return torch.from_numpy(np.sort(probs_BV.numpy(), axis=1))
    return probs_BV.sort(1).values


def draw(logits_BV: Tensor, settings: Sampling, u_B: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row and its log-prob under the distribution that was sampled from, by a uniform number a row:
    (tokens [B], logprobs [B]). Where logits are not finite the log-prob is nan.

    A slice of rows at a time: what is made of logits on the way is several times their size.
    """
    slices = list(row_slices(*logits_BV.shape))
    if len(slices) == 1:
        return draw_slice(logits_BV, settings, u_B)
    parts = [draw_slice(logits_BV[rows], settings, u_B[rows]) for rows in slices]
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([logprobs for _, logprobs in parts])


def draw_slice(logits_BV: Tensor, settings: Sampling, u_B: Tensor) -> tuple[Tensor, Tensor]:
    wide_BV = logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()
    if settings.temperature == 0:
        best_B = wide_BV.argmax(1)
        best_logit_B = wide_BV.gather(1, best_B[:, None])[:, 0]
        return (
            best_B,
            best_logit_B - best_logit_B,
        )  # the most likely token, with probability one; nan where there is none
    if settings.plain and wide_BV.dtype == torch.float32 and (run := compiled(torch.float32, wide_BV)) is not None:
        B, V = wide_BV.shape
        tokens_B, logprobs_B = torch.empty(B, dtype=torch.int64), torch.empty(B)
        run("draw_tokens", B, V, 1 / settings.temperature, wide_BV.contiguous(), u_B.contiguous(), tokens_B, logprobs_B)
        return tokens_B, logprobs_B
    if settings.temperature != 1:
        wide_BV = wide_BV / settings.temperature
    probs_BV = wide_BV.softmax(1)
    if not settings.plain:
        broken_B = probs_BV[:, 0].isnan()  # softmax makes all of a row nan, which has no order
        if bool(broken_B.any()):
            probs_BV = probs_BV.masked_fill(broken_B[:, None], 1 / probs_BV.shape[1])
        tokens_B, logprobs_B = draw_truncated(probs_BV, u_B, settings.top_p, settings.top_k)
        return tokens_B, logprobs_B.masked_fill_(broken_B, math.nan)
    drawn_B = draw_all(probs_BV, u_B)
    return drawn_B, probs_BV.gather(1, drawn_B[:, None])[:, 0].log()
