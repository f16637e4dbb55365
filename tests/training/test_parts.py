"""The parts of every trainer's step are named, and leave less than a tenth of its time without a name."""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

import pytest
import torch

from bridle.core.timeline import record, stop
from bridle.models.policy import RewardModel
from bridle.models.scorer import critic_from, scorer_from
from bridle.project.run import Run
from bridle.recipe.offline import DPOSection, KTOSection, PretrainSection, RewardSection, SFTSection
from bridle.recipe.online import GRPOSection, PPOSection, REBELSection, RejectionSection, RLOOSection
from bridle.training import dpo, grpo, kto, ppo, pretrain, rebel, rejection, reward, rloo, sft
from tests.models.tiny import random_ids, template
from tests.training.practice import PROMPTS, cast, token_means
from tests.training.runs import groups, run_in, session
from tests.training.test_sft import examples

STEPS = 6
IMPROVED = {"improve", "improve/forward", "improve/backward", "improve/optimizer"}
PRACTISED = {"pack", "answer", "score", "batch", *IMPROVED, "observe", "log"}
PLAIN = {"forward", "backward", "optimizer", "log"}


def practise(train: Callable[..., Any], config: Any) -> Callable[[Run], Any]:
    def go(run: Run) -> None:
        who = cast()
        prompts = PROMPTS
        session = who.session(run, observe=lambda asked, answered: {})
        train(who.policy, who.reference, token_means, prompts, config, session)

    return go


def run_ppo(run: Run) -> None:
    who = cast()
    critic = critic_from(scorer_from(who.policy.module, torch.Generator().manual_seed(0)))
    config = PPOSection(steps=STEPS, prompts_per_step=8, pretrain_coef=0.1)
    actors = ppo.Actors(who.policy, who.reference, critic)
    ppo.train(actors, token_means, PROMPTS, examples(16), config, who.session(run))


def run_pretrain(run: Run) -> None:
    config = PretrainSection(batch_size=16, length=32)
    pretrain.train(cast().policy, torch.tensor(random_ids(64, 33, 33)), STEPS * 16 * 32, config, session(run))


def run_reward(run: Run) -> None:
    model = RewardModel(scorer_from(cast().policy.module, torch.Generator().manual_seed(0)), template(), "new")
    reward.train(model, groups(8 * STEPS, 0), RewardSection(batch_size=8), 1, 1e-4, session(run))


def run_sft(run: Run) -> None:
    sft.train(cast().policy, examples(16 * STEPS), SFTSection(epochs=1), session(run))


def run_dpo(run: Run) -> None:
    config = DPOSection(batch_size=8, observe_every=2)
    who = cast()
    given = groups(8 * STEPS, 0)
    dpo.train(who.policy, who.reference, given, config, session(run), run.folder / "cache", observe=lambda: {})


def run_kto(run: Run) -> None:
    config, who = KTOSection(batch_size=8, observe_every=2), cast()
    given = groups(8 * STEPS, 0)
    kto.train(who.policy, who.reference, given, config, session(run), run.folder / "cache", observe=lambda: {})


ONLINE = DPOSection(online_rounds=STEPS, online_prompts=6, online_answers=3)
TRAINERS: dict[str, tuple[Callable[[Run], Any], set[str]]] = {
    "pretrain": (run_pretrain, PLAIN),
    "sft": (run_sft, PLAIN),
    "reward": (run_reward, PLAIN),
    "dpo": (run_dpo, PLAIN | {"reference", "observe"}),
    "kto": (run_kto, PLAIN | {"reference", "observe"}),
    "ppo": (run_ppo, PRACTISED | {"advantages", "advantages/reference"}),
    "grpo": (
        practise(grpo.train, GRPOSection(steps=STEPS, prompts_per_step=4, group_size=4)),
        PRACTISED | {"reference", "advantages"},
    ),
    "rloo": (
        practise(rloo.train, RLOOSection(steps=STEPS, prompts_per_step=4)),
        PRACTISED | {"reference", "advantages"},
    ),
    "rebel": (practise(rebel.train, REBELSection(steps=STEPS, prompts_per_step=8)), PRACTISED | {"reference"}),
    "rejection": (
        practise(rejection.train, RejectionSection(rounds=STEPS, prompts_per_round=8)),
        PRACTISED | {"reference", "choose"},
    ),
    "online-dpo": (practise(dpo.train_online, ONLINE), PRACTISED | {"reference", "rank"}),
}


@pytest.mark.parametrize("name", TRAINERS)
def test_parts_cover_the_time_of_a_step(name: str, tmp_path: Path) -> None:
    train, expected = TRAINERS[name]
    ends: list[int] = []
    recording = record("a test")
    with run_in(tmp_path, name) as run:
        run.kept = False  # a tiny model's step is over sooner than a file is on the disk
        run.on_step = lambda done, total: ends.append(perf_counter_ns())
        train(run)
        parts = run.parts()
    stop()
    assert expected <= parts.keys() <= expected | {"restore", "set up"}
    assert len(ends) == STEPS and parts["log"]["calls"] <= STEPS
    top = [event for event in recording.events if event.kind == "part" and "/" not in event.part]
    covered = [
        sum(event.end - event.start for event in top if began <= event.start and event.end <= end) / (end - began)
        for began, end in zip(ends, ends[1:], strict=False)
    ]
    assert median(covered) > 0.9, covered
