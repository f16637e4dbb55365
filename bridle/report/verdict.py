"""Which way to use the comparisons won on held-out prompts, what it cost, and what got worse: words that follow from the figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeGuard

from bridle.maths.statistics import student_quantile
from bridle.report.metrics import held_out
from bridle.report.page import listing, show, words
from bridle.report.runs import MOST_MODELS, Runs
from bridle.report.stages import BEST_OF, STAGES, label_of

ABOVE, BELOW, NOT_APART = "above it", "below it", "not clearly apart"
Z = 1.96  # standard errors to either side of a mean that hold 95% where many prompts were asked


@dataclass(frozen=True, slots=True)
class Standing:
    """Mean score of a model's answers to held-out prompts and their KL from SFT in nats, with the standard errors that are known, and
    on how many prompts they rest. `trained`: else answers of SFT are chosen among, and the KL is an upper bound."""

    name: str
    model: str
    score: float
    error: float | None = None
    kl: float | None = None
    kl_error: float | None = None
    trained: bool = True
    prompts: int | None = None

    @classmethod
    def of(cls, name: str, model: str, result: Mapping[str, Any], score: str) -> "Standing":
        error, kl, kl_error = (result.get(key) for key in (f"{score}_se", "kl", "kl_se"))
        return cls(name, model, result[score], error, kl, kl_error, bool(model), result.get("prompts"))

    @property
    def low(self) -> float:
        return self.score - half_width(self.error, self.prompts)

    @property
    def high(self) -> float:
        return self.score + half_width(self.error, self.prompts)

    @property
    def sure(self) -> bool:
        """Whether its interval is known."""
        return math.isfinite(self.high)

    def against(self, other: "Standing") -> str:
        """Whether chance does not explain their difference, and which is higher. Answers to the same prompts rise and fall together, so
        that their difference is surer than this, which takes them for independent."""
        if not apart(self.score - other.score, (self.error, other.error), (self.prompts, other.prompts)):
            return NOT_APART
        return ABOVE if self.score > other.score else BELOW

    def __str__(self) -> str:
        sure = f" ({show(self.low)} to {show(self.high)})" if self.sure else ""
        far = "" if not self.kl else f" at a KL of {'' if self.trained else 'at most '}{show(self.kl)}"
        return f"{self.name} {show(self.score)}{sure}{far}"


@dataclass(frozen=True)
class Verdict:
    """`ranked`: all that made something of SFT, the best mean score first. `score`: gold, or the proxy where nobody knows it."""

    score: str
    sft: Standing | None
    ranked: Sequence[Standing]

    @property
    def leaders(self) -> list[Standing]:
        """The first, and those not clearly apart from it."""
        return [one for one in self.ranked if one is self.ranked[0] or one.against(self.ranked[0]) == NOT_APART]

    @property
    def gained(self) -> bool:
        """Whether anything is above SFT, as far as SFT was evaluated."""
        return self.sft is None or any(one.against(self.sft) == ABOVE for one in self.ranked)

    @property
    def unsure(self) -> list[str]:
        """Those whose standard error is not known."""
        return [one.name for one in [self.sft, *self.ranked] if one is not None and not is_number(one.error)]

    @property
    def winner(self) -> str:
        """The first by name, that several cannot be told apart, or that nothing is above SFT."""
        if not self.gained:
            return "nothing clearly above SFT"
        names = [one.name for one in self.leaders]
        return names[0] if len(names) == 1 else f"no clear winner between {listing(names)}"

    @property
    def sides(self) -> list[tuple[Standing, dict[str, list[str]]]]:
        """Who is above SFT, below it, or not clearly apart, by name; and the same of the best of n."""
        found = []
        for one in [self.sft, *(one for one in self.ranked if not one.trained)]:
            sides: dict[str, list[str]] = {}
            for other in self.ranked:
                if one is not None and other is not one:
                    sides.setdefault(other.against(one), []).append(other.name)
            found += [(one, sides)] if one is not None and sides else []
        return found


def verdict_of(runs: Runs, score: str) -> Verdict:
    """Of every model that was evaluated but base, and of the best of the most answers."""
    models = {
        name: Standing.of(label_of(name), name, result, score)
        for name, result in runs.evaluated.items()
        if name != "base" and is_number(result.get(score))
    }
    sft, chosen = models.pop("sft", None), chosen_among(runs, score)[-1:]
    return Verdict(score, sft, sorted([*models.values(), *chosen], key=lambda one: -one.score))


def chosen_among(runs: Runs, score: str) -> list[Standing]:
    """What choosing the best of 2, 4, … answers came to, of the largest n that was tried; nothing of one answer, which is SFT's."""
    return [
        Standing.of(f"best-of-{one['n']}", "", one, score) for one in best_of_points(runs) if is_number(one.get(score))
    ]


def best_of_points(runs: Runs) -> list[Mapping[str, Any]]:
    tried = [result for stage, result in runs.results.items() if BEST_OF.fullmatch(stage)]
    largest: Mapping[str, Any] = max(tried, key=lambda result: result.get("n", 0), default={})
    return [{"prompts": largest.get("prompts"), **point} for point in largest.get("frontier", []) if point["n"] > 1]


