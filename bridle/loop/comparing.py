"""What the gate goes by: two models' fresh answers to held-out prompts, compared a few at a time by those who decide, until it is decided.

Who decides are people who are asked for it (simulated ones on the playground), in a study of its own, the recipe's judge, or the checks of
the prompts; users' votes are not asked here. Equal answers tie, and nobody reads them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bridle.compute.randomness import shuffled
from bridle.core.errors import NoUsableRows, WaitingForLabels
from bridle.core.records import Completion, Prompt
from bridle.loop.gate import Bound, GateVerdict, judge_candidate
from bridle.maths.statistics import outcomes
from bridle.models.policy import Policy
from bridle.rewards.judge.judge import Candidates
from bridle.rewards.judge.measures import preferred_share
from bridle.stages.audit import open_comparisons, outcomes_of
from bridle.stages.data import PlaygroundData
from bridle.stages.judge import judge_of
from bridle.stages.workspace import Work

AT_ONCE = 40  # comparisons that are asked for together

Wins = Callable[["Pairs"], list[float | None]]
"""Of each pair the share by which the first answer is preferred; None where nobody can say."""


@dataclass(frozen=True)
class Pairs:
    """An answer of each of two models to each of some prompts."""

    prompts: list[Prompt]
    first: list[Completion]
    second: list[Completion]

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, chosen: Sequence[int]) -> "Pairs":
        first, second = ([column[at] for at in chosen] for column in (self.first, self.second))
        return Pairs([self.prompts[at] for at in chosen], first, second)

    def equal(self, at: int) -> bool:
        return self.first[at].stripped == self.second[at].stripped


def fresh_pairs(work: Work, models: tuple[Policy, Policy], most: int, label: str) -> Pairs:
    """Fresh answers of two models to at most `most` held-out prompts that fit both, drawn by the label."""
    known = work.data.heldout_prompts()
    drawn = [known[at] for at in shuffled(len(known), work.recipe.seed, f"compare-{label}").tolist()]
    prompts = work.fitting(models[1], work.fitting(models[0], drawn, enforce=False), enforce=False)[:most]
    if not prompts:
        raise NoUsableRows(
            "no held-out prompt fits both models, so neither can be shown to be better; import held-out prompts"
        )
    first, second = (work.answer(policy, prompts, label, number) for number, policy in enumerate(models))
    return Pairs(prompts, first.completions, second.completions)


def compare_until_decided(
    pairs: Pairs, ask: Wins, *, alpha: float, most: int, bounds: Sequence[Bound] = ()
) -> tuple[GateVerdict, dict[str, Any]]:
    """A few more comparisons at a time, until the gate is sure or they are used up. What nobody could judge counts for neither. `shares`:
    of each prompt, by its id, the share by which the first answer was preferred."""
    shares: list[tuple[str, float]] = []
    asked = unknown = read = 0
    most = min(most, len(pairs))
    verdict = judge_candidate([], alpha=alpha, most=most, bounds=bounds)
    while verdict.decision == "undecided" and asked < most:
        chosen = range(asked, min(asked + AT_ONCE, most))
        different = [at for at in chosen if not pairs.equal(at)]
        found = dict(zip(different, ask(pairs.rows(different)), strict=True))
        each = [(pairs.prompts[at].id[:16], found.get(at, 0.5)) for at in chosen]
        shares += [(name, share) for name, share in each if share is not None]
        asked, read = asked + len(chosen), read + 2 * len(different)
        unknown = asked - len(shares)
        verdict = judge_candidate([share for _, share in shares], alpha=alpha, most=most - unknown, bounds=bounds)
    return verdict, {"comparisons": asked, "unknown": unknown, "answers_read": read, "shares": shares}


def decided_by(work: Work, study: str) -> Wins:
    """Those whom the recipe lets decide (`loop.decided_by`)."""
    by = work.recipe.loop.decided_by
    if by == "judge":
        return judge_wins(work)
    if by == "verifier":
        return verifier_wins(work)
    return people_wins(work, study, simulated=isinstance(work.data, PlaygroundData) and by != "people")


def people_wins(work: Work, study: str, simulated: bool) -> Wins:
    def ask(pairs: Pairs) -> list[float | None]:
        items = open_comparisons(
            work, study, list(zip(pairs.first, pairs.second, strict=True)), simulated, source="gate"
        )
        found = outcomes_of(work.store, study, items)
        if waiting := sum(name in found and found[name] is None for name in items):
            raise WaitingForLabels(
                f"{waiting} comparisons of a candidate with what is served wait for people in study {study!r}; `bridle label` asks them, "
                "and the same command then goes on"
            )
        return [found.get(name) for name in items]

    return ask


def verifier_wins(work: Work) -> Wins:
    """Which answer its prompt's check gives more; of a prompt that cannot be checked nobody can say."""
    verifier = work.data.checkable(heldout_alone=True).verifier

    def ask(pairs: Pairs) -> list[float | None]:
        first, second = (verifier(pairs.prompts, answers) for answers in (pairs.first, pairs.second))
        return [
            None if a is None or b is None else float(outcomes([a], [b])[0]) for a, b in zip(first, second, strict=True)
        ]

    return ask


def judge_wins(work: Work) -> Wins:
    def ask(pairs: Pairs) -> list[float | None]:
        rows = zip(pairs.prompts, pairs.first, pairs.second, strict=True)
        asked = [Candidates(prompt, [first.stripped, second.stripped]) for prompt, first, second in rows]
        return [preferred_share(one, 0, 1) for one in judge_of(work).judge(asked)]

    return ask
