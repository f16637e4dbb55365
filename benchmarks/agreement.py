"""What the quality of labels costs against their number: python benchmarks/agreement.py [JUDGEMENTS …]

500 people, five judgements an item, a skill of .55 to .95 each, three in a hundred ties; in a store of SQLite. Every size is read and
measured in a process of its own, whose peak memory is its own too.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bridle.core.records import Completion, Judgement, LabelerKind, Prompt
from bridle.feedback.quality.summary import quality_of
from bridle.feedback.quality.votes import read_votes
from bridle.feedback.store.store import Store
from bridle.report.agreement import write_agreement_page

SIZES = (10_000, 100_000, 1_000_000)
PEOPLE, EACH, TIES, BATCH = 500, 5, 0.03, 20_000
STUDY = "benchmark"


def fill(store: Store, judgements: int) -> None:
    rng = np.random.default_rng(0)
    skill_W = rng.uniform(0.55, 0.95, PEOPLE)
    for begin in range(0, judgements // EACH, BATCH):
        prompts = [
            Prompt.from_text(f"Question {n}?", {"topic": f"topic {n % 7}"})
            for n in range(begin, min(begin + BATCH, judgements // EACH))
        ]
        groups = [[Completion(prompt.id, "One answer."), Completion(prompt.id, "Another one.")] for prompt in prompts]
        store.add_prompts(prompts, split="train", source=STUDY)
        store.add_completions([one for group in groups for one in group], source=STUDY)
        store.add_judgements(judged(store.add_items(groups, study=STUDY), skill_W, rng))


def judged(items: list[str], skill_W: np.ndarray, rng: np.random.Generator) -> Iterator[Judgement]:
    for item in items:
        better = int(rng.integers(2))
        for person in rng.choice(PEOPLE, EACH, replace=False):
            said = better if rng.random() < skill_W[person] else 1 - better
            ranking = ((0, 1),) if rng.random() < TIES else ((said,), (1 - said,))
            order = (0, 1) if rng.random() < 0.5 else (1, 0)
            seconds = float(rng.lognormal(3, 0.5))
            yield Judgement(item, f"person {person:03}", LabelerKind.SIMULATED, ranking, order, seconds=seconds)


def measured(path: str) -> dict[str, float]:
    """In this process: seconds of reading, of measuring, of the page; peak memory in MiB before, and in all."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    clock = [time.perf_counter()]
    with Store.open(path) as store:
        votes = read_votes(store, STUDY)
    clock.append(time.perf_counter())
    quality = quality_of(votes)
    clock.append(time.perf_counter())
    with tempfile.TemporaryDirectory() as folder:
        write_agreement_page(quality, STUDY, Path(folder) / "agreement.html")
    clock.append(time.perf_counter())
    read, measure, page = np.diff(clock)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "judgements": quality.judgements,
        "read": read,
        "measure": measure,
        "page": page,
        "before": before,
        "peak": peak,
    }


def main(sizes: list[int]) -> None:
    print(
        "| judgements | reading, s | agreement and reliability, s | the page, s | peak memory, MiB |\n|---|---|---|---|---|"
    )
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/store.sqlite"
            with Store.open(path) as store:
                fill(store, size)
            out = subprocess.run([sys.executable, __file__, path], capture_output=True, text=True, check=True).stdout
        one = json.loads(out)
        print(
            f"| {one['judgements']:,} | {one['read']:.2f} | {one['measure']:.2f} | {one['page']:.2f} | {one['peak']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    words = sys.argv[1:]
    if words and words[0].endswith(".sqlite"):
        print(json.dumps(measured(words[0])))
    else:
        main([int(word) for word in words] or list(SIZES))
