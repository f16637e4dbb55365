"""Who is asked what, in which order of display, until when; and what becomes of the answer.

    task = next_task(store, "first", "anna")                    # the same again until it is answered
    judgement = Judgement(task.item.id, "anna", LabelerKind.PERSON, ((1,), (0,)), task.display_order, submission_key=key)
    stored, task = submit_and_ask(store, "first", [judgement])  # one transaction
    submit(store, "first", judgements)                          # many, of what next_tasks(…, count=40) gave

An item is given to as many people as it needs: those who have judged it and those who hold it are counted in the transaction that gives it
to the next. A lease that ends frees its place, and an answer that comes after it is kept and marked "late". Nobody is given an item twice;
who answers it again supersedes what they said before. An answer that says "skip" leaves the place to somebody else.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from bridle.core.errors import DataError
from bridle.core.records import Judgement, LabelerKind
from bridle.feedback.rankings import Item
from bridle.feedback.store import tables
from bridle.feedback.store.reading import item_queries, items_by, judged_where
from bridle.feedback.store.rows import Values, now
from bridle.feedback.store.store import Store, insert_new
from bridle.feedback.store.studies import Study, close_judged, study_named, trusted, uniform

PERSON = LabelerKind.PERSON
RETRY_SECONDS, LONGEST_WAIT = 0.002, 2.0  # until another transaction lets go of the last items


@dataclass(frozen=True)
class Asked:
    """An item as one person is asked it. Its slots are shown in `display_order`, the same as long as there is a store. Gold looks like
    everything else."""

    assignment: int
    item: Item
    labeler: str
    display_order: tuple[int, ...]
    lease_until: str
    guideline: str | None
    draft: Any


def display_order(study: str, item: str, labeler: str, slots: int) -> tuple[int, ...]:
    """The slots in the order in which this person sees them."""
    return tuple(sorted(range(slots), key=lambda slot: uniform(study, item, labeler, slot)))


# ---------------------------------------------------------------------------------------------------------- asking


class Held(NamedTuple):
    id: int
    item_id: int
    sha256: str
    order: Sequence[int]
    lease_until: str
    draft: Any = None


def next_task(store: Store, study: str, labeler: str, *, lang: str | None = None) -> Asked | None:
    """What to ask of a person now: what they hold, else one more. None where nothing is left for them, they are excluded, or the study is
    not open."""
    return next(iter(next_tasks(store, study, labeler, lang=lang)), None)


def next_tasks(
    store: Store, study: str, labeler: str, count: int = 1, *, kind: LabelerKind = PERSON, lang: str | None = None
) -> list[Asked]:
    """Up to `count` of them at once."""
    with store.writing() as connection:
        return _ask(connection, study_named(connection, study, lang), labeler, count, kind)


def _ask(connection: sa.Connection, asking: Study, labeler: str, count: int, kind: LabelerKind) -> list[Asked]:
    if labeler not in connection.execute(lock_people(), {"labelers": [labeler]}).scalars().all():
        insert_new(connection, tables.labeler, [{"handle": labeler, "kind": kind.value}])
    if asking.state != "open" or connection.execute(shut_out(), {"labeler": labeler}).first():
        return []
    bound = {"labeler": labeler, "study": asking.name, "at": now(), "count": count}
    held = [Held(*row) for row in connection.execute(tasks_held(), bound)]
    held += _claimed(connection, asking, labeler, count - len(held))
    items = items_by(connection, numbered_items(), {"items": [one.item_id for one in held]})
    study_guideline = asking.guideline
    return [
        Asked(one.id, items[one.sha256], labeler, tuple(one.order), one.lease_until, study_guideline, one.draft)
        for one in held
    ]


item, asked_of, judged = tables.item.c, tables.assignment.c, tables.judgement.c


@cache
def lock_people() -> sa.Select[Any]:
    """One person's calls wait for one another: a form that was sent twice is two of them."""
    handle = tables.labeler.c.handle
    return sa.select(handle).where(handle.in_(several("labelers"))).order_by(handle).with_for_update(key_share=True)


@cache
def shut_out() -> sa.Select[Any]:
    """Whether a person is excluded: what they say would count for nothing."""
    gone = tables.exclusion.c
    return sa.select(gone.id).where(gone.target_id == sa.bindparam("labeler"), gone.target == "labeler").limit(1)


def several(name: str) -> sa.BindParameter[Any]:
    return sa.bindparam(name, expanding=True)


@cache
def numbered_items() -> tuple[sa.Select[Any], sa.Select[Any]]:
    return item_queries([item.id.in_(several("items"))])


