"""JSON of every layout: the number and the words of each row, and what becomes of the others."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridle.core.errors import DataError
from bridle.feedback.importing.files import json_text
from bridle.feedback.importing.files.row import RawRow
from bridle.feedback.importing.files.source import RowSource
from bridle.feedback.importing.reasons import Note, Reason

ROWS = [{"prompt": f"Question {n}?", "note": 'a "{[],}" \\ 回答\n  {'} for n in range(7)]


def read(path: Path) -> list[RawRow]:
    return list(RowSource(path))


def values(path: Path) -> list[Any]:
    return [row.value for row in read(path)]


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is read on every few characters."""
    monkeypatch.setattr(json_text, "CHUNK", 7)


# ------------------------------------------------------------------------------------------------ what a file is


LAYOUTS = {
    "lines": lines(ROWS),
    "lines with a mark, and without a last newline": b"\xef\xbb\xbf" + lines(ROWS).strip().replace(b"\n", b"\r\n"),
    "list": json.dumps(ROWS).encode(),
    "list indented": json.dumps(ROWS, indent=2).encode(),
    "list in UTF-8 with a mark": b"\xef\xbb\xbf \n" + json.dumps(ROWS, ensure_ascii=False).encode(),
    "list, a line each": b"[\n" + b",\n".join(json.dumps(row).encode() for row in ROWS) + b"\n]\n",
    "list with a last comma": json.dumps(ROWS).encode()[:-1] + b" ,\r\n]",
    "object with the rows under a key": json.dumps({"version": 1, "data": ROWS, "more": [1]}).encode(),
    "object with rows under a key, indented": json.dumps({"train": ROWS[:3], "test": ROWS[3:]}, indent=1).encode(),
    "object after something long": json.dumps({"features": ["x" * 9_000], "rows": ROWS}).encode(),
    "object of columns": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}).encode(),
    "object of columns, indented": json.dumps(
        {name: [row[name] for row in ROWS] for name in ROWS[0]}, indent=2
    ).encode(),
    "object of pandas": json.dumps(
        {name: {str(n): row[name] for n, row in enumerate(ROWS)} for name in ROWS[0]}
    ).encode(),
    "object of pandas, split": json.dumps(
        {"columns": list(ROWS[0]), "index": list(range(7)), "data": [list(row.values()) for row in ROWS]}
    ).encode(),
    "object after object": b"".join(json.dumps(row).encode() for row in ROWS),
    "object after object, indented": b"\n".join(json.dumps(row, indent=2).encode() for row in ROWS),
    "list, one on each line": b"\n".join(json.dumps([row]).encode() for row in ROWS),
    "two lists": json.dumps(ROWS[:3]).encode() + b"\n[]" + json.dumps(ROWS[3:]).encode(),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_rows(layout: str, zipped: bool, tmp_path: Path, small: None) -> None:
    path = tmp_path / ("rows.txt" if zipped else "rows.gz")  # the name tells nothing
    path.write_bytes(gzip.compress(LAYOUTS[layout]) if zipped else LAYOUTS[layout])
    source = RowSource(path)
    rows = list(source)
    assert source.kind == (
        "JSON lines" if layout.startswith("lines") else "JSON object" if "object" in layout else "JSON list"
    )
    assert [row.value for row in rows] == ROWS
    assert [row.number for row in rows] == list(range(1, 8))
    assert 0 < rows[-1].position <= path.stat().st_size
    assert rows[0].excerpt.replace("{ ", "{").startswith('{"prompt": "Question 0?"')


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"plain", b"[1, 2]\n", b"[broken]\n{}", b"\x1f", b"PAR", b"- a: b\n  c: d"]
)
def test_what_is_nothing_else_is_lines(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(content)
    source = RowSource(tmp_path / "rows")
    assert len(list(source)) == len(content.splitlines()) and source.kind == "JSON lines"


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
        {"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "b"}]},
        {"prompt": "a", "data": [{"role": "user", "content": "b"}]},
        {"instruction": "a", "completions": [{"response": "b"}, {"response": "c"}]},
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_single_object_that_is_a_row_is_one(row: dict[str, Any], indent: int | None, tmp_path: Path) -> None:
    (tmp_path / "rows").write_text(json.dumps(row, indent=indent))
    assert values(tmp_path / "rows") == [row]


def test_what_stands_beside_rows_under_a_key_is_reported(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text(json.dumps({"version": 1, "train": ROWS, "test": ROWS, "license": "x"}))
    source = RowSource(tmp_path / "rows")
    assert len(list(source)) == 14
    assert source.done == ["the rows stand under “train” and “test”; left unread beside: version, license"]


def test_columns_of_several_lengths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text(json.dumps({"prompt": ["a", "b"], "chosen": ["c"]}))
    with pytest.raises(DataError, match="columns that differ in length .prompt: 2, chosen: 1"):
        read(tmp_path / "rows")


def test_dialogues_without_their_field_are_rows(tmp_path: Path) -> None:
    dialogue = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    for text in (json.dumps([dialogue, dialogue]), f"{json.dumps(dialogue)}\n" * 2):
        (tmp_path / "rows").write_text(text)
        assert values(tmp_path / "rows") == [dialogue, dialogue]


# ------------------------------------------------------------------------------------------------- lines


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b'{"prompt": "\xff"}', Reason.NOT_UTF8),
        (b'{"prompt": "Why?", "chosen', Reason.NOT_JSON),
        (b"[" * 100_000, Reason.TOO_DEEP),
        (b"9" * 5000, Reason.NOT_OBJECT),
        (b'{"a": 1,}', Reason.TRAILING_COMMA),
        (b'{"a": 1} // one', Reason.COMMENT),
        (b"// one", Reason.COMMENT),
        (b"{'a': 1}", Reason.PYTHON),
        (b'{"a": None}', Reason.PYTHON),
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
    monkeypatch.setattr(json_text, "LONGEST", 100)
    (tmp_path / "rows").write_bytes(lines([{"a": "x" * 350}, ROWS[0], {"a": "y" * 350}]))
    assert values(tmp_path / "rows") == [Reason.TOO_LONG, ROWS[0], Reason.TOO_LONG]


def test_what_is_shown_does_nothing_to_a_terminal() -> None:
    row = RawRow(1, Reason.NOT_JSON, "\x1b[2Jone\n\ttwo \udcff " + "x" * 500, 0)
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
        (b"[" * 100_000, Reason.TOO_DEEP),
        (b'{"a": ' + b"9" * 5000 + b"}", {"a": "9" * 5000}),
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
        (b'[{"a": 1}, {"a": b}, {"c": 2}]', 2, 11),
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
        for each in RowSource(tmp_path / "rows"):
            found.append(each.value)
    assert found == [{"a": 1}]


def test_an_entry_too_long_is_told_and_the_next_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "LONGEST", 100)
    monkeypatch.setattr(json_text, "CHUNK", 30)
    (tmp_path / "rows").write_text(json.dumps([{"a": "x" * 1000}, {"a": 2}, {"a": "y" * 350}, {"a": 4}], indent=1))
    assert values(tmp_path / "rows") == [Reason.TOO_LONG, {"a": 2}, Reason.TOO_LONG, {"a": 4}]
    (tmp_path / "rows").write_text(json.dumps([{"a": "x" * 1000}, {"a": 2}]))
    assert values(tmp_path / "rows") == [Reason.TOO_LONG, {"a": 2}]
    (tmp_path / "rows").write_text(json.dumps([{"a": "x" * 1000}, {"b": 2}]))
    with pytest.raises(DataError, match="longer than 32 MiB at character 1, row 1"):
        read(tmp_path / "rows")


def test_a_bad_entry_of_a_list_without_lines_costs_itself_alone(tmp_path: Path, small: None) -> None:
    good = [json.dumps({"a": n, "b": [{"a": 0}, {"c": "},{"}]}) for n in range(5)]
    for place in range(5):
        entries = [*good[:place], '{"a": 9 "b": [{"c": 1}, {"c": 2}]}', *good[place:]]
        (tmp_path / "rows").write_text("[" + ", ".join(entries) + "]")
        found = values(tmp_path / "rows")
        assert [value for value in found if isinstance(value, dict)] == [json.loads(row) for row in good]
        assert found.count(Reason.NOT_JSON) == 1 and len(found) == 6


def test_a_field_that_stands_twice_is_noted(tmp_path: Path) -> None:
    row = '{"a": 1, "b": {"c": 1, "c": 2}}'
    for text in (f"{{}}\n{row}\n{{}}", f"[{{}}, {row}, {{}}]"):
        (tmp_path / "rows").write_text(text)
        assert [(row.value, row.notes) for row in read(tmp_path / "rows")] == [
            ({}, ()), ({"a": 1, "b": {"c": 2}}, (Note.FIELD_TWICE,)), ({}, ()),
        ]  # fmt: skip


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
        patch.setattr(json_text, "CHUNK", chunk)
        found = values(tmp_path / "rows")
    assert found == [entry if isinstance(entry, dict) else Reason.NOT_OBJECT for entry in entries]
