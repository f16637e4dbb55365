"""The round of gold items that stands before a study's real work: how far somebody is, and whether they may go on.

How right a judgement is: the mean over all pairs of answers of 1 where it says of them what gold says, ½ where one of both calls them equal
and the other does not, 0 where it says the reverse. Who cannot judge an item is not right about it. Somebody passes whose mean over the
round's items is at least the study's `pass_mark`; where a study has no gold, nobody can be measured, and everybody passes. Whom the owner
lets in needs no mark.
"""

from collections.abc import Sequence
from functools import cache
from itertools import combinations
from statistics import fmean
from typing import Any, NamedTuple

import sqlalchemy as sa

from bridle.feedback.store import tables
from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import Study, find_study, set_study
from bridle.feedback.upkeep.audit import append_audit

Groups = Sequence[Sequence[int]]


class Round(NamedTuple):
    """The items of somebody's round that they were given, and how right they were in each that they have done."""

    items: Sequence[str]
    right: Sequence[float]


def share_right(ranking: Groups, gold: Groups) -> float:
    given, known = ({slot: place for place, group in enumerate(one) for slot in group} for one in (ranking, gold))
    pairs = [(a, b) for a, b in combinations(sorted(known), 2) if a in given and b in given]
    return fmean(1 - abs(order(given, a, b) - order(known, a, b)) / 2 for a, b in pairs) if pairs else 0.0


def order(place: dict[int, int], a: int, b: int) -> int:
    return (place[a] > place[b]) - (place[a] < place[b])


@cache
def round_query() -> sa.Select[Any]:
    """The latest answer on the whole, of each of the first gold items that a person was given."""
    given, item, own = tables.assignment.c, tables.item, tables.judgement.alias("own").c
    newer = tables.judgement.alias("newer").c
    mine = [own.item_sha256 == item.c.sha256, own.labeler == given.labeler, own.criterion.is_(None)]
    current = ~sa.exists().where(newer.supersedes == own.sha256).correlate(own.sha256.table)
    ranking = sa.select(own.ranking).where(*mine, current).correlate(tables.assignment, item).limit(1)
    query = sa.select(item.c.sha256, given.state, item.c.gold, ranking.scalar_subquery().label("ranking"))
    query = query.select_from(tables.assignment).join(item, item.c.id == given.item_id)
    query = query.where(given.labeler == sa.bindparam("labeler"), item.c.study == sa.bindparam("study"))
    query = query.where(item.c.acquisition == "gold", given.state != "returned")
    return query.order_by(given.id).limit(sa.bindparam("count"))


def round_of(connection: sa.Connection, study: Study, labeler: str) -> Round:
    bound = {"labeler": labeler, "study": study.name, "count": study.settings.qualification}
    rows = connection.execute(round_query(), bound).all()
    done = [share_right(row.ranking or (), row.gold) for row in rows if row.state == "done"]
    return Round([row.sha256 for row in rows], done)


def may_go_on(connection: sa.Connection, study: Study, labeler: str) -> bool:
    """Whether somebody whose round is over is given real work."""
    settings = study.settings
    if not settings.pass_mark or not settings.qualification or labeler in settings.let_in:
        return True
    found = round_of(connection, study, labeler)
    if not found.items:
        return True
    return len(found.right) == len(found.items) and fmean(found.right) >= settings.pass_mark


def qualification(store: Store, study: Study, labeler: str) -> tuple[Round, bool]:
    """Somebody's round, and whether they may go on after it."""
    with store.reading() as connection:
        return round_of(connection, study, labeler), may_go_on(connection, study, labeler)


def let_in(store: Store, study: str, labeler: str, *, by: str) -> None:
    """Give somebody real work whatever their round says."""
    with store.transaction() as one, one.writing() as connection:
        found = find_study(one, study)
        handles = () if found is None else found.settings.let_in
        if labeler not in handles:
            set_study(one, study, {"let_in": [*handles, labeler]}, state="open" if found is None else found.state)
            append_audit(connection, by, "let in", labeler, {"study": study})
