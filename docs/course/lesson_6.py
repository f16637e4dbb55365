"""Lesson 6: DPO, the same optimum without a reward model.

Run: python docs/course/lesson_6.py

WHAT IT IS FOR. RLHF as so far: comparisons make a reward model, and PPO tunes the policy against it,
sampling all the while. Lesson 5 knew where that ends: π* = π_ref exp(r/β)/Z. Rafailov and others (2023)
read this equation from right to left. Every policy π is the optimum of *some* reward, r = β log(π/π_ref) +
a number that is the same for all answers to a prompt. So a policy is a reward model already: its implicit
reward.

Put this reward into the loss of lesson 3. There only differences of two rewards count, so the unknown
number falls out, and what is left is a loss on the policy itself: direct preference optimisation (DPO). No
reward model, no sampling, no critic; two log-probs of the policy and two of the reference for each pair.
With comparisons of everything it arrives where PPO does. With few it must guess what nobody compared.

THE EQUATION. With y preferred to y', and log π of a whole answer the sum over its tokens,

    loss = − log σ( β [ (log π(y) − log π_ref(y)) − (log π(y') − log π_ref(y')) ] )

(Rafailov and others 2023, eq. 7, arxiv.org/abs/2305.18290; π* is their eq. 4, the implicit reward eq. 5.)

YOUR TASK. Fill in `dpo_loss`, a loss for each pair.

TO THINK ABOUT.

1. Where policy and reference are equal the loss is log 2, whatever the pair. What does it tell if a run of
   yours begins with another number?
2. The loss falls if the rejected answer becomes less likely, even while the chosen one does too, only more
   slowly. Where does the probability go, and what would you look at to notice?
"""

import math
from collections.abc import Iterator

import torch
from checking import Function, ask, bars, near, need, run, slopes
from torch import Tensor
from world import World, kl, minimise, optimum


def dpo_loss(
    chosen_P: Tensor, rejected_P: Tensor, reference_chosen_P: Tensor, reference_rejected_P: Tensor, beta: float
) -> Tensor:
    """The loss of each pair, [P]: log π of the chosen and of the rejected answer, then log π_ref of them."""
    raise NotImplementedError


def learn_exactly(loss: Function, world: World, beta: float) -> Tensor:
    """log π [A] that your loss arrives at when all pairs are compared again and again by people who follow Bradley and Terry."""
    reference_A, gold_A = world.logp(world.reference_SV), world.gold_A
    better_P, worse_P = (1 - torch.eye(len(gold_A))).nonzero(as_tuple=True)
    share_P = (gold_A[better_P] - gold_A[worse_P]).sigmoid() / len(better_P)

    def expected_loss(table_SV: Tensor) -> Tensor:
        logp_A = world.logp(table_SV)
        pairs = logp_A[better_P], logp_A[worse_P], reference_A[better_P], reference_A[worse_P]
        return (share_P * ask(loss, *pairs, beta, shape=share_P.shape)).sum()

    return world.logp(minimise(expected_loss, world.reference_SV))


def check_start(loss: Function, draws: torch.Generator, beta: float = 0.3) -> Iterator[str]:
    """Where policy and reference are equal."""
    logp_P, reference_P = -3 * torch.rand(2, 6, generator=draws)
    same = ask(loss, logp_P, reference_P, logp_P, reference_P, beta, shape=(6,))
    need(
        not near(same, -math.log(2)), "Your loss is −log 2 at the start, below 0: a loss is −log σ. Is the sign right?"
    )
    need(
        near(same, math.log(2)),
        "Where policy and reference are equal every implicit reward is 0, so each pair should lose log 2 = .693; the first loses "
        f"{float(same[0]):.3f}. Is each answer's own reference subtracted?",
    )
    chosen = slopes(loss, logp_P, reference_P, logp_P, reference_P, beta, shape=(6,))
    need(
        (chosen < 0).all(),
        "Your gradient points away from the preferred answer: the loss should fall when the chosen answer becomes more likely. Which "
        "is taken from which?",
    )
    need(not near(chosen, -0.5), "β changes nothing: the bracket is multiplied by β before σ.")
    need(not near(chosen, -0.5 / beta), "You divide by β; the implicit reward is β log(π/π_ref): multiply.")
    need(
        near(chosen, -beta / 2),
        f"At the start the slope by the chosen answer's log-prob should be −β/2 = {-beta / 2:g}, and is {float(chosen[0]):g}.",
    )
    yield "it begins at log 2, and pulls towards the chosen answer by β/2"


