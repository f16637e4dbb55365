"""RLOO, REBEL, KTO, SimPO and ORPO by hand, at their limits, the signs of their gradients, and cut up in every way."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bridle.maths.losses import (
    clipped_policy,
    dpo,
    kto,
    kto_baseline,
    kto_unwanted_weight,
    orpo,
    rebel,
    rloo,
    simpo,
)

Case = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def wide(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def slope(loss: Callable[[Tensor], Tensor], *at: float) -> list[float]:
    """dL/dx at a point."""
    x = wide(*at).requires_grad_()
    loss(x).backward()
    assert x.grad is not None
    found: list[float] = x.grad.tolist()
    return found


# ------------------------------------------------------------------------------------------------------ RLOO


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [(1.0, 2.0, -2.0, -2.0, 0), (1.5, 2.0, -2.4, 0.0, 1), (0.5, 2.0, -1.0, -1.0, 1), (0.5, -2.0, 1.6, 0.0, 1)],
)
def test_rloo_in_each_regime(ratio: float, advantage: float, loss: float, gradient: float, clipped: int) -> None:
    old, adv = wide(-21.5), wide(advantage)
    found, stats = rloo(old + math.log(ratio), old, adv, clip=0.2, count=1)
    assert float(found) == pytest.approx(loss) and float(stats["clip_fraction"]) == clipped
    assert slope(lambda x: rloo(x, old, adv, clip=0.2, count=1)[0], -21.5 + math.log(ratio)) == pytest.approx(
        [gradient], abs=1e-12
    )


def test_rloo_is_the_clipped_surrogate_of_answers_of_one_token() -> None:
    torch.manual_seed(0)
    logp, old, adv = torch.randn(3, 6, dtype=torch.float64) * 0.3
    loss, stats = rloo(logp, old, adv, clip=0.2, count=6)
    mask = torch.ones(6, 1, dtype=torch.bool)
    expected, told = clipped_policy(logp[:, None], old[:, None], adv[:, None], mask, clip=0.2, tokens=6)
    assert float(loss) == float(expected) and {k: float(v) for k, v in stats.items()} == {
        k: float(v) for k, v in told.items()
    }


def test_on_its_own_answers_rloo_climbs_the_expected_reward() -> None:
    """Each action of a policy over five, weighed by its probability: REINFORCE without sampling noise."""
    torch.manual_seed(1)
    start, reward = torch.randn(2, 5, dtype=torch.float64)
    found, wanted = start.clone().requires_grad_(), start.clone().requires_grad_()
    logp = found.log_softmax(0)
    rloo(logp, logp.detach(), reward * logp.detach().exp(), clip=0.2, count=1)[0].backward()
    (-(wanted.softmax(0) * reward).sum()).backward()
    torch.testing.assert_close(found.grad, wanted.grad, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------------ REBEL


def test_rebel_by_hand() -> None:
    """Log-odds moved by 1 - (-.5) = 1.5 where η Δr = .5 × 2, and by -1 where Δr is 0."""
    old = torch.tensor([[-3.0, -4.0], [-5.0, -6.0]])
    logp = old + torch.tensor([[1.0, -0.5], [0.0, 1.0]])
    reward = torch.tensor([[2.0, 0.0], [7.0, 7.0]])
    loss, stats = rebel(logp, old, reward, eta=0.5, count=2)
    assert float(loss) == pytest.approx(((1.5 / 0.5 - 2) ** 2 + (-1 / 0.5) ** 2) / 2) == float(stats["loss"])


@pytest.mark.parametrize("eta", [0.1, 1.0, 5.0])
def test_rebel_is_at_rest_where_the_log_odds_have_moved_by_eta_times_the_difference(eta: float) -> None:
    reward = torch.tensor([[1.5, -0.5]], dtype=torch.float64)
    for share in (0.0, 0.5, 1.0, 1.5):
        moved = wide(share * eta, -share * eta).view(1, 2)
        x = moved.clone().requires_grad_()
        rebel(x, torch.zeros(1, 2), reward, eta=eta, count=1)[0].backward()
        assert x.grad is not None
        assert x.grad.tolist()[0] == pytest.approx([4 * (share - 1) / eta, -4 * (share - 1) / eta], abs=1e-12)


def test_a_number_that_both_answers_share_changes_nothing_in_rebel() -> None:
    torch.manual_seed(2)
    logp, old, reward = torch.randn(3, 4, 2, dtype=torch.float64)
    shared = torch.randn(4, 1, dtype=torch.float64)
    expected = rebel(logp, old, reward, eta=0.7, count=4)[0]
    for moved in ((logp + shared, old, reward), (logp, old + shared, reward), (logp, old, reward + shared)):
        torch.testing.assert_close(rebel(*moved, eta=0.7, count=4)[0], expected, rtol=1e-12, atol=1e-12)
    turned = rebel(logp.flip(1), old.flip(1), reward.flip(1), eta=0.7, count=4)[0]
    torch.testing.assert_close(turned, expected, rtol=1e-12, atol=0)


def test_on_its_own_answers_rebels_first_step_is_the_policy_gradient() -> None:
    """Every pair of a policy's actions with its probability: at π = π_old the gradient is -4/η that of the expected reward
    (Gao 2024, §3: REBEL's first step is REINFORCE with the other answer for a baseline)."""
    torch.manual_seed(3)
    start, reward = torch.randn(2, 4, dtype=torch.float64)
    found, wanted = start.clone().requires_grad_(), start.clone().requires_grad_()
    logp = found.log_softmax(0)
    total = torch.zeros((), dtype=torch.float64)
    for a in range(4):
        for b in range(4):
            pair = torch.stack([logp[a], logp[b]])[None]
            chance = float((logp[a] + logp[b]).detach().exp())
            total = total + chance * rebel(pair, pair.detach(), reward[[a, b]][None], eta=0.5, count=1)[0]
    total.backward()
    (-(wanted.softmax(0) * reward).sum()).backward()
    assert found.grad is not None and wanted.grad is not None
    torch.testing.assert_close(found.grad, 4 / 0.5 * wanted.grad, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------------- KTO


def test_kto_by_hand() -> None:
    """βh = 1 for a wanted answer and -.5 for an unwanted one, z = .25, unwanted ones weighing 1.5."""
    logp, reference = wide(-4.0, -9.0), wide(-6.0, -8.0)
    wanted = torch.tensor([True, False])
    loss, stats = kto(logp, reference, wanted, 0.25, beta=0.5, unwanted_weight=1.5, count=2)
    good, bad = 1 / (1 + math.exp(1 - 0.25)), 1 / (1 + math.exp(0.25 + 0.5))
    assert float(loss) == pytest.approx((good + 1.5 * bad) / 2) == float(stats["loss"])
    weighed, _ = kto(
        logp, reference, wanted, 0.25, beta=0.5, wanted_weight=0.5, weight_N=wide(2.0, 0.25), count=2.25
    )  # fmt: skip
    assert float(weighed) == pytest.approx((2.0 * 0.5 * good + 0.25 * bad) / 2.25)


def test_an_answer_that_three_of_four_call_good_is_three_good_ones_and_a_bad_one() -> None:
    settings = {"beta": 0.4, "wanted_weight": 1.3, "unwanted_weight": 0.6}

    def together(logp: Tensor) -> Tensor:
        return kto(logp, wide(-5.0), wide(0.75), 0.1, weight_N=4.0, count=4, **settings)[0]

    def apart(logp: Tensor) -> Tensor:
        votes = torch.tensor([True, True, True, False])
        return kto(logp.expand(4), wide(-5.0).expand(4), votes, 0.1, count=4, **settings)[0]

    assert float(together(wide(-4.0))) == pytest.approx(float(apart(wide(-4.0))))
    assert slope(together, -4.0) == pytest.approx(slope(apart, -4.0))


@pytest.mark.parametrize(
    ("good", "bad", "wanted", "expected"),
    [
        (50, 50, 1.0, 1.0), (60, 50, 1.0, 1.0), (400, 300, 1.0, 1.0), (100, 25, 1.0, 3.0), (25, 100, 1.0, 0.25),
        (25, 100, 4.0, 1.0), (50, 50, 2.0, 1.5), (0.5, 2.0, 0.1, 0.025),
    ],
)  # fmt: skip
def test_the_weight_of_unwanted_answers_leaves_the_two_sides_between_even_and_four_to_three(
    good: float, bad: float, wanted: float, expected: float
) -> None:
    found = kto_unwanted_weight(good, bad, wanted)
    assert found == pytest.approx(expected)
    assert 1 - 1e-9 <= wanted * good / (found * bad) <= 4 / 3 + 1e-9


@pytest.mark.parametrize("baseline", [0.0, 0.4])
@pytest.mark.parametrize("h", [-3.0, 0.0, 2.0])
def test_kto_raises_what_is_wanted_and_lowers_what_is_not(h: float, baseline: float) -> None:
    """dL/dh = ∓β λ σ(x) (1 - σ(x)): it pulls hardest where an answer stands at the baseline, and lets go far from it."""
    for wanted, sign in ((True, -1), (False, 1)):
        x = sign * (baseline - 0.3 * h) if wanted else baseline - 0.3 * h
        chance = 1 / (1 + math.exp(-x))
        found = slope(
            lambda logp, w=wanted: kto(logp, wide(0.0), torch.tensor([w]), baseline, beta=0.3, count=1)[0], h
        )  # fmt: skip
        assert found == pytest.approx([sign * 0.3 * chance * (1 - chance)], rel=1e-9)


def test_kto_begins_at_one_half_and_stays_between_nothing_and_everything() -> None:
    wanted = torch.tensor([True, False, True])
    still = wide(-3.0, -5.0, -7.0)
    assert float(kto(still, still, wanted, 0.0, beta=0.1, count=3)[0]) == pytest.approx(0.5)
    right = wide(2000.0, -2000.0, 2000.0)
    assert float(kto(right, torch.zeros(3), wanted, 0.0, beta=1.0, count=3)[0]) == pytest.approx(0, abs=1e-12)
    assert float(kto(-right, torch.zeros(3), wanted, 0.0, beta=1.0, count=3)[0]) == pytest.approx(1)


def test_ktos_baseline_is_never_negative_and_has_no_gradient() -> None:
    logp = wide(-2.0, -3.0).requires_grad_()
    baseline = kto_baseline(logp, wide(-4.0, -3.5), beta=0.2)
    assert float(baseline) == pytest.approx(0.2 * (2 + 0.5) / 2) and not baseline.requires_grad
    assert float(kto_baseline(logp, wide(0.0, 0.0), beta=0.2)) == 0


# ------------------------------------------------------------------------------------------------------ SimPO


def test_simpo_by_hand() -> None:
    """Mean log-probs .5 and -.25 apart, β = 2, γ = .5; the second pair weighs half."""
    loss, stats = simpo(wide(-1.0, -2.0), wide(-1.5, -1.75), wide(1.0, 0.5), beta=2.0, margin=0.5, count=1.5)
    first, second = math.log1p(math.exp(-(1.0 - 0.5))), math.log1p(math.exp(-(-0.5 - 0.5)))
    assert float(loss) == pytest.approx((first + 0.5 * second) / 1.5)
    assert float(stats["accuracy"]) == pytest.approx(1 / 1.5)
    assert float(stats["margin"]) == pytest.approx(2 * (0.5 - 0.5 * 0.25) / 1.5)


def test_simpo_without_a_margin_is_dpo_against_a_flat_reference() -> None:
    torch.manual_seed(4)
    chosen, rejected = torch.randn(2, 5, dtype=torch.float64)
    flat, weight = torch.full((5,), -3.0, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    expected = dpo(chosen, rejected, flat, flat, weight, beta=1.3, count=2)[0]
    assert float(simpo(chosen, rejected, weight, beta=1.3, margin=0.0, count=2)[0]) == pytest.approx(float(expected))


@pytest.mark.parametrize("margin", [0.0, 1.0])
@pytest.mark.parametrize("gap", [-2.0, 0.0, 0.5, 3.0])
def test_simpo_pulls_until_the_margin_is_won(gap: float, margin: float) -> None:
    """dL/dm_c = -β σ(γ - β gap): half of β just where the margin is reached, less beyond it."""
    found = slope(lambda m: simpo(m, wide(0.0), wide(1.0), beta=2.0, margin=margin, count=1)[0], gap)
    assert found == pytest.approx([-2.0 / (1 + math.exp(2.0 * gap - margin))], rel=1e-9)


# ------------------------------------------------------------------------------------------------------- ORPO


def log_odds(mean: float) -> float:
    return math.log(math.exp(mean) / (1 - math.exp(mean)))


def test_orpo_by_hand() -> None:
    """Two pairs, the second weighing half; probabilities a token of .5 and .2, and of .1 and .4."""
    chosen, rejected = wide(math.log(0.5), math.log(0.1)), wide(math.log(0.2), math.log(0.4))
    loss, stats = orpo(chosen, rejected, wide(1.0, 0.5), odds_weight=0.3, count=1.5)
    gaps = [math.log((0.5 / 0.5) / (0.2 / 0.8)), math.log((0.1 / 0.9) / (0.4 / 0.6))]
    imitated = -(math.log(0.5) + 0.5 * math.log(0.1)) / 1.5
    penalty = (math.log1p(math.exp(-gaps[0])) + 0.5 * math.log1p(math.exp(-gaps[1]))) / 1.5
    assert float(loss) == pytest.approx(imitated + 0.3 * penalty)
    assert float(stats["sft_loss"]) == pytest.approx(imitated) and float(stats["odds_loss"]) == pytest.approx(penalty)
    assert float(stats["margin"]) == pytest.approx((gaps[0] + 0.5 * gaps[1]) / 1.5)
    assert float(stats["accuracy"]) == pytest.approx(1 / 1.5)


@pytest.mark.parametrize("chosen", [-4.0, -1.0, -0.1])
@pytest.mark.parametrize("rejected", [-3.0, -0.5])
def test_orpo_imitates_the_chosen_and_pulls_apart_by_the_share_that_is_still_wrong(
    chosen: float, rejected: float
) -> None:
    """d/dm_c = -1 - λ δ/(1 - p_c) and d/dm_r = λ δ/(1 - p_r), δ = odds_r/(odds_c + odds_r) (Hong 2024, eq. 8 to 10)."""
    odds = [math.exp(m) / (1 - math.exp(m)) for m in (chosen, rejected)]
    delta = odds[1] / sum(odds)
    found = slope(lambda m: orpo(m[:1], m[1:], wide(1.0), odds_weight=0.2, count=1)[0], chosen, rejected)
    expected = [-1 - 0.2 * delta / (1 - math.exp(chosen)), 0.2 * delta / (1 - math.exp(rejected))]
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("near", [0.0, -1e-30, -1e-12, -1e-7, -1e-3, -200.0])
def test_orpo_has_numbers_where_an_answer_is_certain_or_impossible(near: float, dtype: torch.dtype) -> None:
    """log(1 - exp(m)) is -inf at m = 0, and by log1p(-exp(m)) long before."""
    for sides in ((near, -1.0), (-1.0, near), (near, near)):
        x = torch.tensor(sides, dtype=dtype, requires_grad=True)
        loss, stats = orpo(x[:1], x[1:], torch.ones(1, dtype=dtype), odds_weight=0.5, count=1)
        loss.backward()
        assert x.grad is not None and bool(torch.isfinite(x.grad).all()), sides
        assert all(math.isfinite(float(value)) for value in stats.values()), sides
    if near <= -1e-3:
        gap = float(orpo(wide(near), wide(-1.0), wide(1.0), odds_weight=1.0, count=1)[1]["margin"])
        assert gap == pytest.approx(log_odds(near) - log_odds(-1.0), rel=1e-9)


def test_orpos_odds_keep_their_digits_where_an_answer_is_nearly_certain() -> None:
    """log1p(-exp(m)) in float32 is .06 nats off at m = -1e-6, and its gradient by some percent."""
    for near in (-1e-6, -2e-6, -3e-5):
        found = []
        for dtype in (torch.float32, torch.float64):
            x = torch.tensor([-1e-5, near], dtype=torch.float32).to(dtype).requires_grad_()
            loss, stats = orpo(x[:1], x[1:], torch.ones(1, dtype=dtype), odds_weight=1.0, count=1)
            loss.backward()
            assert x.grad is not None
            found.append([float(stats["margin"]), *x.grad.tolist()])
        assert found[0] == pytest.approx(found[1], rel=1e-5), near


def test_none_of_them_overflows() -> None:
    far, zero, one = wide(2000.0, -2000.0), torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    assert float(simpo(far, zero, one, beta=1.0, margin=0.0, count=1)[0]) == 2000.0
    assert math.isfinite(float(kto(far, zero, torch.tensor([True, False]), 0.0, beta=1.0, count=1)[0]))
    assert float(orpo(zero - 2000.0, zero - 1.0, one, odds_weight=0.0, count=2)[0]) == 2000.0


# ------------------------------------------------------------------------------------------- however it is cut up


def rloo_case(x: Tensor, y: Tensor, share: Tensor, count: float) -> Tensor:
    return rloo(x[:, 0], x.detach()[:, 0] + 0.1 * y[:, 0], y[:, 1], clip=0.05, count=count)[0]


def rebel_case(x: Tensor, y: Tensor, share: Tensor, count: float) -> Tensor:
    return rebel(x, y, y.flip(1), eta=0.7, count=count)[0]


def kto_case(x: Tensor, y: Tensor, share: Tensor, count: float) -> Tensor:
    return kto(x[:, 0], y[:, 0], y[:, 1] > 0, 0.2, beta=0.3, wanted_weight=1.2, weight_N=share, count=count)[0]


def simpo_case(x: Tensor, y: Tensor, share: Tensor, count: float) -> Tensor:
    return simpo(x[:, 0], x[:, 1], share, beta=2.0, margin=0.5, count=count)[0]


def orpo_case(x: Tensor, y: Tensor, share: Tensor, count: float) -> Tensor:
    return orpo(x[:, 0].exp().neg(), x[:, 1].exp().neg(), share, odds_weight=0.7, count=count)[0]


@pytest.mark.parametrize("loss", [rloo_case, rebel_case, kto_case, simpo_case, orpo_case])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_gradient_does_not_depend_on_how_the_step_was_cut_up(loss: Case, size: int) -> None:
    torch.manual_seed(5)
    features, given = torch.randn(7, 2, 3, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    share = torch.rand(7, dtype=torch.float64)

    def gradient(size: int) -> Tensor:
        weight = wide(0.3, -0.2, 0.1).requires_grad_()
        for part in torch.arange(7).split(size):
            loss(features[part] @ weight, given[part], share[part], 3.0).backward()
        assert weight.grad is not None
        return weight.grad

    assert gradient(7).abs().min() > 1e-3, "the test needs a gradient"
    torch.testing.assert_close(gradient(size), gradient(7), rtol=0, atol=1e-12)
