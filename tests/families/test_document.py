"""docs/models.md says what the tests walk and refuse; `make docs` writes it again."""

import os

from tests.families.document import DOCUMENT, with_tables


def test_the_document_has_the_tests_tables() -> None:
    text = DOCUMENT.read_text("utf-8")
    expected = with_tables(text)
    if os.environ.get("BRIDLE_UPDATE_GOLDEN") == "1":
        DOCUMENT.write_text(expected, "utf-8")
    assert expected == DOCUMENT.read_text("utf-8"), (
        "docs/models.md is not as the tests have it; `make docs` writes it again"
    )
    assert text.count("<!-- ") == 5
