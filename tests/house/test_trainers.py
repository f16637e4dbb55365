"""A trainer's file shows its algorithm, `train` first, and what it shares with another stands on a lower floor.

So whoever reads two of them reads two algorithms, and never the same plumbing twice. In the whole package, too, runs of equal
lines are few.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

import pytest

from tests.house.repeats import Line, compared_lines, repeated_runs
from tests.house.source import Source, calls, dotted, listed, package, written_by_us

TRAINERS = "bridle/training/"
SHARE = 0.3  # of a trainer's lines that may stand in another trainer too, and
SHORT = 25  # characters: shorter lines are `step += 1` everywhere, and are no sign of copying
TRAINER_RUN = 8  # lines
PACKAGE_RUN, PACKAGE_RUNS = 6, 10


def train_not_first(source: Source) -> list[str]:
    """Classes and functions in the order of the file; constants and imports may stand before them."""
    names = [node.name for node in source.tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    if names[:1] == ["train"]:
        return []
    return [source.fault(1, f"{' '.join(names[:1]) or 'nothing'} stands first, where `train` ought to")]


def asks_for_the_algorithm(source: Source) -> list[str]:
    """`isinstance(config, GRPOSection)`: two algorithms in one loop."""
    return [
        source.fault(call, f"{ast.unparse(call)}: two algorithms are two files")
        for call in calls(source)
        if dotted(call.func) == "isinstance" and call.args and dotted(call.args[0]).split(".")[-1] == "config"
    ]


def long_lines(source: Source) -> list[str]:
    return [line.text for line in compared_lines(source, signatures=False) if len(line.text) >= SHORT]


def shares_too_much(trainers: Sequence[Source]) -> list[str]:
    faults = []
    for one in trainers:
        mine = long_lines(one)
        for other in trainers:
            theirs = set(long_lines(other))
            shared = sum(line in theirs for line in mine)
            if other != one and shared > SHARE * len(mine):
                faults.append(f"{one.path}: {shared} of {len(mine)} lines stand in {other.path} too")
    return faults


def runs_in_two_trainers(trainers: Sequence[Source]) -> list[str]:
    files = [(source, compared_lines(source, signatures=False)) for source in trainers]
    return [str(run) for run in repeated_runs(files, TRAINER_RUN) if run.first != run.second]


def runs_in_the_package(sources: Sequence[Source]) -> list[str]:
    return [str(run) for run in repeated_runs(((s, compared_lines(s)) for s in sources), PACKAGE_RUN)]


def trainers() -> list[Source]:
    return [source for source in package() if source.path.startswith(TRAINERS) and "__init__" not in source.path]


def trainer(text: str, name: str = "a") -> Source:
    return Source(f"{TRAINERS}{name}.py", text)


def numbered(count: int, word: str = "value") -> Iterator[str]:
    return (f"a_rather_long_{word}_of_some_name = {n}" for n in range(count))


def test_another_thing_that_stands_first_is_found() -> None:
    assert not train_not_first(trainer("import torch\nPAIR = 2\ndef train(): ...\nclass A: ..."))
    assert len(train_not_first(trainer("class A: ...\ndef train(): ..."))) == 1
    assert len(train_not_first(trainer("def improve(): ...\ndef train(): ..."))) == 1
    assert len(train_not_first(trainer("PAIR = 2"))) == 1


def test_a_question_for_the_algorithm_is_found() -> None:
    assert len(asks_for_the_algorithm(trainer("def f():\n    if isinstance(config, GRPOSection): ..."))) == 1
    assert len(asks_for_the_algorithm(trainer("isinstance(self.config, (A, B))"))) == 1
    assert not asks_for_the_algorithm(trainer("isinstance(reward, Learned)\nisinstance(other(config), A)"))


def test_what_is_compared() -> None:
    text = "import torch\ndef f(\n    x,\n):\n    '''Doc.'''\n    # why\n    y = g(  # what\n        x,\n    )\n"
    assert compared_lines(trainer(text), signatures=False) == (Line(7, "y = g("), Line(8, "x,"))
    assert [line.text for line in compared_lines(trainer(text))] == ["def f(", "x,", "y = g(", "x,"]


def test_two_trainers_alike_are_found() -> None:
    common, own = list(numbered(3)), list(numbered(7, "other"))
    short = [f"x = {n}" for n in range(90)]
    one, other = trainer("\n".join(common + own + short)), trainer("\n".join(short + common), "b")
    assert shares_too_much([one, other]) == [f"{TRAINERS}b.py: 3 of 3 lines stand in {TRAINERS}a.py too"]
    assert len(shares_too_much([trainer("\n".join(common + own[:6])), trainer("\n".join(common), "b")])) == 2
    assert not shares_too_much([one])


def test_a_run_in_two_trainers_is_found() -> None:
    def with_run(name: str, length: int) -> Source:
        body = "\n".join(f"    # of {name}\n    x = {n}\n" for n in range(length))
        return trainer(f"import {name}\ndef train({name}):\n    {name}()\n{body}\n    {name}()", name)

    assert runs_in_two_trainers([with_run("a", 8), with_run("b", 8)]) == [
        f"{TRAINERS}a.py:5 ~ {TRAINERS}b.py:5: 8 lines"
    ]
    assert not runs_in_two_trainers([with_run("a", 7), with_run("b", 7)])
    assert not runs_in_two_trainers([with_run("a", 9)])


def test_runs_are_counted_once_and_in_one_file_too() -> None:
    run = "\n".join(f"x = {n}" for n in range(7))
    one, other = Source("bridle/core/a.py", f"{run}\ny = 0\n{run}"), Source("bridle/core/b.py", f"z = 0\n{run}")
    assert runs_in_the_package([one]) == ["bridle/core/a.py:1 ~ bridle/core/a.py:9: 7 lines"]
    assert len(runs_in_the_package([one, other])) == 3
    assert not runs_in_the_package([other])


@pytest.mark.parametrize("source", trainers(), ids=lambda source: source.module)
def test_a_trainer_shows_one_algorithm(source: Source) -> None:
    faults = train_not_first(source) + asks_for_the_algorithm(source)
    assert not faults, listed(faults)


def test_trainers_share_little() -> None:
    faults = shares_too_much(trainers())
    assert not faults, listed(faults)


def test_no_long_run_stands_in_two_trainers() -> None:
    faults = runs_in_two_trainers(trainers())
    assert not faults, listed(faults)


def test_few_runs_of_lines_stand_twice() -> None:
    faults = runs_in_the_package(written_by_us())
    assert len(faults) < PACKAGE_RUNS, listed(faults)
