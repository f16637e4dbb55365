"""What an import and an answer ask of the database: as SQLAlchemy would, of its driver alone, at a part of its time, for 200,000 rows of a
file are 1.4 million, and an answer with its next task is thirty statements."""

import json
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

from sqlalchemy import JSON, Column, Connection, Dialect, Executable, Float, Select, Table

from bridle.feedback.store.checksums import checksum
from bridle.feedback.store.database import STORED_JSON, not_storable
from bridle.feedback.store.rows import Values

# Rows of one statement: where a table has a trigger SQLite keeps a copy of each page that a statement changes, in case it fails.
INSERT_SIZE = 500
LIST_SIZE = 50  # values of an IN (…), for which a statement is kept for each number of them


Convert = Callable[[Any], Any] | None


class Ready(NamedTuple):
    """A statement as the driver takes it: where each of its values comes from, and how values and rows are converted."""

    sql: str
    values: tuple[tuple[str, int | None, Any, Convert], ...]  # name, place in a list, what it is where nothing is given
    names: Sequence[str] | None  # of the values in the statement; None: it has places for them
    columns: tuple[Convert, ...]
    row: Callable[..., Any]


def fetch_rows(connection: Connection, query: Executable, bound: Mapping[str, Any]) -> Sequence[Any]:
    """The rows of a statement that is made once and asked often; a change has none."""
    lists = tuple((name, len(value)) for name, value in bound.items() if isinstance(value, list))
    if any(size > LIST_SIZE for _, size in lists):
        found = connection.execute(query, dict(bound))
        return found.all() if found.returns_rows else ()
    ready = _ready(query, lists, connection.dialect)
    values = []
    for name, place, given, convert in ready.values:
        value = bound.get(name, given)
        value = value if place is None else value[place]
        values.append(value if convert is None else convert(value))
    named = values if ready.names is None else dict(zip(ready.names, values, strict=True))
    rows = driver(connection).execute(ready.sql, named)
    if rows.description is None:
        return ()
    return [ready.row(*(v if f is None else f(v) for v, f in zip(row, ready.columns, strict=True))) for row in rows]


@lru_cache(500)
def _ready(query: Any, lists: tuple[tuple[str, int], ...], dialect: Dialect) -> Ready:
    made = query.compile(dialect=dialect)
    given: dict[str, Any] = {name: None for name, value in made.binds.items() if value.required}
    given |= {name: [None] * size for name, size in lists if name in made.binds}
    state = made.construct_expanded_state(given)
    of_lists = {one: (name, n) for name, many in state.parameter_expansion.items() for n, one in enumerate(many)}
    names, values = state.positiontup or list(state.parameters), []
    for name in names:
        name, place = of_lists.get(name, (name, None))
        kind = made.binds[name].type.dialect_impl(dialect)
        values.append((name, place, made.binds[name].value, kind.bind_processor(dialect)))
    columns = list(query.selected_columns if isinstance(query, Select) else query.exported_columns)
    reads = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
    row = namedtuple("Row", [str(column.key) for column in columns], rename=True)  # type: ignore[misc]
    return Ready(state.statement, tuple(values), None if dialect.positional else names, tuple(reads), row)


def driver(connection: Connection) -> Any:
    """The connection of sqlite3, or of psycopg, which begins a transaction with the first statement."""
    return connection.connection.dbapi_connection


def placeholder(connection: Connection) -> str:
    """Where a value stands in a statement."""
    return "?" if connection.dialect.name == "sqlite" else "%s"


def rows_among(
    connection: Connection, key: Column[Any], values: list[Any], columns: Sequence[Column[Any]]
) -> Iterator[tuple[Any, ...]]:
    """Rows of (key, *columns) whose key is among the values, 32,766 at most."""
    names = ", ".join(column.name for column in (key, *columns))
    query = f"SELECT {names} FROM {key.table.name} WHERE {key.name} IN ({', '.join([placeholder(connection)] * len(values))})"
    rows = driver(connection).execute(query, _stored(connection, key, values)).fetchall()
    of_columns = zip((key, *columns), zip(*rows, strict=True), strict=False)  # of no rows there are none
    return zip(*(_read(connection, *one) for one in of_columns), strict=True)


def insert_new_rows(connection: Connection, table: Table, rows: Sequence[Values], same: Values) -> int:
    """Insert the rows that are new by the table's unique keys, each with the values that are the `same`; returns their number."""
    given = {name: [row[name] for row in rows] for name in rows[0]} | {name: [same[name]] * len(rows) for name in same}
    columns = {name: _stored(connection, table.c[name], values) for name, values in given.items()}
    if "checksum" in table.c:
        kept = columns
        if connection.dialect.name != "sqlite":
            kept = {name: _given_back(table.c[name], values) for name, values in given.items()}
        columns["checksum"] = list(map(checksum, zip(*(kept[name] for name in sorted(kept)), strict=True)))
    values = list(zip(*columns.values(), strict=True))
    row = f"({', '.join([placeholder(connection)] * len(columns))})"
    insert = f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES {{}} ON CONFLICT DO NOTHING"
    whole = len(values) - len(values) % INSERT_SIZE
    cursor, count = driver(connection).cursor(), 0
    try:
        for start in range(0, whole, INSERT_SIZE):
            many = tuple(chain.from_iterable(values[start : start + INSERT_SIZE]))
            count += cursor.execute(insert.format(", ".join([row] * INSERT_SIZE)), many).rowcount
        if rest := values[whole:]:  # one by one: a statement for each number of rows would be kept, a megabyte each
            cursor.execute(insert.format(row), rest[0]) if len(rest) == 1 else cursor.executemany(
                insert.format(row), rest
            )
            count += cursor.rowcount
    except (TypeError, ValueError) as error:
        raise not_storable(error) from error
    return count


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


def _given_back(column: Column[Any], values: list[Any]) -> list[Any]:
    """Values of a column as PostgreSQL's driver will give them back: of a tuple a list, which a checksum takes for another thing."""
    if isinstance(column.type, Float):
        return [value if value is None else float(value) + 0.0 for value in values]
    if not isinstance(column.type, JSON):
        return values
    try:
        return [json.loads(STORED_JSON.encode(value)) if value else value for value in values]
    except (TypeError, ValueError) as error:
        raise not_storable(error) from error


def _read(connection: Connection, column: Column[Any], values: Sequence[Any]) -> Sequence[Any]:
    """Values of a column as the database's driver gave them."""
    convert = column.type.dialect_impl(connection.dialect).result_processor(connection.dialect, None)
    return values if convert is None else list(map(convert, values))
