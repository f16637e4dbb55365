"""Files of others into the store: every row is kept or skipped for a reason that is counted and answered.

    with Store.open("store.sqlite") as store:
        print(import_file(store, "preferences.jsonl.gz").text())

Prompts go to the store's prompts, split by hash; demonstrations are answers with the source "demonstration", which SFT
imitates; preferences are items of the study "import" with one judgement each.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from bridle.core.errors import DataError, NoUsableRows
from bridle.core.records import Completion, Judgement, LabelerKind, content_hash
from bridle.core.text import one_line
from bridle.feedback.importing.formats import FIELDS, KNOWN_FORMS, Form, ImportedRow, read_example
from bridle.feedback.importing.readers import RawRow, file_kind, read_rows
from bridle.feedback.importing.reasons import Note, Reason, Skip
from bridle.feedback.importing.scripts import scripts_of
from bridle.feedback.rankings import item_id
from bridle.feedback.store.store import Store, split_of

BATCH_ROWS, BATCH_CHARACTERS = 1_000, 8_000_000  # written in one go, whichever comes first
STUDY = LABELER = SOURCE = "import"
DEMONSTRATION = "demonstration"
UNREAD_NAMES = 50  # fields left unread that are told apart: a file may invent one for each row
LONGEST_NAME = 100  # characters of one that are shown


@dataclass
class Tally:
    """How often something was met, and where first."""

    count: int
    row: int
    example: str


Tallies = dict[StrEnum, Tally]


@dataclass
class ImportReport:
    """What became of each row of a file: `rows == kept + skipped_rows`, always."""

    path: str
    file: str = ""  # "JSON lines", "JSON list" or "Parquet"
    unit: str = "line"  # what the rows' numbers count
    rows: int = 0
    kept: int = 0
    new: int = 0  # of the rows kept, those that the store did not have yet
    kinds: Counter[str] = field(default_factory=Counter)  # of the rows kept; each of these three adds up to them
    forms: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)  # fields of rows kept that mean nothing here
    skipped: Tallies = field(default_factory=dict)
    notes: Tallies = field(default_factory=dict)
    first_row: str = ""
    position: int = 0  # bytes of the file that were read so far

    @property
    def skipped_rows(self) -> int:
        return sum(tally.count for tally in self.skipped.values())

    def skips(self, *reasons: Reason) -> int:
        return sum(self.skipped[reason].count for reason in reasons if reason in self.skipped)

    @property
    def summary(self) -> dict[str, int]:
        """What a file's owner wants to know first, also where it is none."""
        return {
            "duplicates": self.skips(Reason.DUPLICATE),
            "empty": self.skips(Reason.EMPTY_PROMPT, Reason.EMPTY_ANSWER),
            "identical": self.skips(Reason.IDENTICAL),
        }

    def as_dict(self) -> dict[str, Any]:
        def plain(tallies: Tallies) -> dict[str, dict[str, int | str]]:
            return {str(why): {"count": t.count, self.unit: t.row, "example": t.example} for why, t in tallies.items()}

        return {
            "path": self.path,
            "file": self.file,
            "rows": self.rows,
            "kept": self.kept,
            "new": self.new,
            "kinds": dict(self.kinds),
            "forms": dict(self.forms),
            "scripts": dict(self.scripts),
            "unread": dict(self.unread),
            **self.summary,
            "skipped": plain(self.skipped),
            "notes": plain(self.notes),
        }

    def text(self) -> str:
        """The report as a plain table."""
        return "\n".join(map(one_line, self.lines()))

    def lines(self) -> list[str]:
        new = f"{self.new:,} of them new" if self.new else "all were in the store already, so nothing was added"
        lines = [f"{self.path} ({self.file})", f"{self.rows:>9,}  rows read", f"{self.kept:>9,}  kept; {new}"]
        for title, counts in (("", self.kinds), ("form ", self.forms), ("script ", self.scripts)):
            lines += [f"{count:>13,}  {title}{name}" for name, count in counts.most_common()]
        if self.unread:
            names = ", ".join(
                f"{one_line(name, LONGEST_NAME)} ({count:,})" for name, count in self.unread.most_common(8)
            )
            lines.append(f"{'':>13}  fields left unread: {names}{' …' if len(self.unread) > 8 else ''}")
        summary = ", ".join(f"{count:,} {name}" for name, count in self.summary.items())
        lines += [f"{self.skipped_rows:>9,}  skipped; {summary}", *self._tally_lines(self.skipped)]
        return [*lines, *([f"{'':>9}  noted", *self._tally_lines(self.notes)] if self.notes else [])]

    def _tally_lines(self, tallies: Tallies) -> list[str]:
        ordered = sorted(tallies.items(), key=lambda entry: -entry[1].count)
        return [f"{tally.count:>13,}  {why:<40}  {self.unit} {tally.row}: {tally.example}" for why, tally in ordered]


