"""What `--profile` left, read back and checked, for the tests of its parts and of the whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bridle.project.profile import FILE


def written(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / FILE).read_text("utf-8"))
    return found


def nested(events: Sequence[dict[str, Any]]) -> bool:
    """Whether the events of each track come one after another or one within another, in the order of their beginning."""
    open_on: dict[tuple[int, int], list[int]] = {}
    last = 0
    for event in events:
        start, end = round(event["ts"] * 1000), round((event["ts"] + event["dur"]) * 1000)
        ends = open_on.setdefault((event["pid"], event["tid"]), [])
        while ends and ends[-1] <= start:
            ends.pop()
        if start < last or (ends and end > ends[-1]):
            return False
        last = start
        ends.append(end)
    return True


def complete(trace: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]
