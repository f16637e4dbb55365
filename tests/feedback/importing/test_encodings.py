"""Encodings told by a rule, said, and overridden by name."""

import json
from pathlib import Path

import pytest

from bridle.core.errors import DataError
from bridle.feedback.importing.files.source import RowSource
from bridle.feedback.importing.reasons import Reason

TEXTS = {
    "Chinese": "写一首关于月亮的诗。明月几时有，把酒问青天。",
    "Taiwanese": "請寫一首關於月亮的詩。中國的首都是北京。",
    "Japanese": "月についての詩を書いてください。はい、わかりました。",
    "Korean": "달에 대한 시를 써 주세요. 네, 그것은 좋은 생각입니다.",
    "French": "Où est le café ? L’été, à côté de l'hôtel, déjà.",
    "German": "Die Größe des Müßiggangs.",
    "Polish": "Gdzie jest książka? Leży na półce, źródło żółć.",
    "Turkish": "Şehir nerede? Dağın yanında, ışık.",
    "Russian": "Где кот? Дома.",
}
TOLD = {
    ("Chinese", "gbk"): "GB18030", ("Chinese", "gb18030"): "GB18030", ("Taiwanese", "gbk"): "GB18030", ("French", "cp1252"): "CP1252",
    ("German", "latin-1"): "CP1252", **{("Chinese", name): name.upper() for name in ("utf-16", "utf-32")},
    **{("Japanese", f"utf-{bits}-{end}"): f"UTF-{bits}-{end.upper()}" for bits in (16, 32) for end in ("le", "be")},
}  # fmt: skip
NOT_TOLD = [
    ("Japanese", "shift_jis"), ("Japanese", "euc_jp"), ("Korean", "euc_kr"), ("Taiwanese", "big5"), ("Polish", "iso8859-2"),
    ("Polish", "cp1250"), ("Turkish", "iso8859-9"), ("Russian", "cp1251"), ("Russian", "koi8-r"),
]  # fmt: skip


def written(folder: Path, language: str, encoding: str) -> Path:
    rows = [{"prompt": TEXTS[language]}, {"prompt": "plain"}, {"prompt": TEXTS[language]}]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "rows.jsonl").write_bytes(text.encode(encoding))
    return folder / "rows.jsonl"


@pytest.mark.parametrize(("language", "encoding"), TOLD)
def test_an_encoding_that_can_be_told_is_said(language: str, encoding: str, tmp_path: Path) -> None:
    source = RowSource(written(tmp_path, language, encoding))
    assert [row.value for row in source][0] == {"prompt": TEXTS[language]}
    (note,) = source.done
    assert note.startswith(f"read as {TOLD[language, encoding]} (") and note.endswith(
        "--encoding NAME reads it otherwise"
    )


@pytest.mark.parametrize(("language", "encoding"), NOT_TOLD)
def test_an_encoding_that_cannot_be_told_is_never_guessed(language: str, encoding: str, tmp_path: Path) -> None:
    source = RowSource(written(tmp_path, language, encoding))
    assert [row.value for row in source] == [Reason.NOT_UTF8, {"prompt": "plain"}, Reason.NOT_UTF8]
    assert source.done == [
        "2 lines are not UTF-8, and their encoding cannot be told; name it: --encoding shift_jis, big5, cp1251 …"
    ]
    named = RowSource(written(tmp_path, language, encoding), encoding)
    assert [row.value for row in named][0] == {"prompt": TEXTS[language]}
    assert named.done[0].startswith(f"read as {named.done[0].split()[2]} (as --encoding says)")


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf8_is_utf8(language: str, encoding: str, tmp_path: Path) -> None:
    source = RowSource(written(tmp_path, language, encoding))
    assert [row.value for row in source][0] == {"prompt": TEXTS[language]} and source.done == []


def test_a_few_bad_lines_are_bad_lines(tmp_path: Path) -> None:
    good = json.dumps({"a": TEXTS["Chinese"]}, ensure_ascii=False).encode()
    path = tmp_path / "rows"
    path.write_bytes(b"\n".join([good, b'{"a": "caf\xe9"}', good, good]))
    source = RowSource(path)
    assert [row.value is Reason.NOT_UTF8 for row in source] == [False, True, False, False] and source.done == []
    path.write_bytes(b"[" + b",\n".join([good, b'{"a": "caf\xe9"}', good]) + b"]")
    assert [row.value is Reason.NOT_UTF8 for row in RowSource(path)] == [False, True, False]
    assert [row.value for row in RowSource(path, "ascii")] == [Reason.UNDECODABLE] * 3


@pytest.mark.parametrize("name", ["nonsense", "base64", "rot13", "\0"])
def test_an_encoding_that_there_is_none_of_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is none that Python knows; name one such as utf-8"):
        list(RowSource(written(tmp_path, "French", "utf-8"), name))


def test_a_table_of_excel_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(("prompt;chosen\r\n" + TEXTS["Chinese"] + ";好的\r\n").encode("gbk"))
    assert [row.value for row in RowSource(tmp_path / "rows.csv")] == [{"prompt": TEXTS["Chinese"], "chosen": "好的"}]
    (tmp_path / "rows.csv").write_bytes("prompt\tchosen\r\nWhy?\tSo.\r\n".encode("utf-16"))
    assert [row.value for row in RowSource(tmp_path / "rows.csv")] == [{"prompt": "Why?", "chosen": "So."}]
