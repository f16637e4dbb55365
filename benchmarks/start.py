"""From nothing: importing, asking for help, the first SFT step of a new process: python benchmarks/start.py [--quick]"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from harness import FOLDER, KEEP_MEMORY, STARTED, Contestant, Stage, Trial, main


def seconds_of(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - began


def first_step(script: str, contestant: str, **variables: str) -> float:
    """From the start of the process to the end of its first step, as every stage counts it."""
    command = [sys.executable, str(FOLDER / script), "--only", contestant, "--steps", "2"]
    environment = {**os.environ, **variables, STARTED: repr(time.time())}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["first_step_s"])


def bridle(trial: Trial) -> None:
    for _ in range(trial.steps):
        trial.took("import", seconds_of("-c", "import bridle"))
        trial.took("import trainers", seconds_of("-c", "import bridle.api"))
        trial.took("--help", seconds_of("-c", "from bridle.cli.main import main; main()", "--help"))
        trial.took("first SFT step", first_step("sft.py", "bridle"))
        with tempfile.TemporaryDirectory() as empty:
            trial.took("first SFT step, kernels to be compiled", first_step("sft.py", "bridle", XDG_CACHE_HOME=empty))


def trl(trial: Trial, contestant: str) -> None:
    for _ in range(trial.steps):
        trial.took("import", seconds_of("-c", "import trl"))
        trial.took(
            "import trainers", seconds_of("-c", "from trl import DPOTrainer, GRPOTrainer, RewardTrainer, SFTTrainer")
        )
        trial.took("--help", seconds_of(str(Path(sys.executable).with_name("trl")), "--help"))
        trial.took("first SFT step", first_step("sft.py", contestant))


if __name__ == "__main__":
    main(
        Stage(
            "start",
            "seconds of a new process, files in the system's cache",
            [
                Contestant("bridle", bridle),
                Contestant("trl", partial(trl, contestant="trl"), "trl"),
                Contestant("trl best", partial(trl, contestant="trl best"), "trl", KEEP_MEMORY),
            ],
            steps=3,
            quick_steps=1,
        )
    )
