"""The thread count and precision that are chosen, on machines that are pretended."""

from pathlib import Path

import pytest
import torch

from bridle.compute import device
from bridle.compute.device import Device, busy_ticks, choose_device, choose_threads, cores_used_by_others
from bridle.core.errors import RecipeError
from bridle.kernels import kernels


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Cores that there are, and cores that others use."""
    state = {"cores": 4.0, "others": 0.0}
    monkeypatch.delenv("BRIDLE_THREADS", raising=False)
    monkeypatch.setattr(device.sys, "platform", "elsewhere")
    monkeypatch.setattr(device.os, "cpu_count", lambda: int(state["cores"]))
    monkeypatch.setattr(device, "cores_used_by_others", lambda seconds: state["others"])
    return state


@pytest.mark.parametrize(
    ("cores", "others", "threads", "why"),
    [
        (4, 0.1, 4, "idle machine"),
        (2, 0.0, 2, "idle machine"),
        (64, 0.0, 8, "idle machine"),
        (1, 0.0, 1, "one core"),
        (2, 0.9, 1, "other programs use 0.9 cores"),
        (16, 3.0, 1, "other programs use 3.0 cores"),
    ],
)
def test_threads_by_what_is_free(
    machine: dict[str, float], cores: float, others: float, threads: int, why: str
) -> None:
    machine |= {"cores": cores, "others": others}
    assert choose_threads(None) == (threads, why)


def test_a_resumed_run_keeps_its_threads(machine: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDLE_THREADS", "3")
    assert choose_threads(5) == (5, "as the run began")


def test_the_variable_decides(machine: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    machine["others"] = 4.0
    monkeypatch.setenv("BRIDLE_THREADS", "3")
    assert choose_threads(None) == (3, "BRIDLE_THREADS")


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", " ", "²", "+2"])
def test_a_bad_variable_is_refused(value: str, machine: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDLE_THREADS", value)
    with pytest.raises(RecipeError, match="BRIDLE_THREADS must be a whole number of at least 1, got"):
        choose_threads(None)


def test_busy_ticks_leave_idle_time_out(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 9999 888 4 5 6 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    assert busy_ticks(stat) == 100 + 20 + 30 + 4 + 5 + 6


def test_the_use_of_others_is_never_negative() -> None:
    assert cores_used_by_others(0.02) >= 0


@pytest.mark.parametrize(
    ("asked", "fast", "chosen"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("float32", True, torch.float32),
        ("bfloat16", False, torch.bfloat16),
    ],
)
def test_precision_by_what_the_processor_does_fast(
    asked: str, fast: bool, chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "cpu_multiplies_bfloat16", lambda: fast)
    monkeypatch.setattr(device.torch, "set_num_threads", lambda count: None)
    found = choose_device(asked, threads=2)
    assert (found.precision, found.threads, found.torch.type) == (chosen, 2, "cpu")


ZEN_3, ZEN_5 = (
    "vendor_id : AuthenticAMD\nflags : avx avx2 fma",
    "vendor_id : AuthenticAMD\nflags : avx2 avx512f avx512_bf16",
)
SAPPHIRE, ARM = (
    "vendor_id : GenuineIntel\nflags : avx512f avx512_bf16 amx_bf16",
    "CPU implementer : 0x41\nFeatures : asimd bf16",
)
OLD_ARM, NOT_LINUX = "CPU implementer : 0x41\nFeatures : asimd", None


@pytest.mark.parametrize(
    ("processor", "asked", "chosen", "words"),
    [
        (ZEN_5, "auto", torch.bfloat16, "bfloat16 products,"),
        (ZEN_5, "float32", torch.float32, "float32 products by oneDNN,"),
        (SAPPHIRE, "auto", torch.bfloat16, "bfloat16 products,"),
        (SAPPHIRE, "float32", torch.float32, "float32 products,"),  # by oneDNN they would be bfloat16's in disguise
        (ARM, "auto", torch.bfloat16, "bfloat16 products,"),
        (OLD_ARM, "auto", torch.float32, "float32 products (the processor has no bfloat16),"),
        (ZEN_3, "auto", torch.float32, "float32 products (the processor has no bfloat16),"),
        (NOT_LINUX, "auto", torch.float32, "float32 products (the processor has no bfloat16),"),
    ],
)
def test_what_is_chosen_on_each_processor(
    processor: str | None, asked: str, chosen: torch.dtype, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    info = tmp_path / "cpuinfo"
    if processor is not None:
        info.write_text(processor)
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "CPU_INFO", info)
    device.cpu_multiplies_bfloat16.cache_clear()
    try:
        found = choose_device(asked, threads=torch.get_num_threads(), kernels="plain")
    finally:
        device.cpu_multiplies_bfloat16.cache_clear()
        kernels.wish = "auto"
    assert found.precision == chosen and words in str(found) and "plain kernels (as asked)" in str(found)
    assert torch.get_float32_matmul_precision() == ("medium" if "oneDNN" in words else "highest")


def test_kernels_that_must_be_and_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(dtype: torch.dtype) -> None:
        raise kernels.Unavailable("no C compiler")

    monkeypatch.setattr(kernels, "built", none)
    monkeypatch.setattr(kernels, "wish", "auto")
    with pytest.raises(RecipeError, match="'compiled', which is not available here: no C compiler; set it to"):
        choose_device(threads=torch.get_num_threads(), kernels="compiled")
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    with pytest.raises(
        RecipeError, match=r"'torch', which is not available here: torch.compile needs a C\+\+ compiler"
    ):
        choose_device(threads=torch.get_num_threads(), kernels="torch")
    kernels.wish = "auto"
    assert "plain kernels (no C compiler)" in str(choose_device(threads=torch.get_num_threads()))


def test_memory_stays_only_where_glibc_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "in_process", lambda name: None)
    device.keep_memory()
    called: list[tuple[int, int]] = []
    monkeypatch.setattr(device, "in_process", lambda name: lambda option, value: called.append((option, value)))
    monkeypatch.setattr(device.sys, "platform", "linux")
    device.keep_memory()
    assert [option for option, _ in called] == [-3, -1, -2]
    monkeypatch.setattr(device.sys, "platform", "darwin")
    device.keep_memory()
    assert len(called) == 3


def test_a_device_says_itself_in_a_line() -> None:
    assert (
        str(Device(torch.device("cpu"), torch.bfloat16, 1, "one core")) == "cpu, bfloat16 products, 1 thread (one core)"
    )
    assert "2 threads" in str(Device(torch.device("cpu"), torch.float32, 2, "idle machine"))


def test_products_run_in_the_precision_and_weights_stay() -> None:
    linear = torch.nn.Linear(4, 4)
    with Device(torch.device("cpu"), torch.bfloat16, 1, "").autocast():
        assert linear(torch.zeros(1, 4)).dtype == torch.bfloat16
    with Device(torch.device("cpu"), torch.float32, 1, "").autocast():
        assert linear(torch.zeros(1, 4)).dtype == torch.float32
    assert linear.weight.dtype == torch.float32
