"""Files as rows: what they are packed and encoded in, tables, what holds no rows, what is damaged, and how much memory it takes."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import sys
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bridle.core.errors import DataError
from bridle.feedback.importing.files import json_text, tables, unpacking
from bridle.feedback.importing.files.hub import hub_source
from bridle.feedback.importing.files.source import RowSource
from bridle.feedback.importing.reasons import Reason

ROWS = [
    {"prompt": f"Question {n}?", "chosen": "Yes, of “course”.", "rejected": 'He said "no"\nand left; 不。'}
    for n in range(7)
]


def values(path: Path, encoding: str | None = None) -> list[Any]:
    return [row.value for row in RowSource(path, encoding)]


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def parquet(path: Path, rows: list[dict[str, Any]], group: int = 1000) -> Path:
    import pyarrow.parquet  # an extra, so not at the top: the other tests run without it

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    return path


def arrow(path: Path, rows: list[dict[str, Any]], stream: bool) -> Path:
    import pyarrow

    table = pyarrow.Table.from_pylist(rows)
    opened = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with path.open("wb") as file, opened(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return path


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


# ------------------------------------------------------------------------------------------ packings, archives, folders


def zstd(content: bytes) -> bytes:
    import pyarrow

    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


PACKINGS = {"gzip": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zstd": zstd}


@pytest.mark.parametrize("packing", PACKINGS)
def test_what_is_packed_gives_the_same_rows(packing: str, tmp_path: Path) -> None:
    pack = PACKINGS[packing]
    path = write(tmp_path / "rows.txt", pack(lines(ROWS)))
    source = RowSource(path)
    rows = list(source)
    assert [row.value for row in rows] == ROWS and source.done == [f"{packing} unpacked"]
    assert 0 < rows[0].position <= path.stat().st_size
    assert values(write(path, pack(pack(lines(ROWS))))) == ROWS


@pytest.mark.parametrize("packing", PACKINGS)
def test_what_breaks_off_is_refused_with_the_place(packing: str, tmp_path: Path) -> None:
    import random

    rng = random.Random(1)
    rows = [{"a": f"{rng.random()}"} for _ in range(20_000)]
    whole = PACKINGS[packing](lines(rows))
    for size in (len(whole) // 2, len(whole) - 3):
        with pytest.raises(DataError, match=r"breaks off or is damaged after (line \d+|its beginning) \("):
            values(write(tmp_path / "rows", whole[:size]))


@pytest.mark.parametrize("make", [zipped, tarred, lambda path, files: tarred(path, files, "w")])
def test_archives_give_the_rows_of_all_their_files(make: Any, tmp_path: Path) -> None:
    import pyarrow  # noqa: F401

    inner = parquet(tmp_path / "p", ROWS[4:6]).read_bytes()
    files = {
        "a/../../first.jsonl": lines(ROWS[:2]),
        "README.md": b"# rows",
        "__MACOSX/._first.jsonl": b"x",
        "a/second.csv.gz": gzip.compress(b'prompt,chosen,rejected\nQuestion 2?,"Yes, of course",no\n'),
        "third.json": json.dumps([ROWS[3]]).encode(),
        "p.parquet": inner,
        "last.jsonl": lines(ROWS[6:]),
    }
    source = RowSource(make(tmp_path / "rows", files))
    rows = list(source)
    assert [row.value for row in rows if row.entry != "a/second.csv.gz"] == [*ROWS[:2], *ROWS[3:]]
    assert rows[0].entry == "a/../../first.jsonl" and rows[0].number == 1 and not (tmp_path / "first.jsonl").exists()
    assert any(
        note.startswith("left out, as no files of rows: README.md, __MACOSX/._first.jsonl") for note in source.done
    )
    assert source.done[-1].startswith("5 files in it: a/../../first.jsonl, a/second.csv.gz, third.json and 2 more")


def test_what_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "BOMB_BYTES", 2**20)
    zeros = b"0" * 2**24
    bombs = [gzip.compress(zeros), bz2.compress(zeros), zipped(tmp_path / "z", {"rows": zeros}).read_bytes()]
    bombs.append(gzip.compress(gzip.compress(zeros)))
    for bomb in bombs:
        with pytest.raises(DataError, match="unpacks to over 200 times its size"):
            values(write(tmp_path / "rows", bomb))
    packed = lines(ROWS)
    for _ in range(8):
        packed = gzip.compress(packed)
    with pytest.raises(DataError, match="packed more than 4 times"):
        values(write(tmp_path / "rows", packed))


def test_a_folder_gives_the_rows_of_its_files_and_says_what_it_left_out(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "b.jsonl", lines(ROWS[3:]))
    write(tmp_path / "a.csv", b"prompt,completion\nWhy?,So.\n")
    write(tmp_path / ".hidden.jsonl", b"x")
    write(tmp_path / "LICENSE", b"x")
    source = RowSource(tmp_path)
    assert [row.entry for row in source] == ["a.csv", *["data/b.jsonl"] * 4]
    assert source.done[0] == "left out, as no files of rows: .hidden.jsonl, LICENSE"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is a folder without a file of rows"):
        RowSource(tmp_path / "empty")


def test_what_datasets_saved_is_read_in_its_order(tmp_path: Path) -> None:
    for split, rows in (("train", ROWS[:5]), ("test", ROWS[5:])):
        (tmp_path / split).mkdir()
        names = ["data-00001.arrow", "data-00000.arrow"]  # as the list says, not by name
        for name, part in zip(names, (rows[:1], rows[1:]), strict=True):
            arrow(tmp_path / split / name, part, stream=True)
        state = {"_data_files": [{"filename": name} for name in names], "_indices_data_files": None}
        (tmp_path / split / "state.json").write_text(json.dumps(state))
        write(tmp_path / split / "cache-1.arrow", b"rubbish")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert values(tmp_path) == ROWS and values(tmp_path / "train") == ROWS[:5]
    (tmp_path / "test" / "data-00000.arrow").unlink()
    with pytest.raises(DataError, match="lacks 1 of its 2 files .such as data-00000.arrow"):
        RowSource(tmp_path)


# ------------------------------------------------------------------------------------------------------------ CSV


@pytest.mark.parametrize(
    ("name", "text", "rows", "said"),
    [
        (
            "a.csv",
            'prompt,chosen\n"a, b","say ""no"""\nc,"two\nlines"\n',
            [("a, b", 'say "no"'), ("c", "two\nlines")],
            "comma",
        ),
        ("a", "prompt;chosen\r\na,b;c\r\nd;e\r\n", [("a,b", "c"), ("d", "e")], "semicolon"),
        ("a.csv", "sep=;\nprompt;chosen\na;b", [("a", "b")], "semicolon"),
        ("a.tsv", "prompt\tchosen\na, b\tc", [("a, b", "c")], "tab"),
        ("a", "prompt|chosen\na, b|c\nd|e", [("a, b", "c"), ("d", "e")], "bar"),
        ("a.csv", 'prompt,chosen\n"say \\"no\\", or",b\n', [('say "no", or', "b")], "comma, quotes behind a backslash"),
        ("a.csv", "\ufeffprompt , chosen\na, \n", [("a", None)], "comma"),
    ],
)
def test_delimiter_and_quotes_are_found(name: str, text: str, rows: list[Any], said: str, tmp_path: Path) -> None:
    source = RowSource(write(tmp_path / name, text.encode()))
    assert [tuple(row.value.values()) for row in source if isinstance(row.value, dict)] == rows
    assert source.done == [f"fields are cut at each {said}; the first line names them"]
    assert [row.number for row in RowSource(tmp_path / name)][0] == text.replace('"two\n', "").count("sep=") + 2


