"""summary.json, and the lines at the end."""

import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bridle.demo.session import DemoSession
from bridle.demo.stages import smooth
from bridle.project.progress import clock
from bridle.report.runs import Runs
from bridle.report.verdict import Standing, sentences, verdict_of
from bridle.stages.evaluate import compare
from bridle.stages.workspace import Work

Results = dict[str, dict[str, Any]]  # of the demo's stages, by name

WIDTH = 100


def summarise(work: Work, results: Results, session: DemoSession) -> dict[str, Any]:
    """`summary.json`: seconds from begin to end, seed, threads, and the metrics of each stage by name; the slim reward model's stand in
    the full one's."""
    if slim := results["reward-slim"]:
        results = {**results, "reward": {**results["reward"], "slim": slim}}
    results = {name: result for name, result in results.items() if name != "reward-slim"}
    before, unbridled = results["evaluate-sft"], results["evaluate-unbridled"]
    runs = Runs.of(work.project)
    curve, verdict = (
        smooth([gold for line in runs.metrics("unbridled") if (gold := line.get("gold")) is not None]),
        verdict_of(runs, work.data.score_name),
    )
    measured: dict[str, dict[str, Any]] = {
        "ppo": against_sft(work, "ppo", before, results["evaluate-ppo"]),
        "dpo": against_sft(work, "dpo", before, results["evaluate-dpo"]),
        "unbridled": {
            "proxy_start": before.get("proxy"),
            "proxy_end": unbridled.get("proxy"),
            "gold_peak": max(curve, default=None),
            "gold_end": unbridled.get("gold"),
        },
    }
    whole = {name: {**with_parts(result), **measured.get(name, {})} for name, result in results.items()}
    return {
        "seconds": round(session.seconds, 1),
        "seed": work.recipe.seed,
        "threads": session.threads,
        "device": session.device,
        "verdict": sentences(runs, verdict),
        "ranking": [asdict(one) for one in verdict.ranked],
        "stages": whole,
    }


def with_parts(result: Mapping[str, Any]) -> dict[str, Any]:
    """One stage to the reader, two runs on disk: the seconds of both."""
    parts = [result[part] for part in ("slim", "branch") if part in result]
    return {**result, "seconds": sum(one.get("seconds", 0.0) for one in (result, *parts))}


def against_sft(work: Work, name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """A tuned policy and SFT on the same held-out prompts, by names that no training metric has; all else stands under `evaluate-NAME`."""
    wins = compare(work, name, "sft", "gold")
    return {
        "gold_before": before.get("gold"),
        "gold_after": after.get("gold"),
        **{f"win_rate{end}": wins[key] for end, key in (("", "rate"), ("_low", "low"), ("_high", "high"))},
    }


def summary_lines(summary: dict[str, Any], out: Path) -> list[str]:
    """The lines at the end: what the report says first, in the same words."""
    ranked, verdict = [Standing(**one) for one in summary["ranking"]], " ".join(summary["verdict"])
    places = [f"{place}. {one.name if str(one) in verdict else one}" for place, one in enumerate(ranked, 1)]
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    paragraphs = [
        f"The loop once, seed {summary['seed']}, in {clock(summary['seconds'])} on {summary['device']}",
        f"By mean gold on held-out prompts: {'; '.join(places)}.",
        *summary["verdict"],
        f"Metrics: {out / 'summary.json'}",
        f"Report: {out / 'report.html'}",
    ]
    return [
        "",
        *(
            line
            for words in paragraphs
            for line in textwrap.wrap(
                words, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )
        ),
    ]
