"""Whether a store is what was written into it: the database's own checks, hashes of contents, checksums, snapshots, the account.

A row that a disk changed in silence is named with its table. Not covered, for nothing in the store says what they were: states, priorities
and times of items, texts and solutions, exclusions, adjudications, accounts, assignments, scores, models and reports of imports. Nor does
it prove anything against somebody who changes a store on purpose and its hashes with it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Table, select
from sqlalchemy.exc import DBAPIError

from bridle.core.errors import BridleError
from bridle.feedback.exporting.whole import WHAT_WAS_SAID, table_rows
from bridle.feedback.store import tables
from bridle.feedback.store.checksums import UNCOVERED, checksum, checksum_of
from bridle.feedback.store.reading import PAGE, snapshot_of, taken_down
from bridle.feedback.store.store import Store
from bridle.feedback.upkeep.audit import audit_faults
from bridle.feedback.upkeep.hashes import hash_column, hash_fault

UNREADABLE = (DBAPIError, sqlite3.Error, BridleError, ArithmeticError, LookupError, OSError, TypeError, ValueError)


def store_faults(store: Store) -> Iterator[str]:
    """One sentence for each row, or each table, that is not as it was written, in one state of the store."""
    with store.reading() as connection, lenient_text(connection):
        yield from readable("the database", database_faults(connection))
        yield from readable("audit", audit_faults(connection))
        for table in WHAT_WAS_SAID:
            if "checksum" in table.c:
                yield from readable(table.name, checksum_faults(connection, table))
            yield from readable(table.name, content_faults(connection, table))
        yield from readable("snapshot", snapshot_faults(connection))


def readable(name: str, faults: Iterator[str]) -> Iterator[str]:
    """The faults, and last that reading broke off, where it did."""
    try:
        yield from faults
    except UNREADABLE as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        yield f"{name}: it cannot be read to its end ({' '.join(str(cause).split())})"


def database_faults(connection: Connection) -> Iterator[str]:
    if connection.dialect.name != "sqlite":  # PostgreSQL checks references itself, and its pages where it was set up to
        return
    for (found,) in connection.exec_driver_sql("PRAGMA integrity_check"):
        if found != "ok":
            yield f"the database: {found}"
    for table, row, target, _ in connection.exec_driver_sql("PRAGMA foreign_key_check"):
        yield f"{table} {row}: it refers to a {target} that is not there"


def checksum_faults(connection: Connection, table: Table) -> Iterator[str]:
    """Rows whose values are not those of their checksum: in SQLite as its driver gives them, in PostgreSQL as they are read."""
    names = sorted(column.name for column in table.c if column.name not in UNCOVERED)
    if connection.dialect.name == "sqlite":
        raw = connection.exec_driver_sql(f"SELECT id, checksum, {', '.join(names)} FROM {table.name} ORDER BY id")
        rows = ((row[0], row[1], checksum(row[2:])) for page in raw.partitions(PAGE) for row in page)
    else:
        read = connection.execute(select(table).order_by(table.c.id).execution_options(yield_per=PAGE))
        rows = ((row.id, row.checksum, checksum_of(row._asdict())) for row in read)
    for number, stored, found in rows:
        if stored != found:
            yield f"{table.name} {number}: its values are not those of its checksum"


def content_faults(connection: Connection, table: Table) -> Iterator[str]:
    gone = taken_down(connection)
    for row in table_rows(connection, table):
        if fault := hash_fault(table.name, row, gone):
            yield f"{table.name} {row['id']} ({str(row[hash_column(table.name)])[:12]}): {fault}"


def snapshot_faults(connection: Connection) -> Iterator[str]:
    for number, key in connection.execute(select(tables.snapshot.c.id, tables.snapshot.c.sha256)).all():
        try:
            snapshot_of(connection, key)
        except BridleError as error:
            yield f"snapshot {number}: {error}"


@contextmanager
def lenient_text(connection: Connection) -> Iterator[None]:
    """In SQLite bytes that are no UTF-8 are read as what no text holds, so that the row is named and the others are read."""
    raw: Any = connection.connection.dbapi_connection
    if connection.dialect.name != "sqlite":
        yield
        return
    raw.text_factory = lambda found: found.decode("utf-8", "surrogateescape")
    try:
        yield
    finally:
        raw.text_factory = str
