"""What this machine offers and what is made of it: device, precision, kernels, threads. Chosen once, sentences in one line.

A run keeps what it began with: other kernels, or another precision, would make other weights of it.
"""

import os
import re
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import dtype as Precision

from bridle.compute.parallel import world_size
from bridle.compute.plan.stages import plan_stage, require_card
from bridle.compute.shapes import Card, Shape, machine_memory
from bridle.core.errors import ProjectError, RecipeError
from bridle.kernels.kernels import Kernels, choose_kernels, in_process
from bridle.kernels.library import Unavailable
from bridle.recipe.recipe import Recipe

CPU_INFO = Path("/proc/cpuinfo")
KERNELS: dict[str, Kernels] = {"compiled": "compiled", "plain": "plain", "layers": "torch"}  # by their first word
VECTORS = re.compile(r"(avx|amx|fma|f16c|sve|asimd|bf16)\w*")  # as Linux names them
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


@dataclass(frozen=True)
class Device:
    """Where tensors live, the precision of matrix products, and the threads used on a CPU; the rest is for the log."""

    torch: torch.device
    precision: Precision
    threads: int
    why: str
    kernels: str = ""
    products: str = ""

    def autocast(self) -> AbstractContextManager[object]:
        """Matrix products in `precision`, weights and sums in float32."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.torch.type, self.precision)

    def __str__(self) -> str:
        precision = str(self.precision).removeprefix("torch.")
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        products = f"{precision} products{self.products}"
        return ", ".join(filter(None, (self.torch.type, products, self.kernels, f"{threads} ({self.why})")))

    @property
    def arithmetic(self) -> dict[str, str]:
        """What the last bits of a result depend on besides the thread count, in words: as a run notes it."""
        processor = self.why if self.torch.type == "cuda" else processor_kind()
        return {**read_arithmetic(str(self)), "torch": f"PyTorch {torch.__version__}", "processor": processor}


def read_arithmetic(device: str) -> dict[str, str]:
    """What a device's line tells of its arithmetic: all that a run of an earlier version noted."""
    parts = {
        "device": r"\w+",
        "products": r"\w+ products( by oneDNN)?",
        "kernels": r"compiled kernels|plain kernels|layers by torch\.compile",
    }
    found = {part: re.search(words, device) for part, words in parts.items()}
    return {part: words[0] for part, words in found.items() if words is not None}


def as_begun(
    noted: Mapping[str, Any], here: Device, place: Path, way: str, allowed: bool = False
) -> tuple[Device, list[str], bool]:
    """The device that a run is resumed on, which computes as the run noted when it began; what there is to say of it; whether it is
    another all the same, the nearest that can be had, where that is `allowed`. Else ProjectError, with the `way` out.
    """
    began = noted.get("arithmetic") or read_arithmetic(noted.get("device", ""))
    threads, now = noted.get("threads") or here.threads, here.arithmetic
    differs = [part for part in began if began[part] != now.get(part)]
    if not differs and threads == here.threads:
        return here, [], False
    wanted = {**now, **began}
    if "products" in differs and began["products"].startswith("bfloat16") and not multiplies_bfloat16(here.torch):
        wanted["products"] = now["products"]  # without instructions for bfloat16 its sums are others, and very slow
    kept = choose_as(wanted, threads)
    lost = [part for part in differs if began[part] != kept.arithmetic.get(part)]
    sentences = [f"keeping {threads} thread(s), as this run began"] if threads != here.threads else []
    sentences += [f"keeping {began[part]}, as this run began" for part in differs if part not in lost]
    if not lost:
        return kept, sentences, False
    before, after = (" and ".join(words.get(part, f"no {part}") for part in lost) for words in (began, kept.arithmetic))
    if not allowed:
        choose_as(now, here.threads)
        raise ProjectError(f"{place} was begun with {before}, and here it would resume with {after} ({kept}); {way}")
    sentences.append(f"resuming with {after}, though it was begun with {before}: its weights become others")
    return kept, sentences, True


def choose_as(arithmetic: Mapping[str, str], threads: int) -> Device:
    """The device with this arithmetic and so many threads, or the nearest to it that this machine has."""
    precision = arithmetic["products"].partition(" ")[0]
    asked = KERNELS.get(arithmetic.get("kernels", "").split(" ")[0], "auto")
    try:
        found = choose_device(precision, threads, asked)
    except RecipeError:  # kernels that are not there
        found = choose_device(precision, threads)
    torch.set_num_threads(threads)
    return replace(found, threads=threads)


