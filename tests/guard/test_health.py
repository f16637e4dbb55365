"""The signs of a run that cannot learn: each warns once, in time, in one sentence, and the deadly ones stop it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from bridle.core.errors import TrainingStopped
from bridle.core.records import Completion, FinishReason, Prompt
from bridle.guard.health import EARLY, SIGNS, Health
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.project.run import Run, Signal, StepAnswers
from bridle.recipe.recipe import Recipe
from bridle.recipe.watching import GuardSection
from tests.models.tiny import one_sentence

GOOD = {
    "reward": 0.2, "score_sd": 1.0, "without_variance": 0.3, "cut_off": 0.1, "entropy": 0.4, "grad_norm": 0.7,
    "logprob_gap": 0.003, "answer_gap": 0.02, "unscored": 0, "chosen_moved": -1.5,
}  # fmt: skip
BAD: dict[str, dict[str, Any]] = {
    "first ratio": {"logprob_gap": 0.06},
    "whole answers": {"answer_gap": 0.6},
    "unscored": {"unscored": 3, "unscored_nan": 1, "unscored_None": 2},
    "cut off": {"cut_off": 0.97},
    "flat groups": {"without_variance": 0.95},
    "dead reward": {"comparable": False},
    "no gradient": {"grad_norm": 0.0},
    "entropy collapse": {"entropy": 0.001},
    "displacement": {"chosen_moved": -12.0},
}
AT_ONCE = {"first ratio", "whole answers", "unscored"}


def look(health: Health, times: int, **changed: Any) -> tuple[list[str], str | None]:
    """The warnings in all, and why it must stop after the last look."""
    warned, stop = [], None
    for _ in range(times):
        warnings, stop = health.look(*step(**changed))
        warned += warnings
    return warned, stop


def step(comparable: bool = True, frozen: bool = False, **metrics: Any) -> tuple[dict[str, Any], Signal]:
    """A step's metrics and signal, good but for what is changed."""
    logged = {**GOOD, **metrics}
    return logged, Signal(comparable, logged["grad_norm"], frozen)


def test_every_sign_has_a_case_here() -> None:
    assert [sign.name for sign in SIGNS if sign.name != "never ends"] == list(BAD), "that one has a test of its own"


def test_a_healthy_run_is_left_alone() -> None:
    health = Health()
    assert look(health, 50) == ([], None) and health.state == {"held": {}, "warned": {}}
    assert health.look({}, Signal()) == ([], None), "what is not logged is no sign"
    assert health.look({"loss": math.nan, "entropy": math.nan}, Signal(grad_norm=math.nan)) == ([], None)


@pytest.mark.parametrize("name", BAD)
def test_a_sign_is_told_once_early_and_in_one_sentence(name: str) -> None:
    health, patience = Health(), 1 if name in AT_ONCE else EARLY
    assert look(health, patience - 1, **BAD[name])[0] == []
    said, stop = look(health, 1, **BAD[name])
    assert len(said) == 1 and one_sentence(said[0]) and ";" in said[0] and stop is None
    assert look(health, 6, **BAD[name])[0] == []
    assert health.state["warned"] == {name: said[0]}


@pytest.mark.parametrize("name", sorted(set(BAD) - AT_ONCE))
def test_what_comes_and_goes_is_chance(name: str) -> None:
    health = Health()
    for _ in range(20):
        assert look(health, EARLY - 1, **BAD[name]) == ([], None)
        assert look(health, 1) == ([], None)


@pytest.mark.parametrize("name", BAD)
def test_only_what_teaches_nothing_stops_and_only_in_time(name: str) -> None:
    health = Health(GuardSection(dead_steps=7))
    assert look(health, 6, **BAD[name])[1] is None
    stop = look(health, 1, **BAD[name])[1]
    if name in ("dead reward", "no gradient"):
        assert stop is not None and stop.startswith("for 7 logged steps in a row") and one_sentence(stop)
    else:
        assert stop is None


@pytest.mark.parametrize("name", ["dead reward", "no gradient"])
def test_it_never_stops_where_the_recipe_says_so(name: str) -> None:
    assert look(Health(GuardSection(dead_steps=0)), 100, **BAD[name])[1] is None


def test_groups_that_are_all_flat_are_flat_groups_and_a_dead_reward() -> None:
    """One says which prompts to take, the other where to look, and stops."""
    health = Health()
    said, stop = look(health, 10, without_variance=1.0, comparable=False)
    assert list(health.state["warned"]) == ["flat groups", "dead reward"] and len(said) == 2
    assert "in 100% of the groups" in said[0] and "all answers that were compared got the same reward" in said[1]
    assert stop is not None


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("first ratio", "max_logprob_gap", 0.06), ("whole answers", "max_answer_gap", 0.6),
        ("cut off", "max_cut_off", 0.97), ("flat groups", "max_flat_groups", 0.95),
        ("entropy collapse", "min_entropy", 0.001), ("displacement", "max_chosen_fall", 12.0),
    ],
)  # fmt: skip
def test_the_thresholds_are_the_recipes(name: str, setting: str, value: float) -> None:
    assert look(Health(GuardSection(**{setting: value})), 9, **BAD[name])[0] == [], "at the threshold it is still well"
    nearer = value * (0.99 if setting.startswith("max") else 1.01)
    assert len(look(Health(GuardSection(**{setting: nearer})), 9, **BAD[name])[0]) == 1


