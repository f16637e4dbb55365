"""E7 on the world of tables: five reward models that learnt the same labels, against one of them.

A seed has `WORLDS` worlds, each with one set of labels. The first of five reward models learns from all of them, and is the one model that
the others are compared with; four learn from as many, drawn with replacement, as `reward.bootstrap` has it. What they make of an answer
is combined in the three ways of `reward.combine`, and REINFORCE climbs each for as long, with the same random numbers and without a
penalty. KL and gold are exact. A minimum moves a policy less, and what moves less falls later: so each way is also compared where both
runs are equally far from the reference, and with one model at a lower learning rate, whose KL grows as the minimum's does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from bridle.rewards.learned import Combine, combined
from experiments.harness import Claim, Experiment, Row
from experiments.penalty import curves
from experiments.tabular import (
    Labels,
    Practice,
    World,
    label,
    learn_reward,
    make_world,
    pair_accuracy,
    scores,
)

MEMBERS, WORLDS = 5, 25
PAIRS, NOISE = 1500, 0.25
UNCERTAINTY = 2.0  # λ, for variances of scores in standard deviations of the reference's; chosen on seed 100
SLOWER = 0.95  # times the learning rate: chosen on seed 100, so that one model's KL grows as the worst of five's does
PRACTICE = Practice(steps=300)
EQUAL_KL = (2.0, 4.0, 8.0)  # nats an answer
COMBINED: dict[Combine, str] = {"min": "worst of five", "uwo": "five, uncertainty-weighted", "mean": "mean of five"}
CAUTIOUS: tuple[Combine, ...] = ("min", "uwo")


def resampled(labels: Labels, draws: Sequence[torch.Generator]) -> Labels:
    """As many pairs of each run, drawn with replacement."""
    pairs = labels.won_RP.shape[1]
    drawn_RP = torch.stack([torch.randint(pairs, (pairs,), generator=draw) for draw in draws])
    return Labels(*(each.gather(1, drawn_RP) for each in labels))


def learn_five(world: World) -> Tensor:
    """Scores of every answer by each member, [M, R, A]: the first learnt from all labels."""
    labels = label(world, world.reference_RSV, PAIRS, NOISE, "labels")
    others = [learn_reward(world, resampled(labels, world.draws)) for _ in range(MEMBERS - 1)]
    return torch.stack([learn_reward(world, labels), *others])


def climbed(seeds: Sequence[int], score_RA: Tensor, practice: Practice) -> tuple[np.ndarray, np.ndarray]:
    """KL and gain of gold of a run in each world, [R, C] each. Whatever the scores, a world's runs draw the same random numbers."""
    kl_RC, gain_RC = curves(make_world(seeds), scores(score_RA), [0.0] * len(seeds), practice)
    return kl_RC.numpy(), gain_RC.numpy()


def gain_at(kl_RC: np.ndarray, gain_RC: np.ndarray, kl: float) -> np.ndarray:
    """Gain of each run where it first is so far away, [R]; not a number where it never is."""
    farthest_RC = np.maximum.accumulate(kl_RC, 1)
    return np.array([np.interp(kl, *run, right=np.nan) for run in zip(farthest_RC, gain_RC, strict=True)])


def measure(seed: int, worlds: int = WORLDS, practice: Practice = PRACTICE) -> Row:
    """Means over a seed's worlds; at equal KL over those in which both runs go so far."""
    seeds = [seed * 1000 + number for number in range(worlds)]
    world = make_world(seeds)
    score_MRA = learn_five(world)
    rewards: dict[str, Tensor] = {"one": score_MRA[0]}
    rewards |= {way: combined(score_MRA.flatten(1), way, UNCERTAINTY).view_as(score_MRA[0]) for way in COMBINED}
    found = {name: climbed(seeds, score_RA, practice) for name, score_RA in rewards.items()}
    slow = replace(practice, learning_rate=SLOWER * practice.learning_rate)
    found["slower"] = climbed(seeds, rewards["one"], slow)
    row = dict[str, float]()
    for name, (kl_RC, gain_RC) in found.items():
        row |= {
            f"{name}: end": float(gain_RC[:, -1].mean()),
            f"{name}: peak": float(gain_RC.mean(0).max()),
            f"{name}: KL halfway": float(kl_RC[:, kl_RC.shape[1] // 2].mean()),
            f"{name}: KL at the end": float(kl_RC[:, -1].mean()),
        }
    for way in COMBINED:
        row |= {f"{way} - {other}": row[f"{way}: end"] - row[f"{other}: end"] for other in ("one", "slower")}
        for kl in EQUAL_KL:
            more_R = gain_at(*found[way], kl) - gain_at(*found["one"], kl)
            if np.isfinite(more_R).any():
                row[f"{way} - one at {kl:g} nats"] = float(np.nanmean(more_R))
    fresh = label(world, world.reference_RSV, 4000, 0.0, "evaluation")
    row |= {f"{name}: accuracy": float(pair_accuracy(score_RA, fresh).mean()) for name, score_RA in rewards.items()}
    return row | {"gold as reward: fall": fall_on_gold(seeds, practice)}


def fall_on_gold(seeds: Sequence[int], practice: Practice) -> float:
    """How far gold at the end lies under its highest where gold itself is the reward."""
    world = make_world(seeds)
    gain_RC = climbed(seeds, world.gold.points_RA / world.mean_sd_R[1][:, None], practice)[1]
    return float((gain_RC.max(1) - gain_RC[:, -1]).mean())


EXPERIMENT = Experiment(
    name="E7",
    title="five reward models by their worst or by their doubt are harder to out-run than one",
    setting=f"World of tables; a seed is the mean of {WORLDS} worlds. Linear reward models of 1,500 pairs with 25% of the "
    "labels turned round: one that learnt from all; or that and four that learnt from a bootstrap of them, by their minimum, or by their "
    f"mean less {UNCERTAINTY:g} variances. {PRACTICE.steps} steps without a KL penalty, with the same random numbers. Gold is exact, "
    "in standard deviations of the reference's, over the reference's own. At equal KL: where a run first is so far away. Slower: one "
    f"model at {SLOWER:g} times the learning rate.",
    measure=measure,
    seeds=range(8),
    claims=[
        *(
            Claim(f"{way} - {other}", f"gold at the end: {COMBINED[way]} less {'one' if other == 'one' else 'one, slower'}", at_least=0)
            for other in ("one", "slower")
            for way in CAUTIOUS
        ),
        *(
            Claim(f"{way} - one at {kl:g} nats", f"gold where both are {kl:g} nats away: {COMBINED[way]} less one", at_least=0)
            for way in CAUTIOUS
            for kl in EQUAL_KL
        ),
        Claim("mean - one", "gold at the end: mean of five less one"),
        *(
            Claim(f"{name}: {figure}", f"{meaning}: {words}")
            for figure, meaning in (
                ("end", "gold at the end"),
                ("peak", "gold at the highest of its mean"),
                ("KL halfway", "KL halfway, nats"),
                ("KL at the end", "KL at the end"),
            )
            for name, words in {"one": "one", "slower": "one, slower", **COMBINED}.items()
        ),
        *(Claim(f"{name}: accuracy", f"accuracy on the reference's pairs: {words}") for name, words in {"one": "one", **COMBINED}.items()),
    ],
    controls=[
        Claim("one: end", "gold at the end on one model: there is a cliff to fall from", at_most=-0.5),
        Claim("gold as reward: fall", "the fall where gold is the reward", "every", at_most=0.1),
    ],
)  # fmt: skip
