"""What ranks say to each other while they train, counted: python benchmarks/moved.py [--trainers sft ppo] [--ranks 2 3]

Each case trains the tiny model of benchmarks/plan.py by the loop that `bridle train` runs, in so many processes with gloo, all weights
on each and divided, and counts every collective operation with its bytes as torch dispatches it on the first rank. What
`bridle plan` says of the same is in compute/plan/traffic.py.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent))
import plan

from bridle.compute.device import choose_device
from bridle.recipe.recipe import Recipe


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


def work(folder: str, rank: int, ranks: int, trainer: str, shard: bool) -> None:
    """One rank of a case."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    recipe = Recipe().with_settings(plan.settings_of(trainer, "tiny", False) | {"scale.shard": shard})
    with Collectives() as counted:
        plan.run_loop(trainer, recipe, choose_device("float32"), "tiny")
    if rank == 0:
        print(f"\n{trainer}, {ranks} ranks, {'divided' if shard else 'all weights on each'}\n")
        print("| operation | calls | bytes |\n|---|---|---|")
        for name, calls in counted.calls.items():
            print(f"| {name} | {calls:,} | {counted.bytes[name]:,} |", flush=True)
    dist.destroy_process_group()


def main(trainers: list[str], sizes: list[int]) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    context = multiprocessing.get_context("fork")
    for trainer in trainers:
        for ranks in sizes:
            for shard in (False, True):
                with tempfile.TemporaryDirectory() as folder:
                    begun = [
                        context.Process(target=work, args=(folder, r, ranks, trainer, shard)) for r in range(ranks)
                    ]
                    for process in begun:
                        process.start()
                    for process in begun:
                        process.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trainers", nargs="+", default=["sft", "ppo"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[2])
    given = parser.parse_args()
    main(given.trainers, given.ranks)
