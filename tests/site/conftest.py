from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labelling_app import Site, opened


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with opened(tmp_path) as site:
        yield site
