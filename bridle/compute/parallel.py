"""One step shared by several processes ("ranks"): each takes a part of its rows, and the gradients are added up.

A loss divides by the count of the whole step on all ranks, so the sum of the ranks' gradients is that of one process that
has every row. Every rank holds all rows of a step: what looks at a whole step, as whitening, groups and drawing minibatches do, sees the
same on each. Answers are divided and gathered; scores are the first rank's, and so are the disk, the log and whether to stop.
Without a process group there is one rank, and nothing here does anything. Weights are divided in compute/sharding.py.
"""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bridle.core.errors import FirstRankFailed, ProjectError
from bridle.core.timeline import timed

Rows = TypeVar("Rows", Tensor, list[Any])
Found = TypeVar("Found")

BUCKET = 25 * 2**20  # bytes, as PyTorch's DistributedDataParallel has it

by_itself = False  # whether the first rank does something alone, as if there were no others
patience = 0.0  # seconds that a rank may work without meeting the others before it shows where it stands; 0: any number


def is_shared() -> bool:
    return dist.is_available() and dist.is_initialized() and not by_itself


def process_rank() -> int:
    """This process's number among `world_size`, from 0."""
    return dist.get_rank() if is_shared() else 0


def world_size() -> int:
    return dist.get_world_size() if is_shared() else 1


@contextmanager
def alone() -> Iterator[None]:
    """The block is one rank's by itself: in it there is but one. Others may not wait for it in the middle."""
    global by_itself
    before, by_itself = by_itself, True
    try:
        yield
    finally:
        by_itself = before


@contextmanager
def meeting(part: str = "wait") -> Iterator[None]:
    """Around what all ranks do together, as a part of the work: "wait" where little is said and the time is the others', "sync" where
    weights or gradients travel. Between two meetings a rank works by itself; where that takes longer than the others wait,
    each of its threads shows on standard error where it is: of a rank that hangs, nobody else could tell."""
    faulthandler.cancel_dump_traceback_later()
    try:
        with timed(part):
            yield
    finally:
        if patience and sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(patience, file=sys.__stderr__)


def my_share(rows: Rows) -> Rows:
    """This rank's rows: every `world_size`-th one. Empty where there are more ranks than rows."""
    return rows[process_rank() :: world_size()]


def all_shares(mine: Sequence[Found]) -> list[Found]:
    """What the ranks made of `my_share` of some rows, one of each, in the order of the rows."""
    shares = gathered(mine)
    return [shares[i % len(shares)][i // len(shares)] for i in range(sum(map(len, shares)))]


def gathered(mine: Found) -> list[Found]:
    """Each rank's, in their order. Every rank must call it."""
    if world_size() == 1:
        return [mine]
    found: list[Any] = [None] * world_size()
    with meeting():
        dist.all_gather_object(found, mine)
    return found


def from_first(make: Callable[[], Found]) -> Found:
    """What the first rank makes, on every rank, while the others wait; where it fails there, all fail."""
    if world_size() == 1:
        return make()
    found: list[Any] = [None, ""]
    error: Exception | None = None
    if process_rank() == 0:
        try:
            with alone():
                found[0] = make()
        except Exception as failed:
            error, found[1] = failed, str(failed) or type(failed).__name__
    with meeting():
        dist.broadcast_object_list(found)
    if error is not None:
        raise error
    if found[1]:
        raise FirstRankFailed(found[1])
    return found[0]


def require_same(noted: Mapping[str, Any]) -> None:
    """ProjectError on the first rank, where something by this name is not the same on all of them, and all others fail too."""
    every = gathered(dict(noted))
    for name in every[0]:
        for rank, theirs in enumerate(every):
            if theirs.get(name) != every[0][name]:
                raise (FirstRankFailed if process_rank() else ProjectError)(
                    f"{name} is {theirs.get(name)} on rank {rank} and {every[0][name]} on rank 0, and ranks that share a step need "
                    "the same project and the same versions; give all nodes one folder and one installation"
                )


def all_ranks_sum(tensor: Tensor) -> Tensor:
    """The sum of the ranks' tensors, which have one shape. Every rank must call it, as often and in the same order."""
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    with meeting():
        dist.all_reduce(total)
    return total


def all_ranks_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Metrics added up by name, for the log; a rank that had no rows may lack some."""
    found = gathered(dict(sums))
    names = dict.fromkeys(name for part in found for name in part)
    return {name: sum(part.get(name, 0.0) for part in found) for name in names}


def copy_from_first(module: nn.Module) -> None:
    """Make every rank's module what the first one's is."""
    if world_size() > 1:
        with meeting("sync"):
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)


def sum_gradients(modules: Sequence[nn.Module]) -> None:
    """Add up the ranks' gradients in place, once an optimiser step. A weight that two modules share is added once; one that no rank used
    has none. Of divided weights the backward pass has done it."""
    if world_size() == 1:
        return
    learns = dict.fromkeys(p for module in modules for p in module.parameters() if p.requires_grad)
    if not (parameters := [p for p in learns if type(p.data) is Tensor]):
        return
    used_N = all_ranks_sum(torch.tensor([p.grad is not None for p in parameters], device=parameters[0].device).int())
    with meeting("sync"):  # of which each rank knows that all are there, for they have just added up what is used
        gradients = list[Tensor]()
        for parameter, used in zip(parameters, used_N.tolist(), strict=True):
            if used:
                if parameter.grad is None:  # a rank without rows adds nothing, but must take part
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        for bucket in in_buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, total in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))


def in_buckets(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """Gradients of one type that travel in one call, for a call costs more than the bytes of a small one; a larger one by itself."""
    found, size = list[list[Tensor]](), 0
    for gradient in gradients:
        size += gradient.nbytes
        if not found or size > BUCKET or gradient.dtype != found[-1][0].dtype:
            found.append([])
            size = gradient.nbytes
        found[-1].append(gradient)
    return found
