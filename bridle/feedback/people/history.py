"""What one person answered before, for them to see and to change, and to see how they are doing."""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from bridle.core.records import Judgement, Rating
from bridle.feedback.people.qualification import share_right
from bridle.feedback.quality.tiredness import Moment
from bridle.feedback.rankings import Item
from bridle.feedback.store import tables
from bridle.feedback.store.ratings import rated_where
from bridle.feedback.store.reading import judged_where
from bridle.feedback.store.store import Store

PAUSE = 1800.0  # seconds without an answer, after which somebody begins anew
judged, item = tables.judgement.c, tables.item.c


def _current() -> sa.ColumnElement[bool]:
    newer = tables.judgement.alias("newer").c
    return ~sa.exists().where(newer.supersedes == judged.sha256).correlate(tables.judgement)


def own_answers(
    store: Store, study: str, labeler: str, *, limit: int = 20, offset: int = 0
) -> list[tuple[Item, Judgement]]:
    """A person's answers on the whole that nothing supersedes, the newest first, also those that skip. Not the pairs that come of edits."""
    with store.reading() as connection:
        numbers = _own(connection, study, labeler, limit, offset)
        found = judged_where(connection, [judged.id.in_(numbers)])
    return found[::-1]


def _own(connection: sa.Connection, study: str, labeler: str, limit: int, offset: int = 0) -> Sequence[int]:
    query = sa.select(judged.id).select_from(tables.judgement).join(tables.item)
    query = query.where(item.study == study, judged.labeler == labeler, judged.criterion.is_(None), _current())
    query = query.where(judged.display_order.is_not(None))
    return connection.execute(query.order_by(judged.id.desc()).limit(limit).offset(offset)).scalars().all()


def last_items(store: Store, study: str, labeler: str, limit: int = 200) -> list[str]:
    """The items of these answers, without their texts."""
    with store.reading() as connection:
        numbers = _own(connection, study, labeler, limit)
        query = sa.select(judged.item_sha256).where(judged.id.in_(numbers)).order_by(judged.id.desc())
        return list(connection.execute(query).scalars())


def answer_given(store: Store, labeler: str, item_id: str) -> tuple[list[Judgement], list[Rating]]:
    """What a person says of an item now: on the whole and by criterion, and the ratings given with it."""
    with store.reading() as connection:
        where = [judged.item_sha256 == item_id, judged.labeler == labeler, _current()]
        found = [judgement for _, judgement in judged_where(connection, where)]
        first = [one.id for one in found if one.criterion is None]
        rated = [one for _, one in rated_where(connection, [tables.rating.c.judgement_sha256.in_(first)])]
    return found, rated


def recent_moments(store: Store, study: str, labeler: str, most: int = 400) -> list[Moment]:
    """A person's last answers since they paused, the oldest first."""
    query = sa.select(judged.created_at, judged.seconds, judged.ranking, item.gold).select_from(tables.judgement)
    query = query.join(tables.item).where(item.study == study, judged.labeler == labeler, judged.criterion.is_(None))
    query = query.where(judged.display_order.is_not(None)).order_by(judged.id.desc()).limit(most)
    found = list[Moment]()
    later: datetime | None = None
    with store.reading() as connection:
        for created_at, seconds, ranking, gold in connection.execute(query):
            at = datetime.fromisoformat(created_at)
            if later is not None and (later - at).total_seconds() > PAUSE:
                break
            later = at
            found.append((seconds, None if gold is None else share_right(ranking or (), gold) > 0.5))
    return found[::-1]


def was_sent(store: Store, submission_key: str) -> bool:
    """Whether an answer with this key is stored."""
    with store.reading() as connection:
        query = sa.select(judged.id).where(judged.submission_key == submission_key)
        return connection.execute(query).first() is not None
