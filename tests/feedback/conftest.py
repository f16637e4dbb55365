import importlib.util
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from bridle.feedback.store.store import Store
from tests.feedback.sample import Sample


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.sqlite") as store:
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
        with Store.open(own.render_as_string(hide_password=False)) as store:
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
        with Store.open(tmp_path / "store.sqlite") as store:
            yield store


@pytest.fixture
def sample() -> Sample:
    return Sample()
