"""Two kills of experiments/label_kills.py: what the app acknowledged is there, once, and so is the draft."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.source import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


def test_what_was_acknowledged_survives_the_server(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "experiments.label_kills",
        str(tmp_path / "store.sqlite"),
        "--kills",
        "2",
        "--people",
        "5",
    ]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, (ran.stdout, ran.stderr)
    found = json.loads(ran.stdout)
    assert found["acknowledged"] > 0 and found["errors"] == []
