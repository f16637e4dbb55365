"""KL estimators against exact enumeration on a policy of five tokens, and the control of the penalty's weight."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bridle.core.errors import RecipeError, TrainingStopped
from bridle.maths.kl import KLControl, k1, k3
from tests.models.tiny import one_sentence

Estimator = Callable[[Tensor, Tensor, Tensor], Tensor]
POLICY = torch.tensor([1.3, -0.4, 0.2, 0.9, -1.1], dtype=torch.float64)
REFERENCE = torch.tensor([-0.5, 0.8, 0.1, -0.3, 0.6], dtype=torch.float64)
ALL = torch.ones(5, dtype=torch.bool)


def divergence(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p‖q) by its definition, a sum of five terms."""
    p, q = p_logits.softmax(0), q_logits.softmax(0)
    return sum((p[a] * (p[a] / q[a]).log() for a in range(5)), torch.zeros((), dtype=torch.float64))


def exact_kl(logits_NV: Tensor, reference_logits_NV: Tensor) -> Tensor:
    """Σ_a π(a) (log π(a) - log π_ref(a)) for each of N positions: no sampling noise, needs both full distributions."""
    logp, reference = logits_NV.log_softmax(-1), reference_logits_NV.log_softmax(-1)
    return (logp.exp() * (logp - reference)).sum(-1)


def gradient_of(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logits, retain_graph=True)[0]


def test_the_exact_divergence_is_the_sum() -> None:
    found = exact_kl(torch.stack([POLICY, POLICY]), torch.stack([REFERENCE, POLICY]))
    assert found.tolist() == pytest.approx([float(divergence(POLICY, REFERENCE)), 0.0], abs=1e-12)


@pytest.mark.parametrize("estimator", [k1, k3])
def test_the_expectation_over_the_policys_own_tokens_is_the_divergence(estimator: Estimator) -> None:
    terms = estimator(POLICY.log_softmax(0), REFERENCE.log_softmax(0), ALL)
    expectation = float((POLICY.softmax(0) * terms).sum())
    assert expectation == pytest.approx(float(divergence(POLICY, REFERENCE)), abs=1e-12)
    assert abs(expectation - float(divergence(REFERENCE, POLICY))) > 0.05  # the other direction is another number


def test_k3_with_its_sign_flipped_is_something_else() -> None:
    p, q = POLICY.log_softmax(0), REFERENCE.log_softmax(0)
    flipped = float((p.exp() * k3(q, p, ALL)).sum())
    assert abs(flipped - float(divergence(POLICY, REFERENCE))) > 0.05


def test_k1_may_be_negative_and_is_not_clamped_and_k3_never_is() -> None:
    p, q = POLICY.log_softmax(0), REFERENCE.log_softmax(0)
    assert float(k1(p, q, ALL).min()) < 0
    assert float(k3(p, q, ALL).min()) >= 0
    assert k3(p, p, ALL).tolist() == [0.0] * 5


def test_k3_by_hand() -> None:
    logp, reference = torch.tensor([0.5]), torch.tensor([0.0])
    assert float(k3(logp, reference, ALL[:1])) == pytest.approx(0.60653066 - 1 + 0.5)


@pytest.mark.parametrize("estimator", [k1, k3])
def test_what_lies_off_the_mask_is_zero(estimator: Estimator) -> None:
    logp = torch.tensor([-1.0, float("nan"), float("-inf")], requires_grad=True)
    found = estimator(logp, torch.tensor([-2.0, 0.0, float("-inf")]), torch.tensor([True, False, False]))
    found.sum().backward()
    assert found[1:].tolist() == [0.0, 0.0]
    assert float(found[0].detach()) > 0
    assert logp.grad is not None and logp.grad[1:].tolist() == [0.0, 0.0]


