"""A copy of a store that is whole, taken while others write, and put back.

The copy is an SQLite file, or JSON lines with every table (accounts and drafts too) where its name ends in .jsonl or .jsonl.gz. Either is
made from and restored into either database.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from bridle.core.errors import BridleError, DataError, StoreError, UsageError
from bridle.core.files import flush, saving, temporary
from bridle.core.text import one_line
from bridle.feedback.exporting.whole import WHAT_WAS_SAID, WHO_WORKS_ON_IT, is_header, store_rows_in, store_rows_out
from bridle.feedback.exporting.writing import LINES, new_file, opened_text, write_json_rows
from bridle.feedback.importing.files.source import RowSource
from bridle.feedback.store import tables
from bridle.feedback.store.store import Store
from bridle.feedback.upkeep.audit import append_audit
from bridle.feedback.upkeep.verify import store_faults

EVERYTHING = (*WHAT_WAS_SAID, *WHO_WORKS_ON_IT)
STEP = 1_000  # pages that are copied in one go
SIDES = ("", "-wal", "-shm")  # the files of one SQLite database


def back_up(store: Store, place: Path, force: bool = False) -> dict[str, Any]:
    """Copy a store as it is at this moment, verified; how many rows. UsageError where `place` is there, without `force`."""
    with new_file(place, force, store) as new:
        if place.name.lower().endswith(LINES):
            with store.reading() as connection, opened_text(new, place.name.lower().endswith(".gz")) as file:
                write_json_rows(file, False, store_rows_out(connection, EVERYTHING))
            with temporary(place.with_name(f"{place.name}.trial"), Path.touch) as trial:
                fill(trial, new)
                count = verified(trial)
        else:
            copy_of(store, new)
            count = verified(new)
        if place.exists():  # a log of the one before would be taken for one of this
            for side in SIDES[1:]:
                place.with_name(place.name + side).unlink(missing_ok=True)
    return {"backup": str(place), "rows": count, "bytes": place.stat().st_size}


def copy_of(store: Store, new: Path) -> None:
    """Write a store as an SQLite file."""
    with store.reading() as connection:
        connection.execute(select(func.count()).select_from(tables.labeler))  # from here on it is this one state
        if connection.dialect.name == "sqlite":
            raw: Any = connection.connection.dbapi_connection
            with closing(sqlite3.connect(new)) as copy:
                raw.backup(copy, pages=STEP)
            return
        with Store.open(new) as other, other.writing() as there:
            store_rows_in(there, "the store", enumerate(store_rows_out(connection, EVERYTHING)))


def verified(path: Path) -> int:
    """How many rows a copy has; StoreError where it is not as it was written. Its log goes into it, so that it is one file."""
    with Store.open(path) as copy:
        if faults := list(store_faults(copy)):
            raise StoreError(
                f"the copy is not sound ({len(faults)} faults; the first: {faults[0]}); nothing was replaced"
            )
        return sum(copy_counts(copy).values())


def copy_counts(store: Store) -> dict[str, int]:
    with store.reading() as connection:
        return {t.name: connection.execute(select(func.count()).select_from(t)).scalar_one() for t in EVERYTHING}


# --------------------------------------------------------------------------------------------------------- putting back


def restore_file(source: Path, place: Path, *, by: str, force: bool = False) -> dict[str, Any]:
    """Put a backup in the place of a store's file, verified before; how many rows. UsageError where a store there holds anything, without
    `force`. The one that is replaced lies beside it until the new one was opened."""
    if not force and holds_anything(place):
        raise UsageError(
            f"{place} holds a store, which would be lost; back it up (`bridle store backup`) and replace it with --force"
        )
    with saving(place), temporary(place, Path.touch) as new:
        fill(new, source)
        count = verified(new)
        with Store.open(new) as store, store.writing() as connection:
            append_audit(connection, by, "restore", one_line(source.name, 200), {"rows": count})
        flush(new)
        before = place.with_name(f"{place.name}.before-restore")
        for side in SIDES:
            with suppress(FileNotFoundError):
                os.replace(place.with_name(place.name + side), before.with_name(before.name + side))
        os.replace(new, place)
        flush(place.parent)
        verified(place)
        for side in SIDES:
            before.with_name(before.name + side).unlink(missing_ok=True)
    return {"restored": str(place), "rows": count}


def restore_into(store: Store, source: Path, *, by: str) -> dict[str, Any]:
    """Put a backup into a store that holds nothing, such as a new PostgreSQL database, in one transaction."""
    if sum(copy_counts(store).values()):
        raise UsageError(
            "the store holds something already, and a database is not emptied; make a new one for the backup"
        )
    with store.writing() as connection:
        count = add_backup(connection, source)
        append_audit(connection, by, "restore", one_line(source.name, 200), {"rows": count})
    return {"restored": source.name, "rows": count}


def holds_anything(place: Path) -> bool:
    if not place.exists():
        return False
    try:
        with Store.open(place) as store:
            return sum(copy_counts(store).values()) > 0
    except BridleError:  # damaged, or of a newer version: not nothing
        return True


def fill(new: Path, source: Path) -> None:
    """Make an SQLite file of a backup."""
    if is_sqlite(source):
        # A file that is only read, and has no log, needs none beside it.
        how = "mode=ro" if source.with_name(f"{source.name}-wal").exists() else "immutable=1"
        uri = f"{source.absolute().as_uri()}?{how}"
        try:
            with closing(sqlite3.connect(uri, uri=True)) as there, closing(sqlite3.connect(new)) as copy:
                there.backup(copy, pages=STEP)
        except sqlite3.Error as error:
            raise StoreError(f"{source} cannot be read ({error}); name another backup") from error
        return
    with Store.open(new) as store, store.writing() as connection:
        add_backup(connection, source)


def add_backup(connection: Any, source: Path) -> int:
    """Add every row of a backup to a store that holds nothing."""
    if is_sqlite(source):
        with Store.open(source) as other, other.reading() as there:
            counts, _ = store_rows_in(connection, str(source), enumerate(store_rows_out(there, EVERYTHING)))
            return counts.total()
    rows = ((row.number, row.value) for row in RowSource(source) if row.value is not None)
    first = next(rows, (0, None))
    if not is_header(first[1]):
        raise DataError(f"{source} is not a backup of a store; name a file that `bridle store backup` wrote")
    counts, _ = store_rows_in(connection, str(source), chain([first], rows))
    return counts.total()


def is_sqlite(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); name a file that `bridle store backup` wrote"
        ) from error
