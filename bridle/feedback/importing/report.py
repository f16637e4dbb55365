"""What became of each row of a file: kept as what, skipped for which reason, and what of it was left unread."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from bridle.core.errors import DataError, NoUsableRows
from bridle.core.records import CANONICAL, Completion, content_hash
from bridle.core.text import one_line
from bridle.feedback.importing.files.row import RawRow, is_utf8
from bridle.feedback.importing.formats import KNOWN_FORMS, Form, finished, read_row
from bridle.feedback.importing.forms.exports import is_flat_message, rows_of_tree, trees_of
from bridle.feedback.importing.forms.fields import Row
from bridle.feedback.importing.forms.imported import ImportedRow
from bridle.feedback.importing.reasons import Note, Reason, Skip
from bridle.feedback.importing.scripts import scripts_of

NAMES = 50  # fields left unread, and roles, that are told apart: a file may invent one for each row
LONGEST_NAME = 100  # characters of one that are printed
LONGEST_KEPT = 1_000  # characters of one that programs get as it is
FLAT_CHARACTERS = 200_000_000  # of messages that wait for the others of their tree
FLAT_FIELDS = ("message_id", "parent_id", "text", "role", "lang", "rank", "deleted", "review_result")


@dataclass
class Tally:
    """How often something was met, and where first."""

    count: int
    row: int
    example: str
    entry: str = ""  # the file of an archive or a folder, or the sheet


Tallies = dict[StrEnum, Tally]


@dataclass
class ImportReport:
    """`rows == kept_rows + skipped_rows`, always. `kept` counts what the rows became: a row may hold several verdicts."""

    path: str
    file: str = ""  # "JSON lines", "CSV", …
    unit: str = "line"  # what the rows' numbers count
    file_notes: list[str] = field(
        default_factory=list
    )  # what was done to the file: its encoding, what it was unpacked from
    rows: int = 0
    kept_rows: int = 0
    new: int = 0  # of what was kept, that which the store did not have yet
    known: int = 0  # and that which it had
    disagreements: int = 0  # verdicts that are opposite to one that was in the store
    near_duplicates: int = 0  # held-out prompts of the store that nearly equal a training prompt
    kept: Counter[str] = field(default_factory=Counter)
    criteria: Counter[str] = field(default_factory=Counter)  # verdicts, votes and scores by a criterion
    forms: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)  # who speaks, as the file names them
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
            "empty": self.skips(Reason.EMPTY_PROMPT, Reason.EMPTY_ANSWER, Reason.EMPTY_TEXT),
            "identical": self.skips(Reason.IDENTICAL),
        }

    def as_dict(self) -> dict[str, Any]:
        # Not by asdict, which breaks a Counter on Python 3.11.
        found: dict[str, Any] = {
            name: dict(value) if isinstance(value, Counter) else value for name, value in self.__dict__.items()
        }
        tallies = {
            name: {str(why): {**tally.__dict__} for why, tally in found[name].items()} for name in ("skipped", "notes")
        }
        counts = {name: {why: tally["count"] for why, tally in found.items()} for name, found in tallies.items()}
        return {**found, **self.summary, **counts, "first": {**tallies["skipped"], **tallies["notes"]}}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> ImportReport:
        """The report that `as_dict` gave."""
        plain = {entry.name: found[entry.name] for entry in fields(cls)}
        for name, kind in (("skipped", Reason), ("notes", Note)):
            plain[name] = {kind(why): Tally(**found["first"][why]) for why in found[name]}
        counters = ("kept", "criteria", "forms", "scripts", "roles", "unread")
        return cls(**{**plain, **{name: Counter(plain[name]) for name in counters}})

    # ------------------------------------------------------------------------------------------------ as text

    def text(self) -> str:
        """The report as a plain table."""
        return "\n".join(map(one_line, self.lines()))

    def lines(self) -> list[str]:
        new = f"new in the store: {self.new:,}" if self.new else "all were in the store already, so nothing was added"
        lines = [f"{self.path} ({self.file})", *(f"{'':>9}  {note}" for note in self.file_notes)]
        lines += [
            f"{self.rows:>9,}  rows read",
            f"{self.kept_rows:>9,}  kept; {new}" if self.kept_rows else f"{0:>9}  kept",
        ]
        for title, counts in (
            ("", self.kept),
            ("form ", self.forms),
            ("script ", self.scripts),
            ("by the criterion ", self.criteria),
        ):
            lines += [f"{count:>13,}  {title}{one_line(name, LONGEST_NAME)}" for name, count in counts.most_common()]
        for title, counts in (("roles", self.roles), ("fields left unread", self.unread)):
            names = ", ".join(f"{one_line(name, LONGEST_NAME)} ({count:,})" for name, count in counts.most_common())
            lines += [f"{'':>13}  {title}: {names}"] if names else []
        for count, words in ((self.disagreements, DISAGREE), (self.near_duplicates, NEAR)):
            lines += [f"{count:>13,}  {words}"] if count else []
        summary = ", ".join(f"{count:,} {name}" for name, count in self.summary.items())
        lines += [f"{self.skipped_rows:>9,}  skipped; {summary}", *self._tally_lines(self.skipped)]
        return [*lines, *([f"{'':>9}  noted", *self._tally_lines(self.notes)] if self.notes else [])]

    def _tally_lines(self, tallies: Tallies) -> list[str]:
        ordered = sorted(tallies.items(), key=lambda entry: -entry[1].count)
        places = {why: f"{f'{tally.entry} ' if tally.entry else ''}{self.unit} {tally.row}" for why, tally in ordered}
        return [f"{tally.count:>13,}  {why:<40}  {places[why]}: {tally.example}" for why, tally in ordered]

    # ------------------------------------------------------------------------------------------------ counting

    def count_kept(self, example: ImportedRow) -> None:
        for kind in example.kinds:
            self.kept[kind] += 1
        self.forms[example.form] += 1
        self.scripts[
            scripts_of([*(turn.content for turn in example.prompt.messages[-1:]), *example.answers, example.document])
        ] += 1
        for stated in example.stated:
            if stated.criterion:
                self.criteria[stated.criterion] += 1

    def count_names(self, row: Row) -> None:
        for counts, names in ((self.unread, row.unread()), (self.roles, sorted(row.roles))):
            for written in names:
                storable = len(written) <= LONGEST_KEPT and is_utf8(written)
                name = written if storable else one_line(written, LONGEST_NAME)
                if name in counts or len(counts) < NAMES:
                    counts[name] += 1

    def count(self, tallies: Tallies, why: StrEnum, raw: RawRow, example: str = "") -> None:
        if why in tallies:
            tallies[why].count += 1
        else:
            tallies[why] = Tally(1, raw.number, example, raw.entry)


def sum_of_reports(reports: Sequence[ImportReport]) -> dict[str, Any]:
    """The report of one file; of several their sum, and each under "files"."""
    each = [report.as_dict() for report in reports]
    if len(each) == 1:
        return each[0]
    total: dict[str, Any] = {}
    for name, first in each[0].items():
        if isinstance(first, int) and name != "position":
            total[name] = sum(found[name] for found in each)
        elif name != "first" and isinstance(first, dict):
            total[name] = dict(sum((Counter(found[name]) for found in each), Counter[str]()))
    # Counted in the whole store after each file.
    return {**total, "near_duplicates": each[-1]["near_duplicates"], "files": each}


DISAGREE = "verdicts that are opposite to one that was there: both count"
NEAR = "held-out prompts of the store equal a training prompt but for case, white space and punctuation"


class NothingImported(NoUsableRows):
    """No row of the file could be used; `report` says why."""

    def __init__(self, report: ImportReport) -> None:
        reasons = sorted(report.skipped.items(), key=lambda entry: -entry[1].count)
        why = ", ".join(f"{tally.count:,} {reason}" for reason, tally in reasons)
        first = (
            f"its first of {report.rows:,} ({next(iter(report.skipped), '')}) is {report.first_row}"
            if report.rows
            else "it is empty"
        )
        each = f" ({why})" if len(reasons) > 1 else ""
        super().__init__(f"{report.path} has no usable row: {first}{each}; what can be read is {KNOWN_FORMS}")
        self.report = report


# ------------------------------------------------------------------------------------------------- row by row


def read_examples(
    rows: Iterable[RawRow],
    report: ImportReport,
    form: Form | None = None,
    mapping: Mapping[str, str] | None = None,
    gone: Set[str] = frozenset(),
    to_judge: bool = False,
) -> Iterator[ImportedRow]:
    """Yield what the rows of a file say, in order, filling the report as it goes; messages of Open-Assistant's flat files at the end,
    when their trees are whole. A row with a text of `gone`, by its hash, was taken down, and is skipped.
    `to_judge`: as `read_row` has it.

    Memory does not grow with the file but for about 100 bytes a row, by which duplicates are known, and for such messages.
    """
    seen: set[bytes] = set()
    flat: dict[str, tuple[RawRow, dict[str, Any]]] = {}
    waiting = 0
    for raw in rows:
        report.position = raw.position
        for note in raw.notes:
            report.count(report.notes, note, raw, raw.excerpt if note not in report.notes else "")
        if raw.value is None:
            report.count(report.notes, Note.BLANK, raw)
            continue
        report.rows += 1
        report.first_row = report.first_row or raw.excerpt
        if form in (None, Form.OASST) and isinstance(raw.value, dict) and is_flat_message(raw.value):
            message = {name: raw.value[name] for name in FLAT_FIELDS if name in raw.value}
            waiting += len(str(message.get("text")))
            if waiting > FLAT_CHARACTERS:
                raise DataError(
                    f"{report.path} holds more than {FLAT_CHARACTERS:,} characters of single messages that wait for their trees; import "
                    "its trees (one to a line), or a part of it"
                )
            flat[str(message["message_id"])] = (RawRow(raw.number, None, raw.excerpt, raw.position, raw.entry), message)
            continue
        try:
            if isinstance(raw.value, Reason):
                raise Skip(raw.value)
            values = {"messages": raw.value} if isinstance(raw.value, list) else raw.value
            examples, row = read_row(values, form, mapping, to_judge)
            if gone and not gone.isdisjoint(hash_ for example in examples for hash_ in hashes_in(example)):
                raise Skip(Reason.TAKEN_DOWN)
        except Skip as skip:
            _count_skip(report, skip, raw)
            continue
        yield from _kept(report, seen, examples, row, raw)
    yield from _of_trees(report, seen, flat, gone)


def hashes_in(example: ImportedRow) -> list[str]:
    """What the store would call the row's texts."""
    prompt = example.prompt.id
    answers = [Completion(prompt, text).id for text in example.answers]
    solutions = [content_hash([prompt, text]) for text in example.solutions]
    return [prompt, *answers, *solutions, *([content_hash(example.document)] if example.document else [])]


