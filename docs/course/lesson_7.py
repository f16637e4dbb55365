"""Lesson 7: GRPO, and answers that can be checked.

Run: python docs/course/lesson_7.py

WHAT IT IS FOR. Whether 17 · 24 = 408 is not a matter of taste: a program checks it. Where answers can
be checked the reward is 1 for right and 0 for wrong, it cannot be flattered, and one can train for long. So
models are taught to reason. What remains to be found is the baseline, and GRPO (group relative policy
optimisation, Shao and others 2024) takes it from a group, as lesson 4 does: G groups, each of K answers to
one problem. There is no critic.

It also divides by the group's standard deviation. So a hard problem with one right answer in eight gives
that answer a large advantage, and an easy one with seven right gives the one wrong answer a large negative
one. A group in which all are right, or all are wrong, says nothing: nobody did better than anybody. Such a
group must give 0. That is the first thing to look at in such a run: what share of the groups teaches
anything at all? A problem that the model solves with chance p gives a useful group with chance 1 − p^K − (1
− p)^K.

THE EQUATION. For each answer k of a group, all of its tokens alike,

    A_k = (r_k − mean(r_1 … r_K)) / (std(r_1 … r_K) + 0.0001)

which go into the clipped loss of lesson 5. (Shao and others 2024, §4.1.2, arxiv.org/abs/2402.03300. The
0.0001, as in the authors' code, keeps 0/0 away. `torch.std` divides by K − 1, as theirs.)

YOUR TASK. Fill in `group_advantages`.

TO THINK ABOUT.

1. A problem that the model never solves, at any group size: what does it learn from it? What would you do
   about such problems?
2. Dr. GRPO (Liu and others 2025) leaves the division by std out. Which problems then weigh less, and why
   might one want that?
"""

import itertools
import math
from collections.abc import Iterator

import torch
from checking import Function, ask, bars, near, need, run
from torch import Tensor

K = 8
CHANCES = (0.0, 0.02, 0.1, 0.5, 0.9, 1.0)  # that the model solves each of six problems, before training


def group_advantages(reward_GK: Tensor) -> Tensor:
    """The advantage of each answer, [G, K]; row g holds the rewards of K answers to problem g."""
    raise NotImplementedError


def useful_share(advantages: Function, chance: float, size: int) -> float:
    """The chance that a group says anything: the sum over all 2^size ways in which its answers can be right or wrong."""
    reward_NK = torch.tensor(list(itertools.product((0.0, 1.0), repeat=size)))
    chance_NK = torch.where(reward_NK == 1, chance, 1 - chance)
    says_N = (ask(advantages, reward_NK, shape=tuple(reward_NK.shape)).abs() > 1e-6).any(1)
    return float(chance_NK.prod(1) @ says_N.double())


def expected_pull(advantages: Function, chance_G: Tensor) -> Tensor:
    """How strongly each problem pushes the logit of its chance up, [G]: the mean over how many of K answers are right.

    ∇ log p = 1 − p for a right answer and −p for a wrong one.
    """
    reward_NK = (torch.arange(K) < torch.arange(K + 1)[:, None]).double()  # in row n the first n are right
    advantage_NK = ask(advantages, reward_NK, shape=(K + 1, K))
    pull_G = torch.zeros_like(chance_G)
    for n in range(K + 1):
        right, wrong = advantage_NK[n, :n].sum(), advantage_NK[n, n:].sum()
        pull_G += (
            math.comb(K, n) * chance_G**n * (1 - chance_G) ** (K - n) * (right * (1 - chance_G) - wrong * chance_G) / K
        )
    return pull_G


def practise(advantages: Function, steps: int) -> Tensor:
    """The chance of each problem after so many steps."""
    chance_G = torch.tensor(CHANCES)
    for _ in range(steps):
        chance_G = (chance_G.logit() + expected_pull(advantages, chance_G)).sigmoid()
    return chance_G


