"""What knowing the labelers is worth, and what a plan for labels foretells:
python -m experiments.labels FOLDER reliability|plan SEED … [--base MODEL]

reliability: seven planted people (experiments/labelers.py) judge the same pairs of SFT's answers, right about gold as often as their skill
says. Three reward models for each seed, on the majority of each item's votes, on all votes, and on all votes weighed by reliability; their
accuracy against gold on held-out answers, the difference of the last from the first paired by seed.

plan: of a project's judged items one half is excluded. `bridle label plan` foretells from the other half what twice as many judgements
reach; beside it stands what the whole reaches. `--base` as in experiments/style.py, which makes the projects too.
"""

import argparse
import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bridle.core.files import write_json
from bridle.core.records import Judgement, LabelerKind
from bridle.feedback.rankings import Item
from bridle.maths.statistics import mean_interval
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.stages.data import STUDY
from bridle.stages.label import gold_ranking
from bridle.stages.workspace import Work
from experiments.labelers import LEFT, SKILLS
from experiments.style import run, sampled

ITEMS = 300  # pairs that the seven judge
ARMS = {
    "majority": "weights",
    "counts": "none",
    "weights": "weights",
}  # data.reliability, which one vote a pair says nothing of
CLEAR = 0.25  # points of gold between the two


def votes_of_seven(item: Item, better: int, rng: random.Random) -> list[Judgement]:
    """What each of them says of a pair, each shown it in an order of their own."""
    votes = []
    for name, skill in SKILLS.items():
        order = rng.sample((0, 1), 2)
        chosen = better if rng.random() < skill else 1 - better
        if name == "left":
            chosen = order[0] if rng.random() < LEFT else better
        ranking, key = ((chosen,), (1 - chosen,)), f"{item.id}/{name}"
        votes.append(Judgement(item.id, name, LabelerKind.SIMULATED, ranking, tuple(order), submission_key=key))
    return votes


def judge_pairs(project: Path, seed: int, majority: bool) -> int:
    """Two clearly different answers of a training prompt are an item, which the seven judge, or their majority; every held-out item gets
    its gold ranking from one who knows it. Returns how often what is learnt from is right about gold."""
    work, rng = Work(Project.find(project), Progress(live=False)), random.Random(f"{seed}/seven")
    try:
        store, pairs, right = work.store, [], []
        for item in work.store.items(study=STUDY, split="train"):
            points = [
                score.points
                for score in work.data.score([item.prompt] * len(item.completions), item.completions, "labelers")
            ]
            if (
                len(pairs) < ITEMS
                and abs(points[0] - points[1]) > CLEAR
                and item.completions[0].stripped != item.completions[1].stripped
            ):
                pairs.append((item.completions[:2], int(points[1] > points[0]), item.prompt))
        ids = store.add_items([group for group, _, _ in pairs], study=STUDY)
        judgements = []
        for number, (group, better, prompt) in zip(ids, pairs, strict=True):
            votes = votes_of_seven(Item(number, prompt, tuple(group)), better, rng)
            if majority:
                chosen = int(sum(vote.ranking[0][0] for vote in votes) > len(votes) / 2)
                votes = [Judgement(number, "majority", LabelerKind.SIMULATED, ((chosen,), (1 - chosen,)), None)]
            right += [vote.ranking[0][0] == better for vote in votes]
            judgements += votes
        for item in work.store.items(study=STUDY, split="heldout"):
            points = [
                score.points
                for score in work.data.score([item.prompt] * len(item.completions), item.completions, "labelers")
            ]
            ranking = tuple(map(tuple, gold_ranking(points)))
            judgements.append(Judgement(item.id, "who knows", LabelerKind.SIMULATED, ranking, None))
        store.add_judgements(judgements)
        return int(round(100 * np.mean(right)))
    finally:
        work.close()


def compare_weights(folder: Path, project: Path, seed: int) -> dict[str, float]:
    """Accuracy against gold by arm: the majority of each pair's votes, all votes as they are, all votes weighed by reliability."""
    found: dict[str, float] = {}
    for arm, reliability in ARMS.items():
        copy = folder / f"{arm}-{seed}"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(project, copy)
        found[f"{arm}_right"] = judge_pairs(copy, seed, arm == "majority")
        settings = ["--set", "reward.slim=false", "--set", f"data.reliability={reliability}"]
        metrics = json.loads(run("train", "reward", "--project", copy, "--json", *settings))
        found[arm] = metrics["pair_accuracy"]
        shutil.rmtree(copy)
    return found


def compare_plan(folder: Path, project: Path, seed: int) -> dict[str, Any]:
    """What was foretold of twice the judgements, and what these reach."""
    run("label", "--simulate", "--project", project)
    copy = folder / f"half-{seed}"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(project, copy)
    whole = json.loads(run("label", "plan", "--project", project, "--json"))
    work = Work(Project.find(copy), Progress(live=False))
    items = sorted({item.id for item, _ in work.store.judgements(study=STUDY, split="train")})
    for item in items[1::2]:
        work.store.exclude("item", item, reason="not judged yet", by="the experiment")
    work.close()
    half = json.loads(run("label", "plan", "--project", copy, "--json"))
    shutil.rmtree(copy)
    (twice,) = [one for one in half["forecast"] if one["count"] == 2 * half["judgements"]]
    return {
        "half": half["accuracy"],
        "foretold": twice["accuracy"],
        "low": twice["low"],
        "high": twice["high"],
        "reached": whole["accuracy"],
        "judgements": [half["judgements"], whole["judgements"]],
        "measured": half["measured"],
    }


def summary(part: str, seeds: Mapping[int, Mapping[str, Any]]) -> None:
    before, after = ("majority", "weights") if part == "reliability" else ("reached", "foretold")
    values = [found[after] - found[before] for found in seeds.values()]
    low, high = mean_interval(values) if len(values) > 1 else (float("nan"),) * 2
    off = sum(abs(value) for value in values) / len(values)
    mean, largest = sum(values) / len(values), max(map(abs, values))
    print(f"{after} - {before}: {mean:+.4f} ({low:+.4f} to {high:+.4f}), mean size {off:.4f}, largest {largest:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("part", choices=["reliability", "plan"])
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--base", type=Path)
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    compare = {"reliability": compare_weights, "plan": compare_plan}[given.part]
    seeds = {}
    for seed in given.seeds:
        seeds[seed] = compare(given.folder, sampled(given.folder, seed, given.set, given.base), seed)
        print(
            f"seed {seed}:",
            {name: round(value, 4) if isinstance(value, float) else value for name, value in seeds[seed].items()},
            flush=True,
        )
    summary(given.part, seeds)
    write_json(given.folder / f"{given.part}.json", seeds)


if __name__ == "__main__":
    main()
