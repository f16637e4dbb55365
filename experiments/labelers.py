"""How well planted people are found, at 100, 300 and 1,000 items: python experiments/labelers.py [DRAWS]

Seven people judge every item, the answers' sides drawn by a coin for each: four that are right in .9, .8, .7 and .6, one that goes left in
.7 of the items and is right in the others, one that throws a coin, and one that is wrong in .7. A skill is the chance of the right answer.
"""

from __future__ import annotations

import sys

import numpy as np

from bridle.feedback.quality.consensus import consensus
from bridle.feedback.quality.reliability import skills_of
from bridle.feedback.quality.summary import Quality, quality_of
from bridle.feedback.quality.votes import Vote, Votes, votes_of

SKILLS = {"nine": 0.9, "eight": 0.8, "seven": 0.7, "six": 0.6, "left": 0.65, "coin": 0.5, "against": 0.3}
LEFT = 0.7  # of the items of "left"
SOUGHT = {"coin", "against"}


def planted(items: int, rng: np.random.Generator, ties: float = 0.0) -> Votes:
    """Everybody's votes on every item, `ties` of them replaced by a tie."""
    rows = []
    better_I = rng.random(items) < 0.5  # the first slot
    for name, skill in SKILLS.items():
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


def error_of_skill(votes: Votes) -> float:
    """The mean absolute error over the seven people."""
    skills = skills_of(votes, consensus(votes))
    return float(np.mean([abs(found - SKILLS[name]) for name, found in zip(votes.people, skills.skill_W, strict=True)]))


def named(quality: Quality) -> set[tuple[str, str]]:
    return {(one.labeler, one.what) for one in quality.remarks}


def main(draws: int) -> None:
    print("items  mean error  worst draw  within 95%  coin and against named  others named")
    for items in (100, 300, 1000):
        errors, within, both, others = [], [], 0, 0
        for draw in range(draws):
            votes = planted(items, np.random.default_rng([items, draw]))
            errors.append(error_of_skill(votes))
            quality = quality_of(votes)
            within += [
                one.skill.low is not None and one.skill.low <= SKILLS[one.labeler] <= (one.skill.high or 0)
                for one in quality.people
            ]
            found = {name for name, what in named(quality) if what.startswith("answers")}
            both += found >= SOUGHT
            others += len(found - SOUGHT)
        mean, worst = np.mean(errors), max(errors)
        print(f"{items:5}  {mean:10.4f}  {worst:10.4f}  {np.mean(within):10.3f}  {both:10} of {draws}  {others:14}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
