import math
import random
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bridle.core.errors import DataError
from bridle.core.records import Completion, Judgement, LabelerKind, Pair, Prompt
from bridle.feedback.rankings import Item, check_judgement, counted_pairs, item_id, pairs_of, ranking_of
from bridle.maths.losses import bradley_terry

PROMPT = Prompt.from_text("Question?")


def an_item(texts: list[str]) -> Item:
    answers = tuple(Completion(PROMPT.id, text, token_ids=(slot,)) for slot, text in enumerate(texts))
    return Item(item_id(answers, "study"), PROMPT, answers)


def a_judgement(item: Item, *groups: tuple[int, ...], order: tuple[int, ...] | None = None) -> Judgement:
    return Judgement(item.id, "ann", LabelerKind.PERSON, groups, order)


def test_the_worked_example() -> None:
    item = an_item(list("abcd"))
    judgement = a_judgement(item, (2,), (0, 1), (3,))
    pairs = pairs_of(item, judgement)
    assert [(p.chosen.text, p.rejected.text) for p in pairs] == [
        ("c", "a"), ("c", "b"), ("c", "d"), ("a", "d"), ("b", "d"),
    ]  # fmt: skip
    assert {p.weight for p in pairs} == {1 / 5}
    assert {p.judgement_ids for p in pairs} == {(judgement.id,)}
    assert {p.group for p in pairs} == {PROMPT.id}


def test_a_tie_is_a_pair_without_a_better_side_where_that_is_asked_for() -> None:
    item = an_item(list("abcb"))
    pairs = pairs_of(item, a_judgement(item, (2,), (0, 1, 3)), ties=True)
    assert [(p.chosen.text, p.rejected.text, p.target) for p in pairs] == [
        ("c", "a", 1.0), ("c", "b", 1.0), ("c", "b", 1.0), ("a", "b", 0.5), ("a", "b", 0.5),
    ]  # fmt: skip
    assert {p.weight for p in pairs} == {1 / 5}, "two answers with the same text are no tie"
    assert not pairs_of(item, a_judgement(item, (0, 1, 2, 3))) and pairs_of(item, a_judgement(item, (0, 1, 2, 3)), True)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=6), st.lists(st.sampled_from("xyz"), min_size=6, max_size=6))
def test_pairs_follow_the_ranks(ranks: list[int], letters: list[str]) -> None:
    item = an_item(letters[: len(ranks)])
    groups = [tuple(slot for slot, rank in enumerate(ranks) if rank == level) for level in range(4)]
    pairs = pairs_of(item, a_judgement(item, *[group for group in groups if group]))
    found = {(p.chosen.token_ids[0], p.rejected.token_ids[0]) for p in pairs}
    expected = set()
    for one, two in combinations(range(len(ranks)), 2):
        if ranks[one] != ranks[two] and letters[one] != letters[two]:
            expected.add((one, two) if ranks[one] < ranks[two] else (two, one))
    assert found == expected and len(pairs) == len(expected)
    assert not pairs or sum(pair.weight for pair in pairs) == pytest.approx(1)


def test_the_display_order_changes_no_pair() -> None:
    item = an_item(list("abc"))
    shown = [pairs_of(item, a_judgement(item, (1,), (0, 2), order=order)) for order in [(0, 1, 2), (2, 1, 0)]]
    assert [(p.chosen, p.rejected) for p in shown[0]] == [(p.chosen, p.rejected) for p in shown[1]]


@pytest.mark.parametrize("groups", [(), ((0,),), ((0, 1), (1,)), ((0,), (), (1,)), ((0,), (1,), (2,)), ((0,), (-1,))])
def test_a_ranking_covers_each_slot_once(groups: tuple[tuple[int, ...], ...]) -> None:
    item = an_item(list("ab"))
    with pytest.raises(DataError, match="exactly one group"):
        check_judgement(a_judgement(item, *groups), 2)


@pytest.mark.parametrize("order", [(), (0,), (0, 0), (1, 2), (0, 1, 2)])
def test_a_display_order_is_a_permutation(order: tuple[int, ...]) -> None:
    item = an_item(list("ab"))
    with pytest.raises(DataError, match="permutation"):
        check_judgement(a_judgement(item, (0,), (1,), order=order), 2)


@pytest.mark.parametrize(
    "said", [{"strength": 2.5}, {"strength": True}, {"margin": math.inf}, {"weight": math.nan}, {"seconds": -math.inf}]
)
def test_numbers_that_no_database_keeps_are_refused(said: dict[str, Any]) -> None:
    item = an_item(["a", "b"])
    with pytest.raises(DataError, match="strength|not finite"):
        check_judgement(replace(a_judgement(item, (0,), (1,)), **said), 2)


def test_never_across_prompts_nor_items() -> None:
    item = an_item(list("ab"))
    stranger = replace(item, completions=(item.completions[0], Completion("other", "b")))
    with pytest.raises(DataError, match="another prompt"):
        pairs_of(stranger, a_judgement(item, (0,), (1,)))
    with pytest.raises(DataError, match="of item"):
        pairs_of(replace(item, id="other"), a_judgement(item, (0,), (1,)))


def votes(item: Item, *winners: int, **stated: Any) -> list[tuple[Item, Judgement]]:
    """A vote of each of several people on an item of two answers."""
    return [
        (item, Judgement(item.id, f"ann-{n}", LabelerKind.PERSON, ((won,), (1 - won,)), None, **stated))
        for n, won in enumerate(winners)
    ]


