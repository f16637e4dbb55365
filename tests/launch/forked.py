"""The command line in two processes that share a training, as torchrun would start them: `python -m tests.launch.forked FOLDER SCENARIO`.

Started as a program of its own, which forks: torch is then imported once, and no thread of a test runner is forked along. What each rank
says lies in FOLDER/said-RANK.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch._dynamo  # which dividing weights loads: once, before the ranks are forked
import torch.distributed.fsdp

from bridle.cli.main import main as bridle
from bridle.project.run import Run
from bridle.stages import audit
from bridle.stages.methods import METHODS
from bridle.training import sft

RANKS = 2


def killed(rank: int) -> None:
    """As if the machine went off after six steps."""
    plain = Run.log

    def log(run: Run, step: int, *given: Any) -> None:
        plain(run, step, *given)
        if step >= 5:
            os._exit(9)

    Run.log = log  # type: ignore[method-assign,assignment]


def hanging(rank: int) -> None:
    """The second rank falls asleep in its third step."""
    plain, steps = sft.imitate, iter(range(1000))

    def fall_asleep(*given: Any) -> float:
        if rank and next(steps) == 2:
            time.sleep(8)
        return plain(*given)

    sft.imitate = fall_asleep


def audited(rank: int) -> None:
    """A tiny project has few comparisons to go by."""
    audit.FEWEST_PAIRS, audit.PROMPTS = 10, 8


def healthy(rank: int) -> None:
    pass


HAPPENS: dict[str, Callable[[int], None]] = {
    "killed": killed, "hanging": hanging, "audited": audited, "healthy": healthy,
}  # fmt: skip


def work(folder: Path, rank: int, port: int, scenario: str, words: list[str]) -> None:
    said = os.open(folder / f"said-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(said, stream)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    HAPPENS[scenario](rank)
    bridle([word.replace("RANK", str(rank)) for word in words], prog_name="bridle")


def main(folder: Path, scenario: str, words: list[str]) -> None:
    """Start the ranks with these words of the command line, in which RANK is each one's number; their exit statuses."""
    assert METHODS  # read before they are forked
    torch.set_num_threads(1)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=work, args=(folder, rank, port, scenario, words)) for rank in range(RANKS)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    print(*(process.exitcode for process in started))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
