"""Small enough for one person to read: lines of code, without blanks, comments, docstrings, migrations and word lists.

Word lists are data files, so they do not count; pages, scripts and style sheets count by lines that are not blank.
"""

from __future__ import annotations

import ast
import io
import tokenize

from tests.house.source import MIGRATIONS, ROOT, Source, listed, package

PACKAGE_LINES, FILE_LINES = 12_000, 600
FUNCTION_LINES, MOST_FUNCTIONS_UNDER, SHARE_UNDER = 120, 45, 0.9
WEB = {".html", ".jinja", ".js", ".css"}
NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(source: Source) -> set[int]:
    """The numbers of the lines that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type not in NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def function_sizes(source: Source) -> dict[str, int]:
    """Lines of code of each function from its `def` on, by `path:line: name`."""
    code = code_lines(source)
    return {
        source.fault(node, node.name): len(code.intersection(range(node.lineno, (node.end_lineno or node.lineno) + 1)))
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def counted() -> list[Source]:
    return [source for source in package() if MIGRATIONS not in source.path]


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


def test_lines_of_code_are_counted() -> None:
    assert code_lines(EXAMPLE) == {6, 9, 10, 11, 12, 13, 14, 16}
    assert function_sizes(EXAMPLE) == {"bridle/core/a.py:6: f": 7}


def test_the_package_is_small() -> None:
    python = sum(len(code_lines(source)) for source in counted())
    pages = [path for path in (ROOT / "bridle").rglob("*") if path.suffix in WEB]
    web = sum(bool(line.strip()) for path in pages for line in path.read_text(encoding="utf-8").splitlines())
    assert python + web <= PACKAGE_LINES, (
        f"{python} lines of Python and {web} of pages, where {PACKAGE_LINES} are allowed"
    )


def test_files_are_short() -> None:
    sizes = {source.path: len(code_lines(source)) for source in counted()}
    long = [
        f"{path}: {size} lines of code, where {FILE_LINES} are allowed"
        for path, size in sizes.items()
        if size > FILE_LINES
    ]
    assert not long, listed(long)


def test_functions_are_short() -> None:
    sizes = {place: size for source in counted() for place, size in function_sizes(source).items()}
    too_long = [
        f"{place}: {size} lines, where {FUNCTION_LINES} are allowed"
        for place, size in sizes.items()
        if size > FUNCTION_LINES
    ]
    assert not too_long, listed(too_long)
    longish = [f"{place}: {size} lines" for place, size in sizes.items() if size >= MOST_FUNCTIONS_UNDER]
    share = 1 - len(longish) / len(sizes)
    assert share >= SHARE_UNDER, (
        f"only {share:.0%} of functions are under {MOST_FUNCTIONS_UNDER} lines:{listed(longish)}"
    )
