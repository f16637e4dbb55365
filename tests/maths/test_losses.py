"""Losses by hand, in each regime, with nan off the mask, and cut up in every way."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bridle.maths.kl import k3
from bridle.maths.losses import (
    bradley_terry,
    classification,
    clipped_policy,
    clipped_value,
    dpo,
    grpo,
    ipo,
    next_token,
    plackett_luce,
    rating,
    score_size,
    token_weights,
)

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
Preference = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]
TRUE = torch.tensor([[True]])


def one(*numbers: float) -> list[Tensor]:
    return [torch.tensor([[number]], dtype=torch.float64) for number in numbers]


def test_next_token_is_the_mean_surprise_in_nats() -> None:
    loss, stats = next_token(torch.tensor([math.log(0.25), math.log(0.5)]), tokens=2)
    assert float(loss) == pytest.approx((math.log(4) + math.log(2)) / 2)
    assert float(stats["loss"]) == float(loss)


def test_next_token_pulls_the_target_up_and_the_rest_down() -> None:
    logits = torch.zeros(1, 4, requires_grad=True)
    next_token(logits.log_softmax(1)[:, 2], tokens=1)[0].backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0.25, 0.25, -0.75, 0.25]]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, 0),  # the first step: the plain policy gradient
        (1.1, 2.0, -2.2, -2.2, 0),
        (1.5, 2.0, -2.4, 0.0, 1),  # good and already much likelier: held at 1.2 × 2
        (0.5, 2.0, -1.0, -1.0, 1),  # good but less likely: pulled back
        (1.5, -2.0, 3.0, 3.0, 1),  # bad and likelier: pushed down
        (0.5, -2.0, 1.6, 0.0, 1),  # bad and already much less likely: held at .8 × -2
    ],
)
def test_clipped_policy_in_each_regime(
    ratio: float, advantage: float, loss: float, gradient: float, clipped: int
) -> None:
    old, adv = one(-1.3, advantage)
    logp = (old + math.log(ratio)).requires_grad_()
    found, stats = clipped_policy(logp, old, adv, TRUE, clip=0.2, tokens=1)
    found.backward()
    assert float(found.detach()) == pytest.approx(loss)
    assert logp.grad is not None
    assert float(logp.grad) == pytest.approx(gradient)
    assert float(stats["clip_fraction"]) == clipped
    assert float(stats["approx_kl"]) == pytest.approx(math.log(ratio) ** 2 / 2)
    assert float(stats["policy_loss"]) == pytest.approx(loss)


@pytest.mark.parametrize(
    ("value", "target", "loss", "gradient"),
    [
        (1.2, 2.0, 0.32, -0.8),  # within ±.5 of the rollout's 1.0: a plain square
        (1.8, 2.0, 0.125, 0.0),  # moved further than .5 towards the return: counted as standing at 1.5, without a pull
        (1.8, 1.0, 0.32, 0.8),  # moved too far and away: the larger error counts, and pulls back
        (0.2, 1.0, 0.32, -0.8),
        (0.2, 0.0, 0.125, 0.0),
    ],
)
def test_clipped_value_in_each_regime(value: float, target: float, loss: float, gradient: float) -> None:
    old, returns = one(1.0, target)
    values = one(value)[0].requires_grad_()
    found, stats = clipped_value(values, old, returns, TRUE, clip=0.5, tokens=1)
    found.backward()
    assert values.grad is not None
    assert float(found.detach()) == pytest.approx(loss)
    assert float(values.grad) == pytest.approx(gradient)
    assert float(stats["value_loss"]) == pytest.approx(loss)


def test_bradley_terry_is_the_log_sigmoid_of_the_gap() -> None:
    chosen, rejected, weight = (
        torch.tensor([1.0, 0.0, -2.0]),
        torch.tensor([0.0, 0.5, 3.0]),
        torch.tensor([1.0, 0.5, 2]),
    )
    loss, stats = bradley_terry(chosen, rejected, weight, count=2)
    by_hand = [math.log(1 / (1 + math.exp(-gap))) for gap in (1.0, -0.5, -5.0)]
    assert float(loss) == pytest.approx(-(by_hand[0] + 0.5 * by_hand[1] + 2 * by_hand[2]) / 2)
    assert float(stats["accuracy"]) == 0.5  # of weight 3.5, the first pair alone is right: 1 / 2


def test_bradley_terry_counts_equal_scores_as_half_right() -> None:
    level = torch.zeros(3)
    targets = torch.tensor([1.0, 0.2, 0.5])
    assert float(bradley_terry(level, level, torch.ones(3), count=3, target_P=targets)[1]["accuracy"]) == 0.5


def test_bradley_terry_starts_at_log_two_and_pulls_apart() -> None:
    scores = torch.zeros(2, requires_grad=True)
    loss, _ = bradley_terry(scores[:1], scores[1:], torch.ones(1), count=1)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(2))
    assert scores.grad is not None
    assert scores.grad.tolist() == [-0.5, 0.5]


def test_bradley_terry_does_not_overflow() -> None:
    loss, _ = bradley_terry(torch.tensor([-500.0, 500.0]), torch.tensor([500.0, -500.0]), torch.ones(2), count=1)
    assert float(loss) == 1000.0


def test_a_ranking_of_four_weighs_as_much_as_one_pair() -> None:
    """Six pairs at 1/6 each: with all scores equal both prompts give log 2."""
    loss, _ = bradley_terry(torch.zeros(7), torch.zeros(7), torch.tensor([1.0, *[1 / 6] * 6]), count=2)
    assert float(loss) == pytest.approx(math.log(2))


def test_a_soft_label_pulls_to_its_own_log_odds() -> None:
    """-[p log σ(g) + (1 - p) log σ(-g)] has the gradient σ(g) - p: none where the scores say p already."""
    for p, gap in ((0.8, math.log(4)), (0.5, 0.0), (0.2, -math.log(4))):
        scores = torch.tensor([gap, 0.0], dtype=torch.float64, requires_grad=True)
        loss, _ = bradley_terry(
            scores[:1], scores[1:], torch.ones(1), count=1, target_P=torch.tensor([p], dtype=torch.float64)
        )
        loss.backward()
        assert float(loss.detach()) == pytest.approx(-(p * math.log(p) + (1 - p) * math.log(1 - p)))
        assert scores.grad is not None
        assert scores.grad.tolist() == pytest.approx([0.0, 0.0], abs=1e-12)


def test_a_tie_draws_scores_together_and_counts_half() -> None:
    scores = torch.tensor([2.0, -1.0], requires_grad=True)
    loss, stats = bradley_terry(scores[:1], scores[1:], torch.ones(1), count=1, target_P=torch.tensor([0.5]))
    loss.backward()
    assert scores.grad is not None
    assert scores.grad[0] > 0 > scores.grad[1], "the better one falls, the worse one rises"
    assert float(stats["accuracy"]) == 0.5


def test_the_likelier_answer_is_the_right_one() -> None:
    """A target of .9 is right where the gap is above 0, one of .3 where it is below."""
    gaps, targets = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([0.9, 0.3, 0.9, 0.3])
    _, stats = bradley_terry(gaps, torch.zeros(4), torch.tensor([1.0, 2.0, 4.0, 8.0]), count=15, target_P=targets)
    assert float(stats["accuracy"]) == pytest.approx((1 + 8) / 15)


def test_a_margin_asks_for_more_by_so_much() -> None:
    """log(1 + e^{m - g}): a gap of the margin costs what no gap costs without one."""
    gap, margin = torch.tensor([0.3, 1.5]), torch.tensor([0.5, 1.5])
    loss, stats = bradley_terry(gap, torch.zeros(2), torch.tensor([1.0, 2.0]), count=3, margin_P=margin)
    assert float(loss) == pytest.approx((math.log(1 + math.exp(0.2)) + 2 * math.log(2)) / 3)
    assert float(stats["accuracy"]) == 1.0, "the right one is above, if not by enough"


# ------------------------------------------------------------------------------------------------ whole rankings


def test_plackett_luce_by_hand() -> None:
    """Answers 2, 0, 1 in that order: 2 is chosen of all three, then 0 of the two that are left."""
    scores = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    loss, _ = plackett_luce(scores, torch.tensor([[1, 2, 0]]), torch.tensor([0.5]), count=2)
    e = [math.exp(s) for s in (0.5, -1.0, 2.0)]
    by_hand = -math.log(e[2] / sum(e)) - math.log(e[0] / (e[0] + e[1]))
    assert float(loss) == pytest.approx(0.5 * by_hand / 2)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_a_ranking_of_two_is_bradley_terry(order: list[int]) -> None:
    torch.manual_seed(8)
    scores, weight = torch.randn(6, 2, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    found, expected = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    loss, _ = plackett_luce(found, torch.tensor([order] * 6), weight, count=3)
    chosen, rejected = (expected[:, order.index(rank)] for rank in (0, 1))
    pairs, _ = bradley_terry(chosen, rejected, weight, count=3)
    (loss + 0).backward()
    pairs.backward()
    torch.testing.assert_close(loss, pairs, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.grad, expected.grad, rtol=0, atol=1e-12)


def test_a_ranking_of_ties_by_hand() -> None:
    """0 and 1 share the first place (each chosen of all), 2 and 3 the last, which says nothing of them."""
    scores = torch.tensor([[0.3, -0.2, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss, _ = plackett_luce(scores, torch.tensor([[0, 0, 1, 1]]), torch.ones(1), count=1)
    total = math.log(sum(math.exp(s) for s in (0.3, -0.2, 1.0, 0.0)))
    assert float(loss.detach()) == pytest.approx((total - 0.3) + (total + 0.2))
    loss.backward()
    assert scores.grad is not None
    assert scores.grad[0, 0] < 0 and scores.grad[0, 2] > 0
    every = plackett_luce(scores.detach(), torch.zeros(1, 4, dtype=torch.long), torch.ones(1), count=1)[0]
    assert float(every) == 0.0, "all equal: nothing was said"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_answers_that_are_not_there_leak_into_neither_loss_nor_gradient(bad: float) -> None:
    torch.manual_seed(9)
    scores, weight = torch.randn(4, 4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    ranks = torch.tensor([[2, 0, 1, -1], [1, -1, 0, -1], [-1, -1, 0, -1], [-1, -1, -1, -1]])
    narrow = sum(
        plackett_luce(scores[i : i + 1, there], ranks[i : i + 1, there], weight[i : i + 1], count=1)[0]
        for i, there in ((0, [0, 1, 2]), (1, [0, 2]))
    )
    dirty = torch.where(ranks >= 0, scores, bad).requires_grad_()
    loss, _ = plackett_luce(dirty, ranks, weight, count=1)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(narrow), abs=1e-12)
    assert dirty.grad is not None
    assert bool(torch.isfinite(dirty.grad).all()) and not dirty.grad[ranks < 0].any() and not dirty.grad[2:].any()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_rankings_ratings_and_classes_pull_the_same_however_they_are_cut_up(size: int) -> None:
    torch.manual_seed(10)
    features, weight = torch.randn(5, 4, 3, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    ranks = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0], [0, 0, 1, -1], [1, 0, -1, -1], [2, 0, 1, 1]])
    values = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)

    def gradient(size: int) -> Tensor:
        w = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
        for part in torch.arange(5).split(size):
            scores = features[part] @ w
            loss = plackett_luce(scores, ranks[part], weight[part], count=3)[0]
            loss = loss + rating(scores[:, 0], values[part], weight[part], count=3)[0]
            (loss + classification(scores[:, 1], values[part], weight[part], count=3)[0]).backward()
        assert w.grad is not None
        return w.grad

    torch.testing.assert_close(gradient(size), gradient(5), rtol=0, atol=1e-12)


def test_a_rating_is_a_square_and_a_class_a_cross_entropy() -> None:
    scores, weight = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([1.0, 3.0], dtype=torch.float64)
    loss, _ = rating(scores, torch.tensor([0.5, 0.0]).double(), weight, count=4)
    assert float(loss) == pytest.approx((0.25 + 3 * 4) / 4)
    loss, stats = classification(scores, torch.tensor([1.0, 0.0]).double(), weight, count=4)
    assert float(loss) == pytest.approx((math.log(1 + math.exp(-1)) + 3 * math.log(1 + math.exp(-2))) / 4)
    assert float(stats["loss"]) == float(loss)
    certain, _ = classification(torch.tensor([800.0, -800.0]), torch.tensor([0.0, 1.0]), torch.ones(2), count=2)
    assert float(certain) == 800.0, "no overflow"


def test_score_size() -> None:
    assert float(score_size(torch.tensor([3.0, -4.0]), count=2)) == 12.5
    assert float(score_size(torch.tensor([[3.0, -4.0], [0.0, 5.0]]), count=10)) == 5.0, "over the whole step's scores"


# ------------------------------------------------------------------------------------------- DPO and IPO


def sides(*gaps: float) -> list[Tensor]:
    """Chosen, rejected and both references with these h: half of each is the chosen one's rise, half the rejected one's fall."""
    h = torch.tensor(gaps, dtype=torch.float64)
    chosen, rejected = torch.linspace(-5, -9, len(h), dtype=torch.float64), torch.full_like(h, -7.0)
    return [chosen + h / 2, rejected - h / 2, chosen, rejected]


def test_dpo_by_hand() -> None:
    """h = 2 and -2, so βh = 1 and -1; the second pair weighs half."""
    given = [torch.tensor(x) for x in ([-4.0, -10.0], [-6.0, -8.0], [-5.0, -9.0], [-5.0, -9.0], [1.0, 0.5])]
    loss, stats = dpo(*given, beta=0.5, count=1.5)
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    assert float(loss) == pytest.approx((right + 0.5 * wrong) / 1.5)
    assert float(stats["loss"]) == float(loss)
    assert float(stats["accuracy"]) == pytest.approx(1 / 1.5)
    assert float(stats["margin"]) == pytest.approx(0.5 * (2 - 0.5 * 2) / 1.5)


@pytest.mark.parametrize("beta", [0.05, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_dpo_starts_at_log_two(beta: float, smoothing: float) -> None:
    loss, stats = dpo(*sides(0, 0, 0), torch.full((3,), 0.7), beta=beta, smoothing=smoothing, count=2.1)
    assert float(loss) == pytest.approx(math.log(2), rel=1e-6)
    assert float(stats["accuracy"]) == pytest.approx(0.5), "a tie is half right"
    assert float(stats["margin"]) == 0


def test_dpo_is_bradley_terry_on_implicit_rewards() -> None:
    given, weight = sides(1.5, -0.3, 4.0), torch.tensor([1.0, 0.5, 1 / 6], dtype=torch.float64)
    chosen, rejected = 0.3 * (given[0] - given[2]), 0.3 * (given[1] - given[3])
    expected, stats = bradley_terry(chosen, rejected, weight, count=2)
    loss, found = dpo(*given, weight, beta=0.3, count=2)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    assert float(found["accuracy"]) == pytest.approx(float(stats["accuracy"]))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("gap", [-3.0, 0.0, 0.5, 6.0])
def test_dpo_pulls_by_the_share_that_it_still_gets_wrong(gap: float, smoothing: float) -> None:
    """dL/dh = -β w (σ(-βh) - ε) / count; the chosen answer is pulled up as hard as the rejected one down."""
    given = sides(gap)
    given[0].requires_grad_()
    given[1].requires_grad_()
    dpo(*given, torch.tensor([0.5]), beta=0.4, smoothing=smoothing, count=2)[0].backward()
    expected = -0.4 * 0.5 * (1 / (1 + math.exp(0.4 * gap)) - smoothing) / 2
    assert given[0].grad is not None and given[1].grad is not None
    assert float(given[0].grad) == pytest.approx(expected) and float(given[1].grad) == pytest.approx(-expected)


def test_dpo_does_not_overflow() -> None:
    loss, _ = dpo(*sides(-2000.0, 2000.0), torch.ones(2), beta=1.0, count=1)
    assert float(loss) == 2000.0


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_ipo_has_its_minimum_at_a_finite_margin(beta: float) -> None:
    best = 1 / (2 * beta)
    for gap, loss in ((best, 0.0), (0.0, best**2), (best + 3, 9.0), (best - 3, 9.0)):
        given = sides(gap)
        given[0].requires_grad_()
        found, stats = ipo(*given, torch.tensor([0.5]), beta=beta, count=0.5)
        found.backward()
        assert float(found.detach()) == pytest.approx(loss, abs=1e-12)
        assert given[0].grad is not None
        assert float(given[0].grad) == pytest.approx(2 * (gap - best), abs=1e-12)
        assert float(stats["margin"]) == pytest.approx(beta * gap)


def dpo_case(c: Tensor, r: Tensor, rc: Tensor, rr: Tensor, w: Tensor, count: float) -> Tensor:
    return dpo(c, r, rc, rr, w, beta=0.3, smoothing=0.1, count=count)[0]


def ipo_case(c: Tensor, r: Tensor, rc: Tensor, rr: Tensor, w: Tensor, count: float) -> Tensor:
    return ipo(c, r, rc, rr, w, beta=0.3, count=count)[0]


@pytest.mark.parametrize("loss", [dpo_case, ipo_case])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_preferences_pull_the_same_however_they_are_cut_up(loss: Preference, size: int) -> None:
    torch.manual_seed(4)
    features, references = torch.randn(2, 7, 3, dtype=torch.float64), torch.randn(2, 7, dtype=torch.float64)
    shares = torch.tensor([1, 0.5, 0.5, *[1 / 6] * 4], dtype=torch.float64)

    def gradient(size: int) -> Tensor:
        weight = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
        for part in torch.arange(7).split(size):
            chosen, rejected = (features[:, part] @ weight).unbind()
            loss(chosen, rejected, references[0, part], references[1, part], shares[part], 3.0).backward()
        assert weight.grad is not None
        return weight.grad

    torch.testing.assert_close(gradient(size), gradient(7), rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", [dpo_case, ipo_case])
def test_a_preference_weighs_by_its_share(loss: Preference) -> None:
    """Six equal pairs at a sixth each are one pair."""
    once, six = sides(0.7), sides(*[0.7] * 6)
    found = loss(*six, torch.full((6,), 1 / 6, dtype=torch.float64), 1)
    assert float(found) == pytest.approx(float(loss(*once, torch.ones(1), 1)))


# ------------------------------------------------------------------------------------------------- GRPO


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, 0),
        (1.25, 2.0, -2.5, -2.5, 0),  # above 1 + ε, below 1 + ε_high: a good answer may go on rising
        (1.5, 2.0, -2.56, 0.0, 1),  # held at 1.28 × 2
        (0.5, 2.0, -1.0, -1.0, 1),
        (1.5, -2.0, 3.0, 3.0, 1),
        (0.85, -2.0, 1.7, 1.7, 0),
        (0.75, -2.0, 1.6, 0.0, 1),  # held at .8 × -2: the low bound is ε and not ε_high
    ],
)
def test_grpo_in_each_regime(ratio: float, advantage: float, loss: float, gradient: float, clipped: int) -> None:
    old = one(-1.3)[0]
    logp = (old + math.log(ratio)).requires_grad_()
    found, stats = grpo(
        logp, old, old, torch.tensor([advantage]), torch.ones(1), TRUE, clip=0.2, clip_high=0.28, kl_coef=0.0, count=1
    )
    found.backward()
    assert float(found.detach()) == pytest.approx(loss)
    assert logp.grad is not None
    assert float(logp.grad) == pytest.approx(gradient)
    assert float(stats["clip_fraction"]) == clipped
    assert float(stats["policy_loss"]) == pytest.approx(loss)


@pytest.mark.parametrize(("first", "second", "clipped"), [(0.1, 0.1, False), (0.5, -0.2, False), (0.5, 0.3, True)])
def test_a_whole_answer_has_one_ratio(first: float, second: float, clipped: bool) -> None:
    """GSPO: the geometric mean of its tokens', here of two; a third is padding. As a mean over answers the loss is -min(s A, clip(s) A)."""
    old = torch.tensor([[-1.0, -2.0, 9.0]])
    logp = (old + torch.tensor([[first, second, 5.0]])).requires_grad_()
    mask = torch.tensor([[True, True, False]])
    found, metrics = grpo(
        logp,
        old,
        old,
        torch.tensor([1.5]),
        torch.tensor([0.5]),
        mask,
        clip=0.2,
        clip_high=0.28,
        kl_coef=0.0,
        count=1,
        surrogate="sequence",
    )
    found.backward()
    ratio = math.exp((first + second) / 2)
    assert (ratio > 1.28) is clipped
    assert float(found.detach()) == pytest.approx(-1.5 * min(ratio, 1.28))
    assert logp.grad is not None
    expected = 0.0 if clipped else -1.5 * ratio / 2
    assert logp.grad[0].tolist() == pytest.approx([expected, expected, 0.0])
    assert float(metrics["clip_fraction"]) == float(clipped)


