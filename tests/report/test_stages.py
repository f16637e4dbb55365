"""The report's table of stages: nothing that the package can do is missing from it, and every row can be shown."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from bridle.demo.stages import STAGES as DEMO
from bridle.recipe.documents import to_toml
from bridle.recipe.recipe import Recipe
from bridle.report.metrics import held_out, of_runs
from bridle.report.project import headline
from bridle.report.runs import Runs
from bridle.report.stages import MODELS, STAGES, is_bridled, place_of, run_recipe, stage_curve, title_of, words_of
from bridle.report.verdict import Verdict
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


@pytest.mark.parametrize("name", [name for name, row in STAGES.items() if not row.within])
def test_a_row_has_words_a_title_and_a_curve_of_what_was_logged(name: str) -> None:
    row = STAGES[name]
    words = words_of(row, {}, Recipe())
    assert words[0].isupper() and words.endswith(".") and ".." not in words and row.title and row.metrics
    logged = [{"step": step, "seconds": 1.0, **dict.fromkeys(row.lines.names, 0.5)} for step in (0, 1)]
    curve = stage_curve(row, logged)
    assert curve is not None and [len(series.y) for series in curve.series] == [2] * len(row.lines.names)
    assert stage_curve(row, []) is None and stage_curve(row, [{"step": 0, "else": 1.0}]) is None


def test_the_words_of_the_reward_model_follow_its_result() -> None:
    row, small = STAGES["reward"], {"parameters": 400, "slim": {"parameters": 100}}
    assert "slim" not in words_of(row, {}, Recipe()) and "It is tested" in words_of(row, {}, Recipe())
    assert "A slim one, of 100 parameters where it has 400," in words_of(row, small, Recipe())
    assert "Both are tested" in words_of(row, small, Recipe())


SETTINGS_IN_WORDS = [
    ("pretrain", {"data.source": "playground"}, "plain pages", "imported"),
    ("pretrain", {"data.source": "store"}, "imported prompts", "plain pages"),
    ("sft", {"data.source": "store"}, "people preferred", "uneven skill"),
    ("ppo", {"ppo.kl_target": 2.5}, "steered to 2.50 nats", "stays"),
    ("ppo", {"ppo.kl_target": 0.0, "ppo.kl_coef": 0.07}, "stays 0.07", "steered"),
    ("ppo", {"ppo.scored_by": "verifier"}, "a program checks", "reward model scores"),
    ("dpo", {}, "no reward model", "afresh"),
    ("dpo", {"dpo.online_rounds": 3}, "afresh, the reward model ranks them", "no reward model"),
    ("dpo", {"dpo.loss": "simpo"}, "mean of its tokens' log-probs", "held to"),
    ("grpo", {"grpo.scored_by": "reward"}, "reward model scores", "nobody has to judge"),
    ("best-of-n", {"rejection.keep": "threshold"}, "reach a threshold", "score best"),
]


@pytest.mark.parametrize(("name", "settings", "said", "unsaid"), SETTINGS_IN_WORDS)
def test_words_follow_what_the_run_was_set_to(name: str, settings: dict[str, object], said: str, unsaid: str) -> None:
    words = words_of(STAGES[name], {}, Recipe().with_settings(settings))
    assert said in words and unsaid not in words


def test_every_metric_of_the_page_has_a_meaning_and_training_shares_no_name_with_what_was_held_out() -> None:
    shown = {name for row in STAGES.values() for name in (*row.metrics, *row.lines.names) if row.name != "best-of-4"}
    assert shown <= set(of_runs()), shown - set(of_runs())
    assert set(STAGES["best-of-4"].metrics) <= {*of_runs(), *held_out()}
    assert all(metric.meaning for metric in [*of_runs().values(), *held_out().values()])
    labels = [metric.label for metric in [*of_runs().values(), *held_out().values()]]
    assert len(labels) == len(set(labels))


def test_stages_come_in_the_order_of_the_loop_and_others_after_them() -> None:
    names = ["mine", "evaluate-ppo", "evaluate-base", "reward-slim", "ppo", "reward", "pretrain"]
    ordered = ["pretrain", "reward", "reward-slim", "ppo", "evaluate-base", "evaluate-ppo", "mine"]
    assert sorted(names, key=place_of) == ordered
    assert [title_of(name) for name in ("ppo", "evaluate-dpo", "mine")] == [
        "PPO with the KL bridle", "Evaluating dpo", "mine",
    ]  # fmt: skip


def test_a_reward_model_that_no_pair_could_test_makes_no_headline() -> None:
    for accuracy, shown in ((None, []), (0.5, [0.5])):
        runs = cast(Runs, SimpleNamespace(results={"reward": {"pair_accuracy": accuracy}}))
        assert [fact.value for fact in headline(runs, Verdict("gold", None, []), [])] == shown


def test_an_earlier_recipe_that_is_refused_now_still_says_its_seed_and_that_nothing_held_it(tmp_path: Path) -> None:
    written = to_toml(Recipe().with_settings({"seed": 7, "ppo.kl_coef": 0.0, "ppo.kl_target": 0.0}))
    (tmp_path / "recipe.toml").write_text(written.replace("kl_target = 0.0", "kl_target = 1.5"))
    read = run_recipe(tmp_path)
    assert read is not None and read.seed == 7 and not is_bridled(STAGES["ppo"], tmp_path)
    assert title_of("ppo", tmp_path) == STAGES["unbridled"].title
