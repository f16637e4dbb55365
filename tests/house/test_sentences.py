"""Each error whose sentence a page can show stands in the catalogues of other languages, with the same of what differs.

SHOWN is where what a page asks may end; APART are the modules below the pages that no page's request reaches, or whose errors a page tells
in words of its own. A module below the pages that is in neither fails: decide which it is.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator, Set
from functools import cache

import pytest

from bridle.core import errors
from bridle.feedback.importing.files.kinds import NOT_ROWS
from bridle.feedback.importing.reasons import Note, Reason
from bridle.serve.problems import SENTENCES
from bridle.site.languages import FOLDER, LANGUAGES, catalogue, in_words
from tests.house.source import Source, calls, dotted, imports, listed, written_by_us

PAGES = ("bridle/site/", "bridle/labelling/", "bridle/serve/")
SHOWN = (
    *PAGES,
    *(f"bridle/feedback/{part}" for part in ("people/", "store/", "serving/", "rankings", "importing/")),
    *("bridle/core/files", "bridle/project/kept"),
)
APART = {
    "bridle/site/listening": "before a server begins",
    "bridle/site/proxies": "before a server begins",
    "bridle/labelling/serving": "before a server begins",
    "bridle/serve/serving": "before a server begins",
    "bridle/labelling/api": "for programs, in English",
    "bridle/feedback/importing/formats": "options of the command line",
    "bridle/feedback/importing/rereading": "training",
    "bridle/feedback/serving/promotion": "`bridle loop` and `bridle models`",
    "bridle/feedback/serving/prompts": "`bridle loop` and `bridle models`",
    "bridle/feedback/serving/weights": "training",
    "bridle/feedback/store/labels": "training",
    "bridle/feedback/quality/": "the page leaves out what it measures",
    "bridle/feedback/exporting/": "the page has words of its own",
    "bridle/feedback/upkeep/": "the command line",
    "bridle/project/": "the command line",
    "bridle/recipe/": "the command line",
    **dict.fromkeys(
        (f"bridle/{part}" for part in ("maths/", "compute/", "models/", "generation/", "kernels/", "rewards/")),
        "of the model, which the chat's page calls a failure of the server's",
    ),
}
PLACES = (*SHOWN, *APART)
OTHER_LANGUAGES = sorted(LANGUAGES.keys() - {"en"})
OTHERS = {"HTTPException", "StarletteError", "RequestProblem", "Unreadable"}
WORDS_OF_PAGES = ("viewer.words", "found.words", "translate")
NOT_SAID = {"StoreError", "Unfinished"}  # the first is for the log alone, the second has a key of the page's words
CLASSES = {
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.BridleError)
}
HOLE = "{}"
OF_PYDANTIC = ("String should ", "Input should ", "Field required", "have at most ")
JOINED = {"owner, adjudicator, annotator", "{} is {}"}  # of a table's names; what a file is, which NOT_ROWS says


def template_of(node: ast.expr) -> str:
    """A text as it is written, with holes for what differs."""
    match node:
        case ast.Constant(value=str(value)):
            return value
        case ast.JoinedStr(values=values):
            return "".join(map(template_of, values))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return template_of(left) + template_of(right)
    return HOLE


def with_holes(text: str) -> str:
    return re.sub(r"({\w*})+", HOLE, text)


def classes_of(sources: Iterable[Source]) -> set[str]:
    """The errors of core, and what is derived from them."""
    bases = {
        node.name: {dotted(base) for base in node.bases}
        for source in sources
        for node in source.tree.body
        if isinstance(node, ast.ClassDef)
    }
    return CLASSES | OTHERS | {name for name, of in bases.items() if of & CLASSES}


def said_in(source: Source, classes: Set[str]) -> Iterator[tuple[int, str]]:
    """(line, template) of each error that is made there; not of one that says only what another error said."""
    for node in ast.walk(source.tree):
        name = dotted(node.func) if isinstance(node, ast.Call) else ""
        if not isinstance(node, ast.Call) or name not in classes | {".__init__"} or name in NOT_SAID:
            continue
        codes = [one.value.value for one in node.keywords if one.arg == "code" and isinstance(one.value, ast.Constant)]
        if any(f"chat.error_{code}" in catalogue("en") for code in codes):
            continue
        words = [one for one in node.args if not isinstance(one, ast.Constant) or isinstance(one.value, str)]
        if words and not any(call in ast.unparse(words[0]) for call in WORDS_OF_PAGES):
            template = with_holes(("{} " if name == "Unreadable" else "") + template_of(words[0]))
            if re.search("[A-Za-z]", template):
                yield node.lineno, template


@cache
def below_the_pages() -> list[Source]:
    """What the pages import, and what that imports."""
    known = {source.module: source for source in written_by_us()}
    found, waiting = set[str](), [name for name, source in known.items() if source.path.startswith(PAGES)]
    while waiting:
        name = waiting.pop()
        if name in found or name == "bridle":
            continue
        found.add(name)
        named = [part for one in imports(known[name]) for part in (one.name, one.name.rpartition(".")[0])]
        waiting += [part for part in named if part in known]
    return [known[name] for name in sorted(found)]


def shown_ones() -> list[Source]:
    """By the longest place that holds them."""
    return [one for one in below_the_pages() if max(filter(one.path.startswith, PLACES), key=len, default="") in SHOWN]


def translated(language: str) -> dict[str, str]:
    return tomllib.loads((FOLDER / f"errors.{language}.toml").read_text(encoding="utf-8"))


SNIPPET = """
def f(a, error):
    raise DataError(f"{a} is {a!r}{error}, " + "not good") from error
    raise DataError(str(error))
    raise RequestProblem(404, f"no {a}", code="unknown_id")
    raise HTTPException(404, viewer.words("label.no_study"))
    raise StoreError("locked")
    return RequestProblem(400, "no")
