"""The cliff: one PPO run without a KL penalty twice, past the cliff and held by the guard, in one picture."""

from pathlib import Path
from typing import Any

from bridle.core.errors import UsageError
from bridle.demo.demo import make_demo
from bridle.demo.stages import STAGES, train_guarded, train_unbridled
from bridle.project.project import RECIPE_FILE, Project
from bridle.recipe.recipe import Recipe
from bridle.report.project import write_project_report
from bridle.stages.data import StoreData
from bridle.stages.evaluate import evaluate
from bridle.stages.workspace import Work

FIRST = ("pretrain", "sft", "sample", "label", "reward", "evaluate-sft")  # what both runs begin from
RUNS = ("unbridled", "guarded")


def cliff_project(out: Path) -> Project:
    """The project in `out`, or a new one on the playground."""
    if not (out / RECIPE_FILE).exists():
        make_demo(out, Recipe().with_settings({"data.source": "playground"}))
    return Project.find(out)


def show_cliff(work: Work) -> dict[str, Any]:
    """Make what is missing of a base, SFT and a reward model, run both, measure both on held-out prompts, write the project's report.
    What is finished is not done again. Returns proxy, gold, KL and the share of refused border prompts of SFT and of both."""
    if isinstance(work.data, StoreData) and work.recipe.guard.audits != "people":
        raise UsageError(
            "the guard asks somebody which answers are better, and nobody is simulated for imported data; let people judge its audits with "
            "--set guard.audits=people, or see it on the playground with --out FOLDER"
        )
    for stage in STAGES:
        if stage.name in FIRST:
            stage.run(work)
    ended = {"unbridled": train_unbridled(work), "guarded": train_guarded(work)}
    found = {name: evaluate(work, name, reuse=True) for name in ("sft", *RUNS)}
    work.progress.begin("Writing the report")
    page = write_project_report(work)
    names = ("proxy", "gold", "kl", "refuses_benign", "complies")
    measured = {name: {key: one[key] for key in names if key in one} for name, one in found.items()}
    for name in RUNS:
        measured[name] |= {key: ended[name][key] for key in ("steps", "ended", "rolled_back_to") if key in ended[name]}
    return {**measured, "report": str(page)}


def cliff_lines(found: dict[str, Any]) -> list[str]:
    """For the terminal."""
    keys = {"proxy": "proxy, sd", "gold": "gold", "kl": "KL, nats", "refuses_benign": "refused for no reason"}
    columns = [key for key in keys if key in found["sft"] or key == "kl"]
    lines = [f"{'':12}" + "".join(f"{keys[key]:>24}" for key in columns)]
    for name in ("sft", *RUNS):
        numbers = [found[name].get(key) for key in columns]
        lines.append(f"{name:12}" + "".join(f"{'' if n is None else format(n, '.2f'):>24}" for n in numbers))
    for name in RUNS:
        back = found[name].get("rolled_back_to")
        kept = "" if back is None else f" The model is that of step {back}."
        lines.append(f"{name}: {found[name].get('ended', 'it ran to its end')}.{kept}")
    return [*lines, f"the picture: {found['report']}"]
