"""Small enough for one person to read: lines of code, without blanks, comments, docstrings, migrations and word lists.

Word lists are data files, so they do not count; pages, scripts, style sheets and C count by lines that are not blank.
Raising a number of this file is a commit of its own, with its reason.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath

import pytest

from tests.house.source import ROOT, Source, lines_of, listed, package, written_by_us

ALL_PYTHON = 47_100
# Folders, or files without their ending; a file that is named here counts where it is named, not with its folder.
BUDGETS = {
    "the reader's core": (11_650, "core project compute recipe maths models generation rewards training"),
    # Who reads the loop need not read how a GGUF file, a hub, an adapter of peft's, a reward model of somebody else's, or a file of one of
    # sixty forms is read.
    "what others wrote": (
        6_100,
        "models/files models/lora/peft_files models/lora/merging rewards/classifier feedback/importing",
    ),
    # What people said is kept for ever: who is asked, how good it is, what goes out, how it is kept safe, each in a folder of its own.
    "people's data": (8_150, "feedback playground"),
    "watching and serving": (
        8_500,
        "guard evaluation site labelling serve rewards/judge rewards/constitution rewards/sandbox rewards/constraints",
    ),
    # Nor what `bridle plan` counts, which looks at every trainer from outside.
    "what is driven": (12_250, "stages report api demo loop sweep launch cli compute/plan compute/shapes"),
}
COUNTED_APART = {"kernels", ""}  # Python beside C, and bridle/__init__.py: within the budget of all Python alone
OTHERS = {  # not blank
    "pages": ({".html", ".jinja", ".js", ".css"}, 3_250),
    "C": ({".c", ".h"}, 1_200),
}
FILE_LINES = 400
FOLDER_FILES, FILES_OF = 12, {"bridle/stages": 28, "bridle/feedback/store": 15}
FUNCTION_LINES, MOST_FUNCTIONS_UNDER, SHARE_UNDER = 60, 40, 0.9
PARAMETERS = 7
MANY_PARAMETERS = ("bridle/maths/", "bridle/kernels/")
BY_KEYWORD = "bridle/api/"

Function = ast.FunctionDef | ast.AsyncFunctionDef


def group_of(source: Source) -> str:
    """The budget that the file counts in: that of its folder, or its own; empty where there is none."""
    path = source.path.removeprefix("bridle/").removesuffix(".py")
    named = {name: group for group, (_, names) in BUDGETS.items() for name in names.split()}
    folders = [
        path[:end] for end in range(len(path), 0, -1) if path[end : end + 1] in ("", "/")
    ]  # the innermost that is named
    return next((named[folder] for folder in folders if folder in named), "")


def over_budget(sources: Sequence[Source]) -> list[str]:
    sizes = Counter[str]()
    for source in sources:
        sizes[group_of(source)] += len(source.code)
    limits = {
        "all": (sizes.total(), ALL_PYTHON),
        **{group: (sizes[group], most) for group, (most, _) in BUDGETS.items()},
    }
    return [
        f"{group}: {size} lines of Python, where {most} are allowed"
        for group, (size, most) in limits.items()
        if size > most
    ]


def long_files(sources: Sequence[Source]) -> list[str]:
    return [
        f"{source.path}: {len(source.code)} lines of code, where {FILE_LINES} are allowed"
        for source in sources
        if len(source.code) > FILE_LINES
    ]


def full_folders(sources: Sequence[Source]) -> list[str]:
    """`__init__.py` says what the folder is for, and does not count."""
    sizes = Counter(str(PurePosixPath(source.path).parent) for source in sources if "__init__" not in source.path)
    limits = {folder: FILES_OF.get(folder, FOLDER_FILES) for folder in sizes}
    return [
        f"{folder}: {size} files, where {limits[folder]} are allowed"
        for folder, size in sizes.items()
        if size > limits[folder]
    ]


def functions(source: Source) -> Iterator[Function]:
    return (node for node in ast.walk(source.tree) if isinstance(node, Function))


def function_sizes(source: Source) -> dict[str, int]:
    """Lines of code of each function from its `def` on, by `path:line: name`."""
    return {source.fault(node, node.name): len(source.code.intersection(lines_of(node))) for node in functions(source)}


def long_functions(sources: Sequence[Source]) -> list[str]:
    sizes = {place: size for source in sources for place, size in function_sizes(source).items()}
    return [
        f"{place}: {size} lines, where {FUNCTION_LINES} are allowed"
        for place, size in sizes.items()
        if size > FUNCTION_LINES
    ]


def too_many_longish_functions(sources: Sequence[Source]) -> list[str]:
    sizes = {place: size for source in sources for place, size in function_sizes(source).items()}
    longish = [f"{place}: {size} lines" for place, size in sizes.items() if size >= MOST_FUNCTIONS_UNDER]
    return longish if 1 - len(longish) / len(sizes) < SHARE_UNDER else []


def many_parameters(sources: Sequence[Source]) -> list[str]:
    """Neither `self` and `cls`, nor what the Python API takes by keyword."""
    faults = []
    for source in sources:
        if source.path.startswith(MANY_PARAMETERS):
            continue
        for node in functions(source):
            taken = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
            taken = taken[taken[:1] in (["self"], ["cls"]) :]
            if not source.path.startswith(BY_KEYWORD):
                taken += [argument.arg for argument in node.args.kwonlyargs]
            if len(taken) > PARAMETERS:
                faults.append(source.fault(node, f"{node.name}() takes {len(taken)}, where {PARAMETERS} are allowed"))
    return faults


EXAMPLE = Source(
    "bridle/core/a.py",
    '''"""A module.