def test_votes_on_two_answers_are_counted() -> None:
    item = an_item(list("ab"))
    judged = votes(item, 1, 0, 1, 1)
    [pair] = counted_pairs(judged)
    assert (pair.chosen.text, pair.rejected.text, pair.weight, pair.target) == ("b", "a", 4.0, 0.75)
    assert (
        pair.judgement_ids == tuple(one.id for _, one in judged) and pair.item_id == item.id and pair.strength is None
    )
    [even] = counted_pairs(votes(item, 0, 1))
    assert (even.target, even.weight, even.chosen.text) == (0.5, 2.0, "a")
    weighed = [(item, replace(one, weight=weight)) for (_, one), weight in zip(judged, (1, 3, 0, 1), strict=True)]
    [pair] = counted_pairs(weighed)
    assert (pair.chosen.text, pair.weight, pair.target, len(pair.judgement_ids)) == ("a", 5.0, 0.6, 3), (
        "0: it says nothing"
    )


def test_the_loss_of_counted_votes_is_that_of_single_ones() -> None:
    """At any gap, and so for every gradient: Bradley-Terry on a count is the sum over its votes."""
    item = an_item(list("abc"))
    rankings = [((0,), (1,), (2,)), ((1,), (0, 2)), ((0,), (1,), (2,)), ((2, 1), (0,)), ((0, 1, 2),)]
    judged = [(item, replace(a_judgement(item, *r), labeler=f"ann-{n}")) for n, r in enumerate(rankings)]
    scores = dict(
        zip("abc", torch.randn(3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), strict=True)
    )

    def loss(pairs: list[Pair]) -> float:
        better, worse = (
            torch.stack([scores[side.text] for side in sides])
            for sides in zip(*((p.chosen, p.rejected) for p in pairs), strict=True)
        )
        weight, target = torch.tensor([[p.weight, p.target] for p in pairs], dtype=torch.float64).T
        return float(bradley_terry(better, worse, weight, count=1.0, target_P=target)[0])

    for ties in (False, True):
        counted, single = counted_pairs(judged, ties), [pair for one in judged for pair in pairs_of(*one, ties)]
        assert len(counted) == 3 < len(single) and all(pair.target >= 0.5 for pair in counted)
        assert loss(counted) == pytest.approx(loss(single), rel=1e-12)


def test_one_judgement_an_item_is_as_it_was() -> None:
    items = [an_item(list("abcb")), an_item(list("xyz"))]
    judged = [
        (items[0], a_judgement(items[0], (2,), (0, 1, 3))),
        (items[1], replace(a_judgement(items[1], (1,), (0, 2)), strength=3)),
    ]
    assert counted_pairs(judged, True) == [pair for one in judged for pair in pairs_of(*one, True)]


def test_strength_is_the_mean_over_votes_for_and_against() -> None:
    item = an_item(list("ab"))
    for_it, against = votes(item, 0, 0, strength=3), votes(item, 1)
    [pair] = counted_pairs([*for_it, *((i, replace(one, labeler="other")) for i, one in against)])
    assert pair.strength == pytest.approx((3 + 3 - 1) / 3) and pair.target == pytest.approx(2 / 3)
    [pair] = counted_pairs(votes(item, 1, 1, margin=0.5)[:1] + votes(item, 1, 0, 0, strength=2)[1:])
    assert pair.chosen.text == "a" and pair.strength == pytest.approx((2 + 2 - 0.5) / 3)


def test_a_ranking_is_read_whole() -> None:
    """A > B > A′ with equal texts keeps its three places; ties keep theirs; the display order says nothing."""
    item = an_item(["yes", "no", "yes"])
    ranking = ranking_of(item, judgement := a_judgement(item, (0,), (1,), (2,), order=(2, 0, 1)))
    assert ranking.answers == item.completions and ranking.ranks == (0, 1, 2)
    assert ranking.prompt == PROMPT and ranking.judgement_id == judgement.id
    tied = ranking_of(item, a_judgement(item, (2,), (1, 0)))
    assert tied.answers == tuple(item.completions[slot] for slot in (2, 0, 1)) and tied.ranks == (0, 1, 1)


def test_a_ranking_is_of_its_item_alone() -> None:
    item = an_item(list("ab"))
    with pytest.raises(DataError, match="of item"):
        ranking_of(replace(item, id="other"), a_judgement(item, (0,), (1,)))
    with pytest.raises(DataError, match="exactly one group"):
        ranking_of(item, a_judgement(item, (0,)))


def test_weight_margin_and_strength_reach_the_pairs() -> None:
    prompt = Prompt.from_text("Why?")
    item = Item("i", prompt, tuple(Completion(prompt.id, text) for text in ("a", "b", "c")))
    said = Judgement("i", "ann", LabelerKind.IMPORTED, ((1,), (0, 2)), None, strength=3, weight=0.5)
    assert [(pair.weight, pair.strength) for pair in pairs_of(item, said)] == [(0.25, 3), (0.25, 3)]
    assert [pair.strength for pair in pairs_of(item, replace(said, margin=1.5))] == [1.5, 1.5]
    assert ranking_of(item, said).weight == 0.5
    assert said.id == replace(said, margin=9.0, weight=1.0).id != replace(said, criterion="harmless").id


def test_votes_that_agree_are_a_share_of_exactly_one() -> None:
    """Also where their weights are no round numbers: a target above 1 would be refused."""
    item, rng = an_item(list("ab")), random.Random(0)
    for _ in range(200):
        judged = [(item, replace(one, weight=rng.random())) for _, one in votes(item, *[1] * 7)]
        [pair] = counted_pairs(judged)
        assert pair.target == 1.0 and pair.chosen.text == "b"