@pytest.mark.parametrize(("ratio", "advantage"), [(0.1, 1.0), (1.1, 1.0), (2.0, 1.0), (2.0, -1.0), (0.1, -1.0)])
def test_cispo_leaves_no_token_out(ratio: float, advantage: float) -> None:
    """Its gradient is the advantage times the ratio, bounded above: also where a clip would have none."""
    old = one(-1.3)[0]
    logp = (old + math.log(ratio)).requires_grad_()
    found, metrics = grpo(
        logp,
        old,
        old,
        torch.tensor([advantage]),
        torch.ones(1),
        TRUE,
        clip=0.2,
        clip_high=0.28,
        kl_coef=0.0,
        count=1,
        surrogate="cispo",
    )
    found.backward()
    assert logp.grad is not None and float(logp.grad) == pytest.approx(-min(ratio, 1.28) * advantage)
    assert float(found.detach()) == pytest.approx(-min(ratio, 1.28) * advantage * float(logp.detach()))
    assert float(metrics["clip_fraction"]) == float(ratio > 1.28)


def test_grpo_sums_what_each_answer_weighs() -> None:
    """Two answers of two tokens and one; ρ against the reference is log 2 and 0 in the first, log ½ in the second."""
    logp = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]])
    reference = logp - math.log(2) * torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    loss, stats = grpo(
        logp, logp, reference, torch.tensor([1.5, -0.5]), torch.tensor([0.5, 2.0]), mask,
        clip=0.2, clip_high=0.2, kl_coef=0.1, count=4,
    )  # fmt: skip
    policy = (0.5 * 2 * -1.5 + 2 * 0.5) / 4
    kl = (0.5 * (0.5 - 1 + math.log(2)) + 2 * (2 - 1 - math.log(2))) / 4
    assert float(stats["policy_loss"]) == pytest.approx(policy) and float(stats["kl_loss"]) == pytest.approx(kl)
    assert float(loss) == pytest.approx(policy + 0.1 * kl)
    assert float(stats["clip_fraction"]) == 0


