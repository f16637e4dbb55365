"""A world small enough to write down whole: five symbols and a stop, answers of at most six tokens, 19,531 answers in all.

A policy is a table: log-probs of the next token by place and by the token before. Everything that is told of one is exact: its KL, its
expected gold, and the optimum π_ref exp(r / β) / Z are sums over all answers. Only training samples.
Gold pays for a symbol once or twice and fines it after that; fines runs and answers that do not stop; pays once for a pair. A reward model
that is linear in how often each symbol stands there (and whether the answer stopped) is right on answers of the reference and does not know
of any limit: optimised for long it is out-run, and gold falls.

All is done for R runs at once, each with its own table, world and random numbers, so that a run does not depend on those beside it.
Shapes: R runs, A answers, L places, S states (place and token before), V tokens, B answers of a step, P pairs.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bridle.maths.advantages import leave_one_out
from bridle.maths.kl import KLControl, k1
from bridle.maths.losses import rloo
from bridle.maths.statistics import logistic_regression

SYMBOLS, PLACES = 5, 6
STOP, TOKENS = SYMBOLS, SYMBOLS + 1
STATES = PLACES * TOKENS + 1  # the last is where nothing follows


def enumerate_answers() -> tuple[Tensor, Tensor]:
    """Tokens [A, L], stops in the place of padding, and the mask [A, L]: those that end in a stop, and those that were cut off."""
    rows = [
        (*symbols, *[STOP] * (PLACES - length))
        for length in range(PLACES + 1)
        for symbols in itertools.product(range(SYMBOLS), repeat=length)
    ]
    ids_AL = torch.tensor(rows)
    length_A = (ids_AL != STOP).sum(1)
    return ids_AL, torch.arange(PLACES) <= length_A[:, None]  # the stop is a token of the answer


IDS_AL, MASK_AL = enumerate_answers()
_BEFORE_AL = torch.cat([torch.full((len(IDS_AL), 1), STOP), IDS_AL[:, :-1]], 1)
STATE_AL = torch.where(MASK_AL, torch.arange(PLACES) * TOKENS + _BEFORE_AL, STATES - 1)
_CODE_L = TOKENS ** torch.arange(PLACES)
ANSWER_OF = torch.zeros(TOKENS**PLACES, dtype=torch.long).scatter(
    0, (IDS_AL * _CODE_L).sum(1), torch.arange(len(IDS_AL))
)
COUNT_AS = torch.stack([((IDS_AL == symbol) & MASK_AL).sum(1) for symbol in range(SYMBOLS)], 1).double()
ENDED_A = (IDS_AL[:, -1] == STOP).double()
FEATURES_AF = torch.cat([COUNT_AS, ENDED_A[:, None]], 1)


def longest_run() -> Tensor:
    """Of one symbol, in each answer, [A]."""
    run_A = longest_A = (IDS_AL[:, 0] != STOP).double()
    for place in range(1, PLACES):
        symbol_A = IDS_AL[:, place]
        run_A = torch.where(symbol_A == STOP, 0.0, torch.where(symbol_A == IDS_AL[:, place - 1], run_A + 1, 1.0))
        longest_A = torch.maximum(longest_A, run_A)
    return longest_A


RUN_A = longest_run()


def gold_points(generator: torch.Generator) -> Tensor:
    """Points of every answer, [A]: which symbol plays which part is drawn."""
    best, good, sweet, bad, lead = torch.randperm(SYMBOLS, generator=generator).tolist()

    def capped(symbol: int, most: int, pays: float, fine: float) -> Tensor:
        count_A = COUNT_AS[:, symbol]
        return pays * count_A.clamp(max=most) - fine * (count_A - most).clamp(min=0)

    pair_A = ((IDS_AL[:, :-1] == lead) & (IDS_AL[:, 1:] == best)).any(1).double()
    return (
        capped(best, 2, 1.0, 0.9)
        + capped(good, 1, 0.7, 0.5)
        + capped(sweet, 1, 0.6, 0.8)
        - 0.5 * COUNT_AS[:, bad]
        + 0.8 * pair_A
        - 0.6 * (RUN_A - 2).clamp(min=0)
        - (1 - ENDED_A)
    )


@dataclass
class Gold:
    """What people think, behind an object that counts who asks how often. `points_RA` itself is for exact evaluation, which asks nobody."""

    points_RA: Tensor
    calls: Counter[str] = field(default_factory=Counter)

    def score(self, answer_RB: Tensor, purpose: str) -> Tensor:
        self.calls[purpose] += answer_RB.numel()
        return self.points_RA.gather(1, answer_RB)


class World(NamedTuple):
    """Of R runs: the reference's logits, what is gold, and each run's random numbers."""

    reference_RSV: Tensor
    gold: Gold
    draws: list[torch.Generator]

    @property
    def mean_sd_R(self) -> tuple[Tensor, Tensor]:
        """Gold of the reference's answers, exact: its mean, and the deviation that gains are told in."""
        return mean_and_sd(answer_logp(self.reference_RSV), self.gold.points_RA)


