"""Losses by hand, in each regime, with nan off the mask, and cut up in every way."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bridle.maths.losses import bradley_terry, clipped_policy, clipped_value, next_token, score_size

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
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


def test_score_size() -> None:
    assert float(score_size(torch.tensor([3.0, -4.0]), count=2)) == 12.5


def policy_case(new: Tensor, old: Tensor, extra: Tensor, mask: Tensor, tokens: int) -> Tensor:
    return clipped_policy(new, old, extra, mask, clip=0.2, tokens=tokens)[0]


def value_case(new: Tensor, old: Tensor, extra: Tensor, mask: Tensor, tokens: int) -> Tensor:
    return clipped_value(new, old, extra, mask, clip=0.2, tokens=tokens)[0]


@pytest.mark.parametrize("loss", [policy_case, value_case])
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


@pytest.mark.parametrize("loss", [policy_case, value_case])
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
