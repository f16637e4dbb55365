"""A signal at any step: what was learnt until then is saved, whoever reads the progress, and the run resumes as if left alone."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from bridle.compute.randomness import generator
from bridle.compute.steps import Session
from bridle.core.errors import Interrupted
from bridle.models.policy import Policy, RewardModel
from bridle.models.scorer import scorer_from
from bridle.project.progress import Progress
from bridle.project.run import Run
from bridle.recipe.offline import DPOSection, PretrainSection, RewardSection, SFTSection
from bridle.training import dpo, pretrain, reward, sft
from tests.models.tiny import policy as tiny_policy
from tests.models.tiny import random_ids
from tests.training.runs import groups, metrics, run_in, same, session, weights

Loop = Callable[[Policy, Session, Path], nn.Module]


def pretrained(policy: Policy, at: Session, folder: Path) -> nn.Module:
    rows = pretrain.rows_of(random_ids(40, 9, 9, 0), 8)
    section = PretrainSection(length=8, batch_size=8, checkpoint_every=1000)
    pretrain.train(policy, rows, 6 * 64, section, at)
    return policy.module


def imitated(policy: Policy, at: Session, folder: Path) -> nn.Module:
    examples = list(zip(random_ids(24, 3, 6, 0), random_ids(24, 2, 4, 1), strict=True))
    sft.train(policy, examples, SFTSection(batch_size=4, epochs=1, checkpoint_every=1000), at)
    return policy.module


def judged(policy: Policy, at: Session, folder: Path) -> nn.Module:
    model = RewardModel(scorer_from(policy.module, generator(0, "head")), policy.template, "new")
    reward.train(model, groups(24, 0), RewardSection(batch_size=4, checkpoint_every=1000), 1, 1e-3, at)
    return model.module


def preferred(policy: Policy, at: Session, folder: Path) -> nn.Module:
    dpo.train(policy, tiny_policy(), groups(24, 0), DPOSection(batch_size=4, checkpoint_every=1000), at, folder)
    return policy.module


def deaf(text: str) -> None:
    """Standard error after Ctrl-C took the reader first, as in `2>&1 | tee`."""
    raise BrokenPipeError(32, "Broken pipe")


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Each trainer and each signal; all of them with all are slow.
MET = ((pretrained, SIGNALS[0]), (imitated, SIGNALS[1]), (judged, SIGNALS[2]), (preferred, SIGNALS[1]))
OTHERS = [
    pytest.param(loop, number, marks=pytest.mark.slow)
    for loop in (pretrained, imitated, judged, preferred)
    for number in SIGNALS
    if (loop, number) not in MET
]


@pytest.mark.parametrize(("loop", "number"), [*MET, *OTHERS])
def test_every_trainer_saves_what_it_has_at_a_signal_though_nobody_listens(
    loop: Loop, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights(loop(tiny_policy(), session(run_in(tmp_path / "whole")), tmp_path))
    cut, plain = run_in(tmp_path / "cut"), Run.end_step
    cut.progress = Progress(write=deaf, live=False, every=0.0)

    def end_step(run: Run, done: int, total: int) -> None:
        plain(run, done, total)
        if done == 3:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "end_step", end_step)
        with pytest.raises(Interrupted, match="stopped after step 3 of 6; everything is saved"), cut:
            loop(tiny_policy(), session(cut), tmp_path)
    assert (cut.checkpoints / "step-000003").is_dir()
    with run_in(tmp_path / "cut") as again:
        assert same(whole, loop(tiny_policy(), session(again), tmp_path))
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_signal_while_data_is_read_ends_before_the_first_step(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    with pytest.raises(Interrupted, match="stopped after step 0 of 6"), run:
        os.kill(os.getpid(), signal.SIGTERM)
        imitated(tiny_policy(), session(run), tmp_path)
    assert not metrics(tmp_path / "run")


def test_the_notice_of_a_signal_is_given_with_the_next_progress_and_once(tmp_path: Path) -> None:
    run, lines = run_in(tmp_path / "run"), list[str]()
    run.progress = Progress(write=lines.append, live=False, every=0.0)
    with run:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not lines, "the handler writes nothing"
        for step in range(2):
            run.log(step, 10, {"loss": 1.0})
        run.stop_asked = False
    assert sum("stopping at the next safe point" in line for line in lines) == 1 and "stopping" in lines[0]


def test_a_hang_up_that_comes_twice_is_one_and_another_signal_stops_at_once(tmp_path: Path) -> None:
    def twice(first: signal.Signals, second: signal.Signals) -> Mapping[str, Any]:
        with run_in(tmp_path / "run") as run:
            os.kill(os.getpid(), first)
            os.kill(os.getpid(), second)
            assert run.stop_asked
            run.stop_asked = False
        return {}

    twice(signal.SIGHUP, signal.SIGHUP)
    twice(signal.SIGTERM, signal.SIGHUP)
    for second in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(KeyboardInterrupt):
            twice(signal.SIGHUP, second)


def test_a_hang_up_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As nohup wants it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with run_in(tmp_path / "run") as run:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not run.stop_asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stop_that_is_asked_for_when_all_is_written_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between the last look and the end: the next stage must not begin."""
    run = run_in(tmp_path / "run")
    with pytest.raises(Interrupted, match="test is finished and saved in"), run:
        run.finish({})
        os.kill(os.getpid(), signal.SIGINT)
