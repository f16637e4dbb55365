"""Who is asked what, in which order of display, until when; and what becomes of the answer.

    task = next_task(store, "first", "anna")                    # the same again until it is answered
    judgement = Judgement(task.item.id, "anna", LabelerKind.PERSON, ((1,), (0,)), task.display_order, submission_key=key)
    stored, task = submit_and_ask(store, "first", [judgement])  # one transaction
    submit(store, "first", judgements)                          # many, of what next_tasks(…, count=40) gave

An item is given to as many people as it needs: those who have judged it and those who hold it are counted in the transaction that gives it
to the next. A lease that ends frees its place, and an answer that comes after it is kept and marked "late". Nobody is given an item twice;
who answers it again supersedes what they said before. An answer that says "skip" leaves the place to somebody else.

What is given costs the same however much was judged and waits. An item's state says whether anybody is to be asked it. Those that somebody
was given and that have a place left stand in a line, and come first; whoever joins it stands at its end, so that a person need not look
again at what they have passed. The others come by their priority, and nobody has had one of them. A state is a hint: under the item's
lock its people are counted, and where it cannot be given after all it is put where it belongs, and the next one is looked at.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

import sqlalchemy as sa

from bridle.core.errors import DataError
from bridle.core.records import Judgement, LabelerKind
from bridle.feedback.people.qualification import may_go_on
from bridle.feedback.rankings import Item
from bridle.feedback.store import tables
from bridle.feedback.store.driver import fetch_rows
from bridle.feedback.store.reading import item_queries, items_by, judged_where
from bridle.feedback.store.rows import Values, now
from bridle.feedback.store.store import Store, insert_new
from bridle.feedback.store.studies import (
    Study,
    people,
    put_item,
    settle,
    study_named,
    takes_place,
    uniform,
)

PERSON = LabelerKind.PERSON
RETRY_SECONDS, LONGEST_WAIT = 0.002, 2.0  # until another transaction lets go of the last items
# A person looks again at so many turns that they have passed: writing down where they are is left out as often, and in PostgreSQL an item
# may come into view after one that joined the line later, or be locked by another just then.
SLACK = 50


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
    state: str = "open"
    since: str = ""  # when they first saw it or, where nobody knows, were given it


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
        lock_people(connection, [labeler])
        return _ask(connection, study_named(connection, study, lang), labeler, count, kind)


def _ask(connection: sa.Connection, asking: Study, labeler: str, count: int, kind: LabelerKind) -> list[Asked]:
    bound: Values = {"labeler": labeler, "study": asking.name, "at": now(), "count": count}
    ((known, shut_out, newest, passed, oldest),) = fetch_rows(connection, where_one_stands(), bound)
    if not known:
        insert_new(connection, tables.labeler, [{"handle": labeler, "kind": kind.value}])
    if asking.state != "open" or shut_out:
        return []
    if oldest is not None and oldest <= bound["at"]:
        _end_leases(connection, bound["at"], newest)
    held = _still_held(connection, bound)
    if len(held) < count:
        held += _claimed(connection, asking, bound | {"newest": newest or 0, "passed": passed or 0}, count - len(held))
    items = items_by(connection, numbered_items(), {"items": [one.item_id for one in held]}) if held else {}
    study_guideline = asking.guideline
    return [
        Asked(one.id, items[one.sha256], labeler, tuple(one.order), one.lease_until, study_guideline, one.draft)
        for one in held
    ]


item, asked_of, judged = tables.item.c, tables.assignment.c, tables.judgement.c
HELD = asked_of.state == sa.literal_column("'open'")  # as the index of leases says it, which is of these alone


def lock_people(connection: sa.Connection, labelers: Sequence[str]) -> None:
    """One person's calls wait for one another: a form that was sent twice is two of them."""
    if connection.dialect.name != "sqlite":
        fetch_rows(connection, locked_people(), {"labelers": list(labelers)})


@cache
def locked_people() -> sa.Select[Any]:
    handle = tables.labeler.c.handle
    return sa.select(handle).where(handle.in_(several("labelers"))).order_by(handle).with_for_update(key_share=True)