def choose_device(precision: str = "auto", threads: int | None = None, kernels: Kernels = "auto") -> Device:
    """CUDA where there is one. On a CPU bfloat16 where the processor multiplies it fast, else float32.

    `threads` fixes the count (a resumed run must keep its own); otherwise BRIDLE_THREADS, otherwise a thread a core (8
    at most) on an idle machine and one on a busy one: a thread that must share its core makes all the others wait,
    some ten times slower. `kernels`: see `kernels.choose_kernels`.
    """
    if torch.cuda.is_available():
        chosen = torch.bfloat16 if precision in ("auto", "bfloat16") else torch.float32
        made = kernels_of("torch", chosen) if kernels == "torch" else ""
        return Device(torch.device("cuda"), chosen, torch.get_num_threads(), torch.cuda.get_device_name(), made)
    fast = multiplies_bfloat16(torch.device("cpu"))
    chosen = torch.bfloat16 if precision == "bfloat16" or (precision == "auto" and fast) else torch.float32
    onednn = chosen == torch.float32 and onednn_is_faster()
    torch.set_float32_matmul_precision("medium" if onednn else "highest")
    products = " by oneDNN" if onednn else ""
    if precision == "auto" and not fast:
        products += " (the processor has no bfloat16)"
    keep_memory()
    made = kernels_of(kernels, chosen)
    count, why = choose_threads(threads)
    torch.set_num_threads(count)
    return Device(torch.device("cpu"), chosen, count, why, made, products)


def card_here(precision: str = "auto") -> Card:
    """What this machine has for a run: of a card what is free, or is this process's own already; of a CPU all memory."""
    if torch.cuda.is_available():
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
        return Card(free, "cuda", 4 if precision == "float32" else 2)
    low = precision == "bfloat16" or (precision == "auto" and cpu_multiplies_bfloat16())
    return Card(machine_memory(), "cpu", 2 if low else 4)


def require_room(method: str, recipe: Recipe, shape: Shape) -> None:
    """ModelError where this machine has less memory than a method needs at least, on each rank."""
    here = card_here(recipe.model.precision)
    require_card(plan_stage(method, recipe, shape, here, world_size()), here)


def kernels_of(asked: Kernels, precision: Precision) -> str:
    try:
        return choose_kernels(asked, precision)
    except Unavailable as error:
        raise RecipeError(
            f"model.kernels is {asked!r}, which is not available here: {error}; set it to 'auto'"
        ) from error


def onednn_is_faster() -> bool:
    """Whether float32 products should go by oneDNN, which PyTorch does where less than the highest precision is asked for.

    On AMD's processors with AVX-512 MKL takes its AVX2 path, half as fast. With AMX oneDNN would make bfloat16 of it: not there.
    """
    words = processor_words()
    return "AuthenticAMD" in words and "avx512f" in words and "amx_bf16" not in words


def keep_memory() -> None:
    """Let freed memory stay with the process. A training step takes and frees the same blocks again and again, and glibc would give
    the large ones back each time: a tenth of a step's time goes into getting them anew. Elsewhere than on glibc nothing is done."""
    mallopt = in_process("mallopt") if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
            mallopt(option, value)


def choose_threads(threads: int | None) -> tuple[int, str]:
    if threads is not None:
        return threads, "as the run began"
    fixed = os.environ.get("BRIDLE_THREADS", "")
    if fixed:
        if not fixed.isdecimal() or int(fixed) < 1:
            raise RecipeError(f"BRIDLE_THREADS must be a whole number of at least 1, got {fixed!r}")
        return int(fixed), "BRIDLE_THREADS"
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    cores //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # ranks on this machine, as torchrun tells
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
    return bool(processor_words() & {"avx512_bf16", "amx_bf16", "bf16"})


def processor_kind() -> str:
    """What of a processor decides in which order sums are taken: by PyTorch's own choice of instructions, by its maker's name, which the
    libraries behind products look at, and by the instructions for vectors, for which the kernels are compiled."""
    words = processor_words()
    maker = " ".join(sorted(words & {"AuthenticAMD", "GenuineIntel"}))
    vectors = sorted(word for word in words if VECTORS.fullmatch(word))
    chosen = f"{torch.backends.cpu.get_cpu_capability()} instructions"
    return " ".join(filter(None, (maker, chosen, f"({' '.join(vectors)})" if vectors else "")))


def processor_words() -> set[str]:
    """What Linux tells of the processor, word by word; elsewhere nothing."""
    return set(CPU_INFO.read_text().split()) if CPU_INFO.exists() else set()
