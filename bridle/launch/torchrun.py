"""Ranks, processes that share each step of a training, by PyTorch's torchrun: those that it started find each other, and a recipe with
`scale.workers` above 1 has it start them on this machine.

What is wrong with one of them ends all: each error is said once, by the rank that has it, and torchrun ends the others. gloo carries what
lies in the processor's memory, NCCL what lies on cards; within one machine both listen on 127.0.0.1 alone, between machines on what
GLOO_SOCKET_IFNAME names.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from bridle.core import timeline
from bridle.core.errors import BridleError, FirstRankFailed, TrainingStopped, UsageError
from bridle.core.processes import python_environment
from bridle.project.profile import as_dict, take_ranks
from bridle.recipe.services import ScaleSection

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
SHOWN_AFTER = 0.8  # of the others' patience: before they end the run, a rank that hangs has shown where
HOLDS_BACK = 10.0  # seconds that another rank keeps its own error, for where the first has the same that is enough


@contextmanager
def ranks(scale: ScaleSection | None, folder: Path, workers: int = 0) -> Iterator[None]:
    """Inside this process shares its steps with the others that torchrun started, if it did. Without it, and with `scale.workers` above 1
    or a launcher that is not torchrun, they are started, and this process ends with them. None: nothing here is shared, so torchrun is
    refused. `folder`: the project's; `workers`: that the first rank will start."""
    size = int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ else 1
    if scale is None and size > 1:
        raise UsageError(
            f"ranks share `bridle train` alone, and torchrun started {size} processes; start one, without it"
        )
    if scale is not None and scale.launcher == "ray":
        from bridle.launch.ray import ADDRESS, start_on_ray

        if "RANK" not in os.environ:
            start_on_ray(scale, folder, workers)
        if ADDRESS not in os.environ:
            raise UsageError(
                "scale.launcher = 'ray' starts the ranks itself, and torchrun has started this one; leave torchrun out, or say "
                "scale.launcher = 'torchrun'"
            )
    if scale is None or size == scale.workers == 1:
        yield
        return
    if "RANK" not in os.environ:
        start_ranks(scale.workers)
    if scale.workers not in (1, size):
        raise UsageError(
            f"scale.workers = {scale.workers}, and torchrun started {size}; give it as many (--nnodes times --nproc-per-node), or "
            "leave scale.workers at 1 for as many as there are"
        )
    with joined(scale, size):
        yield


