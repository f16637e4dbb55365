"""The metrics that a run logged, read back line by line."""

import json
from pathlib import Path
from typing import Any


def complete_before(line: str, step: int) -> bool:
    try:
        return int(json.loads(line)["step"]) < step
    except (json.JSONDecodeError, KeyError, ValueError):
        return False  # a line cut off by a kill


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if complete_before(line, 2**62)]