@cache
def tasks_held() -> sa.Select[Any]:
    """What a person of a study holds a lease of."""
    draft = tables.draft.c
    query = sa.select(asked_of.id, item.id, item.sha256, asked_of.display_order, asked_of.lease_until, draft.body)
    query = query.join(tables.item, item.id == asked_of.item_id).outerjoin(
        tables.draft, draft.assignment_id == asked_of.id
    )
    query = query.where(asked_of.labeler == sa.bindparam("labeler"), asked_of.state == "open")
    query = query.where(item.study == sa.bindparam("study"), asked_of.lease_until > sa.bindparam("at"), *not_out())
    return query.order_by(asked_of.id).limit(sa.bindparam("count"))


def not_out() -> list[sa.ColumnElement[bool]]:
    """An item is not excluded, nor its prompt or one of its answers."""
    slot, answer, gone = tables.item_completion.c, tables.completion.c, tables.exclusion.c
    out = sa.exists().where(gone.target_id.in_([item.sha256, item.prompt_sha256])).correlate(tables.item)
    of_item = sa.and_(slot.item_id == item.id, answer.id == slot.completion_id)
    return [~out, ~sa.exists().where(of_item, gone.target_id == answer.content_sha256).correlate(tables.item)]


@cache
def tasks_given(gold: bool) -> sa.Select[Any]:
    """How many tasks a person has had, or how many gold ones in a study."""
    query = sa.select(sa.func.count(asked_of.id)).where(asked_of.labeler == sa.bindparam("labeler"))
    of_study = [item.study == sa.bindparam("study"), item.acquisition == "gold", asked_of.state != "returned"]
    return query.join(tables.item, item.id == asked_of.item_id).where(*of_study) if gold else query


@cache
def askable(why: str | None, how: Literal["take", "look", "again"] = "look") -> sa.Select[Any]:
    """The items of a study that may be given to a person, the next one first; `own` is what they had of it, whose lease has ended.

    "take" locks one, and passes over those that other transactions have locked; "again" asks of one whether it is still free. SQLite has
    one writer, and no need of either.
    """
    own, taken = tables.assignment.alias("own"), tables.assignment.alias("taken").c
    slot = tables.item_completion.c
    slots = sa.select(sa.func.count()).where(slot.item_id == item.id).correlate(tables.item).scalar_subquery()
    query = sa.select(item.id, item.sha256, own.c.id.label("own"), slots.label("slots")).select_from(tables.item)
    query = query.outerjoin(own, sa.and_(own.c.item_id == item.id, own.c.labeler == sa.bindparam("labeler")))
    query = query.where(item.study == sa.bindparam("study"), item.state == "open")
    query = query.where(item.acquisition.is_(None) if why is None else item.acquisition == why)
    query = query.where(sa.or_(item.topic.is_(None), item.topic.not_in(several("barred"))))
    mine = sa.or_(own.c.id.is_(None), sa.and_(own.c.state == "open", own.c.lease_until <= sa.bindparam("at")))
    query = query.where(mine, *not_out())
    if why == "gold":
        return query  # everybody may be asked it
    done = sa.and_(taken.state == "done", trusted(taken))
    kept = sa.or_(done, sa.and_(taken.state == "open", taken.lease_until > sa.bindparam("at")))
    places = sa.select(sa.func.count()).where(taken.item_id == item.id, kept).correlate(tables.item).scalar_subquery()
    query = query.where(places < sa.func.coalesce(item.need, sa.bindparam("overlap")))
    if how == "again":
        return query.where(item.id == sa.bindparam("item"))
    query = query.order_by(item.priority.desc(), item.id.desc()).limit(1)
    return query.with_for_update(of=tables.item, key_share=True, skip_locked=True) if how == "take" else query


def _claimed(connection: sa.Connection, asking: Study, labeler: str, count: int) -> Iterator[Held]:
    """New leases. Which of a person's tasks are gold, and which of the others from the random sample, the seed decides for each."""
    settings = asking.settings
    barred = [topic for topic, people in settings.topics.items() if labeler not in people]
    bound: Values = {"labeler": labeler, "study": asking.name, "overlap": settings.overlap, "barred": barred}
    had = connection.execute(tasks_given(True), bound).scalar_one() if settings.qualification and count > 0 else 0
    first = connection.execute(tasks_given(False), bound).scalar_one() if count > 0 else 0
    for place in range(first, first + count):
        bound["at"] = now()
        gold = had < settings.qualification or uniform(settings.seed, "gold", labeler, place) < settings.gold_rate
        had += gold
        at_random = uniform(settings.seed, "random", labeler, place) < settings.random_share
        reasons = ("random", "informative", None) if at_random else ("informative", None, "random")
        found = _gold_item(connection, settings.seed, bound) if gold else None
        for why in reasons:
            found = found or _free_item(connection, why, bound)
        if found is None:
            return
        yield _lease(connection, asking, found, bound)


