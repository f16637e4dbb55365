"""Rankings as votes, sides, gold; and what is read of a store."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa

from bridle.core.errors import DataError
from bridle.core.records import Completion, Judgement, LabelerKind, Prompt
from bridle.feedback.quality.summary import quality_of
from bridle.feedback.quality.votes import BLANKS, FIRST, SECOND, TIE, UNKNOWN, Subject, Vote, read_votes, votes_of
from bridle.feedback.store import tables
from bridle.feedback.store.store import Store
from tests.feedback.sample import Sample


def test_a_ranking_is_a_vote_on_each_two_slots() -> None:
    found = votes_of([Vote("a", "ada", ((2,), (0, 1)), (1, 2, 0)), Vote("a", "bo", ((0,), (1,), (2,)))])
    assert found.units == [("a", 0, 1), ("a", 0, 2), ("a", 1, 2)]
    assert found.verdict_V.tolist() == [TIE, SECOND, SECOND, FIRST, FIRST, FIRST]
    assert found.first_left_V.tolist() == [0, 0, 1, UNKNOWN, UNKNOWN, UNKNOWN]
    assert np.allclose(found.weight_V, 2 / 3)
    left = found.left_V
    assert np.isnan(left[[0, 3, 4, 5]]).all() and left[1] == 1 and left[2] == 0  # slot 2 was shown before 0, after 1


def test_of_several_judgements_by_one_person_the_last_one_counts() -> None:
    rows = [Vote("a", "ada", ((0,), (1,))), Vote("b", "ada", ((0,), (1,))), Vote("a", "bo", ((0,), (1,)))]
    found = votes_of([*rows, Vote("a", "ada", ((1,), (0,))), Vote("c", "bo", ((0, 1),))])
    assert found.repeated == 1 and len(found.item_J) == 4
    assert {(found.people[w], u, y) for w, u, y in zip(found.person_V, found.unit_V, found.verdict_V, strict=True)} == {
        ("ada", 1, FIRST), ("bo", 0, FIRST), ("ada", 0, SECOND), ("bo", 2, TIE)
    }  # fmt: skip


def test_answers_of_one_text_are_no_unit_and_gold_is_a_verdict_on_each() -> None:
    subject = Subject("math", ((1,), (0, 2)), frozenset([(0, 2)]))
    found = votes_of([Vote("a", "ada", ((0,), (1,), (2,)))], {"a": subject})
    assert found.units == [("a", 0, 1), ("a", 1, 2)] and found.gold_U.tolist() == [SECOND, FIRST]
    assert found.topic_I == ["math"]
    with pytest.raises(DataError, match="gold of item a ranks the slots"):
        votes_of([Vote("a", "ada", ((0,), (1,), (2,)))], {"a": Subject(gold=((0,), (1,)))})


def judged(item: str, labeler: str, first: int = 0, **more: object) -> Judgement:
    told = Judgement(item, labeler, LabelerKind.PERSON, ((first,), (1 - first,)), (1, 0), seconds=2.5)
    return replace(told, submission_key=f"{item}{labeler}{first}", **more)  # type: ignore[arg-type]


def pairs_in(store: Store, count: int) -> list[str]:
    """Items of two answers each, in the study "pairs", the first of which are of the topic "verse"."""
    prompts = [Prompt.from_text(f"Question {n}?", meta={"family": "verse"} if not n else {}) for n in range(count)]
    groups = [
        [Completion(prompt.id, f"{n}"), Completion(prompt.id, f" {n} " if n == 1 else "other")]
        for n, prompt in enumerate(prompts)
    ]
    store.add_prompts(prompts, split="train", source="test")
    store.add_completions([one for group in groups for one in group], source="test")
    return store.add_items(groups, study="pairs")


def test_the_standing_judgements_of_a_study_are_read(any_store: Store, sample: Sample) -> None:
    store = any_store
    items = pairs_in(store, 4)
    store.add_judgements([sample.judgement(sample.fill(store)[0], "other study")])
    old = judged(items[2], "ada")
    store.add_judgements([judged(items[0], "ada"), judged(items[1], "ada"), old, judged(items[2], "bo", 1)])
    store.correct(judged(items[2], "ada", 1), supersedes=old.id)
    store.add_judgements([judged(items[0], "bo", criterion="harmless"), judged(items[0], "cleo")])
    store.add_judgements([Judgement(items[3], "bo", LabelerKind.PERSON, (), (0, 1), outcome="cannot_judge")])
    store.exclude("labeler", "cleo", reason="taps", by="owner")
    found = read_votes(store, "pairs")
    said = {
        (found.people[w], found.units[u][0], y)
        for w, u, y in zip(found.person_V, found.unit_V, found.verdict_V, strict=True)
    }
    assert said == {("ada", items[0], FIRST), ("ada", items[2], SECOND), ("bo", items[2], SECOND)}
    assert len(found.item_J) == 4  # the answers of items[1] have one text, so ada's judgement of it holds no vote
    assert found.first_left_V.tolist() == [0, 0, 0] and set(found.seconds_J) == {2.5}
    assert (np.abs(found.time_J - found.time_J[0]) < 60).all() and found.time_J[0] > 1.7e9
    assert found.topic_I[found.items.index(items[0])] == "verse" and found.topic_I[found.items.index(items[2])] == ""
    assert found.undecided == {"bo": {"cannot_judge": 1}}
    assert [(one["labeler"], one["reason"], one["by"]) for one in found.left_out] == [("cleo", "taps", "owner")]
    assert len(read_votes(store).item_J) == 5
    with pytest.raises(DataError, match="no judgement stands in study 'none'.*first, pairs"):
        read_votes(store, "none")


def test_gold_topic_and_what_was_adjudicated_are_read(any_store: Store) -> None:
    store = any_store
    items = pairs_in(store, 4)
    store.add_judgements([judged(item, name, 1) for item in items for name in ("ada", "bo")])
    decided = judged(items[2], "judge", 0)
    store.add_judgements([decided])
    with store.writing() as connection:
        gold = {"gold": [[0], [1]], "topic": "law"}
        connection.execute(sa.update(tables.item).where(tables.item.c.sha256 == items[0]).values(gold))
        rows = [(items[2], decided.id), (items[3], judged(items[3], "bo", 1).id)]
        values = [
            {
                "item_sha256": item,
                "judgement_sha256": one,
                "adjudicated_by": "judge",
                "created_at": "2026-01-01T00:00:00+00:00",
            }
            for item, one in rows
        ]
        connection.execute(sa.insert(tables.adjudication), values)
    found = read_votes(store)
    gold_of = {unit[0]: gold for unit, gold in zip(found.units, found.gold_U, strict=True)}
    assert gold_of == {items[0]: FIRST, items[2]: FIRST, items[3]: SECOND}
    assert found.topic_I[found.items.index(items[0])] == "law"
    assert list(found.people) == ["ada", "bo"]  # whom the judge overruled still spoke, and the judge is no voter
    assert len(found.verdict_V) == 6


def test_white_space_at_the_ends_makes_no_other_text(any_store: Store) -> None:
    """As where pairs are made; where nothing can be told apart nothing is said, and all weigh 1."""
    assert [sign for sign in map(chr, range(sys.maxunicode)) if sign.isspace()] == list(BLANKS)
    prompt = Prompt.from_text("How much?")
    answers = [Completion(prompt.id, text) for text in ("Six.", "Six.\n", "\t\u3000Six.")]
    any_store.add_prompts([prompt], split="train", source="test")
    any_store.add_completions(answers, source="sample")
    (item,) = any_store.add_items([answers], study="s")
    ranking = ((0,), (1,), (2,))
    any_store.add_judgements([Judgement(item, name, LabelerKind.PERSON, ranking, None) for name in ("ada", "bo")])
    votes = read_votes(any_store)
    assert not len(votes.verdict_V) and not any_store.snapshot_pairs(any_store.take_snapshot().id)
    found = quality_of(votes)
    assert found.judgements == 2 and found.agreement["raw"].value is None and found.ties is None
    assert {one.labeler: one.weight for one in found.people} == {"ada": 1.0, "bo": 1.0}


def test_who_is_excluded_twice_is_named_once(store: Store, sample: Sample) -> None:
    items = sample.fill(store)
    store.add_judgements([sample.judgement(items[0], "a", "ada"), sample.judgement(items[0], "b", "bo")])
    for reason in ("taps", "taps through"):
        store.exclude("labeler", "bo", reason=reason, by="owner")
    assert [(one["labeler"], one["reason"]) for one in read_votes(store).left_out] == [("bo", "taps")]
