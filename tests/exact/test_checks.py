"""What must hold, and that each of ten known faults is noticed.

The faults are those that code for RLHF has, or had. Each is planted where it would be made, and every check that is named for it
must fail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from bridle.generation import rollout
from bridle.maths import advantages, kl, losses
from bridle.models import batches
from bridle.models.batches import Batch
from bridle.training import grpo, ppo, rloo
from tests.exact.checks import (
    CHECKS,
    check_log_probs_are_those_of_whole_answers,
    check_padding_changes_no_estimate,
    check_ppo_reaches_the_optimum,
    check_sft_learns_how_often,
    check_the_first_grpo_gradient,
    check_the_first_ppo_gradient,
    check_the_first_rebel_gradient,
    check_the_first_rloo_gradient,
)

Check = Callable[[], None]


# That PPO reaches the optimum as it is, test_optimum.py sees.
@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, marks=[pytest.mark.slow] if check is check_ppo_reaches_the_optimum else [])
        for check in CHECKS
    ],
    ids=lambda check: check.__name__,
)
def test_the_code_as_it_is(check: Check) -> None:
    check()


# ------------------------------------------------------------------------------------------------ planting faults


def k1_as_loss(patch: pytest.MonkeyPatch) -> None:
    """The penalty leaves the reward and β k1 is added to the loss; its mean gradient is 0 (kl.py says why)."""
    plain = losses.clipped_policy

    def with_k1(logp_BT: Tensor, old: Tensor, adv: Tensor, mask_BT: Tensor, *, tokens: Tensor, **settings: Any) -> Any:
        loss, stats = plain(logp_BT, old, adv, mask_BT, tokens=tokens, **settings)
        return loss + 0.3 * torch.where(mask_BT, logp_BT, 0.0).sum() / tokens, stats  # the reference's part is constant

    patch.setattr(ppo, "k1", lambda logp, reference, mask: torch.zeros_like(logp))
    patch.setattr(ppo, "clipped_policy", with_k1)


def k3_in_the_reward(patch: pytest.MonkeyPatch) -> None:
    for trainer in (ppo, grpo, rollout):
        patch.setattr(trainer, "k1", kl.k3)


def clamped_k1(patch: pytest.MonkeyPatch) -> None:
    for trainer in (ppo, grpo, rollout):
        patch.setattr(trainer, "k1", lambda *given: kl.k1(*given).clamp(min=0))


def kl_of_the_wrong_sign(patch: pytest.MonkeyPatch) -> None:
    for trainer in (ppo, grpo, rollout):
        patch.setattr(trainer, "k1", lambda *given: -kl.k1(*given))


def mask_off_by_one(patch: pytest.MonkeyPatch) -> None:
    def late_BT(batch: Batch) -> Tensor:
        t = torch.arange(batch.ids_BW.shape[1] - 1)
        return (t >= batch.prompt_lengths_B[:, None] - 2) & (t < batch.lengths_B[:, None] - 2) & (t >= 0)

    patch.setattr(Batch, "mask_BT", property(late_BT))


def untrained_stop(patch: pytest.MonkeyPatch) -> None:
    """As where a pad token that is the stop token is taken out of the loss."""

    def without_last_BT(batch: Batch) -> Tensor:
        t = torch.arange(batch.ids_BW.shape[1] - 1)
        taken = batch.ids_BW[:, 1:]
        return (t >= batch.prompt_lengths_B[:, None] - 1) & (t < batch.lengths_B[:, None] - 1) & (taken != 4)

    patch.setattr(Batch, "mask_BT", property(without_last_BT))


def unmasked_whitening(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ppo, "whiten", lambda x, mask: advantages.whiten(x, torch.ones_like(mask)))


def reward_on_the_wrong_token(patch: pytest.MonkeyPatch) -> None:
    """On the first token of an answer in place of the last."""

    def at_start(reward_B: Tensor, mask_BT: Tensor) -> Tensor:
        first_B = mask_BT.int().argmax(1)
        placed = torch.zeros(mask_BT.shape, dtype=reward_B.dtype)
        return placed.scatter(1, first_B[:, None], reward_B[:, None])

    patch.setattr(ppo, "place_at_end", at_start)


def another_temperature(patch: pytest.MonkeyPatch) -> None:
    """Answers are drawn at one temperature and learnt from at another."""
    for trainer in (ppo, rollout):
        patch.setattr(
            trainer, "sequence_logprobs", lambda module, batch, _: batches.sequence_logprobs(module, batch, 1.0)
        )


def advantage_of_another_answer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ppo, "whiten", lambda x, mask: advantages.whiten(x, mask).roll(1, 0))
    relative = advantages.group_relative
    patch.setattr(grpo, "group_relative", lambda *given, **settings: relative(*given, **settings).roll(1, 0))
    patch.setattr(rloo, "leave_one_out", lambda *given: advantages.leave_one_out(*given).roll(1, 0))


OPTIMUM, PPO_STEP, GRPO_STEP = (
    check_ppo_reaches_the_optimum,
    check_the_first_ppo_gradient,
    check_the_first_grpo_gradient,
)
RLOO_STEP, REBEL_STEP = check_the_first_rloo_gradient, check_the_first_rebel_gradient
SFT, LOG_PROBS = check_sft_learns_how_often, check_log_probs_are_those_of_whole_answers
MUTANTS: dict[Callable[[pytest.MonkeyPatch], None], Sequence[Check]] = {
    k1_as_loss: (OPTIMUM, PPO_STEP),
    k3_in_the_reward: (OPTIMUM, PPO_STEP, RLOO_STEP, REBEL_STEP),
    clamped_k1: (OPTIMUM, PPO_STEP, RLOO_STEP, REBEL_STEP),
    kl_of_the_wrong_sign: (PPO_STEP, RLOO_STEP, REBEL_STEP),
    mask_off_by_one: (SFT, LOG_PROBS),
    untrained_stop: (SFT, LOG_PROBS),
    unmasked_whitening: (check_padding_changes_no_estimate, PPO_STEP),
    reward_on_the_wrong_token: (PPO_STEP,),
    another_temperature: (PPO_STEP, GRPO_STEP, RLOO_STEP, REBEL_STEP),
    advantage_of_another_answer: (PPO_STEP, GRPO_STEP, RLOO_STEP),
}
# One run to another optimum is enough to see that it is noticed: the first gradient tells those faults too.
CAUGHT = [
    pytest.param(
        plant,
        check,
        marks=[pytest.mark.slow] if check is OPTIMUM and plant is not k1_as_loss else [],
        id=f"{plant.__name__}-{check.__name__}",
    )
    for plant, checks in MUTANTS.items()
    for check in checks
]


@pytest.mark.parametrize(("plant", "check"), CAUGHT)
def test_a_planted_fault_is_noticed(
    plant: Callable[[pytest.MonkeyPatch], None], check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check()