def without_excerpts(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report as it is kept where texts were taken down: its examples might be some of them."""
    first = {why: {**tally, "example": ""} for why, tally in report["first"].items()}
    return {**report, "first": first, "first_row": ""}


def _count_skip(report: ImportReport, skip: Skip, raw: RawRow) -> None:
    excerpt = f"{one_line(skip.field, LONGEST_NAME)} in {raw.excerpt}" if skip.field else raw.excerpt
    report.count(report.skipped, skip.reason, raw, excerpt if skip.reason not in report.skipped else "")


def _kept(
    report: ImportReport, seen: set[bytes], examples: list[ImportedRow], row: Row, raw: RawRow
) -> Iterator[ImportedRow]:
    digests = {digest_of(example): example for example in examples}
    new = {digest: example for digest, example in digests.items() if digest not in seen}
    if not new:
        _count_skip(report, Skip(Reason.DUPLICATE), raw)
        return
    seen.update(new)
    report.kept_rows += 1
    report.count_names(row)
    for note in sorted(row.notes):
        report.count(report.notes, note, raw, raw.excerpt if note not in report.notes else "")
    for example in new.values():
        report.count_kept(example)
        yield example


def digest_of(example: ImportedRow) -> bytes:
    """What makes a row another than one before: its texts, and who said what of them. Neither margins nor weights."""
    verdicts = [[stated.ranking, stated.outcome, stated.annotator, stated.criterion] for stated in example.verdicts]
    opinions = [[o.kind, o.value, o.answer, o.annotator, o.criterion, o.steps] for o in example.opinions]
    words = [
        example.prompt.id,
        example.answers,
        verdicts,
        opinions,
        example.imitate or example.solutions,
        example.document,
    ]
    return hashlib.sha256(CANONICAL.encode(words).encode()).digest()[:16]


def _of_trees(
    report: ImportReport, seen: set[bytes], flat: dict[str, tuple[RawRow, dict[str, Any]]], gone: Set[str]
) -> Iterator[ImportedRow]:
    """The trees of a flat file. A message of a tree that gives something is kept with it."""
    lone = dict(flat)
    for root in trees_of(message for _, message in flat.values()):
        raw, row, members = flat[str(root["message_id"])][0], Row({}), _members(root)
        try:
            examples = [finished(example, row, {}) for example in rows_of_tree(root, row)]
            if gone and not gone.isdisjoint(hash_ for example in examples for hash_ in hashes_in(example)):
                raise Skip(Reason.TAKEN_DOWN)
        except Skip as skip:
            for name in members:
                _count_skip(report, skip, lone.pop(name)[0])
            continue
        if not examples:
            continue
        before = report.kept_rows
        yield from _kept(report, seen, examples, row, raw)
        report.kept_rows += (len(members) - 1) * (report.kept_rows - before)
        for name in members:
            member = lone.pop(name)[0]
            if report.kept_rows == before and name != str(root["message_id"]):
                _count_skip(report, Skip(Reason.DUPLICATE), member)
    for raw, _ in lone.values():
        _count_skip(report, Skip(Reason.LONE_MESSAGE), raw)


def _members(root: dict[str, Any]) -> list[str]:
    waiting, found = [root], []
    while waiting:
        node = waiting.pop()
        found.append(str(node["message_id"]))
        waiting += node["replies"]
    return found
