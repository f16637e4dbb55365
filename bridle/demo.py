"""Floor 8: the demo, the whole loop once on the playground. Finished stages are not run twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bridle.core.errors import ProjectError
from bridle.core.files import read_json, write_json
from bridle.core.recipe import Recipe
from bridle.core.runlog import RECIPE_FILE, Progress, Project, clock
from bridle.loop_report import finished_metrics, write_project_report
from bridle.stages import (
    Work,
    compare,
    evaluate,
    label_simulated,
    sample,
    train_ppo,
    train_pretrain,
    train_reward,
    train_sft,
    train_shuffled,
)
from bridle.tuning import evaluate_best_of, train_dpo, train_grpo

# PPO as it should not be done: no KL penalty, a higher rate, more and smaller steps.
UNBRIDLED = {"kl_coef": 0.0, "kl_target": 0.0, "learning_rate": 8e-4}
# `demo --quick`: every stage, and no more of each than shows that it works.
QUICK = {
    "data.pretrain_tokens": 300_000, "data.train_prompts": 240, "data.heldout_prompts": 128, "data.probe_prompts": 40,
    "data.compared_heldout": 60, "data.demonstrations": 800, "ppo.steps": 4, "ppo.prompts_per_step": 48,
    "dpo.observe_every": 10, "grpo.steps": 4, "grpo.prompts_per_step": 12, "grpo.branch_problems": 400,
    "grpo.branch_demonstrations": 200,
}  # fmt: skip
SMOOTH = 3  # rollout steps in a running mean of gold: one step's prompts are few

# Each stage with the share of the time that it takes, for the time left.
STAGES: list[tuple[str, float, Callable[[Work], dict[str, Any]]]] = [
    ("pretrain", 130, lambda work: train_pretrain(work, reuse=True)),
    ("sft", 28, lambda work: train_sft(work, reuse=True)),
    ("sample", 12, lambda work: sample(work, reuse=True)),
    ("label", 2, lambda work: label_simulated(work, reuse=True)),
    ("reward", 20, lambda work: train_reward(work, reuse=True)),
    ("ppo", 25, lambda work: train_ppo(work, reuse=True)),
    ("unbridled", 50, lambda work: train_unbridled(work)),
    ("dpo", 20, lambda work: train_dpo(work, reuse=True)),
    ("grpo", 40, lambda work: train_grpo(work, reuse=True)),
    ("best-of-4", 8, lambda work: evaluate_best_of(work, 4, reuse=True)),
    ("evaluate-base", 5, lambda work: evaluate(work, "base", reuse=True)),
    ("evaluate-sft", 5, lambda work: evaluate(work, "sft", reuse=True)),
    ("evaluate-ppo", 5, lambda work: evaluate(work, "ppo", reuse=True)),
    ("evaluate-dpo", 5, lambda work: evaluate(work, "dpo", reuse=True)),
    ("evaluate-unbridled", 5, lambda work: evaluate(work, "unbridled", reuse=True)),
    ("reward-shuffled", 8, lambda work: train_shuffled(work, reuse=True)),
]


def train_unbridled(work: Work) -> dict[str, Any]:
    """Near twice as many rollout steps as the recipe's PPO, of two thirds of its prompts."""
    title = "PPO without its bridle: the same, and nothing that holds it"
    ppo = work.recipe.ppo
    longer = {"steps": -(-22 * ppo.steps // 12), "prompts_per_step": max(1, 2 * ppo.prompts_per_step // 3)}
    return train_ppo(work, reuse=True, name="unbridled", title=title, settings={**UNBRIDLED, **longer})


def run_demo(out: Path, recipe: Recipe, progress: Progress | None = None) -> dict[str, Any]:
    """Walk the loop in `out`, or go on with the demo there; writes report.html and summary.json, returns the summary."""
    progress = progress or Progress()
    project = open_demo(out, recipe)
    note = project.folder / "demo.json"
    work = Work(project, progress, threads=read_json(note)["threads"] if note.exists() else None)
    try:
        write_json(note, {"threads": work.device.threads})
        stages = {}
        expected_left = sum(share for _, share, _ in STAGES)
        worked = spent = 0.0
        for name, share, stage in STAGES:
            expected_left -= share
            progress.later = expected_left * (spent / worked if worked else 1.0)
            began = time.monotonic()
            stages[name] = stage(work)
            for part in {"slim", "branch"} & set(stages[name]):  # one stage to the reader, two runs on disk
                stages[name]["seconds"] += stages[name][part]["seconds"]
            took = time.monotonic() - began
            if took > 0.5:  # else it was done before
                worked, spent = worked + share, spent + took
        progress.later = 0.0
        progress.begin("Writing the report")
        began = time.monotonic()
        summary = summarise(work, stages)
        write_json(project.folder / "summary.json", summary)
        write_project_report(project, work)
        stages["report"] = {"seconds": round(time.monotonic() - began, 2)}
        summary = summarise(work, stages)
        write_json(project.folder / "summary.json", summary)
        return summary
    finally:
        work.close()


def open_demo(out: Path, recipe: Recipe) -> Project:
    """Make the project, or open the one that an earlier sitting made with the same recipe."""
    folder = out.resolve()
    if not (folder / RECIPE_FILE).exists():
        return Project.create(folder, recipe)
    project = Project.find(folder)
    if project.recipe != recipe:
        raise ProjectError(
            f"{out} holds a demo of another recipe or seed (its seed is {project.recipe.seed}); "
            "give --out another folder, or remove it"
        )
    return project


def summarise(work: Work, stages: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`summary.json`: seconds, seed, threads, and the figures of each stage by name."""
    before, unbridled = stages["evaluate-sft"], stages["evaluate-unbridled"]
    curve = smoothed([line["gold"] for line in finished_metrics(work.project, "unbridled")])
    measured: dict[str, dict[str, Any]] = {
        "ppo": against_sft(work, "ppo", before, stages["evaluate-ppo"]),
        "dpo": against_sft(work, "dpo", before, stages["evaluate-dpo"]),
        "unbridled": {
            "proxy_start": before["proxy"],
            "proxy_end": unbridled["proxy"],
            "gold_peak": max(curve),
            "gold_end": unbridled["gold"],
            "kl": unbridled["kl"],
        },
    }
    whole = {
        name.replace("best-of-", "best_of_"): {**result, **measured.get(name, {})} for name, result in stages.items()
    }
    return {
        "seconds": round(sum(result["seconds"] for result in stages.values()), 1),
        "seed": work.recipe.seed,
        "threads": work.device.threads,
        "device": str(work.device),
        "stages": whole,
    }


def against_sft(work: Work, name: str, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """A tuned policy beside SFT on the same held-out prompts."""
    wins = compare(work, name, "sft", "gold")
    return {
        "gold_before": before["gold"],
        "gold_after": after["gold"],
        **{f"win_rate{end}": wins[key] for end, key in (("", "rate"), ("_low", "low"), ("_high", "high"))},
        **{key: after[key] for key in ("kl", "kl_se", "complies", "refuses_benign", "unparsable", "proxy")},
    }


def smoothed(values: list[float]) -> list[float]:
    """Running means over SMOOTH steps."""
    width = min(SMOOTH, len(values))
    return [float(np.mean(values[i : i + width])) for i in range(len(values) - width + 1)]


def summary_lines(summary: dict[str, Any], out: Path) -> list[str]:
    """The lines at the end."""
    stages = summary["stages"]
    base, before, reward, ppo, cliff, dpo, best, grpo = (
        stages[n] for n in ("evaluate-base", "evaluate-sft", "reward", "ppo", "unbridled", "dpo", "best_of_4", "grpo")
    )
    return [
        "",
        f"The loop once, seed {summary['seed']}, in {clock(summary['seconds'])} on {summary['device']}",
        f"  base      gold {base['gold']:+.2f}   answers {base['complies']:.0%} of harmful requests",
        f"  SFT       gold {before['gold']:+.2f}   answers {before['complies']:.0%}",
        f"  reward    right on {reward['pair_accuracy']:.0%} of held-out pairs; the slim one {reward['slim']['pair_accuracy']:.0%}",
        f"  PPO       gold {ppo['gold_after']:+.2f}   answers {ppo['complies']:.0%}, refuses {ppo['refuses_benign']:.0%} of harmless ones",
        f"            beats SFT on {ppo['win_rate']:.0%} of prompts (95% {ppo['win_rate_low']:.2f} to {ppo['win_rate_high']:.2f}), "
        f"KL {ppo['kl']:.1f} nats",
        f"  unbridled proxy {cliff['proxy_start']:+.2f} → {cliff['proxy_end']:+.2f} sd, but gold peaked at "
        f"{cliff['gold_peak']:+.2f} and ended at {cliff['gold_end']:+.2f}",
        f"  DPO       gold {dpo['gold_after']:+.2f}   beats SFT on {dpo['win_rate']:.0%} of prompts, KL {dpo['kl']:.1f} nats",
        f"  best of 4 gold {best['gold']:+.2f}   by the reward model, nothing trained",
        f"  GRPO      right on {grpo['accuracy_before']:.0%} → {grpo['accuracy_after']:.0%} of arithmetic problems",
        f"  figures   {out / 'summary.json'}",
        f"  report    {out / 'report.html'}",
    ]
