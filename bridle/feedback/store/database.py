"""The store's database: connecting, SQLite's settings, transactions, migrations, and errors told in one sentence."""

import logging
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from alembic.script.revision import ResolutionError
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, StatementError
from sqlalchemy.pool import ConnectionPoolEntry

from bridle.core.errors import DataError, StoreError
from bridle.core.records import KeptEncoder

BUSY_TIMEOUT_MS = 20_000
CACHE_KIB = 65_536  # at most: an import writes at random places of all indices, in one transaction
STORED_JSON = KeptEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
# Connections to PostgreSQL: none is closed because others wait for none, for a new one knows no statement and takes as long as an answer;
# and the last one that was used is taken first.
POOL = {"pool_size": 15, "max_overflow": 0, "pool_use_lifo": True}
MIGRATIONS = Path(__file__).parent / "migrations"


# Of a database, complete or not.
ADDRESS = re.compile(
    r"(postgres|postgresql|mysql|mariadb|oracle|mssql|sqlite)(\+\w*)?:|.*://", re.IGNORECASE | re.DOTALL
)


def connect(target: str | Path) -> Engine:
    """An engine for a file or a database URL, its schema brought up to date. Raises StoreError."""
    url = _url(target)
    # What it logs comes as an error too. Without a handler of its own Python would print it, with a traceback, as at a Ctrl-C while a
    # connection closes.
    if not (logger := logging.getLogger("sqlalchemy")).handlers:
        logger.addHandler(logging.NullHandler())
    try:
        engine = create_engine(url, json_serializer=_json_text, **({} if url.get_backend_name() == "sqlite" else POOL))
    except (ArgumentError, ImportError) as error:
        why = f" ({error})" if isinstance(error, ImportError) else ""
        raise StoreError(
            f"no store can be opened at a database of the kind {url.drivername!r}{why}; give a file or postgresql+psycopg://…, which takes "
            "`pip install 'bridle[postgres]'`"
        ) from error
    if url.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        # Its one writer is waited for by sleeping and looking again, for long where others are lucky: threads stand in line instead.
        engine.update_execution_options(lane=threading.RLock())
    try:
        with told_plainly(engine):
            migrate(engine)
        if url.get_backend_name() == "sqlite" and (path := Path(str(url.database))).is_file():
            require_the_same_file(engine, path)
    except BaseException:
        engine.dispose()
        raise
    engine.update_execution_options(isolated=isolated(engine))
    return engine


def isolated(engine: Engine) -> dict[str, Engine]:
    """The same engine as it begins transactions that write, that read, and single queries. Made once, for each answer asks for them."""
    if engine.dialect.name == "sqlite":
        return {"writer": engine.execution_options(write=True), "reader": engine, "single": engine}
    # PostgreSQL shows each statement what was stored meanwhile, unless it is told not to.
    levels = {"reader": "REPEATABLE READ", "single": "AUTOCOMMIT"}
    return {"writer": engine} | {how: engine.execution_options(isolation_level=level) for how, level in levels.items()}


def require_the_same_file(engine: Engine, path: Path) -> None:
    """From now on, refuse to read, to write and to make a new file where this one was removed, replaced or cut short: SQLite would
    write into a file that has no name any more, or into an empty one."""
    was = os.stat(path)

    def check(*_: object) -> None:
        nonlocal was
        try:
            now = os.stat(path)
        except OSError as error:
            raise StoreError(f"the store {path} cannot be found any more ({error.strerror}); {WAY_BACK}") from error
        if (now.st_dev, now.st_ino) != (was.st_dev, was.st_ino):
            raise StoreError(
                f"the store {path} was replaced by another file while bridle was at work with it; {WAY_BACK}"
            )
        if now.st_size < was.st_size and not is_whole(path):
            raise StoreError(
                f"the store {path} was cut short from {was.st_size:,} bytes to {now.st_size:,} while bridle was at work with it; "
                f"{WAY_BACK}"
            )
        was = now

    event.listen(engine, "do_connect", check)
    event.listen(engine, "begin", check, insert=True)
    event.listen(engine, "commit", check)


