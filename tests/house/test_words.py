"""The words of the field: a private vocabulary makes readers translate, so each of its words has one that everybody knows.

Two tables: phrases, looked for in all that a reader meets, and words that no name of the code is made of. What data is called,
such as `sitting.json` in a run's folder, keeps its name. And a name lives once: no two files define the same one.
"""

from __future__ import annotations

import ast
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pytest

from tests.house.source import ROOT, Source, listed, written_by_us

PACKAGE = r"bridle/"
PEOPLES_SITTINGS = (
    r"bridle/playground/|bridle/stages/turns\.py|docs/playground\.md|"
    r"bridle/feedback/quality/|bridle/report/agreement\.|docs/labelling-quality\.md"
)


class Phrase(NamedTuple):
    not_this: str  # a regular expression; a space in it is any gap between words, in strings cut in two as well
    but: str
    where: str = ""  # a regular expression of paths, from their start: looked for there alone
    allowed: str = r"(?!)"  # the same: not looked for there


PHRASES = [
    Phrase(r"[Gg](?:o|oes|oing|one) on with", "resume"),
    Phrase(r"will not do\b", "is invalid: must be …"),
    Phrase(r"\bis no (?:run folder|database URL|comparison|causal)", "is not a …", where=r"(?!bridle/.*\.py)"),
    Phrase(r"(?<![Tt]here\s)\bis no (?!longer|more|better|less)", "is not a …", where=r"(?:bridle|docs)/.*\.py"),
    Phrase(r"\broomy\b", "prompts_that_fit"),
    Phrase(r"least_room", "min_prompt_tokens"),
    Phrase(r"encode_shown", "encode_demonstration"),
    Phrase(r"\bmerits?\b(?!\"\])|\bmerit_", "selection score"),
    Phrase(r"\b[Ss]ittings?\b(?!\.json)", "session (of a run)", allowed=PEOPLES_SITTINGS),
    Phrase(r"\b[Ss]ureness", "confidence"),
    Phrase(r"\b[Ll]ikelier\b", "more likely"),
    Phrase(r"\bin deviations of\b", "in standard deviations of"),
    Phrase(r"gradients?(?:'s|s') length|length of the gradient", "gradient norm"),
    Phrase(r"longer than this are shortened", "clipped to this norm"),
    Phrase(r"[Rr]andom number follows from", "random seed"),
    Phrase(r"\b[Ll]earnt by heart\b", "memorised"),
    Phrase(r"none the worse", "say what it means, or nothing"),
    Phrase(r"[Ww]hoever carries the work on", "Notes for maintainers"),
    Phrase(r"Where truth lies", "Sources of truth"),
    Phrase(
        r"\b(?:def )?(?:practised|placed|ranked|checked)\(", "a verb: practise, flatten, rank, check", where=PACKAGE
    ),
]
NAMES = {
    "figures": "metrics",
    "stats": "metrics",
    "beside": "second process",
    "merit": "selection score",
    "sitting": "session",
    "sureness": "confidence",
    "chances": "probabilities",
    "likelier": "more likely",
    "calibrate": "set_centre_and_scale",
}
WHOLE_NAMES = dict.fromkeys(  # `told_apart` and the like are plain English
    ("told", "tell", "tells", "says", "said", "shown"),
    "reported, report, counted, demonstrations: what it holds or does",
)
NAMES_ALLOWED = {  # people say things and are shown things
    **dict.fromkeys(WHOLE_NAMES, r"bridle/playground/"),
    "sitting": PEOPLES_SITTINGS,
    "tell": r"bridle/(?:playground/|feedback/importing/(?:importer|files/(?:source|tables|unpacking))\.py)",  # there Python's, of a file
}
NAMES_TWICE = {  # why several files may define it
    "train": "each trainer's loop",
    "Answer": "what an engine gives to a prompt, and what a person does to a task",
    **dict.fromkeys(
        ("pretrain", "sft", "dpo", "ppo", "grpo", "rloo", "rebel"), "a loss, and the call that trains by it"
    ),
}
GAP = r"""(?:\s+(?:\#\s+)?|\s*"\s*\n\s*f?"\s*)"""  # between two words: blanks, a new line (of a comment), a string cut in two


def phrases_in(path: str, text: str) -> list[str]:
    if path == "CHANGELOG.md":  # tells what is called otherwise now: `merit` → …
        text = re.sub(r"`[^`\n]*`", lambda code: "`" * len(code.group()), text)
    found = [
        f"{path}:{text.count(chr(10), 0, hit.start()) + 1}: {' '.join(hit.group().split())!r}: say {phrase.but!r}"
        for phrase in PHRASES
        if re.match(phrase.where, path) and not re.match(phrase.allowed, path)
        for hit in re.finditer(phrase.not_this.replace(" ", GAP), text)
    ]
    return list(dict.fromkeys(found))


