"""What a disk changes in silence is found, wherever it falls; what was changed by hand is named with its table."""

import json
import random
import re
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from bridle.core.errors import BridleError
from bridle.core.records import Completion, FinishReason, Prompt
from bridle.feedback.exporting.exporter import export_file
from bridle.feedback.exporting.whole import store_rows_out
from bridle.feedback.importing.importer import import_file
from bridle.feedback.store import tables
from bridle.feedback.store.store import Store
from bridle.feedback.upkeep.verify import store_faults
from tests.feedback.conftest import new_store
from tests.feedback.exporting.random_store import Drawn, content

# Columns of which nothing says what they were, by table; the others are covered by a hash or a checksum.
OPEN = {
    "item": {"kind", "state", "created_at", "need", "priority", "acquisition", "topic", "gold"},
    "solution": {"created_at"}, "document": {"created_at"}, "free_text": {"created_at"}, "guideline": {"created_at"},
    "snapshot": {"created_at", "n"},
}  # fmt: skip
COVERED = (
    *(tables.prompt, tables.completion, tables.item, tables.judgement, tables.rating, tables.solution, tables.document, tables.free_text),
    *(tables.guideline, tables.snapshot, tables.snapshot_row),
)  # fmt: skip


def covered(store: Store) -> list[dict[str, object]]:
    with store.reading() as connection:
        rows = list(store_rows_out(connection, COVERED))[1:]
    return [{name: value for name, value in row.items() if name not in OPEN.get(str(row["type"]), ())} for row in rows]


def test_a_whole_store_has_no_faults(any_store: Store) -> None:
    Drawn(any_store, 0)
    assert list(store_faults(any_store)) == []


def test_numbers_and_lists_that_a_database_gives_back_otherwise_are_sound(any_store: Store, tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "chosen": "So.", "rejected": "No.", "margin": -0.0, "confidence": -0.0}]
    rows += [
        {"prompt": "Why?", "completion": "So.", "score": -0.0},
        {"prompt": "Why?", "completion": "No.", "score": 3},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert import_file(any_store, tmp_path / "rows.jsonl").kept_rows == 3
    prompt = Prompt.from_text("Tuples?", {"of": (1, 2)})
    any_store.add_prompts([prompt], split="train", source="world")
    answer = Completion(prompt.id, "Yes.", (1,), (-0.0,), FinishReason.STOP, "sft+0", {"stop": ("a", "b"), 1: 2})
    any_store.add_completions([answer], source="sample")
    assert list(store_faults(any_store)) == []
    export_file(any_store, tmp_path / "whole.jsonl", "full")
    with new_store(tmp_path / "other.sqlite") as other:
        import_file(other, tmp_path / "whole.jsonl")
        assert content(other) == content(any_store) and list(store_faults(other)) == []


def flips(path: Path, seed: int, count: int) -> list[int]:
    """Places in the file; most of them where rows are."""
    return random.Random(seed).sample(range(100, path.stat().st_size), count)


def flip(path: Path, place: int, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))


def found_or_harmless(path: Path, before: list[dict[str, object]]) -> str:
    """What verifying says of the file; "harmless" where it says nothing and what is covered is as it was."""
    try:
        with Store.open(path) as store:
            if faults := list(store_faults(store)):
                return faults[0]
            return "harmless" if covered(store) == before else "missed"
    except BridleError as error:
        return str(error)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A store as one file, of small pages so that most of it is rows."""
    with new_store(tmp_path / "wide") as store:
        Drawn(store, 1, prompts=20)
    with sqlite3.connect(tmp_path / "wide") as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA page_size = 512")
        connection.execute("VACUUM")
    connection.close()
    return tmp_path / "wide"


@pytest.mark.parametrize("count", [40, pytest.param(1500, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_found_or_harmless(count: int, filled: Path, tmp_path: Path) -> None:
    whole = filled.read_bytes()
    with Store.open(filled) as store:
        before = covered(store)
    said = []
    for number, place in enumerate(flips(filled, count, count)):
        one = tmp_path / "one"
        for side in ("-wal", "-shm"):
            one.with_name("one" + side).unlink(missing_ok=True)
        one.write_bytes(whole)
        flip(one, place, number % 8)
        said.append((place, number % 8, found_or_harmless(one, before)))
    assert [one for one in said if one[2] == "missed"] == []
    assert sum(one[2] != "harmless" for one in said) > count / 3


@pytest.mark.parametrize(
    ("table", "change", "told"),
    [
        ("prompt", "split = 'heldout'", "its values are not those of its checksum"),
        ("prompt", 'messages = \'[{"role":"user","content":"?"}]\'', "its content is not that of its hash"),
        ("completion", "text = text || '!'", "its content is not that of its hash"),
        ("completion", "sampled_logprobs = '[-1.0]'", "its values are not those of its checksum"),
        ("completion", "text = CAST(x'ff' AS TEXT)", "its values are not those"),
        ("completion", "token_ids = '['", "its values are not those"),
        ("judgement", "seconds = 99", "its values are not those of its checksum"),
        ("judgement", "labeler = 'ben'", "its content is not that of its hash"),
        ("rating", "value = 0", "its content is not that of its hash"),
        ("item_completion", "slot = 9 - slot", "item 1 .*its content is not that of its hash"),
        ("solution", "text = '43'", "its content is not that of its hash"),
        ("document", "text = 'Dogs.'", "its content is not that of its hash"),
        ("free_text", "body = 'Fine.'", "its content is not that of its hash"),
        ("free_text", "body = NULL", "its content is not that of its hash"),
        ("guideline", "version = 2", "its content is not that of its hash"),
        ("snapshot", "query = '{}'", "judgements where"),
        ("snapshot_row", "weight = 3", "judgements where"),
        ("audit", "actor = 'eve'", "it is not what was written"),
    ],
)
def test_a_row_that_was_changed_is_named(table: str, change: str, told: str, tmp_path: Path) -> None:
    with new_store(tmp_path / "store") as store:
        Drawn(store, 0)
    with sqlite3.connect(tmp_path / "store") as connection:
        for protected in ("judgement_no_update", "rating_no_update"):
            connection.execute(f"DROP TRIGGER {protected}")
        connection.execute(f"UPDATE {table} SET {change} WHERE rowid = (SELECT min(rowid) FROM {table})"
                           if table not in ("item_completion", "snapshot_row") else f"UPDATE {table} SET {change}")  # fmt: skip
    connection.close()
    with Store.open(tmp_path / "store") as store:
        faults = list(store_faults(store))
    assert any(re.search(told, fault) for fault in faults), faults
    assert all("\n" not in fault for fault in faults)


def test_a_row_that_was_taken_out_of_the_account_is_noticed(any_store: Store) -> None:
    Drawn(any_store, 0)
    with any_store.writing() as connection:
        middle = connection.execute(sa.select(tables.audit.c.id).order_by(tables.audit.c.id)).scalars().all()[1]
        connection.execute(sa.delete(tables.audit).where(tables.audit.c.id == middle))
    assert any("does not follow the row before it" in fault for fault in store_faults(any_store))


@pytest.mark.parametrize("any_store", ["postgresql"], indirect=True)
def test_a_changed_value_is_found_in_postgresql_too(any_store: Store) -> None:
    Drawn(any_store, 0)
    with any_store.writing() as connection:
        connection.execute(sa.update(tables.prompt).where(tables.prompt.c.id == 1).values(split="other"))
        connection.execute(sa.update(tables.document).values(text="Dogs."))
    assert [fault.partition(":")[0].split(" (")[0] for fault in store_faults(any_store)] == ["prompt 1", "document 1"]
