"""Kill processes that write judgements, again and again: python -m experiments.store_kills STORE [--kills 100] [--writers 4] [--seed 0]

STORE is a file to be made, or the URL of an empty database. Writers ask for a task, submit it with the next one in one transaction, and
only then report the judgement through a pipe; at a random moment all get SIGKILL. Whatever was reported must be in the store, once, and
the database whole. What was stored and not yet reported is counted: at most one judgement a writer and kill.

Covered: the death of the writers. Not covered: a power cut, the death of PostgreSQL's server.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select

from bridle.core.records import Completion, Judgement, LabelerKind, Prompt
from bridle.feedback.store import tables
from bridle.feedback.store.assignment import Asked, next_task, submit_and_ask
from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import set_study

STUDY, HASH = "kills", 64


def fill(store: Store, items: int, study: str, overlap: int) -> None:
    """A study of so many pairs of answers."""
    prompts = [Prompt.from_text(f"Question {number}?") for number in range(items)]
    pairs = [[Completion(prompt.id, f"Answer {slot}, " + "because " * 20) for slot in range(2)] for prompt in prompts]
    store.add_prompts(prompts, split="train", source="test")
    store.add_completions([answer for pair in pairs for answer in pair], source="test")
    store.add_items(pairs, study=study)
    set_study(store, study, {"overlap": overlap})


def first_is_better(task: Asked) -> Judgement:
    key = f"{task.assignment}/{task.labeler}"
    return Judgement(
        task.item.id, task.labeler, LabelerKind.PERSON, ((0,), (1,)), task.display_order, submission_key=key
    )


def write(target: str, labeler: str, report: int) -> None:
    with Store.open(target) as store:
        task = next_task(store, STUDY, labeler)
        while task is not None:
            (stored,), task = submit_and_ask(store, STUDY, [first_is_better(task)])
            os.write(report, stored.id.encode())  # so short that it is whole or not there
    time.sleep(60)  # to be killed


def strike(target: str, writers: int, rng: random.Random) -> list[str]:
    """Writers that are killed at one moment; the judgements that they reported."""
    reports, report = os.pipe()
    children = []
    for number in range(writers):
        if (child := os.fork()) == 0:
            try:
                write(target, f"writer {number}", report)
            finally:
                os._exit(1)
        children.append(child)
    os.close(report)
    with open(reports, "rb") as pipe:
        first = pipe.read(HASH)
        time.sleep(rng.uniform(0, 0.5))
        for child in children:
            os.kill(child, signal.SIGKILL)
        ends = [os.waitpid(child, 0)[1] for child in children]
        found = (first + pipe.read()).decode()
    if set(ends) != {signal.SIGKILL}:
        raise RuntimeError(f"a writer ended by itself: {ends}")
    return [found[i : i + HASH] for i in range(0, len(found), HASH)]


def faults(target: str, reported: Sequence[str]) -> dict[str, Any]:
    judgement = tables.judgement.c
    with Store.open(target) as store, store.reading() as connection:
        stored = connection.execute(select(judgement.sha256)).scalars().all()
        each = select(judgement.labeler).group_by(judgement.item_sha256, judgement.labeler).having(func.count() > 1)
        item = tables.assignment.c.item_id
        overfull = select(item).group_by(item).having(func.count() > 3)
        done = select(func.count(item)).where(tables.assignment.c.state == "done")
        sqlite = connection.dialect.name == "sqlite"
        return {
            "reported": len(reported),
            "lost": len(set(reported) - set(stored)),
            "twice": len(connection.execute(each).all()),
            "not_reported": len(set(stored) - set(reported)),
            "items_given_to_too_many": len(connection.execute(overfull).all()),
            "answers_without_their_task_done": len(stored) - connection.execute(done).scalar_one(),
            "integrity": connection.exec_driver_sql("PRAGMA integrity_check").scalar() if sqlite else None,
        }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with Store.open(options.store) as store:
        fill(store, max(200, 100 * options.kills), STUDY, overlap=3)
    rng = random.Random(options.seed)
    reported = [one for _ in range(options.kills) for one in strike(options.store, options.writers, rng)]
    found = {"kills": options.kills, "writers": options.writers, **faults(options.store, reported)}
    print(json.dumps(found))
    wrong = [found[name] for name in ("lost", "twice", "items_given_to_too_many", "answers_without_their_task_done")]
    return int(any(wrong) or found["integrity"] not in ("ok", None) or not reported)


if __name__ == "__main__":
    sys.exit(main())
