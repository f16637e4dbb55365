"""What docs/troubleshooting.md quotes, the program says: each quoted message stands in the code.

A `…` of the page stands for what differs, and so does a placeholder of the code. Between them every stretch of two words or
more must stand in a string of the package, where a placeholder may be a few words of it (`split {split!r}`: split 'train').
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache

from tests.house.source import ROOT, Source, listed, written_by_us

PLACEHOLDER, MOST_WORDS = "\0", 4  # that one placeholder may stand for
SPANS = re.compile(r"``(.+?)``(?!`)|`([^`]+)`")
LEAST_WORDS = 3  # of a message; what is shorter in the first column is a metric, a setting or a command
OF_OTHERS = {"No module named venv", "ensurepip is not available"}  # Python's own


def quoted(page: str) -> Iterator[tuple[int, str]]:
    """(line, message) of each that stands in the first column of a table."""
    for number, line in enumerate(page.splitlines(), 1):
        if line.startswith("|"):
            first = re.split(r"(?<!\\)\|", line)[1].replace(r"\|", "|")
            for double, single in SPANS.findall(first):
                message = (double or single).strip()
                if len(re.findall(r"[A-Za-z]{2,}", message)) >= LEAST_WORDS and message not in OF_OTHERS:
                    yield number, message


def stretches(message: str) -> list[list[str]]:
    """The words between what differs; signs at their ends belong to that."""
    found = [re.sub(r"^\W+|\W+$", "", piece).split() for piece in message.split("…")]
    return [words for words in found if len(words) > 1]


def strings(source: Source) -> Iterator[str]:
    """Each string of the code, put together as far as it is written in one place."""

    def text(node: ast.expr) -> str:
        match node:
            case ast.Constant(value=str(value)):
                return value
            case ast.JoinedStr(values=values):
                return "".join(map(text, values))
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return text(left) + text(right)
            case _:
                return PLACEHOLDER

    for node in ast.walk(source.tree):
        if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
            yield text(node)


def stands_in(words: list[str], template: list[str]) -> bool:
    """Whether the words are a part of the template, and at least half of them are written in it as they are."""

    def most_written(i: int, j: int) -> float:
        """How many of words[i:] stand in template[j:] as they are; -inf if the two do not fit."""
        if i == len(words):
            return 0
        if j == len(template):
            return float("-inf")
        if PLACEHOLDER in template[j]:
            return max(most_written(k, j + 1) for k in range(i, min(i + MOST_WORDS, len(words)) + 1))
        return 1 + most_written(i + 1, j + 1) if same(words[i], template[j], i == len(words) - 1) else float("-inf")

    return any(most_written(0, j) >= len(words) / 2 for j in range(len(template)))


def same(word: str, other: str, last: bool) -> bool:
    return word == other or (last and word == re.sub(r"\W+$", "", other))


def said_by_nobody(page: str, texts: Iterable[str]) -> list[str]:
    known = sorted({" ".join(text.split()) for text in texts} - {PLACEHOLDER})
    whole = "\n".join(known)
    templates = [text.split() for text in known if PLACEHOLDER in text]

    def said(words: list[str]) -> bool:
        """In one string, or in one that stands in another's placeholder, from a comma, colon or semicolon on."""
        if " ".join(words) in whole or any(stands_in(words, template) for template in templates):
            return True
        cuts = [cut for cut in range(1, len(words)) if words[cut - 1][-1] in ",:;"]
        return any(said(words[:cut]) and said(words[cut:]) for cut in cuts)

    return [
        f"line {number}: no string of the package says `{' '.join(words)}` of `{message}`"
        for number, message in quoted(page)
        for words in stretches(message)
        if not said(words)
    ]


@cache
def all_strings() -> tuple[str, ...]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\`", "`").replace('"', "")
    from_make = [re.sub(r"\$?\$\(.*?\)", PLACEHOLDER, line) for line in makefile.splitlines()]
    return (*from_make, *(text for source in written_by_us() for text in strings(source)))


def test_only_messages_are_read() -> None:
    page = "| `a b` | `not read at all` |\n| `it is … here; …`, `ppo.kl = 0` |\n| ``run `bridle init` or what`` |\n`in the text too`"
    assert list(quoted(page)) == [(2, "it is … here; …"), (3, "run `bridle init` or what")]
    assert stretches("… of model '…', which is new: …; and") == [["of", "model"], ["which", "is", "new"]]


def test_a_message_that_nobody_says_is_found() -> None:
    code = """
raise E(f"{path} is no {kind} folder; those " f"of {project!r} are " + "elsewhere")
raise E(f"there is nothing in study {study!r}, split {split!r}; {hint}")
hint = "import some first"
"""
    strings_of = list(strings(Source("bridle/core/a.py", code)))
    good = [
        "… is no run folder; those of '…' are elsewhere",
        "… folder; those of",
        "there is nothing in study …, split 'train'; import some first",
        "there is nothing in study 'default', split 'train'; …",
    ]
    stale = [
        "… is not a run folder; those of …",
        "… is no run folder; these of …",
        "there is nothing in the study …",
        "import some data first",
    ]
    assert not said_by_nobody("\n".join(f"| `{message}` |" for message in good), strings_of)
    assert len(said_by_nobody("\n".join(f"| `{message}` |" for message in stale), strings_of)) == len(stale)


def test_what_troubleshooting_quotes_is_said() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert len(list(quoted(page))) > 40
    faults = said_by_nobody(page, all_strings())
    assert not faults, "docs/troubleshooting.md: " + listed(faults)
