"""Every trainer's step in two processes and in three that share it, and a few steps of some in two: `python -m tests.exact.ranks FOLDER`.

Started as a program of its own, which forks: torch is then imported once, and no thread of a test runner is forked along.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch._dynamo  # which dividing weights loads: once, before ranks are forked
import torch.distributed as dist
import torch.distributed.fsdp

from tests.exact.curves import WAYS, curves
from tests.exact.steps import FEW, SHARED, STEPS

PATIENCE = timedelta(seconds=60)  # of a rank that waits for another which died


def work(folder: Path, rank: int, ranks: int) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting-{ranks}", rank=rank, world_size=ranks, timeout=PATIENCE
    )
    found = {name: vars({**STEPS, **FEW}[name](2)) for name in SHARED[ranks]}
    torch.save(found, folder / f"rank-{rank}-of-{ranks}.pt")
    for way, scale in WAYS.items() if ranks == 2 else ():
        torch.save(curves(folder / way / str(rank), scale), folder / f"{way}-{rank}.pt")
    dist.destroy_process_group()


def main(folder: Path) -> None:
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine's own name may lead nowhere
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    for ranks in SHARED:
        started = [context.Process(target=work, args=(folder, rank, ranks)) for rank in range(ranks)]
        for process in started:
            process.start()
        for process in started:
            process.join()
        if failed := [process.exitcode for process in started if process.exitcode]:
            sys.exit(f"of {ranks} ranks {len(failed)} failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