def is_whole(path: Path) -> bool:
    """Whether SQLite finds all pages of a file that has become shorter, as VACUUM makes it. Asked of SQLite, for a process that opens the
    file by itself and closes it gives up the locks of all its connections."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            asked = ("page_count", "page_size", "quick_check(1)")
            count, size, found = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in asked)
            return bool(found == "ok" and 0 < count * size == path.stat().st_size)
    except sqlite3.DatabaseError:
        return False


def _url(target: str | Path) -> URL:
    name = _named(target)
    if "\0" in str(target):
        raise StoreError(f"{name} cannot be a store, for a NUL stands in its name; leave that out")
    if isinstance(target, str) and ADDRESS.match(target):
        if (url := _parsed(target)) is None:
            raise StoreError(
                f"{name} is not a database URL; give a file or postgresql+psycopg://user:password@host/name, with each of : / ? # [ ] @ "
                "and % in the user or the password written as %40 is for @"
            )
        return url
    path = Path(target)
    if path.is_dir():
        raise StoreError(
            f"{name} is a folder, but a store is a file; name a file in it, such as {Path(name) / 'store.sqlite'}"
        )
    if not path.parent.is_dir():
        raise StoreError(
            f"the store {name} cannot be made because there is no folder {Path(name).parent}; create that first"
        )
    return URL.create("sqlite", database=str(path))


def _parsed(target: str) -> URL | None:
    """A database's address; None where it is none, or where a part of a password that is not escaped would be taken for another part, and
    shown as one."""
    try:
        url = make_url(target)
    except (ArgumentError, ValueError):
        return None
    if url.get_backend_name() == "sqlite":
        return url if url.host is None and url.username is None else None
    authority, *rest = re.split("[/?#]", target.partition("://")[2], maxsplit=1)
    return None if authority.count("@") > 1 or "@" in "".join(rest) else url


def _named(target: str | Path) -> str:
    """A file as it is called; of what is a database's address, complete or not, its kind alone, for the rest may be a password."""
    text = str(target)
    if isinstance(target, Path) or not (ADDRESS.match(text) or re.search(":.*@", text, re.DOTALL)):
        return text
    return f"'{kind[0]}…'" if (kind := re.match(r"[\w+]+://", text)) else "'…'"


def _json_text(value: object) -> str:
    return STORED_JSON.encode(value) if value or not isinstance(value, list | dict) else str(value)  # most are empty


def _configure_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    assert isinstance(connection, sqlite3.Connection)
    connection.isolation_level = None  # sqlite3 must not begin transactions by itself: _begin_sqlite does
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    _let_readers_go_on(connection)
    connection.execute("PRAGMA synchronous = FULL")  # what was acknowledged survives a power cut
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")


