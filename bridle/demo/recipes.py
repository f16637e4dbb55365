"""`bridle demo --recipe NAME`: shorter walks over the playground, each to one report. A stage that is finished is not run twice."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bridle.core.errors import UsageError
from bridle.core.files import write_json
from bridle.demo import rlaif
from bridle.demo.demo import make_demo, open_demo
from bridle.demo.stages import DemoStage
from bridle.project.lock import held
from bridle.project.progress import Progress
from bridle.project.project import RECIPE_FILE
from bridle.recipe.recipe import Recipe, hint
from bridle.report.page import show
from bridle.report.project import write_project_report
from bridle.stages.critic import train_critic
from bridle.stages.evaluate import evaluate
from bridle.stages.judge import judge_waiting
from bridle.stages.methods import METHODS
from bridle.stages.revise import revise
from bridle.stages.reward import train_members
from bridle.stages.sample import sample
from bridle.stages.workspace import Work

ALONE = "sl-cai-alone"  # the price: nothing is imitated beside the revised answers


def train_alone(work: Work) -> dict[str, Any]:
    title = "SL-CAI on the revised answers alone, to see what that costs"
    return METHODS["sl-cai"].train(work, name=ALONE, title=title, settings={"benign": 0.0}, reuse=True)


CRITIC_TAUGHT = (
    DemoStage("pretrain", 140, lambda work: METHODS["pretrain"].train(work, reuse=True)),
    DemoStage("sft", 34, lambda work: METHODS["sft"].train(work, reuse=True)),
    DemoStage("critic", 60, lambda work: train_critic(work, reuse=True)),
)
RECIPES: Mapping[str, Sequence[DemoStage]] = {
    "constitution": (
        *CRITIC_TAUGHT,
        DemoStage("revise", 30, lambda work: revise(work, reuse=True)),
        DemoStage("sl-cai", 12, lambda work: METHODS["sl-cai"].train(work, reuse=True)),
        DemoStage(ALONE, 8, train_alone),
        DemoStage("evaluate-sft", 4, lambda work: evaluate(work, "sft", reuse=True)),
        DemoStage("evaluate-sl-cai", 4, lambda work: evaluate(work, "sl-cai", reuse=True)),
        DemoStage(f"evaluate-{ALONE}", 4, lambda work: evaluate(work, ALONE, reuse=True)),
    ),
    "rlaif": (
        *CRITIC_TAUGHT,
        DemoStage("sample", 10, lambda work: sample(work, reuse=True)),
        DemoStage("judge", 25, lambda work: judge_waiting(work, reuse=True)),
        DemoStage("reward", 18, lambda work: train_members(work, reuse=True)),
        DemoStage(rlaif.PEOPLE, 29, rlaif.ask_people),
        DemoStage("ppo", 30, lambda work: METHODS["ppo"].train(work, reuse=True)),
        DemoStage("evaluate-sft", 4, lambda work: evaluate(work, "sft", reuse=True)),
        DemoStage("evaluate-ppo", 7, lambda work: evaluate(work, "ppo", reuse=True)),
        DemoStage("ppo-against-sft", 0, rlaif.compare_with_sft),
    ),
}
OWN_SETTINGS: Mapping[str, Mapping[str, Any]] = {"rlaif": rlaif.SETTINGS}  # under those that are asked for


def walk_recipe(
    name: str, out: Path, recipe: Recipe, progress: Progress | None = None, wait: bool = False
) -> dict[str, Any]:
    """Walk a recipe's stages in `out`; writes report.html and summary.json, returns the summary."""
    if name not in RECIPES:
        raise UsageError(f"{name!r} is not a recipe of the demo; {hint(name, list(RECIPES))}")
    progress, folder, began = progress or Progress(), out.resolve(), time.monotonic()
    if not (folder / RECIPE_FILE).exists():
        make_demo(folder, recipe)
    with held(folder / ".demo.lock", folder, progress.say if wait else None):
        work = Work(open_demo(out, recipe), progress, wait=wait)
        try:
            left, results = sum(stage.seconds for stage in RECIPES[name]), dict[str, dict[str, Any]]()
            for stage in RECIPES[name]:
                left -= stage.seconds
                progress.later = left
                results[stage.name] = stage.run(work)
            progress.begin("Writing the report")
            seconds = round(time.monotonic() - began, 1)
            known = {"seed": recipe.seed, "threads": work.device.threads, "device": str(work.device), "recipe": name}
            summary = {"seconds": seconds, **known, "stages": results}
            write_json(folder / "summary.json", summary)
            write_project_report(work)
            return summary
        finally:
            work.close()


def constitution_lines(stages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """For the terminal."""
    rounds = " → ".join(show(row.get("complies"), 2) for row in stages["revise"]["by_round"])
    lines = [f"Share of harmful requests that are answered, round by round of critique and revision: {rounds}."]
    for name, label in (("sft", "SFT"), ("sl-cai", "SL-CAI"), (ALONE, "SL-CAI on revised answers alone")):
        found = stages[f"evaluate-{name}"]
        complies, refuses, gold = (show(found.get(key), 2) for key in ("complies", "refuses_benign", "gold"))
        lines.append(f"{label}: answers {complies} of harmful requests, refuses {refuses} of benign ones, gold {gold}.")
    return lines


LINES: Mapping[str, Callable[[Mapping[str, Mapping[str, Any]]], list[str]]] = {
    "constitution": constitution_lines,
    "rlaif": rlaif.rlaif_lines,
}


def recipe_lines(summary: Mapping[str, Any], out: Path) -> list[str]:
    """The lines at the end."""
    found = LINES[summary["recipe"]](summary["stages"])
    return ["", *found, "", f"Metrics: {out / 'summary.json'}", f"Report: {out / 'report.html'}"]
