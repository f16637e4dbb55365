"""A whole store as rows that hold for any store, and back: the same tables, but for the numbers of rows.

    {"type": "store", "format": 1, "bridle": "0.1.0", "rows": {"prompt": 2, …}}
    {"type": "prompt", "sha256": "3f…", "messages": [{"role": "user", "content": "Why?"}], "split": "train", …}
    {"type": "item", "sha256": "a0…", "completions": [["9c…", "sft+0", "", "sample"], …], …}

A row is what its table holds, by the names of its columns; null is left out. Where a table refers to a row by its number, the key stands
that means the same row in every store (KEYS). The order is such that each row finds what it refers to before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from types import SimpleNamespace
from typing import Any

from sqlalchemy import JSON, Column, Connection, Float, Integer, Table, func, select

import bridle
from bridle.core.errors import DataError, brief_repr
from bridle.core.records import LabelerKind
from bridle.feedback.importing.files.row import is_utf8
from bridle.feedback.rankings import check_judgement
from bridle.feedback.store import tables
from bridle.feedback.store.reading import PAGE, snapshot_of, taken_down
from bridle.feedback.store.rows import Values
from bridle.feedback.store.store import add_labelers, answer_counts, insert_new, lookup
from bridle.feedback.upkeep.hashes import blank_values, hash_fault, is_gone, judgement_in

FORMAT = 1
WHAT_WAS_SAID = (
    *(tables.exclusion, tables.labeler, tables.free_text, tables.study, tables.guideline, tables.prompt),
    *(tables.completion, tables.completion_score, tables.item, tables.judgement, tables.rating, tables.adjudication),
    *(tables.solution, tables.document, tables.snapshot, tables.snapshot_row, tables.snapshot_rating),
    *(tables.model_version, tables.imported_file),
    *(tables.consent, tables.served, tables.comparison, tables.reaction),
)
WHO_WORKS_ON_IT = (  # in backups alone
    *(tables.account, tables.credential, tables.served_user, tables.assignment, tables.draft, tables.audit),
)
KEYS: Mapping[str, tuple[str, ...]] = {  # what tells a row from all others; where nothing else is named, its hash
    "exclusion": ("target_id", "target", "reason", "excluded_by", "created_at"),
    "labeler": ("handle",),
    "study": ("name",),
    "completion": ("content_sha256", "weight_stamp", "author", "source"),
    "completion_score": ("completion_id", "weights_sha256", "task"),
    "adjudication": ("item_sha256", "judgement_sha256", "adjudicated_by", "created_at"),
    "snapshot_row": ("judgement_sha256", "snapshot_sha256"),
    "snapshot_rating": ("rating_sha256", "snapshot_sha256"),
    "model_version": ("weights_sha256",),
    "account": ("labeler",),
    "served_user": ("labeler",),
    "consent": ("labeler", "answer", "guideline", "created_at"),
    "served": ("public_id",),
    "comparison": ("public_id",),
    "reaction": ("key",),
    "assignment": ("item_id", "labeler"),
    "draft": ("assignment_id",),
}
NUMBERED = {"completion_id": tables.completion, "item_id": tables.item, "assignment_id": tables.assignment}
Key = tuple[Any, ...]


def key_names(table: Table) -> tuple[str, ...]:
    return KEYS.get(table.name, ("sha256",))


# ---------------------------------------------------------------------------------------------------------- out


def store_rows_out(connection: Connection, wanted: Sequence[Table] = WHAT_WAS_SAID) -> Iterator[Values]:
    """A header, then every row of these tables, in memory that does not grow with their number."""
    counts = {t.name: connection.execute(select(func.count()).select_from(t)).scalar_one() for t in wanted}
    header = {"type": "store", "format": FORMAT, "bridle": bridle.__version__}
    yield {**header, "rows": {name: count for name, count in counts.items() if count}}
    for table in wanted:
        for row in table_rows(connection, table):
            plain = {name: value for name, value in row.items() if value is not None and name != "id"}
            yield {"type": table.name, **plain}


def table_rows(connection: Connection, table: Table) -> Iterator[Values]:
    """A table's rows in the order in which they came, with keys in place of the numbers of other rows; an item with its answers."""
    order = [table.c.id] if "id" in table.c else list(table.primary_key.columns)
    columns = [column for column in table.c if column.name not in ("checksum", "turn")]  # they follow from the others
    query = select(*columns).order_by(*order).execution_options(yield_per=PAGE)
    for page in connection.execute(query).mappings().partitions():
        rows = [dict(row) for row in page]
        for name, target in NUMBERED.items():
            if name in table.c:
                keys = keys_of(connection, target, {row[name] for row in rows})
                for row in rows:
                    row[name.removesuffix("_id")] = keys[row.pop(name)]
        if table is tables.item:
            answers = answers_in_slots_of(connection, [row["id"] for row in rows])
            rows = [row | {"completions": answers.get(row["id"], [])} for row in rows]
            for row in rows:  # who was given it is not part of it, and is found again where it is next asked
                row["state"] = "done" if row["state"] == "done" else "open"
        yield from rows


