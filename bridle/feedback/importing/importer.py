"""Files of others into the store: every row is kept or skipped for a reason that is counted and answered.

    with Store.open("store.sqlite") as store:
        print(import_file(store, "preferences.jsonl.gz").text())

A file is one transaction: it is in with all its good rows, or not at all. The store notes its hash, so that the same file read in the same
way is known again at once.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from bridle.core.errors import StoreError
from bridle.core.text import one_line
from bridle.feedback.exporting.whole import is_header, store_rows_in
from bridle.feedback.importing.files.hub import HubSource, hub_source
from bridle.feedback.importing.files.row import RawRow
from bridle.feedback.importing.files.source import RowSource
from bridle.feedback.importing.formats import Form
from bridle.feedback.importing.forms.imported import ImportedRow
from bridle.feedback.importing.keeping import Stored, store_rows
from bridle.feedback.importing.report import ImportReport, NothingImported, read_examples, without_excerpts
from bridle.feedback.importing.rereading import reading_key
from bridle.feedback.store.ratings import add_imported_file, imported_file
from bridle.feedback.store.reading import taken_down
from bridle.feedback.store.reviews import near_duplicates
from bridle.feedback.store.store import Store, split_of
from bridle.feedback.store.studies import ask_new_items, newest_item
from bridle.feedback.upkeep.takedown import purge, take_down_too

BATCH_ROWS, BATCH_CHARACTERS = 1_000, 4_000_000  # written in one go, whichever comes first
COLLECTED = 50_000  # objects of a batch, of which hardly any is in a cycle


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
    key = source.sha256 and reading_key(source.sha256, form, mapping, encoding)
    if key and (known := imported_file(store, key)) is not None:
        return _report_again(path, *known)
    rows = iter(source)
    first = next(rows, None)
    if first is not None and is_header(first.value):
        return _import_store(store, report, chain([first], rows))
    with store.transaction() as one, _older_objects_left_alone():
        with one.reading() as connection:
            gone = taken_down(connection)
        rows = chain([] if first is None else [first], rows)
        for batch in _batches(read_examples(rows, report, form, mapping, gone)):
            _count_stored(report, store_rows(one, batch, held_out_share))
            if progress is not None:
                progress(report.position, source.size)
        _finish_report(one, report, source)
        if key:
            name = one_line(str(path))  # which may hold what no database stores
            read = {"sha256": source.sha256, "form": form, "mapping": dict(mapping or {}), "encoding": encoding}
            found_again = {**report.as_dict(), "path": name, "read": read}
            add_imported_file(one, key, name, without_excerpts(found_again) if gone else found_again)
    return report


def import_to_judge(store: Store, path: Path, study: str, *, held_out_share: float = 0.1) -> ImportReport:
    """Import a file for the people of a study: what its rows compare are items of the study, also answers of which nobody said a word. As
    `import_file` in all else, but that a whole store is none, and that a file is read again whether it was imported before or not."""
    source, report = RowSource(path), ImportReport(str(path))
    with store.transaction() as one, one.reading() as connection, _older_objects_left_alone():
        gone, last = taken_down(connection), newest_item(connection)
        for batch in _batches(read_examples(source, report, gone=gone, to_judge=True)):
            _count_stored(report, store_rows(one, batch, held_out_share, study))
        _finish_report(one, report, source)
        ask_new_items(one, study, after=last)
    return report


def _count_stored(report: ImportReport, found: Stored) -> None:
    report.new, report.known = report.new + found.new, report.known + found.known
    report.disagreements += found.disagreements


def _finish_report(store: Store, report: ImportReport, source: RowSource | HubSource) -> None:
    report.file, report.unit, report.file_notes = source.kind, source.unit, list(map(one_line, source.done))
    if not report.kept_rows:
        raise NothingImported(report)
    report.near_duplicates = near_duplicates(store)


def _import_store(store: Store, report: ImportReport, rows: Iterable[RawRow]) -> ImportReport:
    """A store that was exported whole: every row as it is. Nothing is noted of it, so that the store becomes the same one."""
    with store.transaction() as one, one.writing() as connection:
        before = taken_down(connection)
        numbered = ((row.number, row.value) for row in rows if row.value is not None)
        report.kept, report.new = store_rows_in(connection, report.path, numbered)
        came = taken_down(connection) - before
        stood_here = bool(came) and take_down_too(connection, came)
    if stood_here:
        try:
            purge(store)
        except StoreError as error:
            report.file_notes = [f"{error}: `bridle store takedown {min(came)} --reason …`"]
    report.rows = report.kept_rows = report.kept.total()
    report.known, report.file = report.rows - report.new, "a whole store, as `bridle export --format full` writes it"
    return report


@contextmanager
def _older_objects_left_alone() -> Iterator[None]:
    """Python's collector of cycles looks at what was made since alone, once a batch: with each few rows, and at all modules again, it
    takes a fifth of an import's time."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(COLLECTED, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


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
