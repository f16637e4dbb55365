"""What this machine offers and what is made of it: device, precision, threads. Chosen once, said in one line."""

from __future__ import annotations

import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import dtype as Precision

from bridle.core.errors import RecipeError


@dataclass(frozen=True)
class Device:
    """Where tensors live, the precision of matrix products, and the threads used on a CPU."""

    torch: torch.device
    precision: Precision
    threads: int
    why: str

    def autocast(self) -> AbstractContextManager[object]:
        """Matrix products in `precision`, weights and sums in float32."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.torch.type, self.precision)

    def __str__(self) -> str:
        precision = str(self.precision).removeprefix("torch.")
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.torch.type}, {precision} products, {threads} ({self.why})"


def choose_device(precision: str = "auto", threads: int | None = None) -> Device:
    """CUDA where there is one. On a CPU bfloat16 where the processor multiplies it fast, else float32.

    `threads` fixes the count (a resumed run must keep its own); otherwise BRIDLE_THREADS, otherwise a thread a core (8
    at most) on an idle machine and one on a busy one: a thread that must share its core makes all the others wait,
    some ten times slower.
    """
    if torch.cuda.is_available():
        chosen = torch.bfloat16 if precision in ("auto", "bfloat16") else torch.float32
        return Device(torch.device("cuda"), chosen, torch.get_num_threads(), torch.cuda.get_device_name())
    fast = multiplies_bfloat16(torch.device("cpu"))
    chosen = torch.bfloat16 if precision == "bfloat16" or (precision == "auto" and fast) else torch.float32
    count, why = choose_threads(threads)
    torch.set_num_threads(count)
    return Device(torch.device("cpu"), chosen, count, why)


def choose_threads(threads: int | None) -> tuple[int, str]:
    if threads is not None:
        return threads, "as the run began"
    fixed = os.environ.get("BRIDLE_THREADS", "")
    if fixed:
        if not fixed.isdecimal() or int(fixed) < 1:
            raise RecipeError(f"BRIDLE_THREADS must be a whole number of at least 1, got {fixed!r}")
        return int(fixed), "BRIDLE_THREADS"
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if cores < 2:
        return 1, "one core"
    others = cores_used_by_others(1.0)
    if others > 0.5:
        return 1, f"other programs use {others:.1f} cores"
    return min(cores, 8), "idle machine"


def cores_used_by_others(seconds: float) -> float:
    """Cores kept busy by other processes during a short look at /proc/stat; 0 where the system has no such file."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    before, own_before = busy_ticks(stat), time.process_time()
    start = time.perf_counter()
    time.sleep(seconds)
    elapsed = time.perf_counter() - start
    used = (busy_ticks(stat) - before) / os.sysconf("SC_CLK_TCK") - (time.process_time() - own_before)
    return max(0.0, used / elapsed)


def busy_ticks(stat: Path) -> int:
    """user + nice + system + irq + softirq + steal of the first line of /proc/stat."""
    fields = [int(x) for x in stat.read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return user + nice + system + irq + softirq + steal


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are the fast ones. A CPU without instructions for them is some 70 times slower at it."""
    return device.type != "cpu" or cpu_multiplies_bfloat16()


@cache
def cpu_multiplies_bfloat16() -> bool:
    """True on x86 with avx512_bf16 or amx_bf16, and on ARM with bf16, as Linux tells; elsewhere float32 is safe."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return False
    words = set(info.read_text().split())
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})
