"""How right people are by topic, and by how long they have been at it."""

from dataclasses import dataclass

import numpy as np

from bridle.feedback.quality.consensus import Consensus
from bridle.feedback.quality.people import right_against, truth_by_others
from bridle.feedback.quality.votes import Floats, Ints, Votes
from bridle.maths.statistics import Proportion, mean_and_se, wilson_interval

PAUSE = 30 * 60.0  # seconds that end a sitting
EDGES = (1, 6, 11, 21, 41, 81, 161, 321)  # positions at which a group begins


@dataclass(frozen=True, slots=True)
class Condition:
    """How often votes under it are right: against gold, else against the consensus of the others."""

    name: str
    right: Proportion


def by_topic(votes: Votes, found: Consensus) -> list[Condition]:
    """Of each topic that items name, in the order of their names."""
    right_V = right_against(votes.verdict_V, truth_by_others(votes, found))
    topic_I = np.array(votes.topic_I, dtype=object)
    topic_V = topic_I[votes.item_V] if len(topic_I) else topic_I
    names = sorted({str(name) for name in topic_I if name})
    return conditions([(name, topic_V == name) for name in names], right_V, votes.item_V)


def by_position(votes: Votes, found: Consensus) -> list[Condition]:
    """Of each group of positions in a sitting."""
    right_V = right_against(votes.verdict_V, truth_by_others(votes, found))
    position_V = positions(votes)[votes.judgement_V]
    groups = []
    for low, high in zip(EDGES, [*EDGES[1:], 10**9], strict=True):
        name = f"{low} to {high - 1}" if high < 10**9 else f"{low} and on"
        groups.append((name, (position_V >= low) & (position_V < high)))
    return conditions(groups, right_V, votes.item_V)


def conditions(groups: list[tuple[str, np.ndarray]], right_V: Floats, item_V: Ints) -> list[Condition]:
    shares = [(name, share_over_items(right_V[chosen], item_V[chosen])) for name, chosen in groups]
    return [Condition(name, share) for name, share in shares if share is not None]


def share_over_items(right_V: Floats, item_V: Ints) -> Proportion | None:
    """The share right, with Wilson's interval on as many votes as its standard error by item is worth: an item that is hard is so for all.

    `proportion` would not let them be worth more than there are items, which is right where the votes of an item are all alike.
    """
    known = np.isfinite(right_V)
    if not known.any():
        return None
    right, item = right_V[known], item_V[known]
    # One right and one wrong vote are added for the standard error, as there.
    mean, error = mean_and_se([*right, 1.0, 0.0], [*item.tolist(), "right", "wrong"])
    worth = min(mean * (1 - mean) / error**2, float(len(right)))
    rate = float(right.mean())
    return Proportion(rate, *wilson_interval(rate * worth, worth), len(right))


def positions(votes: Votes) -> Ints:
    """The how manieth judgement [J] of its giver's sitting each is, from 1; 0 where nobody knows.

    A sitting ends with a pause of more than 30 minutes. What shares its time with another judgement of the same person was not given
    one by one: a simulation's, and what was imported.
    """
    known = np.flatnonzero(np.isfinite(votes.time_J))
    order = known[np.lexsort((votes.time_J[known], votes.person_J[known]))]
    person, time = votes.person_J[order], votes.time_J[order]
    same = (person[1:] == person[:-1]) & (time[1:] == time[:-1])
    alone = ~np.append(False, same) & ~np.append(same, False) if len(order) else np.zeros(0, dtype=bool)
    order, person, time = order[alone], person[alone], time[alone]
    begins = np.append(True, (person[1:] != person[:-1]) | (np.diff(time) > PAUSE))[: len(order)]
    first = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    found = np.zeros(len(votes.time_J), dtype=np.int64)
    found[order] = np.arange(len(order)) - first + 1
    return found
