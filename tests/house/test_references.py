"""From a line of the documentation to the line of code: what a page names exists, and every loss has its line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from bridle.recipe.recipe import Recipe
from tests.house.source import ROOT, listed, package

REFERENCE = re.compile(r"`([\w/]+\.py): ([\w., ]+)`")  # `maths/losses.py: dpo, ipo`, `core/runlog.py: Run.log`
LISTED = re.compile(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, | and )?)+)")  # `core/runlog.py`: `Project`, `Run`
FILE = re.compile(r"`([\w/]+\.py)`")


@cache
def names_of() -> dict[str, set[str]]:
    """What each file of the package defines at its top, and the methods and fields of its classes as `Class.name`."""
    found: dict[str, set[str]] = {}
    for source in package():
        names: set[str] = set()
        for node in source.tree.body:
            names.update(defined(node))
            if isinstance(node, ast.ClassDef):
                names.update(f"{node.name}.{name}" for inner in node.body for name in defined(inner))
        found[source.path.removeprefix("bridle/")] = names
    return found


def defined(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Assign(targets=targets):
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name


def references(text: str) -> Iterator[tuple[str, str]]:
    """Each (file, name) that a page names."""
    for path, names in REFERENCE.findall(text) + LISTED.findall(text):
        yield from ((path, name) for name in re.findall(r"[\w.]+", names.replace(" and ", " ")))


def dangling(page: str, text: str, names: Mapping[str, set[str]]) -> list[str]:
    """References of a page that lead nowhere. A file may be named with or without `bridle/`; tests and the like stand outside."""
    faults = []
    for path, name in references(text):
        known = names.get(path.removeprefix("bridle/"))
        if known is not None and name not in known:
            faults.append(f"{page}: `{path}: {name}` is named, and the file defines no {name}")
    for path in FILE.findall(text) + [path for path, _ in references(text)]:
        ours = path.removeprefix("bridle/")
        if not any(f"/{known}".endswith(f"/{ours}") for known in names) and not (ROOT / path).is_file():
            faults.append(f"{page}: `{path}` is named, and there is no such file")
    return sorted(set(faults))


def test_a_reference_that_leads_nowhere_is_found() -> None:
    names = {"maths/losses.py": {"dpo", "Loss", "Loss.sum"}}
    assert not dangling("a.md", "`maths/losses.py: dpo, Loss.sum`, `bridle/maths/losses.py`", names)
    assert len(dangling("a.md", "`maths/losses.py: dpo, ipo`", names)) == 1
    assert len(dangling("a.md", "`maths/losses.py`: `dpo`, `ipo`", names)) == 1
    assert len(dangling("a.md", "`maths/loss.py: dpo`", names)) == 1
    assert len(dangling("a.md", "see `maths/loss.py`", names)) == 1


PAGES = [path for ending in ("md", "py") for path in sorted((ROOT / "docs").rglob(f"*.{ending}"))]  # the lessons too


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT / "docs").as_posix())
def test_what_a_page_names_exists(page: Path) -> None:
    faults = dangling(page.name, page.read_text(encoding="utf-8"), names_of())
    assert not faults, listed(faults)


@pytest.mark.parametrize("path", ["maths/losses.py", "maths/advantages.py", "maths/kl.py"])
def test_every_loss_has_its_line(path: str) -> None:
    """Public functions and classes of the maths that trainers use, each in docs/algorithms.md."""
    text = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    source = next(s for s in package() if s.path == f"bridle/{path}")
    public = [
        node.name
        for node in source.tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    named = {name for file, name in references(text) if file == path}
    missing = [name for name in public if name not in named]
    assert public and not missing, f"docs/algorithms.md names `{path}: …` of none of these:{listed(missing)}"


def test_the_defaults_are_the_recipes() -> None:
    """In the column of that name, as `section.key = value`."""
    rows = [line.split("|") for line in (ROOT / "docs" / "algorithms.md").read_text("utf-8").splitlines()]
    stated = [
        (section, key, ast.literal_eval(value))
        for row in rows
        if len(row) == 7  # a table of five columns
        for section, key, value in re.findall(r"`(\w+)\.(\w+) = ([^`]+)`", row[4])
    ]
    assert len(stated) > 40
    recipe = Recipe().model_dump(mode="json")
    wrong = [
        f"`{section}.{key}` is {recipe[section][key]!r}, the page says {value!r}"
        for section, key, value in stated
        if recipe[section][key] != value
    ]
    assert not wrong, listed(wrong)
