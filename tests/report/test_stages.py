"""The report's table of stages: nothing that the package can do is missing from it, and every row can be shown."""

import pytest

from bridle.demo.stages import STAGES as DEMO
from bridle.report.stages import MODELS, STAGES, place_of, stage_curve, title_of, words_of
from bridle.stages.methods import METHODS


def test_every_method_and_every_stage_of_the_demo_has_a_row() -> None:
    assert set(METHODS) <= set(STAGES)
    of_the_loop = [stage.name.replace("_", "-") for stage in DEMO if not stage.name.startswith("evaluate-")]
    assert set(of_the_loop) <= set(STAGES)
    evaluated = [stage.name.removeprefix("evaluate-") for stage in DEMO if stage.name.startswith("evaluate-")]
    assert set(evaluated) <= set(MODELS)
    assert {"reward-slim", "arithmetic"} <= set(STAGES)


def test_every_model_that_a_method_leaves_is_evaluated_under_a_label() -> None:
    assert {"ppo", "grpo", "rloo", "rebel", "dpo", "best-of-n"} <= set(MODELS)
    assert [name for name, row in MODELS.items() if not row.label] == []
    assert list(MODELS)[:2] == ["base", "sft"] and list(MODELS)[-1] == "unbridled"


@pytest.mark.parametrize("name", [name for name, row in STAGES.items() if row.words])
def test_a_row_has_words_a_title_and_a_curve_of_what_was_logged(name: str) -> None:
    row = STAGES[name]
    words = words_of(row, {})
    assert words[0].isupper() and words.endswith(".") and row.title and row.metrics
    logged = [{"step": step, "seconds": 1.0, **dict.fromkeys(row.lines.names, 0.5)} for step in (0, 1)]
    curve = stage_curve(row, logged)
    assert curve is not None and [len(series.y) for series in curve.series] == [2] * len(row.lines.names)
    assert stage_curve(row, []) is None and stage_curve(row, [{"step": 0, "else": 1.0}]) is None


def test_the_words_of_the_reward_model_follow_its_result() -> None:
    row = STAGES["reward"]
    assert "slim" not in words_of(row, {}) and "It is tested" in words_of(row, {})
    assert "A slim one" in words_of(row, {"slim": {}}) and "Both are tested" in words_of(row, {"slim": {}})


def test_stages_come_in_the_order_of_the_loop_and_others_after_them() -> None:
    names = ["mine", "evaluate-ppo", "evaluate-base", "reward-slim", "ppo", "reward", "pretrain"]
    ordered = ["pretrain", "reward", "reward-slim", "ppo", "evaluate-base", "evaluate-ppo", "mine"]
    assert sorted(names, key=place_of) == ordered
    assert [title_of(name) for name in ("ppo", "evaluate-dpo", "mine")] == [
        "PPO with the KL bridle", "Evaluating dpo", "mine",
    ]  # fmt: skip
