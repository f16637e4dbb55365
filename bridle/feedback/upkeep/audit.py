"""An account of what was done to a store: exclusions, takedowns, restores, snapshots, adjudications, exports.

Each row's hash covers the row before it, so that one which was changed, taken out or put in between is found. Rows that are cut off at
the end, and a chain that was written anew as a whole, are not: who can write the file can do that.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, insert, select, text

from bridle.core.records import content_hash
from bridle.feedback.store import tables
from bridle.feedback.store.rows import Values, now


def append_audit(connection: Connection, by: str, action: str, what: str, details: Values) -> None:
    """Add a row, in the transaction of what it tells of. `what` is the hash or the name that it was done to; no text of people's."""
    hold_account(connection)
    table = tables.audit.c
    previous = connection.execute(select(table.sha256).order_by(table.id.desc()).limit(1)).scalar()
    row = {"previous_sha256": previous, "actor": by, "action": action, "object": what, "details": details}
    row |= {"created_at": now()}
    connection.execute(insert(tables.audit), [{"sha256": audit_hash(row), **row}])


def hold_account(connection: Connection) -> None:
    """Nobody else adds a row until this transaction ends: two that follow the same one would break the chain. On SQLite one writes at a
    time anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("LOCK TABLE audit IN SHARE ROW EXCLUSIVE MODE"))


def audit_hash(row: Mapping[str, Any]) -> str:
    names = ("previous_sha256", "actor", "action", "object", "details", "created_at")
    return content_hash([row[name] for name in names])


def audit_faults(connection: Connection) -> Iterator[str]:
    """Where the chain is broken."""
    previous = None
    for row in connection.execute(select(tables.audit).order_by(tables.audit.c.id)):
        if row.previous_sha256 != previous:
            yield f"audit {row.id}: it does not follow the row before it, so a row was taken out or put in"
        if audit_hash(row._asdict()) != row.sha256:
            yield f"audit {row.id}: it is not what was written ({row.action} by {row.actor})"
        previous = row.sha256
