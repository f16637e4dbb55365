"""What ranks say to each other while they train, counted: python benchmarks/moved.py [--trainers sft,dpo,ppo] [--ranks 1,2,3]

Each case trains the tiny model of benchmarks/plan.py by the loop that `bridle train` runs, in so many processes with gloo, and counts every
collective operation with its bytes as torch dispatches it, beside what `bridle plan` says (compute/plan/traffic.py). `--table` writes the
table of docs/scaling.md.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode


class Collectives(TorchDispatchMode):
    """Counts calls, and bytes of what each is about, whole: of a gathering what comes out, of a scattering what goes in."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.bytes = Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its own parts come by again, as plain tensors
        space, _, name = func._schema.name.partition("::")
        if space in ("c10d", "_c10d_functional") and "wait" not in name:
            self.count(f"{space}.{name}", args)
        return func(*args, **(kwargs or {}))

    def count(self, name: str, args: tuple[Any, ...]) -> None:
        about = args[1] if "reduce_scatter" in name else args[0]
        tensors = list(flat(about))
        whole = sum(t.numel() * t.element_size() for t in tensors)
        if name == "_c10d_functional.all_gather_into_tensor":
            whole *= args[1]
        kind = name + ("" if not tensors or tensors[0].is_floating_point() else f"[{tensors[0].dtype}]")
        self.calls[kind] += 1
        self.bytes[kind] += whole


def flat(found: Any) -> Any:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, list | tuple):
        for one in found:
            yield from flat(one)
