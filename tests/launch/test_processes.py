"""Workers as processes of this machine: they do what they are asked, one thing after another, and go with whoever started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from bridle.core.errors import DataError, WorkerLost
from bridle.launch.processes import local_workers

ROOT = Path(__file__).parents[2]


@dataclass
class Counter:
    count: int = 0

    def add(self, number: int) -> tuple[int, int]:
        self.count += number
        return self.count, os.getpid()

    def fail(self) -> None:
        raise DataError("of its own")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def unmade() -> Counter:
    os._exit(3)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(process: int) -> None:
    end = time.monotonic() + 120
    while alive(process):
        assert time.monotonic() < end, f"process {process} is still there"
        time.sleep(0.02)


def test_a_worker() -> None:
    """In order; its errors are those here; one that is gone is lost, with what it was asked, and all that it is asked from then on."""
    one, other = local_workers(Counter, 2)
    try:
        found = [one.submit("add", number).result(120) for number in (1, 2)]
        assert [count for count, _ in found] == [1, 3] and one.place == f"process {found[0][1]}" != other.place
        with pytest.raises(DataError, match="of its own"):
            one.submit("fail").result(120)
        for method in ("die", "add"):
            with pytest.raises(WorkerLost, match=f"{one.place} is gone"):
                one.submit(method).result(120)
        assert other.submit("add", 5).result(120)[0] == 5
    finally:
        for worker in (one, other):
            worker.end()
    for worker in (one, other):
        wait_until_gone(int(worker.place.split()[1]))


def test_one_that_ends_as_it_begins() -> None:
    with pytest.raises(WorkerLost, match="ended as it began"):
        local_workers(unmade, 1)


STARTS = """
import time
from bridle.launch.processes import local_workers
from tests.launch.test_processes import Counter
if __name__ == "__main__":
    worker, = local_workers(Counter, 1)
    print(worker.place.split()[1], flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_workers_go_with_a_killed_trainer(tmp_path: Path) -> None:
    script = tmp_path / "starts.py"
    script.write_text(STARTS)
    with subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as trainer:
        assert trainer.stdout is not None
        worker = int(trainer.stdout.readline())
        trainer.kill()
    wait_until_gone(worker)
