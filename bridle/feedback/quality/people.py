"""A row for each person, and whom to look at, with the evidence in words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bridle.feedback.quality.agreement import Estimate
from bridle.feedback.quality.consensus import Consensus
from bridle.feedback.quality.skill import Skills, Z
from bridle.feedback.quality.votes import UNKNOWN, Floats, Ints, Votes
from bridle.maths.statistics import Proportion, proportion

COIN_ERRORS, COIN_HIGH = 3.0, 0.7  # so many standard errors rule a coin out; who may be as good as this is not named
ONE_SIDE, SPEED = 0.75, 1 / 3
FEWEST = 20  # judgements, before a side or a speed is named


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds a judgement: the median and both quartiles of the `n` whose seconds are known."""

    median: float
    lower: float
    upper: float
    n: int


@dataclass(frozen=True, slots=True)
class Person:
    """What is measured of one person. Shares count votes, a ranking's several ones as one group; `against` the others' consensus and
    `gold` count a tie against a winner one half."""

    labeler: str
    judgements: int
    ties: Proportion | None
    left: Proportion | None
    speed: Speed | None
    gold: Proportion | None
    against: Proportion | None
    skill: Estimate
    side: Estimate  # the chance of left where neither side is better: left and right answers are right as often
    compared: float  # votes that speak of skill
    weight: float
    cannot_judge: int
    skip: int


@dataclass(frozen=True, slots=True)
class Remark:
    """Why somebody should look at a person's work."""

    labeler: str
    what: str
    evidence: str


def right_against(verdict_V: Ints, truth_V: Ints) -> Floats:
    """1 where a vote says what is true, 0 where the reverse, one half where one of them is a tie; nan where the truth is UNKNOWN."""
    return np.where(truth_V == UNKNOWN, np.nan, 1 - np.abs(verdict_V - truth_V) / 2)


def truth_by_others(votes: Votes, found: Consensus) -> Ints:
    """Of each vote the verdict that gold gives, else the one that all other votes make the most probable; UNKNOWN where there are none,
    or two are as probable. Where others are few they err too, so accuracy against them is less than it is."""
    highest = np.sort(found.others_VZ, axis=1)
    sure_V = found.shared_V & (highest[:, 2] - highest[:, 1] > 1e-9)
    return np.where(sure_V, found.others_VZ.argmax(1), UNKNOWN)


def share_of(values_V: Floats, groups_V: Ints) -> Proportion | None:
    """The share, of what is not nan, with Wilson's interval by group; None where nothing is."""
    known_V = np.isfinite(values_V)
    return proportion(values_V[known_V], groups_V[known_V].tolist()) if known_V.any() else None


def speed_of(seconds_J: Floats) -> Speed | None:
    known = seconds_J[np.isfinite(seconds_J)]
    if not len(known):
        return None
    lower, median, upper = np.quantile(known, [0.25, 0.5, 0.75])
    return Speed(float(median), float(lower), float(upper), len(known))


def people_of(votes: Votes, found: Consensus, skills: Skills, weights_W: Floats) -> list[Person]:
    """In the order of their names."""
    person_V, size = votes.person_V, len(votes.people)
    votes_of_W, judgements_of_W = rows_of_each(person_V, size), rows_of_each(votes.person_J, size)
    ties_V, left_V = (votes.verdict_V == 1).astype(np.float64), votes.left_V
    gold_V = right_against(votes.verdict_V, votes.gold_U[votes.unit_V])
    others_V = right_against(votes.verdict_V, truth_by_others(votes, found))
    rows = []
    for w in sorted(range(size), key=lambda number: votes.people[number]):
        own, name = votes_of_W[w], votes.people[w]
        shares = [share_of(of_V[own], votes.judgement_V[own]) for of_V in (ties_V, left_V, gold_V, others_V)]
        undecided = votes.undecided.get(name, {})
        rows.append(
            Person(
                labeler=name,
                judgements=len(judgements_of_W[w]),
                ties=shares[0],
                left=shares[1],
                speed=speed_of(votes.seconds_J[judgements_of_W[w]]),
                gold=shares[2],
                against=shares[3],
                skill=skills.skill[w],
                side=skills.left[w],
                compared=float(skills.votes_W[w]),
                weight=float(weights_W[w]),
                cannot_judge=undecided.get("cannot_judge", 0),
                skip=undecided.get("skip", 0),
            )
        )
    return rows


def rows_of_each(number_N: Ints, size: int) -> list[Ints]:
    """Where each number from 0 to size − 1 stands."""
    order = np.argsort(number_N, kind="stable")
    return np.split(order, np.cumsum(np.bincount(number_N, minlength=size))[:-1])


def remarks(people: Sequence[Person]) -> list[Remark]:
    """The people to look at. Nobody is excluded by it: that takes a row of its own."""
    medians = [one.speed.median for one in people if one.speed is not None]
    found = []
    for one in people:
        told_by = [about_skill(one), about_side(one), about_speed(one, medians)]
        found += [Remark(one.labeler, *remark) for remark in told_by if remark is not None]
    return found


def about_skill(one: Person) -> tuple[str, str] | None:
    """Like a coin where one half is within three standard errors and no high skill is in the interval; against the others below that."""
    share, low, high = one.skill.value, one.skill.low, one.skill.high
    if share is None or low is None or high is None:
        return None
    far = COIN_ERRORS * (high - low) / 2 / Z
    seen = f"right in {share:.2f} ({low:.2f} to {high:.2f}) of {one.compared:.0f} comparisons that others judged too or that have gold"
    if share + far < 0.5:
        return "answers against the others", f"{seen}; a coin is right in half of them"
    if share - far < 0.5 and high < COIN_HIGH:
        return "answers like a coin", f"{seen}; a coin is not ruled out"
    return None


def about_side(one: Person) -> tuple[str, str] | None:
    if one.left is None or one.left.n < FEWEST:
        return None
    for side, place, share, low in (
        ("left", "first", one.left.rate, one.left.low),
        ("right", "last", 1 - one.left.rate, 1 - one.left.high),
    ):
        if low > ONE_SIDE:
            words = f"chose what was shown {place} in {share:.2f} of {one.left.n} comparisons without a tie"
            return f"nearly always {side}", f"{words}; where a coin draws the sides, half is expected"
    return None


def about_speed(one: Person, medians: Sequence[float]) -> tuple[str, str] | None:
    if one.speed is None or one.speed.n < FEWEST or len(medians) < 2:
        return None
    usual = float(np.median(medians))
    if one.speed.median >= SPEED * usual:
        return None
    words = f"takes {one.speed.median:.1f} s for a judgement, by {one.speed.n} of them"
    return "much faster than the others", f"{words}; the median of all people's medians is {usual:.1f} s"