def keys_of(connection: Connection, table: Table, numbers: Collection[int]) -> dict[int, Any]:
    """Of rows by their numbers what names them anywhere: a hash, or a list."""
    first, *rest = key_names(table)
    found = {
        n: list(key) for n, *key in lookup(connection, table.c.id, numbers, *(table.c[name] for name in (first, *rest)))
    }
    if first in NUMBERED:
        inner = keys_of(connection, NUMBERED[first], {key[0] for key in found.values()})
        found = {number: [inner[key[0]], *key[1:]] for number, key in found.items()}
    return {number: key if rest else key[0] for number, key in found.items()}


def answers_in_slots_of(connection: Connection, numbers: Sequence[int]) -> dict[int, list[Any]]:
    slot = tables.item_completion.c
    rows = sorted(lookup(connection, slot.item_id, numbers, slot.slot, slot.completion_id))
    keys = keys_of(connection, tables.completion, {answer for _, _, answer in rows})
    return {item: [keys[answer] for _, _, answer in of] for item, of in groupby(rows, key=lambda row: row[0])}


# ----------------------------------------------------------------------------------------------------------- in


def is_header(value: object) -> bool:
    """Whether a file's first row says that a whole store follows."""
    return isinstance(value, dict) and value.get("type") == "store" and {"format", "rows"} <= value.keys()


def store_rows_in(connection: Connection, name: str, rows: Iterable[tuple[int, Any]]) -> tuple[Counter[str], int]:
    """Add the rows of a whole store, each with its number in the file; how many there were of each type, and how many were new.

    Raises DataError, for the caller to keep nothing, where a row is not what bridle wrote, or clashes with one that is there. What was
    taken down, here or there, stays so.
    """
    rows = iter(rows)
    _, header = next(rows)
    if header["format"] != FORMAT:
        raise DataError(
            f"{name} is a store of format {header['format']!r}, and this version of bridle reads {FORMAT}; update bridle"
        )
    by_name = {table.name: table for table in (*WHAT_WAS_SAID, *WHO_WORKS_ON_IT)}
    counts, new, snapshots, gone = Counter[str](), 0, list[str](), set(taken_down(connection))
    for kind, several in groupby(rows, key=lambda row: str(row[1].get("type")) if isinstance(row[1], dict) else ""):
        while batch := list(islice(several, PAGE)):
            first, last = batch[0][0], batch[-1][0]
            try:
                if kind not in by_name:
                    raise DataError(f"{brief_repr(str(batch[0][1]))} is not a row of a store")
                new += add_table_rows(connection, by_name[kind], [row for _, row in batch], gone)
            except (DataError, ValueError) as error:
                raise DataError(f"{name}, lines {first:,} to {last:,}: {error}; nothing of it was stored") from error
            counts[kind] += len(batch)
            if kind == "snapshot":
                snapshots += [row["sha256"] for _, row in batch]
    if dict(counts) != header["rows"]:
        raise DataError(
            f"{name} breaks off or was changed: it announces {header['rows']} and holds {dict(counts)}; export or fetch it again "
            "(nothing of it was stored)"
        )
    for key in snapshots:
        snapshot_of(connection, key)
    return counts, new


def add_table_rows(connection: Connection, table: Table, rows: Sequence[Values], gone: set[str]) -> int:
    """Add rows of one table that are new by their key; returns their number. Those of `gone` come without their texts."""
    if table is tables.exclusion:
        gone |= {row["target_id"] for row in rows if row.get("target") == "text"}
    rows = with_numbers(connection, table, [complete_row(table, row, gone) for row in rows])
    by_key = {tuple(row[name] for name in key_names(table)): row for row in rows}
    there = known_rows(connection, table, by_key)
    new = [row for key, row in by_key.items() if key not in there]
    if table is tables.judgement:
        check_new_judgements(connection, new)
    stored = [column.name for column in table.c if column.name not in ("id", "checksum")]
    added = insert_new(connection, table, [{name: row[name] for name in stored} for row in new])
    if added < len(new):
        raise DataError(
            f"{len(new) - added} of {len(new)} rows of the table {table.name} clash with what is in the store"
        )
    if table is tables.labeler:  # one who is there already may be of another kind
        people: Any = [SimpleNamespace(labeler=row["handle"], labeler_kind=LabelerKind(row["kind"])) for row in rows]
        add_labelers(connection, people)
    if table is tables.item:
        add_slots(connection, new)
    return added


