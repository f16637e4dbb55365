"""What users' votes weigh where a recipe learns from them: reliability × cap × inverse propensity.

Users' votes are noisier than annotators', so their reliability is fitted on them alone. A vote on arms that were rarely chosen stands for
many that were not cast: it weighs 1 / propensity (Horvitz and Thompson 1952), at most `most`, which trades a little bias for much less
variance (Ionides 2008, truncated importance sampling). What was over its user's cap weighs 0.
"""

import sqlalchemy as sa

from bridle.core.errors import DataError
from bridle.feedback.quality.reliability import reliability_weights
from bridle.feedback.quality.votes import read_votes
from bridle.feedback.serving.honesty import OVER_CAP
from bridle.feedback.store import tables
from bridle.feedback.store.reading import SERVING, in_force
from bridle.feedback.store.store import Store

MOST = 5.0


def serving_weights(store: Store, *, most: float = MOST) -> dict[str, float]:
    """The weight of each vote of users in force, by its judgement's id: for `Store.take_snapshot(sources=…, weights=…)`."""
    if not most >= 1:
        raise DataError(f"an inverse propensity is capped at {most:g}, but that must be at least 1")
    judgement = tables.judgement.c
    reliability = users_reliability(store)
    query = sa.select(judgement.sha256, judgement.labeler, judgement.client, judgement.marks)
    with store.reading() as connection:
        propensity = propensities(connection)
        rows = connection.execute(query.where(in_force(), judgement.source == SERVING).order_by(judgement.id)).all()
    found = {}
    for row in rows:
        chosen = propensity.get((row.client or {}).get("comparison", ""), 1.0)
        within = OVER_CAP not in (row.marks or ())
        found[row.sha256] = reliability.get(row.labeler, 1.0) * within * min(1 / chosen, most)
    return found


def users_reliability(store: Store) -> dict[str, float]:
    """What each user's votes weigh by how reliable they are, the mean being 1: by votes within the cap."""
    weight = tables.judgement.c.weight
    counted = sa.or_(weight.is_(None), weight > 0)
    judged = sa.select(tables.judgement.c.id).where(in_force(), tables.judgement.c.source == SERVING, counted)
    with store.reading() as connection:
        if connection.execute(judged.limit(1)).first() is None:
            return {}
    return reliability_weights(read_votes(store, SERVING, [counted]))


def propensities(connection: sa.Connection) -> dict[str, float]:
    """The probability with which each comparison's pair of arms was chosen."""
    table, served = tables.comparison.c, tables.served.c
    query = sa.select(table.public_id, served.propensity).join(tables.served, served.public_id == table.first)
    return dict(tuple(row) for row in connection.execute(query))
