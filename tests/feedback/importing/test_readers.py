"""Files as rows: what a file is, the number and the words of each row, what is damaged, and how much memory it takes."""

import gzip
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridle.core.errors import DataError
from bridle.feedback.importing import readers
from bridle.feedback.importing.readers import FileKind, RawRow, file_kind, read_rows
from bridle.feedback.importing.reasons import Reason

ROWS = [{"prompt": f"Question {n}?", "note": 'a "{[],}" \\ 回答\n  {'} for n in range(7)]


def read(path: Path) -> list[RawRow]:
    return list(read_rows(path, file_kind(path)))


def values(path: Path) -> list[Any]:
    return [row.value for row in read(path)]


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def table(path: Path, rows: list[dict[str, Any]], group: int = 1000) -> Path:
    import pyarrow.parquet  # an extra, so not at the top: the other tests run without it

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is read on every few characters."""
    monkeypatch.setattr(readers, "CHUNK", 7)


# ------------------------------------------------------------------------------------------------ what a file is


LAYOUTS = {
    "lines": lines(ROWS),
    "lines with a mark, and without a last newline": b"\xef\xbb\xbf" + lines(ROWS).strip().replace(b"\n", b"\r\n"),
    "list": json.dumps(ROWS).encode(),
    "list indented": json.dumps(ROWS, indent=2).encode(),
    "list in UTF-8 with a mark": b"\xef\xbb\xbf \n" + json.dumps(ROWS, ensure_ascii=False).encode(),
    "list, a line each": b"[\n" + b",\n".join(json.dumps(row).encode() for row in ROWS) + b"\n]\n",
    "list with a last comma": json.dumps(ROWS).encode()[:-1] + b" ,\r\n]",
    "two lists": json.dumps(ROWS[:3]).encode() + b"\n[]" + json.dumps(ROWS[3:]).encode(),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_rows(layout: str, zipped: bool, tmp_path: Path, small: None) -> None:
    path = tmp_path / ("rows.txt" if zipped else "rows.gz")  # the name tells nothing
    path.write_bytes(gzip.compress(LAYOUTS[layout]) if zipped else LAYOUTS[layout])
    assert file_kind(path) is (FileKind.LINES if layout.startswith("lines") else FileKind.LIST)
    rows = read(path)
    assert [row.value for row in rows] == ROWS
    assert [row.number for row in rows] == list(range(1, 8))
    assert 0 < rows[-1].position <= path.stat().st_size
    assert rows[0].excerpt.startswith('{"prompt": "Question 0?"') or rows[0].excerpt.startswith(
        '{ "prompt": "Question 0?"'
    )


def test_a_table_gives_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "TABLE_ROWS", 2)
    turn = {"role": "user", "content": "Why?"}
    rows: list[dict[str, Any]] = [{"prompt": [turn], "score": 0.5}, *({"prompt": [turn], "n": n} for n in range(7))]
    path = table(tmp_path / "rows.json", [{"n": None} | row for row in rows], group=3)
    assert file_kind(path) is FileKind.TABLE
    found = read(path)
    assert [row.value for row in found] == [{"n": None, "score": None} | row for row in rows]
    assert [row.number for row in found] == list(range(1, 9)) and found[-1].position == path.stat().st_size
    assert '"content": "Why?"' in found[0].excerpt


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"plain", b"[1, 2]\n", b"[broken]\n{}", b"\x1f", b"PAR", b"\xff\xfe[\0"]
)
def test_what_is_nothing_else_is_lines(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(content)
    assert file_kind(tmp_path / "rows") is FileKind.LINES
    assert len(read(tmp_path / "rows")) == len(content.splitlines())


# ------------------------------------------------------------------------------------------------- lines


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b'{"prompt": "\xff"}', Reason.NOT_UTF8),
        (b'{"prompt": "Why?", "chosen', Reason.NOT_JSON),
        (b"[" * 100_000, Reason.NOT_JSON),
        (b"9" * 5000, Reason.NOT_JSON),
        (b"[{}]", Reason.NOT_OBJECT),
        (b"null", Reason.NOT_OBJECT),
        (b" \t", None),
    ],
)
def test_a_line_that_is_no_object_is_told_and_the_next_is_read(line: bytes, value: object, tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(b"{}\n" + line + b"\n" + b'{"a": 1}')
    rows = read(tmp_path / "rows")
    assert [(row.number, row.value) for row in rows] == [(1, {}), (2, value), (3, {"a": 1})]
    assert len(rows[1].excerpt) <= 100


def test_a_line_too_long_is_told_and_the_next_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LONGEST", 100)
    (tmp_path / "rows").write_bytes(lines([{"a": "x" * 350}, ROWS[0], {"a": "y" * 350}]))
    assert values(tmp_path / "rows") == [Reason.TOO_LONG, ROWS[0], Reason.TOO_LONG]


def test_what_is_shown_does_nothing_to_a_terminal() -> None:
    row = RawRow(1, Reason.NOT_JSON, b"\x1b[2Jone\n\ttwo \xff " + b"x" * 500, 0)
    assert (
        row.excerpt.startswith("\ufffd[2Jone two \ufffd xxx") and row.excerpt.endswith("…") and len(row.excerpt) == 100
    )
    assert RawRow(1, Reason.NOT_UTF8, "a\udcff", 0).excerpt == "a\ufffd"


# ------------------------------------------------------------------------------------------------- lists


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        (b'{"a": b}', Reason.NOT_JSON),
        (b'{"a": "x}', Reason.NOT_JSON),
        (b'{"a": 1', Reason.NOT_JSON),
        (b'{"a": 1} {"b": 2}', {"a": 1}),
        (b"[" * 100_000, Reason.NOT_JSON),
        (b'{"a": ' + b"9" * 5000 + b"}", Reason.NOT_JSON),
        (b'{"a": "\xff"}', Reason.NOT_UTF8),
        (b"[1, 2]", Reason.NOT_OBJECT),
        (b"12345678901234567890", Reason.NOT_OBJECT),
        (b"-1.5e+30", Reason.NOT_OBJECT),
        (b"null", Reason.NOT_OBJECT),
    ],
)
@pytest.mark.parametrize("indent", ["", "  "])
def test_an_entry_that_is_no_object_is_told_and_the_next_is_read(
    indent: str, entry: bytes, value: object, tmp_path: Path, small: None
) -> None:
    before, after = json.dumps({"x": {"y": [{}]}}, indent=4).encode(), b'{"a": 2}'
    joined = f",\n{indent}".encode().join([before, entry, after, after])
    (tmp_path / "rows").write_bytes(b"[\n" + indent.encode() + joined + b"\n]")
    rows = read(tmp_path / "rows")
    assert rows[0].value == {"x": {"y": [{}]}} and rows[1].value == value and rows[-1].value == {"a": 2}
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    assert sum(row.value == {"a": 2} for row in rows) == 2


def test_a_last_entry_that_is_no_json_is_told_as_one_of_many(tmp_path: Path, small: None) -> None:
    content = json.dumps([{"a": [1, {}]}, {"a": [2]}, {"a": [3]}], indent=3)
    (tmp_path / "rows").write_text(content.replace("3\n", "3 4\n"))
    assert values(tmp_path / "rows") == [{"a": [1, {}]}, {"a": [2]}, Reason.NOT_JSON]


@pytest.mark.parametrize(
    ("content", "row", "character"),
    [
        (b'[{"a": 1}, {"a": b}, {"a": 2}]', 2, 11),
        (b'[\n{"a": 1},\n{"a": "x', 2, 12),
        (b'[\n{"a": 1}\n', 2, 11),
        (b'[{"a": 1},', 2, 10),
        (b'[{"a": 1}] and more', 2, 11),
        (b'[{"a": 1}]]', 2, 10),
        (b'[{"a": 1}, , {"b": 1}]', 2, 11),
    ],
)
def test_a_list_that_cannot_be_read_on_is_told_with_the_place(
    content: bytes, row: int, character: int, tmp_path: Path, small: None
) -> None:
    (tmp_path / "rows").write_bytes(content)
    found = []
    with pytest.raises(DataError, match=rf"is not JSON at character {character}, row {row} \("):
        for each in read_rows(tmp_path / "rows", FileKind.LIST):
            found.append(each.value)
    assert found == [{"a": 1}]


def test_an_entry_too_long_is_told_and_the_next_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LONGEST", 100)
    monkeypatch.setattr(readers, "CHUNK", 30)
    (tmp_path / "rows").write_text(json.dumps([{"a": "x" * 1000}, {"a": 2}, {"a": "y" * 350}, {"a": 4}], indent=1))
    assert values(tmp_path / "rows") == [Reason.TOO_LONG, {"a": 2}, Reason.TOO_LONG, {"a": 4}]
    (tmp_path / "rows").write_text(json.dumps([{"a": "x" * 1000}, {"a": 2}]))
    with pytest.raises(DataError, match="longer than 32 MiB at character 1, row 1"):
        read(tmp_path / "rows")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(JSON, max_size=5), st.sampled_from([None, 0, 2]), st.booleans(), st.integers(1, 9))
def test_a_list_read_in_pieces_is_the_list(
    tmp_path: Path, rest: list[Any], indent: int | None, ascii_only: bool, chunk: int
) -> None:
    entries = [{}, *rest]
    (tmp_path / "rows").write_text(json.dumps(entries, indent=indent, ensure_ascii=ascii_only), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "CHUNK", chunk)
        found = values(tmp_path / "rows")
    assert found == [entry if isinstance(entry, dict) else Reason.NOT_OBJECT for entry in entries]


# ------------------------------------------------------------------------------------------- tables, damaged files


def test_a_missing_pyarrow_is_told_with_the_way_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"not installed; `pip install 'bridle\[hub\]'`"):
        read(tmp_path / "rows")


def test_damaged_tables_are_told(tmp_path: Path) -> None:
    path = table(tmp_path / "rows", ROWS * 1000)
    whole = path.read_bytes()
    for content in (b"PAR1", whole[: len(whole) // 2], whole[:300] + bytes(200) + whole[500:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"is damaged after row \d+, or no Parquet file"):
            read(path)
    path.write_bytes(gzip.compress(whole))
    with pytest.raises(DataError, match="gunzip first"):
        read(path)


def test_a_cell_that_is_not_utf8_costs_its_row_alone(tmp_path: Path) -> None:
    import pyarrow.parquet

    cells = pyarrow.array([b"one", b"\xff", b"three"]).cast(pyarrow.string(), safe=False)
    pyarrow.parquet.write_table(pyarrow.table({"prompt": cells}), tmp_path / "rows")
    assert values(tmp_path / "rows") == [{"prompt": "one"}, Reason.NOT_UTF8, {"prompt": "three"}]


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        file_kind(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        file_kind(tmp_path)
    for layout, unit in ((lines(ROWS * 1000), "line"), (json.dumps(ROWS * 1000).encode(), "row")):
        whole = gzip.compress(layout)
        for size, place in ((len(whole) // 2, rf"{unit} \d\d+"), (12, "its beginning")):
            (tmp_path / "broken.gz").write_bytes(whole[:size])
            with pytest.raises(DataError, match=f"breaks off or is damaged after {place}"):
                read(tmp_path / "broken.gz")


# ------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("layout", ["lines", "list", "indented", "gzip"])
def test_memory_does_not_grow_with_the_file(layout: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"{n} " + "x" * 2000} for n in range(2500)]
    content = (
        lines(rows) if layout in ("lines", "gzip") else json.dumps(rows, indent=1 if layout == "indented" else None)
    )
    packed = content.encode() if isinstance(content, str) else content
    path = tmp_path / "rows"
    path.write_bytes(gzip.compress(packed, 1) if layout == "gzip" else packed)
    assert len(packed) > 5_000_000
    tracemalloc.start()
    try:
        assert sum(isinstance(row.value, dict) for row in read_rows(path, file_kind(path))) == 2500
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_500_000, f"{peak:,} bytes for a file of {len(packed):,}"
