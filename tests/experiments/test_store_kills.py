"""Three kills of experiments/store_kills.py on each database: every judgement that was acknowledged is there, once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bridle.feedback.store.store import Store
from tests.feedback.conftest import any_store as any_store
from tests.house.source import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")


def test_what_was_acknowledged_survives_the_writers(any_store: Store) -> None:
    target = any_store._engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "experiments.store_kills", target, "--kills", "3"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, (ran.stdout, ran.stderr)
    found = json.loads(ran.stdout)
    assert found["reported"] >= 3 and (found["lost"], found["twice"]) == (0, 0)
    assert found["not_reported"] <= 3 * found["writers"]
