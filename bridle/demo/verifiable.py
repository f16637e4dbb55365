"""Reinforcement learning on answers that can be checked: word problems of the playground, three methods, one page."""

from pathlib import Path
from typing import Any

from bridle.demo.demo import make_demo
from bridle.project.project import RECIPE_FILE, Project
from bridle.recipe.recipe import Recipe
from bridle.report.project import write_project_report
from bridle.stages.methods import METHODS
from bridle.stages.workspace import Work

SAMPLES = 15  # answers to a prompt
PROMPTS = 12  # in a step
# Prompts that the policy always or never gets right teach nothing and are left out. There is no reward model and nobody is asked.
SETTINGS = {
    "data.source": "playground", "data.train_prompts": 300, "data.heldout_prompts": 200,
    "grpo.branch_problems": 2200,  # with fewer the branch copies too few numbers for practice to have what to reinforce
    **{f"grpo.{name}": value for name, value in
       {"group_size": SAMPLES, "prompts_per_step": PROMPTS, "min_right": 0.05, "max_right": 0.95}.items()},
    **{f"rloo.{name}": value for name, value in
       {"group_size": SAMPLES, "prompts_per_step": PROMPTS, "min_right": 0.05, "max_right": 0.95, "scored_by": "verifier",
        "missing_stop_penalty": 0.0, "kl_coef": 0.02, "steps": 24}.items()},
    "rejection.scored_by": "verifier", "rejection.keep": "shortest", "rejection.answers": SAMPLES, "rejection.prompts_per_round": 200,
    **{f"{section}.heldout_answers": SAMPLES for section in ("grpo", "rloo", "rejection")},
}  # fmt: skip
REPORTED = ("grpo", "rloo", "best-of-n")


def verifiable_project(out: Path, settings: dict[str, Any]) -> Project:
    """The project in `out`, or a new one with these settings over the demo's."""
    if not (out / RECIPE_FILE).exists():
        make_demo(out, Recipe().with_settings({**SETTINGS, **settings}))
    return Project.find(out)


def show_verifiable(work: Work) -> dict[str, Any]:
    """Pretrain, teach the format, practise by each method, write the project's report. What is finished is not done again."""
    for name in ("pretrain", "sft"):
        METHODS[name].train(work, reuse=True)
    found = {name: METHODS[name].train(work, reuse=True) for name in REPORTED}
    work.progress.begin("Writing the report")
    page = write_project_report(work)
    ends = ("_before", "_after")
    kept = {name: {key: value for key, value in one.items() if key.endswith(ends)} for name, one in found.items()}
    for name, one in found.items():
        kept[name] |= {key: one[key] for key in ("problems", "too_hard", "too_easy", "kl") if key in one}
    return {**kept, "report": str(page)}


def verifiable_lines(found: dict[str, Any]) -> list[str]:
    """For the terminal."""
    problems = found["grpo"]["problems"]
    lines = [
        f"{problems} word problems that were not trained on, each answered {SAMPLES} times. An answer is right or it is not: a program",
        "reads its last sentence, nobody compares anything, and no reward model is in between that could be pleased.",
        "",
        f"{'':10}{'right before':>16}{'right after':>14}{'95% interval':>18}{f'one of {SAMPLES} before':>20}{'after':>8}",
    ]
    for name in REPORTED:
        one = found[name]
        interval = f"{one['accuracy_low_after']:.2f} to {one['accuracy_high_after']:.2f}"
        lines.append(
            f"{name:10}{one['accuracy_before']:>16.2f}{one['accuracy_after']:>14.2f}{interval:>18}"
            f"{one['pass_at_k_before']:>20.2f}{one['pass_at_k_after']:>8.2f}"
        )
    hard, easy = (max(found[name].get(key, 0) for name in REPORTED) for key in ("too_hard", "too_easy"))
    return [
        *lines,
        "",
        f"{hard} prompts were never right and {easy} always: they were left out, for a group of equal answers teaches nothing.",
        f"best-of-n imitates its own shortest right answers; the others push wrong ones down as well. The page: {found['report']}",
    ]
