"""How groups of people judge, by what they said of themselves: never of fewer than five people, nor of so few by subtraction.

A group is all who judged in a study and chose one value of their profile. What is published besides, of everybody and of other groups, can
be subtracted from it: so of any two groups, everybody being one, what the one has and the other lacks is nobody, or five people and more;
and so are those whom no published group of a trait holds. The smallest groups give way. Not covered: who compares the same page before
and after somebody changed a profile.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bridle.feedback.people.accounts import accounts
from bridle.feedback.people.profiles import TRAITS
from bridle.feedback.quality.agreement import Estimate, agreement_of
from bridle.feedback.quality.people import share_of, speed_of
from bridle.feedback.quality.votes import TIE, Floats, Ints, Votes, read_votes
from bridle.feedback.store.store import Store

FEWEST_PEOPLE = 5
NOTHING = Estimate(None, why=f"fewer than {FEWEST_PEOPLE} of them are behind it")


@dataclass(frozen=True, slots=True)
class GroupQuality:
    """`measures` by name: "raw", "nominal", "ordinal" and "interval", agreement within the group; "others", how often somebody outside says
    the same of the same two answers; "ties"; "left"; "seconds" of a judgement, the median and both quartiles. They have two digits, and
    `people` is the next lower multiple of five: exact ones could be put together from the rows of single people."""

    trait: str
    value: str
    people: int
    measures: Mapping[str, Estimate]


def group_quality(store: Store, study: str | None, votes: Votes | None = None) -> list[GroupQuality]:
    """The groups that may be published, by trait and value. `votes`: those of the study, where they are read. DataError where nobody
    judged."""
    votes = read_votes(store, study) if votes is None else votes
    groups: dict[tuple[str, str], set[str]] = {}
    for account in accounts(store):
        for trait, values in account.profile.items():
            for value in values if account.handle in votes.people else ():
                groups.setdefault((trait, value), set()).add(account.handle)
    published = publishable(groups, set(votes.people))
    order = [(trait, value) for trait, values in TRAITS.items() for value in values]
    return [measured_group(votes, *key, published[key]) for key in order if key in published]


def publishable(groups: Mapping[tuple[str, str], set[str]], everybody: set[str]) -> dict[tuple[str, str], set[str]]:
    """The groups, by trait and value, that together tell nothing of fewer than five people."""
    published: dict[tuple[str, str], set[str]] = {}
    for key, group in sorted(groups.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        apart = [people for other in published.values() for people in (group - other, other - group)]
        if len(group) >= FEWEST_PEOPLE <= len(everybody - group) and not any(map(too_few, apart)):
            published[key] = group
    for trait in {key[0] for key in published}:
        while of_trait := [key for key in published if key[0] == trait]:
            if not too_few(everybody.difference(*(published[key] for key in of_trait))):
                break
            del published[of_trait[-1]]  # the smallest
    return published


def too_few(people: set[str]) -> bool:
    return 0 < len(people) < FEWEST_PEOPLE


def measured_group(votes: Votes, trait: str, value: str, group: set[str]) -> GroupQuality:
    inside_J = np.isin(votes.person_J, [number for number, name in enumerate(votes.people) if name in group])
    own, rest = only(votes, inside_J), only(votes, ~inside_J)
    several_V = np.bincount(own.unit_V, minlength=len(votes.units))[own.unit_V] > 1
    speed = speed_of(own.seconds_J) if enough(own.person_J[np.isfinite(own.seconds_J)]) else None
    measures = {
        **{name: found if enough(own.person_V[several_V]) else NOTHING for name, found in agreement_of(own).items()},
        "others": share_of_enough(own, same_as(own, rest)),
        "ties": share_of_enough(own, (own.verdict_V == TIE).astype(np.float64)),
        "left": share_of_enough(own, own.left_V),
        "seconds": Estimate(speed.median, speed.lower, speed.upper) if speed else NOTHING,
    }
    fewer = len(group) // FEWEST_PEOPLE * FEWEST_PEOPLE
    return GroupQuality(trait, value, fewer, {name: two_digits(found) for name, found in measures.items()})


def only(votes: Votes, kept_J: NDArray[np.bool_]) -> Votes:
    """The votes of these judgements alone; units, items and people keep their numbers."""
    kept_V = kept_J[votes.judgement_V]
    return replace(
        votes,
        item_J=votes.item_J[kept_J],
        person_J=votes.person_J[kept_J],
        seconds_J=votes.seconds_J[kept_J],
        time_J=votes.time_J[kept_J],
        judgement_V=(np.cumsum(kept_J) - 1)[votes.judgement_V[kept_V]],
        unit_V=votes.unit_V[kept_V],
        verdict_V=votes.verdict_V[kept_V],
        first_left_V=votes.first_left_V[kept_V],
        weight_V=votes.weight_V[kept_V],
    )


def same_as(own: Votes, rest: Votes) -> Floats:
    """Of each vote the share of the rest's votes on its unit that say the same; nan where the rest has none."""
    counts_UC = np.zeros((len(own.units), 3))
    np.add.at(counts_UC, (rest.unit_V, rest.verdict_V), 1)
    of_unit_V = counts_UC.sum(1)[own.unit_V]
    return np.where(of_unit_V > 0, counts_UC[own.unit_V, own.verdict_V] / np.maximum(of_unit_V, 1), np.nan)


def share_of_enough(own: Votes, values_V: Floats) -> Estimate:
    known_V = np.isfinite(values_V)
    share = share_of(values_V, own.item_V) if enough(own.person_V[known_V]) else None
    return Estimate(share.rate, share.low, share.high) if share else NOTHING


def enough(people_N: Ints) -> bool:
    return len(np.unique(people_N)) >= FEWEST_PEOPLE


def two_digits(found: Estimate) -> Estimate:
    value, low, high = (number and round(number, 2) for number in (found.value, found.low, found.high))
    return Estimate(value, low, high, found.why)
