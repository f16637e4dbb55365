"""Imports go down only; folders on one floor, and trainers, never import one another; nothing goes in circles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from tests.house.source import Source, calls, dotted, imports, listed, package

FLOORS = {  # from the lowest up, as docs/map.md draws them
    "": -1,  # bridle/__init__.py: everyone may ask for the version, and it asks for nothing but the Python API, when called
    "core": 0,
    "kernels": 0,
    "recipe": 1,
    "maths": 1,
    "project": 2,
    "feedback": 2,
    "playground": 2,
    "compute": 3,
    "models": 4,
    "generation": 5,
    "rewards": 6,
    "guard": 6,
    "site": 6,
    "training": 7,
    "evaluation": 7,
    "labelling": 7,
    "serve": 7,
    "stages": 8,
    "report": 9,
    "api": 9,
    "launch": 9,
    "demo": 10,
    "loop": 10,
    "sweep": 10,
    "cli": 11,
}
FILES_AT_THE_ROOT = {"bridle/__init__.py", "bridle/loop.py"}
PYTHON_API = "bridle.api"  # `bridle.load` must have a name; that importing bridle loads no torch is a test of its own


def edges(sources: Sequence[Source]) -> Iterator[tuple[Source, int, str]]:
    """(who, line, the module of ours that is imported), lazy imports and those for the type checker too."""
    known = {source.module for source in sources}
    for source in sources:
        for found in imports(source):
            if found.starts("bridle"):
                yield (
                    source,
                    found.line,
                    found.name if found.name in known else found.name.rpartition(".")[0] or "bridle",
                )


def part_of(module: str) -> str:
    return (module.split(".") + [""])[1]


def upward_imports(sources: Sequence[Source]) -> list[str]:
    faults = [
        source.fault(1, f"{source.part} has no floor: give it one here and in docs/map.md")
        for source in sources
        if source.part not in FLOORS
    ]
    for source, line, target in edges(sources):
        here, there = source.part, part_of(target)
        if (
            here == there
            or here not in FLOORS
            or (source.module == "bridle" and f"{target}.".startswith(f"{PYTHON_API}."))
        ):
            continue
        below, level = FLOORS.get(there, 99), FLOORS[here]
        if below >= level:
            faults.append(
                source.fault(line, f"{here} (floor {level}) imports {target} (floor {below}), which is not below")
            )
    return faults


def files_at_the_root(sources: Sequence[Source]) -> list[str]:
    return [
        source.fault(1, "a file right under bridle/ has no rule to keep: put it into a folder")
        for source in sources
        if source.path.count("/") == 1 and source.path not in FILES_AT_THE_ROOT
    ]


def trainers_importing_trainers(sources: Sequence[Source]) -> list[str]:
    return [
        source.fault(line, f"a trainer imports another, {target}: what two loops share is a function on a lower floor")
        for source, line, target in edges(sources)
        if source.module.startswith("bridle.training.")
        and target.startswith("bridle.training.")
        and target != source.module
    ]


def circles(sources: Sequence[Source]) -> list[str]:
    """Each circle of imports once, as `a -> b -> a`."""
    graph: dict[str, set[str]] = {source.module: set() for source in sources}
    for source, _, target in edges(sources):
        graph[source.module].add(target)
    found: list[str] = []
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append(" -> ".join([*trail[trail.index(module) :], module]))
        elif module not in done:
            for target in sorted(graph.get(module, ())):
                visit(target, [*trail, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


def hidden_imports(source: Source) -> list[str]:
    """Imports that these tests would not see: relative ones, and modules named by a string."""
    faults = [
        source.fault(i.line, f"relative import {i.name}: write it from `bridle`")
        for i in imports(source)
        if i.name.startswith(".")
    ]
    faults += [
        source.fault(
            call, f"{dotted(call.func)}() hides an import: write an import statement, inside a function if it is heavy"
        )
        for call in calls(source)
        if dotted(call.func).rpartition(".")[2] in {"import_module", "__import__"}
    ]
    return faults


def snippet(path: str, text: str) -> list[Source]:
    """The snippet among a few modules that it may import."""
    others = [
        "bridle",
        "bridle.api",
        "bridle.api.models",
        "bridle.core.errors",
        "bridle.maths.kl",
        "bridle.training.sft",
        "bridle.evaluation.answers",
        "bridle.guard.health",
    ]
    folders = ("bridle", "bridle.api")
    files = [f"{name.replace('.', '/')}{'/__init__' if name in folders else ''}.py" for name in others]
    return [Source(file, "") for file in files] + [Source(path, text)]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("bridle/core/files.py", "import bridle.maths.kl"),
        ("bridle/core/files.py", "from bridle.maths import kl"),
        ("bridle/core/files.py", "def f():\n    from bridle.maths.kl import k1"),
        ("bridle/core/files.py", "if TYPE_CHECKING:\n    from bridle.maths.kl import k1"),
        ("bridle/recipe/recipe.py", "from bridle.maths.kl import k1"),
        ("bridle/project/run.py", "from bridle.guard.health import Health"),
        ("bridle/training/ppo.py", "from bridle.evaluation.answers import answer"),
        ("bridle/rewards/learned.py", "from bridle.guard.health import Health"),
        ("bridle/feedback/store/store.py", "from bridle.playground.world import World"),
        ("bridle/stages/practice.py", "from bridle.cli.main import main"),
        ("bridle/report/project.py", "from bridle.api import load"),
        ("bridle/__init__.py", "from bridle.core.errors import BridleError"),
        ("bridle/surprise/new.py", ""),
    ],
)
def test_an_upward_import_is_found(path: str, text: str) -> None:
    assert len(upward_imports(snippet(path, text))) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("bridle/training/ppo.py", "from bridle.core.errors import DataError\nfrom bridle import __version__"),
        ("bridle/training/ppo.py", "from bridle.guard.health import Health"),
        ("bridle/demo/demo.py", "from bridle.stages import run\nfrom bridle.demo.second import share\nimport torch"),
        ("bridle/cli/main.py", "def f():\n    from bridle.demo.demo import demo"),
        ("bridle/__init__.py", "def __getattr__(name):\n    from bridle import api"),
        ("bridle/__init__.py", "if TYPE_CHECKING:\n    from bridle.api.models import load"),
    ],
)
def test_a_downward_import_is_not(path: str, text: str) -> None:
    assert not upward_imports(snippet(path, text))


def test_a_file_at_the_root_is_found() -> None:
    assert len(files_at_the_root([Source("bridle/tuning.py", "")])) == 1
    assert not files_at_the_root([Source(path, "") for path in [*FILES_AT_THE_ROOT, "bridle/stages/practice.py"]])


def test_a_trainer_importing_another_is_found() -> None:
    assert trainers_importing_trainers(snippet("bridle/training/ppo.py", "from bridle.training import sft"))
    assert trainers_importing_trainers(snippet("bridle/training/ppo.py", "def f():\n    import bridle.training.sft"))
    assert not trainers_importing_trainers(snippet("bridle/training/ppo.py", "from bridle.maths import kl"))


def test_a_circle_is_found() -> None:
    a = Source("bridle/core/a.py", "from bridle.core.b import x")
    b = Source("bridle/core/b.py", "def f():\n    from bridle.core import c")
    c = Source("bridle/core/c.py", "import bridle.core.a")
    assert circles([a, b, c]) == ["bridle.core.a -> bridle.core.b -> bridle.core.c -> bridle.core.a"]
    assert not circles([a, b])


def test_a_hidden_import_is_found() -> None:
    assert hidden_imports(Source("bridle/core/a.py", "from . import b"))
    assert hidden_imports(Source("bridle/core/a.py", "from .b import c"))
    assert hidden_imports(Source("bridle/core/a.py", "import importlib\nimportlib.import_module('bridle.cli')"))
    assert not hidden_imports(Source("bridle/core/a.py", "import importlib.resources"))


def test_imports_go_down_only() -> None:
    faults = upward_imports(package())
    assert not faults, listed(faults)


def test_every_file_stands_in_a_folder() -> None:
    faults = files_at_the_root(package())
    assert not faults, listed(faults)


def test_no_trainer_imports_another() -> None:
    faults = trainers_importing_trainers(package())
    assert not faults, listed(faults)


def test_no_circles() -> None:
    faults = circles(package())
    assert not faults, listed(faults)


def test_no_hidden_imports() -> None:
    faults = [fault for source in package() for fault in hidden_imports(source)]
    assert not faults, listed(faults)
