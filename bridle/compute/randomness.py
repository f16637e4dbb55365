"""Random numbers that need no saving: a generator for each (seed, purpose, number).

A resumed step then draws what it would have drawn.
"""

import hashlib

import torch
from torch import Tensor


def derived_seed(seed: int, purpose: str, number: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 2**63


def generator(seed: int, purpose: str, number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed(seed, purpose, number))


def shuffled(count: int, seed: int, purpose: str, number: int = 0) -> Tensor:
    """A permutation of 0 … count-1 that depends on nothing but its arguments."""
    return torch.randperm(count, generator=generator(seed, purpose, number))