def make_world(seeds: Sequence[int]) -> World:
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    references, points = [], []
    for generator in draws:
        logits_SV = 0.5 * torch.randn(STATES, TOKENS, generator=generator, dtype=torch.float64)
        logits_SV[:, STOP] -= 0.3
        references.append(logits_SV)
        points.append(gold_points(generator))
    return World(torch.stack(references), Gold(torch.stack(points)), draws)


# --------------------------------------------------------------------------------------------------- what is exact


def answer_logp(table_RSV: Tensor, answer_RB: Tensor | None = None) -> Tensor:
    """log π of every answer [R, A], or of some [R, B]; the sum over an answer's tokens, its stop too."""
    logp_RX = table_RSV.log_softmax(2).flatten(1)
    cell_AL = STATE_AL * TOKENS + IDS_AL
    if answer_RB is None:
        return torch.where(MASK_AL, logp_RX[:, cell_AL], 0.0).sum(2)
    taken_RBL = logp_RX.gather(1, cell_AL[answer_RB].flatten(1)).view(*answer_RB.shape, PLACES)
    return torch.where(MASK_AL[answer_RB], taken_RBL, 0.0).sum(2)


def mean_and_sd(logp_RA: Tensor, value_RA: Tensor) -> tuple[Tensor, Tensor]:
    """Of a value under a policy, each [R]."""
    mean_R = (logp_RA.exp() * value_RA).sum(1)
    return mean_R, (logp_RA.exp() * (value_RA - mean_R[:, None]).square()).sum(1).sqrt()


def kl_between(logp_RA: Tensor, reference_RA: Tensor) -> Tensor:
    """KL(π‖π_ref) in nats an answer, [R]."""
    return (logp_RA.exp() * (logp_RA - reference_RA)).sum(1)


def optimum(reference_RA: Tensor, reward_RA: Tensor, beta_R: Tensor) -> Tensor:
    """log π* = log π_ref + r / β - log Z, [R, A]."""
    return (reference_RA + reward_RA / beta_R[:, None]).log_softmax(1)


def beta_for(reference_RA: Tensor, reward_RA: Tensor, kl: float) -> Tensor:
    """The β whose optimum lies `kl` nats from the reference, [R]: the KL falls as β rises, so halving log β finds it."""
    low_R, high_R = torch.full(reference_RA.shape[:1], -7.0).double(), torch.full(reference_RA.shape[:1], 5.0).double()
    for _ in range(40):
        middle_R = (low_R + high_R) / 2
        far_R = kl_between(optimum(reference_RA, reward_RA, middle_R.exp()), reference_RA) > kl
        low_R, high_R = torch.where(far_R, middle_R, low_R), torch.where(far_R, high_R, middle_R)
    return ((low_R + high_R) / 2).exp()


# ------------------------------------------------------------------------------------------- what samples, and learns


def sample(table_RSV: Tensor, count: int, draws: Sequence[torch.Generator]) -> Tensor:
    """Numbers of `count` answers of each policy, [R, B]."""
    edge_RSV = table_RSV.softmax(2).cumsum(2)
    uniform_RBL = torch.stack([torch.rand(count, PLACES, generator=draw, dtype=torch.float64) for draw in draws])
    run_R1 = torch.arange(len(table_RSV))[:, None]
    before_RB = torch.full((len(draws), count), STOP)
    code_RB, open_RB = torch.zeros_like(before_RB), torch.ones_like(before_RB, dtype=torch.bool)
    for place in range(PLACES):
        edge_RBV = edge_RSV[run_R1, place * TOKENS + before_RB]
        token_RB = (uniform_RBL[..., place, None] > edge_RBV[..., :-1]).sum(2)
        before_RB = torch.where(open_RB, token_RB, STOP)
        open_RB = before_RB != STOP
        code_RB += before_RB * _CODE_L[place]
    return ANSWER_OF[code_RB]


