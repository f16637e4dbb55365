"""What an import asks of SQLite: as SQLAlchemy would, in plain SQL, at a third of its time, for 200,000 rows of a file are 1.4 million."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from sqlalchemy import Column, Connection, Float, Table

from bridle.feedback.store.checksums import checksum
from bridle.feedback.store.database import not_storable
from bridle.feedback.store.rows import Values

# Rows of one statement: where a table has a trigger SQLite keeps a copy of each page that a statement changes, in case it fails.
INSERT_SIZE = 500


def rows_among(
    connection: Connection, key: Column[Any], values: list[Any], columns: Sequence[Column[Any]]
) -> Iterator[tuple[Any, ...]]:
    """Rows of (key, *columns) whose key is among the values, 32,766 at most."""
    names = ", ".join(column.name for column in (key, *columns))
    query = f"SELECT {names} FROM {key.table.name} WHERE {key.name} IN ({', '.join('?' * len(values))})"
    rows = connection.exec_driver_sql(query, tuple(_stored(connection, key, values))).all()
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
        count += connection.exec_driver_sql(insert % ", ".join([row] * INSERT_SIZE), many).rowcount
    # One by one: a statement for each number of rows would be kept, a megabyte each.
    return count + (connection.exec_driver_sql(insert % row, values[whole:]).rowcount if values[whole:] else 0)


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
