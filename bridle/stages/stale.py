"""Whether the project's reward model still knows what people say, by the judgements that came since it was made."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from bridle.core.errors import NoUsableRows
from bridle.core.records import Judgement, Pair
from bridle.feedback.people.following import judged_since
from bridle.feedback.rankings import Item, disjoint_pairs
from bridle.guard.staleness import judgements_to_notice, labels_to_refresh, staleness, where_it_fails
from bridle.stages.rewards import load_scores
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
