"""A backup is whole, taken while others write, and becomes the same store again; nothing is replaced by what is not sound."""

import shutil
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from bridle.core.errors import BridleError, DataError, StoreError, UsageError
from bridle.core.records import Prompt
from bridle.feedback.store import tables
from bridle.feedback.store.store import Store
from bridle.feedback.upkeep.backup import EVERYTHING, back_up, restore_file, restore_into
from bridle.feedback.upkeep.verify import store_faults
from tests.feedback.conftest import postgresql_store
from tests.feedback.exporting.random_store import Drawn, content

REST: Sequence[sa.Table] = [table for table in EVERYTHING if table is not tables.audit]


@pytest.mark.parametrize("name", ["copy.sqlite", "copy.jsonl", "copy.jsonl.gz"])
def test_a_backup_becomes_the_same_store(name: str, any_store: Store, tmp_path: Path) -> None:
    Drawn(any_store, 2)
    found = back_up(any_store, tmp_path / name)
    assert found["rows"] > 50 and found["bytes"] == (tmp_path / name).stat().st_size
    assert not list(tmp_path.glob(f"*{name}*-*")) and not list(tmp_path.glob(".*")), (
        "no logs and nothing half done beside it"
    )
    place = tmp_path / "new" / "store.sqlite"
    place.parent.mkdir()
    assert restore_file(tmp_path / name, place, by="me")["rows"] == found["rows"]
    with Store.open(place) as store:
        assert content(store, REST) == content(any_store, REST) and list(store_faults(store)) == []
        assert store.snapshot_pairs(str(snapshots(store)[0])) == any_store.snapshot_pairs(str(snapshots(any_store)[0]))
        with store.reading() as connection:
            last = connection.execute(sa.select(tables.audit).order_by(tables.audit.c.id.desc())).first()
        assert last is not None and (last.action, last.object, last.actor) == ("restore", name, "me")


@pytest.mark.parametrize("name", ["copy.sqlite", "copy.jsonl.gz"])
def test_a_file_moves_into_a_database(name: str, store: Store, tmp_path: Path) -> None:
    Drawn(store, 2)
    back_up(store, tmp_path / name)
    for other in postgresql_store():
        restore_into(other, tmp_path / name, by="me")
        assert content(other, REST) == content(store, REST) and list(store_faults(other)) == []
        other.add_prompts([Prompt.from_text("More?")], split="train", source="world")  # numbers go on
        with pytest.raises(UsageError, match="holds something already"):
            restore_into(other, tmp_path / name, by="me")


def snapshots(store: Store) -> Sequence[object]:
    with store.reading() as connection:
        return connection.execute(sa.select(tables.snapshot.c.sha256).order_by(tables.snapshot.c.id)).scalars().all()


