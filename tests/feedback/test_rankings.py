from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridle.core.errors import DataError
from bridle.core.records import Completion, Judgement, LabelerKind, Prompt
from bridle.feedback.rankings import Item, check_judgement, item_id, pairs_of, ranking_of

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


def test_never_across_prompts_nor_items() -> None:
    item = an_item(list("ab"))
    stranger = replace(item, completions=(item.completions[0], Completion("other", "b")))
    with pytest.raises(DataError, match="another prompt"):
        pairs_of(stranger, a_judgement(item, (0,), (1,)))
    with pytest.raises(DataError, match="of item"):
        pairs_of(replace(item, id="other"), a_judgement(item, (0,), (1,)))


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
