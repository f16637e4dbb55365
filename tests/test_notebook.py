"""The notebook in examples/: its cells run as they stand, with no Jupyter, and what is saved of them is small."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.house.source import ROOT

NOTEBOOK = ROOT / "examples" / "first_steps.ipynb"
LARGEST = 60_000  # bytes, outputs too
PROGRAM = """
import json, sys
space = {"__name__": "__main__"}
for number, text in enumerate(json.load(sys.stdin), 1):
    exec(compile(text, f"cell {number}", "exec"), space)
rewards = [line["reward"] for line in space["log"]]
print(json.dumps([sum(rewards[:2]) / 2, sum(rewards[-2:]) / 2, min(line["kl"] for line in space["log"][3:])]))
"""


def code_cells(path: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_its_cells_run_and_the_reward_rises(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(["".join(cell["source"]) for cell in code_cells(NOTEBOOK)]),
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"},
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, last, kl = json.loads(done.stdout.splitlines()[-1])
    assert last > first + 0.3 and kl > 0


def test_it_is_saved_as_it_ran_and_small() -> None:
    cells = code_cells(NOTEBOOK)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "run all its cells in order"
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data", "execute_result"}
    assert NOTEBOOK.stat().st_size < LARGEST
