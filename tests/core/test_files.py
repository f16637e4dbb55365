"""Files and folders are whole or absent, whatever happens while they are written."""

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bridle.core import files
from bridle.core.errors import BridleError, DataError, brief_repr
from bridle.core.files import (
    file_hash,
    read_json,
    read_record,
    read_toml,
    read_whole,
    remove_folder,
    saving,
    standing,
    tidy,
    whole_folder,
    write_json,
    write_text,
)


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

    monkeypatch.setattr(files, "swap", lambda new, path: False)
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


# ------------------------------------------------------------------------------------------------- killed at any line

# Each attempt is a process of its own, killed when it comes to the n-th line of core/files.py or call in shutil; then what a reader
# finds, before and after what was left is put right.
KILLED_AT_EVERY_LINE = """
import json, os, shutil, signal, sys
from pathlib import Path
from bridle.core import files

def fill(folder, content):
    (folder / "inner").mkdir()
    for name in ("a.txt", "inner/b.txt"):
        (folder / name).write_text(content)

def content(folder):
    return sorted(f"{f.relative_to(folder)} {f.read_text()}" for f in folder.rglob("*") if f.is_file()) if folder.is_dir() else None

def work(place):
    with files.whole_folder(place) as new:
        fill(new, "new")

def killed_at(line, place):
    child = os.fork()
    if child == 0:
        left = line
        def count(frame, event, argument):
            nonlocal left
            ours = frame.f_code.co_filename == files.__file__
            left -= event == "line" if ours else frame.f_code.co_filename == shutil.__file__
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return count if ours else None
        sys.settrace(count)
        work(place)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0

os.fsync = lambda descriptor: None  # which a kill needs not, and which takes its time
swaps, older, root = sys.argv[1] == "swap", sys.argv[2] == "older", Path(sys.argv[3])
if not swaps:
    files.swap = lambda new, path: False
found, line, killed = [], 0, True
while killed:
    line += 1
    place = root / str(line) / "base"
    place.parent.mkdir()
    if older:
        place.mkdir()
        fill(place, "old")
    killed = killed_at(line, place)
    at_once = content(place)
    os.chmod(place.parent, 0o555)
    read = content(files.standing(place))
    os.chmod(place.parent, 0o755)
    files.tidy(place.parent)
    found.append((at_once, read, content(place), sorted(os.listdir(place.parent))))
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    ("way", "older"),
    [("swap", "older"), ("renames", "older"), pytest.param("swap", "none", marks=pytest.mark.slow)],  # a part of both
)
def test_a_kill_at_any_line_leaves_the_old_or_the_new_folder(way: str, older: str, tmp_path: Path) -> None:
    line = [sys.executable, "-c", KILLED_AT_EVERY_LINE, way, older, str(tmp_path)]
    found = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    whole = {text: [f"a.txt {text}", f"inner/b.txt {text}"] for text in ("old", "new")}
    before = whole["old"] if older == "older" else None
    assert len(found) > 50 and found[0][2] == before and found[-1][2] == whole["new"]
    for at_once, read, afterwards, names_there in found:
        assert read in (before, whole["new"]) and afterwards in (read, whole["new"])
        assert names_there == (["base"] if afterwards else [])
        if way == "swap" or older == "none":
            assert at_once == read, "even who knows nothing of temporary names finds one of the two"


def test_an_old_folder_whose_process_was_killed_between_two_renames_is_read_and_put_back(tmp_path: Path) -> None:
    left = tmp_path / ".base.4711.old"  # as earlier versions named it
    left.mkdir()
    (left / "a.txt").write_text("old")
    read = read_whole(lambda folder: (folder / "a.txt").read_text())
    assert read(tmp_path / "base") == "old" and names(tmp_path) == ["base"]
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "other")


def test_where_nothing_may_be_written_an_old_folder_is_read_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / ".base.0123abcd.old"
    left.mkdir()

    def read_only(source: Path, target: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files.os, "replace", read_only)
    assert standing(tmp_path / "base") == left and standing(tmp_path / "none") == tmp_path / "none"
    tidy(tmp_path)
    assert names(tmp_path) == [left.name]


def test_what_the_dead_left_goes_and_what_the_living_write_stays(tmp_path: Path) -> None:
    for name in (
        ".base.12.new",
        ".base.0123abcd.new",
        ".base.34.old",
        ".base.x.new",
        ".base.y.0123abcd.new",
        ".a.5.old",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("dead")
    (tmp_path / ".x.json.0123abcd.new").write_text("{")
    (tmp_path / ".env.1.old").write_text("the user's own")
    with whole_folder(tmp_path / "base") as living:
        (living / "a.txt").write_text("whole")
        # Of this name alone: what else lies in the folder may be another's.
        assert names(tmp_path) == sorted(
            [
                living.name,
                ".a.5.old",
                ".base.x.new",
                ".base.y.0123abcd.new",
                ".env.1.old",
                ".x.json.0123abcd.new",
                "base",
            ]
        )
        assert (tmp_path / "base/a.txt").read_text() == "dead", "the old one, which had lost its name"
        tidy(tmp_path)
        assert names(tmp_path) == sorted([living.name, ".base.x.new", ".env.1.old", "a", "base"])
        with whole_folder(tmp_path / "base") as second:
            (second / "a.txt").write_text("second")
        assert (tmp_path / "base/a.txt").read_text() == "second" and living.exists()
    assert (tmp_path / "base/a.txt").read_text() == "whole"
    assert names(tmp_path) == [".base.x.new", ".env.1.old", "a", "base"]


def test_a_text_that_a_kill_left_half_written_goes_with_the_next(tmp_path: Path) -> None:
    for name in (".x.json.7.new", ".x.json.0123abcd.new", ".y.json.7.new"):
        (tmp_path / name).write_text("{")
    write_json(tmp_path / "x.json", 1)
    assert names(tmp_path) == [".y.json.7.new", "x.json"]


def test_the_newest_of_two_old_folders_is_put_back(tmp_path: Path) -> None:
    for number, time in ((1, 200), (2, 300), (3, 100)):
        (tmp_path / f".base.{number}.old").mkdir()
        (tmp_path / f".base.{number}.old/a.txt").write_text(str(number))
        os.utime(tmp_path / f".base.{number}.old", (time, time))
    tidy(tmp_path)
    assert names(tmp_path) == ["base"] and (tmp_path / "base/a.txt").read_text() == "2"


def test_where_there_are_no_locks_nothing_is_tidied_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(descriptor: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", unknown)
    (tmp_path / ".base.12.new").mkdir()
    with whole_folder(tmp_path / "base") as new:
        (new / "a.txt").write_text("whole")
    write_text(tmp_path / "x.txt", "text")
    assert names(tmp_path) == [".base.12.new", "base", "x.txt"]


def test_a_new_one_that_was_tidied_away_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, calls = files.lock_temporary, list[int]()

    def too_late(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            [new] = tmp_path.glob(".base.*.new")
            new.rmdir()
        if len(calls) == 2:
            raise BlockingIOError  # by the other process, which is about to remove it
        lock(descriptor)

    monkeypatch.setattr(files, "lock_temporary", too_late)
    with whole_folder(tmp_path / "base") as new:
        (new / "a.txt").write_text("whole")
        assert len(calls) == 3
        for left in tmp_path.glob(".base.*.new"):
            assert left == new or not left.rmdir()  # what the other process would have removed
    assert names(tmp_path) == ["base"]


# Two processes write the same folder again and again, and one reads it.
AT_ONCE = """
import os, sys
from pathlib import Path
from bridle.core import files

