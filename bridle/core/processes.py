"""Processes of ours that are Python's: they import what this one imports, and nothing from the folder that they happen to start in."""

import os
import sys
from pathlib import Path


def python_module(name: str) -> list[str]:
    """The command that runs a module. Without -P Python takes modules from the working folder first: a `json.py` that came with somebody's
    model would run."""
    return [sys.executable, "-P", "-m", name]


def python_environment() -> dict[str, str]:
    """This process's environment, and the places where it finds modules; the last of them is where bridle lies, which this process may
    have found in its working folder."""
    places = [*filter(None, sys.path), str(Path(__file__).absolute().parents[2])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places)}


def is_first_rank() -> bool:
    """Whether this process speaks for those that share its work, as torchrun numbers them; one that was started by itself does."""
    return os.environ.get("RANK", "0") == "0"