@cache
def where_one_stands() -> sa.Select[Any]:
    """Of a person: whether they are known and whether they are excluded, for what they say would count for nothing; the newest of all
    assignments; how far they have come in the line; and when the oldest lease of all ends."""
    known = sa.exists().where(tables.labeler.c.handle == sa.bindparam("labeler"))
    gone = tables.exclusion.c
    shut_out = sa.exists().where(gone.target_id == sa.bindparam("labeler"), gone.target == "labeler")
    newest = sa.select(sa.func.max(asked_of.id)).scalar_subquery()
    place = tables.passed.c
    mine = [place.labeler == sa.bindparam("labeler"), place.study == sa.bindparam("study")]
    passed = sa.select(place.turn).where(*mine).scalar_subquery()
    oldest = sa.select(sa.func.min(asked_of.lease_until, type_=asked_of.lease_until.type)).where(HELD)
    return sa.select(known, shut_out, newest, passed, oldest.scalar_subquery())


def _end_leases(connection: sa.Connection, at: str, newest: int) -> None:
    """A lease is ended once, whatever its study, and its item joins the line. What another transaction holds is left for the next call."""
    query = sa.select(asked_of.id, asked_of.item_id).join(tables.item)
    query = query.where(HELD, asked_of.lease_until <= at)
    query = query.with_for_update(of=[tables.assignment, tables.item], key_share=True, skip_locked=True)
    over = [(row.id, row.item_id) for row in connection.execute(query)]
    ended = sa.update(tables.assignment).where(asked_of.id == sa.bindparam("number")).values(state="ended")
    queued = sa.update(tables.item).where(item.id == sa.bindparam("number"), item.state.in_(("full", "begun")))
    if over:
        connection.execute(ended, [{"number": number} for number, _ in over])
        connection.execute(queued.values(state="begun", turn=newest), [{"number": number} for _, number in over])


def several(name: str) -> sa.BindParameter[Any]:
    return sa.bindparam(name, expanding=True)


@cache
def numbered_items() -> tuple[sa.Select[Any], sa.Select[Any]]:
    return item_queries([item.id.in_(several("items"))])


@cache
def tasks_held() -> sa.Select[Any]:
    """What a person holds, in any study. Here and below one table is asked after the other: PostgreSQL, which knows little of tables that
    have just begun to grow, may go through all of a study's items to join them."""
    query = sa.select(asked_of.id, asked_of.item_id, asked_of.display_order, asked_of.lease_until)
    return query.where(asked_of.state == "open", asked_of.labeler == sa.bindparam("labeler")).order_by(asked_of.id)


@cache
def allowed_items() -> sa.Select[Any]:
    wanted = [item.id.in_(several("items")), item.study == sa.bindparam("study")]
    return sa.select(item.id, item.sha256).where(*wanted, *not_out())


@cache
def drafts_of() -> sa.Select[Any]:
    draft = tables.draft.c
    return sa.select(draft.assignment_id, draft.body).where(draft.assignment_id.in_(several("tasks")))


def _still_held(connection: sa.Connection, bound: Values) -> list[Held]:
    """Up to `count` of a person's tasks in a study, those of items that were excluded since left out."""
    rows = [row for row in fetch_rows(connection, tasks_held(), bound) if row.lease_until > bound["at"]]
    if not rows:
        return []
    numbers = {"items": [row.item_id for row in rows]}
    hashes: dict[int, str] = dict(tuple(row) for row in fetch_rows(connection, allowed_items(), bound | numbers))
    rows = [row for row in rows if row.item_id in hashes][: bound["count"]]
    tasks = {"tasks": [row.id for row in rows]}
    drafts: dict[int, Any] = dict(tuple(row) for row in fetch_rows(connection, drafts_of(), tasks))
    return [
        Held(row.id, row.item_id, hashes[row.item_id], row.display_order, row.lease_until, drafts.get(row.id))
        for row in rows
    ]


def not_out() -> list[sa.ColumnElement[bool]]:
    """An item is not excluded, nor its prompt or one of its answers."""
    slot, answer, gone = tables.item_completion.c, tables.completion.c, tables.exclusion.c
    out = sa.exists().where(gone.target_id.in_([item.sha256, item.prompt_sha256])).correlate(tables.item)
    of_item = sa.and_(slot.item_id == item.id, answer.id == slot.completion_id)
    return [~out, ~sa.exists().where(of_item, gone.target_id == answer.content_sha256).correlate(tables.item)]


