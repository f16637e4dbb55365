"""Checks in a process of their own: what hangs is killed and reaped, and what each kind takes for right."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from bridle.core.errors import BridleError, DataError
from bridle.rewards.sandbox import checker as checking
from bridle.rewards.sandbox.checker import Checker
from bridle.rewards.sandbox.kinds import Sandbox
from bridle.rewards.verifiers import check_of
from tests.models.tiny import one_sentence

CATASTROPHE = "(a|a|aa)+b"
PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"$ref": "#/$defs/age"}}, "required": ["name"],
          "additionalProperties": False, "$defs": {"age": {"type": "integer", "minimum": 0}}}  # fmt: skip


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox(seconds=20.0)


@pytest.mark.parametrize(
    ("kind", "expected", "text", "right"),
    [
        ("pattern", r"\d{4}-\d\d", "2026-11", True),
        ("pattern", r"\d{4}-\d\d", " 2026-11\n", True),
        ("pattern", r"\d{4}-\d\d", "It is 2026-11.", False),  # all of it, not somewhere in it
        ("schema", PERSON, '{"name": "Ann", "age": 3}', True),
        ("schema", PERSON, '```json\n{"name": "Ann"}\n```', True),
        ("schema", PERSON, '{"name": "Ann", "age": -3}', False),
        ("schema", PERSON, '{"age": 3}', False),
        ("schema", PERSON, '{"name": "Ann", "name": 3}', False),
        ("schema", PERSON, 'Here you are: {"name": "Ann"}', False),
        ("schema", PERSON, '{"name": "Ann"} {"name": "Bob"}', False),
        ("schema", PERSON, '{"name": "Ann", "age": NaN}', False),
        ("schema", '{"type": "array", "minItems": 1}', "[1]", True),
        ("schema", {"type": "number"}, "9" * 401, False),
        ("schema", {"type": "array"}, "[" * 50_000, False),
        ("symbolic", "x^2+2x+1", "\\boxed{(x+1)^2}", True),
        ("symbolic", "\\frac{x}{2}", "The answer is $0.5x$.", True),
        ("symbolic", "x^2+2x+1", "\\boxed{x^2+2x}", False),
        ("symbolic", "x^2+2x+1", "x^2+2x+1", False),  # nothing is stated
        ("symbolic", "x+1", "\\boxed{x+1} \\boxed{x+2}", False),
        ("symbolic", "x", "\\boxed{\\int_0^x 1 dt}", False),  # the question, handed back
        ("symbolic", "x", "\\boxed{x \\text{ or } y}", False),
        ("symbolic", "3", "\\boxed{3.0}", True),
        ("symbolic", "3", "\\boxed{2+1}", False),
        ("symbolic", "72", "It is 71 or 72.", False),
        ("symbolic", "72", "\\boxed{71 \\text{ or } 72}", False),
        ("symbolic", "x+1", f"\\boxed{{x+{'9' * 401}}}", False),
        ("symbolic", "x+1", "\\boxed{x^{401}}", False),
    ],
)
def test_what_is_right(sandbox: Sandbox, kind: str, expected: Any, text: str, right: bool) -> None:
    assert bool(check_of(kind, expected, sandbox)(text)) is right


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("pattern", "("), ("pattern", None), ("pattern", 3),
        ("schema", {}), ("schema", []), ("schema", "{"), ("schema", None), ("schema", {"type": "thing"}),
        ("schema", {"$ref": "https://example.org/a.json"}), ("schema", {"properties": {"a": {"$ref": "file:///etc/passwd"}}}),
        ("symbolic", ""), ("symbolic", None), ("symbolic", True), ("symbolic", "so it is, and that is that"),
    ],
)  # fmt: skip
def test_what_no_answer_could_meet_is_refused(sandbox: Sandbox, kind: str, expected: Any) -> None:
    with pytest.raises(DataError) as caught:
        check_of(kind, expected, sandbox)
    assert one_sentence(str(caught.value))


def test_what_hangs_is_killed_and_reaped_and_the_next_check_is_made() -> None:
    sandbox = Sandbox(seconds=0.3)
    check = check_of("pattern", CATASTROPHE, sandbox)
    assert check("aab")
    first = sandbox.checker.process
    assert first is not None and not check("a" * 60 + "c")
    assert sandbox.checker.killed == 1 and first.returncode == -9, "killed, and its status was fetched"
    assert not Path(f"/proc/{first.pid}").exists()
    sandbox.checker.seconds = 20.0
    assert check("aab") and sandbox.checker.process is not first


def test_it_works_outside_the_main_thread() -> None:
    """Where an alarm does not."""
    found: list[float] = []
    check = check_of("pattern", CATASTROPHE, Sandbox(seconds=0.3))
    thread = threading.Thread(target=lambda: found.append(check("a" * 60 + "c")))
    thread.start()
    thread.join()
    assert found == [False]


def test_the_limit_starts_when_the_check_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child needs longer to start than a check may take."""
    slow = [
        sys.executable,
        "-c",
        "import time; time.sleep(0.5); from bridle.rewards.sandbox.child import serve_checks; serve_checks()",
    ]
    monkeypatch.setattr(checking, "python_module", lambda name: slow)
    checker = Checker(seconds=0.4)
    assert checker.met("pattern", "a", "a") and checker.killed == 0


def test_a_child_that_was_ended_is_started_again(sandbox: Sandbox) -> None:
    check = check_of("pattern", "a", sandbox)
    assert check("a") and sandbox.checker.process is not None
    os.kill(sandbox.checker.process.pid, 9)
    sandbox.checker.process.wait()
    assert check("a") and not check("b")


def test_no_child_is_left_behind() -> None:
    checker = Checker()
    assert checker.met("pattern", "a", "a") and checker.process is not None
    process: subprocess.Popen[bytes] = checker.process
    del checker
    assert process.returncode is not None


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for kind, expected in (("schema", {"type": "object"}), ("symbolic", "x")):
        with pytest.raises(BridleError, match=r"pip install 'bridle\[verify\]'") as caught:
            check_of(kind, expected, Sandbox())
        assert one_sentence(str(caught.value))