def check_value(loss: Function) -> Iterator[str]:
    apart = ask(loss, torch.full((1,), -4000.0), torch.zeros(1), torch.zeros(1), torch.zeros(1), 1.0, shape=(1,))
    need(near(apart, 4000.0), "Of an answer that lies 4000 nats apart the loss should be 4000: use logsigmoid.")
    moved = float(ask(loss, *torch.tensor([[-1.0], [-2.0], [-3.0], [-1.0]]), 0.3, shape=(1,)))
    need(
        near(moved, math.log1p(math.exp(-0.9))),
        "The chosen answer's log-prob went from −3 to −1, the rejected one's from −1 to −2: with β = .3 the loss should be "
        f"−log σ(.9) = {math.log1p(math.exp(-0.9)):.3f}, and is {moved:.3f}.",
    )
    yield "what counts is how far each answer has moved from its own reference"


def check(loss: Function, seed: int) -> Iterator[str]:
    world = World(seed)
    yield from check_start(loss, world.draws)
    yield from check_value(loss)
    reference_A = world.logp(world.reference_SV)
    for beta in (0.3, 1.0):
        best_A, learnt_A = optimum(reference_A, world.gold_A, beta), learn_exactly(loss, world, beta)
        away = kl(learnt_A, best_A)
        need(
            away < 1e-3,
            f"At β = {beta:g} your DPO ends {away:.3f} nats from π*; from all comparisons it should be there, within .001.",
        )
        implicit_A = beta * (learnt_A - reference_A) - world.gold_A
        yield (
            f"at β = {beta:g} your DPO ends {away:.0e} nats from π*, and its implicit reward is true quality, up to a number "
            f"added to all (largest error {float(implicit_A.max() - implicit_A.min()):.3f})"
        )


def picture(loss: Function, seed: int) -> str:
    """From few comparisons of the reference's answers: what it is worth, the price of distance taken off, and how far it goes."""
    world = World(seed)
    reference_A = world.logp(world.reference_SV)

    def worth(logp_A: Tensor) -> float:
        return float(logp_A.exp() @ world.gold_A) - 0.3 * kl(logp_A, reference_A)

    worths, away = {"reference": worth(reference_A)}, {"reference": 0.0}
    for count in (30, 300, 3000, 30_000):
        first_P, second_P = world.sample(reference_A, 2 * count).view(2, count)
        swapped_P = (
            torch.rand(count, generator=world.draws) > (world.gold_A[first_P] - world.gold_A[second_P]).sigmoid()
        )
        chosen_P, rejected_P = torch.where(swapped_P, second_P, first_P), torch.where(swapped_P, first_P, second_P)

        def expected_loss(table_SV: Tensor, chosen_P: Tensor = chosen_P, rejected_P: Tensor = rejected_P) -> Tensor:
            logp_A = world.logp(table_SV)
            pairs = logp_A[chosen_P], logp_A[rejected_P], reference_A[chosen_P], reference_A[rejected_P]
            return loss(*pairs, 0.3).mean() + 1e-5 * (table_SV - world.reference_SV).square().sum()

        learnt_A = world.logp(minimise(expected_loss, world.reference_SV))
        worths[f"{count} pairs"], away[f"{count} pairs"] = worth(learnt_A), kl(learnt_A, reference_A)
    best_A = optimum(reference_A, world.gold_A, 0.3)
    worths["π*"], away["π*"] = worth(best_A), kl(best_A, reference_A)
    return (
        "After DPO on drawn pairs. True quality less β KL, which nothing has more of than π*, β = 0.3:\n" + bars(worths)
        + "\nKL from the reference, nats an answer:\n" + bars(away)
    )  # fmt: skip


if __name__ == "__main__":
    run(dpo_loss, check, picture)
