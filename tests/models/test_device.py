"""The thread count and precision that are chosen, on machines that are pretended."""

from pathlib import Path

import pytest
import torch

from bridle.core.errors import RecipeError
from bridle.models import device
from bridle.models.device import Device, busy_ticks, choose_device, choose_threads, cores_used_by_others


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