def test_the_kl_term_pulls_like_the_forward_kl() -> None:
    """Every action of a policy over five, each with its probability: no sampling noise."""
    torch.manual_seed(5)
    start, reference = torch.randn(2, 5, dtype=torch.float64) * 1.5
    reference_logp = reference.log_softmax(0)

    def gradient(of: Callable[[Tensor], Tensor]) -> Tensor:
        logits = start.clone().requires_grad_()
        of(logits.log_softmax(0)).backward()
        assert logits.grad is not None
        return logits.grad

    def penalty(logp: Tensor) -> Tensor:
        actions = logp[:, None]
        return grpo(
            actions, actions.detach(), reference_logp[:, None], torch.zeros(5), logp.detach().exp(),
            torch.ones(5, 1, dtype=torch.bool), clip=0.2, clip_high=0.2, kl_coef=1.0, count=1,
        )[0]  # fmt: skip

    forward = gradient(lambda logp: (reference_logp.exp() * (reference_logp - logp)).sum())
    reverse = gradient(lambda logp: (logp.exp() * (logp - reference_logp)).sum())
    torch.testing.assert_close(gradient(penalty), forward, rtol=0, atol=1e-12)
    assert float((forward - reverse).abs().max()) > 0.1, "the test needs two that differ"


def test_the_kl_term_pulls_like_the_forward_kl_on_the_tokens_of_an_older_policy_too() -> None:
    """A later optimiser step on the same answers: every action with the probability that it was drawn with, then as rare as that."""
    torch.manual_seed(5)
    logits, reference, drift = torch.randn(3, 5, dtype=torch.float64)
    logits.requires_grad_()
    logp, reference_logp, old_logp = logits.log_softmax(0), reference.log_softmax(0), (logits + drift).log_softmax(0)
    loss, stats = grpo(
        logp[:, None], old_logp.detach()[:, None], reference_logp[:, None], torch.zeros(5), old_logp.detach().exp(),
        torch.ones(5, 1, dtype=torch.bool), clip=0.2, clip_high=0.2, kl_coef=1.0, count=1,
    )  # fmt: skip
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (forward,) = torch.autograd.grad((reference_logp.exp() * (reference_logp - logp)).sum(), logits, retain_graph=True)
    torch.testing.assert_close(found, forward, rtol=0, atol=1e-12)
    assert float(stats["kl_loss"]) == pytest.approx(float((logp.exp() * (logp - reference_logp)).sum().detach()))
    unweighed = (old_logp.detach().exp() * k3(logp, reference_logp, torch.ones(5, dtype=torch.bool))).sum()
    (off,) = torch.autograd.grad(unweighed, logits)
    assert float((off - forward).norm() / forward.norm()) > 0.5, "the test needs a drift that matters"


