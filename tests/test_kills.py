"""One kill or signal of each kind at a fixed place: the command is run again, and its project holds what an undisturbed run leaves.

The places are POINTS of experiments/kills.py, which does the same at random over every verb, for an hour: this runs it as it is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.kills import CLOSED, KINDS, POINTS, TEE, left_over
from tests.house.source import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes and their ends as Linux tells")

ASKED = ("SIGTERM", "SIGHUP", TEE)  # to end


@pytest.fixture(scope="module")
def outcomes(finished_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("kills") / "kills"
    command = [sys.executable, "-m", "experiments.kills", folder, "--points", finished_demo]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode in (0, 1) and (folder / "kills.json").exists(), ran.stderr
    points: dict[str, Any] = json.loads((folder / "kills.json").read_text())["points"]
    return points


@pytest.mark.parametrize("point", POINTS)
def test_what_was_struck_and_run_again_is_as_if_left_alone(point: str, outcomes: dict[str, Any]) -> None:
    outcome = outcomes[point]
    [strike] = outcome["strikes"]  # it came to the point
    assert (outcome["faults"], outcome["left_over"]) == ([], [])
    assert strike["state"] in ("during", "saving") or strike["kind"] == CLOSED  # which may end its work unheard
    if strike["kind"] in ASKED:  # it saves the step, which was not due, and says so
        assert (strike["status"], outcome["resumed"]) == (130, True)


def test_what_is_left_over_is_seen(tmp_path: Path) -> None:
    (tmp_path / "models/.sft.5f2a91c0.new").mkdir(parents=True)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/.sft.lock").touch()
    assert left_over(tmp_path) == ["models/.sft.5f2a91c0.new"]


def test_every_kind_is_among_them() -> None:
    """Ctrl-C alone is in tests/test_resume.py."""
    assert {kind for _, _, kind, _ in POINTS.values()} == {*KINDS} - {"SIGINT"}
