"""The harness: bounds mean what they say, the hash follows what is imported, and what is committed is what was run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import __main__ as command
from experiments.harness import (
    RESULTS,
    Claim,
    Experiment,
    code_hash,
    essence,
    estimate,
    judged,
    judged_again,
    page,
    run,
    save,
    saved,
    summary,
    threshold,
)

ROWS = [{"gain": 0.1}, {"gain": 0.3}, {"gain": 0.5}]  # 0.3 ± 4.303 · 0.2 / √3: -0.197 to 0.797


@pytest.mark.parametrize(
    ("claim", "holds"),
    [
        (Claim("gain", "", "mean", at_least=0.29), True),
        (Claim("gain", "", "mean", at_least=0.31), False),
        (Claim("gain", "", "interval", at_least=-0.2), True),
        (Claim("gain", "", "interval", at_least=-0.19), False),
        (Claim("gain", "", "interval", at_most=0.8), True),
        (Claim("gain", "", "interval", at_most=0.79), False),
        (Claim("gain", "", "every", at_least=0.1, at_most=0.5), True),
        (Claim("gain", "", "every", at_least=0.2), False),
        (Claim("gain", "", "unrefuted", at_least=0, at_most=0), True),
        (Claim("gain", "", "unrefuted", at_most=-0.2), False),
        (Claim("gain", "", "unrefuted", at_least=0.8), False),
        (Claim("gain", "told"), True),
        (Claim("no such figure", "", at_least=0), False),
    ],
)
def test_a_bound_means_what_it_says(claim: Claim, holds: bool) -> None:
    experiment = Experiment("E0", "a test", "", lambda seed: ROWS[seed], range(3), [Claim("gain", "told"), claim])
    assert (judged(experiment, ROWS)["verdict"] == "holds") == holds
    control = Experiment("E0", "", "", lambda seed: ROWS[seed], range(3), [Claim("gain", "told")], [claim])
    assert (judged(control, ROWS)["verdict"] == "holds") == holds, "a control counts as a claim does"


def test_shares_of_seeds_have_wilsons_interval() -> None:
    rate, low, high = estimate([1.0, 1.0, 1.0, 1.0], yes_no=True)
    assert rate == 1 and low < 0.6 and high == 1
    assert estimate([0.0, 0.0, 0.0]) == (0.0, 0.0, 0.0), (
        "three figures that happen to be 0 are not three seeds in which nothing happened"
    )
    assert estimate([2.0, 2.0]) == (2.0, 2.0, 2.0) and estimate([0.5]) == (0.5, 0.5, 0.5)


def test_an_interval_is_shown_where_seeds_differ() -> None:
    shown = [{"gain": 0.5, "never": 0.0, "stopped": 0.0}, {"gain": 0.7, "never": 0.0, "stopped": 0.0}]
    claims = [Claim("gain", "a gain"), Claim("never", "told"), Claim("stopped", "a stop", yes_no=True)]
    result = judged(Experiment("E0", "", "", lambda seed: shown[seed], range(2), claims), shown)
    table = summary(result | {"seconds": 0.0, "machine": "", "code_hash": ""})[-3:]
    assert [row.split("|")[3].strip() for row in table] == ["-0.6706 to 1.871", "", "0 to 0.7935"]


def test_what_is_saved_is_told_again_alike(tmp_path: Path) -> None:
    """Every seed and its value, the bounds without infinities, and the table that a reader sees."""
    experiment = Experiment(
        "E5", "a title", "A world.", lambda seed: {"gain": 0.2 * seed}, (1, 2, 4),
        [Claim("gain", "the gain", at_least=-1)], [Claim("gain", "again", "every", at_least=0.3)],
    )  # fmt: skip
    result = run(experiment, "experiments.tabular")
    save(result, tmp_path)
    kept = json.loads((tmp_path / "e5.json").read_text())
    assert kept["seeds"] == [{"seed": n, "value": 0.2 * n, "gain": 0.2 * n} for n in (1, 2, 4)]
    assert kept["verdict"] == "fails" and kept["value"] == pytest.approx(1.4 / 3)
    assert kept["threshold"][0] == {"figure": "gain", "meaning": "the gain", "of": "interval", "at_least": -1}
    assert {"low", "high", "machine", "code_hash"} <= kept.keys()
    assert saved("E5", tmp_path) == judged_again(experiment, kept) == kept
    shown = (tmp_path / "e5.md").read_text()
    assert "| gain | 0.2 | 0.4 | 0.8 |" in shown and "**no**" in shown and "| control: again |" in shown
    assert saved("E6", tmp_path) is None


def written(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_hash_follows_imports_and_nothing_else(tmp_path: Path) -> None:
    written(
        tmp_path,
        experiments__one="from bridle.maths import losses\nimport json\nX = 1\n",
        experiments__harness="Y = 1\n",
        bridle__maths__losses="def f():\n    from bridle.deep.inner import g\n    return g()\n",
        bridle__deep__inner="from experiments import harness\ndef g(): return 1\n",
        bridle__maths__other="Z = 1\n",
    )

    def now() -> str:
        command_cache()
        return code_hash("experiments.one", tmp_path)

    before = now()
    for untouched in ("bridle/maths/other.py", "experiments/harness.py"):
        (tmp_path / untouched).write_text("Z = 2\n")
        assert now() == before, f"{untouched} is none of its modules"
    inner = tmp_path / "bridle/deep/inner.py"
    inner.write_text(
        '"""Says more."""\nfrom experiments import harness\n\n\ndef g(): return 1  # one\n'.replace("\n\n\n", "\n")
    )
    assert now() == before, "comments, docstrings and blank lines change nothing"
    inner.write_text("from experiments import harness\ndef g(): return 2\n")
    assert (deeper := now()) != before, "an imported module of an imported module, imported late"
    (tmp_path / "bridle/deep/world.toml").write_text("x = 1\n")
    assert now() != deeper, "the data that lies beside it"


def command_cache() -> None:
    from experiments.harness import imported

    imported.cache_clear()


def test_what_a_file_does_is_its_text_without_words(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(
        '"""Doc."""\n\nX = "# no comment"  # a comment\n\ndef f():\n    """Doc\n\n    more."""\n    return 1\n'
    )
    assert essence(file) == 'X = "# no comment"\ndef f():\n    return 1'


def rounded(found: Any) -> Any:
    """To nine digits: another processor adds up the same numbers in another order."""
    if isinstance(found, dict):
        return {name: rounded(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [rounded(value) for value in found]
    if isinstance(found, float):
        return float(f"{found:.9g}") if abs(found) > 1e-12 else 0.0
    return found


@pytest.mark.parametrize("name", command.MODULES)
def test_what_is_committed_is_what_was_run(name: str) -> None:
    """Its bounds are those of the code, its tables those of its figures, and the page shows them."""
    result, experiment = saved(name), command.experiment_of(name)
    assert result is not None, f"{name} was never run: make experiments ARGS={name}"
    assert result["threshold"] == json.loads(json.dumps(threshold(experiment))), "bounds are written before the run"
    assert [row["seed"] for row in result["seeds"]] == list(experiment.seeds), "every seed is there"
    assert rounded(judged_again(experiment, result)) == rounded(result)
    assert (RESULTS / f"{name.lower()}.md").read_text() == page(result)
    assert "\n".join(summary(result)) in command.PAGE.read_text()


def test_one_seed_is_run_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    experiment: Any = Experiment("E2", "", "", lambda seed: {"gain": seed / 8}, range(3), [Claim("gain", "")])
    monkeypatch.setattr(command, "experiment_of", lambda name: experiment)
    assert command.main(["E2", "--seed", "3"]) == 0
    assert capsys.readouterr().out == "seed 3: gain 0.375\n"
    with pytest.raises(SystemExit):
        command.main(["E99"])
    assert "there is no experiment 'E99'" in capsys.readouterr().err


def test_only_what_changed_is_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran, shown = [], tmp_path / "page.md"
    shown.write_text("# Experiments\n<!-- E2 -->\n<!-- end -->\nWords.\n")

    def measure(seed: int) -> dict[str, float]:
        ran.append(seed)
        return {"gain": float(seed)}

    experiment = Experiment("E2", "", "", measure, range(3), [Claim("gain", "what is gained", at_least=-10)])
    kept: dict[str, Any] = {}
    monkeypatch.setattr(command, "MODULES", {"E2": "experiments.harness"})
    monkeypatch.setattr(command, "experiment_of", lambda name: experiment)
    monkeypatch.setattr(command, "save", lambda result: kept.update({result["name"]: result}))
    monkeypatch.setattr(command, "saved", lambda name: kept.get(name))
    assert command.main(["E2"], shown) == 0 and ran == [0, 1, 2]
    assert command.main(["E2"], shown) == 0 and ran == [0, 1, 2], "nothing changed"
    assert "| what is gained | 1 |" in shown.read_text() and shown.read_text().endswith("<!-- end -->\nWords.\n")
    assert command.main(["E2", "--again"], shown) == 0 and len(ran) == 6
    kept["E2"]["code_hash"] = "of other code"
    assert command.main(["E2"], shown) == 0 and len(ran) == 9
