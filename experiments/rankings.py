"""E9: what a ranking of K answers is worth.

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

import torch
from torch import Tensor

from bridle.maths.losses import bradley_terry, plackett_luce
from experiments.harness import Claim, Experiment, Row

WIDTH = 20
KS = (2, 4, 9)
READ = 720


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


def measure(seed: int) -> Row:
    row = one_seed(seed, READ)
    for before, k in zip(KS, KS[1:], strict=False):
        row[f"{k} over {before}"] = row[f"pairs {k}"] - row[f"pairs {before}"]
    row |= {f"ranking over pairs {k}": row[f"ranking {k}"] - row[f"pairs {k}"] for k in KS}
    return row | {
        f"apart over together, {name}": row[f"apart {name}"] - row[f"together {name}"] for name in ("gap", "accuracy")
    }


EXPERIMENT = Experiment(
    name="E9",
    title="of the same number of answers read, larger rankings teach more",
    setting="A linear world; 720 answers read, ranked K at a time by Plackett-Luce; accuracy on all pairs, exact. Differences are"
    " paired by seed.",
    measure=measure,
    seeds=range(20),
    claims=[
        Claim("4 over 2", "accuracy of rankings of 4 less that of pairs", at_least=0),
        Claim("9 over 4", "accuracy of rankings of 9 less that of 4", at_least=0),
        *(Claim(f"ranking over pairs {k}", f"Plackett-Luce's loss less all pairs, K = {k}", "mean", at_least=-0.01, at_most=0.01)
          for k in KS),
        Claim("apart over together, gap", "held-out less training loss: pairs shuffled apart less pairs of a ranking together", at_least=0),
        *(Claim(f"pairs {k}", f"accuracy, K = {k}") for k in KS),
    ],
)  # fmt: skip
