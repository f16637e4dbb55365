"""A trainer reads a snapshot while people judge: python benchmarks/store.py [--writers 50] [--processes 1] [--seconds 60]

Each writer submits a judgement and takes its next task, in one transaction, once a second, as a person would at their fastest. They are
threads, of one process as those whom a web server serves, or of several. The reader is a process of its own, and reads the same snapshot
of 200 judgements as pairs, five times a second. Milliseconds: median, 99th percentile, longest. Before them the reader alone; beside
them the disk's own rate: commits a second of 2 KB rows in a bare SQLite with the store's settings. --postgresql URL, of an empty database,
does the same there.
"""

import argparse
import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bridle.feedback.store.assignment import next_task, submit_and_ask
from bridle.feedback.store.store import Store

sys.path.insert(0, str(Path(__file__).parents[1]))
from experiments.store_kills import fill, first_is_better

STUDY, JUDGED = "benchmark", 200


def commits_per_second(folder: Path, seconds: float) -> float:
    with sqlite3.connect(folder / "bare.sqlite", isolation_level=None) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE row (body)")
        begun, count = time.perf_counter(), 0
        while time.perf_counter() < begun + seconds:
            connection.execute("INSERT INTO row VALUES (?)", ("x" * 2048,))
            count += 1
        return count / (time.perf_counter() - begun)


def timed_calls(call: Callable[[], object], until: float, every: float) -> list[float]:
    """Milliseconds of each call."""
    taken = []
    while (begun := time.perf_counter()) < until:
        call()
        taken.append((time.perf_counter() - begun) * 1000)
        time.sleep(max(0.0, begun + every - time.perf_counter()))
    return taken


def write(target: str, begins: Mapping[str, float], until: float) -> list[float]:
    """Of several people, each with the moment when they begin."""
    with Store.open(target) as store, ThreadPoolExecutor(len(begins)) as pool:

        def work(labeler: str, begin: float) -> list[float]:
            task = next_task(store, STUDY, labeler)
            time.sleep(max(0.0, begin - time.perf_counter()))

            def judge() -> None:
                nonlocal task
                assert task is not None
                _, task = submit_and_ask(store, STUDY, [first_is_better(task)])

            return timed_calls(judge, until, 1.0)

        return [value for taken in pool.map(work, begins, begins.values()) for value in taken]


def in_process(work: Callable[[], list[float]], place: Path) -> int:
    """Begin a process that writes what it returns; a process that fails leaves no file."""
    if (child := os.fork()) == 0:
        try:
            place.write_text(json.dumps(work()))
        finally:
            os._exit(0)
    return child


def summary(taken: list[float]) -> dict[str, float]:
    taken = sorted(taken)
    place = min(len(taken) - 1, int(0.99 * len(taken)))
    chosen = {"median": taken[len(taken) // 2], "p99": taken[place], "longest": taken[-1]}
    return {"calls": len(taken)} | {name: round(value, 1) for name, value in chosen.items()}


def measure(target: str, folder: Path, writers: int, processes: int, seconds: float) -> dict[str, object]:
    folder.mkdir()
    with Store.open(target) as store:
        if store.items(study=STUDY):
            raise SystemExit(f"{target} already holds a benchmark: give the URL of an empty database.")
        fill(store, max(JUDGED, int(writers * seconds)), STUDY, overlap=2)
        for _ in range(JUDGED):
            task = next_task(store, STUDY, "first")
            assert task is not None
            submit_and_ask(store, STUDY, [first_is_better(task)])
        snapshot = store.take_snapshot(study=STUDY).id

    def read(begin: float, until: float) -> list[float]:
        with Store.open(target) as own:
            own.snapshot_pairs(snapshot)
            time.sleep(max(0.0, begin - time.perf_counter()))
            return timed_calls(lambda: own.snapshot_pairs(snapshot), until, 0.2)

    places = [folder / f"{number}.json" for number in range(processes)]
    alone, beside = folder / "alone.json", folder / "beside.json"
    os.waitpid(in_process(lambda: read(0.0, time.perf_counter() + 10), alone), 0)
    begin = (
        time.perf_counter() + 2 + 0.3 * processes
    )  # all are ready by then, and do not write at the same moment of a second
    begins = {f"person {number}": begin + number / writers for number in range(writers)}
    until, children = begin + seconds, []
    for number, place in enumerate(places):
        own = dict(list(begins.items())[number::processes])
        children.append(in_process(lambda own=own: write(target, own, until), place))
    children.append(in_process(lambda: read(begin, until), beside))
    for child in children:
        os.waitpid(child, 0)
    written = [value for place in places if place.exists() for value in json.loads(place.read_text())]
    with Store.open(target) as store:
        stored = len(store.judgements(study=STUDY)) - JUDGED
    return {
        "failed": sum(not place.exists() for place in (*places, beside)),
        "lost": len(written) - stored,
        "writers": summary(written),
        "reader": summary(json.loads(beside.read_text())),
        "reader_alone": summary(json.loads(alone.read_text())),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--writers", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1, help="that the writers are divided over")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--postgresql", default="", help="the URL of an empty database")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rate = commits_per_second(folder, 3)
        targets = {"sqlite": str(folder / "store.sqlite"), "postgresql": options.postgresql}
        found = {
            kind: measure(target, folder / kind, options.writers, options.processes, options.seconds)
            for kind, target in targets.items()
            if target
        }
        print(json.dumps({"commits_per_second": round(rate), **found}, indent=1))


if __name__ == "__main__":
    main()
