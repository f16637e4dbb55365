"""What an import and an answer ask of SQLite: as SQLAlchemy would, in plain SQL, at a part of its time, for 200,000 rows of a file are 1.4
million, and an answer with its next task is twenty statements."""

import sqlite3
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

from sqlalchemy import Column, Connection, Dialect, Executable, Float, Select, Table

from bridle.feedback.store.checksums import checksum
from bridle.feedback.store.database import not_storable
from bridle.feedback.store.rows import Values

# Rows of one statement: where a table has a trigger SQLite keeps a copy of each page that a statement changes, in case it fails.
INSERT_SIZE = 500
LIST_SIZE = 50  # values of an IN (…), for which a statement is kept for each number of them


Convert = Callable[[Any], Any] | None


class Ready(NamedTuple):
    """A statement as the driver takes it: where each of its values comes from, and how values and rows are converted."""

    sql: str
    values: tuple[tuple[str, int | None, Any, Convert], ...]  # name, place in a list, what it is where nothing is given
    columns: tuple[Convert, ...]
    row: Callable[..., Any]


def fetch_rows(connection: Connection, query: Executable, bound: Mapping[str, Any]) -> Sequence[Any]:
    """The rows of a statement that is made once and asked often; a change has none."""
    lists = tuple((name, len(value)) for name, value in bound.items() if isinstance(value, list))
    if connection.dialect.name != "sqlite" or any(size > LIST_SIZE for _, size in lists):
        found = connection.execute(query, dict(bound))
        return found.all() if found.returns_rows else ()
    ready = _ready(query, lists, connection.dialect)
    values = []
    for name, place, given, convert in ready.values:
        value = bound.get(name, given)
        value = value if place is None else value[place]
        values.append(value if convert is None else convert(value))
    rows = driver(connection).execute(ready.sql, values)
    return [ready.row(*(v if f is None else f(v) for v, f in zip(row, ready.columns, strict=True))) for row in rows]


@lru_cache(500)
def _ready(query: Any, lists: tuple[tuple[str, int], ...], dialect: Dialect) -> Ready:
    sizes = dict(lists)
    made = query.compile(dialect=dialect)
    if isinstance(query, Select):  # the other ones have no lists
        unknown = {name: None for name, value in made.binds.items() if value.required}
        query = query.params(unknown | {name: [None] * size for name, size in sizes.items() if name in made.binds})
        made = query.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
    values = []
    for name in made.positiontup:
        listed, _, number = name.rpartition("_")
        name, place = (name, None) if name in made.binds else (listed, int(number) - 1)
        kind = made.binds[name].type.dialect_impl(dialect)
        values.append((name, place, made.binds[name].value, kind.bind_processor(dialect)))
    columns = list(query.selected_columns if isinstance(query, Select) else query.exported_columns)
    reads = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
    row = namedtuple("Row", [str(column.key) for column in columns], rename=True)  # type: ignore[misc]
    return Ready(made.string, tuple(values), tuple(reads), row)


def driver(connection: Connection) -> sqlite3.Connection:
    found = connection.connection.dbapi_connection
    assert isinstance(found, sqlite3.Connection)
    return found


def rows_among(
    connection: Connection, key: Column[Any], values: list[Any], columns: Sequence[Column[Any]]
) -> Iterator[tuple[Any, ...]]:
    """Rows of (key, *columns) whose key is among the values, 32,766 at most."""
    names = ", ".join(column.name for column in (key, *columns))
    query = f"SELECT {names} FROM {key.table.name} WHERE {key.name} IN ({', '.join('?' * len(values))})"
    rows = driver(connection).execute(query, _stored(connection, key, values)).fetchall()
    of_columns = zip((key, *columns), zip(*rows, strict=True), strict=False)  # of no rows there are none
    return zip(*(_read(connection, *one) for one in of_columns), strict=True)


def insert_new_rows(connection: Connection, table: Table, rows: Sequence[Values], same: Values) -> int:
    """Insert the rows that are new by the table's unique keys, each with the values that are the `same`; returns their number."""
    columns = {name: _stored(connection, table.c[name], [row[name] for row in rows]) for name in rows[0]}
    columns |= {name: _stored(connection, table.c[name], [value]) * len(rows) for name, value in same.items()}
    if "checksum" in table.c:
        columns["checksum"] = list(map(checksum, zip(*(columns[name] for name in sorted(columns)), strict=True)))
    values = list(zip(*columns.values(), strict=True))
    row = f"({', '.join('?' * len(columns))})"
    insert = f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES %s ON CONFLICT DO NOTHING"
    whole = len(values) - len(values) % INSERT_SIZE
    count = 0
    for start in range(0, whole, INSERT_SIZE):
        many = tuple(chain.from_iterable(values[start : start + INSERT_SIZE]))
        count += driver(connection).execute(insert % ", ".join([row] * INSERT_SIZE), many).rowcount
    # One by one: a statement for each number of rows would be kept, a megabyte each.
    return count + (driver(connection).executemany(insert % row, values[whole:]).rowcount if values[whole:] else 0)


def _stored(connection: Connection, column: Column[Any], values: list[Any]) -> list[Any]:
    """Values of a column as the database's driver takes them."""
    convert = column.type.dialect_impl(connection.dialect).bind_processor(connection.dialect)
    if isinstance(
        column.type, Float
    ):  # what is stored has a checksum, which takes 1 and 1.0 for two; of -0.0 SQLite keeps 0.0
        return [value if value is None else float(value) + 0.0 for value in values]
    try:
        if convert is None:
            return values
        if not values[0] and values.count(values[0]) == len(values):  # as in most columns of JSON
            return [convert(values[0])] * len(values)
        return list(map(convert, values))
    except (TypeError, ValueError) as error:  # SQLAlchemy would have told it as a StatementError
        raise not_storable(error) from error


def _read(connection: Connection, column: Column[Any], values: Sequence[Any]) -> Sequence[Any]:
    """Values of a column as the database's driver gave them."""
    convert = column.type.dialect_impl(connection.dialect).result_processor(connection.dialect, None)
    return values if convert is None else list(map(convert, values))
