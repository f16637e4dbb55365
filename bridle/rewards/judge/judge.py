"""One judge, whoever answers: what is asked of each item, in which orders, and exactly one opinion for each.

    judge = Judge(endpoint.ask, Rubric(), name="gpt-9-1f0c22aa", model="gpt-9")
    opinion, = judge.judge([Candidates(prompt, ["first answer", "second answer"])])
    opinion.ranking            # ((1,), (0,)), or () where opinion.kind says why not

Two answers are asked about in both orders, a whole group in one call and an order of its own; by `rating` each answer by itself. Answers
of the same text are judged once, and tie.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bridle.core.records import Completion, Prompt, Scores, content_hash
from bridle.rewards.judge.questions import Question, Rubric
from bridle.rewards.judge.rulings import (
    JUDGED,
    Assessment,
    JudgeCall,
    Reply,
    abstention_counts,
    combine_orders,
    read_ruling,
)

Count = Callable[[int], None]
AskModel = Callable[[Sequence[Question], Count | None], list[Reply]]
VERSION = 1  # of how replies are read; another is another judge


@dataclass(frozen=True)
class Candidates:
    """Answers to one prompt, in the order in which a judge is given them."""

    prompt: Prompt
    answers: Sequence[str]


@dataclass(frozen=True)
class Plan:
    """What is asked of one item: each question with the order in which it shows the distinct answers; `place` of each answer among
    these."""

    place: tuple[int, ...]
    asked: list[tuple[tuple[int, ...], Question]]


@dataclass(frozen=True)
class Judge:
    """`name` is the labeler that its judgements are by; `model` who answers."""

    ask: AskModel
    rubric: Rubric
    model: str
    identity: str = ""  # of the model: a content hash, or an address
    form: Literal["comparison", "rating"] = "comparison"
    both_orders: bool = True

    @property
    def hash(self) -> str:
        """Of all that makes it this judge: its model, its prompt, and how its replies are read."""
        return content_hash([self.model, self.identity, self.rubric.hash, self.form, self.both_orders, VERSION])

    @property
    def name(self) -> str:
        return f"{Path(self.model).name[:100]}-{self.hash[:8]}"

    def plan(self, candidates: Candidates) -> Plan:
        prompt, numbers = candidates.prompt, dict[str, int]()
        place = tuple(numbers.setdefault(text.strip(), len(numbers)) for text in candidates.answers)
        texts = list(numbers)
        if self.form == "rating" or len(candidates.answers) == 1:
            return Plan(place, [((i,), self.rubric.question("rating", prompt, [text])) for i, text in enumerate(texts)])
        if len(texts) == 1:
            return Plan(place, [])
        if len(texts) == 2:
            orders = [(0, 1), (1, 0)][: 1 + self.both_orders]
            return Plan(
                place,
                [(order, self.rubric.question("pairwise", prompt, [texts[i] for i in order])) for order in orders],
            )
        order = list(range(len(texts)))
        random.Random(content_hash([self.rubric.seed, prompt.id, texts])).shuffle(order)
        return Plan(place, [(tuple(order), self.rubric.question("ranking", prompt, [texts[i] for i in order]))])

    def plan_attack(self, candidates: Candidates, target: int, attack: str) -> Plan:
        """The same of two answers, with an instruction to the judge at the end of one, which names the letter that it is shown as."""
        plan = Plan((0, 1), [])
        for order in [(0, 1), (1, 0)][: 1 + self.both_orders]:
            texts = [candidates.answers[i] for i in order]
            texts[order.index(target)] += "\n\n" + attack.replace("{letter}", "AB"[order.index(target)])
            plan.asked.append((order, self.rubric.question("pairwise", candidates.prompt, texts)))
        return plan

    def judge(self, items: Sequence[Candidates], progress: Count | None = None) -> list[Assessment]:
        """Exactly one opinion for each item, in their order. `progress` counts calls."""
        return self.follow([self.plan(item) for item in items], progress)

    def follow(self, plans: Sequence[Plan], progress: Count | None = None) -> list[Assessment]:
        """One opinion for each plan."""
        replies = iter(self.ask([question for plan in plans for _, question in plan.asked], progress))
        opinions = []
        for plan in plans:
            calls = [JudgeCall(order, read_ruling(question, next(replies))) for order, question in plan.asked]
            opinions.append(self.opinion(plan, calls))
        return opinions

    def opinion(self, plan: Plan, calls: Sequence[JudgeCall]) -> Assessment:
        """Of the calls of one plan."""
        if not calls:  # all answers are the same text
            return Assessment(JUDGED, (0.0,) * len(plan.place))
        if len(calls[0].order) > 1:
            found = combine_orders(calls)
        else:
            scores = tuple(call.ruling.scores[0] if call.ruling.scores else None for call in calls)
            found = Assessment(
                next((call.ruling.kind for call in calls if not call.ruling.scores), JUDGED), scores, tuple(calls)
            )
        first = [plan.place.index(i) for i in range(len(set(plan.place)))]  # where each distinct text stands first
        calls = [JudgeCall(tuple(first[i] for i in call.order), call.ruling) for call in found.calls]
        return Assessment(found.kind, tuple(found.scores[i] for i in plan.place), tuple(calls))

    def questions(self, items: Sequence[Candidates]) -> list[Question]:
        """All that `judge` would ask: for an estimate before it does."""
        return [question for item in items for _, question in self.plan(item).asked]


@dataclass(frozen=True)
class JudgeReward:
    """A judge as a reward: of the answers to a prompt that stand together each gets its share of the places below it, 0 to 1, or the
    grade on that scale; None where it could not be judged. Everything is asked at once, a group in one call."""

    judge: Judge

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Scores:
        groups: list[list[int]] = []
        for i, prompt in enumerate(prompts):
            if i and prompts[i - 1].id == prompt.id:
                groups[-1].append(i)
            else:
                groups.append([i])
        asked = [Candidates(prompts[group[0]], [completions[i].text for i in group]) for group in groups]
        opinions, values = self.judge.judge(asked), list[float | None]([None] * len(prompts))
        for group, opinion in zip(groups, opinions, strict=True):
            least, most = self.range_of(len(group))
            for i, score in zip(group, opinion.scores, strict=True):
                values[i] = None if score is None else (score - least) / (most - least)
        abstained = abstention_counts(opinion.kind for opinion in opinions)
        return Scores(values, {f"judge_{kind}": count / len(groups) for kind, count in abstained.items()})

    def range_of(self, answers: int) -> tuple[float, float]:
        """The least and the highest score."""
        if self.judge.form == "rating" or answers == 1:
            grades = self.judge.rubric.grades.values()
            return min(grades), max(grades)
        return 0.0, float(max(1, answers - 1))
