"""What ranks that share a step send each other, by its shape: calls, and the bytes that each sends, and receives as many.

Collectives by rings: to add up S bytes on n ranks each sends 2 (n - 1) / n of them, to gather S from all or to give each its sum of a part
(n - 1) / n (Patarasuk 2009, "Bandwidth optimal all-reduce algorithms"). Left out: counts, metrics and agreements, a few hundred bytes each;
audits, and looks at what DPO, KTO and ORPO answer. `benchmarks/moved.py` counts it (docs/scaling.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bridle.compute.parallel import BUCKET
from bridle.compute.plan.memory import Need, Range, RowTokens

EACH_TOKEN = 15  # bytes of a token of an answer and its log-prob as they are pickled, and 100 an answer
ANSWER = 100
REREAD = {
    "rloo": 2,
    "rebel": 2,
    "rejection": 2,
    "grpo": 1,
    "ppo": 3,
}  # tensors [B, T] that ranks have each read a part of


class Moved(NamedTuple):
    """In one step of the loop; `bytes` are what one rank sends."""

    calls: float
    bytes: Range


def sent(moved: Mapping[str, Moved]) -> Range:
    """In all."""
    every = list(moved.values())
    return Range(*(sum(one.bytes[place] for one in every) for place in range(3)))


def moved_in_step(need: Need, lengths: Sequence[RowTokens]) -> dict[str, Moved]:
    """By what it is, of short, usual and long rows. Nothing where there is one card."""
    if need.gpus == 1:
        return {}
    low, usual, most = ({**gradients_moved(need, rows), **answers_moved(need, rows)} for rows in lengths)
    return {name: Moved(calls, Range(low[name][1], size, most[name][1])) for name, (calls, size) in usual.items()}


def gradients_moved(need: Need, rows: RowTokens) -> dict[str, tuple[float, float]]:
    """In a step's optimiser steps: undivided gradients are added up in buckets (compute/parallel.py: sum_gradients). Divided
    weights are gathered for each pass forward, layers once more backward, and what is beside them stays; gradients are added up in the last
    pass (compute/sharding.py)."""
    n, updates, learns = need.gpus, need.optimizer_steps, sum(need.learns.values())
    ring, tensors = (n - 1) / n, sum(map(len, need.tensors))
    if need.ranks == 1:
        return {
            "gradients added up": (
                updates * (1 + passes_of(4 * learns, BUCKET)),
                updates * 2 * ring * 4 * (learns + tensors),
            )
        }
    layers, around = need.filled_groups
    forward, networks = need.read_passes(rows), need.networks_read
    passes = updates * need.at_once(rows)[1]
    count = need.shape.layers * len(need.learns)
    found = {
        "weights gathered to learn": (
            passes * (2 * count + (around > 0) * len(need.learns)), passes * ring * 4 * (2 * layers + around),
        ),
        "gradients added up": (updates * (count + (around > 0) * len(need.learns)), updates * ring * 4 * (layers + around)),
    }  # fmt: skip
    if forward:
        share = networks / len(need.learns)
        found["weights gathered to read"] = (forward * count * share, forward * ring * 4 * layers * share)
    every = dict(need.section).get("checkpoint_every") or 0
    if every:
        found["a checkpoint, its share"] = (3 * tensors / every, 3 * ring * 4 * (layers + around) / every)
    return found


def answers_moved(need: Need, rows: RowTokens) -> dict[str, tuple[float, float]]:
    """Of a rollout."""
    if not need.practises:
        return {}
    n, ring = need.gpus, (need.gpus - 1) / need.gpus
    count = need.prompts * need.answers
    read, tokens = REREAD.get(need.name, 0), count * rows.answer
    found = {
        "answers gathered": (2.0, ring * (EACH_TOKEN * tokens + ANSWER * count)),
        "log-probs and values added up": (float(read), 2 * ring * 4 * read * tokens),
    }
    if need.ranks > 1:
        policy = n * need.held["policy"]
        found["weights gathered for the engine"] = (float(len(need.tensors[0])), ring * 4 * policy)
    return found


def passes_of(count: float, size: float) -> int:
    return max(1, math.ceil(count / max(1.0, size) - 1e-9))
