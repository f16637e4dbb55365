"""Through the command line: what others wrote, wherever it comes from, reaches the terminal as text."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from bridle.kernels import kernels
from tests.tiny_project import SHAPE, bridle, done, settings

FORGED = "bridle: all is well"
KINDS = {
    "escape": f"\x1b]0;title\x07\x1b[2J\x1b[1A{FORGED}",
    "return": f"\r{FORGED}",
    "backspace": f"{chr(8) * 200}{FORGED}",
    "line end": f"\n{FORGED}",
    "C1": f"\x9b2J\x85{FORGED}",
    "override": f"\u202e{FORGED[::-1]}\u2066",
    "separator": f"\u2028{FORGED}\u2029\x0b\x0c\x1c",
    "byte": "\udcff",  # of a name that is not UTF-8, as Python hands it on
    "NUL": "\0",
    "long": "x" * 10**6,
}
ALL = "".join(text for kind, text in KINDS.items() if kind not in ("long", "byte", "NUL"))
OBEYED = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def obeyed(text: str) -> list[str]:
    """The signs that a terminal would not simply show."""
    return [
        sign
        for sign in set(text) - {"\n"}
        if unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(sign) in OBEYED
    ]


def is_text(found: Result) -> str:
    """All that was printed, in which nothing is obeyed, nothing forges a line of ours, and no line is without end."""
    shown = found.stdout + found.stderr
    assert not obeyed(shown) and not any(line.startswith(FORGED) for line in shown.splitlines())
    assert max(map(len, shown.splitlines()), default=0) <= 2_000
    assert "unexpected" not in shown
    return shown


@pytest.fixture
def project(tmp_path: Path) -> Path:
    done("init", tmp_path / "p", *settings(SHAPE))
    return tmp_path / "p"


def with_field(evil: str, project: Path) -> list[str | Path]:
    """A file whose rows are kept, and have a field of that name besides."""
    rows = [{"prompt": f"Question {i}?", "completion": f"Answer {i}.", evil: i} for i in range(3)]
    (project / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ["import", project / "rows.jsonl", "--project", project]


def without_rows(evil: str, project: Path) -> list[str | Path]:
    (project / "rows.jsonl").write_text(json.dumps({evil: evil}))
    return ["import", project / "rows.jsonl", "--project", project]


def in_file_name(evil: str, project: Path) -> list[str | Path]:
    return ["import", project / f"rows{evil}.jsonl", "--project", project]


def in_folder_name(evil: str, project: Path) -> list[str | Path]:
    return ["init", project.parent / f"new{evil}"]


def in_key(evil: str, project: Path) -> list[str | Path]:
    return ["import", "x", "--project", project, "--set", f"ppo.steps{evil}=1"]


def in_path_setting(evil: str, project: Path) -> list[str | Path]:
    return ["init", project.parent / "other", "--set", f"model.path={evil}", "--set", "ppo.steps=0"]


def in_value(evil: str, project: Path) -> list[str | Path]:
    return ["import", "x", "--project", project, "--set", f"reward_source=[{{name={json.dumps(evil)}, kind=3}}]"]


def in_recipe(evil: str, project: Path) -> list[str | Path]:
    (project / "bridle.toml").write_text(f'[ppo]\n"steps{escaped(evil)}" = "{escaped(evil)}"\n')
    return ["import", "x", "--project", project]


def in_world(evil: str, project: Path) -> list[str | Path]:
    (project / "world.toml").write_text(f'"{escaped(evil)}" = 3\n')
    return ["demo", "--out", project.parent / "d", "--world", project / "world.toml"]


def in_database(evil: str, project: Path) -> list[str | Path]:
    """A database of another program, whose table has that name."""
    (project / "store.sqlite").unlink(missing_ok=True)
    with sqlite3.connect(project / "store.sqlite") as connection:
        connection.execute(f'CREATE TABLE "{evil}" (a)')
    connection.close()
    return with_field("more", project)


def in_verb(evil: str, project: Path) -> list[str | Path]:
    return [f"x{evil}"]


def in_method(evil: str, project: Path) -> list[str | Path]:
    return ["train", f"x{evil}", "--project", project]


def in_option(evil: str, project: Path) -> list[str | Path]:
    return ["evaluate", "a", "--by", evil, "--project", project]


def in_model_name(evil: str, project: Path) -> list[str | Path]:
    return ["evaluate", f"x{evil}", "--project", project]


def escaped(text: str) -> str:
    """As a string of TOML."""
    return "".join(sign if sign.isalnum() else f"\\U{ord(sign):08x}" for sign in text)


OF_A_NAME = set(KINDS) - {"NUL", "long"}  # what the name of a file can hold
PLACES: dict[Callable[[str, Path], list[str | Path]], set[str]] = {
    with_field: set(KINDS),
    without_rows: set(KINDS),
    in_file_name: OF_A_NAME,
    in_folder_name: OF_A_NAME,
    in_key: set(KINDS),
    in_path_setting: set(KINDS),
    in_value: set(KINDS) - {"byte"},
    in_recipe: set(KINDS) - {"byte"},
    in_world: set(KINDS) - {"byte"},
    in_database: set(KINDS) - {"byte", "NUL"},
    in_verb: set(KINDS),
    in_method: set(KINDS),
    in_option: set(KINDS),
    in_model_name: OF_A_NAME,
}


EACH = [(place, sorted(kinds)[number % 3 :: 3]) for number, (place, kinds) in enumerate(PLACES.items())]


def test_every_kind_is_met_in_some_place() -> None:
    assert {kind for _, kinds in EACH for kind in kinds} == set(KINDS)


@pytest.mark.parametrize(("place", "kinds"), EACH, ids=lambda value: getattr(value, "__name__", ""))
def test_it_is_shown_and_not_obeyed(
    place: Callable[[str, Path], list[str | Path]], kinds: list[str], project: Path
) -> None:
    """A third of the kinds in each place, and the short ones all at once."""
    for kind in kinds:
        assert is_text(bridle(*place(KINDS[kind], project))).strip(), kind
    if place is not in_verb:  # which comes before any option
        is_text(bridle(*place(ALL, project), "--debug"))


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_every_kind_is_shown_in_every_place(place: Callable[[str, Path], list[str | Path]], project: Path) -> None:
    for kind in sorted(PLACES[place]):
        assert is_text(bridle(*place(KINDS[kind], project))).strip(), kind


def test_a_long_name_is_cut_and_its_length_is_told(project: Path) -> None:
    name = "x" * 2**20
    assert "1,048,576 characters" in is_text(bridle(*with_field(name, project)))
    for place in (in_key, in_recipe, in_method):
        shown = is_text(bridle(*place(name, project)))
        assert re.search(r"1,04\d,\d{3} characters", shown) and len(shown) < 3_000, place


def test_json_keeps_what_was_said(project: Path) -> None:
    field = f"{ALL}\0\x7f"
    found = bridle(*with_field(field, project), "--json")
    is_text(found)
    assert json.loads(found.stdout)["unread"] == {field: 3}


def model_of_others(finished_demo: Path, project: Path) -> Path:
    """A project's `sft`, whose folder somebody else wrote."""
    (project / "models").mkdir()
    shutil.copytree(finished_demo / "models/sft", project / "models/sft")
    return project / "models/sft"


