"""Advantages: the recursion against the sum it stands for, and nothing off the mask."""

import pytest
import torch
from torch import Tensor

from bridle.maths.advantages import (
    flat_groups,
    gae,
    group_relative,
    leave_one_out,
    normalised_each,
    place_at_end,
    whiten,
)


def uneven_mask() -> Tensor:
    """Prompt, answer, padding; and one answer without either."""
    return torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]]).bool()


def brute_force(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """A_t = Σ_l (γλ)^l δ_{t+l} over the answer's own tokens, written out."""
    advantages, returns = torch.zeros_like(rewards), torch.zeros_like(rewards)
    for b in range(len(rewards)):
        inside = mask[b].nonzero()[:, 0].tolist()
        r, v = [float(rewards[b, t]) for t in inside], [float(values[b, t]) for t in inside] + [0.0]
        deltas = [r[i] + gamma * v[i + 1] - v[i] for i in range(len(inside))]
        for i, t in enumerate(inside):
            advantages[b, t] = sum((gamma * lam) ** (j - i) * deltas[j] for j in range(i, len(inside)))
            returns[b, t] = advantages[b, t] + v[i]
    return advantages, returns


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.97, 0.0)])
def test_the_recursion_equals_the_sum(gamma: float, lam: float) -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 4, 6, dtype=torch.float64)
    mask = uneven_mask()
    found = gae(rewards, values, mask, gamma=gamma, lam=lam)
    expected = brute_force(rewards, values, mask, gamma, lam)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_with_lambda_one_the_return_is_what_was_still_to_come() -> None:
    rewards = torch.tensor([[0.0, -1.0, 2.0, 5.0]])
    mask = torch.tensor([[False, True, True, True]])
    advantages, returns = gae(rewards, torch.full((1, 4), 3.0), mask, gamma=1.0, lam=1.0)
    assert returns.tolist() == [[0.0, 6.0, 7.0, 5.0]]
    assert advantages.tolist() == [[0.0, 3.0, 4.0, 2.0]]


def test_one_step_by_hand() -> None:
    """δ = r + γ V' - V: the last token has no future, the padding's value is not it."""
    advantages, returns = gae(
        torch.tensor([[1.0, 2.0, 9.0]]),
        torch.tensor([[0.5, 0.25, 9.0]]),
        torch.tensor([[True, True, False]]),
        gamma=0.5,
        lam=0.5,
    )
    last = 2.0 - 0.25
    first = 1.0 + 0.5 * 0.25 - 0.5 + 0.25 * last
    assert advantages.tolist() == [[first, last, 0.0]]
    assert returns.tolist() == [[first + 0.5, 2.0, 0.0]]


def test_what_lies_off_the_mask_does_not_leak_into_advantages() -> None:
    torch.manual_seed(1)
    rewards, values = torch.randn(2, 4, 6)
    mask = uneven_mask()
    clean = gae(rewards, values, mask, gamma=1.0, lam=0.95)
    nan = torch.tensor(float("nan"))
    dirty = gae(torch.where(mask, rewards, nan), torch.where(mask, values, nan), mask, gamma=1.0, lam=0.95)
    for one, other in zip(clean, dirty, strict=True):
        assert torch.equal(one, other)
        assert not one[~mask].any()


def test_the_reward_lands_on_the_last_masked_token() -> None:
    placed = place_at_end(torch.tensor([1.0, -2.0, 3.0, 4.0]), uneven_mask())
    assert placed.nonzero().tolist() == [[0, 4], [1, 2], [2, 5], [3, 5]]
    assert placed.sum(1).tolist() == [1.0, -2.0, 3.0, 4.0]
    assert placed.dtype == torch.float32


def test_a_sequence_without_answer_cannot_be_rewarded() -> None:
    with pytest.raises(ValueError, match="without a single masked token"):
        place_at_end(torch.tensor([1.0, 1.0]), torch.tensor([[True, False], [False, False]]))


