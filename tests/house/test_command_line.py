"""The command line is a decision: a golden file holds every command and option, the documentation names each."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.house.source import ROOT, listed

GOLDEN = Path(__file__).with_name("cli.golden")
HELP_SECONDS = 0.4
HELP = "import sys; from bridle.cli.main import main; main([*sys.argv[1:], '--help'], standalone_mode=False)"


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Each command with the words that call it: `bridle`, `bridle train`, `bridle train sft`."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None, f"`{path} {name}` is listed but cannot be had"
            yield from commands(inner, f"{path} {name}")


def values(parameter: click.Parameter) -> str:
    """What may be given: `integer`, `json|text`; nothing for a flag."""
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return ""
    if choices := getattr(parameter.type, "choices", None):
        return " " + "|".join(map(str, choices))
    return f" {parameter.type.name}"


def described(main: click.Command) -> str:
    """Every command, argument and option with its help, as the golden file holds it."""
    lines = []
    for path, command in commands(main, "bridle"):
        lines.append(f"{path}: {' '.join((command.help or '').split())}")
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                names = "/".join([*parameter.opts, *parameter.secondary_opts])
                lines.append(f"    {names}{values(parameter)}: {' '.join((parameter.help or '').split())}")
            else:
                optional = "" if parameter.required else ", optional"
                lines.append(f"    {(parameter.name or '').upper()}{values(parameter)}{optional}")
    return "\n".join(lines) + "\n"


def without_help(main: click.Command) -> list[str]:
    return [line.strip() for line in described(main).splitlines() if line.endswith(": ")]


def undocumented(main: click.Command, text: str) -> list[str]:
    """The commands and options that the text does not name."""
    words = re.sub(r"\s+", " ", text)
    named = [path for path, _ in commands(main, "bridle")]
    named += [
        option
        for _, command in commands(main, "bridle")
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in parameter.opts + parameter.secondary_opts
        if option.startswith("--")
    ]
    return [name for name in dict.fromkeys(named) if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", words)]


@click.group(help="An example.")
def example() -> None: ...


@example.command(help="Learn  from\nexamples.")
@click.argument("model", required=False)
@click.option("--seed", type=int, help="Of every random choice.")
@click.option("--form", type=click.Choice(["json", "text"]), help="Of the answer.")
@click.option("--quick/--slow", help="How long.")
@click.option("--bare", is_flag=True)
def sft(model: str, seed: int, form: str, quick: bool, bare: bool) -> None: ...


def test_the_description_holds_every_option() -> None:
    assert described(example).splitlines() == [
        "bridle: An example.",
        "bridle sft: Learn from examples.",
        "    MODEL text, optional",
        "    --seed integer: Of every random choice.",
        "    --form json|text: Of the answer.",
        "    --quick/--slow: How long.",
        "    --bare: ",
    ]
    assert without_help(example) == ["--bare:"]


def test_what_is_not_documented_is_found() -> None:
    text = "`bridle sft --seed 7 --form-letter --quick/--slow` and `--bare`"
    assert undocumented(example, text) == ["--form"]
    assert undocumented(example, text.replace("bridle sft", "bridle")) == ["bridle sft", "--form"]


@pytest.fixture(scope="module")
def main() -> click.Command:
    from bridle.cli.main import main

    assert isinstance(main, click.Group)
    return main


def test_the_command_line_is_the_golden_one(main: click.Command) -> None:
    if os.environ.get("BRIDLE_UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(described(main), encoding="utf-8")
    assert described(main) == GOLDEN.read_text(encoding="utf-8"), (
        "the command line has changed: if that was decided, `make docs` writes tests/house/cli.golden again"
    )


def test_everything_has_a_help_text(main: click.Command) -> None:
    assert not without_help(main)


def test_everything_is_documented(main: click.Command) -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    missing = undocumented(main, "\n".join(page.read_text(encoding="utf-8") for page in pages))
    assert not missing, f"neither README.md nor docs/*.md names these:{listed(missing)}"


@pytest.mark.parametrize("verb", [[], ["train"], ["demo"]], ids=["bridle", "train", "demo"])
def test_help_comes_without_torch(verb: list[str]) -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", f"{HELP}; print([n for n in ('torch', 'transformers') if n in sys.modules])", *verb],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow  # by the clock
def test_help_comes_at_once() -> None:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", HELP], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    best = min(seconds)  # the machine may be busy with other tests: what it can do counts
    assert best < HELP_SECONDS, f"`bridle --help` took {best:.2f} s, where {HELP_SECONDS} s are allowed"