def test_rows_that_do_not_fit_a_table_are_counted(tmp_path: Path) -> None:
    text = 'prompt,chosen\na,b,c\na\n"a"b,c\n\n,x\nd,e\n'
    rows = list(RowSource(write(tmp_path / "a.csv", text.encode())))
    assert [row.value for row in rows] == [
        Reason.FIELD_COUNT, Reason.FIELD_COUNT, Reason.QUOTING, None, {"prompt": None, "chosen": "x"}, {"prompt": "d", "chosen": "e"},
    ]  # fmt: skip
    assert [row.number for row in rows] == [2, 3, 4, 5, 6, 7] and rows[0].excerpt == "a,b,c"
    with pytest.raises(DataError, match=r"quote in the row that begins on line 3 which never closes \(\"c,d e,f"):
        values(write(tmp_path / "a.csv", b'prompt,chosen\na,b\n"c,d\ne,f\n'))
    with pytest.raises(DataError, match="two columns that are called 'chosen'"):
        values(write(tmp_path / "a.csv", b"prompt,chosen,chosen\na,b,c\n"))


def test_plain_text_is_paragraphs_and_prose_is_no_table(tmp_path: Path) -> None:
    text = "The sky is blue, they say.\nThe sea, too, is.\n\nMore, here.\n"
    rows = list(RowSource(write(tmp_path / "a.txt", text.encode())))
    assert [row.value for row in rows] == [
        {"text": "The sky is blue, they say.\nThe sea, too, is."},
        {"text": "More, here."},
    ]
    assert [row.number for row in rows] == [1, 4]
    assert values(write(tmp_path / "a", text.encode())) == [Reason.NOT_JSON, Reason.NOT_JSON, None, Reason.NOT_JSON]


