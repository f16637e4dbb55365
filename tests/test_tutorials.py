"""The tutorials: every block of each runs in order, on a tiny model, and prints what the text says, within its bands.

A block of `sh` is commands of bridle (and `cd`), run in this process; one of `python` is run in one namespace for its page; one of `text`
names metrics that the block above printed, each with the band in which its last value lies.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import bridle
from bridle.cli.main import main
from bridle.models.decoder import Decoder, initialise
from bridle.models.files.new_tokenizer import train_tokenizer
from bridle.models.policy import Policy
from bridle.stages.methods import METHODS
from tests.api.dataset import Dataset
from tests.api.test_trl_scripts import DATA, NUMBERS, assistant, user
from tests.house.source import ROOT
from tests.models.tiny import SHAPES, TEXTS, VOCABULARY
from tests.rewards.judge.scripted import Scripted, completion, scripted
from tests.test_own_model import TURNS
from tests.tiny_project import done, settings
from tests.training.runs import DEVICE

TUTORIALS = ROOT / "docs" / "tutorials"
PAGES = ["first-steps", "labelers", "your-own-method", "a-judge-alone", "from-trl"]
IN_CHINESE = ["first-steps", "labelers"]
TINY = settings(  # rates at which so small a model learns from so few rows
    {
        "model.precision": "float32",
        "sampling.max_new_tokens": 12,
        "reward.learning_rate": 1e-2,
        "dpo.learning_rate": 1e-3,
    }
)
BLOCK = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BAND = re.compile(r"(.+?) +(-?[\d.]+) to (-?[\d.]+)")
KTO = {
    "trl-lib/kto-mix-14k": [
        {"prompt": [user(f"What is {i}?")], "completion": [assistant(f"It is {i}." if i % 2 else "No.")], "label": i % 2 == 1}
        for i in NUMBERS
    ]
}  # fmt: skip
THINGS = ["cats", "rain", "bread", "the moon", "old shoes", "spoons", "tea", "maps"]
KNOWN = [
    (ask.format(thing), answer.format(thing))
    for thing in THINGS
    for ask in ("Tell me about {}.", "What is good about {}?", "Say something on {}.")
    for answer in ("{} are good.", "Many people like {}.", "No.")
]


class Block(NamedTuple):
    kind: str
    text: str
    line: int  # where its fence stands


def blocks(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    return [Block(found[1], found[2], text.count("\n", 0, found.start()) + 1) for found in BLOCK.finditer(text)]


# ------------------------------------------------------------------------------------------------- what a page finds


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a chat template that was taught to answer in a few words, and to stop."""
    shape = replace(SHAPES["llama"], max_positions=2048)
    module = Decoder(shape)
    initialise(module, shape.layers, torch.Generator().manual_seed(0))
    template = replace(train_tokenizer([*TEXTS, *(text for pair in KNOWN for text in pair)], VOCABULARY), source=TURNS)
    model = bridle.Model(Policy(module, template, "taught"), DEVICE)
    bridle.sft(model, KNOWN, epochs=12, batch_size=8, learning_rate=1e-2, on_log=lambda *_: None)
    folder = tmp_path_factory.mktemp("taught") / "my-model"
    model.save(folder)
    return folder