def test_what_stops_is_the_signal_and_never_a_metric() -> None:
    """A metric of the same name steers nothing, and a policy that is held still on purpose is no dead run."""
    health = Health()
    for _ in range(50):
        assert health.look({**GOOD, "grad_norm": 0.0, "score_sd": 0.0}, Signal(grad_norm=0.7))[1] is None
    health = Health()
    assert look(health, 50, grad_norm=0.0, frozen=True) == ([], None)
    assert look(health, 10, grad_norm=0.0)[1] is not None
    assert Health().look({}, Signal(grad_norm=None)) == ([], None), "no optimiser step was taken"


@pytest.mark.parametrize(
    ("cut", "limit", "stops"), [(20, 0.95, True), (19, 0.95, False), (20, 1.0, False), (10, 0.45, True)]
)
def test_a_run_whose_answers_never_end_is_stopped(cut: int, limit: float, stops: bool) -> None:
    prompt = Prompt.from_text("Why?")
    reasons = [FinishReason.LENGTH] * cut + [FinishReason.STOP] * (20 - cut)
    completions = [Completion(prompt.id, "Because", (5,), finish_reason=reason) for reason in reasons]
    answers = StepAnswers(0, 40, [prompt] * 20, completions, [0.0] * 20, 0.0, 1.0)
    health = Health(GuardSection(stop_cut_off=limit))
    found = [health.look(GOOD, Signal(grad_norm=1.0, answers=answers))[1] for _ in range(10)]
    assert found[:9] == [None] * 9 and (found[9] is not None) is stops
    assert not stops or "nearly all answers are cut off" in str(found[9])


def test_why_rewards_were_missing_is_told() -> None:
    assert (
        "3 answers of a step had no usable reward and were left out (1 nan, 2 None)"
        in (look(Health(), 1, **BAD["unscored"])[0][0])
    )


def test_a_resumed_health_goes_on_where_it_was() -> None:
    whole, half = Health(), Health()
    expected = [whole.look(*step(grad_norm=0.0, cut_off=0.9)) for _ in range(12)]
    found = [half.look(*step(grad_norm=0.0, cut_off=0.9)) for _ in range(5)]
    resumed = Health()
    resumed.state.update(json.loads(json.dumps(half.state)))
    found += [resumed.look(*step(grad_norm=0.0, cut_off=0.9)) for _ in range(7)]
    assert found == expected and resumed.state == whole.state


# --------------------------------------------------------------------------------------------------- in a run


class Told(list[str]):
    def write(self, text: str) -> None:
        self.append(text)


def test_a_run_tells_saves_and_stops(tmp_path: Path) -> None:
    told, recipe = Told(), Recipe().with_settings({"guard.dead_steps": 4})
    project = Project.create(tmp_path / "p", recipe)
    progress = Progress(write=told.write, live=False)
    with pytest.raises(TrainingStopped) as caught, Run.begin(project, "ppo", "k", {}, progress) as run:
        run.watch = Health(run.limits)
        for done in range(20):
            run.log(done, 20, GOOD, Signal(grad_norm=0.0))
            if run.due(done + 1, 100, 20):
                run.saved(done + 1)
            run.stop_if_needed(done + 1, 20)
    assert done == 3, "saved at once, not when the next checkpoint was due"
    assert str(caught.value).startswith(
        "ppo stopped after step 4 of 20: for 4 logged steps in a row the gradient is zero"
    )
    assert "guard.dead_steps = 0" in str(caught.value) and one_sentence(str(caught.value))
    assert len([line for line in told if "the gradient is zero" in line]) == 1
    assert f"the state after step 4 is kept in {run.checkpoints}" in told[-1]


def test_a_run_that_is_over_is_not_stopped_but_its_result_tells(tmp_path: Path) -> None:
    project = Project.create(tmp_path / "p", Recipe().with_settings({"guard.dead_steps": 4}))
    with Run.begin(project, "ppo", "k", {}, Progress(write=lambda text: None, live=False)) as run:
        run.watch = Health(run.limits)
        for done in range(4):
            run.log(done, 4, GOOD, Signal(grad_norm=0.0))
        assert run.due(4, 100, 4)
        run.saved(4)
        run.stop_if_needed(4, 4)
        assert list(run.finish({})["warnings"]) == ["no gradient"]


def test_a_healthy_result_has_no_warnings(tmp_path: Path) -> None:
    project = Project.create(tmp_path / "p", Recipe())
    with Run.begin(project, "ppo", "k", {}, Progress(write=lambda text: None, live=False)) as run:
        run.watch = Health(run.limits)
        run.log(0, 1, GOOD)
        assert "warnings" not in run.finish({})


def test_an_error_half_way_saves_what_was_learnt_before_it(tmp_path: Path) -> None:
    run, saves = Run("ppo", tmp_path, "k", 1, False, Progress(write=lambda text: None, live=False)), []
    for done in (0, 3, 3, 5):
        with pytest.raises(ZeroDivisionError), run.saving_on_error(done, lambda done=done: saves.append(done)):  # type: ignore[misc]
            raise ZeroDivisionError
    with run.saving_on_error(9, lambda: saves.append(9)):
        pass
    assert saves == [3, 5] and run.last_save == 5