@cache
def gold_had() -> sa.Select[Any]:
    """The gold tasks that a person has had in a study, as many as are asked for."""
    query = sa.select(asked_of.id).join(tables.item).where(asked_of.labeler == sa.bindparam("labeler"))
    query = query.where(asked_of.state.in_(("open", "ended", "done")))
    query = query.where(item.study == sa.bindparam("study"), item.acquisition == "gold")
    return query.limit(sa.bindparam("wanted"))


def _own(what: Any) -> Any:
    """What a person had of one item after the other, as they are looked at: of a join PostgreSQL, which knows little of a table that
    grows, may make all rows first and sort them."""
    mine = [asked_of.item_id == item.id, asked_of.labeler == sa.bindparam("labeler")]
    return sa.select(what).where(*mine).correlate(tables.item).scalar_subquery()


@cache
def candidates() -> sa.Select[Any]:
    """Items with all that decides whether a person can be given one; `own` is what they had of it."""
    slot = tables.item_completion.c
    slots = sa.select(sa.func.count()).where(slot.item_id == item.id).correlate(tables.item).scalar_subquery()
    return sa.select(
        *(item.id, item.sha256, item.turn, slots.label("slots")),
        *(_own(asked_of.id).label("own"), _own(asked_of.state).label("own_state")),
        sa.and_(*not_out()).label("allowed"),
        (sa.func.coalesce(item.need, sa.bindparam("overlap")) - people(item, takes_place(asked_of))).label("places"),
    )


def _of_study(query: sa.Select[Any]) -> sa.Select[Any]:
    query = query.where(item.study == sa.bindparam("study"))
    return query.where(sa.or_(item.topic.is_(None), item.topic.not_in(several("barred"))))


def _unless_had() -> sa.ColumnElement[bool]:
    """Who let a lease end may be given the item again."""
    return sa.func.coalesce(_own(asked_of.state), "ended") == "ended"


@cache
def first_in_line(reasons: Sequence[str | None], take: bool = False) -> sa.Select[Any]:
    """The number of the one that comes next, in the line or of those that nobody was given, for the first of these reasons that has one:
    what stands after the first that is there is not looked at. To `take` it is locked, and those that other transactions have locked are
    passed over; SQLite has one writer, and no need of it."""
    lines = [query.limit(1) for query in (begun_item(), *map(fresh_item, reasons))]
    if take:
        lines = [line.with_for_update(of=tables.item, key_share=True, skip_locked=True) for line in lines]
    return sa.select(sa.func.coalesce(*(line.scalar_subquery() for line in lines)).label("number"))


@cache
def begun_item() -> sa.Select[Any]:
    """The line."""
    query = _of_study(sa.select(item.id)).where(item.turn >= sa.bindparam("passed"), _unless_had())
    return query.order_by(item.turn, item.id)


@cache
def fresh_item(why: str | None) -> sa.Select[Any]:
    """Those that nobody was given."""
    query = _of_study(sa.select(item.id)).where(item.state == "open")
    query = query.where(item.acquisition.is_(None) if why is None else item.acquisition == why)
    # By `acquisition` too, or PostgreSQL, for which IS NULL says nothing of an order, sorts all of them.
    return query.order_by(item.acquisition.desc(), item.priority.desc(), item.id.desc())


@cache
def numbered_candidate() -> sa.Select[Any]:
    return candidates().where(item.id == sa.bindparam("number"))


@cache
def gold_items() -> sa.Select[Any]:
    """Everybody may be asked them."""
    query = _of_study(candidates()).where(item.state == "open", item.acquisition == "gold", _unless_had())
    return query.where(*not_out())


