"""Rows into a file that is whole or absent: JSON lines, a JSON list, CSV or Parquet, by the ending of its name."""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from bridle.core.errors import UsageError
from bridle.core.files import flush, saving, temporary
from bridle.core.text import json_text
from bridle.feedback.importing.files.delimited import guarded
from bridle.feedback.store.rows import Values
from bridle.feedback.store.store import Store

LINES, TABLES, LISTS = (".jsonl", ".jsonl.gz"), (".csv", ".parquet"), (".json",)
GROUP = 1_000  # rows that Parquet keeps together
Columns = Mapping[str, str]  # of each column the kind: messages, text, texts, number, numbers, flag or flags


@contextmanager
def new_file(path: Path, force: bool, store: Store) -> Iterator[Path]:
    """A file beside `path` to write, which takes its name when the block ends well. UsageError where there is one, without `force`, and
    where it is the store's own."""
    with store.reading() as connection:
        own = connection.engine.url.database
    if connection.dialect.name == "sqlite" and own:
        stored = Path(own).resolve()
        if path.resolve() in (stored, *(stored.with_name(stored.name + side) for side in ("-wal", "-shm"))):
            raise UsageError(f"{path} is the store itself, or its log; name another file")
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file in it")
    if path.exists() and not force:
        raise UsageError(f"{path} is there already; name another file, or replace it with --force")
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary(path, Path.touch) as new:
            yield new
            flush(new)
            os.replace(new, path)
            flush(path.parent)


def ending_of(path: Path, endings: Iterable[str]) -> str:
    """Which of the endings a file has; UsageError for none."""
    endings = tuple(endings)
    if found := next((ending for ending in endings if path.name.lower().endswith(ending)), None):
        return found
    raise UsageError(
        f"{path} ends as no file of this format does; name one that ends in {', '.join(endings)} (of a model name a folder too)"
    )


def write_rows(new: Path, ending: str, columns: Columns, rows: Iterable[Values]) -> None:
    if ending == ".parquet":
        write_parquet(new, columns, rows)
    elif ending == ".csv":
        with open(new, "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(columns)
            table.writerows([cell(row.get(name)) for name in columns] for row in rows)
    else:
        with opened_text(new, ending.endswith(".gz")) as file:
            write_json_rows(file, ending == ".json", rows)


@contextmanager
def opened_text(path: Path, packed: bool) -> Iterator[TextIO]:
    if not packed:
        with open(path, "w", encoding="utf-8") as file:
            yield file
    else:
        with gzip.open(path, "wt", encoding="utf-8") as text:
            yield text


def write_json_rows(file: TextIO, as_list: bool, rows: Iterable[Values]) -> None:
    before, after, end = ("[\n", "", "\n]\n") if as_list else ("", "\n", "")
    for row in rows:
        file.write(before + json_text(row) + after)
        before = ",\n" if as_list else ""
    file.write(end)


def cell(value: Any) -> object:
    """A value as a table has it. One user's turn is its text; other messages and lists are JSON. Numbers are no formulas."""
    if isinstance(value, list):
        alone = len(value) == 1 and isinstance(value[0], dict)
        value = value[0]["content"] if alone else json_text(value)
    return guarded(value) if isinstance(value, str) else value


def write_parquet(new: Path, columns: Columns, rows: Iterable[Values]) -> None:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UsageError(
            "writing Parquet takes pyarrow: `pip install 'bridle[hub]'`; or name a file that ends in .jsonl"
        ) from error
    turn = arrow.struct([("role", arrow.string()), ("content", arrow.string())])
    kinds: dict[str, Callable[[], Any]] = {
        "messages": lambda: arrow.list_(turn),
        "text": arrow.string,
        "texts": lambda: arrow.list_(arrow.string()),
        "number": arrow.float64,
        "numbers": lambda: arrow.list_(arrow.float64()),
        "flag": arrow.bool_,
        "flags": lambda: arrow.list_(arrow.bool_()),
    }
    schema = arrow.schema([(name, kinds[kind]()) for name, kind in columns.items()])
    rows = iter(rows)
    with parquet.ParquetWriter(new, schema) as writer:
        while group := list(islice(rows, GROUP)):
            writer.write_table(arrow.Table.from_pylist(group, schema))
