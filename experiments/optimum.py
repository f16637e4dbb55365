"""E2: PPO, RLOO, REBEL and DPO end at π_ref exp(r / β) / Z, on the world of tables of tests/exact, and two wrong penalties do not.

85 answers to each of three prompts are enumerated, so both errors are exact: of the expected reward, as a share of the
optimum's, and KL(π‖π*). The penalties are those that code for RLHF has had: k3 in the reward, and k1 as a loss. Best-of-n of
a reward without ties has a KL of log n − (n − 1)/n and wins n of n + 1 against one answer.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from bridle.maths.statistics import best_of_n_kl
from experiments.harness import Claim, Experiment, Row
from tests.exact.checks import KL, REWARD_ERROR
from tests.exact.test_checks import k1_as_loss, k3_in_the_reward
from tests.exact.test_optimum import TRAINERS
from tests.exact.train import by_ppo
from tests.exact.world import World, distance

BETAS = (0.3, 1.0)
PATIENCE = 3
NAMES = ("PPO", "RLOO", "REBEL", "DPO")
MUTANTS = {"k1 as a loss": k1_as_loss, "k3 in the reward": k3_in_the_reward}
NS = (4, 16, 64)
ANSWERS, GROUPS = 20_000, 4000


def measure(seed: int) -> Row:
    world, row = World.made(seed), dict[str, float]()
    with tempfile.TemporaryDirectory() as folder:
        for beta in BETAS:
            for name, train in zip(NAMES, TRAINERS, strict=True):
                found = distance(world, train(world, beta, Path(folder) / f"{name} {beta}", PATIENCE), beta)
                row |= {f"{name} {beta:g} reward": found.reward_error, f"{name} {beta:g} KL": found.kl}
        for name, plant in MUTANTS.items():
            with pytest.MonkeyPatch.context() as patch:
                plant(patch)
                row[f"{name} KL"] = distance(world, by_ppo(world, 0.3, Path(folder) / name, 1), 0.3).kl
        row["unchanged KL"] = distance(world, world.policy(), 0.3).kl
    return row | best_of(seed)


def best_of(seed: int) -> Row:
    """Best-of-n on equally likely answers of distinct rewards: the KL by their ranks, exact but for their number; wins are drawn."""
    rng, row = np.random.default_rng(seed), {}
    for n in NS:
        share_A = (np.arange(1, ANSWERS + 1) / ANSWERS) ** n - (np.arange(ANSWERS) / ANSWERS) ** n
        share_A = share_A[share_A > 0]
        wins = (rng.random((GROUPS, n)).max(1) > rng.random(GROUPS)).mean()
        row |= {
            f"best of {n} KL over bound": float((share_A * np.log(share_A * ANSWERS)).sum()) - best_of_n_kl(n),
            f"best of {n} wins": float(wins) - n / (n + 1),
        }
    return row


EXPERIMENT = Experiment(
    name="E2",
    title="each trainer ends at the optimum that is known",
    setting="World of tables of `tests/exact`: 85 answers to each of 3 prompts, enumerated. Errors are exact: the reward's as a "
    "share of the optimum's, KL(π‖π*) in nats an answer.",
    measure=measure,
    seeds=range(5),
    claims=[
        *(Claim(f"{name} {b:g} {figure}", f"{name}, β = {b:g}: {words}", "every", at_most=most)
          for name in NAMES for b in BETAS
          for figure, words, most in (("reward", "error of the reward", REWARD_ERROR), ("KL", "KL to the optimum", KL))),
        *(Claim(f"best of {n} KL over bound", f"KL of best of {n} less its bound, nats", "every", at_most=0) for n in NS),
        *(Claim(f"best of {n} wins", f"win rate of best of {n} less n/(n + 1)", "unrefuted", at_least=0, at_most=0) for n in NS),
    ],
    controls=[
        *(Claim(f"{name} KL", f"{name}: PPO's KL to the optimum", "every", at_least=KL) for name in MUTANTS),
        Claim("unchanged KL", "KL of the reference to the optimum", "every", at_least=5 * KL),
    ],
)  # fmt: skip