def test_whitening_looks_at_masked_tokens_alone() -> None:
    mask = uneven_mask()
    torch.manual_seed(2)
    x = torch.where(mask, torch.randn(4, 6, dtype=torch.float64) * 3 + 7, 1e6)
    white = whiten(x, mask)
    assert float(white[mask].mean()) == pytest.approx(0, abs=1e-9)
    assert float(white[mask].std(unbiased=False)) == pytest.approx(1, abs=1e-6)
    assert not white[~mask].any()


def test_whitening_does_not_depend_on_padding() -> None:
    torch.manual_seed(3)
    mask, x = uneven_mask(), torch.randn(4, 6)
    wide = whiten(torch.nn.functional.pad(x, (3, 5), value=99.0), torch.nn.functional.pad(mask, (3, 5)))
    assert torch.equal(wide[:, 3:9], whiten(x, mask))


@pytest.mark.parametrize("x", [4.0, 0.3, 0.1, -1 / 3])
def test_equal_advantages_become_zero_and_not_nan(x: float) -> None:
    """Exactly, where their mean is another number in the last digit too: an optimiser makes whole steps of any difference."""
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[0, 0] = False
    assert whiten(torch.where(mask, x, 9.0), mask).tolist() == [[0.0] * 7] * 3


def test_a_group_by_hand() -> None:
    """Means 1/4 and 5; deviations, divided by three, 1/2 and √(20/3)."""
    found = group_relative(torch.tensor([1.0, 0.0, 0.0, 0.0, 2.0, 4.0, 6.0, 8.0]), 4)
    first = [reward / (0.5 + 1e-4) for reward in (0.75, -0.25, -0.25, -0.25)]
    second = [reward / ((20 / 3) ** 0.5 + 1e-4) for reward in (-3, -1, 1, 3)]
    assert found.tolist() == pytest.approx(first + second)


def test_a_power_of_zero_leaves_the_rewards_their_scale() -> None:
    found = group_relative(torch.tensor([1.0, 0.0, 0.0, 0.0, 2.0, 4.0, 6.0, 8.0]), 4, std_power=0.0)
    assert found.tolist() == [0.75, -0.25, -0.25, -0.25, -3.0, -1.0, 1.0, 3.0]
    halfway = group_relative(torch.tensor([2.0, 4.0, 6.0, 8.0]), 4, std_power=0.5)
    assert halfway.tolist() == pytest.approx([x / ((20 / 3) ** 0.5 + 1e-4) ** 0.5 for x in (-3, -1, 1, 3)])


def test_leaving_one_out_measures_each_reward_against_the_others() -> None:
    torch.manual_seed(4)
    rewards = torch.randn(6, 5, dtype=torch.float64)
    others = (rewards.sum(1, keepdim=True) - rewards) / 4
    torch.testing.assert_close(leave_one_out(rewards.flatten(), 5).view(6, 5), rewards - others, rtol=0, atol=1e-12)
    assert leave_one_out(torch.tensor([3.0, 1.0, 0.0, 0.0]), 2).tolist() == [2.0, -2.0, 0.0, 0.0]


def test_leaving_one_out_has_no_bias_where_dr_grpos_mean_shrinks_the_gradient() -> None:
    """Every group of three draws from a policy over three actions, with its probability: E[Σ A ∇ log π] is the gradient."""
    torch.manual_seed(6)
    logits, rewards = torch.randn(2, 3, dtype=torch.float64)
    chances = logits.softmax(0)
    wanted = chances * (rewards - (chances * rewards).sum())
    found = {"others": torch.zeros(3, dtype=torch.float64), "all": torch.zeros(3, dtype=torch.float64)}
    for group in torch.cartesian_prod(*[torch.arange(3)] * 3):
        scores = torch.eye(3, dtype=torch.float64)[group] - chances  # of each draw: d log π / d logits
        chance = chances[group].prod()
        found["others"] += chance * (leave_one_out(rewards[group], 3)[:, None] * scores).mean(0)
        found["all"] += chance * (group_relative(rewards[group], 3, std_power=0.0)[:, None] * scores).mean(0)
    torch.testing.assert_close(found["others"], wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(found["all"], 2 / 3 * wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("size", [2, 3, 7, 16])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, -2.3e5])