def _let_readers_go_on(connection: sqlite3.Connection) -> None:
    """While somebody writes: write-ahead logging. Where another process makes the same switch at this moment SQLite refuses at once,
    whatever the timeout, and the file is as wanted when it is done."""
    last = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > last:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and then writes is refused with "locked" in spite of any timeout; so a writer
    # takes the write lock at its start.
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextmanager
def reading(engine: Engine, how: Literal["reader", "single"] = "reader") -> Iterator[Connection]:
    """A transaction that only reads: it sees one state of the store from beginning to end. "single": one query, which does so by itself."""
    reader: Engine = engine.get_execution_options()["isolated"][how]
    with told_plainly(engine), reader.begin() as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that holds the write lock from its start; all of it is kept, synced to disk, or none of it."""
    options = engine.get_execution_options()
    lane: AbstractContextManager[object] = options.get("lane", nullcontext())
    writer: Engine = options["isolated"]["writer"]
    with lane, told_plainly(engine), writer.begin() as connection:
        yield connection


@contextmanager
def joining(engine: Engine, connection: Connection) -> Iterator[Connection]:
    """A part of a transaction that another call began and will end."""
    with told_plainly(engine):
        yield connection


FOLLOWED = 0x627269  # the kind of the advisory locks that say which numbers of judgements are still to come


def hold_numbers(connection: Connection) -> None:
    """Before judgements are inserted into PostgreSQL, which gives numbers in another order than it commits: say until this transaction ends
    that numbers from the last one on are not settled. Nobody waits for it. SQLite has one writer, and its numbers come in order."""
    if connection.dialect.name != "postgresql":
        return
    connection.exec_driver_sql(
        f"SELECT pg_advisory_xact_lock_shared({FOLLOWED}, last_value::int) FROM judgement_id_seq"
    )


def settled_number(connection: Connection) -> int | None:
    """No judgement of this number or a lower one is still to come, for whoever begins to read after this returns; None: of any that is
    there now. Who had a number when `last` is read had said before that they would, and says so still, or has committed: what was
    committed is seen before its locks go."""
    if connection.dialect.name != "postgresql":
        return None
    held = (
        f"SELECT min(objid::bigint) FROM pg_locks WHERE locktype = 'advisory' AND classid = {FOLLOWED} AND objsubid = 2"
    )
    held += " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    last: int = connection.exec_driver_sql("SELECT last_value FROM judgement_id_seq").scalar_one()
    coming: int | None = connection.exec_driver_sql(held).scalar_one()
    return last if coming is None else min(last, coming - 1)


def migrate(engine: Engine) -> None:
    """Bring the schema to the newest migration. A current store is only read."""
    scripts = ScriptDirectory(str(MIGRATIONS))
    with engine.begin() as connection:
        if _revision(connection) == scripts.get_current_head():
            return
        known_tables = inspect(connection).get_table_names()
    with _changing_schema(engine) as connection:
        context = MigrationContext.configure(connection)
        revision = context.get_current_revision()  # again: another process may have been faster
        if revision is None and known_tables and not inspect(connection).has_table("alembic_version"):
            raise StoreError(
                f"{_name(engine)} holds the tables of another program ({', '.join(sorted(known_tables)[:3])}…), "
                "and a store needs a database of its own; name another file"
            )
        try:
            missing = list(scripts.iterate_revisions("head", revision or "base"))
        except ResolutionError as error:
            raise StoreError(
                f"the store {_name(engine)} has schema {revision}, but this version of bridle knows none newer than "
                f"{scripts.get_current_head()}; update bridle to open it"
            ) from error
        with Operations.context(context):
            for script in reversed(missing):
                script.module.upgrade()
                context.stamp(scripts, script.revision)


@contextmanager
def _changing_schema(engine: Engine) -> Iterator[Connection]:
    """A transaction that may drop a table that others refer to, to make it anew: SQLite cannot change one, and checks foreign keys as soon
    as one is dropped. They are checked at its end."""
    with engine.execution_options(write=True).connect() as connection:
        sqlite = engine.dialect.name == "sqlite"
        raw: Any = connection.connection.dbapi_connection
        if sqlite:
            raw.execute("PRAGMA foreign_keys = OFF")  # it does nothing within a transaction
        try:
            with connection.begin():
                if not sqlite:  # whose writer is alone; here the next one waits, and looks again at what it finds
                    connection.exec_driver_sql(
                        "SELECT pg_advisory_xact_lock(hashtext('bridle'), hashtext(current_schema()))"
                    )
                yield connection
                if sqlite and (broken := connection.exec_driver_sql("PRAGMA foreign_key_check").first()):
                    raise StoreError(
                        f"the store {_name(engine)} cannot be brought up to date, for a row of its table {broken[0]!r} refers to one of "
                        f"{broken[2]!r} that is not there; restore a backup of it"
                    )
        finally:
            if sqlite:
                raw.execute("PRAGMA foreign_keys = ON")


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


WAY_BACK = "nothing of this step was kept; put the file back, or a backup of it, and run the same command again"
HINTS = {
    "no such table": "it was emptied or replaced while bridle was at work; restore a backup of it and run the same command again",
    "does not exist": "it was emptied or replaced while bridle was at work; restore a backup of it and run the same command again",
    "connection": "see that the database's server runs and can be reached, then run the same command again; nothing of this step was kept",
    "not a database": "name another file, or restore a backup of this one",
    "malformed": "restore a backup of it",
    "readonly": "make the file and its folder writable, or work on a copy",
    "unable to open": "see that the file and its folder exist and are writable",
    "disk is full": "free some space and do it again; nothing of this step was kept",
    "disk I/O": "see that the disk is there and has space; nothing of this step was kept",
    "locked": "another process has been writing for long; wait for it to end and do it again",
    "append-only": "add a new judgement that supersedes the old one, or an exclusion",
}


@contextmanager
def told_plainly(engine: Engine) -> Iterator[None]:
    """Turn the database's own errors into one sentence of StoreError."""
    assert engine.dialect.dbapi is not None
    try:
        yield
    except (DBAPIError, engine.dialect.dbapi.Error) as error:
        cause = " ".join(str(error.orig if isinstance(error, DBAPIError) else error).split())
        hint = next((hint for words, hint in HINTS.items() if words in cause), "nothing of this step was kept")
        raise StoreError(f"the store {_name(engine)} refused ({cause}): {hint}") from error
    except UnicodeDecodeError as error:  # what SQLite says quotes its damaged bytes
        raise StoreError(f"the store {_name(engine)} is damaged ({error.reason}): {HINTS['malformed']}") from error
    except StatementError as error:
        raise not_storable(error.orig) from error


def not_storable(cause: object) -> DataError:
    return DataError(f"a value cannot be stored ({cause}): meta, sampling and config take what JSON takes, without NaN")


def _name(engine: Engine) -> str:
    if engine.dialect.name == "sqlite":
        return str(engine.url.database)
    url = engine.url  # a query may hold a password too
    return URL.create(url.drivername, host=url.host, port=url.port, database=url.database).render_as_string()
