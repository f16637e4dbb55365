"""Tables that are no text: Parquet and Arrow (with `datasets`' own folders) by pyarrow, Excel by openpyxl. Both are extras.

A table is read a few rows at a time. Excel's own files are held by openpyxl in part, so they may unpack to `LARGEST_WORKBOOK` at most.
"""

from __future__ import annotations

import datetime
import json
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from bridle.feedback.importing.files.delimited import field_names
from bridle.feedback.importing.files.row import FileKind, RawRow, Unreadable
from bridle.feedback.importing.reasons import Reason

if TYPE_CHECKING:
    import pyarrow

TABLE_ROWS = 64  # rows of a table that are held at once
PAGES = 2**20  # bytes of each column of a table that are read at once
LARGEST_WORKBOOK = 2**27  # bytes


def arrow_rows(file: BinaryIO, kind: FileKind, size: int) -> Iterator[RawRow]:
    """The rows of a Parquet file, or of an Arrow file or stream."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise Unreadable(
            f"is a file of {kind}, and pyarrow, which reads them, is not installed; `pip install 'bridle[hub]'`"
        ) from error
    number, rows = 0, 0
    try:
        if kind is FileKind.PARQUET:
            table = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=PAGES)
            batches, rows = table.iter_batches(TABLE_ROWS, use_threads=False), table.metadata.num_rows
        else:
            batches = _arrow_batches(file)
        for batch in batches:
            for value in _values(batch):
                number += 1
                yield RawRow(number, value, "", size * number // rows if rows else min(file.tell(), size))
    except (pyarrow.ArrowException, OSError) as error:
        words = str(error).partition("\n")[0]
        raise Unreadable(f"is damaged after row {number}, or no file of {kind} ({words}); fetch it again") from error


def _arrow_batches(file: BinaryIO) -> Iterator[pyarrow.RecordBatch]:
    """Both of Arrow's layouts: one with a table of contents at its end, and a stream, which `datasets` writes."""
    import pyarrow

    contents = file.read(6) == b"ARROW1"
    file.seek(0)
    source = pyarrow.PythonFile(file, "r")
    if contents:
        table = pyarrow.ipc.open_file(source)
        batches = (table.get_batch(n) for n in range(table.num_record_batches))
    else:
        batches = iter(pyarrow.ipc.open_stream(source))
    for batch in batches:
        for start in range(0, batch.num_rows, TABLE_ROWS):
            yield batch.slice(start, TABLE_ROWS)


def _values(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any] | Reason]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # raised before the first row is given
        for one in range(batch.num_rows):
            try:
                yield from batch.slice(one, 1).to_pylist()
            except UnicodeDecodeError:
                yield Reason.NOT_UTF8


def saved_dataset(folder: Path) -> list[Path] | None:
    """The files of a folder that `datasets` saved, in the order of their rows; None where it is none."""
    try:
        if (contents := folder / "dataset_dict.json").is_file():
            splits = json.loads(contents.read_text("utf-8"))["splits"]
            return [path for split in splits for path in saved_dataset(folder / Path(split).name) or []]
        if not (state := folder / "state.json").is_file():
            return None
        found = json.loads(state.read_text("utf-8"))
        if found.get("_indices_data_files"):
            raise Unreadable(
                "is a dataset with a choice of its rows beside it; save it again with `.flatten_indices()`"
            )
        files = [folder / Path(file["filename"]).name for file in found["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(
            f"is not a whole dataset, for its list of files cannot be read ({error}); save it again"
        ) from error
    if missing := [path.name for path in files if not path.is_file()]:
        raise Unreadable(
            f"lacks {len(missing)} of its {len(files)} files (such as {missing[0]}); fetch the dataset again"
        )
    return files


# ------------------------------------------------------------------------------------------------------- Excel


def excel_rows(file: BinaryIO, size: int, done: list[str]) -> Iterator[RawRow]:
    """The rows of all sheets of a workbook; each sheet's first row that holds anything names its fields."""
    try:
        import openpyxl
    except ImportError as error:
        raise Unreadable(
            "is an Excel workbook, and openpyxl, which reads them, is not installed; `pip install 'bridle[excel]'`, or save it as CSV"
        ) from error
    _require_small(file)
    try:
        with warnings.catch_warnings(action="ignore"):  # of styles and drawings, which are not read
            workbook = openpyxl.load_workbook(file, read_only=True, data_only=True)
            filled = list[str]()
            for sheet in workbook.worksheets:
                before = len(filled)
                for row in _sheet_rows(sheet, size):
                    filled += [sheet.title] if len(filled) == before else []
                    yield row
    except Unreadable:
        raise
    except Exception as error:  # openpyxl lets through whatever a damaged file makes it do
        raise Unreadable(
            f"is not a whole Excel workbook ({type(error).__name__}: {error}); save it again, or as CSV"
        ) from error
    if len(workbook.sheetnames) > 1:
        done.append(f"{len(filled)} of {len(workbook.sheetnames)} sheets hold rows: {', '.join(filled)}")


def _require_small(file: BinaryIO) -> None:
    file.seek(0)
    with zipfile.ZipFile(file) as parts:
        unpacked = sum(part.file_size for part in parts.infolist())
    if unpacked > LARGEST_WORKBOOK:
        raise Unreadable(
            f"is an Excel workbook that unpacks to {unpacked:,} bytes, too many to be held; save it as CSV"
        )
    file.seek(0)


def _sheet_rows(sheet: Any, size: int) -> Iterator[RawRow]:
    header: list[str] | None = None
    for number, cells in enumerate(sheet.iter_rows(values_only=True), 1):
        values = [_cell(cell) for cell in cells]
        if all(value is None for value in values):
            continue
        if header is None:
            header = field_names(["" if value is None else str(value) for value in values])
            continue
        named = zip(header, values, strict=True)  # a column without a name counts where it holds something
        value = {name: cell for name, cell in named if cell is not None or not name.startswith("column ")}
        yield RawRow(number, value, "", size, entry=sheet.title)


def _cell(value: Any) -> Any:
    """What a cell says, in JSON's types; white space alone is nothing."""
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        return str(value)
    return value