def is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and math.isfinite(value)


@cache
def quantile(degrees: int) -> float:
    """Student's, of 95%."""
    return student_quantile(0.95, degrees)


def half_width(error: object, *prompts: object) -> float:
    """Half of a mean's 95% interval: its standard error times Student's quantile at one degree of freedom less than the (fewest)
    prompts, or ±1.96 where an earlier version did not note them; nan, which is apart from nothing, where the error is not known."""
    asked = [int(count) for count in prompts if is_number(count)]
    if not is_number(error) or min(asked, default=2) < 2:
        return math.nan
    return error * (quantile(min(asked) - 1) if asked else Z)


def apart(difference: float, errors: Sequence[object], prompts: Sequence[object]) -> bool:
    """Whether a difference of two means is more than chance explains, at 95%; False where how sure they are is not known."""
    known = [error for error in errors if is_number(error)]
    return len(known) == len(errors) and abs(difference) > half_width(math.hypot(*known), *prompts)


def sentences(runs: Runs, verdict: Verdict) -> list[str]:
    """What came out, each where it was measured."""
    before, others = runs.evaluated.get("sft"), [name for name in runs.evaluated if name not in ("base", "sft")]
    costs = {
        label_of(name): costs_of(before, runs.evaluated[name]) for name in others[:MOST_MODELS] if before is not None
    }
    pleasing = [label_of(name) for name in others if name in runs.folders and by_reward_model(runs.parents(name))]
    judged, asked = runs.results.get("reward", {}).get("judgements"), [scored(runs, stage) for stage in runs.folders]
    scores = None if None in asked else sum(n for n in asked if n is not None)
    known = {"costs": costs, "bridle": bridle(runs), "pleasing": pleasing, "judged": judged, "scores": scores}
    return words(
        "verdict", {"runs": runs, "recipe": runs.project.recipe, "verdict": verdict, "label_of": label_of, **known}
    )


def costs_of(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What is worse than before, by how much, and all that could be tested for it."""
    tested = {key: it for key in held_out() if (it := is_worse(key, before, after)) is not None}
    worse = [f"{held_out()[key].label} {show(before[key])} → {show(after[key])}" for key in tested if tested[key]]
    return worse, [held_out()[key].label for key in tested]


def bridle(runs: Runs) -> dict[str, Any]:
    """The target of the KL beside what was reached, where PPO's bridle had one."""
    recipe, reached = runs.recipe("ppo") if "ppo" in runs.folders else None, runs.evaluated.get("ppo", {})
    if recipe is None or not recipe.ppo.steered or not is_number(kl := reached.get("kl")):
        return {}
    target, half = recipe.ppo.kl_target, half_width(reached.get("kl_se"), reached.get("prompts"))
    if math.isnan(half):
        verdict = "whether it held is not known"
    elif kl - half > target:
        verdict = "it did not hold"
    else:
        verdict = "it held with room to spare" if kl + half < target else "it held"
    return {"target": target, "verdict": verdict, "held_out": kl, "trained": runs.results["ppo"].get("kl")}


def is_worse(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool | None:
    """Whether a metric is clearly worse than before; None where nothing says which way is worse, or how sure the two are."""
    metric, errors = held_out()[key], [standard_error(result, key) for result in (before, after)]
    if not metric.worse or None in errors:
        return None
    worsened = metric.worse * (after[key] - before[key])
    return worsened > 0 and apart(
        worsened, errors, [result.get(metric.share_of or "prompts") for result in (before, after)]
    )


def standard_error(result: Mapping[str, Any], key: str) -> float | None:
    """A metric's standard error: of a share from what it is a share of, with one more of each kind (Agresti 1998); None where it is
    not known."""
    value, count = result.get(key), result.get(held_out()[key].share_of) or 0
    if not is_number(value):
        return None
    if held_out()[key].share_of:
        share = (float(value) * count + 1) / (count + 2) if count > 0 else -1.0
        return math.sqrt(share * (1 - share) / count) if 0 <= share <= 1 else None
    error = result.get(f"{key}_se")
    return error if is_number(error) else None


def scored(runs: Runs, stage: str) -> int | None:
    """How many answers the reward model scored for a run to learn from, or to choose by; None where its recipe is lost."""
    row, result = STAGES.get(stage), runs.results[stage]
    if BEST_OF.fullmatch(stage):
        return int(result.get("prompts", 0) * result.get("n", 0))
    if row is None or row.asks is None or not by_reward_model(runs.parents(stage)):
        return 0
    recipe, steps = runs.recipe(stage), int(result.get("steps") or result.get("rounds") or 0)
    return None if recipe is None else steps * row.asks(recipe)


def by_reward_model(parents: Mapping[str, Any]) -> bool:
    """Whether the project's own reward model scored a run's answers, alone or among other sources."""
    if sources := parents.get("reward_source"):
        return any(source.get("kind") == "learned" and not source.get("path") for source in sources)
    return bool(parents.get("source") == "learned")