# ------------------------------------------------------------------------------------------- what holds no rows

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(60)
NO_ROWS: dict[str, tuple[bytes, str]] = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer.*`git lfs pull`"),
    "annex": (b"/annex/objects/SHA256E-s9--0.jsonl\n", "git-annex pointer.*`git annex get`"),
    "html": (b"\xef\xbb\xbf \n<!DOCTYPE html><title>Login</title>", "a web page"),
    "xml": (b'<?xml version="1.0"?><rows/>', "XML"),
    "pdf": (b"%PDF-1.7\n", "a PDF"),
    "pickle": (pickle.dumps(ROWS), "a Python pickle, which is a program and is not run"),
    "sqlite": (b"SQLite format 3\0" + bytes(80), "an SQLite database"),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(80), "old Office document"),
    "safetensors": (b"\x20\0\0\0\0\0\0\0" + b'{"a": {}}', "safetensors"),
    "picture": (PICTURE, "an image"),
    "7z": (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    "numpy": (b"\x93NUMPY\x01\0", "a NumPy array"),
    "binary": (b"ab" + bytes(600), "neither text nor a table"),
}


@pytest.mark.parametrize("name", NO_ROWS)
def test_what_holds_no_rows_is_named(name: str, tmp_path: Path) -> None:
    content, what = NO_ROWS[name]
    inside = "rows" if name == "binary" else "rows.jsonl"
    with pytest.raises(DataError, match=what):
        values(write(tmp_path / inside, content))
    with pytest.raises(DataError, match=rf"z \(part/{inside}\) is .*{what.removeprefix('a ')}"):
        values(zipped(tmp_path / "z", {f"part/{inside}": content}))


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"[Content_Types].xml": b"", "word/document.xml": b""}, "a Word or PowerPoint document"),
        ({"m/data.pkl": b"", "m/version": b""}, "a PyTorch file, a pickle"),
        ({"a.npy": b""}, "a NumPy archive"),
        ({"mimetype": b"", "content.xml": b""}, "an OpenDocument file"),
        ({"[Content_Types].xml": b"", "xl/workbook.xml": b""}, "not a whole Excel workbook"),
    ],
)
def test_documents_that_are_zip_archives_are_named(files: dict[str, bytes], what: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"is {what}"):
        values(zipped(tmp_path / "rows", files))


def test_an_encrypted_archive_is_named(tmp_path: Path) -> None:
    content = bytearray(zipped(tmp_path / "rows", {"a.jsonl": lines(ROWS)}).read_bytes())
    for signs in (b"PK\x03\x04", b"PK\x01\x02"):
        content[content.index(signs) + (6 if signs.endswith(b"\x04") else 8)] |= 1
    with pytest.raises(DataError, match="encrypted zip archive; unpack it with its password"):
        values(write(tmp_path / "rows", bytes(content)))


def test_paths_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    import os

    with pytest.raises(DataError, match="there is no file"):
        RowSource(tmp_path / "missing.jsonl")
    (tmp_path / "annexed.jsonl").symlink_to("../.git/annex/objects/a/b/SHA256E-s9--0")
    with pytest.raises(DataError, match="a link of git-annex"):
        RowSource(tmp_path / "annexed.jsonl")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a file that can be read twice"):
        RowSource(tmp_path / "pipe")


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    rows = iter(RowSource(write(tmp_path / "rows", lines(ROWS))))
    next(rows)
    with (tmp_path / "rows").open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(DataError, match="changed while it was read"):
        list(rows)


# ----------------------------------------------------------------------------------------------------- the Hub


def test_a_name_of_the_hub_is_told_from_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert (
        hub_source("rows.jsonl") is None and hub_source("data/rows") is None and hub_source("lost/rows.jsonl") is None
    )
    found = hub_source("hf://openai/gsm8k/main:test")
    assert found is not None and (found.name, found.part, found.split) == ("openai/gsm8k", "main", "test")
    bare = hub_source(Path("openai/gsm8k"))
    assert bare is not None and bare.split == "train"
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        DataError,
        match=r"is not installed; `pip install datasets`, or run this where a hub answers.*load_dataset\('openai/gsm8k'",
    ):
        list(bare)


def test_a_dataset_of_the_hub_is_read_or_told_how_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    class Datasets:
        @staticmethod
        def load_dataset(name: str, part: str | None, *, split: str, streaming: bool) -> list[dict[str, str]]:
            if name == "a/b":
                return [{"prompt": f"{part} {split} {streaming}"}]
            raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    found = hub_source("hf://a/b")
    assert found is not None and [row.value for row in found] == [{"prompt": "None train True"}]
    gone = hub_source("hf://a/c")
    assert gone is not None
    with pytest.raises(
        DataError, match="cannot be fetched .OSError: no route to host.; .* run this where a hub answers"
    ):
        list(gone)