class Labels(NamedTuple):
    """Pairs of answers, and whether the first was preferred."""

    first_RP: Tensor
    second_RP: Tensor
    won_RP: Tensor


def label(world: World, table_RSV: Tensor, pairs: int, noise: float, purpose: str) -> Labels:
    """Fresh pairs of a policy's answers: the first is preferred with probability σ(its lead in gold); a share `noise` is reversed."""
    answer_RB = sample(table_RSV, 2 * pairs, world.draws)
    return compare(world, answer_RB[:, :pairs], answer_RB[:, pairs:], noise, purpose)


def compare(world: World, first_RP: Tensor, second_RP: Tensor, noise: float, purpose: str) -> Labels:
    """Somebody reads both answers of each pair and says which is better."""
    lead_RP = world.gold.score(first_RP, purpose) - world.gold.score(second_RP, purpose)
    coins_RP2 = torch.stack([torch.rand(*lead_RP.shape[1:], 2, generator=d, dtype=torch.float64) for d in world.draws])
    return Labels(first_RP, second_RP, (coins_RP2[..., 0] < lead_RP.sigmoid()) ^ (coins_RP2[..., 1] < noise))


def learn_reward(world: World, labels: Labels) -> Tensor:
    """Scores of every answer by a linear reward model, [R, A], with mean 0 and deviation 1 over the reference's answers."""
    weights = [
        logistic_regression((FEATURES_AF[first] - FEATURES_AF[second]).numpy(), won.double().numpy())[0]
        for first, second, won in zip(*labels, strict=True)
    ]
    score_RA = torch.from_numpy(np.stack(weights)) @ FEATURES_AF.T
    mean_R, sd_R = mean_and_sd(answer_logp(world.reference_RSV), score_RA)
    return (score_RA - mean_R[:, None]) / sd_R[:, None]


def pair_accuracy(score_RA: Tensor, labels: Labels) -> Tensor:
    """Share of pairs whose preferred answer scores higher, a tie one half, [R]."""
    lead_RP = score_RA.gather(1, labels.first_RP) - score_RA.gather(1, labels.second_RP)
    return 0.5 + 0.5 * (lead_RP.sign() * (2 * labels.won_RP.double() - 1)).mean(1)


Reward = Callable[[Tensor], Tensor]  # numbers of answers [R, B] → their rewards [R, B]
Observer = Callable[[int, Tensor, Sequence[KLControl]], None]  # after so many steps: the tables, and what β is


@dataclass(frozen=True)
class Practice:
    """How long and how fast: fresh `answers` a step, and so many `updates` by Adam on all of them."""

    steps: int = 200
    answers: int = 64
    updates: int = 1
    learning_rate: float = 0.02


def practise(
    world: World, reward: Reward, controls: Sequence[KLControl], practice: Practice, observe: Observer
) -> Tensor:
    """REINFORCE on whole answers, each beside the mean of the others, with β k1 in the reward (bridle's RLOO): the tables, [R, S, V].

    `observe` sees the tables before the first step and after each.
    """
    table_RSV = world.reference_RSV.clone().requires_grad_()
    optimizer = torch.optim.Adam([table_RSV], lr=practice.learning_rate)
    controls = list(controls)
    whole_RB = torch.ones(len(controls), practice.answers, dtype=torch.bool)
    for step in range(practice.steps + 1):
        observe(step, table_RSV.detach(), controls)
        if step == practice.steps:
            break
        answer_RB = sample(table_RSV.detach(), practice.answers, world.draws)
        old_RB = answer_logp(table_RSV.detach(), answer_RB)
        kl_RB = k1(old_RB, answer_logp(world.reference_RSV, answer_RB), whole_RB)
        beta_R1 = torch.tensor([control.beta for control in controls], dtype=torch.float64)[:, None]
        paid_RB = reward(answer_RB) - beta_R1 * kl_RB
        advantage_B = leave_one_out(paid_RB.flatten(), practice.answers)
        for _ in range(practice.updates):
            optimizer.zero_grad()
            logp_B = answer_logp(table_RSV, answer_RB).flatten()
            # divided by one run's count: each run's gradient is what it would be alone
            rloo(logp_B, old_RB.flatten(), advantage_B, clip=0.2, count=practice.answers)[0].backward()
            optimizer.step()
        controls = [control.after(kl) for control, kl in zip(controls, kl_RB.mean(1).tolist(), strict=True)]
    return table_RSV.detach()


def scores(score_RA: Tensor) -> Reward:
    return lambda answer_RB: score_RA.gather(1, answer_RB)
