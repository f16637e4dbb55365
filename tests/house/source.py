"""The package as text and syntax trees: what the rules of the house look at.

A check is a function of one or several `Source` that returns its faults, one sentence each with file and line. So each
test can show first that the check finds what it should in a bad snippet, and then that the package holds nothing of it.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
MIGRATIONS = "/migrations/"  # written for Alembic, which reads and runs them by its own customs
# Folders, and one file, that load neither torch nor transformers.
LIGHT = (
    *("core", "recipe", "maths.statistics", "project", "feedback", "playground"),
    *("guard.health", "site", "labelling", "cli"),
)
NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


@dataclass(frozen=True)
class Source:
    path: str  # from the top of the checkout: "bridle/core/errors.py"
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @cached_property
    def tokens(self) -> list[tokenize.TokenInfo]:
        return list(tokenize.generate_tokens(io.StringIO(self.text).readline))

    @cached_property
    def code(self) -> frozenset[int]:
        """The numbers of the lines that hold code: no blank ones, no comments, no docstrings."""
        lines: set[int] = set()
        for token in self.tokens:
            if token.type not in NOT_CODE:
                lines.update(range(token.start[0], token.end[0] + 1))
        for node in ast.walk(self.tree):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                lines.difference_update(lines_of(node))
        return frozenset(lines)

    @property
    def module(self) -> str:
        parts = PurePosixPath(self.path).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def part(self) -> str:
        """The folder, or the file right under bridle/, that the module belongs to; empty for bridle/__init__.py."""
        return (self.module.split(".") + [""])[1]

    def fault(self, node: ast.AST | int, sentence: str) -> str:
        line = node if isinstance(node, int) else node.lineno  # type: ignore[attr-defined]
        return f"{self.path}:{line}: {sentence}"


def lines_of(node: ast.stmt) -> range:
    """The numbers of the lines that a statement takes, from its `def` on where it has decorators."""
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


@cache
def package() -> tuple[Source, ...]:
    """Every Python file of the package, read and parsed once for all checks."""
    paths = sorted((ROOT / "bridle").rglob("*.py"))
    return tuple(Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths)


def written_by_us() -> list[Source]:
    """The package without its migrations."""
    return [source for source in package() if MIGRATIONS not in source.path]


def modules() -> list[str]:
    """The name of every module that can be imported by itself."""
    return [source.module for source in written_by_us()]


@dataclass(frozen=True)
class Import:
    line: int
    name: str  # "bridle.core.errors.DataError" for `from bridle.core.errors import DataError`
    lazy: bool  # done when a function is called, or only for the type checker

    def starts(self, prefix: str) -> bool:
        return f"{self.name}.".startswith(f"{prefix}.")


def imports(source: Source) -> Iterator[Import]:
    """Every import statement, wherever it stands."""
    yield from _imports_in(source.tree, lazy=False)


def _imports_in(node: ast.AST, lazy: bool) -> Iterator[Import]:
    match node:
        case ast.Import(names=names):
            yield from (Import(node.lineno, alias.name, lazy) for alias in names)
        case ast.ImportFrom(names=names):
            origin = "." * node.level + (node.module or "")
            yield from (Import(node.lineno, f"{origin}.{alias.name}", lazy) for alias in names)
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
            lazy = True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            lazy = True
    for child in ast.iter_child_nodes(node):
        yield from _imports_in(child, lazy)


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a chain of names; what cannot be named, such as a call, leaves its place empty: `f().b` is `.b`."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            return f"{dotted(value)}.{attr}"
        case _:
            return ""


def calls(source: Source) -> Iterator[ast.Call]:
    return (node for node in ast.walk(source.tree) if isinstance(node, ast.Call))


def listed(faults: Iterable[str]) -> str:
    return "\n" + "\n".join(faults)
