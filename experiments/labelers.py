"""E10: how well planted people are found, at 100, 300 and 1,000 items.

Seven people judge every item, the answers' sides drawn by a coin for each: four that are right in .9, .8, .7 and .6, one that goes left in
.7 of the items and is right in the others, one that throws a coin, and one that is wrong in .7. A skill is the chance of the right answer.
The first four are measured alone too, and the truth by everybody's consensus beside that of the majority.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bridle.feedback.quality.consensus import consensus
from bridle.feedback.quality.reliability import skills_of
from bridle.feedback.quality.summary import Quality, quality_of
from bridle.feedback.quality.votes import FIRST, Vote, Votes, votes_of
from experiments.harness import Claim, Experiment, Row

SKILLS = {"nine": 0.9, "eight": 0.8, "seven": 0.7, "six": 0.6, "left": 0.65, "coin": 0.5, "against": 0.3}
LEFT = 0.7  # of the items of "left"
SOUGHT = {"coin", "against"}
HONEST = {name: SKILLS[name] for name in ("nine", "eight", "seven", "six")}
ITEMS = (100, 300, 1000)


def planted(items: int, rng: np.random.Generator, ties: float = 0.0, people: Mapping[str, float] = SKILLS) -> Votes:
    """Everybody's votes on every item, `ties` of them replaced by a tie."""
    rows = []
    better_I = truth(items, rng)
    for name, skill in people.items():
        first_left_I = rng.random(items) < 0.5
        first_I = np.where(rng.random(items) < skill, better_I, ~better_I)
        if name == "left":
            first_I = np.where(rng.random(items) < LEFT, first_left_I, better_I)
        tied_I = rng.random(items) < ties
        for item in range(items):
            ranking = ((0, 1),) if tied_I[item] else ((0,), (1,)) if first_I[item] else ((1,), (0,))
            order = (0, 1) if first_left_I[item] else (1, 0)
            rows.append(Vote(f"item {item}", name, ranking, order))
    return votes_of(rows)


def truth(items: int, rng: np.random.Generator) -> np.ndarray:
    """Whether the first slot is the better one: the first numbers that are drawn."""
    better_I: np.ndarray = rng.random(items) < 0.5
    return better_I


def error_of_skill(votes: Votes) -> float:
    """The mean absolute error over the people."""
    skills = skills_of(votes, consensus(votes))
    return float(np.mean([abs(found - SKILLS[name]) for name, found in zip(votes.people, skills.skill_W, strict=True)]))


def named(quality: Quality) -> set[tuple[str, str]]:
    return {(one.labeler, one.what) for one in quality.remarks}


def right_by_consensus_and_majority(votes: Votes, better_I: np.ndarray) -> tuple[float, float]:
    """Shares of items; a majority of seven is never a tie."""
    first_U = np.bincount(votes.unit_V, votes.verdict_V == FIRST) > len(votes.people) / 2
    better_U = better_I[votes.item_U]
    return float(((consensus(votes).verdict_U == FIRST) == better_U).mean()), float((first_U == better_U).mean())


def measure(seed: int) -> Row:
    row: dict[str, float] = {}
    for items in ITEMS:
        votes = planted(items, np.random.default_rng([items, seed]))
        quality = quality_of(votes)
        found = {name for name, what in named(quality) if what.startswith("answers")}
        within = [
            one.skill.low is not None and one.skill.low <= SKILLS[one.labeler] <= (one.skill.high or 0)
            for one in quality.people
        ]
        weighed, majority = right_by_consensus_and_majority(votes, truth(items, np.random.default_rng([items, seed])))
        row |= {
            f"error {items}": error_of_skill(votes),
            f"error of four {items}": error_of_skill(
                planted(items, np.random.default_rng([items, seed]), people=HONEST)
            ),
            f"within {items}": float(np.mean(within)),
            f"both named {items}": float(found >= SOUGHT),
            f"others named {items}": len(found - SOUGHT),
            f"consensus {items}": weighed,
            f"over majority {items}": weighed - majority,
        }
    return row


LIMITS = dict(zip(ITEMS, (0.06, 0.04, 0.022), strict=True))
EXPERIMENT = Experiment(
    name="E10",
    title="each person's skill is found without knowing the truth",
    setting="Seven planted people judge every item, of skills .9, .8, .7, .6, .65 (who mostly goes left), .5 (a coin) and .3 "
    "(against); and the first four alone. 30 draws.",
    measure=measure,
    seeds=range(30),
    claims=[
        *(Claim(f"error of four {n}", f"mean error of a skill, four people, {n} items", "mean", at_most=most)
          for n, most in LIMITS.items()),
        *(Claim(f"error {n}", f"the same of seven, {n} items", "mean", at_most=most) for n, most in LIMITS.items()),
        *(Claim(f"both named {n}", f"the coin and the one against are both named, {n} items", "every", at_least=1, yes_no=True)
          for n in (300, 1000)),
        *(Claim(f"over majority {n}", f"items right by consensus less by majority, {n} items", at_least=0) for n in ITEMS),
        *(Claim(f"within {n}", f"95% intervals of a skill that hold it, {n} items") for n in ITEMS),
    ],
)  # fmt: skip
