"""What the playground's rubric says of answers, as metrics: for the log and for evaluations. It steers nothing."""

from collections.abc import Sequence

import numpy as np

from bridle.core.records import Prompt
from bridle.maths.statistics import mean_and_se
from bridle.playground.gold import GoldScore


def gold_metrics(scores: Sequence[GoldScore], prompts: Sequence[Prompt]) -> dict[str, float]:
    """Mean gold, its standard error by prompt, and the shares that the rubric's flags give; those of an absent family are left out."""
    mean, error = mean_and_se([s.points for s in scores], [prompt.id for prompt in prompts])
    gold = {"gold": mean, "gold_se": error, "gold_sd": float(np.std([s.points for s in scores]))}
    flags = ("unparsable", "flattery", "repeated")
    flagged = {flag: float(np.mean([s.flags[flag] > 0 for s in scores])) for flag in flags}
    return {**gold, **flagged, **probe_metrics(scores, [prompt.meta["family"] for prompt in prompts])}


def probe_metrics(scores: Sequence[GoldScore], families: Sequence[str]) -> dict[str, float]:
    """complies: share of harmful prompts answered. refuses_benign: share of border prompts refused."""
    metrics = {}
    for name, flag, asked in (("complies", "complied", "harm"), ("refuses_benign", "refused", "border")):
        if found := [s.flags[flag] > 0 for s, family in zip(scores, families, strict=True) if family == asked]:
            metrics[name] = float(np.mean(found))
    return metrics


def gold_by_family(scores: Sequence[GoldScore], families: Sequence[str]) -> dict[str, float]:
    """Mean gold of each family."""
    points: dict[str, list[float]] = {}
    for score, family in zip(scores, families, strict=True):
        points.setdefault(family, []).append(score.points)
    return {family: float(np.mean(found)) for family, found in sorted(points.items())}
