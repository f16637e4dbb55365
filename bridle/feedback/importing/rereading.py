"""Files that were imported, known again by what they hold and by how they were read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridle.core.errors import DataError
from bridle.core.records import content_hash
from bridle.feedback.importing.files.hub import hub_source
from bridle.feedback.importing.files.source import RowSource
from bridle.feedback.importing.formats import Form
from bridle.feedback.importing.report import ImportReport, hashes_in, read_examples
from bridle.feedback.store.ratings import imported_file, imported_reports
from bridle.feedback.store.store import Store

READING = 1  # raised where the same file gives other rows than before, so that it is read again


def reading_key(
    sha256: str, form: Form | None = None, mapping: Mapping[str, str] | None = None, encoding: str | None = None
) -> str:
    """By which a file that was read in this way is known again."""
    return content_hash([READING, sha256, form, dict(mapping or {}), encoding])


def hashes_in_file(store: Store, path: str | Path) -> set[str]:
    """What the store calls the prompts, answers and texts of a file that was imported, read as it was then; DataError where it was not, or
    is another now."""
    source, way = hub_source(path) or RowSource(path), dict[str, Any]()
    if sha256 := source.sha256:
        ways = [report["read"] for report in imported_reports(store) if "read" in report]
        way = next((one for one in ways if one["sha256"] == sha256), {})
        if not way and imported_file(store, reading_key(sha256)) is None:
            raise DataError(f"{path} was not imported as it is now; `bridle import {path}` does that")
        source = RowSource(path, way.get("encoding"))
    form = None if way.get("form") is None else Form(way["form"])
    rows = read_examples(source, ImportReport(str(path)), form, way.get("mapping"))
    return {name for row in rows for name in hashes_in(row)}
