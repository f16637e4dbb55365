"""Files of others into the store: every row is kept or skipped for a reason that is counted and answered.

    with Store.open("store.sqlite") as store:
        print(import_file(store, "preferences.jsonl.gz").text())

A file is one transaction: it is in with all its good rows, or not at all. The store notes its hash, so that the same file read in the same
way is known again at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from bridle.core.records import content_hash
from bridle.core.text import one_line
from bridle.feedback.importing.files.hub import hub_source
from bridle.feedback.importing.files.source import RowSource
from bridle.feedback.importing.formats import Form
from bridle.feedback.importing.forms.imported import ImportedRow
from bridle.feedback.importing.keeping import store_rows
from bridle.feedback.importing.report import ImportReport, NothingImported, read_examples
from bridle.feedback.store.ratings import add_imported_file, imported_file
from bridle.feedback.store.reviews import near_duplicates
from bridle.feedback.store.store import Store, split_of

BATCH_ROWS, BATCH_CHARACTERS = 1_000, 4_000_000  # written in one go, whichever comes first
READING = 1  # raised where the same file gives other rows than before, so that it is read again


def import_file(
    store: Store,
    path: str | Path,
    *,
    form: Form | None = None,
    mapping: Mapping[str, str] | None = None,
    encoding: str | None = None,
    held_out_share: float = 0.1,
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Import a file, an archive, a folder, or a dataset of the Hub by its name.

    `form=None` lets each row's fields tell its form; `encoding=None` lets the file's bytes tell that. `progress` is told bytes read, and
    the file's. New prompts are split by their hash. Importing a file again adds nothing. Raises DataError where it cannot be read to its
    end, and NoUsableRows where no row could be used; nothing of it is stored then.
    """
    split_of("", held_out_share)  # refuses a share out of range before anything is written
    source = hub_source(path) or RowSource(path, encoding)
    report = ImportReport(str(path))
    key = source.sha256 and content_hash([READING, source.sha256, form, dict(mapping or {}), encoding])
    if key and (known := imported_file(store, key)) is not None:
        return _report_again(path, *known)
    with store.transaction() as one:
        for batch in _batches(read_examples(source, report, form, mapping)):
            found = store_rows(one, batch, held_out_share)
            report.new, report.known = report.new + found.new, report.known + found.known
            report.disagreements += found.disagreements
            if progress is not None:
                progress(report.position, source.size)
        report.file, report.unit, report.file_notes = source.kind, source.unit, list(map(one_line, source.done))
        if not report.kept_rows:
            raise NothingImported(report)
        report.near_duplicates = near_duplicates(one)
        if key:
            name = one_line(str(path))  # which may hold what no database stores
            add_imported_file(one, key, name, {**report.as_dict(), "path": name})
    return report


def _report_again(path: str | Path, name: str, when: str, found: Mapping[str, object]) -> ImportReport:
    """The report of a file that is in already: nothing of it is new."""
    report = ImportReport.from_dict(found)
    report.path, report.known, report.new = str(path), report.known + report.new, 0
    same = "it" if name == one_line(str(path)) else f"the same file, as {name},"
    report.file_notes = [*report.file_notes, f"{same} was imported at {when}, and was not read again"]
    return report


def _batches(rows: Iterable[ImportedRow]) -> Iterator[list[ImportedRow]]:
    batch: list[ImportedRow] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(map(len, row.texts))
        if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
