import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event

from bridle.core.errors import StoreError
from bridle.core.records import Prompt
from bridle.feedback.store import database, tables
from bridle.feedback.store.database import BUSY_TIMEOUT_MS, reading, told_plainly, writing
from bridle.feedback.store.store import Store
from tests.feedback.sample import Sample


def test_the_migrations_give_the_tables(any_store: Store) -> None:
    with any_store._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []


def test_sqlite_settings_on_each_connection(store: Store) -> None:
    with store._engine.connect() as one, store._engine.connect() as two:
        for connection in (one, two):
            asked = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in asked]
            assert found == ["wal", 2, 1, BUSY_TIMEOUT_MS]  # 2 is FULL


def test_a_writer_takes_the_lock_at_its_start_and_a_reader_does_not(store: Store) -> None:
    begun: list[str] = []

    @event.listens_for(store._engine, "before_cursor_execute")
    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("BEGIN"):
            begun.append(statement)

    path = store._engine.url.database
    with reading(store._engine), sqlite3.connect(str(path), timeout=0, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
    with writing(store._engine), sqlite3.connect(str(path), timeout=0, isolation_level=None) as other:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
    assert begun == ["BEGIN", "BEGIN IMMEDIATE"]


def test_every_write_begins_immediate(store: Store, sample: Sample) -> None:
    begun: list[str] = []

    @event.listens_for(store._engine, "before_cursor_execute")
    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        word = statement.split()[0]
        if word == "BEGIN":
            begun.append(statement)
        elif word in ("INSERT", "UPDATE", "DELETE"):
            assert begun[-1] == "BEGIN IMMEDIATE"

    ids = sample.fill(store)
    store.add_judgements([sample.judgement(ids[0], "key")])
    store.take_snapshot()
    assert begun == ["BEGIN IMMEDIATE"] * 5


def test_reopening_keeps_everything(tmp_path: Path) -> None:
    prompt = Prompt.from_text("Question?")
    with Store.open(str(tmp_path / "store.sqlite")) as store:
        store.add_prompts([prompt], split="train", source="world")
    with Store.open(f"sqlite:///{tmp_path / 'store.sqlite'}") as store:
        assert store.prompts() == [prompt]


def test_two_processes_may_make_the_same_store(tmp_path: Path) -> None:
    code = "import sys; from bridle.feedback.store.store import Store; Store.open(sys.argv[1]).counts()"
    path = str(tmp_path / "store.sqlite")
    processes = [subprocess.Popen([sys.executable, "-c", code, path]) for _ in range(2)]
    assert [process.wait(30) for process in processes] == [0, 0]


def test_a_switch_to_the_log_that_is_refused_at_once_is_made_again(tmp_path: Path) -> None:
    """SQLite does not wait for another process that switches at the same moment."""

    class Refusing(sqlite3.Connection):
        left = 3

        def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
            if "journal_mode" in sql and self.left:
                self.left -= 1
                raise sqlite3.OperationalError("database is locked")
            return super().execute(sql, *rest)

    connection = sqlite3.connect(tmp_path / "store.sqlite", factory=Refusing)
    database._let_readers_go_on(connection)
    assert connection.left == 0 and connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def one_sentence(error: pytest.ExceptionInfo[StoreError]) -> str:
    message = str(error.value)
    assert "\n" not in message and len(message) < 400
    return message


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    Store.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="has schema 9999.*update bridle") as error:
        Store.open(path)
    one_sentence(error)


def test_what_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"These are my notes.\n" * 100)
    with pytest.raises(StoreError, match="not a database") as error:
        Store.open(path)
    one_sentence(error)
    assert path.read_bytes() == b"These are my notes.\n" * 100
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE bookmarks (id)")
    with pytest.raises(StoreError, match="another program .bookmarks") as error:
        Store.open(other)
    one_sentence(error)


def test_places_where_no_store_can_be(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is a folder"):
        Store.open(tmp_path)
    with pytest.raises(StoreError, match="no folder"):
        Store.open(tmp_path / "nowhere" / "store.sqlite")
    with pytest.raises(StoreError, match="not a database URL"):
        Store.open("://")


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    prompt = Prompt.from_text("Question?")
    with Store.open(path) as store:
        store.add_prompts([prompt], split="train", source="world")
    with Store.open(f"sqlite:///file:{path}?mode=ro&uri=true") as store:
        assert store.prompts() == [prompt]
        with pytest.raises(StoreError, match="make the file and its folder writable") as error:
            store.add_prompts([Prompt.from_text("More?")], split="train", source="world")
        one_sentence(error)
    fresh = tmp_path / "fresh.sqlite"
    with pytest.raises(StoreError, match="unable to open") as error:
        Store.open(f"sqlite:///file:{fresh}?mode=ro&uri=true")
    one_sentence(error)


def test_a_full_disk_keeps_nothing_of_the_step(store: Store) -> None:
    kept = Prompt.from_text("Question?")
    store.add_prompts([kept], split="train", source="world")
    with store._engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()

    @event.listens_for(store._engine, "begin")
    def fill_the_disk(connection: object) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")  # type: ignore[attr-defined, operator]

    with pytest.raises(StoreError, match="disk is full.*nothing of this step was kept") as error:
        store.add_prompts([Prompt.from_text(f"{n} " * 500) for n in range(500)], split="train", source="world")
    one_sentence(error)
    assert store.prompts() == [kept]


def test_a_password_is_never_shown() -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with pytest.raises(StoreError) as error:
        Store.open("postgresql+psycopg://ann:secret@127.0.0.1:1/none")
    assert "secret" not in str(error.value)
    with pytest.raises(StoreError) as error:
        Store.open("postgresql+psycopg://127.0.0.1:1/none?user=ann&password=secret")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("postgresql+psycopg://ann:secret@127.0.0.1:port/none", "'postgresql+psycopg://…' is not a database URL"),
        ("nosuch://ann:secret@host/none", "no store can be opened at a database of the kind 'nosuch'"),
        ("postgresql+nosuch://ann:secret@host/none", "of the kind 'postgresql+nosuch'"),
        ("sqlite:///a\0b", "a NUL stands in its name"),
        ("a\0b", "a NUL stands in its name"),
    ],
)
def test_an_address_of_no_database_is_one_sentence_without_its_password(address: str, words: str) -> None:
    with pytest.raises(StoreError) as error:
        Store.open(address)
    one_sentence(error)
    assert words in str(error.value) and "secret" not in str(error.value)


