"""One step by operator: torch's profiler looks at the second step of a run while a recording is on (`--profile`).

The first step is left out, for it pays for what is done once. The longest operators are kept for the trace, and all of them
in a table: by the part in which they began, the seconds without those of operators inside.
"""

import json
import os
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bridle.core.timeline import Event, Recording, timed

KEPT = 20_000  # of a step's operators, the longest: some two megabytes of the trace
ON_GPU = {"kernel", "gpu_memcpy", "gpu_memset"}


class Operators:
    """Told at the end of every step; looks at the one after the first."""

    def __init__(self, recording: Recording, stage: str) -> None:
        self.recording, self.stage = recording, stage
        self.profiler: profile | None = None
        self.first_event = 0
        self.done = False

    def __call__(self, done: int, total: int) -> None:
        if self.profiler is not None:
            with timed("profiler"):
                self.stop()
        elif not self.done and done < total:
            with timed("profiler"):
                self.start()

    def start(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else torch writes lines of its own to standard error
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self.profiler = profile(activities=activities)
        self.profiler.start()
        self.first_event = len(self.recording.events) + 1  # the part that this is in ends first

    def stop(self) -> None:
        """End the look, and keep what was seen; nothing where there is none."""
        profiler, self.profiler, self.done = self.profiler, None, True
        if profiler is None:
            return
        profiler.stop()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            seen = json.loads(path.read_text("utf-8"))
        parts = [event for event in self.recording.events[self.first_event :] if event.kind == "part"]
        found = operators_of(seen, self.stage, parts)
        self.recording.operators += operator_rows(found)
        self.recording.events += sorted(found, key=lambda event: event.start - event.end)[:KEPT]


def operators_of(seen: dict[str, Any], stage: str, parts: Sequence[Event]) -> list[Event]:
    """The operators and kernels of a trace by torch, on our clock, each in the part during which it began."""
    since_our_zero = int(seen["baseTimeNanoseconds"]) - (time.time_ns() - time.perf_counter_ns())
    ordered = sorted(parts, key=lambda event: (event.start, -event.end))
    starts = [event.start for event in ordered]
    found = []
    for raw in seen["traceEvents"]:
        if raw.get("ph") != "X" or raw.get("cat") not in {"cpu_op", *ON_GPU}:
            continue
        start = since_our_zero + round(raw["ts"] * 1000)
        on_gpu = raw["cat"] in ON_GPU
        found.append(
            Event(
                "kernel" if on_gpu else "operator", raw["name"], stage, part_at(start, ordered, starts),
                start, start + round(raw["dur"] * 1000), f"{'GPU stream' if on_gpu else 'operators of thread'} {raw['tid']}",
            )
        )  # fmt: skip
    return found


def part_at(moment: int, ordered: Sequence[Event], starts: Sequence[int]) -> str:
    """The innermost part at a moment: of those that hold it, the one that began last."""
    index = bisect_right(starts, moment) - 1
    while index >= 0 and ordered[index].end < moment:
        index -= 1
    return ordered[index].part if index >= 0 else ""


def operator_rows(found: Sequence[Event]) -> list[dict[str, Any]]:
    """A row for each operator in each part, the longest first: calls, and seconds of its own."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for event, nanoseconds in own_nanoseconds(found):
        named = {"stage": event.stage, "part": event.part, "operator": event.name, "on": event.kind}
        row = rows.setdefault((event.kind, event.part, event.name), {**named, "calls": 0, "seconds": 0.0})
        row["calls"] += 1
        row["seconds"] += nanoseconds / 1e9
    return sorted(rows.values(), key=lambda row: -float(row["seconds"]))


def own_nanoseconds(events: Iterable[Event]) -> list[tuple[Event, int]]:
    """Each event with its time less that of the events directly within it, on the same track."""
    own: list[list[Any]] = []
    open_on: dict[str, list[int]] = {}
    for event in sorted(events, key=lambda event: (event.start, -event.end)):
        stack = open_on.setdefault(event.track, [])
        while stack and own[stack[-1]][0].end <= event.start:
            stack.pop()
        if stack:
            own[stack[-1]][1] -= event.end - event.start
        stack.append(len(own))
        own.append([event, event.end - event.start])
    return [(event, max(0, nanoseconds)) for event, nanoseconds in own]