def test_without_a_kl_term_the_first_step_climbs_the_expected_advantage() -> None:
    torch.manual_seed(6)
    start, adv = torch.randn(2, 5, dtype=torch.float64)
    found, wanted = start.clone().requires_grad_(), start.clone().requires_grad_()
    logp = found.log_softmax(0)[:, None]
    grpo(
        logp, logp.detach(), logp.detach(), adv, logp.detach().exp()[:, 0], torch.ones(5, 1, dtype=torch.bool),
        clip=0.2, clip_high=0.2, kl_coef=0.0, count=1,
    )[0].backward()  # fmt: skip
    (-(wanted.softmax(0) * adv).sum()).backward()
    assert found.grad is not None and wanted.grad is not None
    torch.testing.assert_close(found.grad, wanted.grad, rtol=0, atol=1e-12)


LENGTHS = torch.tensor([1, 4, 2, 7])


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [1, 3]])
def test_answers_weigh_by_a_power_of_their_length(power: float, rows: list[int]) -> None:
    weight, count = token_weights(LENGTHS, power, torch.tensor(rows))
    assert weight.tolist() == pytest.approx([length**-power for length in (1, 4, 2, 7)])
    assert float(count) == pytest.approx(sum(int(LENGTHS[row]) ** (1 - power) for row in rows))