def test_what_is_there_is_not_overwritten(store: Store, tmp_path: Path) -> None:
    Drawn(store, 2)
    (tmp_path / "copy").write_text("mine")
    with pytest.raises(UsageError, match="is there already; name another file, or replace it with --force"):
        back_up(store, tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "mine"
    (tmp_path / "copy-wal").write_text("of another database")
    back_up(store, tmp_path / "copy", force=True)
    assert not (tmp_path / "copy-wal").exists()
    with Store.open(tmp_path / "copy") as copy:
        assert content(copy) == content(store)
    with pytest.raises(UsageError, match="is the store itself"):
        back_up(store, tmp_path / "store.sqlite", force=True)
    with pytest.raises(UsageError, match="is the store itself, or its log"):
        back_up(store, tmp_path / "store.sqlite-wal", force=True)
    with pytest.raises(UsageError, match="is a folder"):
        back_up(store, tmp_path, force=True)


def test_a_backup_while_others_write_is_one_moment(tmp_path: Path) -> None:
    """Every transaction is in it whole or not at all."""
    with Store.open(tmp_path / "store") as store:
        store.add_prompts([Prompt.from_text(f"{n} " * 400) for n in range(300)], split="train", source="world")
        stop = threading.Event()

        def write() -> None:
            with Store.open(tmp_path / "store") as other:
                number = 0
                while not stop.is_set():
                    both = [Prompt.from_text(f"pair {number} {side} " * 300) for side in "ab"]
                    other.add_prompts(both, split="train", source="pair")
                    number += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for number in range(4):
                back_up(store, tmp_path / f"copy{number}")
        finally:
            stop.set()
            writer.join()
    counts = []
    for number in range(4):
        with Store.open(tmp_path / f"copy{number}") as copy:
            counts.append(len(copy.prompts(source="pair")))
    assert all(count % 2 == 0 for count in counts) and counts == sorted(counts) and counts[-1] > 0


def test_a_store_that_holds_anything_is_replaced_only_by_force(store: Store, tmp_path: Path) -> None:
    Drawn(store, 2)
    back_up(store, tmp_path / "copy")
    store.add_prompts([Prompt.from_text("After the backup?")], split="train", source="world")
    store.close()
    place = tmp_path / "store.sqlite"
    with pytest.raises(UsageError, match="holds a store, which would be lost"):
        restore_file(tmp_path / "copy", place, by="me")
    with Store.open(place) as same:
        assert len(same.prompts(source="world")) == 5
    restore_file(tmp_path / "copy", place, by="me", force=True)
    with Store.open(place) as same:
        assert len(same.prompts(source="world")) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "store.sqlite"]


@pytest.mark.parametrize("damage", ["row", "half", "none", "text", "lines"])
def test_a_backup_that_is_not_sound_replaces_nothing(damage: str, store: Store, tmp_path: Path) -> None:
    Drawn(store, 2)
    before = content(store)
    copy = tmp_path / ("copy.jsonl" if damage == "lines" else "copy")
    back_up(store, copy)
    if damage == "row":
        with sqlite3.connect(copy) as connection:
            connection.execute("UPDATE document SET text = 'Other.'")
        connection.close()
    elif damage == "half":
        copy.write_bytes(copy.read_bytes()[: copy.stat().st_size // 2])
    elif damage == "text":
        copy.write_text("my notes\n")
    elif damage == "lines":
        copy.write_bytes(copy.read_bytes()[:-30])
    else:
        copy.unlink()
    store.close()
    with pytest.raises(BridleError) as error:
        restore_file(copy, tmp_path / "store.sqlite", by="me", force=True)
    assert isinstance(error.value, StoreError | DataError) and "\n" not in str(error.value)
    with Store.open(tmp_path / "store.sqlite") as same:
        assert content(same) == before
    assert not list(tmp_path.glob("*before-restore*")) and not [
        path for path in tmp_path.iterdir() if ".new" in path.name
    ]


def test_a_damaged_store_is_replaced_by_its_backup(store: Store, tmp_path: Path) -> None:
    Drawn(store, 2)
    before = content(store)
    back_up(store, tmp_path / "copy")
    store.close()
    place = tmp_path / "store.sqlite"
    place.write_bytes(place.read_bytes()[:5000])
    with pytest.raises(UsageError, match="--force"):
        restore_file(tmp_path / "copy", place, by="me")
    restore_file(tmp_path / "copy", place, by="me", force=True)
    with Store.open(place) as same:
        assert content(same) == before
    place.unlink()
    restore_file(tmp_path / "copy", place, by="me")  # nothing is there to be lost
    with Store.open(place) as same:
        assert content(same) == before


def test_a_full_disk_leaves_no_half_backup(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Drawn(store, 2)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bridle.feedback.upkeep.backup.copy_of", full)
    with pytest.raises(BridleError, match="no space left while saving"):
        back_up(store, tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir() if "copy" in path.name] == []
    monkeypatch.undo()
    back_up(store, tmp_path / "copy")
    shutil.copyfile(tmp_path / "copy", tmp_path / "again")
    monkeypatch.setattr("bridle.feedback.upkeep.backup.fill", full)
    with pytest.raises(BridleError, match="no space left while saving"):
        restore_file(tmp_path / "again", tmp_path / "store.sqlite", by="me", force=True)
    assert list(store_faults(store)) == []