def read_examples(path: str | Path, report: ImportReport, form: Form | None = None) -> Iterator[ImportedRow]:
    """Yield the usable rows of a file in order, filling the report as it goes.

    Memory does not grow with the file but for about 100 bytes a row, by which duplicates are known. Raises DataError if
    the file cannot be read to its end, and NoUsableRows at its end if no row could be used.
    """
    kind = file_kind(Path(path))
    report.file, report.unit = str(kind), kind.unit
    seen: set[bytes] = set()
    for row in read_rows(Path(path), kind):
        report.position = row.position
        if row.value is None:
            _count(report.notes, Note.BLANK, row, "")
            continue
        report.rows += 1
        report.first_row = report.first_row or row.excerpt
        try:
            if isinstance(row.value, Reason):
                raise Skip(row.value)
            example, notes = read_example(row.value, form)
            turns = [[m.role, m.content] for m in example.prompt.messages]
            digest = bytes.fromhex(content_hash([turns, example.answers]))[:16]
            if digest in seen:
                raise Skip(Reason.DUPLICATE)
        except Skip as skip:
            _count(report.skipped, skip.reason, row, row.excerpt if skip.reason not in report.skipped else "")
            continue
        seen.add(digest)
        _count_kept(report, example, row.value)
        for note in sorted(notes):
            _count(report.notes, note, row, row.excerpt if note not in report.notes else "")
        yield example
    if not report.kept:
        reason = next(iter(report.skipped), "")
        first = f"its first of {report.rows:,} ({reason}) is {report.first_row}" if report.rows else "it is empty"
        raise NoUsableRows(f"{path} has no usable row: {first}; what can be read is {KNOWN_FORMS}")


def _count_kept(report: ImportReport, example: ImportedRow, fields: dict[str, Any]) -> None:
    report.kept += 1
    report.kinds[example.kind] += 1
    report.forms[example.form] += 1
    report.scripts[scripts_of([example.prompt.text, *example.answers])] += 1
    for name, value in fields.items():
        known = value is None or name in FIELDS[example.form]
        if not known and (name in report.unread or len(report.unread) < UNREAD_NAMES):
            report.unread[name] += 1


def _count(tallies: Tallies, why: StrEnum, row: RawRow, example: str) -> None:
    if why in tallies:
        tallies[why].count += 1
    else:
        tallies[why] = Tally(1, row.number, example)


def import_file(
    store: Store,
    path: str | Path,
    *,
    form: Form | None = None,
    held_out_share: float = 0.1,
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Import a file; `form=None` lets each row's fields tell its form. `progress` is told bytes read, and the file's.

    New prompts are split by their hash. Importing a file again adds nothing. Raises as `read_examples` does; what was
    read before an error stays in the store.
    """
    split_of("", held_out_share)  # refuses a share out of range before anything is written
    report = ImportReport(str(path))
    batch: list[ImportedRow] = []
    characters = 0
    try:
        for example in read_examples(path, report, form):
            batch.append(example)
            characters += sum(len(m.content) for m in example.prompt.messages) + sum(map(len, example.answers))
            if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
                report.new += _store_batch(store, batch, held_out_share)
                batch, characters = [], 0
                if progress is not None:
                    progress(report.position, Path(path).stat().st_size)
    except DataError:  # the file cannot be read on
        _store_batch(store, batch, held_out_share)
        raise
    report.new += _store_batch(store, batch, held_out_share)
    return report


# --------------------------------------------------------------------------------------------- into the store


def _store_batch(store: Store, batch: list[ImportedRow], held_out_share: float) -> int:
    """Write rows; returns how many of them the store did not have."""
    if not batch:
        return 0
    by_answers = [[example for example in batch if len(example.answers) == n] for n in range(3)]
    alone, answered, compared = by_answers
    # Prompts that stand alone come first, so that they are counted as new where an answered row of the batch has them too.
    new = store.add_prompts([e.prompt for e in alone], split=None, source=SOURCE, held_out_share=held_out_share)
    store.add_prompts([e.prompt for e in batch], split=None, source=SOURCE, held_out_share=held_out_share)
    answers = [Completion(example.prompt.id, example.answers[0]) for example in answered]
    new += store.add_completions(answers, source=DEMONSTRATION)
    return new + _store_preferences(store, compared)


def _store_preferences(store: Store, batch: list[ImportedRow]) -> int:
    groups, winners = [], []
    for example in batch:
        chosen, rejected = (Completion(example.prompt.id, text) for text in example.answers)
        # Slots by hash, so that the slot does not tell which was chosen, and both votes on a pair meet at one item.
        group = sorted((chosen, rejected), key=lambda completion: completion.id)
        groups.append(group)
        winners.append(group.index(chosen))
    store.add_completions([completion for group in groups for completion in group], source=SOURCE)
    store.add_items(groups, study=STUDY)
    return store.add_judgements(
        _imported_judgement(item_id(group, STUDY), winner) for group, winner in zip(groups, winners, strict=True)
    )


def _imported_judgement(item: str, winner: int) -> Judgement:
    return Judgement(
        item_id=item,
        labeler=LABELER,
        labeler_kind=LabelerKind.IMPORTED,
        ranking=((winner,), (1 - winner,)),
        display_order=None,
        source="import",
        submission_key=content_hash([item, winner]),
    )
