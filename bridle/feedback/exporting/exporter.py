"""A store's data into a file of a form that others read.

    with Store.open("store.sqlite") as store:
        print(export_file(store, "preferences.jsonl", "preference", Wanted(split="train")).lines())

The file is whole or absent. Memory does not grow with the number of rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bridle.core.errors import DataError, UsageError
from bridle.feedback.exporting.formats import EXPORTS, Wanted, not_held, states_margins
from bridle.feedback.exporting.writing import ending_of, new_file, write_rows
from bridle.feedback.store import tables
from bridle.feedback.store.rows import Values
from bridle.feedback.store.store import Store
from bridle.feedback.upkeep.audit import append_audit
from bridle.feedback.upkeep.takedown import whole_hash


@dataclass
class ExportReport:
    """What was written, and what of the store the form cannot hold, by counts."""

    path: str
    form: str
    rows: int = 0
    not_held: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        return {"path": self.path, "format": self.form, "rows": self.rows, "not_held": dict(self.not_held)}

    def lines(self) -> list[str]:
        left = ", ".join(f"{count:,} {name}" for name, count in self.not_held.items())
        return [
            f"wrote {self.rows:,} rows to {self.path}",
            *([f"not held by the format {self.form}: {left}"] if left else []),
        ]


def export_file(
    store: Store,
    place: Path,
    form: str = "preference",
    wanted: Wanted | None = None,
    *,
    by: str = "",
    force: bool = False,
) -> ExportReport:
    """Write the part of a store that is `wanted`. UsageError where the form has no such part, the file's
    name no such ending, or the file is there; DataError where there is nothing to write. One row of the store's account tells of it."""
    wanted = wanted or Wanted()
    if form not in EXPORTS:
        raise UsageError(f"--format: {form!r} is not a form of exports; the forms are {', '.join(EXPORTS)}")
    of_form, report = EXPORTS[form], ExportReport(str(place), form)
    for name in ("study", "split", "snapshot"):
        if asdict(wanted)[name] is not None and name not in of_form.parts:
            raise UsageError(f"the format {form} has no part by --{name}; leave that out")
    ending = ending_of(place, of_form.endings)
    with new_file(place, force, store) as new:
        with store.reading() as connection:
            if wanted.snapshot is not None:
                way = "`data.json` of a run names its own"
                whole = whole_hash(connection, [tables.snapshot.c.sha256], wanted.snapshot, way)
                wanted = replace(wanted, snapshot=whole)
            left_out = () if states_margins(connection) else ("margin",)
            columns = {name: kind for name, kind in of_form.columns.items() if name not in left_out}
            rows = counted(of_form.rows(connection, wanted, report.not_held), report)
            write_rows(new, ending, columns, rows)
            report.not_held.update(not_held(connection, form, wanted.study))
        if not report.rows:
            raise DataError(
                f"there is nothing in the store to write as {form} ({asdict(wanted)}); `bridle import` brings data"
            )
        report.not_held = Counter({name: count for name, count in report.not_held.items() if count})
        details = {"file": place.name, "rows": report.rows, **asdict(wanted)}
        with store.writing() as connection:
            append_audit(connection, by, "export", form, details)
    return report


def counted(rows: Iterator[Values], report: ExportReport) -> Iterator[Values]:
    for row in rows:
        report.rows += 1
        yield row
