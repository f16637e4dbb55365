from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.feedback.conftest import postgresql_store
from tests.labelling_app import Site, opened


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with opened(tmp_path) as site:
        yield site


@pytest.fixture(params=["sqlite", "postgresql"])
def any_site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """The same test on both databases; PostgreSQL where BRIDLE_TEST_POSTGRES names one."""
    if request.param == "sqlite":
        with opened(tmp_path) as site:
            yield site
        return
    for store in postgresql_store():
        with opened(tmp_path, target=store._engine.url.render_as_string(hide_password=False)) as site:
            yield site