def check_groups(advantages: Function, reward_GK: Tensor) -> Iterator[str]:
    got_GK = ask(advantages, reward_GK, shape=(2, 4))
    alone_GK = torch.cat([ask(advantages, row_1K, shape=(1, 4)) for row_1K in reward_GK.split(1)])
    need(
        near(got_GK, alone_GK),
        "The advantages of a problem change with the other problems beside it: a hard problem would be punished for being hard. "
        "Take mean and std within each row (dim=1, keepdim=True).",
    )
    need(not (got_GK[0, 0] < 0 < got_GK[0, 1]), "Right answers have a negative advantage: is it reward less mean?")
    need(near(got_GK.sum(1), 0.0), "The advantages of a group should add up to 0: subtract the group's mean.")
    yield "each group is compared with itself, right answers above 0 and wrong ones below"

    for flat in (0.0, 1.0, 0.1):
        flat_GK = advantages(torch.full((1, K), flat))
        need(
            flat_GK.isfinite().all(),
            f"A group whose rewards are all {flat:g} gives {flat_GK[0, 0].item()}: that is 0/0. Add 0.0001 to the std.",
        )
        need(
            near(flat_GK, 0.0),
            f"A group whose rewards are all {flat:g} says nothing, so its advantages should be 0; yours are {flat_GK[0, 0].item():.3g}.",
        )
    yield "a group in which all are alike gives 0"


def check_size(advantages: Function, reward_GK: Tensor) -> Iterator[str]:
    got_GK = advantages(reward_GK)
    need(
        near(advantages(10 * reward_GK), got_GK, 0.01),
        "Rewards ten times as large give other advantages: divide by the group's standard deviation. (Without it you have Dr. GRPO, "
        "which is a method too. See the second question.)",
    )
    right_GK = torch.tensor([[1.5, -0.5, -0.5, -0.5], [0.5, 0.5, 0.5, -1.5]])
    by_n_less_one, by_n = near(got_GK, right_GK, 0.005), near(got_GK, right_GK * math.sqrt(4 / 3), 0.005)
    need(
        by_n_less_one or by_n,
        "One right answer of four should have the advantage 1.5, and each wrong one −.5; yours are "
        f"{[round(a, 3) for a in got_GK[0].tolist()]}.",
    )
    yield "one right answer of four has the advantage " + (
        "1.5" if by_n_less_one else "1.73 (your std divides by K; the authors' by K − 1, which gives 1.5)"
    )


def check(advantages: Function, seed: int) -> Iterator[str]:
    reward_GK = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 0]])
    yield from check_groups(advantages, reward_GK)
    yield from check_size(advantages, reward_GK)

    generator = torch.Generator().manual_seed(seed)
    for chance in torch.rand(3, generator=generator).tolist():
        expected = 1 - chance**K - (1 - chance) ** K
        found = useful_share(advantages, chance, K)
        need(
            near(found, expected),
            f"At a chance of {chance:.2f} a share of {expected:.3f} of all groups of {K} should say something; by yours {found:.3f} "
            "do.",
        )
    yield f"over all 2^{K} outcomes of a group, what teaches is 1 − p^{K} − (1 − p)^{K}"

    learnt_G = practise(advantages, 100)
    need(
        near(learnt_G[[0, -1]], torch.tensor([0.0, 1.0])),
        "What is never solved, or always, cannot change: no group says anything.",
    )
    need(
        float(learnt_G[1:].min()) > 0.9,
        f"After 100 steps all that is ever solved should be solved nearly always, and the chances are {learnt_G.tolist()}.",
    )
    yield "after 100 steps all that was ever solved is solved; what never was is not"


def picture(advantages: Function, seed: int) -> str:
    chance_G = torch.tensor(CHANCES)
    names = [f"chance {chance:.2f}" for chance in CHANCES]
    useful = {name: useful_share(advantages, chance, K) for name, chance in zip(names, CHANCES, strict=True)}
    pull = dict(zip(names, expected_pull(advantages, chance_G).tolist(), strict=True))
    plain = dict(zip(names, (chance_G * (1 - chance_G)).tolist(), strict=True))
    after = {
        f"{name}, after 30 steps": chance for name, chance in zip(names, practise(advantages, 30).tolist(), strict=True)
    }
    return "\n".join(
        [
            f"Share of groups of {K} that teach anything:", bars(useful, most=1),
            "How strongly a problem pulls, by your advantages:", bars(pull, most=0.5),
            "… and by those of lesson 4, which are not divided (the gradient of the chance itself):", bars(plain, most=0.5),
            "What is learnt:", bars(after, most=1),
        ]
    )  # fmt: skip


if __name__ == "__main__":
    run(group_advantages, check, picture)
