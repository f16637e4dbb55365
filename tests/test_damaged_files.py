"""Files of a project that were damaged by hand: each is named in one sentence, or the report says so and shows the rest."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridle.core.errors import DataError
from bridle.core.forms import NUMBER, SECONDS, form_fault
from bridle.project.kept import require_whole
from bridle.report import drawings, guard
from tests.tiny_project import PLAYGROUND, bridle, complaint, done, settings

GONE = object()
DAMAGES = (GONE, None, "x", "", [], ["x"], {}, -3, 0, True, 10**400, 1e308, float("nan"), float("inf"))
CONTROL = {"name": "a control", "expectation": "nothing", "measured": 1.5, "holds": True}
OPERATOR = {"stage": "ppo", "operator": "mm", "on": "operator", "part": "improve", "seconds": 0.1, "calls": 2}
# By hand, one of each kind, in two projects: the file, the place in it, what stands there then. In a run one file alone.
Fault = tuple[str, tuple[str | int, ...], Any]
BY_HAND: tuple[tuple[Fault, ...], ...] = (
    (
        ("runs/ppo-0001/data.json", ("prompts", "kept"), GONE),
        ("runs/dpo-0001/data.json", (), []),
        ("runs/evaluate-ppo-0001/answers.jsonl", ("id",), GONE),
        ("runs/evaluate-dpo-0001/answers.jsonl", ("gold",), "x"),
        ("runs/grpo-0001/result.json", ("seconds",), "x"),
        ("runs/evaluate-unbridled-0001/result.json", ("kl_reference",), "sft"),
        ("runs/evaluate-base-0001/result.json", ("length",), "x"),
        ("runs/best-of-4-0001/result.json", ("frontier",), [3]),
        ("runs/label-0001/result.json", ("yardstick", "means"), 3),
        ("runs/unbridled-0001/parents.json", ("folders",), ["models/sft"]),
        ("runs/reward-0001/parents.json", ("stage",), "../reward"),
        ("runs/reward-slim-0001/session.json", ("parts", "save"), 3),
        ("runs/arithmetic-0001/metrics.jsonl", ("loss",), ["x"]),
        ("runs/pretrain-0001/metrics.jsonl", ("step",), 10**400),
        ("controls.json", (0, "name"), GONE),
        ("summary.json", ("seconds",), "long"),
        ("profile.json", ("bridle", "operators"), [{}]),
    ),
    (("controls.json", (), {"name": "a"}), ("summary.json", ("device",), GONE), ("profile.json", ("bridle",), None)),
)


@pytest.fixture
def project(finished_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(finished_demo, tmp_path / "project"))
    (folder / "controls.json").write_text(json.dumps([CONTROL]))
    (folder / "profile.json").write_text(json.dumps({"bridle": {"title": "bridle demo", "operators": [OPERATOR]}}))
    monkeypatch.setattr(drawings, "to_svg", lambda figure, label: "")  # what takes most of a report's time
    monkeypatch.setattr(guard, "save_svg", lambda figure, label, path: None)
    return folder


def places(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


def damage(path: Path, at: tuple[str | int, ...], put: Any) -> None:
    """Of lines of JSON the second one."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else []
    whole = [json.loads(lines[1] if lines else path.read_text())]
    *above, last = (0, *at)
    inner: Any = whole
    for key in above:
        inner = inner[key]
    if put is GONE:
        del inner[last]
    else:
        inner[last] = put
    text = json.dumps(whole[0]) if whole else ""
    path.write_text("\n".join([lines[0], text, *lines[2:]]) + "\n" if lines else text)


@pytest.mark.parametrize("faults", BY_HAND)
def test_the_report_names_what_is_damaged_and_shows_the_rest(faults: tuple[Fault, ...], project: Path) -> None:
    for file, at, put in faults:
        damage(project / file, at, put)
    found = bridle("report", "--project", project)
    assert found.exit_code == 0 and "unexpected" not in found.stderr, found.stderr
    page = (project / "report.html").read_text()
    for file, _, _ in faults:
        told = [line for line in found.stderr.splitlines() if file in line]
        assert len(told) == 1 and "damaged" in told[0] and file in page, file
    assert "Imitating demonstrations" in page


