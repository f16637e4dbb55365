"""Style control and reliability on the playground, whose simulated people all like to be flattered:
python -m experiments.style FOLDER 0 1 2 3 4 [--base MODEL]

For each seed a project is walked to labels, a fifth of the items judged by three people; a tenth of the items of training prompts gets its
gold ranking, as an adjudicator would give it. Then, with neither, with the judgements weighed by reliability, with length and flattery in
`reward.style_control`, and with both: a reward model, PPO on it, and the evaluation of that. Prints each seed, and the differences from
neither with Student's interval over seeds: pair accuracy against gold, and of PPO's answers gold, flattery, length. Writes
FOLDER/style.json; what is finished is not run again. `--set` changes the recipe of all; `--base` is one base model for all seeds, whose
demonstrations, prompts, answers, labels, heads and orders differ all the same.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from click.testing import CliRunner

from bridle.cli.main import main as bridle
from bridle.core.files import write_json
from bridle.feedback.store import tables
from bridle.maths.statistics import mean_interval
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.stages.data import STUDY
from bridle.stages.workspace import Work

ADJUDICATED = 10  # one item in so many
CONTROLLED = '["length", "flattery"]'
ARMS = {  # reliability, style control
    "neither": ("none", "[]"),
    "reliability": ("weights", "[]"),
    "style": ("none", CONTROLLED),
    "both": ("weights", CONTROLLED),
}
COMPARED = ("pair_accuracy", "gold", "flattery", "length")


def run(*words: object) -> str:
    found = CliRunner().invoke(bridle, [str(word) for word in words])
    if found.exit_code:
        raise SystemExit(found.stderr)
    return found.stdout


def adjudicate(project: Path) -> int:
    """Give every tenth item of a training prompt its gold ranking; returns their number."""
    work = Work(Project.find(project), Progress(live=False))
    try:
        items = work.store.items(study=STUDY, split="train")[::ADJUDICATED]
        with work.store.writing() as connection:
            for item in items:
                scores = work.data.score([item.prompt] * len(item.completions), item.completions, "adjudication")
                points = [round(score.points, 6) for score in scores]
                levels = sorted(set(points), reverse=True)
                ranking = [[slot for slot, own in enumerate(points) if own == level] for level in levels]
                chosen = tables.item.c.sha256 == item.id
                connection.execute(sa.update(tables.item).where(chosen).values(gold=ranking))
        return len(items)
    finally:
        work.close()


def sampled(folder: Path, seed: int, settings: list[str], base: Path | None = None) -> Path:
    """The project of a seed, walked to the sampled answers where it was not."""
    project = folder / f"seed-{seed}"
    words = [word for text in settings for word in ("--set", text)]
    if not project.exists():
        slim = ["--set", "reward.slim=false", "--set", "data.source=playground", "--set", f"seed={seed}"]
        run("init", project, *slim, *words)
        if base is not None:
            shutil.copytree(base, project / "models" / "base")
    for verb, left in (
        (["train", "pretrain"], "models/base"),
        (["train", "sft"], "models/sft"),
        (["sample"], "runs/sample-0001/result.json"),
    ):
        if not (project / left).exists():
            run(*verb, "--project", project)
    return project


def walk(folder: Path, seed: int, settings: list[str], base: Path | None) -> dict[str, Any]:
    """What the arms come to on one seed."""
    kept = folder / f"seed-{seed}.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text("utf-8"))
        return found
    project = sampled(folder, seed, settings, base)
    run("label", "--simulate", "--project", project)
    if not (project / "adjudicated").exists():
        (project / "adjudicated").write_text(str(adjudicate(project)))
    arms = {}
    for arm, (reliability, features) in ARMS.items():
        control = ["--project", project, "--json", "--set", f"reward.style_control={features}"]
        control += ["--set", f"data.reliability={reliability}"]
        reward = json.loads(run("train", "reward", *control))
        run("train", "ppo", *control)
        evaluated = json.loads(run("evaluate", "ppo", *control))["ppo"]
        arms[arm] = {"pair_accuracy": reward["pair_accuracy"], "style": reward.get("style"), **evaluated}
    write_json(kept, arms)
    return arms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--base", type=Path)
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    seeds = {}
    for seed in given.seeds:
        seeds[seed] = walk(given.folder, seed, given.set, given.base)
        for arm, found in seeds[seed].items():
            print(
                f"seed {seed}, {arm}: " + ", ".join(f"{name} {found[name]:.3f}" for name in COMPARED),
                found["style"] or "",
                flush=True,
            )
    for arm in list(ARMS)[1:]:
        for name in COMPARED:
            values = [arms[arm][name] - arms["neither"][name] for arms in seeds.values()]
            low, high = mean_interval(values) if len(values) > 1 else (float("nan"),) * 2
            mean, higher = sum(values) / len(values), sum(value > 0 for value in values)
            print(
                f"{arm} - neither, {name}: {mean:+.3f} ({low:+.3f} to {high:+.3f}), higher on {higher} of {len(values)}"
            )
    write_json(given.folder / "style.json", seeds)


if __name__ == "__main__":
    main()