def _gold_item(connection: sa.Connection, seed: str, bound: Values) -> sa.Row[Any] | None:
    """Each person has an order of their own."""
    rows = connection.execute(askable("gold"), bound).all()
    return min(rows, key=lambda row: uniform(seed, "gold", bound["labeler"], row.sha256), default=None)


def _free_item(connection: sa.Connection, why: str | None, bound: Values) -> sa.Row[Any] | None:
    """The next one, in time that grows with those before it that this person has judged and others have not yet."""
    last = time.monotonic() + LONGEST_WAIT  # the other may itself wait for what this transaction holds
    while True:
        found = connection.execute(askable(why, "take"), bound).first()
        if connection.dialect.name == "sqlite":
            return found
        # Its people are counted again: some may have been given it before it was locked, after the query above began.
        if found is not None and connection.execute(askable(why, "again"), bound | {"item": found.id}).first():
            return found
        if found is None:
            if time.monotonic() > last or connection.execute(askable(why), bound).first() is None:
                return None
            time.sleep(RETRY_SECONDS)


def _lease(connection: sa.Connection, asking: Study, found: sa.Row[Any], bound: Values) -> Held:
    until = datetime.fromisoformat(bound["at"]) + timedelta(seconds=asking.settings.lease_seconds)
    values: Values = {"lease_until": until.isoformat(timespec="milliseconds")}
    order = list(display_order(asking.name, found.sha256, bound["labeler"], found.slots))
    table, number = tables.assignment, found.own
    if number is None:
        values |= {"item_id": found.id, "labeler": bound["labeler"], "display_order": order}
        values |= {"state": "open", "created_at": bound["at"]}
        number = connection.execute(sa.insert(table).returning(table.c.id), values).scalar_one()
    else:
        connection.execute(sa.update(table).where(table.c.id == number), values)
    return Held(number, found.id, found.sha256, order, values["lease_until"])


# ------------------------------------------------------------------------------------------------------- answering


def submit_and_ask(
    store: Store, study: str, judgements: Sequence[Judgement], *, lang: str | None = None
) -> tuple[list[Judgement], Asked | None]:
    """Store one person's answer and give them their next task, in one transaction."""
    if not judgements:
        raise DataError(
            "there is no answer to store, and nobody to ask; give at least one judgement, or ask with next_task"
        )
    with store.transaction() as one, one.writing() as connection:
        asking, first = study_named(connection, study, lang), judgements[0]
        stored = _submit(one, connection, asking, judgements)
        return stored, next(iter(_ask(connection, asking, first.labeler, 1, first.labeler_kind)), None)


def submit(store: Store, study: str, judgements: Sequence[Judgement]) -> list[Judgement]:
    """Store answers to what was asked; returns them as they are stored, also those that were sent again.

    An answer may be several judgements: on the whole, and by criteria. What is missing of display order, guideline and seconds is filled
    in. A second answer of the same person supersedes the first. Raises DataError, and stores nothing, where somebody was never given the
    item, saw another order than is stated, or reuses a submission key.
    """
    with store.transaction() as one, one.writing() as connection:
        return _submit(one, connection, study_named(connection, study), judgements)


def _submit(store: Store, connection: sa.Connection, asking: Study, judgements: Sequence[Judgement]) -> list[Judgement]:
    """`connection` is that of the store's transaction."""
    named = {"items": list({j.item_id for j in judgements}), "labelers": list({j.labeler for j in judgements})}
    if connection.dialect.name != "sqlite":
        connection.execute(lock_people(), named)
    asked: dict[tuple[str, str], Any]
    asked = {
        (row.sha256, row.labeler): row for row in connection.execute(tasks_asked(), named | {"study": asking.name})
    }
    at = now()
    stated = [_stated(asking, asked.get((j.item_id, j.labeler)), j, at) for j in judgements]
    new = _store(store, connection.execute(earlier_answers(), named).all(), stated)
    if new:
        _finish(connection, asking, [(asked[j.item_id, j.labeler], j) for j in new])
    known: dict[str, Judgement] = {}
    if again := {j.id for j in stated} - {j.id for j in new}:
        known = {j.id: j for _, j in judged_where(connection, [tables.judgement.c.sha256.in_(again)])}
    return [known.get(j.id, j) for j in stated]


@cache
def tasks_asked() -> sa.Select[Any]:
    query = sa.select(tables.assignment, item.sha256, item.topic).join(tables.item)
    query = query.where(item.sha256.in_(several("items")), item.study == sa.bindparam("study"))
    return query.where(asked_of.labeler.in_(several("labelers")))


@cache
def earlier_answers() -> sa.Select[Any]:
    query = sa.select(judged.sha256, judged.item_sha256, judged.labeler, judged.criterion, judged.supersedes)
    return query.where(judged.item_sha256.in_(several("items")), judged.labeler.in_(several("labelers")))


