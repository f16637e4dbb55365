"""Rankings to pairs: what judgements say about each two answers. Pure functions; nothing here is stored.

A worked example: the ranking ((2,), (0, 1), (3,)) says 2 > 0, 2 > 1, 2 > 3, 0 > 3 and 1 > 3. The tie of 0 and 1 gives
no pair. Each of the five pairs weighs 1/5, so the judgement weighs as much as any other. Where three people say 2 > 0 and one says
0 > 2, with a pair each, that is one pair of target ¾ and weight 4: -log σ(g) for each of three and -log σ(-g) for one is the same loss.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from bridle.core.errors import DataError
from bridle.core.records import (
    UNDECIDED,
    Completion,
    Judgement,
    LabelerKind,
    Pair,
    Prompt,
    Ranking,
    content_hash,
)


@dataclass(frozen=True)
class Item:
    """What is to be compared: the answers to one prompt, `completions[slot]` in canonical slots. `kind` is what people are asked of it,
    where the store says so: pairwise, ranking, rating (each answer by itself) or demonstration (to write one; there are none yet)."""

    id: str
    prompt: Prompt
    completions: tuple[Completion, ...]
    kind: str = field(default="", compare=False)


NAMED_BY_KIND = ("rating", "demonstration")  # beside a comparison of the same answers


def item_id(completions: Sequence[Completion], study: str) -> str:
    """The content hash that names the item of these answers, in this order of slots, in this study."""
    return content_hash([study, completions[0].prompt_id, [completion.id for completion in completions]])


def check_judgement(judgement: Judgement, slots: int) -> None:
    """Raise DataError unless the ranking covers each slot once (of a single answer, or none yet, there need be none),
    the display order permutes them, and its numbers are finite."""
    whose = f"the judgement of {judgement.labeler!r} on item {judgement.item_id[:12]}"
    ranked = [slot for group in judgement.ranking for slot in group]
    if judgement.outcome in UNDECIDED:
        if ranked:
            raise DataError(f"{whose} says {judgement.outcome!r} and ranks {judgement.ranking}; give one of the two")
        ranked = list(range(slots))
    elif slots < 2 and not ranked:
        pass  # one answer was rated, or written: there is nothing to compare
    elif sorted(ranked) != list(range(slots)) or not all(judgement.ranking):
        raise DataError(
            f"{whose} ranks {judgement.ranking}, but each slot from 0 to {slots - 1} must stand in exactly one group"
        )
    if judgement.strength is not None and type(judgement.strength) is not int:
        raise DataError(f"{whose} has the strength {judgement.strength!r}, but that must be 0, 1, 2, 3 or None")
    measured = (judgement.margin, judgement.weight, judgement.confidence, judgement.seconds, judgement.wall_seconds)
    if not all(number is None or math.isfinite(number) for number in measured):
        raise DataError(
            f"{whose} has a margin, weight, confidence or time that is not finite: {measured}; give a number, or None"
        )
    order = judgement.display_order
    if order is not None and sorted(order) != list(range(slots)):
        raise DataError(
            f"{whose} was displayed in the order {order}, "
            f"but that must be a permutation of the slots 0 to {slots - 1}, or None where it is not known"
        )


def pairs_of(item: Item, judgement: Judgement, ties: bool = False) -> list[Pair]:
    """The pairs that one judgement gives, best first; each weighs the judgement's weight / their number, and is won by its margin or,
    where none was given, its strength.

    Ties give no pair, or with `ties` one of target ½ and no strength; answers with the same text never do. The confidence of a judge that
    is a model is its probability, and the target. Raises DataError if the judgement is of another item, or an answer of another prompt.
    """
    return [vote for _, vote in votes_by_slot(item, judgement, ties)]


def disjoint_pairs(item: Item, judgement: Judgement) -> list[Pair]:
    """Those of its pairs that share no answer and were there before anybody judged, the slots 0 and 1, 2 and 3 and so on: each says by
    itself what it says, where all six of four answers say the same thing several times, and the best and the worst differ by selection."""
    return [vote for (one, other), vote in votes_by_slot(item, judgement, ties=False) if one // 2 == other // 2]


def counted_pairs(judged: Iterable[tuple[Item, Judgement]], ties: bool = False) -> list[Pair]:
    """The pairs of many judgements that weigh anything, in the order in which they first come. What several people said of the same two
    answers of an item is one pair, in which their votes are counted (`count_votes`)."""
    votes: dict[tuple[str, int, int], list[Pair]] = {}
    for item, judgement in judged:
        for (one, other), vote in votes_by_slot(item, judgement, ties) if judgement.weight > 0 else ():
            votes.setdefault((item.id, min(one, other), max(one, other)), []).append(vote)
    return [count_votes(of_both) for of_both in votes.values()]


def count_votes(votes: Sequence[Pair]) -> Pair:
    """Votes on the same two answers as one pair: `chosen` is the side that the votes' weight prefers, `target` its share, `weight` that
    of all. `strength` is how much better `chosen` is on the mean: a vote for the other side counts as less than nothing, a tie as
    nothing, and one that states no strength, where others do, as 1.
    """
    first, weight = votes[0], sum(vote.weight for vote in votes)
    if len(votes) == 1:
        return first
    share, strength = 0.0, 0.0
    for vote in votes:
        own = vote.target if vote.chosen == first.chosen else 1 - vote.target
        share += vote.weight * own  # divided once, so that votes that agree are a share of exactly 1
        strength += vote.weight * (2 * own - 1) * (1.0 if vote.strength is None else vote.strength) / weight
    share /= weight
    stated = any(vote.strength is not None for vote in votes)
    ids = tuple(name for vote in votes for name in vote.judgement_ids)
    pair = replace(first, weight=weight, judgement_ids=ids, target=share, strength=strength if stated else None)
    if share >= 0.5:
        return pair
    turned = replace(pair, chosen=pair.rejected, rejected=pair.chosen, target=1 - share)
    return replace(turned, strength=-strength if stated else None)


def votes_by_slot(item: Item, judgement: Judgement, ties: bool) -> list[tuple[tuple[int, int], Pair]]:
    """The pairs of one judgement, each with the slots of its two answers."""
    check_item(item, judgement)
    slots = [
        (better, worse, 1.0)
        for upper, lower in combinations(judgement.ranking, 2)
        for better in upper
        for worse in lower
    ]
    if ties:
        slots += [(a, b, 0.5) for group in judgement.ranking for a, b in combinations(group, 2)]
    texts = [completion.stripped for completion in item.completions]
    if judgement.labeler_kind is LabelerKind.AI and judgement.confidence is not None:  # its probability: a soft label
        slots = [(a, b, min(target, max(0.5, judgement.confidence))) for a, b, target in slots]
    different = [(a, b, target) for a, b, target in slots if texts[a] != texts[b]]
    strength = judgement.strength if judgement.margin is None else judgement.margin
    named = (judgement.weight / max(1, len(different)), (judgement.id,))
    answers = item.completions
    return [
        ((a, b), Pair(item.prompt, answers[a], answers[b], *named, target, strength if target == 1 else None, item.id))
        for a, b, target in different
    ]


def ranking_of(item: Item, judgement: Judgement) -> Ranking:
    """The judgement whole: every answer with its place, the best first, those that tie in the order of their slots."""
    check_item(item, judgement)
    placed = [(item.completions[slot], rank) for rank, group in enumerate(judgement.ranking) for slot in sorted(group)]
    answers, ranks = zip(*placed, strict=True)
    return Ranking(item.prompt, answers, ranks, judgement.id, judgement.weight, item.id)


def check_item(item: Item, judgement: Judgement) -> None:
    """Raise DataError if the judgement is of another item, an answer is of another prompt, or the ranking does not cover the item."""
    if judgement.item_id != item.id:
        raise DataError(f"the judgement is of item {judgement.item_id[:12]}, but the item given is {item.id[:12]}")
    if any(completion.prompt_id != item.prompt.id for completion in item.completions):
        raise DataError(
            f"item {item.id[:12]} holds an answer to another prompt, but only answers to one can be compared"
        )
    check_judgement(judgement, len(item.completions))
