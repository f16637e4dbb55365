"""Every module imports by itself, whatever was imported before; the floors without torch leave it alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.house.source import ROOT, listed, modules

LIGHT = ("core", "maths.statistics", "feedback", "playground", "site", "web", "cli")
HEAVY_PACKAGES = ("torch", "transformers")

ONE = f"""
import sys
import {{module}}
loaded = [name for name in {HEAVY_PACKAGES} if name in sys.modules]
if loaded:
    sys.exit("loads " + " and ".join(loaded))
"""
MANY = """
import importlib, sys, traceback
for module in sys.argv[1:]:
    for name in [name for name in sys.modules if name.split(".")[0] == {package!r}]:
        del sys.modules[name]
    try:
        importlib.import_module(module)
    except Exception:
        print(module + ": " + traceback.format_exc().strip().splitlines()[-1])
"""


def is_light(module: str) -> bool:
    return module == "bridle" or any(f"{module}.".startswith(f"bridle.{name}.") for name in LIGHT)


def python(program: str, *arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment)


def alone(module: str, folder: Path = ROOT) -> str:
    """What is wrong with importing the module in a fresh interpreter; empty if nothing is."""
    done = python(ONE.format(module=module), folder=folder)
    return "" if done.returncode == 0 else f"{module}: {done.stderr.strip().splitlines()[-1]}"


def one_by_one(names: Sequence[str], package: str, folder: Path = ROOT) -> list[str]:
    """What is wrong with importing each module with none of ours loaded; others' packages stay, for they are slow."""
    done = python(MANY.format(package=package), *names, folder=folder)
    return (done.stdout + done.stderr).splitlines()


@pytest.fixture
def bad_package(tmp_path: Path) -> Path:
    (tmp_path / "bad").mkdir()
    for name, text in {
        "__init__": "",
        "broken": "import surely_not_there",
        "loose": "import xml\nxml.dom",  # works only if someone else has imported xml.dom before
        "heavy": "import torch",
        "fine": "import json",
    }.items():
        (tmp_path / "bad" / f"{name}.py").write_text(text)
    (tmp_path / "torch.py").write_text("")  # the name is enough, and quicker
    return tmp_path


def test_a_module_that_does_not_import_is_found(bad_package: Path) -> None:
    assert "surely_not_there" in alone("bad.broken", bad_package)
    assert "xml" in alone("bad.loose", bad_package)
    assert alone("bad.heavy", bad_package) == "bad.heavy: loads torch"
    assert alone("bad.fine", bad_package) == ""
    assert one_by_one(["bad.fine", "bad.broken"], "bad", bad_package) == [
        "bad.broken: ModuleNotFoundError: No module named 'surely_not_there'"
    ]


def test_light_modules_import_alone_and_without_torch() -> None:
    with ThreadPoolExecutor(2) as pool:
        faults = [fault for fault in pool.map(alone, filter(is_light, modules())) if fault]
    assert not faults, listed(faults)


def test_the_other_modules_import_alone() -> None:
    faults = one_by_one([module for module in modules() if not is_light(module)], "bridle")
    assert not faults, listed(faults)