def _stated(asking: Study, asked: Any, judgement: Judgement, at: str) -> Judgement:
    whose = f"the judgement of {judgement.labeler!r} on item {judgement.item_id[:12]}"
    if asked is None:
        raise DataError(
            f"{whose} answers what study {asking.name!r} never asked them; ask with next_task first, or bring in what was judged "
            "elsewhere with add_judgements"
        )
    order = (
        tuple(asked.display_order) or judgement.display_order
    )  # of what was judged before its study opened none is known
    if judgement.display_order not in (None, order):
        raise DataError(f"{whose} was displayed in the order {judgement.display_order}, but they were given {order}")
    marks = dict.fromkeys(judgement.marks)
    if asked.state == "returned" or (asked.state == "open" and asked.lease_until < at):
        marks["late"] = None
    if judgement.labeler not in asking.settings.topics.get(asked.topic, (judgement.labeler,)):
        marks["unskilled"] = None
    wall = judgement.wall_seconds
    if wall is None and asked.first_seen_at is not None:
        seen = (datetime.fromisoformat(at) - datetime.fromisoformat(asked.first_seen_at)).total_seconds()
        wall = max(0.0, seen)  # a clock may go back
    guideline = judgement.guideline or asking.guideline
    return replace(judgement, display_order=order, marks=tuple(marks), guideline=guideline, wall_seconds=wall)


def _store(store: Store, earlier: Sequence[Any], stated: Sequence[Judgement]) -> list[Judgement]:
    """Those that are new, stored: in place of what the same person said of the same item by the same criterion, where they did."""
    known, replaced = {row.sha256 for row in earlier}, {row.supersedes for row in earlier}
    latest = {row[1:4]: row.sha256 for row in earlier if row.sha256 not in replaced}
    first, corrections = [], []
    for judgement in stated:
        if judgement.id in known and (judgement.submission_key or judgement.id not in replaced):
            continue  # sent again
        place = (judgement.item_id, judgement.labeler, judgement.criterion)
        if place in latest:
            corrections.append((judgement, latest[place]))
        else:
            first.append(judgement)
        known.add(judgement.id)
        latest[place] = judgement.id
    store.add_judgements(first)
    for judgement, old in corrections:
        store.correct(judgement, supersedes=old)
    return first + [judgement for judgement, _ in corrections]


def _finish(connection: sa.Connection, asking: Study, answered_tasks: Sequence[tuple[Any, Judgement]]) -> None:
    """Nobody holds what was answered any more, and an item that enough people have judged is closed. Two that end it at the same moment in
    PostgreSQL may each miss the other's answer: it stays open then, with no place left."""
    states = {asked.id: "returned" for asked, _ in answered_tasks}
    states |= {
        asked.id: "done"
        for asked, judgement in answered_tasks
        # To skip a criterion takes nothing back of what was said on the whole.
        if judgement.outcome != "skip" or (judgement.criterion is not None and asked.state == "done")
    }
    rows = [{"number": number, "becomes": state} for number, state in states.items()]
    change = sa.update(tables.assignment).where(asked_of.id == sa.bindparam("number"))
    connection.execute(change.values(state=sa.bindparam("becomes")), rows)
    connection.execute(sa.delete(tables.draft).where(tables.draft.c.assignment_id.in_(list(states))))
    items = list({asked.item_id for asked, _ in answered_tasks})
    # Who takes an answer back and skips leaves their place again.
    left = [asked.item_id for asked, _ in answered_tasks if states[asked.id] == "returned" and asked.state == "done"]
    connection.execute(reopen(), {"items": left})
    connection.execute(close_judged(named=True), {"items": items, "overlap": asking.settings.overlap})


@cache
def reopen() -> sa.Update:
    return sa.update(tables.item).where(item.id.in_(several("items")), item.state == "done").values(state="open")


# ----------------------------------------------------------------------------------------- while somebody is at it


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
        change = sa.update(tables.assignment).where(asked_of.id == number, asked_of.state == "open")
        connection.execute(change.values(state="returned"))


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
    """How many items are open and done, and of each person's tasks how many are open, done and returned."""
    with store.reading() as connection:
        of_study = item.study == study
        items = connection.execute(sa.select(item.state, sa.func.count()).where(of_study).group_by(item.state))
        states = {row[0]: row[1] for row in items}
        query = sa.select(asked_of.labeler, asked_of.state, sa.func.count()).join(tables.item).where(of_study)
        people: dict[str, dict[str, int]] = {}
        for labeler, state, count in connection.execute(query.group_by(asked_of.labeler, asked_of.state)):
            people.setdefault(labeler, {})[state] = count
    return states, people
