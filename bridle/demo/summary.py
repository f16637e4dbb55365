"""summary.json, and the lines at the end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bridle.demo.session import DemoSession
from bridle.project.progress import clock
from bridle.report.project import finished_metrics
from bridle.stages.evaluate import compare
from bridle.stages.workspace import Work

Results = dict[str, dict[str, Any]]  # of the demo's stages, by name

SMOOTH = 3  # rollout steps in a running mean of gold: one step's prompts are few


def summarise(work: Work, results: Results, session: DemoSession) -> dict[str, Any]:
    """`summary.json`: seconds from begin to end, seed, threads, and the metrics of each stage by name."""
    before, unbridled = results["evaluate-sft"], results["evaluate-unbridled"]
    curve = smooth([line["gold"] for line in finished_metrics(work.project, "unbridled")])
    measured: dict[str, dict[str, Any]] = {
        "ppo": against_sft(work, "ppo", before, results["evaluate-ppo"]),
        "dpo": against_sft(work, "dpo", before, results["evaluate-dpo"]),
        "unbridled": {
            "proxy_start": before["proxy"],
            "proxy_end": unbridled["proxy"],
            "gold_peak": max(curve),
            "gold_end": unbridled["gold"],
            "kl": unbridled["kl"],
        },
    }
    whole = {name: {**with_parts(result), **measured.get(name, {})} for name, result in results.items()}
    return {
        "seconds": round(session.seconds, 1),
        "seed": work.recipe.seed,
        "threads": session.threads,
        "device": session.device,
        "stages": whole,
    }


def with_parts(result: Mapping[str, Any]) -> dict[str, Any]:
    """One stage to the reader, two runs on disk: the seconds of both."""
    parts = [result[part] for part in ("slim", "branch") if part in result]
    return {**result, "seconds": sum((part["seconds"] for part in parts), result["seconds"])}


def against_sft(work: Work, name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """A tuned policy and SFT on the same held-out prompts."""
    wins = compare(work, name, "sft", "gold")
    return {
        "gold_before": before["gold"],
        "gold_after": after["gold"],
        **{f"win_rate{end}": wins[key] for end, key in (("", "rate"), ("_low", "low"), ("_high", "high"))},
        **{key: after[key] for key in ("kl", "kl_se", "complies", "refuses_benign", "unparsable", "proxy")},
    }


def smooth(values: list[float]) -> list[float]:
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
        f"  metrics   {out / 'summary.json'}",
        f"  report    {out / 'report.html'}",
    ]
