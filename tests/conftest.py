"""What every test shares: two threads, no network for model hubs, and the folder of real data."""

import gc
import os
import signal
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it when it is first imported, here and in subprocesses
os.environ["HF_HUB_OFFLINE"] = "1"
# Whoever started the tests may ignore them (nohup, a shell's background), and what is tested would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """While tests are imported and collected no garbage is looked for: there is next to none.

    Where Python was told to write no bytecode, as in many containers, each process of the tests would compile PyTorch's sources anew,
    a second and more: they share a folder in pytest's cache instead."""
    gc.disable()
    if sys.dont_write_bytecode and config.pluginmanager.has_plugin("cacheprovider") and config.cache is not None:
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(config.cache.mkdir("bytecode"))
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or it was -B


@pytest.fixture(autouse=True)
def as_pytorch_multiplies() -> None:
    """Which library multiplies float32 is one setting of the process, which every chosen device sets: a test begins with PyTorch's."""
    if (torch := sys.modules.get("torch")) is not None:  # most tests of the lower floors never load it
        torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data. Without it a test is skipped; with CI=true it fails: CI leaves nothing out."""
    name = os.environ.get("BRIDLE_DATA", "")
    if name and Path(name).is_dir():
        return Path(name)
    reason = f"BRIDLE_DATA must name the folder of real data, and is {name!r}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def finished_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny demo, walked once through the command line. Read only: who wants to change it takes a copy."""
    from tests.tiny_project import PLAYGROUND, done, settings  # not at import: most tests need no command line

    folder = tmp_path_factory.mktemp("demo") / "demo"
    done("demo", "--out", folder, *settings(PLAYGROUND))
    return folder


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: no look for garbage goes through it anew, which took a second and more."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and "data_folder" in item.fixturenames:
            item.add_marker(pytest.mark.data)