def test_the_power_goes_from_a_mean_over_tokens_to_a_mean_over_answers() -> None:
    torch.manual_seed(7)
    mask = torch.arange(7) < LENGTHS[:, None]
    loss_BT = torch.where(mask, torch.randn(4, 7), 0.0)
    means = {}
    for power in (0.0, 1.0):
        weight, count = token_weights(LENGTHS, power, torch.arange(4))
        means[power] = float((weight[:, None] * loss_BT).sum() / count)
    assert means[0.0] == pytest.approx(float(loss_BT[mask].mean()))
    assert means[1.0] == pytest.approx(float((loss_BT.sum(1) / LENGTHS).mean()))


# -------------------------------------------------------------------------- whatever is beside and however it is cut


def policy_case(new: Tensor, old: Tensor, extra: Tensor, mask: Tensor, tokens: int) -> Tensor:
    return clipped_policy(new, old, extra, mask, clip=0.2, tokens=tokens)[0]


def value_case(new: Tensor, old: Tensor, extra: Tensor, mask: Tensor, tokens: int) -> Tensor:
    return clipped_value(new, old, extra, mask, clip=0.2, tokens=tokens)[0]


def group_case(new: Tensor, old: Tensor, extra: Tensor, mask: Tensor, tokens: int) -> Tensor:
    """`extra` are the reference's log-probs; an answer's advantage is the sum of them."""
    adv, weight = torch.where(mask, extra, 0.0).sum(1), mask.sum(1) ** -0.5
    return grpo(new, old, extra, adv, weight, mask, clip=0.2, clip_high=0.3, kl_coef=0.1, count=tokens)[0]


