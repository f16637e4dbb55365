"""Lines that stand in several places: what a check compares, and the runs in which they repeat."""

from __future__ import annotations

import ast
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import combinations
from typing import NamedTuple

from tests.house.source import Source, lines_of


class Line(NamedTuple):
    number: int
    text: str  # stripped, without its comment


class Run(NamedTuple):
    """The same lines at two places, as far as they are the same."""

    first: Source
    first_line: int
    second: Source
    second_line: int
    length: int

    def __str__(self) -> str:
        return f"{self.first.path}:{self.first_line} ~ {self.second.path}:{self.second_line}: {self.length} lines"


@cache
def compared_lines(source: Source, signatures: bool = True) -> tuple[Line, ...]:
    """The lines of code without imports and lone punctuation; without the heads of functions too, if asked."""
    numbers = set(source.code)
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            numbers.difference_update(lines_of(node))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not signatures:
            numbers.difference_update(range(node.lineno, node.body[0].lineno))
    comments = {token.start[0]: token.start[1] for token in source.tokens if token.type == tokenize.COMMENT}
    lines = source.text.splitlines()
    found = [Line(number, lines[number - 1][: comments.get(number)].strip()) for number in sorted(numbers)]
    return tuple(line for line in found if any(character.isalnum() for character in line.text))


def repeated_runs(files: Iterable[tuple[Source, Sequence[Line]]], least: int) -> Iterator[Run]:
    """Each pair of places, in two files or in one, that share `least` lines or more, once, where their run begins."""
    places: dict[tuple[str, ...], list[tuple[Source, Sequence[Line], int]]] = defaultdict(list)
    for source, lines in files:
        for start in range(len(lines) - least + 1):
            places[tuple(line.text for line in lines[start : start + least])].append((source, lines, start))
    for same in places.values():
        for (one, a, i), (other, b, j) in combinations(same, 2):
            if i and j and a[i - 1].text == b[j - 1].text:
                continue  # the run began before
            length = least
            while i + length < len(a) and j + length < len(b) and a[i + length].text == b[j + length].text:
                length += 1
            yield Run(one, a[i].number, other, b[j].number, length)
