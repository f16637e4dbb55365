"""Turns of the flywheel in the store's account: each step of each turn, with what came of it."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from bridle.feedback.store import tables
from bridle.feedback.store.store import Store
from bridle.feedback.upkeep.audit import append_audit

TURN_STEP = "turn"  # the action of these rows


def keep_step(store: Store, turn: int, step: str, found: Mapping[str, Any], *, by: str) -> None:
    """Write down what came of a step."""
    with store.writing() as connection:
        append_audit(connection, by, TURN_STEP, f"{turn}/{step}", dict(found))


def steps_taken(store: Store) -> list[tuple[int, str, dict[str, Any]]]:
    """Every step of every turn, in their order: the turn, the step, and what came of it."""
    table = tables.audit.c
    query = select(table.object, table.details).where(table.action == TURN_STEP).order_by(table.id)
    with store.reading() as connection:
        rows = connection.execute(query).all()
    return [(int(name.partition("/")[0]), name.partition("/")[2], dict(details)) for name, details in rows]
