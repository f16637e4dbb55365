"""A study's items as its owner lists them."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from bridle.core.errors import DataError
from bridle.feedback.store import tables
from bridle.feedback.store.reading import equal, not_blanked
from bridle.feedback.store.rows import Values
from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import open_or_done


def listed_items(
    store: Store, study: str, *, after: int = 0, limit: int = 100, state: str | None = None, topic: str | None = None
) -> list[Values]:
    """Items whose numbers are above `after`, the lowest first, with their prompts' last turns and how many people have judged them."""
    item, prompt, asked = tables.item.c, tables.prompt.c, tables.assignment.c
    judged = sa.select(sa.func.count()).where(asked.item_id == item.id, asked.state == "done").scalar_subquery()
    columns = [item.kind, item.acquisition, item.topic, item.need, item.priority, item.gold, prompt.messages]
    named = [item.id.label("number"), item.sha256.label("item"), open_or_done().label("state"), judged.label("judged")]
    query = sa.select(*named, *columns)
    query = query.join(tables.prompt).where(item.study == study, item.id > after, not_blanked())
    query = query.where(*equal({open_or_done(): state, item.topic: topic})).order_by(item.id).limit(limit)
    with store.reading() as connection:
        rows = [dict(row) for row in connection.execute(query).mappings()]
    return [row | {"prompt": row.pop("messages")[-1]["content"]} for row in rows]


def item_kind(store: Store, study: str, item_id: str) -> str | None:
    """What kind of item it is; None where the study has none of this id."""
    item = tables.item.c
    with store.reading() as connection:
        query = sa.select(item.kind).where(item.sha256 == item_id, item.study == study)
        return connection.execute(query).scalar()


def set_item_priorities(store: Store, study: str, priorities: Sequence[tuple[str, float]]) -> None:
    """The higher an item's priority is, the sooner it is asked. DataError, and nothing changed, for one of the random sample, whose order
    was drawn, or of another study."""
    item = tables.item.c
    change = sa.update(tables.item).where(item.sha256 == sa.bindparam("item_id"), item.study == study)
    change = change.where(item.acquisition.is_distinct_from("random")).values(priority=sa.bindparam("order"))
    with store.writing() as connection:
        for item_id, priority in priorities:
            bound: dict[str, Any] = {"item_id": item_id, "order": priority}
            if not connection.execute(change, bound).rowcount:
                raise DataError(
                    f"item {item_id[:12]} is part of the random sample, whose order stays as it was drawn, or not of study {study!r}; "
                    "give another a priority"
                )
