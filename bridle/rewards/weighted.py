"""Several sources of reward as one: a weighted sum of what each says, with each one's mean by name for the log."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bridle.core.errors import TrainingStopped
from bridle.core.records import Completion, Prompt, Reward, Scores


@dataclass(frozen=True)
class Source:
    """A reward with the name that it has in the log and its weight in the sum; a negative weight is a cost."""

    name: str
    weight: float
    reward: Reward


@dataclass(frozen=True)
class WeightedSum:
    """Σ weight × score. What one source cannot judge (None, or no finite number) has no sum either: None, masked by whoever trains.

    With the scores come each source's mean over what it could judge, how many answers it could not, and what it reports itself.
    """

    sources: Sequence[Source]

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Scores:
        metrics: dict[str, float] = {}
        totals: list[float | None] = [0.0] * len(completions)
        parts: list[tuple[float, list[float | None]]] = []
        for source in self.sources:
            found = source.reward(prompts, completions)
            scores = [s if s is None or math.isfinite(s) else None for s in found]
            if len(scores) != len(totals):
                raise TrainingStopped(
                    f"the reward source {source.name!r} gave {len(scores)} scores for {len(totals)} answers; it must give "
                    "one for each"
                )
            parts.append((source.weight, scores))
            judged = [score for score in scores if score is not None]
            metrics |= {f"reward_{source.name}": sum(judged) / len(judged)} if judged else {}
            metrics[f"unscored_{source.name}"] = len(scores) - len(judged)
            metrics |= found.metrics if isinstance(found, Scores) else {}
            for i, (total, score) in enumerate(zip(totals, scores, strict=True)):
                totals[i] = None if total is None or score is None else total + source.weight * score
        return Scores(totals, metrics, parts)
