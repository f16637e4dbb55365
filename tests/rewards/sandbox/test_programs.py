"""Programs of answers: what they are tested by, and what they cannot reach. Run as root and not, for limits do not bind root."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridle.core.errors import DataError, RecipeError
from bridle.rewards.sandbox import kinds
from bridle.rewards.sandbox.kinds import Sandbox, plain_output
from bridle.rewards.sandbox.namespace import USERS_FROM
from bridle.rewards.sandbox.programs import OUTPUT, ProgramLimits, Ran, namespaces_fault, program_in, run_program
from bridle.rewards.verifiers import check_of
from tests.models.tiny import one_sentence

BRIEF = ProgramLimits(seconds=20.0)
ADD = [{"call": "add", "arguments": [1, 2], "result": 3}, {"call": "add", "arguments": [-1, 1], "result": 0}]
DOUBLE = [{"input": "2\n", "output": "4\n"}, {"input": "5\n", "output": "10"}]


@pytest.fixture(autouse=True)
def namespaces(request: pytest.FixtureRequest) -> None:
    if "anywhere" not in request.keywords and (fault := namespaces_fault()):
        if os.environ.get("CI") == "true":
            pytest.fail(fault)
        pytest.skip(fault)


def printed(program: str, limits: ProgramLimits = BRIEF) -> str:
    """What a program prints: a letter where it got what it was after, and the name of its error where it did not."""
    whole = f"try:\n    {program}\n    print('yes')\nexcept BaseException as error:\n    print(type(error).__name__)"
    return run_program(whole, "", limits).output.decode().strip()


def users_left() -> list[int]:
    """Processes of users that programs were given."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if path.stat().st_uid >= USERS_FROM:
                found.append(int(path.name))
        except FileNotFoundError:
            pass
    return found


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_program_runs() -> None:
    assert run_program("print(int(input()) * 2)", "21\n", BRIEF) == Ran("done", b"42\n")
    assert run_program("import json, math, random; print('ok')", "", BRIEF) == Ran("done", b"ok\n")
    assert run_program("open('a', 'w').write('b'); print(open('a').read())", "", BRIEF) == Ran("done", b"b\n")
    assert run_program("import sys; print('x'); sys.exit(3)", "", BRIEF).ended == "failed"


def test_no_socket_leads_out(port: int) -> None:
    assert printed(f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)") == "OSError"
    assert printed("import socket; socket.create_connection(('1.1.1.1', 53), 1)") == "OSError"


def test_the_store_and_the_parents_environment_are_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    store = tmp_path / "store.sqlite"
    store.write_text("what people said")
    store.chmod(0o666)
    tmp_path.chmod(0o777)
    for path in (
        store,
        Path("/etc/passwd"),
        Path(__file__),
        Path("/proc/1/environ"),
        Path(f"/proc/{os.getpid()}/environ"),
    ):
        assert printed(f"print(open({str(path)!r}).read())") == "FileNotFoundError", path
    assert (
        run_program(
            "import os; print('JUDGE_KEY' in os.environ, sorted(set(os.environ) - {'LC_CTYPE'}))", "", BRIEF
        ).output
        == b"False []\n"
    )


def test_a_link_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a")
    assert printed(f"import os; os.symlink({str(tmp_path / 'secret')!r}, 'a'); open('a').read()") == "FileNotFoundError"
    assert printed("import os; os.symlink('../../../../etc/passwd', 'a'); open('a').read()") == "FileNotFoundError"
    assert printed("import os; os.link('/usr/bin/env', 'a')") in ("OSError", "PermissionError")


def test_nothing_but_its_folder_is_written() -> None:
    for path in ("/a", "/usr/a", "/usr/bin/python3", "/dev/a", "/var/a"):
        assert printed(f"open({path!r}, 'w')") in ("OSError", "PermissionError", "FileNotFoundError"), path
    assert printed("import os; os.mknod('a', 0o60666, os.makedev(8, 0)); open('a')") == "PermissionError"
    assert (
        printed("import ctypes; assert ctypes.CDLL(None).mount(b'none', b'/box', b'tmpfs', 0, None) == 0")
        == "AssertionError"
    )


def test_a_fork_bomb_is_held_and_ended() -> None:
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    assert run_program(bomb, "", ProgramLimits(seconds=0.5, processes=8)) == Ran("time")
    assert users_left() == []
    forks = "    while held < 50:\n        if os.fork() == 0:\n            time.sleep(60)\n        held += 1\n"
    counted = f"import os, time\nheld = 0\ntry:\n{forks}except OSError:\n    pass\nprint(held)"
    assert int(run_program(counted, "", ProgramLimits(seconds=20.0, processes=8)).output) < 8, (
        "the limit binds, though we may be root"
    )
    assert users_left() == []


