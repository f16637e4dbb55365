"""The benchmarks' harness with contestants that do nothing: turns, steps, environments, results, tables. No peer is needed."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bridle.core.records import Prompt
from tests.serving_app import served

FOLDER = Path(__file__).parents[2] / "benchmarks"

# Steps of 10 and 30 ms, the first ten times as slow. `slow` is told of every other step alone.
SCRIPT = """
import os, time
from harness import Contestant, Stage, Trial, main

def fast(trial: Trial) -> None:
    print("a line of somebody else's")
    for step in range(trial.steps):
        time.sleep(0.01 if step else 0.1)
        trial.step(step)

def slow(trial: Trial) -> None:
    trial.notes["variable"] = os.environ["BENCH_TEST"]
    for step in range(trial.steps):
        time.sleep(0.03 if step else 0.3)
        if step % 2 == 0:
            trial.step(step)

def broken(trial: Trial) -> None:
    raise ValueError("no such thing")

contestants = [
    Contestant("bridle", fast), Contestant("trl best", slow, variables={"BENCH_TEST": "1"}), Contestant("broken", broken),
    Contestant("absent", fast, "trl"),
]
main(Stage("sft", "nothing at all", contestants, steps=5, rounds=2, models=(), tokens={"": 100}))
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = folder / "fake.py"
    script.write_text(SCRIPT, "utf-8")
    environment = {**os.environ, "PYTHONPATH": str(FOLDER), "BRIDLE_BENCH_TRL": str(folder / "nowhere")}
    command = [sys.executable, str(script), "--results", str(folder / "results"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`benchmarks/` is no package: its files import one another as scripts do."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield import_module("tables")
    for name in [name for name, module in sys.modules.items() if str(FOLDER) in str(vars(module).get("__file__"))]:
        del sys.modules[name]


def test_contestants_take_turns_in_processes_of_their_own(tmp_path: Path, tables: ModuleType) -> None:
    done = run(tmp_path)
    result: dict[str, Any] = json.loads((tmp_path / "results" / "sft.json").read_text("utf-8"))
    assert [(row["contestant"], row["round"]) for row in result["rows"]] == [
        ("bridle", 0), ("trl best", 0), ("bridle", 1), ("trl best", 1)
    ]  # fmt: skip
    assert [len(row["seconds"][""]) for row in result["rows"]] == [4, 2, 4, 2]  # the first step is none of them
    assert all(s >= 0.01 for row in result["rows"] for s in row["seconds"][""])
    assert all(row["first_step_s"] >= 0.1 and row["peak_mb"] > 5 and row["others"] >= 0 for row in result["rows"])
    assert [row["notes"] for row in result["rows"]] == [{}, {"variable": "1"}] * 2
    assert (
        result["failed"]["broken"] == "ValueError: no such thing" and "make bench-setup" in result["failed"]["absent"]
    )
    assert done.returncode == 1 and result["threads"] == 1 and result["commit"] and not result["quick"]

    page = tables.write({"sft": result})
    ratio = tables.figures(result, "trl best")[""].median / tables.figures(result, "bridle")[""].median
    assert f"**{ratio:.2f}**" in page and "ValueError" in page


def test_steps_that_are_not_told_of_share_the_time(tables: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = import_module("harness")
    trial, now = harness.Trial(9, False), [100.0]
    monkeypatch.setattr(harness.time, "perf_counter", lambda: now[0])
    for step, case, at in [(0, "a", 107.0), (5, "a", 112.0), (0, "b", 120.0), (1, "b", 123.0), (6, "a", 130.0)]:
        now[0] = at
        trial.step(step, case)
    assert trial.seconds == {"a": [1.0, 18.0], "b": [3.0]}


def test_a_round_that_was_held_up_is_left_out_where_there_are_others(tables: ModuleType) -> None:
    rows = [
        {"contestant": name, "seconds": {"": [seconds]}, "own": own}
        for name, seconds, own in [("a", 1.0, 0.99), ("a", 2.0, 0.5), ("b", 3.0, 0.5)]
    ]
    result = {"threads": 1, "rows": rows}
    assert [tables.figures(result, name)[""].median for name in "ab"] == [1.0, 3.0]
    assert (
        tables.figures({**result, "threads": 2}, "a")[""].median == 1.5
    )  # where threads wait for one another nobody knows


def test_some_contestants_alone_and_none_by_a_wrong_name(tmp_path: Path) -> None:
    assert run(tmp_path, "--contestants", "bridle", "--quick").returncode == 0
    result = json.loads((tmp_path / "results" / "sft.json").read_text("utf-8"))
    assert len(result["rows"]) == 1 and result["quick"] and not result["failed"]
    assert "no contestant bridel" in run(tmp_path, "--contestants", "bridel").stderr


def test_a_bar_is_reached_from_above_or_from_below(tables: ModuleType) -> None:
    assert [tables.verdict(x, 3, 5) for x in (2.9, 3, 5)] == ["**no**", "bar", "aim"]
    assert [tables.verdict(x, 0.7, 0.5) for x in (0.71, 0.7, 0.5)] == ["**no**", "bar", "aim"]


def test_growth_in_proportion_has_exponent_one(tables: ModuleType) -> None:
    assert tables.exponent([1, 2, 4], [3, 6, 12]) == pytest.approx(1)
    assert tables.exponent([1, 2, 4], [1, 4, 16]) == pytest.approx(2)


def test_the_page_keeps_what_stands_around_the_tables(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n", "utf-8")
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["tables.py", "--page", str(page), "--results", str(tmp_path)])
        tables.main()
    text = page.read_text("utf-8")
    assert (
        text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text and text.count(tables.END) == 1
    )


def test_a_word_is_a_token(tables: ModuleType) -> None:
    """So that both sides have the same shapes."""
    models, texts = import_module("models"), import_module("texts")
    template = models.template()
    prompts = [Prompt.from_text(text) for text in texts.prompts(3)]
    assert {len(ids) for ids in template.prompt_ids(prompts)} == {texts.PROMPT}
    assert {len(ids) for ids in template.completion_ids(prompts, texts.answers(3))} == {texts.ANSWER}
    assert template.tokenizer.get_vocab_size() == 4096


def test_a_crowd_counts_what_the_server_wrote(tables: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    serving = import_module("serving")
    monkeypatch.setattr(serving, "ANSWER", 5)
    monkeypatch.setattr(serving, "prompts", lambda count: ["hello"] * count)
    with served() as server:
        port = int(server.url.rpartition(":")[2])
        found = asyncio.run(serving.crowd(port, "tiny", 3, 2))
        assert [count for count, _ in found] == [5] * 6 and all(0 < first < 60 for _, first in found)
        assert serving.healthy(port)
        with pytest.raises(RuntimeError, match="broke off.*not served here"):
            asyncio.run(serving.crowd(port, "another", 1, 1))


def test_servers_are_held_against_the_peers_best(tables: ModuleType) -> None:
    def row(name: str, seconds: float) -> dict[str, Any]:
        told = {f"16 clients{what}": [seconds] for what in ("", ", processor", ", first token")}
        notes = {"16 clients": {"tokens": 1024, "load": 0.1, "server": 0.5}, "server_mb": 400}
        return {"contestant": name, "seconds": told, "own": 1.0, "notes": notes}

    result = {
        "shape": "answers",
        "threads": 1,
        "rows": [row("bridle", 0.5), row("batched", 2.0), row("one by one", 1.5)],
    }
    page = "\n".join(tables.serving({"serving": result}))
    assert "| 16 clients | 2,000 (2,000–2,000) | 500 (500–500) | 667 (667–667) | **3.00** | 2 / 3.5 | bar |" in page
    assert "bridle 400 MB" in page and "0.10 to 0.10 of a core" in page


def test_operations_count_what_a_matrix_product_does(tables: ModuleType) -> None:
    roofline = import_module("roofline")
    layer = 256 * (256 + 2 * 128) + 256 * 256 + 3 * 256 * 704
    assert roofline.forward(10, 4, 0) == 2 * (10 * 6 * layer + 4 * 256 * 4096)
    assert roofline.operations("dpo") > roofline.operations("reward") > roofline.operations("sft")


def result_on_a_card(card: str) -> dict[str, Any]:
    rows = [
        {"contestant": "bridle", "round": 0, "seconds": {"": [0.5, 0.25, 0.25]}, "own": 1.0, "card": card, "card_peak_mb": 2048},
        {"contestant": "trl best", "round": 0, "seconds": {"": [1.0]}, "own": 1.0, "card": card, "card_peak_mb": 4096},
    ]  # fmt: skip
    return {"stage": "sft", "threads": 8, "tokens": {"": 8192}, "failed": {"other": "no such thing"}, "rows": rows}


def test_a_cards_table_tells_what_is_known_of_it(tables: ModuleType) -> None:
    gpu = import_module("gpu")
    found = gpu.table({"q05/sft": result_on_a_card("NVIDIA H200"), "q05/dpo": result_on_a_card("Unheard Of")})
    mfu = 6 * 494e6 * 8192 / 0.25 / 989e12
    assert found[2] == f"| q05 | sft | bridle |  | 250 (250 to 500) | 32,768 | 2.0 | {mfu:.1%} | NVIDIA H200 |"
    assert found[3].startswith("| q05 | sft | trl best |  | 1000 (1000 to 1000) | 8,192 | 4.0 |")
    assert found[4] == "| q05 | sft | other | | failed: no such thing | | | | |"
    assert found[5] == "| q05 | dpo | bridle |  | 250 (250 to 500) | 32,768 | 2.0 |  | Unheard Of |"


def test_what_the_time_does_not_allow_is_left_out_and_said(
    tables: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu, begun = import_module("gpu"), list[tuple[str, str]]()

    def run(command: list[str], env: dict[str, str], timeout: float) -> None:
        begun.append((env["BRIDLE_BENCH_MODEL"], Path(command[1]).stem))
        if begun[-1][1] == "dpo":
            raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(gpu.subprocess, "run", run)
    clock = iter([0.0, 0.0, 30.0, 45.0])
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(clock))
    left = gpu.measure(["q05"], ["sft", "dpo", "ppo"], 1.0, tmp_path)
    assert begun == [("q05", "sft"), ("q05", "dpo")]
    assert left == ["q05 dpo: took longer than the 30 s that were left", "q05 ppo: out of time"]
