"""Lesson 3: a reward model, from what people prefer.

Run: python docs/course/lesson_3.py

WHAT IT IS FOR. Nobody can write down what makes an answer good, and people who are asked for marks from 1
to 10 disagree about what a 7 is. But shown two answers they can say which is better. A reward model turns
such comparisons into a number for each answer, also for answers that nobody has compared. It is what the
next lessons optimise.

Bradley and Terry (1952) made the link: let each answer have a score, and let the difference of two scores
say how likely the one is to be preferred to the other. Equal scores mean one half, a difference of 1 means
.73, of 3 means .95. People may contradict each other, and themselves; the model expects them to. A person
may also rank several answers at once. A ranking of K answers holds K(K−1)/2 pairs, each of a better and a
worse answer. The pairs of one ranking are not so many independent opinions: together they weigh as one.

THE EQUATION. P(y preferred to y') = σ(s(y) − s(y')) with σ(x) = 1/(1 + exp(−x)). Of a ranking of K answers,
best first, the loss is

    loss = − 1/(K(K−1)/2) · Σ_{i<j} log σ(s_i − s_j)

(Ouyang and others 2022, eq. 1, arxiv.org/abs/2203.02155). For K = 2 it is minus the log-prob of one
comparison.

YOUR TASK. Fill in `ranking_loss`: R rankings of K answers each, the best in column 0, the worst in the
last; a loss for each ranking. For this and all losses from here on you return one number for each row; the
lesson takes the mean. In training that is a mean over a batch. Here it is over everything that could
happen, with its probability, so nothing is left to chance.

TO THINK ABOUT.

1. Add 100 to every score: what happens to the loss? Can you say that an answer with score 2 is a good
   answer?
2. Of every four labels one is turned round by mistake. What is the largest difference between two scores
   that your loss can then arrive at?
"""

import math
from collections.abc import Iterator

import torch
from checking import Function, ask, bars, near, need, run, slopes
from torch import Tensor
from world import World, minimise


def ranking_loss(scores_RK: Tensor) -> Tensor:
    """The loss of each ranking, [R]. A row holds the scores of K answers in the order that a person put them in, best first."""
    raise NotImplementedError


def learn_exactly(loss: Function, gold_A: Tensor) -> Tensor:
    """The scores [A] that your loss arrives at when people who follow Bradley and Terry compare every pair again and again."""
    better_P, worse_P = (1 - torch.eye(len(gold_A))).nonzero(as_tuple=True)
    share_P = (gold_A[better_P] - gold_A[worse_P]).sigmoid() / len(better_P)

    def expected_loss(score_A: Tensor) -> Tensor:
        pair_P2 = torch.stack([score_A[better_P], score_A[worse_P]], 1)
        return (share_P * ask(loss, pair_P2, shape=(len(share_P),))).sum()

    return minimise(expected_loss, torch.zeros_like(gold_A))


def check_pair(loss: Function) -> Iterator[str]:
    equal = float(ask(loss, torch.zeros(1, 2), shape=(1,)))
    need(not near(equal, -0.5), "For equal scores your loss is −1/2: take the logarithm of σ.")
    need(
        not near(equal, -math.log(2)),
        "For equal scores your loss is −log 2, below 0: a loss is −log P. Is the sign right?",
    )
    need(
        near(equal, math.log(2)),
        f"Equal scores mean that either may be preferred, so the loss should be −log(1/2) = .693; yours is {equal:.3f}.",
    )
    slope_2 = slopes(loss, torch.zeros(1, 2), shape=(1,))[0]
    need(
        slope_2[0] < 0,
        "Your gradient points away from the preferred answer: its score should rise, and that of the other fall. Is the sign right, "
        "better less worse?",
    )
    need(
        near(slope_2, torch.tensor([-0.5, 0.5])),
        f"At equal scores the slopes should be −1/2 and +1/2, and are {slope_2.tolist()}.",
    )
    yield "equal scores lose log 2, and the preferred answer's score is pushed up"

    far_1 = loss(torch.tensor([[-900.0, 900.0]]))
    need(
        far_1.isfinite().all(),
        "For a difference of −1800 your loss is not a finite number: σ rounds to 0 and its logarithm is −inf. "
        "torch.nn.functional.logsigmoid does both at once and keeps the digits.",
    )
    need(near(far_1, 1800), f"For a difference of −1800 the loss should be 1800, and is {float(far_1[0]):g}.")
    yield "very wrong scores have a large loss, and not an infinite one"


def check_ranking(loss: Function, draws: torch.Generator) -> Iterator[str]:
    of_four = float(ask(loss, torch.zeros(1, 4), shape=(1,)))
    need(
        not near(of_four, 6 * math.log(2)),
        "A ranking of four weighs six times as much as a pair: take the mean over its pairs, not the sum.",
    )
    three = float(ask(loss, torch.tensor([[0.0, 0.0, -50.0]]), shape=(1,)))
    need(
        not near(three, math.log(2) / 2),
        "Only neighbours are compared: of three answers the first is also better than the third.",
    )
    need(
        near(of_four, math.log(2)) and near(three, math.log(2) / 3),
        "Of three answers with scores 0, 0, −50 only the first pair is in doubt, so the loss should be (log 2)/3 = .231; yours is "
        f"{three:.3f}.",
    )
    mixed_RK = torch.randn(5, 4, generator=draws)
    alone_R = torch.cat([ask(loss, row_1K, shape=(1,)) for row_1K in mixed_RK.split(1)])
    need(
        near(ask(loss, mixed_RK, shape=(5,)), alone_R),
        "The loss of a ranking changes with the rankings beside it: keep the rows apart.",
    )
    yield "a ranking is all of its pairs, and weighs one"


def check(loss: Function, seed: int) -> Iterator[str]:
    world = World(seed)
    yield from check_pair(loss)
    yield from check_ranking(loss, world.draws)
    error_A = learn_exactly(loss, world.gold_A) - world.gold_A
    error = float(error_A.max() - error_A.min())
    need(
        error < 0.02,
        f"Learnt from all comparisons, score differences should be those of true quality; one is off by {error:.2f}.",
    )
    yield f"from all comparisons your loss finds true quality, up to a number added to all (largest error {error:.4f})"


def picture(loss: Function, seed: int) -> str:
    """From few comparisons: how often the reward model is right about pairs. An answer that nobody compared has no score yet."""
    world = World(seed)
    gold_A, right = world.gold_A, {}
    for count in (8, 40, 200, 1000, 10_000):
        answer_R4 = torch.randint(len(gold_A), (count // 4, 4), generator=world.draws)
        noise_R4 = -(
            -torch.rand(answer_R4.shape, generator=world.draws).log()
        ).log()  # people err as Bradley and Terry have it
        ranked_R4 = answer_R4.gather(1, (gold_A[answer_R4] + noise_R4).argsort(1, descending=True))
        score_A = minimise(
            lambda at_A, ranked_R4=ranked_R4: loss(at_A[ranked_R4]).mean() + 1e-3 * at_A.square().mean(), 0 * gold_A
        )
        agree_AA = (score_A[:, None] - score_A).sign() * (gold_A[:, None] - gold_A).sign()
        pairs = len(gold_A) * (len(gold_A) - 1)
        right[f"{4 * len(answer_R4):>6} answers read"] = 0.5 + 0.5 * float(agree_AA.sum()) / pairs  # a tie counts half
    return "How often your reward model is right about two answers, one half being chance, after\n" + bars(right)


if __name__ == "__main__":
    run(ranking_loss, check, picture)
