"""E6 on the world of tables: which rule stops before the cliff, and lets a run alone whose reward is the truth.

One run a seed against a reward model that will be out-run, and fifty against gold itself, in worlds of their own. Every rule looks at the
same 25 checkpoints and may use scores of reward models, the KL, the entropy, and fresh comparisons with the reference (25% of them
turned round), at most a fifth of the answers read that trained the reward model. It names the checkpoint to keep; gold says its worth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridle.guard.stopping import AUDIT_EVERY, Audited, judge_checkpoints, relative_slope
from bridle.maths.kl import KLControl
from experiments.harness import Claim, Experiment, Row
from experiments.tabular import (
    Labels,
    Practice,
    Reward,
    World,
    answer_logp,
    compare,
    label,
    learn_reward,
    make_world,
    mean_and_sd,
    practise,
    sample,
    scores,
)

PRACTICE = Practice(steps=250)
EVERY, NOISE, PAIRS = 10, 0.25, 1500
CHECKPOINTS = PRACTICE.steps // EVERY
BUDGET = PAIRS // 5  # comparisons: as for the labels, two answers are read for each
AUDIT = 24  # comparisons at a time: twelve of them in all
HELD_OUT = BUDGET // 2  # of which a held-out reward model is made, where a rule uses one; audits are then half as large
CALIBRATION = 300  # of the pairs that are labelled: not learnt from, but the scale of the scores is fitted on them
GOLD_RUNS = 50
LOST = 0.2  # points of gold: a stop is false where running on would have gained more

Floats = NDArray[np.float64]


class Trace(NamedTuple):
    """One run's checkpoints. Seen by rules: KL, entropy, calibrated score over the reference's by the training reward model and by a
    held-out one, the mean deviation between an ensemble's members; of pairs with the reference's answers that could be audited at
    each checkpoint [C, n] the stated log-odds and the outcomes. Not seen: the gain of gold."""

    kl_C: Floats
    entropy_C: Floats
    proxy_C: Floats
    held_out_C: Floats
    spread_C: Floats
    stated_CN: Floats
    wins_CN: Floats
    gain_C: Floats


Rule = Callable[[Trace], tuple[int, int]]  # → the checkpoint that stops the run (the last: none), the one that is kept


def when(stops: Sequence[bool] | NDArray[np.bool_], back: int = 0) -> tuple[int, int]:
    """The first checkpoint that stops, and so many before it to keep; the last where none does."""
    at = int(np.argmax(stops)) if np.any(stops) else len(stops) - 1
    return at, max(0, at - back) if np.any(stops) else at


def audit(trace: Trace, comparisons: int = AUDIT) -> tuple[int, int]:
    """The rule of `guard/stopping.py`; a run that nothing stopped keeps its last checkpoint, unless an earlier one is likely better."""
    audited, last = list[int](), 0.0

    def judge(at: int) -> Audited:
        pairs, wins = (column[audited, :comparisons].ravel() for column in (trace.stated_CN, trace.wins_CN))
        audits = pairs, np.repeat(trace.kl_C[audited], comparisons), wins
        return judge_checkpoints(trace.proxy_C[: at + 1].tolist(), trace.kl_C[: at + 1].tolist(), audits, noise=NOISE)

    for at in range(1, CHECKPOINTS + 1):
        if trace.kl_C[at] ** 0.5 < last + AUDIT_EVERY or len(audited) == BUDGET // AUDIT:
            continue
        last = trace.kl_C[at] ** 0.5
        audited.append(at)
        if (found := judge(at)).stop:
            return at, found.best
    found = judge(CHECKPOINTS)
    return CHECKPOINTS, found.best if found.past > 0.5 else CHECKPOINTS


def slope(trace: Trace) -> tuple[int, int]:
    ratios = [
        relative_slope(trace.proxy_C[: n + 1].tolist(), trace.held_out_C[: n + 1].tolist())
        for n in range(CHECKPOINTS + 1)
    ]
    return when([ratio < 0.5 for ratio in ratios], 1)


def slope_or_audit(trace: Trace) -> tuple[int, int]:
    """Whichever stops first, on half of the audits: the other half of the budget made the held-out model."""
    return min(slope(trace), audit(trace, AUDIT // 2))


def patience(trace: Trace) -> tuple[int, int]:
    best = np.maximum.accumulate(trace.held_out_C)
    since = [at - int(np.argmax(trace.held_out_C[: at + 1])) for at in range(CHECKPOINTS + 1)]
    at, _ = when([n >= 3 for n in since])
    return at, int(np.argmax(trace.held_out_C == best[at]))


RULES: dict[str, Rule] = {
    "audit": audit,
    "slope or audit": slope_or_audit,
    "slope": slope,
    "patience": patience,
    "never": lambda trace: (CHECKPOINTS, CHECKPOINTS),
    "KL 6": lambda trace: when(trace.kl_C > 6),
    "KL 1": lambda trace: when(trace.kl_C > 1),
    "entropy half": lambda trace: when(trace.entropy_C < trace.entropy_C[0] / 2),
    "spread 2": lambda trace: when(trace.spread_C > 2 * trace.spread_C[0]),
}


class Models(NamedTuple):
    """Scores of every answer [R, A], calibrated: a lead is the log-odds of being better. By the reward model that is optimised, a held-out
    one, and five of resampled labels."""

    proxy_RA: Tensor
    held_out_RA: Tensor
    ensemble_ERA: Tensor


def make_models(world: World) -> Models:
    labels = label(world, world.reference_RSV, PAIRS, NOISE, "labels")
    train, held = (
        Labels(*(column[:, part] for column in labels)) for part in (slice(CALIBRATION, None), slice(CALIBRATION))
    )
    members = []
    for _ in range(5):
        rows_RP = torch.stack(
            [torch.randint(PAIRS - CALIBRATION, (PAIRS - CALIBRATION,), generator=d) for d in world.draws]
        )
        members.append(learn_reward(world, Labels(*(column.gather(1, rows_RP) for column in train))))
    other = learn_reward(world, label(world, world.reference_RSV, HELD_OUT, NOISE, "held out"))
    return Models(calibrated(learn_reward(world, train), held), calibrated(other, held), torch.stack(members))


def calibrated(score_RA: Tensor, held: Labels) -> Tensor:
    """Times the scale under which σ(lead), slips at their rate, tells held-out labels best."""
    lead_RP = score_RA.gather(1, held.first_RP) - score_RA.gather(1, held.second_RP)
    lead_RP = lead_RP * (2 * held.won_RP.double() - 1)
    scale_G = torch.logspace(-2, 1, 200, dtype=torch.float64)
    told_GR = (NOISE + (1 - 2 * NOISE) * (scale_G[:, None, None] * lead_RP).sigmoid()).log().sum(2)
    return score_RA * scale_G[told_GR.argmax(0)][:, None]


def traces(world: World, reward: Reward, models: Models) -> list[Trace]:
    """Runs with their checkpoints."""
    reference_RA, (mean_R, sd_R) = answer_logp(world.reference_RSV), world.mean_sd_R
    at_start_R = [expected(reference_RA.exp(), model) for model in models[:2]]
    spread_RA = models.ensemble_ERA.std(0)
    tables: list[Tensor] = []

    def observe(step: int, table_RSV: Tensor, controls: Sequence[KLControl]) -> None:
        if step % EVERY == 0:
            tables.append(table_RSV.clone())

    practise(world, reward, [KLControl(0.0)] * len(world.draws), PRACTICE, observe)
    rows = []
    for table_RSV in tables:
        logp_RA = answer_logp(table_RSV)
        prob_RA = logp_RA.exp()
        seen = [expected(prob_RA, model) - start for model, start in zip(models[:2], at_start_R, strict=True)]
        first, second = sample(table_RSV, AUDIT, world.draws), sample(world.reference_RSV, AUDIT, world.draws)
        stated_RN = models.proxy_RA.gather(1, first) - models.proxy_RA.gather(1, second)
        wins_RN = compare(world, first, second, NOISE, "audit").won_RP.double()
        gain_R = (expected(prob_RA, world.gold.points_RA) - mean_R) / sd_R
        kl_R, entropy_R = expected(prob_RA, logp_RA - reference_RA), -expected(prob_RA, logp_RA)
        rows.append([kl_R, entropy_R, *seen, expected(prob_RA, spread_RA), stated_RN, wins_RN, gain_R])
    columns = [torch.stack(column).numpy() for column in zip(*rows, strict=True)]
    return [Trace(*(column[:, run] for column in columns)) for run in range(len(world.draws))]


def expected(prob_RA: Tensor, value_RA: Tensor) -> Tensor:
    return (prob_RA * value_RA).sum(1)


def measure(seed: int) -> Row:
    world = make_world([seed])
    models = make_models(world)
    sd_R1 = mean_and_sd(answer_logp(world.reference_RSV), models.proxy_RA)[1][:, None]
    (trace,) = traces(world, scores(models.proxy_RA / sd_R1), models)
    oracle = float(trace.gain_C.max())
    row = {"oracle": oracle, "end": float(trace.gain_C[-1]), "audits": BUDGET // AUDIT * AUDIT / PAIRS}
    for name, rule in RULES.items():
        stopped, kept = rule(trace)
        row[f"over .8, {name}"] = float(trace.gain_C[kept]) - 0.8 * oracle
        row |= {f"kept {name}": float(trace.gain_C[kept]), f"share {name}": float(trace.gain_C[kept]) / oracle}
        row[f"stopped {name}"] = stopped * EVERY
    return row | on_gold(seed)


def on_gold(seed: int) -> Row:
    """Runs whose reward is gold itself: it states the truth, in log-odds. How many does each rule stop falsely?"""
    world = make_world([1000 * (seed + 1) + number for number in range(GOLD_RUNS)])
    points_RA, (_, sd_R) = world.gold.points_RA, world.mean_sd_R
    noise_ERA = torch.stack(
        [learn_reward(world, label(world, world.reference_RSV, PAIRS, NOISE, "labels")) for _ in range(2)]
    )
    held_out = calibrated(noise_ERA[0], label(world, world.reference_RSV, CALIBRATION, NOISE, "labels"))
    told = traces(
        world, lambda answer: world.gold.score(answer, "reward") / sd_R[:, None], Models(points_RA, held_out, noise_ERA)
    )
    row = {"fall of gold as reward": max(float(run.gain_C.max() - run.gain_C[-1]) for run in told)}
    for name, rule in RULES.items():
        lost = [
            (run.gain_C[-1] - run.gain_C[rule(run)[1]]) * sd > LOST for run, sd in zip(told, sd_R.tolist(), strict=True)
        ]
        row[f"false {name}"] = float(np.mean(lost))
    return row


OTHERS = [name for name in RULES if name != "audit"]
EXPERIMENT = Experiment(
    name="E6-tables",
    title="audits that say what a nat costs stop a run before the cliff, and let the truth alone",
    setting="World of tables; one run a seed against a linear reward model of 1,500 pairs (300 of them for its scale), 250 steps "
    "without a KL penalty, and fifty against gold, in worlds of their own. Labels and audits are turned round in 25%. "
    "Gold is exact, in standard deviations of the reference's; the oracle is the best of 25 checkpoints; a stop is false "
    "where running on would have gained over .2 points.",
    measure=measure,
    seeds=range(20, 40),
    claims=[
        Claim("over .8, audit", "kept gold less .8 of the oracle's: mean kept ÷ mean oracle is .8 or more", "mean", at_least=0),
        Claim("share audit", "share of the oracle's gain, the worst seed's too", "every", at_least=0.3),
        Claim("false audit", "false stops of 1,000 runs whose reward is gold", "mean", at_most=0.05),
        Claim("audits", "answers read for audits ÷ those read for the reward model", "every", at_most=0.2),
        Claim("kept audit", "gold kept, sd: audit"),
        Claim("oracle", "gold of the oracle's checkpoint"),
        *(Claim(f"kept {name}", f"gold kept, sd: {name}") for name in OTHERS),
        *(Claim(f"false {name}", f"false stops on gold: {name}") for name in OTHERS),
    ],
    controls=[
        Claim("end", "gold at the end where nothing stops: the cliff is there", at_most=-0.5),
        Claim("fall of gold as reward", "largest fall from its peak where gold is the reward", "every", at_most=0.1),
    ],
)  # fmt: skip
