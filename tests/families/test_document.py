"""docs/models.md and docs/python.md say what the tests walk, call and refuse; `make docs` writes them again."""

import os

import pytest

from tests.families.document import DOCS, DOCUMENTS, with_tables


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_document_has_the_tests_tables(name: str) -> None:
    document = DOCS / name
    text = document.read_text("utf-8")
    expected = with_tables(name, text)
    if os.environ.get("BRIDLE_UPDATE_GOLDEN") == "1":
        document.write_text(expected, "utf-8")
    assert expected == document.read_text("utf-8"), (
        f"docs/{name} is not as the tests have it; `make docs` writes it again"
    )
    assert text.count("<!-- ") == len(DOCUMENTS[name])
