"""Lesson 4: the policy gradient, and why a baseline.

Run: python docs/course/lesson_4.py

WHAT IT IS FOR. There is a reward now, and the model is to write answers of higher reward. The reward
cannot be differentiated by the weights: the model draws an answer, and somebody scores it. REINFORCE
(Williams 1992) gets round that: make each answer that was drawn more likely in proportion to its reward. On
average this is the gradient of the expected reward. A policy is a model seen so: as something that acts.

On average is not enough, for one has but few answers. If all rewards lie near 10, every answer is pushed up
nearly alike, and the little difference that matters drowns in chance. So one subtracts a baseline: what was
to be expected. What is left is the advantage. Any baseline leaves the average as it was so long as it does
not depend on the answer that it judges. The mean reward of the other answers to the same prompt is such a
baseline, and costs nothing (Kool and others 2019; Ahmadian and others 2024, arxiv.org/abs/2402.14740, who
call it RLOO: REINFORCE leave-one-out).

THE EQUATION. With K answers y_1 … y_K to a prompt, drawn from π, and their rewards r_1 … r_K,

    A_k = r_k − 1/(K−1) · Σ_{j≠k} r_j
    gradient ≈ 1/K · Σ_k A_k ∇ log π(y_k)          loss = − 1/K · Σ_k A_k log π(y_k)

Gradient *ascent* on the expected reward is gradient *descent* on this loss. Its value means nothing. Only
its gradient does.

YOUR TASK. Fill in `policy_gradient_loss`. Each row is a group: K answers to the prompt, their log-probs and
rewards. Rewards are numbers, not functions of the weights.

TO THINK ABOUT.

1. Take the mean of all K rewards, the answer's own among them, as the baseline: by what factor is the
   gradient then too short, and when does that matter?
2. Why not take the best reward of the group as the baseline, or the worst?
"""

import itertools
from collections.abc import Iterator

import torch
from checking import Function, bars, near, need, run, slopes
from torch import Tensor
from world import World


def policy_gradient_loss(logp_NK: Tensor, reward_NK: Tensor) -> Tensor:
    """The loss of each group, [N]: `logp_NK` are log π of whole answers, `reward_NK` their rewards."""
    raise NotImplementedError


def every_group(answers: int, K: int) -> Tensor:
    """All groups that could be drawn, in every order, [N, K]."""
    return torch.tensor(list(itertools.product(range(answers), repeat=K)))


def exact_gradient(loss: Function, world: World, table_SV: Tensor, reward_A: Tensor, K: int) -> tuple[Tensor, float]:
    """The mean of your gradient over all groups, each with its probability, [S V], and its variance (the sum over all weights)."""
    group_NK = every_group(len(reward_A), K)
    slope_NK = slopes(loss, world.logp(table_SV)[group_NK], reward_A[group_NK], shape=(len(group_NK),))
    by_weight_AW = torch.autograd.functional.jacobian(world.logp, table_SV).flatten(
        1
    )  # ∇ log π(y), a row for each answer
    chance_N = world.logp(table_SV)[group_NK].sum(1).exp()
    pull_A = torch.zeros_like(reward_A).index_add(0, group_NK.flatten(), (chance_N[:, None] * slope_NK).flatten())
    mean_W = pull_A @ by_weight_AW
    product_AA = by_weight_AW @ by_weight_AW.T
    square_N = sum(
        slope_NK[:, i] * slope_NK[:, j] * product_AA[group_NK[:, i], group_NK[:, j]] for i in range(K) for j in range(K)
    )
    return mean_W, float(chance_N @ square_N - mean_W @ mean_W)


def true_gradient(world: World, table_SV: Tensor, reward_A: Tensor) -> Tensor:
    """∇ Σ_y π(y) r(y), by differentiating the sum over all answers, [S V]."""
    table_SV = table_SV.clone().requires_grad_()
    (gradient_SV,) = torch.autograd.grad(world.logp(table_SV).exp() @ reward_A, table_SV)
    return gradient_SV.flatten()