def raising_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(f"{{{{ raise_exception({json.dumps(ALL)}) }}}}")


def odd_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": ALL, "architectures": [ALL]}))


def odd_token(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": ALL}))


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text(ALL)


@pytest.mark.parametrize("fault", [raising_template, odd_type, odd_token, no_json])
def test_a_model_folder_of_others_is_quoted_and_not_obeyed(
    fault: Callable[[Path], None], finished_demo: Path, project: Path
) -> None:
    fault(model_of_others(finished_demo, project))
    bridle(*with_field("more", project))
    for words in (
        ["sample"],
        ["sample", "--debug"],
        ["train", "pretrain", "--set", f"model.path={project / 'models/sft'}"],
    ):
        found = bridle(*words, "--project", project)
        is_text(found)
        assert found.exit_code == 1, found.output


def test_what_a_compiler_says_is_quoted(finished_demo: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(dtype: object) -> None:
        raise kernels.Unavailable(f"cc failed: {ALL}")

    monkeypatch.setattr(kernels, "built", failing)
    model_of_others(finished_demo, project)
    bridle(*with_field("more", project))
    assert "plain kernels (cc failed: ␛]0;title␇␛[2J" in is_text(bridle("sample", "--project", project))
    assert "cc failed: ␛]0;title␇␛[2J" in is_text(
        bridle("sample", "--project", project, "--set", "model.kernels=compiled")
    )


def test_what_a_library_writes_goes_the_same_way_out(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(options: object) -> None:
        sys.stderr.write(f"warning: {KINDS['escape']}{KINDS['override']}\n")
        print(KINDS["separator"])
        raise ValueError(ALL)

    monkeypatch.setattr("bridle.cli.project.open_project", noisy)
    found = bridle("import", "x", "--project", project, "--debug")
    assert not obeyed(found.stdout + found.stderr)
    assert "warning: ␛]0;title" in found.stderr and "ValueError: ␛]0;title" in found.stderr
    assert "\\u2028" in found.stdout and not any(line.startswith(FORGED) for line in found.stderr.splitlines())