def test_a_double_fork_does_not_outlive_its_program() -> None:
    inner = "    os.setsid()\n    if os.fork() == 0:\n        time.sleep(60)\n    os._exit(0)\n"
    program = f"import os, time\nif os.fork() == 0:\n{inner}os.wait()\nprint('a')"
    assert run_program(program, "", BRIEF) == Ran("done", b"a\n"), "nor does whoever holds its output keep us waiting"
    assert users_left() == []


def test_endless_output_time_memory_and_files_are_limited() -> None:
    assert run_program("while True:\n    print('a' * 10_000)", "", BRIEF) == Ran("output")
    assert run_program(f"print('a' * {OUTPUT - 1})", "", BRIEF).ended == "done"
    assert run_program("while True:\n    pass", "", ProgramLimits(seconds=0.3)) == Ran("time")
    assert run_program("import time; time.sleep(60)", "", ProgramLimits(seconds=0.3)) == Ran("time")
    assert printed("a = bytearray(2 ** 30)") == "MemoryError"
    assert printed("[open(str(i), 'wb').write(b'a' * 2 ** 20) for i in range(40)]") == "OSError"


def test_programs_are_tested() -> None:
    sandbox = Sandbox(allow_execution=True, seconds=20.0)
    add, double = check_of("tests", ADD, sandbox), check_of("tests", DOUBLE, sandbox)
    assert add("So:\n```python\ndef add(a, b):\n    return a + b\n```\nThat is it.")
    assert double("print(int(input()) * 2)")
    assert not add("def add(a, b):\n    return a + b + (a < 0)"), "one test missed is all missed"
    assert not double("print(4)")


@pytest.mark.parametrize(
    "program",
    [
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "class Any:\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return Any()",
        "class Any(int):\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return Any(7)",
        "def add(a, b):\n    print(3)\n    import os\n    os._exit(1)",
        "import json\njson.dumps = lambda value: 'true'\ndef add(a, b):\n    return 1",
        "def add(a, b):\n    return float(a + b)",
        "def add(a, b):\n    return float('nan')",
        "def add(a, b):\n    return a + b\n```\n```python\ndef add(a, b):\n    return a - b",
        "def add(a, b):",
        "",
    ],
)
def test_how_a_policy_would_cheat(program: str) -> None:
    check = check_of("tests", ADD[:1], Sandbox(allow_execution=True, seconds=20.0))
    assert not check(f"```python\n{program}\n```")


@pytest.mark.anywhere
def test_running_programs_is_off_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="allow_execution = true") as caught:
        check_of("tests", ADD)
    assert one_sentence(str(caught.value))
    monkeypatch.setattr(
        kinds, "namespaces_fault", lambda: "a program could not be run apart; `unsafe_execution = true` runs it without"
    )
    with pytest.raises(RecipeError, match="unsafe_execution"):
        check_of("tests", ADD, Sandbox(allow_execution=True))
    assert check_of("tests", ADD[:1], Sandbox(allow_execution=True, unsafe_execution=True, seconds=20.0))(
        "add = int.__add__"
    )


@pytest.mark.anywhere
@pytest.mark.parametrize(
    "given",
    [
        [], None, {}, "print", [1], [{}], [{"input": "a"}], [{"input": "a", "output": " "}], [{"input": 1, "output": "a"}],
        [{"call": "a b", "arguments": [], "result": 1}], [{"call": "f", "arguments": {}, "result": 1}],
        [{"call": "f", "arguments": [], "result": None}], [{"call": "f; import os", "arguments": [], "result": 1}],
    ],
)  # fmt: skip
def test_tests_that_test_nothing_are_refused(given: Any) -> None:
    """What is printed by a program that does nothing is no output to expect."""
    with pytest.raises(DataError) as caught:
        check_of("tests", given, Sandbox(allow_execution=True, unsafe_execution=True))
    assert one_sentence(str(caught.value))


@pytest.mark.anywhere
def test_the_program_of_an_answer() -> None:
    assert program_in("print(1)") == "print(1)"
    assert program_in("So:\n```python\nprint(1)\n```\nDone.") == "print(1)\n"
    assert program_in("```\na\n```\n```\nb\n```") is None and program_in("```python\nprint(1)") is None
    assert plain_output(" 1 \n2\t\n\n") == "1\n2"
