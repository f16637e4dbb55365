"""How often a reward model is right on comparisons, of a file or those held out, and whether the project's still knows what people say, by
the judgements that came since it was made."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bridle.core.errors import NoUsableRows
from bridle.core.records import Judgement, Pair
from bridle.evaluation.benchmark import ComparedRow, benchmark_metrics, comparisons_in
from bridle.feedback.people.following import judged_since
from bridle.feedback.quality.votes import topic_in
from bridle.feedback.rankings import Item, disjoint_pairs
from bridle.guard.staleness import judgements_to_notice, labels_to_refresh, staleness, where_it_fails
from bridle.rewards.classifier import Classifier
from bridle.rewards.learned import LearnedReward
from bridle.stages.reward import heldout_pairs
from bridle.stages.rewards import is_own, load_scores, others_reward, require_reward_at
from bridle.stages.workspace import Work, require_model

FALLS = (0.05, 0.1, 0.2)  # of accuracy: how many judgements notice each
LISTED = 5  # topics


def judge_staleness(work: Work) -> dict[str, Any]:
    """The sequential test of `guard/staleness.py` on the judgements on the whole that came after the reward model was registered, audits of
    runs among them, in their order: whether it is stale, how many labels a refresh should begin with, on which topics."""
    content = require_model(work, "reward", scores=True)
    judged, learnt = judged_since(work.store, content, work.recipe.data.sources)
    pairs = first_said(judged)
    if not pairs:
        raise NoUsableRows(
            "no judgement that prefers one answer has come since the reward model was made; have answers of the policy compared: "
            "`bridle sample --model ppo`, then `bridle label`"
        )
    reader = load_scores(work, work.project.model("reward"), work.read_policy(work.project.model("sft")))
    task, asked = reader.model.tasks[reader.row], [pair.prompt for pair in pairs]
    gap = reader.raw(asked, [pair.chosen for pair in pairs]) - reader.raw(asked, [pair.rejected for pair in pairs])
    stated, won = (gap / task.temperature).double().sigmoid().numpy(), np.ones(len(pairs))
    found = staleness(stated, won)
    topics = [str(pair.prompt.meta.get("topic") or pair.prompt.meta.get("family") or "other") for pair in pairs]
    where = [{"topic": name, "judgements": n, "lost": lost} for name, n, lost in where_it_fails(stated, won, topics)]
    return {
        **asdict(found),
        "stale": found.alarm is not None,
        "since": len(judged),
        "learnt_from": learnt,
        "labels": labels_to_refresh(found, learnt),
        "notices": {f"{fall:g}": judgements_to_notice(stated, fall) for fall in FALLS},
        "where": where[:LISTED],
    }


def first_said(judged: Sequence[tuple[Item, Judgement]]) -> list[Pair]:
    """What was said first of each pair of answers, pairs that share none: what another person says of the same pair is about the
    same place of the reward model once more."""
    found = dict[str, list[Pair]]()
    for item, judgement in judged:
        if item.id not in found and (pairs := disjoint_pairs(item, judgement)):
            found[item.id] = pairs
    return [pair for pairs in found.values() for pair in pairs]


def stale_lines(found: Mapping[str, Any]) -> list[str]:
    """For the terminal."""
    lines = [
        f"{found['since']:,} judgements since, {found['judgements']:,} comparisons of two answers: the reward model states that it is "
        f"right on {found['stated']:.1%} of them, and was on {found['measured']:.1%}",
    ]
    if found["stale"]:
        lines.append(
            f"stale, after {found['alarm']:,} of them (evidence {found['evidence']:.3g}, 20 raises the alarm): begin a refresh with "
            f"{found['labels']:,} labels on the policy's answers (`bridle sample --model ppo --prompts N`, `bridle label`, `bridle train "
            "reward`), most where it fails most"
        )
        lines += [
            f"  {one['topic']}: {one['lost']:.0f} of {one['judgements']} beyond what was stated"
            for one in found["where"]
            if one["lost"] > 0
        ]
    else:
        lines.append(f"no sign that it is stale (evidence {found['evidence']:.3g}, 20 raises the alarm)")
    noticed = {fall: n for fall, n in found["notices"].items() if n is not None}
    lines += [
        f"a fall of {float(fall):.0%} of accuracy would show after some {n:,} such comparisons"
        for fall, n in noticed.items()
    ]
    return lines


# ------------------------------------------------------------------------------------------------- on comparisons


def benchmark_reward(work: Work, named: str, file: Path | None) -> dict[str, Any]:
    """By a reward model of the project, by its name, or by the path of one, of somebody else's too."""
    folder = Path(named)
    if folder.name == named:
        folder = work.project.model(named)
        require_model(work, named, scores=True)
    else:
        require_reward_at(folder, f"--model {named}")
    rows = heldout_comparisons(work) if file is None else comparisons_in(file)
    if is_own(folder):
        require_model(work, "sft")
        reader: LearnedReward | Classifier = load_scores(work, folder, work.read_policy(work.project.model("sft")))
    else:
        reader = others_reward(work, folder)
    return {"model": named, **benchmark_metrics(reader, rows)}


def heldout_comparisons(work: Work) -> list[ComparedRow]:
    return [ComparedRow(p, (better, worse), 1, topic_in(p.meta) or "") for p, better, worse in heldout_pairs(work)[0]]


def benchmark_lines(found: Mapping[str, Any]) -> list[str]:
    """For the terminal."""

    def line(name: str, one: Mapping[str, Any]) -> str:
        return f"{name}: {one['accuracy']:.3f} ({one['accuracy_low']:.3f} to {one['accuracy_high']:.3f}) of {one['scored']:,}"

    lines = [line("right", found), f"longest {found['longest']:.3f}, shortest {found['shortest']:.3f}"]
    lines += [f"left out, for they cannot be scored: {found['unscored']:,}"] if found["unscored"] else []
    lines += [f"  {line(name, one)}" for name, one in found.get("subsets", {}).items()]
    if found["temperature"] is None:
        return [*lines, "too few comparisons to say what its scores mean"]
    return [
        *lines,
        f"temperature {found['temperature']:.3g}: an answer that scores so much more is better at odds of e to 1; calibration error "
        f"{found['ece_before']:.3f} -> {found['ece_after']:.3f}",
    ]
