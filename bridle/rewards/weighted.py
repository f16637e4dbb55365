"""Several sources of reward as one: a weighted sum of what each says, with each one's mean by name for the log."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from bridle.core.errors import TrainingStopped
from bridle.core.records import Completion, Prompt, Reward


@dataclass(frozen=True)
class Source:
    """A reward with the name that it has in the log and its weight in the sum; a negative weight is a cost."""

    name: str
    weight: float
    reward: Reward


@dataclass
class WeightedSum:
    """Σ weight × score. What one source cannot judge (None, or no finite number) has no sum either: None, masked by whoever trains.

    After each call `figures` holds, for the log, each source's mean over what it could judge and how much it could not.
    """

    sources: Sequence[Source]
    figures: dict[str, float] = field(default_factory=dict)

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        self.figures = {}
        totals: list[float | None] = [0.0] * len(completions)
        for source in self.sources:
            scores = [s if s is None or math.isfinite(s) else None for s in source.reward(prompts, completions)]
            if len(scores) != len(totals):
                raise TrainingStopped(
                    f"the reward source {source.name!r} gave {len(scores)} scores for {len(totals)} answers; it must give "
                    "one for each"
                )
            judged = [score for score in scores if score is not None]
            self.figures |= {f"reward_{source.name}": sum(judged) / len(judged)} if judged else {}
            self.figures[f"unscored_{source.name}"] = len(scores) - len(judged)
            for i, (total, score) in enumerate(zip(totals, scores, strict=True)):
                totals[i] = None if total is None or score is None else total + source.weight * score
        return totals
