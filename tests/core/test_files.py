"""Files and folders are whole or absent, whatever happens while they are written."""

import errno
import json
import math
import os
from pathlib import Path

import pytest

from bridle.core import files
from bridle.core.errors import BridleError, DataError
from bridle.core.files import file_hash, read_json, saving, whole_folder, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def disk_that_fails(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", fail)


def test_text_is_written_with_its_folders(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "file.txt", "你好\n")
    assert (tmp_path / "a" / "b" / "file.txt").read_text("utf-8") == "你好\n"
    assert names(tmp_path / "a" / "b") == ["file.txt"]


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": "é"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert "é" in (tmp_path / "x.json").read_text("utf-8")


def test_what_is_no_finite_number_is_null(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"kl_se": math.nan, "points": [{"low": -math.inf, "n": 2}, (1.5, math.inf)]})
    found = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert found == {"kl_se": None, "points": [{"low": None, "n": 2}, [1.5, None]]}


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "no space left while saving .*x.txt; free some and run the same command again"),
        (errno.EDQUOT, "no space left while saving"),
        (errno.EIO, "could not save .*x.txt: "),
        (errno.EACCES, "could not save .*: Permission denied"),
    ],
)
def test_a_failure_leaves_the_old_file_and_says_so(
    number: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "x.txt", "old")
    disk_that_fails(monkeypatch, number)
    with pytest.raises(BridleError, match=sentence) as caught:
        write_text(tmp_path / "x.txt", "new")
    assert caught.value.exit_status == 1 and "\n" not in str(caught.value)
    assert (tmp_path / "x.txt").read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "x.txt", "old")

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "x.txt", "new")
    assert (tmp_path / "x.txt").read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


def test_a_folder_is_filled_and_takes_its_place(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "models" / "base") as new:
        assert not (tmp_path / "models" / "base").exists()
        (new / "inner").mkdir()
        (new / "inner" / "a.txt").write_text("1")
    assert (tmp_path / "models" / "base" / "inner" / "a.txt").read_text() == "1"
    assert names(tmp_path / "models") == ["base"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with whole_folder(tmp_path / "base") as new:
            (new / f"{content}.txt").write_text(content)
    assert names(tmp_path / "base") == ["two.txt"]
    assert names(tmp_path) == ["base"]


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("error", [ValueError("inside"), KeyboardInterrupt()])
def test_an_exception_inside_leaves_what_was_there(older: bool, error: BaseException, tmp_path: Path) -> None:
    if older:
        (tmp_path / "base").mkdir()
        (tmp_path / "base" / "old.txt").write_text("old")
    with pytest.raises(type(error)), whole_folder(tmp_path / "base") as new:
        (new / "half.txt").write_text("half")
        raise error
    assert names(tmp_path) == (["base"] if older else [])
    assert not older or names(tmp_path / "base") == ["old.txt"]


@pytest.mark.parametrize("older", [False, True])
def test_a_full_disk_leaves_the_old_folder(older: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if older:
        (tmp_path / "base").mkdir()
        (tmp_path / "base" / "old.txt").write_text("old")
    disk_that_fails(monkeypatch, errno.ENOSPC)
    with pytest.raises(BridleError, match="no space left while saving .*base"), whole_folder(tmp_path / "base") as new:
        (new / "half.txt").write_text("half")
    assert names(tmp_path) == (["base"] if older else [])
    assert not older or names(tmp_path / "base") == ["old.txt"]


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "old.txt").write_text("old")
    rename, calls = os.replace, list[int]()

    def second_fails(source: Path, target: Path) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(files.os, "replace", second_fails)
    with pytest.raises(BridleError, match="could not save"), whole_folder(tmp_path / "base") as new:
        (new / "new.txt").write_text("new")
    assert names(tmp_path) == ["base"]
    assert names(tmp_path / "base") == ["old.txt"]


def test_every_file_is_flushed_before_the_folder_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[str, bool]] = []
    monkeypatch.setattr(files, "flush", lambda path: flushed.append((path.name, (tmp_path / "base").exists())))
    with whole_folder(tmp_path / "base") as new:
        (new / "a.txt").write_text("1")
        (new / "inner").mkdir()
        (new / "inner" / "b.txt").write_text("2")
    before = {name for name, placed in flushed if not placed}
    assert {"a.txt", "inner", "b.txt"} < before and len(before) == 4  # and the new folder itself
    assert [name for name, placed in flushed if placed] == [tmp_path.name]


def test_errors_of_ours_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mine"), saving(tmp_path):
        raise DataError("mine")


@pytest.mark.parametrize("text", ["{", "", "\x00\x00", "nope"])
def test_json_that_is_none_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match="x.json is not valid JSON") as caught:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(caught.value)


def test_json_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="x.json does not exist"):
        read_json(tmp_path / "x.json")


def test_the_hash_is_sha256_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_hash(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
