"""Which library is loaded: one that is whole, of this user, and writable by nobody else; and what becomes of compilers that do not work."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from bridle.kernels import kernels, library
from bridle.kernels.library import Code, CompilerFailed, Unavailable, library_of, load_library

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")

AT_ONCE = """
import sys
from pathlib import Path
from bridle.kernels.library import Code, library_of, load_library

code = Code("float32", [Path(sys.argv[1])], [], ["-O1", "-fPIC"], "", ["one"], [])
sys.stdin.readline()
print(load_library(library_of(code))["one"]())
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is about to be made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bridle"


@pytest.fixture
def code(tmp_path: Path) -> Code:
    (tmp_path / "one.c").write_text("int one(void) { return 1; }\n")
    return Code("float32", [tmp_path / "one.c"], [], ["-O0", "-fPIC"], "", ["one"], [])


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a script in the compiler's place, which notes its calls."""

    def replaced(script: str) -> None:
        (tmp_path / "bin").mkdir(exist_ok=True)
        path = tmp_path / "bin/cc"
        path.write_text(f"#!/bin/sh\necho called >> {tmp_path}/calls\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
        monkeypatch.delenv("CC", raising=False)

    return replaced


def calls(tmp_path: Path) -> int:
    return len((tmp_path / "calls").read_text().splitlines()) if (tmp_path / "calls").exists() else 0


def works(path: Path) -> bool:
    return bool(load_library(path)["one"]() == 1)


def only(cache: Path) -> Path:
    (path,) = cache.iterdir()
    return path


def test_it_is_kept_for_this_user_alone_and_found_again(
    tmp_path: Path, cache: Path, code: Code, compiler: Callable[[str], object]
) -> None:
    compiler(f'exec {COMPILER} "$@"')
    path = library_of(code)
    assert works(path) and only(cache) == path and calls(tmp_path) == 2
    assert cache.stat().st_mode & 0o777 == 0o700 and path.stat().st_mode & 0o777 == 0o600
    assert library_of(code) == path and calls(tmp_path) == 2


def put(path: Path, data: bytes) -> None:
    """Another file in its place: one that this process has loaded may not be changed where it is, it would end with SIGBUS."""
    path.unlink()
    path.write_bytes(data)
    path.chmod(0o600)


def cut_short(path: Path) -> None:
    put(path, path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    put(path, b"")


def one_byte_changed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    put(path, bytes(data))


def another_file(path: Path) -> None:
    put(path, b"not a library")


def written_by_others(path: Path) -> None:
    path.chmod(0o622)


def of_another_user(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(path, 4321, 4321)


def a_link(path: Path) -> None:
    path.rename(path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize(
    "change",
    [
        *(cut_short, one_byte_changed, written_by_others, of_another_user, a_link),
        *(
            pytest.param(change, marks=pytest.mark.slow) for change in (emptied, another_file, a_pipe)
        ),  # of the same kinds
    ],
)
def test_one_that_is_damaged_or_may_be_anothers_is_never_loaded_and_made_again(
    change: Callable[[Path], None], cache: Path, code: Code
) -> None:
    path = library_of(code)
    change(path)
    with pytest.raises(OSError):
        load_library(path)
    made = library_of(code)
    assert made == path and works(made) and only(cache) == made and not made.is_symlink()


def test_a_folder_in_its_place_is_told_of(cache: Path, code: Code) -> None:
    a_folder(library_of(code))
    with pytest.raises(Unavailable, match="no library can be made or kept in .*: Is a directory"):
        library_of(code)


def open_to_a_group(folder: Path) -> None:
    folder.chmod(0o770)


def open_to_all(folder: Path) -> None:
    folder.chmod(0o1777)


def given_away(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives folders away")
    os.chown(folder, 4321, 4321)


def linked(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))
    folder.symlink_to("moved")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (open_to_a_group, "can be written by others"),
        (open_to_all, "can be written by others"),
        (given_away, "belongs to another user"),
        (linked, "is a link"),
    ],
)
def test_a_cache_that_others_may_write_is_not_used(
    change: Callable[[Path], None],
    words: str,
    tmp_path: Path,
    cache: Path,
    code: Code,
    compiler: Callable[[str], object],
) -> None:
    library_of(code)
    change(cache)
    compiler(f'exec {COMPILER} "$@"')
    with pytest.raises(Unavailable, match=f"/cache/bridle {words}.*, and what lies there would be run; set XDG_CACHE_"):
        library_of(code)
    assert not calls(tmp_path)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for named in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", named)
        assert library.cache_folder() == tmp_path / "home/.cache/bridle"
    monkeypatch.setenv("HOME", "relative")
    with pytest.raises(Unavailable, match="relative/.cache/bridle is not an absolute path"):
        library.cache_folder()
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(Unavailable, match="file/bridle cannot be made: Not a directory; set XDG_CACHE_HOME to"):
        library.cache_folder()

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")  # as for a container's user without an entry

    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.delenv("XDG_CACHE_HOME")
    with pytest.raises(Unavailable, match="no home folder is known to keep them in; set XDG_CACHE_HOME to a folder"):
        library.cache_folder()


def test_a_cache_that_cannot_be_written_serves_what_it_has(
    cache: Path, code: Code, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = library_of(code)
    monkeypatch.setattr(library.os, "access", lambda place, mode: mode != os.W_OK)
    assert library_of(code) == path
    path.unlink()
    with pytest.raises(Unavailable, match="they are not yet in .*bridle, where nothing can be written"):
        library_of(code)


def test_a_full_disk_leaves_nothing_half_written(cache: Path, code: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(library.os, "fsync", full)
        with pytest.raises(
            Unavailable, match="no library can be made or kept in .*: No space left on device"
        ) as caught:
            library_of(code)
    assert not list(cache.iterdir()) and not isinstance(caught.value, CompilerFailed)
    assert works(library_of(code)), "and is not held against the compiler"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'cc1: no such instruction' >&2; echo more >&2; exit 1", "cc failed: cc1: no such instruction"),
        ("echo 'a.c: In function f:' >&2; echo 'a.c:3: error: no such type' >&2; exit 1", "cc failed: a.c:3: error: no such type"),
        ("exit 3", "cc failed: it ended with status 3"),
        ("kill -SEGV $$", "cc failed: it ended with status -11"),
        (r"printf '\377\376 broken \033[2J\n' >&2; exit 1", "cc failed: \ufffd\ufffd broken"),
        ("head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 1", f"cc failed: {'x' * 300}"),
        ("exit 0", "cc made no library"),
        (": > kernels.so", "what was compiled does not load: .*file too short"),
        ("echo garbage > kernels.so", "what was compiled does not load: "),
        (f'{COMPILER} "$@"; [ -f kernels.so ] && truncate -s 9000 kernels.so; exit 0', "what was compiled does not load: "),
        (f'echo "int two;" > two.c; {COMPILER} -shared two.c -o kernels.so', "what was compiled does not load: .*undefined symbol"),
    ],
)  # fmt: skip
def test_a_compiler_that_fails_is_told_of_and_not_asked_again(
    script: str, words: str, tmp_path: Path, cache: Path, code: Code, compiler: Callable[[str], object]
) -> None:
    compiler(script)
    with pytest.raises(CompilerFailed, match=words) as caught:
        library_of(code)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    asked = calls(tmp_path)
    with pytest.raises(Unavailable, match=f"{words}.*; it was not asked again within the hour, remove .*failed to ask"):
        library_of(code)
    assert calls(tmp_path) == asked and only(cache).name.endswith(".failed")


def test_the_compiler_is_what_cc_names(
    tmp_path: Path, cache: Path, code: Code, compiler: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler("exit 1")  # the first on the path, which is not asked
    monkeypatch.setenv("CC", f"{COMPILER} -O1")
    assert works(library_of(code)) and calls(tmp_path) == 0
    monkeypatch.setenv("CC", "/nonexistent")
    with pytest.raises(Unavailable, match="^CC names /nonexistent, which is not a program here$"):
        library_of(code)


def test_a_compiler_that_hangs_is_stopped_once_an_hour(
    tmp_path: Path, cache: Path, code: Code, compiler: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "PATIENCE", 0.2)
    compiler("sleep 1000 & sleep 1000")

    def asked() -> int:
        before = calls(tmp_path)
        with pytest.raises(Unavailable, match="cc failed: it was stopped after 0.2 seconds"):
            library_of(code)
        return calls(tmp_path) - before

    assert asked() == 1 and asked() == 0
    os.utime(only(cache), (0, 0))
    assert asked() == 1 and asked() == 0, "again when the hour is over"
    code.sources[0].write_text("int one(void) { return 1 ; }\n")
    assert asked() == 1 and asked() == 0, "again for other sources"
    compiler("sleep 1000; sleep 1")
    assert asked() == 1 and asked() == 0, "again of another compiler"
    compiler(f'exec {COMPILER} "$@"')
    monkeypatch.setattr(library, "PATIENCE", 30.0)
    assert works(library_of(code))


def test_what_a_kill_left_half_written_goes_after_an_hour(cache: Path, code: Code) -> None:
    library.cache_folder()
    for name, seconds in ((".kernels-0-float32-a.new", 0), (".kernels-0-float32-b.new", 2**40)):
        (cache / name).write_bytes(b"half")
        if not seconds:
            os.utime(cache / name, (0, 0))
    library_of(code)
    assert sorted(path.name for path in cache.glob(".*")) == [".kernels-0-float32-b.new"]


def test_two_that_compile_first_at_once_both_have_one(tmp_path: Path, cache: Path, code: Code) -> None:
    pipe = subprocess.PIPE
    line = [sys.executable, "-c", AT_ONCE, code.sources[0]]
    started = [subprocess.Popen(line, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    assert [process.communicate("go\n")[0] for process in started] == ["1\n", "1\n"]
    assert only(cache).suffix == ".so"


# --------------------------------------------------------------------------------------------------- what is said of it


@pytest.fixture
def quick(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The real kernels, made anew without much care for their speed."""
    monkeypatch.setattr(kernels, "FLAGS", ["-O0", "-fPIC"])
    monkeypatch.setattr(kernels, "wish", "auto")
    kernels.built.cache_clear()
    kernels.found.cache_clear()
    yield
    kernels.built.cache_clear()
    kernels.found.cache_clear()


@pytest.mark.usefixtures("quick")
def test_a_library_of_no_use_is_made_again(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.choose_kernels("auto") == "compiled kernels"
    path = only(cache)
    # Whole by its name, and yet without a function: of a compiler or a system that was another.
    data = path.read_bytes().replace(b"norm_forward", b"norm_backwrd")
    other = path.with_name(library.named_by_content(path.name.rsplit("-", 2)[0], data))
    other.write_bytes(data)
    other.chmod(0o600)
    cut_short(path)
    kernels.built.cache_clear()
    assert kernels.choose_kernels("compiled") == "compiled kernels" and only(cache) == path


@pytest.mark.parametrize(
    "error",
    [
        OSError("no"), RuntimeError("no"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), MemoryError("no"), ValueError("no"),
        Unavailable("no"), AttributeError("no"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("quick")
def test_whatever_goes_wrong_the_plain_ones_are_there(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(dtype: torch.dtype) -> Path:
        raise error

    monkeypatch.setattr(kernels, "build", fails)
    reason = kernels.choose_kernels("auto", torch.bfloat16)
    assert reason.startswith("plain kernels (") and "no" in reason and kernels.compiled(torch.float32) is None
    with pytest.raises(Unavailable, match="no"):
        kernels.choose_kernels("compiled")


@pytest.mark.usefixtures("quick")
def test_of_two_types_both_are_compiled_or_none(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    build = kernels.build

    def of_one_type(dtype: torch.dtype) -> Path:
        if dtype == torch.bfloat16:
            raise Unavailable("the compiler knows no bfloat16")
        return build(dtype)

    monkeypatch.setattr(kernels, "build", of_one_type)
    assert kernels.choose_kernels("auto") == "compiled kernels" and kernels.compiled(torch.float32) is not None
    assert kernels.choose_kernels("auto", torch.bfloat16) == "plain kernels (the compiler knows no bfloat16)"
    assert kernels.compiled(torch.float32) is None, "what is said is done"
    with pytest.raises(Unavailable):
        kernels.choose_kernels("compiled", torch.bfloat16)


@pytest.mark.usefixtures("quick")
def test_what_pytorch_compiles_is_kept_where_nobody_else_can_write(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own choice is a name in /tmp that anyone may have taken before, and it runs what it finds there."""
    monkeypatch.setattr(kernels.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(kernels.os, "environ", {"XDG_CACHE_HOME": str(tmp_path / "cache")})
    kernels.choose_kernels("torch")
    own = cache.with_name("bridle-torch")
    assert kernels.os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(own) and own.stat().st_mode & 0o777 == 0o700
    kernels.os.environ["TORCHINDUCTOR_CACHE_DIR"] = "/of/the/user"
    kernels.choose_kernels("torch")
    assert kernels.os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/of/the/user"
    del kernels.os.environ["TORCHINDUCTOR_CACHE_DIR"]
    own.chmod(0o777)
    with pytest.raises(Unavailable, match="bridle-torch can be written by others"):
        kernels.choose_kernels("torch")