def _claimed(connection: sa.Connection, asking: Study, bound: Values, count: int) -> Iterator[Held]:
    """New leases. Which of a person's tasks are gold, and which of the others from the random sample, the seed decides for each."""
    settings, labeler = asking.settings, bound["labeler"]
    barred = [topic for topic, people in settings.topics.items() if labeler not in people]
    bound |= {"overlap": settings.overlap, "barred": barred, "wanted": settings.qualification}
    had = len(fetch_rows(connection, gold_had(), bound)) if settings.qualification else 0
    known = bound["passed"]
    for _ in range(count):
        bound["at"], place = now(), bound["newest"]
        first_round = had < settings.qualification
        gold = first_round or uniform(settings.seed, "gold", labeler, place) < settings.gold_rate
        had += gold
        at_random = uniform(settings.seed, "random", labeler, place) < settings.random_share
        found = _gold_item(connection, settings.seed, bound) if gold else None
        if not (first_round and found) and not may_go_on(connection, asking, labeler):
            break
        if found is None:
            reasons = ("random", "informative", None) if at_random else ("informative", None, "random")
            if (found := _free_item(connection, reasons, bound)) is None:
                break
            turn = place if found.turn is None else found.turn
            left = ("begun", turn) if found.places > 1 else ("full", None)
            fetch_rows(connection, put_item(), {"number": found.id, "becomes": left[0], "joins": left[1]})
            bound["passed"] = max(bound["passed"], turn - SLACK)
        yield (held := _lease(connection, asking, found, bound))
        bound["newest"] = max(place, held.id)
    if bound["passed"] > known + SLACK or (known == 0 and bound["passed"] > 0):
        _write_passed(connection, bound)


def _write_passed(connection: sa.Connection, bound: Values) -> None:
    place = tables.passed.c
    mine = [place.labeler == bound["labeler"], place.study == bound["study"]]
    if connection.execute(sa.update(tables.passed).where(*mine).values(turn=bound["passed"])).rowcount == 0:
        insert_new(
            connection,
            tables.passed,
            [{name: bound[name] for name in ("labeler", "study")} | {"turn": bound["passed"]}],
        )


def _gold_item(connection: sa.Connection, seed: str, bound: Values) -> Any:
    """Each person has an order of their own."""
    rows = fetch_rows(connection, gold_items(), bound)
    return min(rows, key=lambda row: uniform(seed, "gold", bound["labeler"], row.sha256), default=None)


def _free_item(connection: sa.Connection, reasons: Sequence[str | None], bound: Values) -> Any:
    last = time.monotonic() + LONGEST_WAIT  # the other may itself wait for what this transaction holds
    while True:
        while (number := fetch_rows(connection, first_in_line(reasons, take=True), bound)[0].number) is not None:
            # People are counted under its lock: they may have been given it after the query above began.
            (found,) = fetch_rows(connection, numbered_candidate(), bound | {"number": number})
            had = found.own_state not in (None, "ended")
            if found.allowed and found.places > 0 and not had:
                return found
            left = ("begun", bound["newest"]) if found.allowed and found.places > 0 else ("full", None)
            fetch_rows(connection, put_item(), {"number": number, "becomes": left[0], "joins": left[1]})
        if connection.dialect.name == "sqlite" or time.monotonic() > last:
            return None
        bound["passed"] = 0
        if fetch_rows(connection, first_in_line(reasons), bound)[0].number is None:
            return None
        time.sleep(RETRY_SECONDS)


def _lease(connection: sa.Connection, asking: Study, found: Any, bound: Values) -> Held:
    until = datetime.fromisoformat(bound["at"]) + timedelta(seconds=asking.settings.lease_seconds)
    ends = until.isoformat(timespec="milliseconds")
    order = list(display_order(asking.name, found.sha256, bound["labeler"], found.slots))
    if (number := found.own) is None:
        values = {
            "of_item": found.id,
            "by": bound["labeler"],
            "order": tuple(order),
            "ends": ends,
            "begins": bound["at"],
        }
        ((number,),) = fetch_rows(connection, new_task(), values)
        return Held(number, found.id, found.sha256, order, ends)
    fetch_rows(connection, lend_again(), {"number": number, "ends": ends})
    drafts: dict[int, Any] = dict(tuple(row) for row in fetch_rows(connection, drafts_of(), {"tasks": [number]}))
    return Held(number, found.id, found.sha256, order, ends, drafts.get(number))


@cache
def new_task() -> Any:
    names = {"item_id": "of_item", "labeler": "by", "display_order": "order", "lease_until": "ends"}
    values: Values = {column: sa.bindparam(name) for column, name in names.items()}
    values["created_at"] = sa.bindparam("begins")
    return sa.insert(tables.assignment).values(state="open", **values).returning(asked_of.id)


