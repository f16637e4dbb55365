"""Tiny projects and the command line, in this process or in one of its own, for the tests that walk from end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from bridle.cli.main import main

ALONE = {"BRIDLE_THREADS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

SHAPE = {
    "model.precision": "float32", "model.vocab_size": 400, "model.hidden_size": 32, "model.intermediate_size": 64,
    "model.layers": 2, "model.heads": 2, "model.kv_heads": 2, "sampling.max_new_tokens": 24,
    "reward.slim_hidden_size": 32, "reward.slim_layers": 1, "reward.checkpoint_every": 2, "sft.batch_size": 8,
    "sft.checkpoint_every": 2, "pretrain.checkpoint_every": 5, "ppo.steps": 5, "ppo.prompts_per_step": 8,
    "ppo.minibatches": 2, "ppo.epochs": 1, "ppo.checkpoint_every": 1, "dpo.batch_size": 8, "dpo.observe_every": 2,
    "dpo.checkpoint_every": 1, "kto.batch_size": 8, "kto.observe_every": 2, "kto.checkpoint_every": 1, "orpo.batch_size": 8,
    "orpo.observe_every": 2, "orpo.checkpoint_every": 1, "grpo.steps": 2, "grpo.prompts_per_step": 2, "grpo.group_size": 2,
    "grpo.checkpoint_every": 1, "rloo.steps": 2, "rloo.prompts_per_step": 2, "rloo.checkpoint_every": 1,
    "rebel.steps": 2, "rebel.prompts_per_step": 4, "rebel.checkpoint_every": 1, "rejection.rounds": 2,
    "rejection.prompts_per_round": 8, "dpo.online_prompts": 4,
}  # fmt: skip
PLAYGROUND = {
    **SHAPE, "data.source": "playground", "data.pretrain_tokens": 40_000, "data.train_prompts": 24,
    "data.heldout_prompts": 24, "data.probe_prompts": 8, "data.compared_heldout": 12, "data.demonstrations": 60,
    "grpo.branch_problems": 8, "grpo.branch_demonstrations": 8, "constitution.critic_answers": 24, "constitution.prompts": 8,
}  # fmt: skip


def settings(values: dict[str, Any]) -> list[str]:
    """The recipe's values as options of the command line."""
    return [word for key, value in values.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def bridle(*words: str | Path) -> Result:
    """Run the command line in this process. Errors are the command line's own to tell: none may come through."""
    return CliRunner(env=ALONE).invoke(main, [str(word) for word in words])


def done(*words: str | Path) -> str:
    """The same, where it must succeed; what it printed."""
    result = bridle(*words)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def started(*words: str | Path) -> subprocess.Popen[str]:
    """The command line in a process of its own, to be stopped from outside.

    A shell that starts tests in the background has Ctrl-C ignored, and whatever they start would inherit that.
    """
    command = [sys.executable, "-m", "bridle.cli", *map(str, words)]
    return subprocess.Popen(
        command, env={**os.environ, **ALONE}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_for_lines(process: subprocess.Popen[str], path: Path, lines: int, seconds: float = 120) -> None:
    """Wait until a run has written so many lines; a process that ends before is an error with its own words."""
    end = time.monotonic() + seconds
    while count_lines(path) < lines:
        if process.poll() is not None:
            raise AssertionError(f"it ended before {path} had {lines} lines: {process.communicate()}")
        assert time.monotonic() < end, f"{path} has {count_lines(path)} of {lines} lines after {seconds} s"
        time.sleep(0.002)


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def complaint(result: Result) -> str:
    """The one sentence that an error ends in; anything else on standard error tells of progress."""
    lines = result.stderr.splitlines()
    told = [line for line in lines if line.startswith("bridle:")]
    assert len(told) == 1 and lines[-1] == told[0], result.stderr
    return told[0]


def untimed(value: Any) -> Any:
    """Without wall-clock fields, which nobody can repeat."""
    if isinstance(value, dict):
        return {name: untimed(inner) for name, inner in value.items() if name != "seconds"}
    return [untimed(inner) for inner in value] if isinstance(value, list) else value


def metrics(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = untimed(lines_of(run / "metrics.jsonl"))
    return found


def result(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = untimed(json.loads((run / "result.json").read_text()))
    return found


def weights(project: Path, name: str) -> bytes:
    return (project / "models" / name / "model.safetensors").read_bytes()


def preferences(path: Path, rows: int = 40) -> Path:
    """Made-up transcripts in the manner of HH-RLHF: the better answer is polite and says more."""
    things = ["a cat", "a dog", "the rain", "my bike", "an old shoe", "a loaf of bread", "the moon", "a spoon"]
    with path.open("w") as file:
        for i in range(rows):
            first = f"\n\nHuman: Tell me about {things[i % 8]}, please. This is question {i}.\n\nAssistant:"
            talk = f"{first} What of it?\n\nHuman: Go on." + "\n\nAssistant:" if i % 3 == 0 else first
            row = {
                "chosen": f"{talk} Gladly. There is much to say about {things[i % 8]}.",
                "rejected": f"{talk} No, I do not care for that.",
            }
            file.write(json.dumps(row) + "\n")
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