@pytest.mark.parametrize("loss", [policy_case, value_case, group_case])
@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_lies_off_the_mask_does_not_leak(loss: Loss, where: int, bad: float) -> None:
    """Neither into the loss nor into any gradient: 0 times nan is nan."""
    torch.manual_seed(0)
    mask = torch.tensor([[True, True, False], [False, True, False]])
    tensors = [torch.randn(2, 3, dtype=torch.float64) for _ in range(3)]
    clean = tensors[0].clone().requires_grad_()
    expected = loss(clean, tensors[1], tensors[2], mask, 3)
    expected.backward()

    dirty = [torch.where(mask, t, bad) if i == where else t.clone() for i, t in enumerate(tensors)]
    dirty[0].requires_grad_()
    found = loss(dirty[0], dirty[1], dirty[2], mask, 3)
    found.backward()
    assert float(found.detach()) == float(expected.detach())
    assert clean.grad is not None and dirty[0].grad is not None
    assert torch.equal(dirty[0].grad, clean.grad)
    assert not dirty[0].grad[~mask].any()


@pytest.mark.parametrize("loss", [policy_case, value_case, group_case])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("padding", [0, 5])
def test_the_gradient_does_not_depend_on_how_the_step_was_cut_up(loss: Loss, size: int, padding: int) -> None:
    torch.manual_seed(1)
    lengths = torch.tensor([3, 9, 1, 5, 5, 2, 8, 4, 7, 1, 6, 9])
    mask = torch.arange(9) < lengths[:, None]
    features = torch.randn(12, 9, 4, dtype=torch.float64)
    old, extra = torch.randn(12, 9, dtype=torch.float64), torch.randn(12, 9, dtype=torch.float64)
    tokens = int(mask.sum())

    def gradient(size: int, padding: int) -> Tensor:
        weight = torch.tensor([0.3, -0.2, 0.1, 0.5], dtype=torch.float64, requires_grad=True)
        for rows in torch.arange(12).split(size):
            cut = [F.pad(t[rows], (0, padding)) for t in (old, extra, mask)]
            new = F.pad(features[rows], (0, 0, 0, padding), value=7.0) @ weight
            loss(new, cut[0], cut[1], cut[2], tokens).backward()
        assert weight.grad is not None
        return weight.grad

    torch.testing.assert_close(gradient(size, padding), gradient(12, 0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_next_token_and_bradley_terry_add_up_over_parts(size: int) -> None:
    torch.manual_seed(2)
    logp = -torch.rand(5, dtype=torch.float64)
    scores, weight = torch.randn(2, 5, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    parts = torch.arange(5).split(size)
    assert sum(float(next_token(logp[p], tokens=5)[0]) for p in parts) == pytest.approx(
        float(next_token(logp, tokens=5)[0]), abs=1e-12
    )
    assert sum(float(bradley_terry(scores[0, p], scores[1, p], weight[p], count=3)[0]) for p in parts) == pytest.approx(
        float(bradley_terry(scores[0], scores[1], weight, count=3)[0]), abs=1e-12
    )


def test_padding_changes_no_figure() -> None:
    torch.manual_seed(3)
    mask = torch.tensor([[True, True, True]])
    new, old, adv = torch.randn(3, 1, 3)
    narrow = clipped_policy(new, old, adv, mask, clip=0.2, tokens=3)[1]
    new, old, adv, mask = (F.pad(t, (2, 4)) for t in (new, old, adv, mask))
    wide = clipped_policy(new, old, adv, mask, clip=0.2, tokens=3)[1]
    assert {name: float(value) for name, value in wide.items()} == pytest.approx(
        {name: float(value) for name, value in narrow.items()}
    )