class Own(DataError):
    def __init__(self):
        super().__init__("own words")
raise Own("and more")
raise Unreadable("is a picture")
"""


def test_what_is_said_is_found() -> None:
    source = Source("bridle/site/a.py", SNIPPET)
    said = [template for _, template in said_in(source, classes_of([source]))]
    assert sorted(said) == ["and more", "no", "own words", "{} is a picture", "{} is {}, not good"]


def test_each_error_below_the_pages_is_shown_or_apart() -> None:
    classes = classes_of(below_the_pages())
    others = [source for source in below_the_pages() if not source.path.startswith(PLACES)]
    faults = [source.path for source in others if [*said_in(source, classes)]]
    assert not faults, f"say in SHOWN or in APART of this file whether a page shows what these raise:{listed(faults)}"


@pytest.mark.parametrize("language", OTHER_LANGUAGES)
def test_each_error_that_a_page_can_show_is_translated(language: str) -> None:
    known, classes = {with_holes(english) for english in translated(language)} | JOINED, classes_of(below_the_pages())
    faults = [
        source.fault(line, repr(template))
        for source in shown_ones()
        for line, template in said_in(source, classes)
        if template not in known
    ]
    whole = [f"rows.jsonl is {what}" for _, what in NOT_ROWS] + [*Reason, *Note, *SENTENCES.values()]
    faults += [sentence for sentence in whole if in_words(language, sentence) == sentence]
    assert not faults, f"without words in errors.{language}.toml:{listed(faults)}"


@pytest.mark.parametrize("language", OTHER_LANGUAGES)
def test_a_translation_fills_the_same_places(language: str) -> None:
    for english, text in translated(language).items():
        names = [re.findall(r"{(\w+)}", words) for words in (english, text)]
        assert len({*names[0]}) == len(names[0]) and sorted(names[0]) == sorted(names[1]), english
        assert re.search("[A-Za-z]", re.sub(r"{\w+}", "", english)) and text == text.strip() != "", english
        values = {name: f"<{name}>" for name in names[0]}
        assert in_words(language, english.format_map(values)) == text.format_map(values), english


@pytest.mark.parametrize("language", OTHER_LANGUAGES)
def test_nothing_is_translated_that_nobody_says(language: str) -> None:
    said = {
        with_holes(template_of(node))
        for source in shown_ones()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp)
    }
    said |= {f"{HOLE} {template}" for template in said} | {f"{HOLE} is {template}" for template in said} | JOINED
    stale = []
    for english in translated(language):
        if with_holes(english) not in said and not english.startswith(OF_PYDANTIC):
            entry = re.compile(re.escape(with_holes(english)).replace(r"\{\}", ".+"))
            stale += [] if any(entry.fullmatch(template) for template in said) else [english]
    assert not stale, listed(stale)


@pytest.mark.parametrize("language", LANGUAGES)
def test_statuses_without_words_have_some(language: str) -> None:
    [app] = [source for source in shown_ones() if source.path == "bridle/site/app.py"]
    firsts = [node.args[0] for node in calls(app) if dotted(node.func) == "StarletteError"]
    raised = [one.value for one in firsts if isinstance(one, ast.Constant)]
    assert {403, 408, 413} <= {*raised}
    assert [status for status in raised if f"site.error_{status}" not in catalogue(language)] == []
