"""One step shared by several processes ("ranks"): each takes a part of its rows, and the gradients are added up.

A loss divides by the count of the whole step on all ranks, so the sum of the ranks' gradients is that of one process that
has every row. Every rank holds all rows of a step (equal seeds write equal answers): what looks at a whole step, as
whitening, groups and drawing minibatches do, sees the same on each, and only the forward and backward passes are divided.
Without a process group there is one rank, and nothing here does anything.
Left out for now: answering by rank, saving by the first rank alone.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Rows = TypeVar("Rows", Tensor, list[int])


def process_rank() -> int:
    """This process's number among `world_size`, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def my_share(rows: Rows) -> Rows:
    """This rank's rows: every `world_size`-th one. Empty where there are more ranks than rows."""
    return rows[process_rank() :: world_size()]


def all_ranks_sum(tensor: Tensor) -> Tensor:
    """The sum of the ranks' tensors, which have one shape. Every rank must call it, as often and in the same order."""
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def all_ranks_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Metrics added up by name, for the log; a rank that had no rows may lack some."""
    if world_size() == 1:
        return dict(sums)
    found: list[dict[str, float]] = [{} for _ in range(world_size())]
    dist.all_gather_object(found, dict(sums))
    names = dict.fromkeys(name for part in found for name in part)
    return {name: sum(part.get(name, 0.0) for part in found) for name in names}


def sum_gradients(modules: Sequence[nn.Module]) -> None:
    """Add up the ranks' gradients in place. A weight that two modules share is added once; one that no rank used has none."""
    if world_size() == 1:
        return
    parameters = list(dict.fromkeys(p for module in modules for p in module.parameters() if p.requires_grad))
    used_N = all_ranks_sum(torch.tensor([p.grad is not None for p in parameters], device=parameters[0].device).int())
    for parameter, used in zip(parameters, used_N.tolist(), strict=True):
        if used:
            if parameter.grad is None:  # a rank without rows adds nothing, but must take part
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
