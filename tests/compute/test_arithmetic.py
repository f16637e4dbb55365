"""A run is resumed on what it began with: kept where it can be had, else refused or, by a setting, said and noted."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bridle.compute import device
from bridle.compute.device import Device, as_begun, choose_device, read_arithmetic
from bridle.core.errors import ProjectError
from bridle.kernels import kernels

PLACE = Path("runs/ppo-0001")


@pytest.fixture(autouse=True)
def a_processor_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """And kernels that are chosen anew, with the settings of the process as they were."""
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "cpu_multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(device, "onednn_is_faster", lambda: False)
    kernels.built.cache_clear()
    yield
    kernels.built.cache_clear()
    kernels.wish = "auto"
    torch.set_num_threads(1)


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.built.cache_clear()
    monkeypatch.setattr("bridle.kernels.kernels.shutil.which", lambda name: None)


def noted(found: Device) -> dict[str, Any]:
    return {"threads": found.threads, "device": str(found), "arithmetic": found.arithmetic}


def refused(began: dict[str, Any], here: Device) -> str:
    with pytest.raises(ProjectError) as caught:
        as_begun(began, here, PLACE, "begin anew")
    assert str(caught.value).endswith("; begin anew") and "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_as_it_was_is_taken_without_a_word() -> None:
    here = choose_device("auto", 1)
    assert as_begun(noted(here), here, PLACE, "") == (here, [], False)
    assert as_begun({}, here, PLACE, "") == (here, [], False)  # a new run noted nothing yet


@pytest.mark.parametrize("earlier", [False, True])
def test_without_the_compiler_that_it_began_with_it_is_refused(earlier: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    began = noted(choose_device("auto", 1))
    if earlier:
        del began["arithmetic"]  # an earlier version noted the sentence alone
    no_compiler(monkeypatch)
    here = choose_device("auto", 1)
    sentence = refused(began, here)
    assert "was begun with compiled kernels, and here it would resume with plain kernels" in sentence
    assert "plain kernels (no C compiler)" in sentence
    found, sentences, other = as_begun(began, here, PLACE, "", allowed=True)
    assert other and "plain kernels" in str(found) and "though it was begun with compiled kernels" in sentences[0]


def test_plain_kernels_stay_plain_where_there_is_a_compiler_by_now(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        no_compiler(patch)
        began = noted(choose_device("auto", 1))
    kernels.built.cache_clear()
    here = choose_device("auto", 1)
    assert "compiled kernels" in str(here) and kernels.compiled(torch.float32) is not None
    found, sentences, other = as_begun(began, here, PLACE, "")
    assert found.arithmetic == began["arithmetic"] and sentences == ["keeping plain kernels, as this run began"]
    assert not other and kernels.compiled(torch.float32) is None
    device.choose_as(here.arithmetic, 1)
    assert kernels.compiled(torch.float32) is not None


def test_the_precision_stays_where_it_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = choose_device("auto", 1)
    monkeypatch.setattr(device, "cpu_multiplies_bfloat16", lambda: True)
    fast = choose_device("auto", 2)
    assert (slow.precision, fast.precision) == (torch.float32, torch.bfloat16)
    found, sentences, _ = as_begun(noted(slow), fast, PLACE, "")
    assert found.precision == torch.float32 and found.threads == torch.get_num_threads() == 1
    assert sentences == ["keeping 1 thread(s), as this run began", "keeping float32 products, as this run began"]
    monkeypatch.setattr(device, "cpu_multiplies_bfloat16", lambda: False)
    assert "begun with bfloat16 products, and here it would resume with float32 products" in refused(noted(fast), slow)
    nearest, _, other = as_begun(noted(fast), slow, PLACE, "", allowed=True)
    assert other and nearest.precision == torch.float32


@pytest.mark.parametrize(
    ("part", "began", "words"),
    [
        ("device", "cuda", "begun with cuda, and here it would resume with cpu"),
        ("products", "float32 products by oneDNN", "float32 products by oneDNN, and here it would resume with float32"),
        ("torch", "PyTorch 1.0", "begun with PyTorch 1.0, and here it would resume with PyTorch"),
        ("kernels", "layers by torch.compile", "begun with layers by torch.compile, and here"),
        (
            "processor",
            "GenuineIntel AVX512 instructions (avx512f)",
            "AVX512 instructions (avx512f), and here it would resume with",
        ),
    ],
)
def test_all_that_the_last_bits_depend_on_is_kept(
    part: str, began: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_compiler(monkeypatch)
    here = choose_device("auto", 1)
    assert words in refused({"threads": 1, "arithmetic": {**here.arithmetic, part: began}}, here)
    assert kernels.wish == "plain" or kernels.wish == "auto"


def test_what_decides_on_the_order_of_sums_is_noted_of_a_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(
        "vendor_id : GenuineIntel\nflags : fpu avx2 sse4_2 avx512f fma ibpb avx512_bf16 amx_tile\n"
    )
    monkeypatch.setattr(device, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(device.torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    here = choose_device("float32", 1, "plain")
    assert here.arithmetic["processor"] == "GenuineIntel AVX512 instructions (amx_tile avx2 avx512_bf16 avx512f fma)"
    earlier = {part: words for part, words in here.arithmetic.items() if part != "processor"}
    assert as_begun({"threads": 1, "arithmetic": earlier}, here, PLACE, "") == (here, [], False)


def test_the_line_of_an_earlier_version_is_read_as_far_as_it_goes() -> None:
    line = "cpu, float32 products by oneDNN (the processor has no bfloat16), compiled kernels, 2 threads (idle machine)"
    assert read_arithmetic(line) == {
        "device": "cpu",
        "products": "float32 products by oneDNN",
        "kernels": "compiled kernels",
    }
    failed = "cpu, bfloat16 products, plain kernels (gcc failed: a, (b)), 1 thread (BRIDLE_THREADS)"
    assert read_arithmetic(failed)["kernels"] == "plain kernels"
    assert read_arithmetic("cpu") == {"device": "cpu"} and read_arithmetic("") == {}
    here = replace(choose_device("auto", 1), kernels="layers by torch.compile (as asked)")
    assert here.arithmetic["kernels"] == "layers by torch.compile"
