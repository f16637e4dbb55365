"""While somebody is at a task: drafts, when they first saw it, giving it back; how far they are; what they answered before."""

from functools import cache
from typing import Any

import sqlalchemy as sa

from bridle.core.errors import DataError
from bridle.core.records import Judgement
from bridle.feedback.rankings import Item
from bridle.feedback.store import tables
from bridle.feedback.store.assignment import Asked, asked_of, display_order, item, items_asked, judged, numbered_items
from bridle.feedback.store.driver import fetch_rows
from bridle.feedback.store.reading import items_by, judged_where
from bridle.feedback.store.rows import now
from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import Study, open_or_done, settle, study_named


def is_excluded(store: Store, labeler: str) -> bool:
    with store.reading(one_query=True) as connection:
        return bool(fetch_rows(connection, shut_out(), {"labeler": labeler}))


@cache
def shut_out() -> sa.Select[Any]:
    gone = tables.exclusion.c
    return sa.select(gone.id).where(gone.target_id == sa.bindparam("labeler"), gone.target == "labeler").limit(1)


def given_task(store: Store, study: Study, labeler: str, item_id: str) -> Asked | None:
    """An item as this person was asked it, also after they answered or gave it back; None where they never were."""
    with store.reading() as connection:
        found = fetch_rows(connection, items_asked(), {"items": [item_id]})
        numbers = [one.id for one in found if one.study == study.name]
        rows = fetch_rows(connection, task_given(), {"labeler": labeler, "number": numbers[0]}) if numbers else ()
        if not rows:
            return None
        row = rows[0]
        of_item = items_by(connection, numbered_items(), {"items": [row.item_id]})[item_id]
    order = tuple(row.display_order) or display_order(study.name, item_id, labeler, len(of_item.completions))
    seen = row.first_seen_at or row.created_at
    return Asked(row.id, of_item, labeler, order, row.lease_until, study.guideline, row.body, row.state, seen)


@cache
def task_given() -> sa.Select[Any]:
    query = sa.select(tables.assignment, tables.draft.c.body)
    query = query.outerjoin(tables.draft, tables.draft.c.assignment_id == asked_of.id)
    return query.where(asked_of.item_id == sa.bindparam("number"), asked_of.labeler == sa.bindparam("labeler"))


def own_progress(store: Store, study: str, labeler: str) -> tuple[int, int]:
    """How many of a study's items a person has done, and how many there may still be for them. Gold, which never closes, is not counted
    among these."""
    with store.reading() as connection:
        bound = {"study": study, "labeler": labeler}
        ((done, had, _),) = fetch_rows(connection, own_counts(), bound)
        ((there,),) = fetch_rows(connection, open_count(), bound)
    return done, max(0, there - had)


def own_done(store: Store, study: str, labeler: str) -> tuple[int, int]:
    """The first of these, and how many of them, done or given back, are not gold: without a look at every open item."""
    with store.reading(one_query=True) as connection:
        ((done, _, taken),) = fetch_rows(connection, own_counts(), {"study": study, "labeler": labeler})
    return int(done), int(taken)


def _still_open() -> list[sa.ColumnElement[bool]]:
    return [item.study == sa.bindparam("study"), item.state != "done", item.acquisition.is_distinct_from("gold")]


@cache
def open_count() -> sa.Select[Any]:
    return sa.select(sa.func.count()).select_from(tables.item).where(*_still_open())


@cache
def own_counts() -> sa.Select[int, int, int]:
    # What comes of an edit was never shown, so it has no order.
    asked = sa.or_(item.kind == "demonstration", sa.cast(asked_of.display_order, sa.Text) != "[]")
    done = sa.and_(asked_of.state == "done", asked, item.study == sa.bindparam("study"))
    had = sa.func.count().filter(sa.and_(*_still_open()))
    taken = sa.and_(item.study == sa.bindparam("study"), item.acquisition.is_distinct_from("gold"))
    query = sa.select(sa.func.count().filter(done), had, sa.func.count().filter(taken))
    return (
        query.select_from(tables.assignment)
        .join(tables.item, item.id == asked_of.item_id)
        .where(
            asked_of.labeler == sa.bindparam("labeler"),
            asked_of.state.in_(("done", "returned")),  # not by study, which has SQLite begin at its items
        )
    )


def _asked_row(connection: sa.Connection, labeler: str, item_id: str) -> int:
    query = sa.select(asked_of.id).join(tables.item).where(item.sha256 == item_id, asked_of.labeler == labeler)
    number = connection.execute(query).scalar()
    if number is None:
        raise DataError(f"{labeler!r} was never given item {item_id[:12]}; ask with next_task first")
    return int(number)


def return_task(store: Store, labeler: str, item_id: str) -> None:
    """Give a task back without an answer; somebody else is asked it. An answer that comes later all the same is kept."""
    with store.writing() as connection:
        number = _asked_row(connection, labeler, item_id)
        change = sa.update(tables.assignment).where(asked_of.id == number, asked_of.state.in_(("open", "ended")))
        connection.execute(change.values(state="returned"))
        place, study = connection.execute(sa.select(item.id, item.study).where(item.sha256 == item_id)).one()
        settle(connection, study_named(connection, study).settings.overlap, items=[place])


def note_first_seen(store: Store, labeler: str, item_id: str) -> None:
    """A person sees the task now; of several times the first is kept."""
    with store.writing() as connection:
        number = _asked_row(connection, labeler, item_id)
        change = sa.update(tables.assignment).where(asked_of.id == number, asked_of.first_seen_at.is_(None))
        connection.execute(change.values(first_seen_at=now()))


def save_draft(store: Store, labeler: str, item_id: str, body: Any) -> None:
    """Keep an answer that is not finished, in place of the draft before; it comes back with the task."""
    with store.writing() as connection:
        number = _asked_row(connection, labeler, item_id)
        connection.execute(sa.delete(tables.draft).where(tables.draft.c.assignment_id == number))
        connection.execute(sa.insert(tables.draft), [{"assignment_id": number, "body": body, "saved_at": now()}])


def own_judgements(store: Store, study: str, labeler: str, limit: int = 20) -> list[tuple[Item, Judgement]]:
    """What a person answered last, the newest first, for them to see and to change by answering again."""
    query = sa.select(item.sha256).join(tables.assignment).where(asked_of.labeler == labeler, asked_of.state == "done")
    newer = tables.judgement.alias("newer").c
    current = ~sa.exists().where(newer.supersedes == judged.sha256).correlate(tables.judgement)
    with store.reading() as connection:
        last = query.where(item.study == study).order_by(asked_of.id.desc()).limit(limit)
        named = connection.execute(last).scalars().all()
        found = judged_where(connection, [judged.labeler == labeler, judged.item_sha256.in_(named), current])
    return sorted(found, key=lambda pair: named.index(pair[0].id))


def study_progress(store: Store, study: str) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """How many items are open and done, and of each person's tasks how many are open, ended without an answer, done and returned."""
    with store.reading() as connection:
        of_study = item.study == study
        state = open_or_done()
        states = dict(
            tuple(row) for row in connection.execute(sa.select(state, sa.func.count()).where(of_study).group_by(state))
        )
        query = sa.select(asked_of.labeler, asked_of.state, sa.func.count()).join(tables.item).where(of_study)
        people: dict[str, dict[str, int]] = {}
        for labeler, state, count in connection.execute(query.group_by(asked_of.labeler, asked_of.state)):
            people.setdefault(labeler, {})[state] = count
    return states, people
