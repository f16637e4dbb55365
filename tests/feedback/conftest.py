import importlib.util
import os
import tempfile
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import sqlalchemy as sa

from bridle.feedback.store.store import Store
from tests.feedback.sample import Sample

MIGRATIONS: list[str] = []  # what PostgreSQL was told by all of them, at the first store of this process


@cache
def migrated() -> bytes:
    """The file of an empty store, which went through every migration once: a test's own begins as a copy of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.sqlite"
        Store.open(path).close()
        return path.read_bytes()


def new_store(path: Path) -> Store:
    with path.open("xb") as file:
        file.write(migrated())
    return Store.open(path)


def migrate_postgresql(target: str, engine: sa.Engine, schema: str) -> None:
    """The first time as any store; then by what was told that time, in one piece."""
    if MIGRATIONS:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL search_path = {schema}; {'; '.join(MIGRATIONS)}")
        return
    told: list[str] = []

    def write_down(connection: sa.Connection, cursor: object, statement: str, *_: object) -> None:
        if not statement.lstrip().startswith("SELECT"):
            told.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", write_down)
    try:
        Store.open(target).close()
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", write_down)
    MIGRATIONS[:] = told


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with new_store(tmp_path / "store.sqlite") as store:
        yield store


def postgresql_store() -> Iterator[Store]:
    """A store in a schema of its own, dropped afterwards."""
    address = os.environ.get("BRIDLE_TEST_POSTGRES")
    leave_out = pytest.fail if os.environ.get("CI") == "true" else pytest.skip  # CI leaves nothing out
    if not address:
        leave_out("BRIDLE_TEST_POSTGRES names no database")
        return
    if importlib.util.find_spec("psycopg") is None:
        leave_out("psycopg is not installed")
    url = sa.make_url(address).set(drivername="postgresql+psycopg")
    schema = f"bridle_test_{uuid.uuid4().hex}"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema(schema))
    try:
        own = url.update_query_dict({"options": f"-csearch_path={schema}"})
        target = own.render_as_string(hide_password=False)
        migrate_postgresql(target, engine, schema)
        with Store.open(target) as store:
            yield store
    finally:
        with engine.begin() as connection:
            connection.execute(sa.schema.DropSchema(schema, cascade=True))
        engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """The same test on both databases; PostgreSQL where BRIDLE_TEST_POSTGRES names one."""
    if request.param == "postgresql":
        yield from postgresql_store()
    else:
        with new_store(tmp_path / "store.sqlite") as store:
            yield store


@pytest.fixture
def sample() -> Sample:
    return Sample()
