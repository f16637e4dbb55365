"""Set-up installs what is asked for: the demo without the tools of tests and checks, those on top of it, each once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.house.source import ROOT
from tests.tiny_project import ALONE, PLAYGROUND, settings

FILES = ("Makefile", "pyproject.toml", "constraints.txt")
TOOLS = ("mypy", "ruff", "pytest", "hypothesis", "tensorboard", "grpcio", "pyarrow", "psycopg", "psycopg_binary")
MOST_BYTES = 1_200_000_000
MOST_SECONDS = 60.0


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The Makefile where every program of `.venv` only notes what it was called with."""
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path)
        os.utime(tmp_path / name, (1e9, 1e9))  # long ago: older than any stamp
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("pip", "bridle", "pytest", "ruff", "mypy"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >> called\n')
        (programs / name).chmod(0o755)
    return tmp_path


def called(checkout: Path, *targets: str) -> list[str]:
    """What `make` ran: the installations as `.` and `.[dev]`, other programs by name."""
    (checkout / "called").write_text("")
    subprocess.run(
        ["make", *targets], cwd=checkout, check=True, capture_output=True, env={**os.environ, "MAKEFLAGS": ""}
    )
    lines = (checkout / "called").read_text().splitlines()
    return [line.split()[-1] if line.startswith("pip ") else line.split()[0] for line in lines]


def test_the_demo_installs_no_tools_and_the_tests_add_them(checkout: Path) -> None:
    assert called(checkout, "demo") == [".", "bridle"]
    assert called(checkout, "demo") == ["bridle"]
    assert called(checkout, "test") == [".[dev]", "pytest"]
    assert called(checkout, "demo", "test", "check") == ["bridle", "pytest", "ruff", "ruff", "mypy"]


def test_the_other_way_round(checkout: Path) -> None:
    assert called(checkout, "test") == [".", ".[dev]", "pytest"]
    assert called(checkout, "demo") == ["bridle"]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_what_changed_is_installed_again_once(name: str, checkout: Path) -> None:
    called(checkout, "test")
    for stamp in ("installed", "installed-dev"):
        os.utime(checkout / ".venv" / stamp, (1e9 + 1, 1e9 + 1))
    os.utime(checkout / name, (1e9 + 2, 1e9 + 2))
    assert called(checkout, "demo") == [".", "bridle"]
    assert called(checkout, "test") == [".[dev]", "pytest"]
    assert called(checkout, "test") == ["pytest"]


def test_a_failed_installation_is_done_again(checkout: Path) -> None:
    pip = checkout / ".venv" / "bin" / "pip"
    good = pip.read_text()
    pip.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(subprocess.CalledProcessError):
        called(checkout, "demo")
    pip.write_text(good)
    assert called(checkout, "demo") == [".", "bridle"]


def test_what_users_need_is_listed_with_why() -> None:
    """Every dependency of pyproject.toml, and every tool that has an extra of its own, in the table of CONTRIBUTING.md."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = [re.split(r"[<>=]", requirement)[0] for requirement in project["dependencies"]]
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    rows = "\n".join(line for line in text.splitlines() if line.startswith("| "))
    assert [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", rows)] == []


# ------------------------------------------------------------------------------------- into a new folder, for real


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that git knows, and nothing that was built."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheels(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all wheels that users need."""
    folder = tmp_path_factory.mktemp("wheels")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--wheel-dir",
        folder,
        "--constraint",
        "constraints.txt",
        ".",
        "setuptools>=77",
    ]
    fetched = subprocess.run(pip, cwd=clone, capture_output=True, text=True, check=False)
    if fetched.returncode:
        pytest.skip(f"no package index answers: {(fetched.stderr.strip() or 'pip said nothing').splitlines()[-1]}")
    for ours in folder.glob("bridle-*"):
        ours.unlink()
    return folder


@pytest.mark.slow  # counts seconds
@pytest.mark.timeout(1800)
def test_users_get_what_they_need_in_a_minute(clone: Path, wheels: Path) -> None:
    """Seconds on the processor, of which pip keeps one busy: the clock's on an idle machine, and neighbours count for nothing."""
    outside = ("PYTHONPATH", "PIP_EXTRA_INDEX_URL", "MAKEFLAGS", "BRIDLE_DATA")
    environment = {name: value for name, value in os.environ.items() if name not in outside} | ALONE
    environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}
    programs, used = clone / ".venv" / "bin", sum(os.times()[2:4])
    succeeds("make", "setup", f"PYTHON={sys.executable}", cwd=clone, env=environment)
    used = sum(os.times()[2:4]) - used
    listed = succeeds(programs / "pip", "list", "--format", "freeze", cwd=clone, env=environment)
    names = {line.partition("==")[0].lower().replace("-", "_") for line in listed.splitlines()}
    assert {"torch", "bridle"} <= names and not names.intersection(TOOLS)
    succeeds(programs / "bridle", "demo", *settings(PLAYGROUND), cwd=clone, env=environment)  # lacks nothing
    assert (clone / "demo" / "report.html").exists()
    if any(name.startswith("nvidia") for name in names):
        pytest.skip("the limits are for torch's build for CPUs; that for CUDA is several times as large")
    size = sum(path.lstat().st_size for path in (clone / ".venv").rglob("*") if path.is_file())
    assert size <= MOST_BYTES, f"{size / 1e6:.0f} MB"
    assert used <= MOST_SECONDS, f"{used:.0f} s"


def succeeds(*words: str | Path, cwd: Path, env: dict[str, str]) -> str:
    """What a program printed."""
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
