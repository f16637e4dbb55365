"""Judgements by the numbers of their arrival, for whoever follows them as they come.

    last = 0
    while found := arrivals(store, after=last):
        last = found[-1].number

A lower number never comes after a higher one was told: in PostgreSQL, which gives numbers in another order than it commits, what is above
one that is still being written waits for it. Everything that was said comes, also what was taken back later: an answer that supersedes
names the one before it. What counts now is what an export holds.
"""

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from bridle.core.errors import StoreError
from bridle.core.records import Judgement
from bridle.feedback.rankings import Item
from bridle.feedback.store import tables
from bridle.feedback.store.database import settled_number
from bridle.feedback.store.reading import SOURCES, Source, equal, in_force, judged_by, judged_in, judged_where
from bridle.feedback.store.rows import judgement_of
from bridle.feedback.store.store import Store


@dataclass(frozen=True)
class Arrival:
    number: int
    study: str
    judgement: Judgement
    supersedes: str | None
    created_at: str


def arrivals(store: Store, after: int = 0, limit: int = 1000, study: str | None = None) -> list[Arrival]:
    """The judgements whose numbers are above `after`, the lowest first, `limit` at most."""
    judgement, item, text = tables.judgement, tables.item.c, tables.free_text
    query = sa.select(judgement, item.study, tables.labeler.c.kind.label("labeler_kind"), text.c.body.label("words"))
    query = query.join(tables.labeler, tables.labeler.c.handle == judgement.c.labeler).join(tables.item)
    query = query.outerjoin(text, text.c.sha256 == judgement.c.rationale)
    query = query.where(judgement.c.id > after, *equal({item.study: study})).order_by(judgement.c.id).limit(limit)
    with store.reading() as connection:
        settled = settled_number(connection)
    if settled is not None:
        query = query.where(judgement.c.id <= settled)
    with store.reading() as connection:
        return [
            Arrival(row.id, row.study, judgement_of(row), row.supersedes, row.created_at)
            for row in connection.execute(query)
        ]


def judged_since(
    store: Store, model: str, sources: Collection[Source] = SOURCES
) -> tuple[list[tuple[Item, Judgement]], int]:
    """The judgements in force, on the whole, of every study and from these sources, that weigh anything and came after a model was
    registered, by its content hash; and how many it learnt from."""
    known, row = tables.model_version.c, tables.snapshot_row.c
    with store.reading() as connection:
        query = sa.select(known.created_at, known.snapshot_sha256).where(known.weights_sha256 == model)
        made = connection.execute(query).first()
        if made is None:
            raise StoreError(
                f"the store knows no model {model[:12]}, so not what came after it; `bridle train reward` makes one that it knows"
            )
        members = sa.select(sa.func.count()).where(row.snapshot_sha256 == made.snapshot_sha256)
        later = tables.judgement.c.created_at > made.created_at
        later = sa.and_(later, sa.func.coalesce(tables.judgement.c.weight, 1) > 0)
        judged = judged_where(connection, [in_force(), judged_by(None), later, *judged_in(None, None, sources)])
        return judged, int(connection.execute(members).scalar_one())
