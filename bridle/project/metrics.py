"""The metrics that a run logged, read back line by line."""

import json
from pathlib import Path
from typing import Any

from bridle.core.forms import NUMBER, SECONDS, form_fault

LINE = {"step": int, "seconds?": SECONDS, ...: (*NUMBER, str, bool)}


def metrics_of(line: str) -> dict[str, Any] | None:
    """What a line of metrics.jsonl holds; None where a kill cut it off, or it is damaged."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return None if form_fault(found, LINE) else found


def complete_before(line: str, step: int) -> bool:
    found = metrics_of(line)
    return found is not None and int(found["step"]) < step


def logged_lines(folder: Path) -> list[str]:
    """The lines of a run's metrics.jsonl; bytes that are no text spoil no line but their own."""
    path = folder / "metrics.jsonl"
    return path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All lines but those that are damaged."""
    return [found for line in logged_lines(folder) if (found := metrics_of(line)) is not None]
