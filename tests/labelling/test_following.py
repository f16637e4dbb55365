"""Whoever follows judgements misses none: a lower number never comes after a higher one."""

from __future__ import annotations

import threading

import pytest

from bridle.core.records import Judgement, LabelerKind
from bridle.feedback.people.following import arrivals
from bridle.feedback.store.store import Store
from experiments.store_kills import fill
from tests.feedback.conftest import any_store as any_store
from tests.feedback.conftest import postgresql_store

STUDY = "followed"


@pytest.fixture
def postgresql() -> Store:
    yield from postgresql_store()


def judged_by(labeler: str, item: str) -> Judgement:
    return Judgement(item, labeler, LabelerKind.PERSON, ((0,), (1,)), None)


def test_what_was_begun_before_and_ends_after_is_waited_for(postgresql: Store) -> None:
    store = postgresql
    fill(store, 3, STUDY, overlap=3)
    first, second, third = (item.id for item in store.items(study=STUDY))
    store.add_judgements([judged_by("anna", first)])
    with store.transaction() as slow:
        slow.add_judgements([judged_by("ben", second)])
        store.add_judgements([judged_by("carla", third)])
        told = arrivals(store)
        assert len(told) <= 1
    (last,) = {one.number for one in told} or {0}
    rest = arrivals(store, after=last)
    assert [one.judgement.labeler for one in (*told, *rest)] == ["anna", "ben", "carla"]


def test_a_follower_of_many_writers_gets_each_judgement_once_and_in_order(any_store: Store) -> None:
    fill(any_store, 8, STUDY, overlap=9)
    items = [item.id for item in any_store.items(study=STUDY)]
    people = [f"person {number}" for number in range(4)]

    def write(labeler: str) -> None:
        for item in items:
            with any_store.transaction() as one:
                one.add_judgements([judged_by(labeler, item)])

    writers = [threading.Thread(target=write, args=[labeler]) for labeler in people]
    for writer in writers:
        writer.start()
    followed: list[tuple[int, str]] = []
    while (alive := any(writer.is_alive() for writer in writers)) or len(followed) < len(items) * len(people):
        last = followed[-1][0] if followed else 0
        found = arrivals(any_store, after=last, limit=5)
        followed += [(one.number, one.judgement.id) for one in found]
        assert alive or found, "the writers are done, and something is missing"
    assert [number for number, _ in followed] == sorted({number for number, _ in followed})
    assert {key for _, key in followed} == {one.id for _, one in any_store.judgements()}


def test_a_study_and_what_it_superseded_are_told(any_store: Store) -> None:
    fill(any_store, 1, STUDY, overlap=1)
    (item,) = (item.id for item in any_store.items(study=STUDY))
    before, after = judged_by("anna", item), Judgement(item, "anna", LabelerKind.PERSON, ((1,), (0,)), None)
    any_store.add_judgements([before])
    any_store.correct(after, supersedes=before.id)
    found = arrivals(any_store, study=STUDY)
    assert [(one.judgement, one.supersedes) for one in found] == [(before, None), (after, before.id)]
    assert not arrivals(any_store, study="another")
