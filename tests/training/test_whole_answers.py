"""Losses of whole answers, RLOO's and REBEL's, at 400 tokens: what engine and training pass round apart adds up over an answer, so the
old log-probs are the training pass's, and an alarm watches the sum."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bridle.core.records import Completion, Prompt
from bridle.generation import rollout as online
from bridle.generation.rollout import Asking, roll_out
from bridle.guard.health import Health
from bridle.models.batches import Cut
from bridle.models.scorer import critic_from, scorer_from
from bridle.recipe.offline import DPOSection
from bridle.recipe.online import GRPOSection, PPOSection, REBELSection, RejectionSection, RLOOSection
from bridle.training import dpo, grpo, ppo, rebel, rejection, rloo
from tests.training.practice import PROMPTS, long_answers, token_means
from tests.training.runs import metrics, run_in

STILL: dict[str, Any] = {"steps": 1, "learning_rate": 0.0, "missing_stop_penalty": 0.0}
RLOO = RLOOSection(**STILL, prompts_per_step=5, epochs=2, minibatches=3, batch_size=8)
REBEL = REBELSection(**STILL, prompts_per_step=10, epochs=2, minibatches=3, batch_size=8)


def noise(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
    return [float(i % 7) / 7 for i in range(len(completions))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rloo_clips_nothing_that_has_not_moved(dtype: torch.dtype, tmp_path: Path) -> None:
    """Minibatches are cut otherwise than the pass was, which in bfloat16 may cost an answer a last digit."""
    policy, reference, session = long_answers(dtype, run_in(tmp_path))
    figures = rloo.train(policy, reference, noise, PROMPTS, RLOO, session)
    assert figures["length"] > 150 and figures["without_variance"] == 0, "the test needs long answers that differ"
    assert figures["clip_fraction"] == 0 and figures["approx_kl"] < 1e-3
    assert figures["kl"] == 0, "of equal weights, read by the same function in the same batches"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rebels_error_is_the_gap_of_rewards_where_nothing_has_moved(dtype: torch.dtype, tmp_path: Path) -> None:
    policy, reference, session = long_answers(dtype, run_in(tmp_path))
    figures = rebel.train(policy, reference, noise, PROMPTS, REBEL, session)
    squares = torch.tensor([(i % 7 - (i + 1) % 7) ** 2 / 49 for i in range(0, 20, 2)])
    minis = online.minibatches(torch.arange(10), 2, REBEL, 0, "rebel-minibatches", 0)
    expected = sum(float(squares[mini[:, 0] // 2].mean()) for mini in minis) / 6
    assert figures["length"] > 150 and figures["kl"] == 0
    assert figures["loss"] == pytest.approx(expected, abs=1e-5 if dtype == torch.float32 else 5e-3)


def test_rereading_gives_the_training_passes_numbers_and_the_engines_gap(tmp_path: Path) -> None:
    policy, reference, session = long_answers(torch.bfloat16, run_in(tmp_path))
    rollout = roll_out(0, policy, token_means, Asking("test", PROMPTS, 3, 4), session)
    reread, kl_B, gaps = online.reread(rollout, policy, reference, RLOO, 4, session.device)
    old_BT = online.reference_logprobs(rollout, policy, 1.0, Cut(8), session.device)
    assert torch.equal(reread.old_logp_BT, old_BT) and reread.reward_B is rollout.reward_B and not kl_B.any()
    off_BT = old_BT - rollout.old_logp_BT
    assert gaps["answer_gap"] == pytest.approx(sum(abs(float(off.sum())) for off in off_BT) / 12, rel=1e-5)
    assert gaps["logprob_gap"] == pytest.approx(float(off_BT[rollout.mask_BT].abs().mean()), rel=1e-5)


def alarmed(name: str, dtype: torch.dtype, tokens: int, folder: Path) -> tuple[float, bool]:
    """The gap of whole answers that was logged, and whether it was warned of."""
    run = run_in(folder)
    policy, reference, session = long_answers(dtype, run, tokens)
    if name == "ppo":
        critic = critic_from(scorer_from(policy.module, torch.Generator().manual_seed(0)))
        actors = ppo.Actors(policy, reference, critic)
        ppo.train(actors, noise, PROMPTS, [], PPOSection(**STILL, prompts_per_step=20, kl_target=0.0), session)
    elif name == "grpo":
        grpo.train(policy, reference, noise, PROMPTS, GRPOSection(**STILL, prompts_per_step=5, group_size=4), session)
    elif name == "rloo":
        rloo.train(policy, reference, noise, PROMPTS, RLOO, session)
    elif name == "rebel":
        rebel.train(policy, reference, noise, PROMPTS, REBEL, session)
    elif name == "rejection":
        once = RejectionSection(
            rounds=1, prompts_per_round=5, answers=4, learning_rate=0.0, keep="threshold", threshold=0.0
        )
        rejection.train(policy, reference, noise, PROMPTS, once, session)
    else:
        pairs = DPOSection(online_rounds=1, online_prompts=5, learning_rate=0.0, missing_stop_penalty=0.0)
        dpo.train_online(policy, reference, noise, PROMPTS, pairs, session)
    assert isinstance(run.watch, Health)
    assert name in ("ppo", "grpo") or metrics(folder)[0]["kl"] == 0, "of equal weights, both by the same pass"
    return metrics(folder)[0]["answer_gap"], "whole answers" in run.watch.state["warned"]


@pytest.mark.parametrize("name", ["ppo", "grpo", "rloo", "rebel", "rejection", "dpo"])
def test_an_alarm_watches_whole_answers(name: str, tmp_path: Path) -> None:
    long, warned = alarmed(name, torch.bfloat16, 400, tmp_path / "long")
    assert long > 0.1 and warned
    exact, warned = alarmed(name, torch.float32, 60, tmp_path / "exact")
    assert 0 < exact < 1e-3 and not warned
