"""A judge in a verifier's place, where an answer states nothing that the verifier could read.

    reward = StandIn("right", verifier, judge)          # Scores: 1 or 0, None where the judge had no verdict

What the verifier read stays as it is, and an answer that was cut off, or is empty, is wrong and never judged. The judge is told the
solution, and says right or wrong of one answer by itself. What this cannot keep out: a policy that learns to be unreadable where the judge
is easier to please than the verifier. How many answers were unreadable, and which share of them was called right, is logged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from bridle.core.files import read_toml
from bridle.core.records import Completion, Prompt, Scores, content_hash
from bridle.rewards.judge.judge import Candidates, Judge
from bridle.rewards.judge.questions import Rubric
from bridle.rewards.judge.rulings import abstention_counts
from bridle.rewards.verifiers import Verifier


@cache
def stand_in_texts() -> dict[str, Any]:
    return read_toml(Path(__file__).with_name("standing_in.toml"))


class RightOrWrong(Rubric):
    """What a judge is asked of one answer whose solution is known: whether it is right."""

    @property
    def phrases(self) -> Mapping[str, str]:
        return {**super().phrases, "rating": stand_in_texts()[self.language]["rating"]}


@dataclass(frozen=True)
class StandIn:
    """A verifier whose unread answers a judge reads; `name` is that of the source, in the log."""

    name: str
    verifier: Verifier
    judge: Judge

    @property
    def texts(self) -> Mapping[str, str]:
        found: Mapping[str, str] = stand_in_texts()[self.judge.rubric.language]
        return found

    @property
    def judge_of_one(self) -> Judge:
        """The judge, asked whether one answer is right and nothing else."""
        own = self.judge.rubric
        verdicts = ((self.texts["right"], 1.0), (self.texts["wrong"], 0.0))
        rubric = RightOrWrong(own.language, reasons=own.reasons, seed=own.seed, verdicts=verdicts)
        return replace(self.judge, rubric=rubric, form="rating")

    @property
    def hash(self) -> str:
        return content_hash([self.judge_of_one.hash, stand_in_texts()])

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Scores:
        checked = [self.verifier.examine(*each) for each in zip(prompts, completions, strict=True)]
        values: list[float | None] = [one.value for one in checked]
        unread = [i for i, one in enumerate(checked) if one.unread == "unparsed" and completions[i].stripped]
        opinions = self.judge_of_one.judge([self.asked(prompts[i], completions[i]) for i in unread])
        for i, opinion in zip(unread, opinions, strict=True):
            grade = opinion.scores[0]
            values[i] = None if grade is None else float(grade > 0.5)
        verdicts = [value for i in unread if (value := values[i]) is not None]
        metrics: dict[str, float] = {
            f"unparsed_{self.name}": len(unread),
            f"unjudged_{self.name}": len(unread) - len(verdicts),
        }
        if verdicts:
            metrics[f"judged_right_{self.name}"] = sum(verdicts) / len(verdicts)
        abstained = abstention_counts(opinion.kind for opinion in opinions)
        return Scores(values, metrics | {f"judge_{kind}": count / len(unread) for kind, count in abstained.items()})

    def asked(self, prompt: Prompt, completion: Completion) -> Candidates:
        """One answer, and the solution where a prompt's own rubric would stand."""
        rubric = self.texts["rubric"].replace("{solution}", self.verifier.solution(prompt))
        return Candidates(replace(prompt, meta={"rubric": rubric}), [completion.text])


def stand_in_sentences(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of a run's logged steps, for each source: how many answers could not be read, and which share of them its judge called right."""
    names = dict.fromkeys(name for step in steps for name in step if name.startswith("unparsed_"))
    found = []
    for name in (one.removeprefix("unparsed_") for one in names):
        unread = sum(step.get(f"unparsed_{name}", 0) for step in steps)
        without = sum(step.get(f"unjudged_{name}", 0) for step in steps)
        right: float = sum(
            float(step[f"judged_right_{name}"]) * (step[f"unparsed_{name}"] - step[f"unjudged_{name}"])
            for step in steps
            if f"judged_right_{name}" in step
        )
        share = f"{right / (unread - without):.0%} of them" if unread > without else "none of them"
        found.append(
            f"Its verifier {name!r} could not read {unread:,} answers of the logged steps. A judge stood in: it called {share} right"
            + (f", of those that it judged; it had no verdict on {without:,}." if without else ".")
        )
    return found
