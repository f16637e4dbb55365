"""The steps of a run: which are left, what is logged and saved of them, when they end early; and means over their updates."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bridle.compute.optimizer import adamw, warm_then_linear
from bridle.compute.steps import Means, Part, Steps, logprob_gaps
from bridle.core.errors import Interrupted, TrainingStopped
from bridle.project.run import Run, Signal, Until
from bridle.recipe.base import TrainerSection
from bridle.recipe.watching import GuardSection
from tests.training.runs import metrics, run_in, session, weights

WELL = Signal(grad_norm=1.0)


def begin(run: Run, total: int = 5, every: int = 2) -> tuple[nn.Linear, Steps]:
    module = nn.Linear(2, 1)
    with torch.no_grad():
        module.weight.fill_(0.0)
        module.bias.fill_(0.0)
    return module, Steps(session(run), {"module": module}, adamw(module, 0.1), total, every)


def walk(run: Run, stop_before: int = 5, score: Callable[[int], float] = float) -> tuple[nn.Linear, Steps]:
    """Each step adds 1 to a weight; as if the process were gone before the step `stop_before`."""
    module, steps = begin(run)
    for step in steps:
        if step == stop_before:
            break
        with torch.no_grad():
            module.weight.add_(1.0)
        steps.values["seen"] = step
        steps.end(step, {"loss": float(step)}, score(step), WELL)
    return module, steps


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


# --------------------------------------------------------------------------------------------------------- 1. steps


def test_a_run_that_was_cut_goes_on_after_its_newest_checkpoint(tmp_path: Path) -> None:
    whole, _ = walk(run_in(tmp_path / "whole"))
    walk(run_in(tmp_path / "cut"), stop_before=3)
    module, steps = begin(run_in(tmp_path / "cut"))
    assert (
        steps.done == 2 and list(steps) == [2, 3, 4] and steps.values == {"seen": 1} and steps.metrics == {"loss": 1.0}
    )
    assert float(module.weight.detach()[0, 0]) == 2.0 and len(metrics(tmp_path / "cut")) == 2, (
        "the third line will be logged again"
    )
    resumed, _ = walk(run_in(tmp_path / "cut"))
    assert all(torch.equal(weights(whole)[name], tensor) for name, tensor in weights(resumed).items())
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_run_with_no_step_left_has_the_metrics_of_its_last(tmp_path: Path) -> None:
    walk(run_in(tmp_path))
    _, steps = walk(run_in(tmp_path))
    assert list(steps) == [] and steps.metrics == {"loss": 4.0} and len(metrics(tmp_path)) == 5


def test_the_checkpoint_of_the_greatest_selection_score_stays(tmp_path: Path) -> None:
    run = run_in(tmp_path, limits=GuardSection(keep_checkpoints=1))
    walk(run, score=lambda step: -float(step))
    assert saved(tmp_path) == ["step-000002", "step-000005"], "saved after 2, 4 and 5"


@pytest.mark.parametrize(("log", "logged"), [(None, [{"loss": 1.0}]), ({}, []), ({"other": 2.0}, [{"other": 2.0}])])
def test_what_is_logged_may_differ_from_what_is_kept(log: dict[str, float] | None, logged: Any, tmp_path: Path) -> None:
    _, steps = begin(run_in(tmp_path))
    steps.end(0, {"loss": 1.0}, 0.0, WELL, log)
    assert steps.metrics == {"loss": 1.0}
    assert [{k: v for k, v in line.items() if k != "step"} for line in metrics(tmp_path)] == logged


def test_an_error_saves_the_steps_before_it(tmp_path: Path) -> None:
    module, steps = begin(run_in(tmp_path), every=5)
    for step in steps:
        if step == 3:
            with pytest.raises(ZeroDivisionError), steps.save_on_error(step):
                raise ZeroDivisionError
            break
        steps.end(step, {"loss": 1.0}, 0.0, WELL)
    assert saved(tmp_path) == ["step-000003"]
    again, steps = begin(run_in(tmp_path), every=5)
    with pytest.raises(ZeroDivisionError), steps.save_on_error(steps.done):
        raise ZeroDivisionError
    assert saved(tmp_path) == ["step-000003"], "that is saved already"


def far(signals: Sequence[Signal]) -> str | None:
    return "its KL had reached 3 nats" if (signals[-1].kl or 0.0) >= 3 else None


def walk_until(folder: Path, stop_before: int = 9) -> tuple[nn.Linear, Steps, Run]:
    """Nine steps at most, each a nat further, that end at three nats; as if the process were gone before a step."""
    run = run_in(folder)
    run.until = Until("until 3 nats", far)
    module, steps = begin(run, total=9, every=3)
    for step in steps:
        if step == stop_before:
            break
        with torch.no_grad():
            module.weight.add_(1.0)
        steps.end(step, {"loss": float(step)}, float(step), Signal(grad_norm=1.0, kl=float(step)))
    return module, steps, run


def test_a_run_ends_where_it_has_done_what_it_was_for(tmp_path: Path) -> None:
    module, steps, run = walk_until(tmp_path)
    assert run.ended == "its KL had reached 3 nats" and steps.done == 4 and float(module.weight.detach()[0, 0]) == 4.0
    assert saved(tmp_path)[-1] == "step-000004" and len(metrics(tmp_path)) == 4
    assert run.with_warnings({})["ended"] == run.ended


@pytest.mark.parametrize("stop_before", [1, 3, 4])
def test_a_run_that_was_cut_ends_where_it_would_have(stop_before: int, tmp_path: Path) -> None:
    walk_until(tmp_path / "cut", stop_before)
    module, steps, run = walk_until(tmp_path / "cut")
    whole, _, _ = walk_until(tmp_path / "whole")
    assert run.ended == "its KL had reached 3 nats" and steps.done == 4 and steps.metrics == {"loss": 3.0}
    assert torch.equal(module.weight, whole.weight) and metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_an_end_that_is_reached_comes_before_a_stop(tmp_path: Path) -> None:
    """A run that has done what it was for is finished, whoever asks it to stop and whatever it can no longer learn."""
    run = run_in(tmp_path, limits=GuardSection(dead_steps=1))
    run.until = Until("at once", lambda signals: "it was enough")
    _, steps = begin(run)
    run.stop_asked = True
    steps.end(0, {"loss": 1.0}, 0.0, Signal(comparable=False))
    assert list(steps) == [] and saved(tmp_path) == ["step-000001"]
    with pytest.raises(Interrupted, match="is finished and saved"):
        run.finish({})


def test_a_stop_that_is_asked_for_comes_after_the_step_is_saved(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    _, steps = begin(run)
    run.stop_asked = True
    with pytest.raises(Interrupted, match="after step 1 of 5"):
        steps.end(0, {"loss": 1.0}, 0.0, WELL)
    assert saved(tmp_path) == ["step-000001"]


@pytest.mark.parametrize(
    ("signal", "stops"),
    [
        (Signal(comparable=False, grad_norm=1.0), "got the same reward"),
        (Signal(grad_norm=0.0), "gradient is zero"),
        (Signal(grad_norm=0.0, frozen=True), None),
        (Signal(grad_norm=None), None),
        (WELL, None),
    ],
)
def test_a_signal_stops_a_run_and_no_metric_does(signal: Signal, stops: str | None, tmp_path: Path) -> None:
    """Whatever the metrics say: those that stopped a run of old say the worst here."""
    worst = {"grad_norm": 0.0, "without_variance": 1.0, "without_pairs": 1.0, "score_sd": 0.0}
    run = run_in(tmp_path, limits=GuardSection(dead_steps=2))
    _, steps = begin(run)
    steps.end(0, worst, 0.0, signal)
    if stops is None:
        steps.end(1, worst, 0.0, signal)
        return
    with pytest.raises(TrainingStopped, match=stops):
        steps.end(1, worst, 0.0, signal)
    assert saved(tmp_path) == ["step-000002"]


def test_a_scheduled_step_takes_its_share_of_the_peak_rate(tmp_path: Path) -> None:
    module, steps = begin(run_in(tmp_path), total=10)
    for step in (0, 5, 9):
        module(torch.ones(1, 2)).sum().backward()
        assert steps.scheduled_step(step, clip_norm=0.5) == pytest.approx(3**0.5), "before it is clipped"
        assert steps.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * warm_then_linear(step, 10))


def test_of_a_policy_alone_the_recipe_says_how_it_moves(tmp_path: Path) -> None:
    module, config = nn.Linear(2, 1), TrainerSection(learning_rate=0.25, checkpoint_every=3)
    steps = Steps.of_policy(module, config, 7, session(run_in(tmp_path)))
    assert (steps.total, steps.every, steps.peaks) == (7, 3, [[0.25]]) and list(steps.state.modules) == ["policy"]


# --------------------------------------------------------------------------------------------------------- 2. means


def part(gap: float, tokens: int) -> Part:
    """Two tokens, each off by `gap`."""
    logp = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    return Part(torch.tensor([0]), logp, logp.detach() - gap, torch.tensor(tokens))


def filled(*updates: tuple[float, ...]) -> Means:
    """Each update: its gradient norm, then the loss of each of its micro-batches."""
    means = Means()
    for norm, *losses in updates:
        for loss in losses:
            means.add({"loss": torch.tensor(loss)}, part(0.5, 4))
        means.updated(norm)
    return means


def test_micro_batches_add_up_and_updates_are_averaged() -> None:
    found = filled((2.0, 1.0, 3.0), (4.0, 6.0)).result()
    expected = {"loss": (4 + 6) / 2, "grad_norm": 3.0, "logprob_gap": 0.5, "answer_gap": 1.0}
    assert found == pytest.approx(expected), "the gaps of the first alone"


def test_the_gap_of_an_answer_is_that_of_the_sum_over_its_tokens() -> None:
    """Two that cancel, and two that add up; .8 over four tokens, .4 and 0 over two answers. Signs of answers do not cancel."""
    old = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    off = torch.tensor([[0.2, -0.2], [-0.2, -0.2]])
    assert logprob_gaps(old + off, old, 4, 2) == pytest.approx({"logprob_gap": 0.2, "answer_gap": 0.2})
    means = Means()
    for row in (0, 1):
        means.add({}, Part(torch.tensor([row]), (old + off)[row : row + 1], old[row : row + 1], torch.tensor(4)))
    assert means.result() == pytest.approx({"grad_norm": 0.0, "logprob_gap": 0.2, "answer_gap": 0.2})
    uneven = Means()  # three answers in parts of two and one: (0 + .4 + .4) / 3
    for rows in ([0, 1], [1]):
        uneven.add({}, Part(torch.tensor(rows), (old + off)[rows], old[rows], torch.tensor(6)))
    assert uneven.result()["answer_gap"] == pytest.approx(0.8 / 3)


def test_of_no_update_at_all_the_gradient_is_zero() -> None:
    assert Means().result() == {"grad_norm": 0.0, "logprob_gap": 0.0, "answer_gap": 0.0}


def skipped(updates: int) -> Mapping[str, float]:
    means = filled(*[(2.0, 1.0)] * updates)
    means.add({"loss": 4.0})
    means.skip()
    return means.result()


def test_a_minibatch_that_took_no_step_counts_in_the_means_and_has_no_gradient() -> None:
    assert skipped(updates=1) == pytest.approx({"loss": 2.5, "grad_norm": 2.0, "logprob_gap": 0.25, "answer_gap": 1.0})
    assert skipped(updates=0) == {"loss": 4.0, "logprob_gap": 0.0, "answer_gap": 0.0}


def test_the_totals_are_the_means_of_one_update() -> None:
    means = Means()
    means.add({"loss": 1.0, "accuracy": 0.25})
    means.add({"loss": 0.5})
    assert means.totals() == {"loss": 1.5, "accuracy": 0.25}
