"""The table of faults is true of the code as it stands: each has its one place, and tests that exist."""

import ast
from collections import Counter

import pytest

from tests.house.source import ROOT, listed
from tests.mutants.run import Mutant, judged, read_table


def test_every_fault_has_its_one_place() -> None:
    faults = []
    for mutant in read_table():
        text = (ROOT / mutant.path).read_text("utf-8")
        try:
            planted = mutant.planted(text)
            ast.parse(planted)
            assert planted != text and "\n" not in mutant.was + mutant.now and mutant.breaks
        except (AssertionError, SyntaxError, ValueError) as error:
            faults.append(f"{error or 'a fault is one line, changes it, and says what it breaks'}: {mutant.name}")
    assert not faults, listed(faults)


def test_there_are_enough_of_them_and_none_twice() -> None:
    table = read_table()
    assert len(table) >= 60
    assert not [place for place, count in Counter((m.path, m.was, m.now) for m in table).items() if count > 1]


def test_their_tests_exist() -> None:
    named = {word for mutant in read_table() for word in mutant.tests if word.startswith("tests/")}
    assert named and not [word for word in named if not (ROOT / word.partition("::")[0]).exists()]


def test_a_fragment_that_is_gone_or_stands_twice_is_told() -> None:
    mutant = Mutant("bridle/a.py", ("tests/a.py",), "+ 1", "- 1", "a sign")
    assert mutant.planted("x + 1") == "x - 1"
    for text, count in (("x", 0), ("x + 1 + 1", 2)):
        with pytest.raises(ValueError, match=f"{count} times"):
            mutant.planted(text)


def test_what_survives_is_told_and_what_is_explained_must_survive() -> None:
    plain = Mutant("bridle/a.py", ("tests/a.py",), "+ 1", "- 1", "a sign")
    explained = Mutant("bridle/a.py", ("tests/a.py",), "+ 1", "- 1", "a sign", "nobody reads it")
    assert [judged(plain, status).partition(":")[0] for status in (0, 1, 2, 5)] == [
        "survived", "", "", "pytest ended with status 5"
    ]  # fmt: skip
    assert judged(explained, 0) == "" and judged(explained, 1).startswith("noticed, though")
