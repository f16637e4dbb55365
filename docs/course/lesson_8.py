"""Lesson 8: over-optimisation, or stop before the cliff.

Run: python docs/course/lesson_8.py

WHAT IT IS FOR. A reward model is a proxy for what people want, learnt from the answers that they saw. On
such answers it is right. But optimising means to look for answers with a high score, and among those the
ones whose score is too high are over-represented. At first the proxy and true quality ("gold") rise
together. Then gold rises more slowly, stands still, and falls, while the proxy rises on. Nothing inside the
run shows it. It is Goodhart's law: when a measure becomes a target, it ceases to be a good measure.

The simplest optimiser shows it best, for it needs no training: draw n answers and take the one with the
highest score, best-of-n. The larger n, the harder the proxy is optimised. One can say exactly how far
best-of-n is from the policy that it draws from, and so compare it with every other method at equal
distance. Here even the whole distribution of its answers can be written down. The world now has answers of
up to five tokens, 1365 in all. The proxy counts words: it learnt from the reference's answers that playing
is good and kind words are welcome. It hardly ever saw anyone overdo it.

THE EQUATION. Let F(s) be the chance that one draw has a score of s or less, F(<s) that it has less. The
best of n has a score of s or less if all n have. So, if no two answers score the same, y is the best of n
with probability

    π_n(y) = F(s_y)^n − F(<s_y)^n         and         KL(π_n‖π) ≤ log n − (n − 1)/n

(The bound: Beirami and others 2024, arxiv.org/abs/2401.01879. How gold falls with distance: Gao and others
2022, "Scaling laws for reward model overoptimization", arxiv.org/abs/2210.10760.)

YOUR TASK. Fill in `best_of_n`. Then read the table that is drawn, and say where you would have stopped.

TO THINK ABOUT.

1. You see the proxy and the KL, and not gold. What could you do to find the peak? What does it cost?
2. A better reward model, or five of them, of which the lowest score counts: what happens to the cliff?
"""

import math
from collections.abc import Iterator

import torch
from checking import Function, ask, bars, near, need, run
from torch import Tensor
from world import World, kl, optimum


def best_of_n(chance_A: Tensor, score_A: Tensor, n: int) -> Tensor:
    """The probability of each answer to be the one with the highest score of n draws, [A]. No two scores are equal."""
    raise NotImplementedError


def make_proxy(world: World) -> Tensor:
    """A reward model that is linear in how often each word stands there: the best such one, on the reference's answers."""
    feature_AF = torch.cat([world.count_AV, torch.ones(len(world.gold_A), 1)], 1)
    weight_A1 = world.logp(world.reference_SV).exp().sqrt()[:, None]
    fitted_F = torch.linalg.lstsq(weight_A1 * feature_AF, weight_A1[:, 0] * world.gold_A).solution
    return feature_AF @ fitted_F + 1e-6 * torch.rand(
        len(world.gold_A), generator=world.draws
    )  # so that no two are equal


def by_trying(chance_A: Tensor, score_A: Tensor, n: int) -> Tensor:
    """The same by going through all ways to draw n answers."""
    found_A = torch.zeros_like(chance_A)
    for group in torch.cartesian_prod(*[torch.arange(len(chance_A))] * n).view(-1, n):
        found_A[group[score_A[group].argmax()]] += chance_A[group].prod()
    return found_A