def test_a_group_of_equal_rewards_is_exactly_zero(reward: float, size: int, power: float) -> None:
    """Also where the mean of equal numbers is not that number: what is left of rounding is no signal. A group by itself is summed up
    another way than one among others."""
    flat = torch.full((size,), reward)
    rewards = torch.cat([flat, torch.arange(size, dtype=torch.float32)])
    found = group_relative(rewards, size, std_power=power)
    assert not found[:size].any() and found[size:].any()
    assert not group_relative(flat, size, std_power=power).any() and not leave_one_out(flat, size).any()
    assert flat_groups(rewards, size).tolist() == [True, False] and flat_groups(flat, size).tolist() == [True]


@pytest.mark.parametrize("gap", [1e-3, 1e-4, 1e-6, 1e-8])
def test_a_group_says_something_however_little_its_rewards_differ(gap: float) -> None:
    """Of two groups the second is flat: by any measure the first has a spread, and the second has exactly none."""
    rewards = torch.tensor([0.0, gap] * 3 + [0.3] * 6)  # whose mean is not 0.3 to the last digit
    found = {
        gap / 2: group_relative(rewards, 6, std_power=0.0),
        gap / 2 / (gap * 0.3**0.5 + 1e-4): group_relative(rewards, 6),
        gap / 2 * 6 / 5: leave_one_out(rewards, 6),
    }
    for size, adv_B in found.items():
        assert adv_B.tolist() == pytest.approx([-size, size] * 3 + [0.0] * 6, rel=1e-5, abs=0)
        assert flat_groups(adv_B, 6).tolist() == flat_groups(rewards, 6).tolist() == [False, True]


def test_a_group_with_a_mean_answer_is_not_flat() -> None:
    adv_B = group_relative(torch.tensor([0.0, 0.5, 1.0]), 3, std_power=0.0)
    assert adv_B.tolist() == [-0.5, 0.0, 0.5] and flat_groups(adv_B, 3).tolist() == [False]


def test_each_group_is_measured_by_itself() -> None:
    torch.manual_seed(5)
    rewards = torch.randn(4, 3)
    whole = group_relative(rewards.flatten(), 3).view(4, 3)
    assert torch.equal(torch.cat([group_relative(row, 3) for row in rewards]).view(4, 3), whole)
    torch.testing.assert_close(group_relative(rewards.flatten() + 7, 3).view(4, 3), whole, rtol=0, atol=1e-4)
    assert group_relative(rewards.flatten(), 6).view(2, 6)[0].tolist() != whole[:2].flatten().tolist()


@pytest.mark.parametrize(("count", "size"), [(7, 4), (4, 1), (4, 0), (2, 4)])
def test_rewards_that_make_no_groups_are_refused(count: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"{count} rewards do not make groups of {size}"):
        group_relative(torch.zeros(count), size)


def test_each_reward_is_normalised_before_they_are_added() -> None:
    """Two groups of two. By the sum a reward in hundreds drowns one in units, and 1 + 0 is 0 + 1; each by itself they weigh the same."""
    right = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    long = torch.tensor([0.0, 300.0, 300.0, 0.0], dtype=torch.float64)
    brief = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    found = normalised_each([(1.0, right), (1.0, brief)], 2, eps=0.0)
    assert found.tolist() == pytest.approx(
        [0.0, 0.0, 1.0, -1.0]
    )  # of the first group nothing is learnt; the second has unit spread
    assert normalised_each([(1.0, right), (1.0, long)], 2, eps=0.0).tolist() == pytest.approx(found.tolist())
    weighed = normalised_each([(3.0, right), (1.0, long)], 2, eps=0.0)
    unit = 2**-0.5  # two answers that differ are this many standard deviations from their mean
    expected = torch.tensor([3 - 1, 1 - 3, 3 + 1, -3 - 1]) * unit
    assert weighed.tolist() == pytest.approx((expected / expected.std(correction=0)).tolist())
    assert not normalised_each([(1.0, torch.ones(4)), (2.0, torch.zeros(4))], 2).any()
    alone = normalised_each([(1.0, right)], 2, eps=0.0)
    assert alone.tolist() == pytest.approx([1.0, -1.0, 1.0, -1.0])