def start_ranks(count: int) -> NoReturn:
    """Have torchrun start this very command so many times, and end with it."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch").setLevel(logging.CRITICAL)  # of a rank that failed: it has said itself why
    timeline.stop()  # what is to be recorded they do
    os.environ.update({**python_environment(), "PYTHONSAFEPATH": "1"})
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    place = ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={count}"]
    try:
        run.run(run.parse_args([*place, "-m", "bridle.cli", *sys.argv[1:]]))
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        sys.exit(max(codes) if max(codes) > 0 else 128 - min(codes))
    except SignalException as error:
        sys.exit(128 + error.sigval)
    sys.exit(0)


@contextmanager
def joined(scale: ScaleSection, size: int) -> Iterator[None]:
    import torch.distributed as dist

    from bridle.compute import parallel

    join_group(scale, size)
    parallel.patience = SHOWN_AFTER * scale.patience
    rank, recorded = dist.get_rank(), timeline.recording()
    try:
        with parallel.meeting():
            dist.barrier()
        if recorded is not None:
            recorded.rank, recorded.met = rank, time.perf_counter_ns()
        yield
        found = parallel.gathered(None if recorded is None else as_dict(recorded))  # none leaves while another needs it
        if recorded is not None and rank == 0:
            take_ranks(recorded, found[1:])
    except FirstRankFailed:
        sys.exit(1)  # which has said why
    except BridleError as error:
        if rank:
            time.sleep(HOLDS_BACK)
            error.args = (f"rank {rank}, on {socket.gethostname()}: {error}", *error.args[1:])
        raise
    except KeyboardInterrupt:
        if rank:
            sys.exit(130)
        raise
    except RuntimeError as error:
        if (sentence := lost_words(error, rank, size, scale.patience)) is None:
            raise
        if not sentence:
            sys.exit(1)
        raise TrainingStopped(sentence) from error
    finally:
        parallel.patience = 0.0
        with parallel.meeting():
            dist.destroy_process_group()


def lost_words(error: RuntimeError, rank: int, size: int, patience: float) -> str | None:
    """What there is to say where ranks lost each other: nothing where the first has said it; None where it is another error."""
    import torch.distributed as dist

    message = str(error)
    if "gloo" not in message and not isinstance(error, dist.DistError):
        return None
    kept = "nothing of this step is kept, and the same command resumes after the last checkpoint"
    if "imed out" in message or "imeout" in message:
        return (
            f"rank {rank} of {size} waited {patience:g} s (scale.patience) for another, which hangs or is gone; where it stood is shown "
            f"above if it could tell; {kept}"
        )
    return (
        ""
        if rank
        else f"another rank of {size} has ended in the middle of a step (its words, if any, stand above; without any it was "
        f"killed, as where memory is short); {kept}"
    )


def meeting_place(patience: timedelta) -> Store:
    """Where ranks that torchrun did not start find each other: the first listens on the address by which they know it, and on no other."""
    import torch.distributed as dist

    address, port, rank = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), os.environ["RANK"]
    listening = None
    if rank == "0":
        listening = socket.create_server((address, port), backlog=1024).detach()
    size = int(os.environ["WORLD_SIZE"])
    return dist.TCPStore(address, port, size, rank == "0", patience, master_listen_fd=listening)  # type: ignore[attr-defined]


def join_group(scale: ScaleSection, size: int) -> None:
    """Meet the other ranks. UsageError where they cannot be met."""
    import torch
    import torch.distributed as dist

    environment, local = os.environ, int(os.environ.get("LOCAL_RANK", "0"))
    if int(environment.get("LOCAL_WORLD_SIZE", size)) == size:
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            environment.setdefault(name, LOOPBACK)
    elif "GLOO_SOCKET_IFNAME" not in environment:
        raise UsageError(
            "ranks on several machines talk in the clear, to whoever reaches their ports; name the network between them that others do not "
            "reach, as `GLOO_SOCKET_IFNAME=eth1 NCCL_SOCKET_IFNAME=eth1 torchrun …`"
        )
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if cards and local >= cards:
        raise UsageError(
            f"rank {local} of this machine has no card of its own, for there are {cards}; start {cards} here, or hide them with "
            "CUDA_VISIBLE_DEVICES= to train on the processor"
        )
    if cards:
        torch.cuda.set_device(local)
    place = f"{environment.get('MASTER_ADDR')}:{environment.get('MASTER_PORT')}"
    try:
        backend = "cpu:gloo,cuda:nccl" if cards else "gloo"
        patience, rank = timedelta(seconds=scale.patience), int(environment["RANK"])
        if "TORCHELASTIC_RUN_ID" in environment:  # torchrun has a meeting place
            dist.init_process_group(backend, timeout=patience)
        else:
            dist.init_process_group(
                backend, timeout=patience, store=meeting_place(patience), rank=rank, world_size=size
            )
    except (RuntimeError, ValueError, OSError) as error:
        if "EADDRINUSE" in str(error) or (isinstance(error, OSError) and error.errno == errno.EADDRINUSE):
            raise UsageError(
                f"{place} is taken by another program; name another port (torchrun --master-port)"
            ) from error
        raise UsageError(
            f"not all {size} ranks met at {place} within {scale.patience:g} s (scale.patience): {str(error).splitlines()[0]}; look at "
            "those that are missing, and whether their machines reach it"
        ) from error
