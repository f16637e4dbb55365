"""Which models' answers are compared, and with what probability: most pairs are two answers of the user's own model, some are of theirs
and another, and a small share is drawn uniformly, for win rates without bias.

A user's own model is the candidate for those who meet it, else what is served. A candidate is compared with what is served, and that with
what was served before it. The propensity of a pair is its probability over all users and ways of drawing it, given that a turn is a
comparison at all, which is as probable for every pair: so votes on rarely drawn pairs can be weighed for those that were not cast.
"""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from bridle.feedback.serving.answers import Arm
from bridle.recipe.services import ServeSection

Pair = tuple[Arm, Arm]  # in the order of the alphabet: sides are drawn apart


@dataclass(frozen=True)
class ChosenArms:
    """The models of one or two answers, in the order of display, and how they were drawn."""

    arms: tuple[Arm, ...]
    propensity: float
    acquisition: Literal["random", "informative"] = "informative"


def choose_one(own: Arm, shares: Mapping[Arm, float]) -> ChosenArms:
    """The user's own model. `shares`: of the users, by the model that is theirs."""
    return ChosenArms((own,), shares[own])


def choose_pair(own: Arm, shares: Mapping[Arm, float], settings: ServeSection, rng: random.Random) -> ChosenArms:
    """Draw a pair for a user, and its sides."""
    met = met_by(own, shares)
    at_random = rng.random() < settings.compare_random_share
    drawn = uniform_pairs(met) if at_random else informative_pairs(met, settings.compare_other_share)
    [pair] = rng.choices(list(drawn), list(drawn.values()))
    arms = pair if rng.random() < 0.5 else pair[::-1]
    return ChosenArms(arms, pair_propensities(shares, settings)[pair], "random" if at_random else "informative")


def met_by(own: Arm, shares: Mapping[Arm, float]) -> Sequence[Arm]:
    """The models whose answers a user may get, their own first: who does not meet a candidate never does."""
    other: Arm = "current" if own == "candidate" else "previous"
    return (own, other) if other in shares else (own,)


def uniform_pairs(met: Sequence[Arm]) -> dict[Pair, float]:
    """Each side's model drawn uniformly."""
    found = defaultdict[Pair, float](float)
    for one, other in product(met, repeat=2):
        found[ordered(one, other)] += 1 / len(met) ** 2
    return dict(found)


def informative_pairs(met: Sequence[Arm], other_share: float) -> dict[Pair, float]:
    """Two answers of the user's own model teach the policy that is trained next; theirs and another's tell which of the two is better."""
    own, *others = met
    if not others:
        return {(own, own): 1.0}
    return {(own, own): 1 - other_share} | {ordered(own, other): other_share / len(others) for other in others}


def pair_propensities(shares: Mapping[Arm, float], settings: ServeSection) -> dict[Pair, float]:
    """The probability of each pair, over users and over both ways of drawing it."""
    found = defaultdict[Pair, float](float)
    for own, share in shares.items():
        met, at_random = met_by(own, shares), settings.compare_random_share
        ways = (uniform_pairs(met), at_random), (informative_pairs(met, settings.compare_other_share), 1 - at_random)
        for pairs, weight in ways if share else ():
            for pair, probability in pairs.items():
                found[pair] += share * weight * probability
    return dict(found)


def ordered(one: Arm, other: Arm) -> Pair:
    return (one, other) if one <= other else (other, one)