Two lines more."""

# a comment
def f(x):
    """What it does."""

    y = """one
    two"""  # code, for it is a value
    return (
        x,
        y,
    )

Z = 1
"""What Z is."""
''',
)


def lines(path: str, count: int) -> Source:
    """A file of so many lines of code, quickly read."""
    return Source(path, "x = '''" + "\n" * (count - 1) + "'''" if count else "")


def test_lines_of_code_are_counted() -> None:
    assert EXAMPLE.code == {6, 9, 10, 11, 12, 13, 14, 16}
    assert function_sizes(EXAMPLE) == {"bridle/core/a.py:6: f": 7}


def test_each_file_counts_in_one_group() -> None:
    groups = {
        "rewards/learned": "the reader's core",
        "rewards/judge": "watching and serving",
        "feedback/store/store": "people's data",
        "loop": "what is driven",
        "models/policy": "the reader's core",
        "models/files/hub": "what others wrote",
        "feedback/importing/forms/plain": "what others wrote",
        "kernels/kernels": "",
    }
    assert {path: group_of(Source(f"bridle/{path}.py", "")) for path in groups} == groups


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (over_budget, [lines("bridle/demo/a.py", 3_000)], [lines("bridle/demo/a.py", 3_000), lines("bridle/loop.py", 9_251)]),
        (over_budget, [lines("bridle/rewards/judge.py", 4_000)], [lines("bridle/rewards/judges.py", 11_651)]),
        (over_budget, [lines("bridle/kernels/a.py", 47_100)], [lines("bridle/kernels/a.py", 47_101)]),
        (long_files, [lines("bridle/core/a.py", 400)], [lines("bridle/core/a.py", 401)]),
        (
            full_folders,
            [*(lines(f"bridle/core/a{n}.py", 1) for n in range(12)), lines("bridle/core/__init__.py", 0)],
            [lines(f"bridle/core/a{n}.py", 1) for n in range(13)],
        ),
        (
            full_folders,
            [lines(f"bridle/stages/a{n}.py", 1) for n in range(28)],
            [lines(f"bridle/stages/a{n}.py", 1) for n in range(29)],
        ),
        (
            long_functions,
            [Source("bridle/core/a.py", "def f():\n" + "    x = 1\n\n" * 59)],
            [Source("bridle/core/a.py", "def f():\n" + "    x = 1\n" * 60)],
        ),
        (
            too_many_longish_functions,
            [Source("bridle/core/a.py", "def f():\n" + "    x = 1\n" * 39 + "def g(): ...\n" * 9)],
            [Source("bridle/core/a.py", "def f():\n" + "    x = 1\n" * 39 + "def g(): ...\n" * 8)],
        ),
        (
            many_parameters,
            [
                Source("bridle/core/a.py", "class A:\n    def f(self, a, b, c, d, *, e, f, g): ..."),
                Source("bridle/maths/a.py", "def f(a, b, c, d, e, f, g, h): ..."),
                Source("bridle/api/a.py", "def f(a, *, b, c, d, e, f, g, h): ..."),
            ],
            [Source("bridle/core/a.py", "def f(a, b, c, d, *, e, f, g, h): ...")],
        ),
        (many_parameters, [], [Source("bridle/api/a.py", "def f(a, b, c, d, e, f, g, h): ...")]),
    ],
)  # fmt: skip
def test_what_is_too_large_is_found(
    check: Callable[[Sequence[Source]], list[str]], good: list[Source], bad: list[Source]
) -> None:
    assert not check(good)
    assert len(check(bad)) == 1


@pytest.mark.parametrize(
    "check", [over_budget, long_files, full_folders, long_functions, too_many_longish_functions, many_parameters]
)
def test_the_package_is_small(check: Callable[[Sequence[Source]], list[str]]) -> None:
    faults = check(written_by_us())
    assert not faults, listed(faults)


def test_every_part_has_a_budget() -> None:
    faults = [source.path for source in package() if not group_of(source) and source.part not in COUNTED_APART]
    assert not faults, listed(faults)


@pytest.mark.parametrize("kind", OTHERS)
def test_pages_and_c_are_small(kind: str) -> None:
    endings, limit = OTHERS[kind]
    paths = [path for path in (ROOT / "bridle").rglob("*") if path.suffix in endings]
    size = sum(bool(line.strip()) for path in paths for line in path.read_text(encoding="utf-8").splitlines())
    assert paths and size <= limit, f"{size} lines of {kind} that are not blank, where {limit} are allowed"