def test_gradients_of_the_estimators_by_enumeration() -> None:
    """Expected gradients, exactly: a reward's is Σ π(a) ∇log π(a) · R(a), a loss's is Σ π(a) ∇k(a) with π(a) held.

    k1 in the reward: KL(π‖ref). k1 as a loss: nothing. k3 as a loss: KL(ref‖π). k3 in the reward: their difference.
    """
    logits = POLICY.clone().requires_grad_()
    logp, reference = logits.log_softmax(0), REFERENCE.log_softmax(0)
    held = logp.detach().exp()
    reverse = gradient_of(divergence(logits, REFERENCE), logits)
    forward = gradient_of(divergence(REFERENCE, logits), logits)

    k1_reward = gradient_of((held * logp * k1(logp, reference, ALL).detach()).sum(), logits)
    k1_loss = gradient_of((held * k1(logp, reference, ALL)).sum(), logits)
    k3_reward = gradient_of((held * logp * k3(logp, reference, ALL).detach()).sum(), logits)
    k3_loss = gradient_of((held * k3(logp, reference, ALL)).sum(), logits)

    torch.testing.assert_close(k1_reward, reverse, rtol=0, atol=1e-12)
    torch.testing.assert_close(k1_loss, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(k3_loss, forward, rtol=0, atol=1e-12)
    torch.testing.assert_close(k3_reward, reverse - forward, rtol=0, atol=1e-12)
    assert float(reverse.norm()) > 0.1


def test_k3_in_the_reward_holds_almost_nothing_near_the_reference() -> None:
    logits = (REFERENCE + 0.02 * POLICY).requires_grad_()
    logp, reference = logits.log_softmax(0), REFERENCE.log_softmax(0)
    held = logp.detach().exp()
    by_k1 = gradient_of((held * logp * k1(logp, reference, ALL).detach()).sum(), logits)
    by_k3 = gradient_of((held * logp * k3(logp, reference, ALL).detach()).sum(), logits)
    assert float(by_k3.norm()) < float(by_k1.norm()) / 30


@pytest.mark.parametrize(
    ("kl", "share"),
    [(6.0, 1.0), (9.0, 1.05), (3.0, 0.95), (100.0, 1.1), (0.0, 0.9), (-5.0, 0.9), (12.0, 1.1)],
)
def test_beta_moves_by_its_gain_at_most(kl: float, share: float) -> None:
    assert KLControl(0.2, target=6.0).after(kl).beta == pytest.approx(0.2 * share)


def test_beta_stays_fixed_without_a_target() -> None:
    control = KLControl(0.2)
    assert control.after(100.0) is control


def test_beta_stays_within_floor_and_ceiling() -> None:
    assert KLControl(0.2, target=1.0, ceiling=0.21).after(50.0).beta == 0.21
    assert KLControl(0.2, target=1.0, floor=0.19).after(0.0).beta == 0.19


@pytest.mark.parametrize(
    "control",
    [
        *({"beta": 0.2, "target": target} for target in (0.0, -1.0, math.nan, math.inf)),
        {"beta": 0.0, "target": 1.0},  # a product never leaves 0
        *({"beta": beta} for beta in (-0.1, math.nan, math.inf)),
        *({"beta": 0.2, "target": 1.0, "gain": gain} for gain in (0.0, -0.1, 1.1, math.nan)),
        {"beta": 0.2, "gain": 1.1},
        {"beta": 0.2, "floor": 2.0, "ceiling": 1.0},
        {"beta": 0.2, "ceiling": math.inf},
        {"beta": 0.2, "target": 1.0, "floor": 0.0},
        {"beta": 0.2, "target": 1.0, "floor": 0.3},
        {"beta": 20.0, "target": 1.0},  # the first step would pull it down to the ceiling
    ],
)
def test_what_cannot_steer_is_refused_where_it_is_made(control: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="got KLControl") as caught:
        KLControl(**control)
    assert one_sentence(str(caught.value))


@pytest.mark.parametrize("target", [None, 1.0])
@pytest.mark.parametrize("kl", [math.nan, math.inf, -math.inf])
def test_a_kl_that_is_not_finite_steers_nothing(kl: float, target: float | None) -> None:
    with pytest.raises(TrainingStopped, match=f"the KL to the reference is {kl}") as caught:
        KLControl(0.2, target).after(kl)
    assert one_sentence(str(caught.value))


def test_a_weight_that_has_fallen_as_far_as_it_may_comes_back() -> None:
    control = KLControl(0.2, target=1.0, gain=1.0).after(0.0)
    assert 0 < control.beta < control.after(5.0).beta
    assert KLControl(0.0).after(5.0).beta == 0.0, "fixed at 0 is no penalty, which may be meant"


def test_steering_reaches_the_target() -> None:
    """A policy whose divergence is 1 / β settles at the target."""
    control = KLControl(0.1, target=2.0)
    for _ in range(200):
        control = control.after(1 / control.beta)
    assert 1 / control.beta == pytest.approx(2.0, rel=1e-3)