# ------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow stream"])
def test_a_table_gives_the_same_rows(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "TABLE_ROWS", 2)
    turn = {"role": "user", "content": "Why?"}
    rows: list[dict[str, Any]] = [{"prompt": [turn], "score": 0.5}, *({"prompt": [turn], "n": n} for n in range(7))]
    given = [{"n": None} | row for row in rows]
    path = tmp_path / "rows.json"
    parquet(path, given, group=3) if kind == "parquet" else arrow(path, given, "stream" in kind)
    source = RowSource(path)
    found = list(source)
    assert source.kind == kind.split()[0].capitalize()
    assert [row.value for row in found] == [{"n": None, "score": None} | row for row in rows]
    assert [row.number for row in found] == list(range(1, 9)) and 0 < found[-1].position <= path.stat().st_size
    assert '"content": "Why?"' in found[0].excerpt
    assert values(write(tmp_path / "packed", gzip.compress(path.read_bytes()))) == [row.value for row in found]


def test_a_missing_pyarrow_is_told_with_the_way_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = zstd(b"{}")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for content in (b"PAR1", packed):
        with pytest.raises(DataError, match=r"not installed; `pip install 'bridle\[hub\]'`"):
            values(write(tmp_path / "rows", content))


def test_damaged_tables_are_told(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows", ROWS * 1000)
    whole = path.read_bytes()
    for content in (b"PAR1", whole[: len(whole) // 2], whole[:300] + bytes(200) + whole[500:]):
        with pytest.raises(DataError, match=r"is damaged after row \d+, or no file of Parquet"):
            values(write(path, content))
    whole = arrow(path, ROWS * 1000, stream=True).read_bytes()
    with pytest.raises(DataError, match=r"is damaged after row \d+, or no file of Arrow"):
        values(write(path, whole[: len(whole) // 2]))


def test_a_cell_that_is_not_utf8_costs_its_row_alone(tmp_path: Path) -> None:
    import pyarrow.parquet

    cells = pyarrow.array([b"one", b"\xff", b"three"]).cast(pyarrow.string(), safe=False)
    pyarrow.parquet.write_table(pyarrow.table({"prompt": cells}), tmp_path / "rows")
    assert values(tmp_path / "rows") == [{"prompt": "one"}, Reason.NOT_UTF8, {"prompt": "three"}]


def test_a_workbook_gives_the_rows_of_its_sheets(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.title = "one"
    for cells in ([], ["prompt", "chosen", None], ["Why?", 4, 1.5], [None, None], ["a", " ", None, "beyond"]):
        book.active.append(cells)
    second = book.create_sheet("two")
    second.append(["prompt"])
    second.append(["Who?"])
    book.create_sheet("empty")
    book.save(tmp_path / "rows")
    source = RowSource(tmp_path / "rows")
    rows = list(source)
    assert [row.value for row in rows] == [
        {"prompt": "Why?", "chosen": 4, "column 3": 1.5},
        {"prompt": "a", "chosen": None, "column 4": "beyond"},
        {"prompt": "Who?"},
    ]
    assert [row.entry for row in rows] == ["one", "one", "two"] and source.kind == "Excel"
    assert source.done == ["2 of 3 sheets hold rows: one, two"]
    second["B1"] = "prompt"
    book.save(tmp_path / "rows")
    with pytest.raises(DataError, match="two columns that are called 'prompt'"):
        values(tmp_path / "rows")


def test_a_missing_openpyxl_is_told_with_the_way_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(
        DataError, match=r"openpyxl, which reads them, is not installed; `pip install 'bridle\[excel\]'`"
    ):
        values(zipped(tmp_path / "rows", {"[Content_Types].xml": b"", "xl/workbook.xml": b""}))


# ------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("layout", ["lines", "list", "indented", "gzip", "under a key", "csv", "too long"])
def test_memory_does_not_grow_with_the_file(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"{n} " + "x" * 2000} for n in range(2500)]
    packed = {
        "lines": lambda: lines(rows),
        "gzip": lambda: lines(rows),
        "list": lambda: json.dumps(rows).encode(),
        "indented": lambda: json.dumps(rows, indent=1).encode(),
        "under a key": lambda: json.dumps({"version": 1, "data": rows}).encode(),
        "csv": lambda: b"prompt,n\n" + b"".join(b"%s,1\n" % row["prompt"].encode() for row in rows),
        "too long": lambda: lines([*rows[:1250], {"prompt": "y" * 2_500_000}, *rows[1250:]]),
    }[layout]()
    monkeypatch.setattr(json_text, "LONGEST", 400_000)
    path = write(tmp_path / "rows", gzip.compress(packed, 1) if layout == "gzip" else packed)
    assert len(packed) > 5_000_000
    list(RowSource(write(tmp_path / "first", b"{}")))  # what is imported once is not counted
    tracemalloc.start()
    try:
        assert sum(isinstance(row.value, dict) for row in RowSource(path)) == 2500
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3_500_000, f"{peak:,} bytes for a file of {len(packed):,}"
