"""What `--profile` leaves: `profile.json`, a trace in Chrome's form (chrome://tracing, ui.perfetto.dev), and a table of shares.

profile.json
    traceEvents    a complete event ("X") for each stage, part and operator: microseconds since the first one, process, thread
    bridle         title, seconds from begin to end, parts (the table), operators (of one step of each stage); where ranks share the steps
                   those of the first one
"""

import json
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bridle.core.files import read_json, write_json, write_text
from bridle.core.timeline import Event, Recording

FILE = "profile.json"
OPERATORS_SHOWN = 8
LEAST_SHOWN = 0.005  # share of a part, in a terminal


def as_dict(recording: Recording) -> dict[str, Any]:
    """A recording for another process to read."""
    return {
        "title": recording.title,
        "process": recording.process,
        "machine": socket.gethostname(),
        "rank": recording.rank,
        "met": recording.met,
        "events": [list(event) for event in recording.events],
        "beyond": [[stage, part, *summed] for (stage, part), summed in recording.beyond.items()],
        "operators": recording.operators,
    }


def leave(recording: Recording, path: Path) -> None:
    """Write what a second process recorded where the first one will take it."""
    write_json(path, as_dict(recording))


def take(recording: Recording, path: Path) -> None:
    """Put into this recording what a second process left, if it left anything."""
    if path.exists():
        recording.others.append(read_json(path))
        path.unlink()


def take_ranks(recording: Recording, others: Iterable[dict[str, Any] | None]) -> None:
    """Put in what those recorded that shared the steps, each as a process of its own. A machine has one clock; those of another are laid so
    that all met in one moment."""
    taken = {recording.process}
    for other in others:
        if other is None:
            continue
        ahead = 0 if other["machine"] == socket.gethostname() else other["met"] - recording.met
        events = [Event(*event) for event in other["events"]]
        moved = [list(event._replace(start=event.start - ahead, end=event.end - ahead)) for event in events]
        process = other["process"]
        while process in taken:  # by one of another machine
            process += 1
        taken.add(process)
        recording.others.append({**other, "title": f"rank {other['rank']}", "process": process, "events": moved})


def write_profile(recording: Recording, folder: Path) -> dict[str, Any]:
    """Write `profile.json`; what stands in it under `bridle`."""
    processes = [as_dict(recording), *recording.others]
    events = [(whose["process"], Event(*event)) for whose in processes for event in whose["events"]]
    summed = [whose for whose in processes if not whose["rank"]]  # what ranks share took the time of one of them
    summary = {
        "title": recording.title,
        "seconds": (time.perf_counter_ns() - recording.began) / 1e9,
        "parts": shares(
            [Event(*event) for whose in summed for event in whose["events"]],
            [row for whose in summed for row in whose["beyond"]],
        ),
        "operators": [row for whose in summed for row in whose["operators"]],
    }
    trace = {
        "displayTimeUnit": "ms",
        "bridle": summary,
        "traceEvents": [*names_of_tracks(processes), *complete(events)],
    }
    write_text(folder / FILE, json.dumps(trace, separators=(",", ":")) + "\n")
    return summary


def tracks(events: Sequence[Event]) -> dict[str, int]:
    """A number for each track of a process: threads first, then what torch saw."""
    found = sorted({(event.kind in ("operator", "kernel"), event.track) for event in events})
    return {track: number for number, (_, track) in enumerate(found)}


def names_of_tracks(processes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the processes and tracks are called."""
    named: list[dict[str, Any]] = []
    for order, whose in enumerate(processes):
        numbers = tracks([Event(*event) for event in whose["events"]])
        both = {"ph": "M", "pid": whose["process"]}
        named.append({**both, "name": "process_name", "args": {"name": whose["title"]}})
        named.append({**both, "name": "process_sort_index", "args": {"sort_index": order}})
        named += [{**both, "name": "thread_name", "tid": n, "args": {"name": track}} for track, n in numbers.items()]
    return named


def complete(events: Sequence[tuple[int, Event]]) -> list[dict[str, Any]]:
    """Complete events by their beginning, an outer one before those inside it."""
    zero = min((event.start for _, event in events), default=0)
    numbers = {whose: tracks([event for other, event in events if other == whose]) for whose in {w for w, _ in events}}
    return [
        {
            "ph": "X", "name": event.name, "cat": event.kind, "pid": process, "tid": numbers[process][event.track],
            "ts": (event.start - zero) / 1000, "dur": (event.end - event.start) / 1000,
            "args": {"stage": event.stage, "part": event.part},
        }
        for process, event in sorted(events, key=lambda pair: (pair[1].start, -pair[1].end))
    ]  # fmt: skip


def shares(events: Sequence[Event], beyond: Sequence[tuple[str, str, int, int]] = ()) -> list[dict[str, Any]]:
    """Seconds, share and calls of each part, stages in the order in which they began, parts in theirs.

    A stage's own row has an empty part, and the share of it in all the work; a part's is that of its stage. What belongs to no stage
    (loading modules, writing the report) has an empty stage, and its share too is of all the work.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    marks = sorted((e for e in events if e.kind in ("stage", "part")), key=lambda e: (e.start, -e.end))
    for stage, part, nanoseconds, calls in [*((e.stage, e.part, e.end - e.start, 1) for e in marks), *beyond]:
        row = rows.setdefault((stage, part), {"stage": stage, "part": part, "seconds": 0.0, "calls": 0})
        row["seconds"] += nanoseconds / 1e9
        row["calls"] += calls
    work = sum(row["seconds"] for (stage, part), row in rows.items() if (not part if stage else "/" not in part))
    for (stage, part), row in rows.items():
        whole = rows[stage, ""]["seconds"] if stage and part else work
        row["share"] = row["seconds"] / whole if whole else 0.0
    order = {stage: place for place, stage in enumerate(dict.fromkeys(stage for stage, _ in rows))}
    outside = len(order)
    return sorted(rows.values(), key=lambda row: order[row["stage"]] if row["stage"] else outside)


def table_lines(summary: Mapping[str, Any]) -> list[str]:
    """The table for a terminal, of what took long enough to matter; where one stage alone was at work, the operators that took
    longest of one step of it too."""
    lines = [f"{'share of time, ' + summary['title']:<36} {'seconds':>9} {'share':>6} {'times':>7}"]
    for row in summary["parts"]:
        if row["part"] and row["share"] < LEAST_SHOWN:
            continue
        depth = row["part"].count("/") + bool(row["stage"] and row["part"])
        name = "  " * depth + (row["part"].rpartition("/")[2] or row["stage"])
        lines.append(f"{name:<36} {row['seconds']:>9.3f} {row['share']:>6.1%} {row['calls']:>7}")
    lines.append(f"{'from begin to end':<36} {summary['seconds']:>9.3f}")
    stages = list(dict.fromkeys(row["stage"] for row in summary["operators"]))
    if len(stages) > 1:
        lines += ["", "by operator, one step of each stage: in the report and in the trace"]
    for stage in stages if len(stages) == 1 else []:
        rows = [row for row in summary["operators"] if row["stage"] == stage]
        whole = sum(row["seconds"] for row in rows if row["on"] == "operator")
        lines += ["", f"{'one step of ' + stage + ', by operator':<58} {'ms':>9} {'share':>6} {'calls':>7}"]
        for row in rows[:OPERATORS_SHOWN]:
            where = f"{row['operator'][:36]:<36} {row['part'][-21:]:<21}"
            lines.append(f"{where} {1000 * row['seconds']:>9.2f} {row['seconds'] / whole:>6.1%} {row['calls']:>7}")
    return lines
