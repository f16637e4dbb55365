"""Every trainer watches its health: broken numbers stop it before the step, dead runs stop with a checkpoint."""

import ast
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bridle.core.errors import TrainingStopped
from bridle.core.records import Completion, Prompt, Reward
from bridle.generation.engine import Engine
from bridle.generation.rollout import RolloutSession
from bridle.guard.health import Health
from bridle.models import imitation
from bridle.models.policy import RewardModel
from bridle.models.scorer import critic_from, scorer_from
from bridle.project.run import Run
from bridle.recipe.offline import DPOSection, KTOSection, ORPOSection, PretrainSection, RewardSection, SFTSection
from bridle.recipe.online import GRPOSection, PPOSection, REBELSection, RejectionSection, RLOOSection
from bridle.recipe.watching import GuardSection
from bridle.training import dpo, grpo, kto, ppo, pretrain, rebel, rejection, reward, rloo, sft
from tests.house.source import ROOT
from tests.models.tiny import one_sentence, random_ids, template
from tests.models.tiny import policy as tiny_policy
from tests.training.runs import DEVICE, groups, metrics, run_in, same, session, weights

PROMPTS = [Prompt.from_text(f"What is {i} + {i % 7}?") for i in range(12)]


def varied(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
    return [sum(c.token_ids) / 100 / len(c.token_ids) for c in completions]


def equal(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
    return [1.0] * len(completions)


def practising(run: Run) -> RolloutSession:
    return RolloutSession(run, DEVICE, 0, Engine(torch.float32), 8)


def health(run: Run) -> Health:
    assert isinstance(run.watch, Health)
    return run.watch


def run_sft(run: Run) -> torch.nn.Module:
    policy = tiny_policy()
    ids = random_ids(24, 3, 8, seed=1)
    sft.train(policy, list(zip(ids, ids, strict=True)), SFTSection(batch_size=4, checkpoint_every=2), session(run))
    return policy.module


def run_pretrain(run: Run) -> torch.nn.Module:
    policy, rows = tiny_policy(), torch.tensor(random_ids(64, 9, 9))
    config = PretrainSection(batch_size=4, length=8, checkpoint_every=2)
    pretrain.train(policy, rows, 4 * 8 * 8, config, session(run))
    return policy.module


def run_reward(run: Run) -> torch.nn.Module:
    scorer = scorer_from(tiny_policy().module, torch.Generator().manual_seed(0))
    config = RewardSection(batch_size=4, checkpoint_every=2)
    reward.train(RewardModel(scorer, template(), "made"), groups(24, 0), config, 1, 1e-3, session(run))
    return scorer


def run_dpo(run: Run) -> torch.nn.Module:
    policy = tiny_policy()
    config = DPOSection(batch_size=4, checkpoint_every=2)
    dpo.train(policy, tiny_policy(), groups(24, 0), config, session(run), run.folder / "cache")
    return policy.module


def run_orpo(run: Run) -> torch.nn.Module:
    policy = tiny_policy()
    config = ORPOSection(batch_size=4, checkpoint_every=2)
    dpo.train(policy, None, groups(24, 0), config, session(run), run.folder / "cache")
    return policy.module


def run_kto(run: Run) -> torch.nn.Module:
    policy = tiny_policy()
    config = KTOSection(batch_size=4, checkpoint_every=2)
    kto.train(policy, tiny_policy(), groups(24, 0), config, session(run), run.folder / "cache")
    return policy.module


def run_ppo(run: Run, source: Reward = varied, **settings: Any) -> torch.nn.Module:
    policy = tiny_policy()
    critic = critic_from(scorer_from(policy.module, torch.Generator().manual_seed(0)))
    config = PPOSection(**{"steps": 6, "prompts_per_step": 4, "checkpoint_every": 2, "minibatches": 1, **settings})
    ppo.train(ppo.Actors(policy, tiny_policy(), critic), source, PROMPTS, [], config, practising(run))
    return policy.module


FEW: dict[str, Any] = {"steps": 6, "prompts_per_step": 2, "group_size": 3, "checkpoint_every": 2, "minibatches": 1}


def run_grpo(run: Run, source: Reward = varied, **settings: Any) -> torch.nn.Module:
    policy, config = tiny_policy(), GRPOSection(**{**FEW, **settings})
    grpo.train(policy, tiny_policy(), source, PROMPTS, config, practising(run))
    return policy.module


def run_rloo(run: Run, source: Reward = varied, **settings: Any) -> torch.nn.Module:
    policy, config = tiny_policy(), RLOOSection(**{**FEW, **settings})
    rloo.train(policy, tiny_policy(), source, PROMPTS, config, practising(run))
    return policy.module


def run_rebel(run: Run, source: Reward = varied, **settings: Any) -> torch.nn.Module:
    policy = tiny_policy()
    config = REBELSection(**{"steps": 6, "prompts_per_step": 2, "checkpoint_every": 2, "minibatches": 1, **settings})
    rebel.train(policy, tiny_policy(), source, PROMPTS, config, practising(run))
    return policy.module


def run_rejection(run: Run, source: Reward = varied, **settings: Any) -> torch.nn.Module:
    policy = tiny_policy()
    with torch.no_grad():  # it keeps answers that ended alone
        policy.module.output_weight()[template().eos_id] *= 1.5
    config = RejectionSection(**{"rounds": 6, "prompts_per_round": 6, "answers": 3, "checkpoint_every": 2, **settings})
    rejection.train(policy, tiny_policy(), source, PROMPTS, config, practising(run))
    return policy.module


def run_online(run: Run, source: Reward = varied, **settings: Any) -> torch.nn.Module:
    policy = tiny_policy()
    config = DPOSection(**{"online_rounds": 6, "online_prompts": 2, "online_answers": 3, **settings})
    dpo.train_online(policy, tiny_policy(), source, PROMPTS, config, practising(run))
    return policy.module


PRACTISING = {
    "ppo": run_ppo, "grpo": run_grpo, "rloo": run_rloo, "rebel": run_rebel, "rejection": run_rejection,
    "online": run_online,
}  # fmt: skip


TRAINERS = {
    "sft": run_sft, "pretrain": run_pretrain, "reward": run_reward, "dpo": run_dpo, "orpo": run_orpo, "kto": run_kto,
    "ppo": run_ppo, "grpo": run_grpo,
}  # fmt: skip
MODULES = {
    "sft": imitation, "pretrain": pretrain, "reward": reward, "dpo": dpo, "orpo": dpo, "kto": kto, "ppo": ppo,
    "grpo": grpo,
}  # fmt: skip
LOSSES = {
    "sft": "next_token", "pretrain": "next_token", "reward": "bradley_terry", "dpo": "dpo", "orpo": "orpo", "kto": "kto",
    "ppo": "clipped_policy", "grpo": "grpo",
}  # fmt: skip


def spoil(patch: pytest.MonkeyPatch, trainer: str, call: int, spoiled: Callable[[Tensor], Tensor]) -> None:
    """From the so-manieth call on, the trainer's loss is spoilt."""
    plain, count = MODULES[trainer].__dict__[LOSSES[trainer]], [0]

    def loss(*arguments: Any, **named: Any) -> Any:
        count[0] += 1
        value, stats = plain(*arguments, **named)
        return (spoiled(value) if count[0] >= call else value), stats

    patch.setattr(MODULES[trainer], LOSSES[trainer], loss)


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_broken_numbers_stop_before_the_step_and_the_last_good_checkpoint_stays(
    trainer: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(loss: Tensor) -> Tensor:
        if what == "loss":
            return loss * math.nan
        return loss + 0 * (loss - loss.detach()).abs().sqrt()  # finite, and its slope is 0 · inf

    spoil(monkeypatch, trainer, 7 if trainer == "ppo" else 4, broken)  # PPO takes two optimiser steps in a step here
    with pytest.raises(TrainingStopped, match="no step was taken") as caught:
        TRAINERS[trainer](run_in(tmp_path))
    assert one_sentence(str(caught.value))
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert "step-000002" in left, "of the last step before that was saved"


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_gradient_of_zero_stops_with_a_checkpoint_and_goes_on_as_asked(
    trainer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is learnt from a loss of slope zero. A run that is gone on with stops again, unless the recipe says otherwise."""
    spoil(monkeypatch, trainer, 1, lambda loss: loss * 0)
    if trainer in ("reward",):
        monkeypatch.setattr(reward, "score_size", lambda scores, count: scores.sum() * 0)
    run = run_in(tmp_path, limits=GuardSection(dead_steps=1, stop_cut_off=1.0))
    if trainer == "ppo":  # the critic learns on
        monkeypatch.setattr(ppo, "clipped_value", lambda values, *a, **k: (values.sum() * 0, {}))
    with pytest.raises(TrainingStopped, match="for 1 logged steps in a row the gradient is zero"):
        TRAINERS[trainer](run)
    assert (tmp_path / "checkpoints" / "step-000001").is_dir()
    again = run_in(tmp_path, limits=GuardSection(dead_steps=0, stop_cut_off=1.0))
    TRAINERS[trainer](again)
    assert health(again).state["held"]["no gradient"] == len(metrics(tmp_path)) >= 2, "counted on from the checkpoint"


@pytest.mark.parametrize("trainer", PRACTISING)
def test_a_dead_reward_stops_the_run(trainer: str, tmp_path: Path) -> None:
    run = run_in(tmp_path, limits=GuardSection(dead_steps=3, stop_cut_off=1.0))
    with pytest.raises(TrainingStopped, match="all answers that were compared got the same reward") as caught:
        PRACTISING[trainer](run, equal)
    assert one_sentence(str(caught.value)) and (tmp_path / "checkpoints" / "step-000003").is_dir()


def test_a_reward_that_differs_between_prompts_alone_is_dead_too(tmp_path: Path) -> None:
    """Answers are compared with others to their own prompt."""
    run = run_in(tmp_path, limits=GuardSection(dead_steps=3, stop_cut_off=1.0))
    with pytest.raises(TrainingStopped, match="all answers that were compared got the same reward"):
        run_grpo(run, lambda prompts, completions: [float(PROMPTS.index(prompt)) for prompt in prompts])
    assert metrics(tmp_path)[-1]["score_sd"] > 0


@pytest.mark.parametrize("trainer", PRACTISING)
def test_a_reward_source_that_breaks_later_costs_no_step(trainer: str, tmp_path: Path) -> None:
    """It breaks in the fourth step, where the next checkpoint is due after the sixth: three steps are kept, and gone on from."""
    calls = [0]

    def breaking(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        calls[0] += 1
        return [None] * len(completions) if calls[0] == 4 else varied(prompts, completions)

    train = PRACTISING[trainer]
    with pytest.raises(TrainingStopped, match="none of .* got a finite reward"):
        train(run_in(tmp_path / "cut"), breaking, checkpoint_every=6)
    assert (tmp_path / "cut" / "checkpoints" / "step-000003").is_dir()
    resumed = train(run_in(tmp_path / "cut"), varied, checkpoint_every=6)
    whole = train(run_in(tmp_path / "whole"), varied, checkpoint_every=6)
    assert same(weights(whole), resumed) and metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


@pytest.mark.parametrize("trainer", PRACTISING)
def test_more_unscored_answers_than_allowed_stop_it(trainer: str, tmp_path: Path) -> None:
    def some(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        return [None, *varied(prompts, completions)[1:]]

    run = run_in(tmp_path, limits=GuardSection(max_unscored=0.05))
    with pytest.raises(TrainingStopped, match="only .* answers got a finite reward"):
        PRACTISING[trainer](run, some)
    assert not (tmp_path / "metrics.jsonl").exists(), "before any step"


def test_a_critic_that_warms_up_is_no_dead_run(tmp_path: Path) -> None:
    run = run_in(tmp_path, limits=GuardSection(dead_steps=2, stop_cut_off=1.0))
    run_ppo(run, critic_warmup=4)
    lines = metrics(tmp_path)
    assert [line["grad_norm"] == 0 for line in lines] == [True] * 4 + [False] * 2
    assert "no gradient" not in health(run).state["warned"] and not any("warming" in line for line in lines)


def called(name: str) -> list[tuple[str, ast.Call]]:
    """Every call of a function or method of this name in the trainers."""
    found = []
    for path in sorted((ROOT / "bridle/training").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == name:
                found.append((path.name, node))
    return found


def test_no_trainer_leaves_a_part_out() -> None:
    """Each hands selection score and signal to the one end of a step, answers by the one rollout, which knows how many rewards may
    lack, and takes no loss unseen. What is saved, and of what health, stands once, in `compute/steps.py`."""
    ends, rollouts = called("end") + called("end_step") + called("end_averaged_step"), called("rollouts")
    assert len(ends) >= 11 and len(rollouts) >= 6
    for path, call in ends:
        assert len(call.args) >= 4, path
        assert "gold" not in ast.unparse(call), path
    assert not called("TrainingState") and not called("save_checkpoint") and not called("roll_out")
    for path in (ROOT / "bridle/training").glob("*.py"):
        assert ".backward(" not in path.read_text(), f"{path.name}: `backward` looks at the loss first"