@cache
def lend_again() -> sa.Update:
    change = sa.update(tables.assignment).where(asked_of.id == sa.bindparam("number"))
    return change.values(state="open", lease_until=sa.bindparam("ends"))


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
    lock_people(connection, named["labelers"])
    asked = _asked(connection, asking, named)
    at = now()
    stated = [_stated(asking, asked.get((j.item_id, j.labeler)), j, at) for j in judgements]
    new = _store(store, fetch_rows(connection, earlier_answers(), named), stated)
    if new:
        _finish(connection, asking, [(asked[j.item_id, j.labeler], j) for j in new])
    known: dict[str, Judgement] = {}
    if again := {j.id for j in stated} - {j.id for j in new}:
        known = {j.id: j for _, j in judged_where(connection, [tables.judgement.c.sha256.in_(again)])}
    return [known.get(j.id, j) for j in stated]


class TaskRow(NamedTuple):
    """What one person was asked, and what of its item matters to their answer."""

    id: int
    item_id: int
    labeler: str
    display_order: Sequence[int]
    state: str
    lease_until: str
    first_seen_at: str | None
    topic: str | None


@cache
def items_asked() -> sa.Select[Any]:
    return sa.select(item.id, item.sha256, item.topic, item.study).where(item.sha256.in_(several("items")))


@cache
def tasks_asked() -> sa.Select[Any]:
    query = sa.select(*(asked_of[name] for name in TaskRow._fields if name != "topic"))
    return query.where(asked_of.item_id.in_(several("numbers")), asked_of.labeler.in_(several("labelers")))


def _asked(connection: sa.Connection, asking: Study, named: Values) -> dict[tuple[str, str], TaskRow]:
    """By the item's hash and the person."""
    items = {row.id: row for row in fetch_rows(connection, items_asked(), named) if row.study == asking.name}
    rows = fetch_rows(connection, tasks_asked(), named | {"numbers": list(items)}) if items else ()
    return {(items[row.item_id].sha256, row.labeler): TaskRow._make((*row, items[row.item_id].topic)) for row in rows}


@cache
def earlier_answers() -> sa.Select[Any]:
    query = sa.select(judged.sha256, judged.item_sha256, judged.labeler, judged.criterion, judged.supersedes)
    return query.where(judged.item_sha256.in_(several("items")), judged.labeler.in_(several("labelers")))


def _stated(asking: Study, asked: TaskRow | None, judgement: Judgement, at: str) -> Judgement:
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
    if asked.state in ("returned", "ended") or (asked.state == "open" and asked.lease_until < at):
        marks["late"] = None
    if judgement.labeler not in asking.settings.topics.get(asked.topic or "", (judgement.labeler,)):
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


@cache
def end_task() -> sa.Update:
    change = sa.update(tables.assignment).where(asked_of.id == sa.bindparam("number"))
    return change.values(state=sa.bindparam("becomes"))


@cache
def end_draft() -> sa.Delete:
    return sa.delete(tables.draft).where(tables.draft.c.assignment_id == sa.bindparam("number"))


def _finish(connection: sa.Connection, asking: Study, answered_tasks: Sequence[tuple[TaskRow, Judgement]]) -> None:
    """Nobody holds what was answered any more; an item that enough people have judged is closed, and who takes an answer back and skips
    leaves their place again."""
    states = {asked.id: "returned" for asked, _ in answered_tasks}
    states |= {
        asked.id: "done"
        for asked, judgement in answered_tasks
        # To skip a criterion takes nothing back of what was said on the whole.
        if judgement.outcome != "skip" or (judgement.criterion is not None and asked.state == "done")
    }
    for number, state in states.items():
        fetch_rows(connection, put_task(), {"number": number, "becomes": state})
    if drafts := fetch_rows(connection, drafts_of(), {"tasks": list(states)}):
        gone = tables.draft.c.assignment_id.in_([row.assignment_id for row in drafts])
        connection.execute(sa.delete(tables.draft).where(gone))
    settle(connection, asking.settings.overlap, items={asked.item_id for asked, _ in answered_tasks})


@cache
def put_task() -> sa.Update:
    change = sa.update(tables.assignment).where(asked_of.id == sa.bindparam("number"))
    return change.values(state=sa.bindparam("becomes"))