def check_by_trying(best: Function, seed: int) -> Iterator[str]:
    generator = torch.Generator().manual_seed(seed)
    chance_A, score_A = torch.rand(6, generator=generator).softmax(0), torch.randn(6, generator=generator)
    one_A, many_A = (ask(best, chance_A, score_A, n, shape=(6,)) for n in (1, 200))
    need(
        near(one_A.sum(), 1.0),
        f"The probabilities of the best of one add up to {float(one_A.sum()):.3f}, and not to 1: is F(<s) taken off, and both to the n?",
    )
    need(
        near(one_A, chance_A),
        "The best of one is the one that was drawn, so n = 1 should return chance_A, in its order. Did you sort the answers and not "
        "sort them back?",
    )
    need(
        near(many_A.sum(), 1.0),
        f"The probabilities of the best of 200 add up to {float(many_A.sum()):.3f}, and not to 1.",
    )
    need(
        many_A[score_A.argmin()] < 0.5,
        "Of 200 draws yours takes the answer with the lowest score: sort from the lowest score upwards.",
    )
    need(
        many_A[score_A.argmax()] > 0.99,
        "The best of 200 should nearly always be the answer with the highest score: it is not the most likely answer that wins, but the "
        "best of those drawn.",
    )
    for n in (2, 3):
        got_A, right_A = ask(best, chance_A, score_A, n, shape=(6,)), by_trying(chance_A, score_A, n)
        need(
            near(got_A, right_A),
            f"Trying all {6**n} ways to draw {n} of 6 answers gives {[round(p, 3) for p in right_A.tolist()]}, and yours "
            f"{[round(p, 3) for p in got_A.tolist()]}.",
        )
    yield "it is what comes of trying every way to draw two or three answers"


def check(best: Function, seed: int) -> Iterator[str]:
    yield from check_by_trying(best, seed)

    world = World(seed, longest=5)
    reference_A, proxy_A = world.logp(world.reference_SV), make_proxy(world)
    for n in (2, 4, 16, 64):
        won_A = ask(best, reference_A.exp(), proxy_A, n, shape=proxy_A.shape)
        away, most = distance(won_A, reference_A), math.log(n) - (n - 1) / n
        need(
            near(won_A.sum(), 1.0) and 0.9 * most < away < most + 1e-9,
            f"The best of {n} lies {away:.3f} nats from the policy; it should be a little under {most:.3f}.",
        )
        yield f"the best of {n:<2} lies {away:.3f} nats from the policy, and log n − (n − 1)/n is {most:.3f}"


def distance(chance_A: Tensor, reference_A: Tensor) -> float:
    """KL of probabilities, some of which may be 0."""
    return max(0.0, float((torch.special.xlogy(chance_A, chance_A) - chance_A * reference_A).sum()))


def curve(best: Function, world: World) -> dict[int, tuple[float, float, float]]:
    """KL, proxy and gold of the best of n."""
    reference_A, proxy_A = world.logp(world.reference_SV), make_proxy(world)
    found = {}
    for n in (1, 2, 4, 8, 16, 32, 64, 256, 1024, 8192, 65536):
        won_A = best(reference_A.exp(), proxy_A, n)
        found[n] = distance(won_A, reference_A), float(won_A @ proxy_A), float(won_A @ world.gold_A)
    return found


def picture(best: Function, seed: int) -> str:
    world = World(seed, longest=5)
    reference_A, proxy_A = world.logp(world.reference_SV), make_proxy(world)
    points = curve(best, world)
    gold = {f"n = {n:<6} KL {away:5.2f}  proxy {proxy:+.2f}  gold": value for n, (away, proxy, value) in points.items()}
    peak = max(points, key=lambda n: points[n][2])
    held = {}
    for beta in (1.0, 0.5, 0.3, 0.2, 0.1, 0.05):
        best_A = optimum(reference_A, proxy_A, beta)
        held[f"β = {beta:<6g} KL {kl(best_A, reference_A):5.2f}  proxy {best_A.exp() @ proxy_A:+.2f}  gold"] = float(
            best_A.exp() @ world.gold_A
        )
    favourite = best(reference_A.exp(), proxy_A, 65536).argmax()
    return "\n".join(
        [
            "The best of n:", bars(gold, form="+.2f"),
            f"Gold is highest at n = {peak}; the proxy never stops rising. Its favourite in the end: “{world.say(int(favourite))}”, "
            f"proxy {proxy_A[favourite]:+.2f}, gold {world.gold_A[favourite]:+.2f}.",
            "The same proxy, climbed by RL with a KL penalty (lesson 5), where it would end:", bars(held, form="+.2f"),
        ]
    )  # fmt: skip


if __name__ == "__main__":
    run(best_of_n, check, picture)
