"""Where the time goes: marks around the parts of the work, one within another.

    with timed("answer"):        a part; with another one inside it, `improve` and `improve/forward`
    @timed("improve")            the same around a whole function
    with stage("ppo"):           a run of a stage: what is inside belongs to it

    note_tokens(512)             the part that is under way drew or read so many
    hand_in("worker 1", parts)   what another process did for the stage that is under way

Each thread adds up the seconds of its parts as it goes, at less than a microsecond a mark; a run keeps those of its own
(`session.json`). Only while a recording is on (`--profile`) is every mark kept by itself, for the trace (`project/profile.py`).
A mark changes no result. On a GPU a part without a recording ends when its work was handed over, not when it is done.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ContextDecorator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns
from typing import Any, NamedTuple

# By path, `{"improve/forward": {"seconds": 1.2, "calls": 12, "tokens": 960}}`; what is inside a part counts in it too, but for tokens,
# which are there where any were noted.
Parts = dict[str, dict[str, float]]
# By the name of a process that shared the work, its seconds from begin to end and its parts.
Workers = dict[str, dict[str, Any]]

MOST_EVENTS = 100_000  # of a recording: some 17 megabytes of the trace; parts after them are only added up


class Event(NamedTuple):
    """Something that took from `start` to `end`, in nanoseconds of `perf_counter_ns`: one clock for all processes of a
    machine. `part` is the path within the stage; a stage itself has none."""

    kind: str  # "stage", "part", "operator" or "kernel"
    name: str
    stage: str
    part: str
    start: int
    end: int
    track: str  # what happens one after another or one within another: a thread, or a queue of the GPU


@dataclass
class Recording:
    """The marks of a process since `record`, and what torch saw of a few steps."""

    title: str
    place: Path | None = None  # the folder that the profile is to lie in; None: not known yet
    events: list[Event] = field(default_factory=list)
    # Nanoseconds and calls of the others, by stage and part.
    beyond: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    operators: list[dict[str, Any]] = field(default_factory=list)  # rows of the table, see compute/operators.py
    runs: list[Path] = field(default_factory=list)  # folders of the runs that were begun
    others: list[dict[str, Any]] = field(default_factory=list)  # what other processes recorded, see project/profile.py
    rank: int = 0  # of this process among those that share its steps
    met: int = 0  # when it met them, on its own clock
    settle: Callable[[], None] | None = None  # waits for a GPU, so that a part's work is done when the part ends
    process: int = field(default_factory=os.getpid)
    began: int = field(default_factory=perf_counter_ns)


class Node:
    """A part where it stands: within which other, its path from the stage down, how often it was done, how long it took."""

    __slots__ = ("began", "calls", "children", "name", "nanoseconds", "parent", "path", "stage", "tokens", "workers")

    def __init__(self, name: str, parent: Node | None, stage: str, path: str = "") -> None:
        self.name, self.parent, self.stage, self.path = name, parent, stage, path
        self.children: dict[str, Node] = {}
        self.workers: dict[str, Parts] = {}  # of a stage: what was handed in, by whom
        self.nanoseconds = self.calls = self.began = self.tokens = 0

    def parts(self) -> Parts:
        """What is inside, by path from here down, in the order in which it was first done."""
        found: Parts = {}
        for name, child in self.children.items():
            found[name] = {"seconds": round(child.nanoseconds / 1e9, 6), "calls": child.calls}
            if child.tokens:
                found[name]["tokens"] = child.tokens
            found |= {f"{name}/{inner}": spent for inner, spent in child.parts().items()}
        return found


class Here(threading.local):
    """Where a thread is now."""

    def __init__(self) -> None:
        self.node = Node("", None, "")


class Switch:
    """The recording that is on, if any."""

    recording: Recording | None = None


HERE = Here()
SWITCH = Switch()


class timed(ContextDecorator):
    """A part of the work, named by a word of the reader's: answer, score, forward."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        above = HERE.node
        node = above.children.get(self.name)
        if node is None:
            path = f"{above.path}/{self.name}" if above.path else self.name
            node = above.children[self.name] = Node(self.name, above, above.stage, path)
        begin(node)

    def __exit__(self, *error: object) -> None:
        end("part")


class stage:
    """A run of a stage, with nothing added up in it yet."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> Node:
        node = Node(self.name, HERE.node, self.name)
        begin(node)
        return node

    def __exit__(self, *error: object) -> None:
        end("stage")


def begin(node: Node) -> None:
    if SWITCH.recording is not None and SWITCH.recording.settle is not None:
        SWITCH.recording.settle()
    HERE.node = node
    node.began = perf_counter_ns()


def end(kind: str) -> None:
    node, recording = HERE.node, SWITCH.recording
    if recording is not None and recording.settle is not None:
        recording.settle()
    now = perf_counter_ns()
    node.nanoseconds += now - node.began
    node.calls += 1
    assert node.parent is not None
    HERE.node = node.parent
    if recording is None:
        return
    if kind == "part" and len(recording.events) >= MOST_EVENTS:
        summed = recording.beyond.setdefault((node.stage, node.path), [0, 0])
        summed[0] += now - node.began
        summed[1] += 1
    else:
        track = threading.current_thread().name
        recording.events.append(Event(kind, node.name, node.stage, node.path, node.began, now, track))


def note_tokens(count: int) -> None:
    HERE.node.tokens += count


def hand_in(worker: str, parts: Parts) -> None:
    """Add what another process did for the stage that is under way in this thread, by that one's own marks:
    `with stage(…) as node: …` there, and then `node.parts()`."""
    node = HERE.node
    while node.path and node.parent is not None:
        node = node.parent
    node.workers[worker] = added(node.workers.get(worker, {}), parts)


def record(title: str) -> Recording:
    """Keep every mark of this process from now on."""
    SWITCH.recording = Recording(title)
    return SWITCH.recording


def recording() -> Recording | None:
    return SWITCH.recording


def stop() -> Recording | None:
    """End the recording; what was recorded."""
    ended, SWITCH.recording = SWITCH.recording, None
    return ended


def added(first: Parts, second: Parts) -> Parts:
    """Two sessions' parts together."""
    whole = {name: dict(spent) for name, spent in first.items()}
    for name, spent in second.items():
        before = whole.get(name, {})
        whole[name] = {unit: round(before.get(unit, 0) + spent.get(unit, 0), 6) for unit in {**spent, **before}}
    return whole


def outermost_seconds(parts: Parts) -> float:
    return sum(spent["seconds"] for path, spent in parts.items() if "/" not in path)


def workers_added(first: Workers, second: Workers) -> Workers:
    """Two sessions' workers, those of one name together."""
    whole = dict(first)
    for name, other in second.items():
        one = first.get(name, {"seconds": 0.0, "parts": {}})
        whole[name] = {
            "seconds": round(one["seconds"] + other["seconds"], 3),
            "parts": added(one["parts"], other["parts"]),
        }
    return whole


def own_seconds(parts: Parts) -> dict[str, float]:
    """Seconds by the last word of each path, without what other parts inside it took: these add up to the whole."""
    own: dict[str, float] = {}
    for path, spent in parts.items():
        inside = sum(other["seconds"] for name, other in parts.items() if name.rpartition("/")[0] == path)
        word = path.rpartition("/")[2]
        own[word] = own.get(word, 0.0) + max(0.0, spent["seconds"] - inside)
    return own
