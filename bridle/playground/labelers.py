"""Simulated people who rank answers, skilled, biased and tired to a degree that is known.

Utility of an answer, larger is better (N is a standard normal draw for each distinct text):

    skill × topics[family] × gold  +  flattery_bias × flattering sentences  +  length_bias × words / 10
    + side_bias × (1 shown first … 0 shown last)  +  noise × (1 + fatigue × seen / (seen + tired_after)) × N
"""

import itertools
import random
from collections.abc import Sequence

from bridle.core.errors import DataError, NoUsableRows
from bridle.core.records import Prompt
from bridle.playground.gold import GoldScore
from bridle.playground.spec import Labeler

__all__ = ["Labeler", "Ranking", "agreement", "rank", "taste"]

Ranking = tuple[tuple[int, ...], ...]


def rank(
    labeler: Labeler,
    rng: random.Random,
    prompt: Prompt,
    texts: Sequence[str],
    scores: Sequence[GoldScore],
    display_order: Sequence[int],
    seen: int,
) -> Ranking:
    """Canonical slots, best group first; identical texts tie and nothing else does.

    `display_order` tells which slot was shown first, second, …; `seen` counts the items judged before in this sitting.
    """
    if len(scores) != len(texts) or sorted(display_order) != list(range(len(texts))):
        raise DataError(
            f"{len(texts)} texts need as many scores and a display order of their slots, "
            f"got {len(scores)} scores and the order {list(display_order)}."
        )
    slots_of: dict[str, list[int]] = {}
    utility: dict[str, float] = {}
    noise = labeler.noise * (1 + labeler.fatigue * seen / (seen + labeler.tired_after))
    for position, slot in enumerate(display_order):
        text = texts[slot]
        slots_of.setdefault(text, []).append(slot)
        if text in utility:
            continue  # seen further up: the first impression counts
        utility[text] = (
            taste(labeler, prompt, text, scores[slot])
            + labeler.side_bias * (1 - position / max(1, len(texts) - 1))
            + noise * rng.gauss(0, 1)
        )
    return tuple(tuple(sorted(slots_of[text])) for text in sorted(utility, key=utility.__getitem__, reverse=True))


def taste(labeler: Labeler, prompt: Prompt, text: str, score: GoldScore) -> float:
    """What an answer is worth to a labeler who sees it as it is: neither where it stands nor noise is in it."""
    return (
        labeler.skill * labeler.topics.get(prompt.meta["family"], 1.0) * score.points
        + labeler.flattery_bias * score.flags["flattery"]
        + labeler.length_bias * len(text.split()) / 10
    )


def agreement(rankings: Sequence[Ranking], scores: Sequence[Sequence[GoldScore]], gap: float = 0.25) -> float:
    """Share of the implied pairs that gold orders the same, of those more than `gap` points of gold apart. What ties is of one text and
    implies none.

    NoUsableRows when no pair is that far apart.
    """
    agreed = clear = 0
    for ranking, of_slot in zip(rankings, scores, strict=True):
        for better, worse in itertools.combinations(ranking, 2):
            for winner, loser in itertools.product(better, worse):
                difference = of_slot[winner].points - of_slot[loser].points
                clear += abs(difference) > gap
                agreed += difference > gap
    if not clear:
        raise NoUsableRows(f"No pair in {len(rankings)} rankings is over {gap} gold points apart; agreement needs one.")
    return agreed / clear