def complete_row(table: Table, row: Values, gone: Collection[str]) -> Values:
    """A row with every field that its table has, and without texts that were taken down; DataError where it is not what bridle wrote."""
    columns = {column.name: column for column in table.c if column.name not in ("id", "checksum", *NUMBERED)}
    keys = [name.removesuffix("_id") for name in NUMBERED if name in table.c] + ["completions"] * (table is tables.item)
    row = {name: row.get(name) for name in (*columns, *keys)} | {name: row[name] for name in row if name != "type"}
    if unknown := sorted(row.keys() - columns.keys() - set(keys)):
        raise DataError(f"a {table.name} has a field {unknown[0]!r}, which this version of bridle does not know")
    odd = [name for name, column in columns.items() if not fits(column, row[name])]
    odd += [
        name for name in keys if not all(map(is_key, row[name] if name == "completions" and row[name] else [row[name]]))
    ]
    fault = f"its {odd[0]} is {brief_repr(row[odd[0]])}" if odd else ""
    if not odd:
        row |= blank_values(table.name, row) if is_gone(table.name, row, gone) else {}
        fault = hash_fault(table.name, row, gone)
    if fault:
        name = brief_repr([row[name] for name in key_names(table) if name in row])
        raise DataError(f"a {table.name} ({name}) is not what bridle wrote: {fault}")
    return row


def fits(column: Column[Any], value: Any) -> bool:
    """Whether a value can stand in a column."""
    if value is None:
        return bool(column.nullable)
    if isinstance(column.type, Integer):
        return type(value) is int and abs(value) < 2**63
    if isinstance(column.type, Float):
        return type(value) in (int, float) and abs(value) < float("inf")
    if isinstance(column.type, JSON):
        return isinstance(value, list | dict)
    return isinstance(value, str) and "\0" not in value and is_utf8(value)


def check_new_judgements(connection: Connection, rows: Sequence[Values]) -> None:
    slots = answer_counts(connection, {row["item_sha256"] for row in rows})
    for row in rows:
        check_judgement(judgement_in(row), slots.get(row["item_sha256"], 0))
    for name in ("submission_key", "supersedes"):
        given = {row[name] for row in rows} - {None}
        if clash := next(lookup(connection, tables.judgement.c[name], given, tables.judgement.c.sha256), None):
            raise DataError(
                f"a judgement says otherwise than {clash[1][:12]} in the store under the same {name}, {clash[0][:80]!r}"
            )


def add_slots(connection: Connection, items: Sequence[Values]) -> None:
    answers = row_numbers(connection, tables.completion, {as_key(key) for row in items for key in row["completions"]})
    numbers = row_numbers(connection, tables.item, {(row["sha256"],) for row in items})
    slots = [
        {"item_id": numbers[(row["sha256"],)], "slot": slot, "completion_id": answers[as_key(key)]}
        for row in items
        for slot, key in enumerate(row["completions"])
    ]
    insert_new(connection, tables.item_completion, slots)


def with_numbers(connection: Connection, table: Table, rows: Sequence[Values]) -> Sequence[Values]:
    """The rows with this store's numbers in place of the keys of other rows."""
    for name, target in NUMBERED.items():
        if name in table.c:
            numbers = row_numbers(connection, target, {as_key(row[name.removesuffix("_id")]) for row in rows})
            rows = [row | {name: numbers[as_key(row[name.removesuffix("_id")])]} for row in rows]
    return rows


def as_key(value: str | list[str]) -> Key:
    return (value,) if isinstance(value, str) else tuple(value)


def is_key(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, str) for part in value))


def row_numbers(connection: Connection, table: Table, keys: Collection[Key]) -> dict[Key, int]:
    """The numbers of rows by what names them anywhere. DataError where one is not there."""
    first = key_names(table)[0]
    plain = {key: key for key in keys}
    if first in NUMBERED:
        inner = row_numbers(connection, NUMBERED[first], {as_key(key[0]) for key in keys})
        plain = {key: (inner[as_key(key[0])], *key[1:]) for key in keys}
    found = known_rows(connection, table, set(plain.values()))
    if missing := [key for key, number in plain.items() if number not in found]:
        raise DataError(
            f"it refers to a {table.name}, {brief_repr(missing[0])}, that is neither in it nor in the store"
        )
    return {key: found[number] for key, number in plain.items()}


def known_rows(connection: Connection, table: Table, keys: Collection[Key]) -> dict[Key, int]:
    """Which of these keys are there, with the numbers of their rows (0 where a table has none)."""
    first, *rest = (table.c[name] for name in key_names(table))
    number = [table.c.id] if "id" in table.c else []
    rows = lookup(connection, first, {key[0] for key in keys}, *rest, *number)
    found = {row[: len(rest) + 1]: row[-1] if number else 0 for row in rows}
    return {key: found[key] for key in keys if key in found}
