"""Rankings to pairs: what a judgement says about each two answers. Pure functions; nothing here is stored.

A worked example: the ranking ((2,), (0, 1), (3,)) says 2 > 0, 2 > 1, 2 > 3, 0 > 3 and 1 > 3. The tie of 0 and 1 gives
no pair. Each of the five pairs weighs 1/5, so the judgement weighs as much as any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from bridle.core.errors import DataError
from bridle.core.records import Completion, Judgement, Pair, Prompt, Ranking, content_hash


@dataclass(frozen=True)
class Item:
    """What is to be compared: the answers to one prompt, `completions[slot]` in canonical slots."""

    id: str
    prompt: Prompt
    completions: tuple[Completion, ...]


def item_id(completions: Sequence[Completion], study: str) -> str:
    """The content hash that names the item of these answers, in this order of slots, in this study."""
    return content_hash([study, completions[0].prompt_id, [completion.id for completion in completions]])


def check_judgement(judgement: Judgement, slots: int) -> None:
    """Raise DataError unless the ranking covers each of the item's slots once and the display order permutes them."""
    whose = f"the judgement of {judgement.labeler!r} on item {judgement.item_id[:12]}"
    ranked = [slot for group in judgement.ranking for slot in group]
    if sorted(ranked) != list(range(slots)) or not all(judgement.ranking):
        raise DataError(
            f"{whose} ranks {judgement.ranking}, but each slot from 0 to {slots - 1} must stand in exactly one group"
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

    Ties give no pair, or with `ties` one of target ½; answers with the same text never do. Raises DataError if the
    judgement is of another item, or an answer of another prompt.
    """
    check_item(item, judgement)
    slots = [
        (better, worse, 1.0)
        for upper, lower in combinations(judgement.ranking, 2)
        for better in upper
        for worse in lower
    ]
    if ties:
        slots += [(a, b, 0.5) for group in judgement.ranking for a, b in combinations(group, 2)]
    compared = [(item.completions[a], item.completions[b], target) for a, b, target in slots]
    different = [(a, b, target) for a, b, target in compared if a.stripped != b.stripped]
    weight, strength = judgement.weight, judgement.strength if judgement.margin is None else judgement.margin
    return [
        Pair(item.prompt, a, b, weight / len(different), (judgement.id,), target, strength)
        for a, b, target in different
    ]


def ranking_of(item: Item, judgement: Judgement) -> Ranking:
    """The judgement whole: every answer with its place, the best first, those that tie in the order of their slots."""
    check_item(item, judgement)
    placed = [(item.completions[slot], rank) for rank, group in enumerate(judgement.ranking) for slot in sorted(group)]
    answers, ranks = zip(*placed, strict=True)
    return Ranking(item.prompt, answers, ranks, judgement.id, judgement.weight)


def check_item(item: Item, judgement: Judgement) -> None:
    """Raise DataError if the judgement is of another item, an answer is of another prompt, or the ranking does not cover the item."""
    if judgement.item_id != item.id:
        raise DataError(f"the judgement is of item {judgement.item_id[:12]}, but the item given is {item.id[:12]}")
    if any(completion.prompt_id != item.prompt.id for completion in item.completions):
        raise DataError(
            f"item {item.id[:12]} holds an answer to another prompt, but only answers to one can be compared"
        )
    check_judgement(judgement, len(item.completions))
