"""SIGKILL at random moments of `bridle loop`: python -m experiments.loop_kills DEMO FOLDER [--kills 20] [--turns 2] [--seed 0]

Simulated users visit a copy of a finished tiny demo, whose handles are drawn. One copy of that takes its turns undisturbed; others are
killed so many times in all, each time at a random moment of what an undisturbed run takes, and run again until all turns are taken. In the
end each must hold what the undisturbed one holds: what is served and how it came to be, every step with its numbers, the models to the
byte, and the users' votes in force. Times differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bridle.feedback.serving.outcomes import vote_outcomes
from bridle.feedback.serving.promotion import promotion_steps, served_now
from bridle.feedback.serving.turns import steps_taken
from bridle.feedback.store.store import Store
from bridle.loop.crowd import visit
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.stages.workspace import Work
from tests.tiny_project import ALONE, done, settings

SETTINGS = {
    "loop.comparisons": 20, "loop.votes": 4, "loop.audit": 8, "loop.judgements": 5, "loop.level": 0.9, "loop.max_rise": 1.0,
    "loop.max_length_ratio": 100.0, "loop.min_distinct_share": 0.0, "data.sources": ["study", "serving"],
}  # fmt: skip


USERS_TURNS = 40


def command(project: Path, turns: int) -> list[str]:
    words = ["loop", "--turns", str(turns), "--project", str(project), *settings(SETTINGS)]
    return [sys.executable, "-m", "bridle.cli", *words]


def begun(demo: Path, folder: Path) -> Path:
    """Two versions were served, and users compared them."""
    project = Path(shutil.copytree(demo, folder))
    for name in ("ppo", "sft"):
        done("models", "promote", name, "--project", project)
    found = Project.find(project)
    work = Work(replace(found, recipe=found.recipe.with_settings(SETTINGS)), Progress(live=False), threads=1)
    try:
        visit(work, USERS_TURNS, "before")
    finally:
        work.close()
    return project


def turns_taken(project: Path) -> int:
    with Store.open(project / "store.sqlite") as store:
        return sum(step == "promote" for _, step, _ in steps_taken(store))


def held(project: Path) -> dict[str, Any]:
    """What must be the same."""
    with Store.open(project / "store.sqlite") as store:
        return {
            "served": served_now(store),
            "promotions": [
                (one.action, one.content, one.details.get("share"), one.by) for one in promotion_steps(store)
            ],
            "steps": steps_taken(store),
            "votes": sorted((one.first, one.second, one.preferred) for one in vote_outcomes(store)),
            "models": {
                path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in sorted(project.glob("models/*/model.safetensors"))
            },
        }


def run(project: Path, turns: int, seconds: float | None = None) -> bool:
    """Whether it ended by itself. `seconds`: killed after so many."""
    process = subprocess.Popen(
        command(project, turns), env={**os.environ, **ALONE}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return False
    if process.returncode:
        raise SystemExit(f"it ended with status {process.returncode}: {errors.decode()[-600:]}")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demo", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    before = begun(given.demo, given.folder / "before")
    whole = Path(shutil.copytree(before, given.folder / "undisturbed"))
    started = time.monotonic()
    run(whole, given.turns)
    seconds, expected = time.monotonic() - started, held(whole)
    faults, kills, projects = [], 0, 0
    while kills < given.kills:
        project = Path(shutil.copytree(before, given.folder / f"killed-{projects}"))
        projects += 1
        while (left := given.turns - turns_taken(project)) > 0:
            strike = kills < given.kills
            if run(project, left, rng.uniform(0, seconds) if strike else None):
                continue
            kills += 1
            print(
                f"kill {kills}: {given.turns - left} turns taken, steps {[step for _, step, _ in held(project)['steps']][-1:]}",
                flush=True,
            )
        found = held(project)
        faults += [f"project {projects}: {name} differ" for name in expected if found[name] != expected[name]]
    print(
        json.dumps({"kills": kills, "projects": projects, "seconds_undisturbed": round(seconds, 1), "faults": faults})
    )
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
