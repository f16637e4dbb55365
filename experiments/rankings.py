"""What a ranking of K answers is worth: python experiments/rankings.py [--seeds 20] [--read 720]

A linear world (an answer is 20 numbers, its gold a weighted sum of them) and people who rank by Plackett-Luce: best first, each
chosen among those that are left with probability ∝ exp(gold). For the same number of answers read, larger rankings say more:
where all answers are equally good, a ranking of K holds as much (Fisher) information as 2 (K - H_K) independent pairs, H_K the
harmonic number: 3.8 for K = 4, 12.3 for K = 9, and not the 6 and 36 pairs that it is made into. Measured, over seeds, on pairs that
nobody saw, by gold:

    1. accuracy after 720 answers read as pairs, rankings of 4, and rankings of 9: it rises with K
    2. the same with Plackett-Luce's loss on whole rankings in place of all pairs in one batch: within a point
    3. all pairs of a ranking in one batch against pairs shuffled apart, both for 4 epochs in steps of 8 prompts or 8 pairs, with 200
       numbers of which 20 matter, so that there is something to learn by heart: apart, an answer is learnt from K - 1 times as
       often, and the loss on held-out pairs is further above that in training. Its order may still be the better one, for it took
       more steps: what is too sure is its numbers
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from bridle.maths.losses import bradley_terry, plackett_luce
from bridle.maths.statistics import mean_and_se, student_quantile

WIDTH = 20
KS = (2, 4, 9)


def world(seed: int, width: int = WIDTH) -> tuple[Tensor, torch.Generator]:
    """Gold's weights, of which the first 20 are not zero, so that gold has deviation 1.5; and the seed's randomness."""
    generator = torch.Generator().manual_seed(seed)
    gold_D = torch.zeros(width, dtype=torch.float64)
    gold_D[:WIDTH] = torch.randn(WIDTH, generator=generator, dtype=torch.float64)
    return 1.5 * gold_D / gold_D.norm(), generator


def rank_answers(gold_D: Tensor, prompts: int, answers: int, generator: torch.Generator) -> Tensor:
    """Answers [R, K, D] in the order that a person ranked them: gold plus Gumbel noise, sorted, is Plackett-Luce."""
    answers_RKD = torch.randn(prompts, answers, len(gold_D), generator=generator, dtype=torch.float64)
    noise_RK = -torch.log(-torch.log(torch.rand(prompts, answers, generator=generator, dtype=torch.float64)))
    order_RK = (answers_RKD @ gold_D + noise_RK).argsort(1, descending=True)
    return answers_RKD.take_along_dim(order_RK[..., None], 1)


def differences(answers_RKD: Tensor) -> Tensor:
    """Better minus worse of every pair of every ranking, [R, P, D]."""
    better, worse = torch.triu_indices(answers_RKD.shape[1], answers_RKD.shape[1], 1)
    return answers_RKD[:, better] - answers_RKD[:, worse]


def pair_loss(weight_D: Tensor, difference_PD: Tensor) -> Tensor:
    """The mean over pairs; pairs of rankings of one size weigh the same however they come."""
    gap_P = (difference_PD @ weight_D).flatten()
    return bradley_terry(gap_P, torch.zeros_like(gap_P), torch.ones_like(gap_P), count=len(gap_P))[0]


def ranking_loss(weight_D: Tensor, answers_RKD: Tensor) -> Tensor:
    scores_RK = answers_RKD @ weight_D
    places_RK = torch.arange(scores_RK.shape[1]).expand(scores_RK.shape)
    return plackett_luce(scores_RK, places_RK, torch.ones(len(scores_RK)).to(scores_RK), count=len(scores_RK))[0]


def learn(answers_RKD: Tensor, whole: bool, ridge: float = 0.02) -> Tensor:
    """A linear reward model to its optimum, from all pairs of each ranking or from whole rankings."""
    given = answers_RKD if whole else differences(answers_RKD)
    weight_D = torch.zeros(answers_RKD.shape[2], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_D], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = (ranking_loss if whole else pair_loss)(weight_D, given) + ridge / 2 * weight_D.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    return weight_D.detach()


def accuracy(weight_D: Tensor, gold_D: Tensor) -> float:
    """Share of pairs that a linear score orders as gold does: exactly, from the angle between the two (normal answers)."""
    cosine = weight_D @ gold_D / (weight_D.norm() * gold_D.norm())
    return float(1 - torch.arccos(cosine.clamp(-1, 1)) / torch.pi)


def in_minibatches(answers_RKD: Tensor, apart: bool, epochs: int, generator: torch.Generator, size: int = 8) -> Tensor:
    """AdamW for some epochs, `size` prompts with all their pairs in a step, or `size` pairs of anywhere (`apart`)."""
    given = differences(answers_RKD)
    given = given.flatten(0, 1)[:, None] if apart else given
    weight_D = torch.zeros(answers_RKD.shape[2], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([weight_D], lr=0.01, weight_decay=0.0)
    for _ in range(epochs):
        for rows in torch.randperm(len(given), generator=generator).split(size):
            optimizer.zero_grad()
            pair_loss(weight_D, given[rows]).backward()
            optimizer.step()
    return weight_D.detach()


def one_seed(seed: int, read: int) -> dict[str, float]:
    """Accuracies of both losses for each K, and of both ways of batching the loss on training and held-out pairs."""
    found = {}
    for k in KS:
        gold_D, generator = world(seed)
        answers_RKD = rank_answers(gold_D, read // k, k, generator)
        for name, whole in (("pairs", False), ("ranking", True)):
            found[f"{name} {k}"] = accuracy(learn(answers_RKD, whole), gold_D)
    gold_D, generator = world(seed, width=200)
    train_RKD, test_RKD = rank_answers(gold_D, read // 9, 9, generator), rank_answers(gold_D, 500, 9, generator)
    for name, apart in (("together", False), ("apart", True)):
        weight_D = in_minibatches(train_RKD, apart, 4, generator)
        losses = [float(pair_loss(weight_D, differences(answers))) for answers in (train_RKD, test_RKD)]
        found |= {f"{name} train": losses[0], f"{name} held out": losses[1], f"{name} gap": losses[1] - losses[0]}
        found[f"{name} accuracy"] = accuracy(weight_D, gold_D)
    return found


def main(seeds: int, read: int) -> bool:
    """Print the tables; whether everything came out as it must."""
    rows = [one_seed(seed, read) for seed in range(seeds)]
    wide = student_quantile(0.95, seeds - 1)  # at 20 seeds 2.09

    def shown(name: str, other: str = "") -> str:
        """Mean and its 95% interval; of the difference to another column, paired by seed."""
        mean, error = mean_and_se([row[name] - (row[other] if other else 0) for row in rows])
        return f"{mean:{'+' if other else ''}.3f} ± {wide * error:.3f}"

    print(f"{read} answers read, {seeds} seeds; ± is Student's 95% over seeds, differences paired\n")
    print("| answers to a prompt | all pairs | Plackett-Luce | difference | over the K before |\n" + "|---" * 5 + "|")
    for before, k in zip((None, *KS), KS, strict=False):
        more = shown(f"pairs {k}", f"pairs {before}") if before else ""
        cells = [shown(f"pairs {k}"), shown(f"ranking {k}"), shown(f"ranking {k}", f"pairs {k}"), more]
        print(f"| {k} | {' | '.join(cells)} |")
    print("\n| pairs of a ranking of 9 | loss in training | held out | gap | accuracy |\n" + "|---" * 5 + "|")
    for name in ("together", "apart"):
        cells = [shown(f"{name} {figure}") for figure in ("train", "held out", "gap", "accuracy")]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"| difference | | | {shown('apart gap', 'together gap')} | {shown('apart accuracy', 'together accuracy')} |")

    def mean(name: str, other: str) -> tuple[float, float]:
        return mean_and_se([row[name] - row[other] for row in rows])

    rises = [mean("pairs 4", "pairs 2"), mean("pairs 9", "pairs 4"), mean("apart gap", "together gap")]
    holds = all(rise > wide * error for rise, error in rises)
    holds &= all(abs(mean(f"ranking {k}", f"pairs {k}")[0]) <= 0.01 for k in KS)
    print("\nall as it must be" if holds else "\nNOT all as it must be")
    return holds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--read", type=int, default=720)
    given = parser.parse_args()
    raise SystemExit(0 if main(given.seeds, given.read) else 1)
