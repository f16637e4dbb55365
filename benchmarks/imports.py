"""200,000 rows of a user into the store, 64 MB: seconds, memory, and what the store takes: python benchmarks/imports.py [--rows N]

One process, one core; the file is made first and not counted. `again` is the same file a second time. `idle_core_seconds` are the first
import's seconds had the core always been as fast as at its fastest: a short loop is timed beside each batch.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

WORDS = "the a cat moon plays sees wants small bright river under every day because they said no yes 月 诗 go blue tree".split()

LOOP = 50_000


def write_rows(path: Path, rows: int) -> None:
    """Preferences of 320 bytes, no two alike."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            texts = [f"{number} " + " ".join(rng.choices(WORDS, k=18)) for _ in range(3)]
            row = json.dumps(dict(zip(("prompt", "chosen", "rejected"), texts, strict=True)), ensure_ascii=False)
            file.write(row + "\n")


def beat() -> float:
    """CPU seconds of a short loop: how fast the core is at this moment, which others may share."""
    begun, count = time.process_time(), 0
    for number in range(LOOP):
        count += number & 3
    return time.process_time() - begun


def measure(path: Path, store: Path) -> None:
    from bridle.feedback.importing.importer import import_file
    from bridle.feedback.store.store import Store

    beats = [(time.process_time(), beat())]  # at each batch of the first import

    def progress(*_: int) -> None:
        beats.append((time.process_time(), beat()))

    found: dict[str, float] = {"file_mb": path.stat().st_size / 1e6}
    for name in ("first", "again"):
        begun, used = time.perf_counter(), time.process_time()
        with Store.open(store) as opened:
            found["rows"] = import_file(opened, path, progress=progress if name == "first" else None).kept_rows
        found[f"{name}_seconds"], found[f"{name}_cpu_seconds"] = time.perf_counter() - begun, time.process_time() - used
    fastest = min(loop for _, loop in beats)
    found["idle_core_seconds"] = sum(
        (now - before - loop) * 2 * fastest / (loop + earlier) for (before, earlier), (now, loop) in pairwise(beats)
    )
    found["fastest_loop_ns"] = fastest / LOOP * 1e9
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    found["store_mb"] = sum(part.stat().st_size for part in store.parent.glob(f"{store.name}*")) / 1e6
    found["times_the_file"] = found["store_mb"] / found["file_mb"]
    print(json.dumps({name: round(value, 2) for name, value in found.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, options.rows)
        subprocess.run(
            [sys.executable, __file__, "--measure", str(path), str(Path(folder) / "store.sqlite")],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


if __name__ == "__main__":
    main()