def words_of(name: str) -> list[str]:
    """`text_figures` and `TextFigures`: text, figures."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_")


def names_in(source: Source) -> list[str]:
    """Each name once a file, where it is first written."""
    names = {token.string: token.start for token in reversed(source.tokens) if token.type == tokenize.NAME}
    faults = []
    for name, (line, _) in sorted(names.items(), key=lambda item: item[1]):
        word = next((word for word in words_of(name) if word in NAMES), name.lower())
        but = NAMES.get(word) or WHOLE_NAMES.get(word)
        if but and not re.match(NAMES_ALLOWED.get(word, r"(?!)"), source.path):
            faults.append(source.fault(line, f"{name}: say {but!r}"))
    return faults


def defined_twice(sources: Iterable[Source]) -> list[str]:
    """Functions and classes at the top of several files. A file's own, with a leading underscore, and commands, which are
    called what a user types, may be called as others are."""
    places: dict[str, list[str]] = defaultdict(list)
    for source in sources:
        for node in source.tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                command = any(re.search(r"\.(command|group)\(", ast.unparse(each)) for each in node.decorator_list)
                if node.name[0] != "_" and not command:
                    places[node.name].append(f"{source.path}:{node.lineno}")
    return [
        f"{name}: {', '.join(found)}" for name, found in places.items() if len(found) > 1 and name not in NAMES_TWICE
    ]


def texts() -> Iterator[tuple[str, str]]:
    """All that a user or a reader meets, by path."""
    endings = {".py", ".html", ".jinja", ".toml", ".c", ".h", ".js", ".css"}
    paths = [path for path in sorted((ROOT / "bridle").rglob("*")) if path.suffix in endings]
    paths += [path for ending in ("md", "py") for path in sorted((ROOT / "docs").rglob(f"*.{ending}"))]
    paths += [ROOT / name for name in ("README.md", "AGENTS.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return ((path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("docs/dpo.md", "an unfinished run is gone on with"),
        ("bridle/cli/demo.py", 'help="A demo that lies there unfinished is gone on "\n    "with."'),
        ("bridle/recipe/recipe.py", 'f"{key} = {value!r} will not "\n        f"do: {reason}"'),
        ("bridle/core/a.py", "# it will not\n# do so"),
        ("bridle/cli/report.py", 'f"{folder} is no run folder"'),
        ("bridle/models/policy.py", '"so it is no reward model"'),
        ("docs/data.md", "it is no comparison"),
        ("bridle/models/encoding.py", "def roomy(prompts): ..."),
        ("bridle/compute/checkpoint.py", "def merit_of(path): ..."),
        ("bridle/compute/checkpoint.py", "save(merit=1.0)"),
        ("docs/ppo.md", "at work since the run began, all sittings"),
        ("docs/ppo.md", "Sureness of the label"),
        ("docs/ppo.md", "the score in deviations\nof SFT's answers"),
        ("bridle/compute/optimizer.py", "the gradient's length is {norm}"),
        ("README.md", "Every random number follows from it."),
        ("AGENTS.md", "## Where truth lies"),
        ("CHANGELOG.md", "answers were learnt by heart"),
        ("bridle/stages/practice.py", "def practised(work): ..."),
    ],
)
def test_a_phrase_is_found(path: str, text: str) -> None:
    assert len(phrases_in(path, f"fine\n{text}")) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("docs/dpo.md", "it goes on, with a smaller rate; there is no reward model, and a curve is no evidence"),
        ("bridle/models/policy.py", '"there is no model at {folder}; there is\\nno other"\n"it is no longer there"'),
        ("bridle/playground/labelers.py", "`seen` counts the items judged before in this sitting"),
        ("bridle/project/run.py", 'read_json(folder / "sitting.json")'),
        ("docs/commands.md", "| `session.json` | seconds at work |"),
        ("bridle/compute/checkpoint.py", 'notes["merit"]'),  # the name that an earlier version wrote
        ("bridle/compute/checkpoint.py", 'notes["merit"]'),  # the name that an earlier version wrote
        ("CHANGELOG.md", "`merit` is `selection_score` now"),
        ("docs/ppo.md", "in standard deviations of SFT's answers; gradient norm; emerits"),
        ("bridle/feedback/rankings.py", "are checked (twice), and self.checked"),
        ("tests/core/test_files.py", "def ranked(): ..."),
    ],
)
def test_what_is_said_well_is_not(path: str, text: str) -> None:
    assert not phrases_in(path, text)


def test_a_name_of_ones_own_is_found() -> None:
    text = "def text_figures(told):\n    return Figures(told, stats=1)\n"
    assert [fault.split(": say")[0] for fault in names_in(Source("bridle/core/a.py", text))] == [
        "bridle/core/a.py:1: text_figures",
        "bridle/core/a.py:1: told",
        "bridle/core/a.py:2: Figures",
        "bridle/core/a.py:2: stats",
    ]
    assert not names_in(
        Source("bridle/core/a.py", "figure = Figure()  # the figures\nx = 'figures'\nstatistics = totalled")
    )
    assert not names_in(Source("bridle/playground/labelers.py", "sitting = 40"))
    assert names_in(Source("bridle/project/run.py", "class Sitting: ..."))


def test_a_name_that_lives_twice_is_found() -> None:
    files = [
        Source(f"bridle/core/{n}.py", f"def rows_of(): ...\nclass {n.upper()}: ...\ndef _own(): ...") for n in "ab"
    ]
    assert defined_twice(files) == ["rows_of: bridle/core/a.py:1, bridle/core/b.py:1"]
    assert not defined_twice([files[0], Source("bridle/cli/a.py", "@main.command()\ndef rows_of(): ...")])
    assert not defined_twice(Source(f"bridle/training/{n}.py", "def train():\n    def rows_of(): ...") for n in "ab")


def test_the_words_are_the_fields() -> None:
    faults = [fault for path, text in texts() for fault in phrases_in(path, text)]
    assert not faults, listed(faults)


def test_names_are_made_of_the_fields_words() -> None:
    faults = [fault for source in written_by_us() for fault in names_in(source)]
    assert not faults, listed(faults)


def test_a_name_lives_once() -> None:
    faults = defined_twice(written_by_us())
    assert not faults, listed(faults)
