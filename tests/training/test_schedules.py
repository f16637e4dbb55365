"""The learning rate of every trainer: over all optimiser steps of a run, several in a rollout step too, and the same after a resume."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from bridle.compute.optimizer import warm_then_cosine, warm_then_linear
from bridle.models.policy import RewardModel
from bridle.models.scorer import critic_from, scorer_from
from bridle.project.run import Run
from bridle.recipe.offline import DPOSection, KTOSection, ORPOSection, PretrainSection, RewardSection, SFTSection
from bridle.recipe.online import GRPOSection, PPOSection, REBELSection, RejectionSection, RLOOSection
from bridle.training import dpo, grpo, kto, ppo, pretrain, rebel, rejection, reward, rloo, sft
from tests.models.tiny import policy as tiny_policy
from tests.models.tiny import random_ids
from tests.training.practice import PROMPTS, cast, token_means
from tests.training.runs import STOP, dying_at, groups, run_in, session, weights

Settings = dict[str, Any]
State = dict[str, torch.Tensor]
TWO_STEPS: Settings = {"steps": 2, "prompts_per_step": 4, "epochs": 2, "minibatches": 2, "checkpoint_every": 1}
EXAMPLES = [(ids, [40, 41, STOP]) for ids in random_ids(16, 2, 6)]


def with_data(section: Any, loop: Callable[..., Any]) -> Callable[[Settings, Run], State]:
    def train(settings: Settings, run: Run) -> State:
        ours = tiny_policy()
        loop(ours, section(optimizer="adamw", batch_size=4, checkpoint_every=1, **settings), session(run))
        return weights(ours.module)

    return train


def with_answers(section: Any, loop: Callable[..., Any], **more: Any) -> Callable[[Settings, Run], State]:
    def train(settings: Settings, run: Run) -> State:
        who = cast()
        loop(who.policy, who.reference, token_means, PROMPTS, section(**more, **settings), who.session(run, tokens=24))
        return weights(who.policy.module)

    return train


def train_reward(settings: Settings, run: Run) -> State:
    model = RewardModel(
        scorer_from(tiny_policy().module, torch.Generator().manual_seed(0)), tiny_policy().template, "mine"
    )
    config = RewardSection(batch_size=4, checkpoint_every=1, **settings)
    reward.train(model, groups(12, 0), config, 1, config.learning_rate, session(run))
    return weights(model.module)


def train_ppo(settings: Settings, run: Run) -> State:
    who = cast()
    critic = critic_from(scorer_from(who.policy.module, torch.Generator().manual_seed(0)))
    actors, config = ppo.Actors(who.policy, who.reference, critic), PPOSection(**TWO_STEPS, **settings)
    ppo.train(actors, token_means, PROMPTS, [], config, who.session(run))
    return weights(who.policy.module)


def loop_of_dpo(ours: Any, config: DPOSection, given: Any) -> None:
    dpo.train(ours, tiny_policy(), groups(12, 0), config, given, given.run.folder / "cache")


def loop_of_kto(ours: Any, config: KTOSection, given: Any) -> None:
    kto.train(ours, tiny_policy(), groups(12, 0), config, given, given.run.folder / "cache")


ROWS_RT = torch.tensor(random_ids(16, 9, 9))
ON_DATA = {
    "pretrain": (with_data(PretrainSection, lambda p, c, s: pretrain.train(p, ROWS_RT, 4 * 128 * 4, c, s)), 4),
    "sft": (with_data(SFTSection, lambda p, c, s: sft.train(p, EXAMPLES, c, s)), 8),
    "reward": (train_reward, 3),
    "dpo": (with_data(DPOSection, loop_of_dpo), 3),
    "orpo": (with_data(ORPOSection, loop_of_dpo), 3),
    "kto": (with_data(KTOSection, loop_of_kto), 3),
}
ON_ANSWERS = {
    "ppo": (train_ppo, 8),
    "grpo": (with_answers(GRPOSection, grpo.train, group_size=2, **TWO_STEPS), 8),
    "rloo": (with_answers(RLOOSection, rloo.train, group_size=2, **TWO_STEPS), 8),
    "rebel": (with_answers(REBELSection, rebel.train, **TWO_STEPS), 8),
    "best-of-n": (
        with_answers(RejectionSection, rejection.train, rounds=2, prompts_per_round=6, answers=4, batch_size=2),
        0,
    ),
    "online dpo": (
        with_answers(DPOSection, dpo.train_online, online_rounds=2, online_prompts=4, batch_size=2, epochs=2),
        8,
    ),
}  # how many optimiser steps; best-of-n takes as many as there are answers to imitate


@contextmanager
def rates() -> Iterator[list[float]]:
    """The rates at which the first weights' optimiser steps, in units of the first one's peak."""
    found: list[tuple[int, float]] = []
    handle = register_optimizer_step_pre_hook(lambda o, *_: found.append((id(o), o.param_groups[0]["lr"])))
    seen: list[float] = []
    try:
        yield seen
    finally:
        handle.remove()
        seen += [rate for one, rate in found if one == found[0][0]]


@pytest.mark.parametrize("name", [*ON_DATA, *ON_ANSWERS])
def test_a_schedule_counts_the_optimiser_steps_of_the_whole_run(name: str, tmp_path: Path) -> None:
    train, updates = (ON_DATA | ON_ANSWERS)[name]
    with rates() as seen:
        train({"schedule": "cosine", "warmup": 0.25, "learning_rate": 0.001}, run_in(tmp_path))
    total = updates or len(seen)
    assert len(seen) == total > 2
    if name == "best-of-n" and total % 2:
        pytest.skip("its two rounds kept unequally many answers")
    assert seen == pytest.approx([0.001 * warm_then_cosine(step, total, 0.25) for step in range(total)])


@pytest.mark.parametrize("name", ["pretrain", "sft", "reward", "dpo", "kto"])
def test_on_data_the_rate_falls_as_it_always_did(name: str, tmp_path: Path) -> None:
    train, total = ON_DATA[name]
    with rates() as seen:
        train({"learning_rate": 0.001}, run_in(tmp_path))
    assert seen == [0.001 * warm_then_linear(step, total) for step in range(total)]


@pytest.mark.parametrize("name", ["ppo", "rebel", "online dpo"])
def test_on_its_own_answers_the_rate_stays_as_it_always_did(name: str, tmp_path: Path) -> None:
    train, total = ON_ANSWERS[name]
    with rates() as seen:
        train({"learning_rate": 0.001}, run_in(tmp_path))
    assert seen == [0.001] * total


@pytest.mark.parametrize(("name", "line"), [("reward", 2), ("ppo", 2), ("grpo", 2), ("online dpo", 2)])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_that_was_cut_goes_on_at_the_rates_it_would_have_had(
    name: str, line: int, optimizer: str, tmp_path: Path
) -> None:
    train, total = (ON_DATA | ON_ANSWERS)[name]
    settings = {
        "schedule": "linear", "warmup": 0.3, "weight_decay": 0.2, "adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-6,
        "learning_rate": 0.001, "optimizer": optimizer,
    }  # fmt: skip
    with rates() as whole:
        expected = train(settings, run_in(tmp_path / "whole"))
    with dying_at(line):
        train(settings, run_in(tmp_path / "cut"))
    with rates() as after:
        found = train(settings, run_in(tmp_path / "cut"))
    assert 0 < len(after) < len(whole) == total and after == whole[-len(after) :]
    assert all(torch.equal(expected[key], tensor) for key, tensor in found.items())