PASSWORD = "s3c"
MALFORMED = (
    *(
        "postgresql://u:{}@ret@host",
        "postgresql://u:{}/x@host",
        "postgresql://u:12/{}@host",
        "postgresql://u:12?{}@host",
    ),
    *(
        "postgresql://u:12#{}@host",
        "postgresql:///u:{}@host/name",
        "postgresql:/u:{}@host/name",
        "postgresql:u:{}@host",
    ),
    *(
        "u:{}@postgresql://host/name",
        "POSTGRESQL://u:{}@ret@host",
        "sqlite://u:{}@host/name",
        "u:{}@host/name",
        "http://u:{}@h",
    ),
    *(
        "nosuch://u:{}@host/name",
        "postgresql://u:{}@host:port/name",
        "://u:{}@host",
        "postgresql://host/n?password={}@ret",
    ),
    *("postgresql://u:{}\n@ret@host", "postgresql://{}@127.0.0.1:1/name"),
)


@pytest.mark.parametrize("address", MALFORMED)
def test_no_message_shows_more_of_an_address_than_what_stands_after_its_user(address: str) -> None:
    with pytest.raises(StoreError) as error:
        Store.open(address.format(PASSWORD))
    one_sentence(error)
    assert PASSWORD not in str(error.value) and "ret@" not in str(error.value)


def removed(path: Path) -> None:
    path.unlink()


def replaced(path: Path) -> None:
    Store.open(path.with_name("other.sqlite")).close()
    path.with_name("other.sqlite").replace(path)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("lose", "told"),
    [
        (removed, "cannot be found any more"), (replaced, "was replaced by another file"),
        (emptied, "was cut short from .* bytes to 0"), (halved, "was cut short"),
    ],
)  # fmt: skip
def test_a_store_that_vanishes_while_it_is_open_is_said_and_not_made_anew(
    lose: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    path = tmp_path / "store.sqlite"
    with Store.open(path) as store:
        store.add_prompts([Prompt.from_text("Question?")], split="train", source="world")
        lose(path)
        left = path.read_bytes() if path.exists() else None
        for use in (store.prompts, lambda: store.add_prompts([Prompt.from_text("?")], split="train", source="world")):
            with pytest.raises(StoreError, match=f"{told}.* put the file back, or a backup of it") as error:
                use()
            one_sentence(error)
        with (
            pytest.raises(StoreError, match=told),
            ThreadPoolExecutor(1) as pool,
        ):  # which opens a connection of its own
            pool.submit(store.counts).result()
        assert (path.read_bytes() if path.exists() else None) == left


def test_a_store_that_is_removed_within_a_transaction_keeps_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with (
        Store.open(path) as store,
        pytest.raises(StoreError, match="cannot be found any more.* nothing of this step was kept"),
        writing(store._engine) as connection,
    ):
        connection.execute(tables.labeler.insert(), [{"handle": "a", "kind": "ai", "created_at": ""}])
        path.unlink()
    assert not path.exists()


def test_a_store_that_others_write_to_is_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with Store.open(path) as one, Store.open(path) as two:
        for number in range(3):
            for store in (one, two):
                store.add_prompts([Prompt.from_text(f"{id(store)} {number}")], split="train", source="world")
        assert len(one.prompts()) == len(two.prompts()) == 6


@pytest.mark.parametrize("any_store", ["postgresql"], indirect=True)  # a file has no server
def test_a_server_that_ends_the_connection_is_said(any_store: Store) -> None:
    """And is asked again the next time."""
    with any_store._engine.connect() as one, any_store._engine.connect() as two:
        (number,) = one.exec_driver_sql("SELECT pg_backend_pid()").one()
        one.rollback()
        one.detach()
        two.exec_driver_sql(f"SELECT pg_terminate_backend({number})")
        with (
            pytest.raises(StoreError, match="see that the database's server runs") as error,
            told_plainly(any_store._engine),
        ):
            one.exec_driver_sql("SELECT 1")
    one_sentence(error)
    assert any_store.prompts() == []


def test_a_database_that_was_emptied_is_said(any_store: Store) -> None:
    with any_store._engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE snapshot_row")
        connection.exec_driver_sql(
            "DROP TABLE snapshot" + (" CASCADE" if connection.dialect.name == "postgresql" else "")
        )
    with pytest.raises(StoreError, match="it was emptied or replaced while bridle was at work") as error:
        any_store.snapshot("x")
    one_sentence(error)