def no_baseline(logp_NK: Tensor, reward_NK: Tensor) -> Tensor:
    return -(reward_NK * logp_NK).mean(1)


def least_variance(world: World, reward_A: Tensor, K: int) -> float:
    """That of leave-one-out, from the identity that its advantages are K/(K − 1) times the rewards less their mean."""

    def known(logp_NK: Tensor, reward_NK: Tensor) -> Tensor:
        return K / (K - 1) * no_baseline(logp_NK, reward_NK - reward_NK.mean(1, keepdim=True))

    return exact_gradient(known, world, world.reference_SV, reward_A, K)[1]


def check(loss: Function, seed: int) -> Iterator[str]:
    world = World(seed, longest=2)  # 21 answers, so 9,261 groups of three
    reward_A = world.gold_A + 10  # which changes no difference
    right_W = true_gradient(world, world.reference_SV, reward_A)
    for K in (2, 3):
        mean_W, variance = exact_gradient(loss, world, world.reference_SV, reward_A, K)
        along = -float(mean_W @ right_W / right_W.square().sum())
        need(
            along >= 0,
            "A step against your gradient lowers the expected reward: is the sign right? The loss is −A log π, so that a good answer "
            "becomes more likely when the loss falls.",
        )
        error = float((mean_W + right_W).norm() / right_W.norm())
        need(
            not (near(along, (K - 1) / K, 1e-4) and near(mean_W, -along * right_W)),
            f"Your gradient has the right direction and is {along:.2f} times as long as it should be, with K = {K}: the baseline holds "
            "the answer's own reward, which pulls the advantage towards 0. Take the mean of the others.",
        )
        need(
            not (near(along, K, 1e-4) and near(mean_W, -along * right_W)),
            f"Your gradient is {K} times too long: take the mean over the group.",
        )
        need(
            error < 1e-6,
            f"Summed over all {len(reward_A) ** K} groups of {K} with their probabilities, your gradient is not that of the expected "
            f"reward (it is off by {error:.0%} of its length): the baseline is biased. It must not depend on the answer that it judges, "
            "nor may the advantage be divided by something that does.",
        )
        best = least_variance(world, reward_A, K)
        need(
            variance < 1.05 * best,
            f"Your gradient is right on average, but its variance is {variance / best:.0f} times what it could be: "
            "subtract the mean reward of the other answers of the group.",
        )
        yield f"over all groups of {K} your gradient is that of the expected reward, to {error:.0e} of its length"
    without = exact_gradient(no_baseline, world, world.reference_SV, reward_A, K)[1]
    yield f"its variance is {without / variance:.0f} times smaller than without a baseline"


def climb(loss: Function, world: World, steps: int, K: int, runs: int = 8) -> Tensor:
    """True quality before each step, a mean of some runs, each step on four groups of drawn answers."""
    found = torch.zeros(runs, steps)
    for row in range(runs):
        table_SV = world.reference_SV.clone().requires_grad_()
        for step in range(steps):
            logp_A = world.logp(table_SV)
            found[row, step] = logp_A.detach().exp() @ world.gold_A
            group_NK = world.sample(logp_A.detach(), 4 * K).view(4, K)
            (gradient_SV,) = torch.autograd.grad(loss(logp_A[group_NK], world.gold_A[group_NK] + 10).mean(), table_SV)
            table_SV = (table_SV - gradient_SV).detach().requires_grad_()
    return found.mean(0)


def picture(loss: Function, seed: int) -> str:
    yours, without = climb(loss, World(seed), 101, K=4).tolist(), climb(no_baseline, World(seed), 101, K=4).tolist()
    values = {}
    for step in (0, 10, 20, 50, 100):
        values[f"step {step:>3}  yours"] = yours[step]
        values[f"step {step:>3}  no baseline"] = without[step]
    return "True quality while training, 16 drawn answers a step, all rewards raised by 10, a mean of 8 runs:\n" + bars(
        values
    )


if __name__ == "__main__":
    run(policy_gradient_loss, check, picture)