who, swaps, place = sys.argv[1], sys.argv[2] == "swap", Path(sys.argv[3])
os.fsync = lambda descriptor: None
if not swaps:
    files.swap = lambda new, path: False

def read(folder):
    return [(folder / name).read_text() for name in "abc"]

print("ready", flush=True)
sys.stdin.readline()
for number in range(40):
    if who == "reader":
        a, b, c = files.read_whole(read)(place)
        assert a == b == c, (a, b, c)
    else:
        with files.whole_folder(place) as new:
            for name in "abc":
                (new / name).write_text(f"{who} {number}")
"""


@pytest.mark.parametrize("way", ["swap", "renames"])
def test_two_that_write_at_once_and_one_that_reads(way: str, tmp_path: Path) -> None:
    with whole_folder(tmp_path / "base") as new:
        for name in "abc":
            (new / name).write_text("first")
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(
            [sys.executable, "-c", AT_ONCE, who, way, tmp_path / "base"], stdin=pipe, stdout=pipe, text=True
        )
        for who in ("one", "two", "reader")
    ]
    for process in started:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in started:
        process.communicate("go\n")
    assert [process.returncode for process in started] == [0, 0, 0]
    assert names(tmp_path) == ["base"] and names(tmp_path / "base") == ["a", "b", "c"]


@pytest.mark.parametrize("way", ["swap", "renames"])
def test_what_is_no_folder_is_not_replaced(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "renames":
        monkeypatch.setattr(files, "swap", lambda new, path: False)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/mine.txt").write_text("mine")
    (tmp_path / "link").symlink_to("elsewhere")
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "file").write_text("mine")
    before = names(tmp_path)
    for name, what in (("link", "link"), ("nowhere", "link"), ("file", "file")):
        with pytest.raises(
            BridleError, match=f"could not save .*{name}: it is a {what}, which no folder replaces; move"
        ):
            with whole_folder(tmp_path / name):
                pytest.fail("the work is not begun")
    with (
        pytest.raises(BridleError, match="could not save .*file/base: .*file is a file where a folder is needed"),
        whole_folder(tmp_path / "file/base"),
    ):
        pytest.fail("the work is not begun")
    assert names(tmp_path) == before and (tmp_path / "elsewhere/mine.txt").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_goes_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "step-000002").mkdir()
    (tmp_path / "step-000002/state.json").write_text("{}")

    def killed(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_folder(tmp_path / "step-000002")
    (left,) = names(tmp_path)
    assert left.startswith(".step-000002.") and left.endswith(".new")
    tidy(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nest too deep; write them flatter"),
        ('{"a":' * 100_000, "nest too deep; write them flatter"),
        ('{"step": ' + "1" * 5000 + "}", "a number of too many digits"),
        (b"\xff", "is not valid JSON"),
        ("", "is not valid JSON"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(text: str | bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=words) as caught:
        read_json(tmp_path / "x.json")
    assert str(tmp_path / "x.json") in str(caught.value) and "sys." not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "it must hold a JSON object, got \\[\\]"),
        ("{}", "it needs key as str, got no key"),
        ('{"key": 3, "seconds": 1}', "it needs key as str, got key = 3"),
        ('{"key": "a", "seconds": true}', "it needs seconds as float, got seconds = True"),
        ('{"key": "a", "seconds": "1"}', "it needs seconds as float, got seconds = '1'"),
    ],
)
def test_a_damaged_record_names_what_it_needs(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=f"x.json is damaged: {words}$"):
        read_record(tmp_path / "x.json", key=str, seconds=float)
    (tmp_path / "x.json").write_text('{"key": "a", "seconds": 1, "more": []}')
    assert read_record(tmp_path / "x.json", key=str, seconds=float) == {"key": "a", "seconds": 1, "more": []}


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "1" * 5000, "a = ", "a = 1\na = 2", "\x00"])
def test_toml_that_cannot_be_read_is_a_value_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(ValueError) as caught:
        read_toml(tmp_path / "x.toml")
    assert "\n" not in str(caught.value) and "sys." not in str(caught.value)


def test_a_value_of_any_size_is_brief_in_a_message() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert brief_repr("a" * 10) == "'aaaaaaaaaa'"
    assert brief_repr("a" * 10**6) == "'" + "a" * 99 + "… (1,000,002 characters)"
    assert brief_repr(10**5000) == "a value of type int that is too large to be shown"
    assert brief_repr(deep) == "a value of type list that is too large to be shown"
