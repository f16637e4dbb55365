"""The unbridled run: the recipe's PPO with β alone changed, and what ends it."""

import json
from pathlib import Path

import pytest

from bridle.demo.stages import FAR, MOST_STEPS, STAGES, over_the_cliff
from bridle.demo.summary import summary_lines
from bridle.project.run import Signal
from bridle.recipe.recipe import load_recipe
from tests.tiny_project import lines_of, result


def walk(gold: list[float | None], kl: float = 1.0, sft: float | None = 0.5) -> tuple[int, str]:
    """Steps taken of at most 40, and why no more."""
    until, signals = over_the_cliff(MOST_STEPS, sft), list[Signal]()
    for value in gold:
        signals.append(Signal(kl=kl * len(signals), gold=value))
        if (why := until.reached(signals)) is not None:
            return len(signals), why
    return len(signals), ""


RISEN = [0.0, 1.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("gold", "steps", "why"),
    [
        ([*RISEN, 1.0, 1.0, -1.0, 9.0], 7, "gold had fallen below SFT's 0.50 (mean of 3 steps)"),
        ([*RISEN, -2.0, 3.0], 0, ""),  # one bad step is noise
        ([0.0, 0.2, 0.3, 0.1], 0, ""),  # what never rose has not fallen
        (RISEN * 10, 40, "its 40 steps were done"),
        ([None] * 40, 40, "its 40 steps were done"),
    ],
)
def test_gold_or_the_steps_end_it(gold: list[float | None], steps: int, why: str) -> None:
    assert walk(gold, kl=0.1) == (steps or len(gold), why)


def test_the_kl_ends_it_and_alone_where_nobody_knows_gold() -> None:
    assert walk(RISEN * 10, kl=5.0) == (7, f"its KL had reached {FAR:g} nats")
    assert walk([None] * 40, kl=5.0, sft=None) == (7, f"its KL had reached {FAR:g} nats")
    assert walk([*RISEN, -9.0, -9.0, -9.0, -9.0] * 5, kl=0.1, sft=None) == (40, "its 40 steps were done")


def test_the_rule_names_three_ends_with_an_or() -> None:
    assert over_the_cliff(40, 0.5).rule == (
        "It runs for at most 40 steps, until its KL is 30 nats or until gold has fallen below SFT's 0.50 (mean of 3 steps)"
    )


def test_the_rule_is_written_as_ever_for_a_run_is_found_again_by_it() -> None:
    assert over_the_cliff(40, -2.674).rule.endswith("below SFT's -2.67 (mean of 3 steps)")


def test_beta_alone_is_changed(finished_demo: Path) -> None:
    bridled, free = (load_recipe(finished_demo / f"runs/{name}-0001/recipe.toml") for name in ("ppo", "unbridled"))
    wanted = {"ppo.kl_coef": 0.0, "ppo.kl_target": 0.0, "ppo.steps": 17}  # 40 where PPO has 12, in proportion of its 5
    assert free == bridled.with_settings(wanted)


def test_why_it_ended_is_said_in_the_same_words_everywhere(
    finished_demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    found = result(finished_demo / "runs/unbridled-0001")
    assert found["ended"] and found["steps"] == len(lines_of(finished_demo / "runs/unbridled-0001/metrics.jsonl"))
    sentence = f"PPO unbridled ended after {found['steps']} steps: {found['ended']}."
    summary = json.loads((finished_demo / "summary.json").read_text())
    lines = summary_lines(summary, Path("out"))
    assert max(map(len, lines)) <= 70 and all(
        " ".join(lines).count(f"{one['score']:.2f} (") <= 1 for one in summary["ranking"]
    )
    assert sentence in summary["verdict"] and summary["stages"]["unbridled"]["ended"] == found["ended"]
    page = (finished_demo / "report.html").read_text().replace("&#39;", "'")
    assert sentence in page and f"It ended after {found['steps']} steps: {found['ended']}." in page


def test_no_stage_is_done_beside_one_that_it_needs() -> None:
    """What a second process does comes after what it needs; what the first one does needs nothing of the second."""
    place = {stage.name: number for number, stage in enumerate(STAGES)}
    assert all(place[stage.after] < place[stage.name] for stage in STAGES if stage.after)
    second = {stage.name for stage in STAGES if stage.after}
    assert second == {
        "grpo", "reward-slim", "reward-shuffled", "dpo", "ppo", "best_of_4", "evaluate-ppo", "evaluate-dpo",
        STAGES[-1].name,
    }  # fmt: skip
    assert STAGES[-1].name == "evaluate-base"  # of these all only what the first process itself has done before it