@pytest.fixture
def machine(tmp_path: Path, taught: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with `my-model` in it, data sets as the hub has them, an endpoint at `JUDGE_URL`; what a page adds to METHODS goes again."""
    shutil.copytree(taught, tmp_path / "my-model")
    stand_in = types.ModuleType("datasets")
    monkeypatch.setitem(stand_in.__dict__, "load_dataset", lambda name, split: Dataset((DATA | KTO)[name]))
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    monkeypatch.chdir(tmp_path)
    before = dict(METHODS)
    with scripted(likes_the_longer) as endpoint:
        monkeypatch.setenv("JUDGE_URL", endpoint.address)
        yield tmp_path
    METHODS.clear()
    METHODS.update(before)


def likes_the_longer(number: int, body: dict[str, Any]) -> Scripted:
    text = body["messages"][0]["content"]
    mark = text.split("the mark ")[1][:8]
    first, second = [piece.split("---\n")[-1] for piece in text.split(f"--- {mark} ---")[:-1]][1:]
    return completion("A" if len(first) > len(second) else "B")


# ------------------------------------------------------------------------------------------------- how it is run


def shell(text: str, page: Path, space: dict[str, Any], chdir: Callable[[str], None]) -> str:
    """Commands of bridle, `init` with the settings of a tiny project before its own; what they printed."""
    printed = ""
    for line in text.splitlines():
        words = shlex.split(os.path.expandvars(line), comments=True)
        if words[0] == "cd":
            chdir(words[1])
        else:
            assert words[0] == "bridle", line
            printed += done(words[1], *(TINY if words[1] == "init" else []), *words[2:])
    return printed


def python(text: str, page: Path, space: dict[str, Any], chdir: Callable[[str], None]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(text, str(page), "exec"), space)
    return printed.getvalue()


RUN = {"sh": shell, "python": python}


def out_of_band(text: str, printed: str) -> list[str]:
    """What a block of bands says and the output before it does not."""
    faults = []
    for line in text.splitlines():
        found = BAND.fullmatch(line)
        assert found, f"not `name low to high`: {line}"
        name, low, high = found.groups()
        values = re.findall(rf"(?<!\S){re.escape(name)} +(-?[\d.]+(?:e-?\d+)?)", printed)
        if not values or not float(low) <= float(values[-1]) <= float(high):
            faults.append(f"{line}: printed was {values[-1] if values else 'nothing of it'}")
    return faults


def walk(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page, printed = TUTORIALS / f"{name}.md", ""
    space: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        place = f"{page.name}:{block.line}"
        if block.kind == "text":
            assert not (faults := out_of_band(block.text, printed)), f"{place}: {faults}"
        else:
            print(place)  # where it was, if it fails
            printed = RUN[block.kind](block.text, page, space, monkeypatch.chdir)


@pytest.mark.parametrize("name", PAGES)
def test_every_block_runs(name: str, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk(name, monkeypatch)


# ------------------------------------------------------------------------------------------------- what stands in the text


def test_a_value_out_of_its_band_is_found() -> None:
    printed = "a\n  rate   0.5\nb\n  rate   0.75\nkl -1e-3\n"
    assert not out_of_band("rate  0.7 to 0.8\nkl -1 to 0", printed)
    assert len(out_of_band("rate  0.4 to 0.6\nerate 0 to 1\nr 0 to 1", printed)) == 3


def test_all_pages_are_tested_and_listed() -> None:
    found = {path.name for path in TUTORIALS.glob("*.md")} - {"README.md"}
    assert found == {f"{name}.md" for name in PAGES} | {f"{name}.zh.md" for name in IN_CHINESE}
    listed = (TUTORIALS / "README.md").read_text(encoding="utf-8")
    assert all(f"({name})" in listed for name in found)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_short_and_its_blocks_are_of_known_kinds(name: str) -> None:
    page = TUTORIALS / f"{name}.md"
    assert 60 <= len(page.read_text(encoding="utf-8").splitlines()) <= 150
    assert {block.kind for block in blocks(page)} <= {"sh", "python", "text"}


@pytest.mark.parametrize("name", IN_CHINESE)
def test_the_chinese_page_has_the_same_blocks(name: str) -> None:
    english, chinese = TUTORIALS / f"{name}.md", TUTORIALS / f"{name}.zh.md"
    assert [block[:2] for block in blocks(english)] == [block[:2] for block in blocks(chinese)]
    assert outline(english) == outline(chinese), "headings and pictures"


def outline(page: Path) -> list[str]:
    """Levels of the headings and the files of the pictures, in order, outside of blocks."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    return [found[1] or found[2] for found in re.finditer(r"^(#+) |!\[[^\]]*\]\(([^)]+)\)", text, re.MULTILINE)]


@pytest.mark.parametrize("page", sorted(TUTORIALS.glob("*.md")), ids=lambda page: page.name)
def test_the_calls_and_verbs_in_its_text_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    calls = set(re.findall(r"\bbridle\.(\w+)\(", text))
    verbs = set(re.findall(r"(?:`|^)bridle ([a-z]+)", text, re.MULTILINE))
    assert calls <= set(bridle.__all__) and verbs <= set(main.commands)


LINK = re.compile(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)")


def anchors(page: Path) -> set[str]:
    """Those that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", sorted(TUTORIALS.glob("*.md")), ids=lambda page: page.name)
def test_its_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for target, anchor in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        there = (page.parent / target).resolve() if target else page
        if not there.is_file() or (anchor and anchor not in anchors(there)):
            wrong.append(f"{target}#{anchor}")
    assert not wrong
