"""Random numbers that need no saving: a generator for each (seed, purpose, number).

A resumed step then draws what it would have drawn.
"""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def derived_seed(seed: int, purpose: str, number: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 2**63


def generator(seed: int, purpose: str, number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed(seed, purpose, number))


def shuffled(count: int, seed: int, purpose: str, number: int = 0) -> Tensor:
    """A permutation of 0 … count-1 that depends on nothing but its arguments."""
    return torch.randperm(count, generator=generator(seed, purpose, number))


def drawn(rows: Sequence[T], names: Sequence[str], count: int, seed: int) -> list[T]:
    """`count` of the rows, in their order. Which ones depends on the seed and on their names, which tell what they hold, and neither on
    their order nor on `count`: a larger draw holds the smaller one, and what is added later takes few places."""
    if len(rows) <= count:
        return list(rows)
    ranked = sorted(range(len(rows)), key=lambda i: derived_seed(seed, f"draw/{names[i]}", 0))
    return [rows[i] for i in sorted(ranked[:count])]