@pytest.mark.parametrize(
    ("words", "file", "at", "put"),
    [
        ("report ppo-0001", *BY_HAND[0][0]),
        ("evaluate dpo sft", *BY_HAND[0][3]),
        ("evaluate ppo sft", "runs/evaluate-ppo-0001/parents.json", ("key",), 3),
        ("train ppo", "models.json", ("models/sft", "files"), []),
        ("demo", "demo.json", ("threads",), "x"),
        ("demo", "demo.json", ("arithmetic",), {"products": 3}),
        ("demo", "runs/evaluate-sft-0001/result.json", ("gold",), "x"),
    ],
)
def test_every_other_verb_names_it_in_one_sentence(
    words: str, file: str, at: tuple[str | int, ...], put: Any, project: Path
) -> None:
    damage(project / file, at, put)
    more = ["--out", project, *settings(PLAYGROUND)] if words == "demo" else ["--project", project]
    refused = bridle(*words.split(), *more)
    assert refused.exit_code == 1 and f"{file} is damaged" in complaint(refused), refused.stderr


def test_whatever_stands_in_a_run_is_of_its_form_or_named(finished_demo: Path, tmp_path: Path) -> None:
    """A seeded slice of every field of every file with everything that can stand there."""
    drawn = random.Random(14)
    files = [
        path for pattern in ("*.json", "answers.jsonl") for path in sorted(finished_demo.glob(f"runs/*/{pattern}"))
    ]
    refused = 0
    for number in range(100):
        source = drawn.choice(files)
        run = Path(shutil.copytree(source.parent, tmp_path / str(number), ignore=shutil.ignore_patterns("checkpoints")))
        text = source.read_text()
        at = drawn.choice(list(places(json.loads(text.splitlines()[1] if source.suffix == ".jsonl" else text))))
        damage(run / source.name, at, drawn.choice(DAMAGES) if at else drawn.choice(DAMAGES[1:]))
        try:
            require_whole(run)
        except DataError as error:
            refused += 1
            assert f"{run / source.name} is damaged" in str(error) or "not valid JSON" in str(error)
    assert refused > 40


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({}, "it needs stage as str, got no stage"),
        ({"stage": 3}, "it needs stage as str, got stage = 3"),
        ({"stage": "a", "threads": 0}, "it needs threads as a whole number from 1 to 8 or null, got threads = 0"),
        ({"stage": "a", "threads": True}, "it needs threads as a whole number from 1 to 8 or null, got threads = True"),
        ({"stage": "a", "parts": {"x": {"seconds": -1}}}, "it needs parts.x.seconds as float of at least 0, got parts.x.seconds = -1"),
        ({"stage": "a", "notes": ["a", 2]}, "it needs notes[1] as str, got notes[1] = 2"),
        ({"stage": "a", "kl": float("inf")}, "it needs kl as float or null, got kl = inf"),
        ({"stage": "a", "kl": float("nan"), "threads": None, "notes": [], "parts": {}}, ""),
    ],
)  # fmt: skip
def test_a_form_says_where_a_value_is_not_of_it(value: Any, fault: str) -> None:
    form = {
        "stage": str,
        "threads?": (range(1, 9), None),
        "parts?": {...: {"seconds": SECONDS}},
        "notes?": [str],
        ...: NUMBER,
    }
    assert form_fault(value, form) == fault


def test_a_key_that_stands_twice_is_damage(finished_demo: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_demo / "runs/sample-0001", tmp_path / "sample-0001"))
    (run / "result.json").write_text('{"prompts": 3, "prompts": 4}')
    with pytest.raises(DataError, match=r"result.json is not valid JSON: it says 'prompts' twice"):
        require_whole(run)


def test_a_report_of_a_whole_project_says_nothing_of_damage(project: Path) -> None:
    assert "damaged" not in done("report", "--project", project)
