"""A store of before that is brought up to date while something is in the way: said in a sentence, and nothing half done."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, event

from bridle.core.errors import StoreError
from bridle.feedback.store import database
from bridle.feedback.store.store import Store
from bridle.feedback.upkeep.verify import store_faults
from tests.feedback.store.test_smaller import as_of, filled

OPEN = (
    "import sys; from bridle.feedback.store.store import Store; print(Store.open(sys.argv[1]).counts()['judgements'])"
)


@pytest.fixture(params=["0001", "0002"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The file of a store of before, with data."""
    path = tmp_path / "store.sqlite"
    with as_of(request.param), Store.open(path) as store:
        filled(store, request.param)
    yield path


def rows(path: Path) -> list[str]:
    """All that a file says, by a reader of its own."""
    connection = sqlite3.connect(path)
    found = list(connection.iterdump())
    connection.close()
    return found


def refused(path: Path) -> str:
    with pytest.raises(StoreError) as error:
        Store.open(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)


def test_two_processes_migrate_at_once(old: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, str(old)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    assert [(process.communicate(timeout=60), process.returncode) for process in processes] == [
        (("{'imported': 1}\n", ""), 0)
    ] * 3
    with Store.open(old) as store:
        assert list(store_faults(store)) == [] and len(store.judgements()) == 1


def test_a_full_disk_leaves_the_store_as_it_was(old: Path) -> None:
    before = rows(old)

    def fill_the_disk(connection: Connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    begin = database._begin_sqlite

    def begin_on_full(connection: Connection) -> None:
        fill_the_disk(connection)
        begin(connection)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "_begin_sqlite", begin_on_full)
        assert "disk is full" in refused(old)
    assert rows(old) == before
    with Store.open(old) as store:
        assert list(store_faults(store)) == []


def test_a_locked_file_is_said_and_left(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows(old)
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 50)
    other = sqlite3.connect(old, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert "locked" in (told := refused(old)) and "another process has been writing for long" in told
    other.execute("ROLLBACK")
    other.close()
    assert rows(old) == before
    Store.open(old).close()


def test_a_newer_schema_is_said_and_left(old: Path) -> None:
    Store.open(old).close()
    with sqlite3.connect(old) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = rows(old)
    assert "has schema 9999" in refused(old) and rows(old) == before


def test_a_migration_that_is_killed_leaves_the_store_as_it_was(old: Path) -> None:
    before = rows(old)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    event.listen(Engine, "commit", die)
    try:
        with pytest.raises(KeyboardInterrupt):
            Store.open(old)
    finally:
        event.remove(Engine, "commit", die)
    assert rows(old) == before
