"""E7 on the playground: five reward models that learnt the same comparisons, against one of them.

All runs are E3's without a KL penalty, and differ in their reward: one reward model; the minimum of five (worst case); their mean less
λ variances (uncertainty-weighted). A minimum moves a policy less, and what moves less falls later: so each is also compared
where both runs are equally far from SFT, and with one model at a lower learning rate, whose KL grows as the minimum's does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bridle.evaluation.answers import kl_of
from bridle.stages.reward import train_members
from bridle.stages.workspace import Work
from experiments.harness import Claim, Experiment, Row
from experiments.playground import HALF, Halves, in_lab, train_kept

MEMBERS = 5
COMBINED = {"min": "worst of five", "uwo": "five, uncertainty-weighted"}
UNCERTAINTY = 0.5  # λ, for variances of scores that are in standard deviations of SFT's
SLOWER = 0.7  # times the learning rate: chosen on seed 100, so that one model's KL grows as the worst of five's does
EQUAL_KL = (2.0, 4.0, 8.0)  # nats an answer

Curve = Mapping[int, tuple[float, float]]  # by step: nats an answer from SFT, and gold in points


def measure_in(work: Work, prompts: Halves, settings: Mapping[str, Any]) -> Row:
    rate = {"learning_rate": SLOWER * work.recipe.ppo.learning_rate}
    single = train_kept(work, "unbridled", settings)
    runs = {"one": single, "slower": train_kept(work, "slower", {**settings, **rate})}
    runs |= {name: train_on_five(work, name, settings) for name in COMBINED}
    curves = {name: curve_of(work, kept, prompts) for name, kept in runs.items()}
    row = dict[str, float]()
    for name, curve in curves.items():
        row |= {f"{name}: KL at the end": curve[max(curve)][0], f"{name}: end": curve[max(curve)][1]}
    for name in COMBINED:
        row |= {f"{name} - {other}": row[f"{name}: end"] - row[f"{other}: end"] for other in ("one", "slower")}
        for kl in EQUAL_KL:
            five, one = gold_at(curves[name], kl), gold_at(curves["one"], kl)
            if five is not None and one is not None:
                row[f"{name} - one at {kl:g} nats"] = five - one
    return row


def train_on_five(work: Work, combine: str, settings: Mapping[str, Any]) -> dict[int, Path]:
    """The policies of a run on five reward models, which are trained where they are not there yet."""
    five = {
        "reward.members": MEMBERS,
        "reward.bootstrap": True,
        "reward.combine": combine,
        "reward.uncertainty": UNCERTAINTY,
    }
    beside = Work(replace(work.project, recipe=work.recipe.with_settings(five)), work.progress, threads=work.threads)
    try:
        train_members(beside, reuse=True)
        return train_kept(beside, f"five-{combine}", settings)
    finally:
        beside.close()


def curve_of(work: Work, kept: Mapping[int, Path], prompts: Halves) -> Curve:
    """How far each policy of a run is from SFT, and its gold, by the half that scores."""
    sft, found = work.read_policy(work.project.model("sft")), {}
    for step, folder in kept.items():
        policy = work.read_policy(folder)
        answered = work.answer(policy, work.fitting(policy, prompts.score), "experiment")
        scores = work.data.score(answered.prompts, answered.completions, "experiment")
        gold = float(np.mean([score.points for score in scores]))
        found[step] = (kl_of(answered, policy, sft, work.device)[0], gold)
    return found


def gold_at(curve: Curve, kl: float) -> float | None:
    """Gold where the run first is as far as `kl`, on the line between the two policies about it; None where it never is."""
    points = [curve[step] for step in sorted(curve)]
    for (nearer, before), (farther, after) in zip(points, points[1:], strict=False):
        if nearer <= kl < farther:
            return before + (after - before) * (kl - nearer) / (farther - nearer)
    return None


EXPERIMENT = Experiment(
    name="E7-playground",
    title="five reward models by their worst or by their doubt are harder to out-run than one",
    setting=f"Playground; the runs of E3 (β = 0, 40 steps), whose reward is one model, or {MEMBERS}, of which four learnt bootstraps of "
    "the same comparisons, from other heads and in another order: their minimum, or their mean less "
    f"{UNCERTAINTY:g} variances. Gold in points, of fresh answers to {HALF} held-out prompts. Slower: one model at {SLOWER:g} times "
    "the learning rate. At equal KL: on the line between the two policies about it. Pairs of runs of a seed share all but the reward.",
    measure=in_lab(measure_in),
    seeds=range(8),
    claims=[
        Claim("min - one", "gold at the end: worst of five less one", at_least=0),
        Claim("uwo - one", "gold at the end: uncertainty-weighted less one", at_least=0),
        Claim("min - slower", "gold at the end: worst of five less one, slower", "mean", at_least=0),
        Claim("uwo - slower", "gold at the end: uncertainty-weighted less one, slower", "mean", at_least=0),
        *(
            Claim(f"{name} - one at {kl:g} nats", f"gold where both are {kl:g} nats away: {words} less one")
            for name, words in COMBINED.items()
            for kl in EQUAL_KL
        ),
        *(
            Claim(f"{name}: {figure}", f"{meaning}: {words}")
            for figure, meaning in (("end", "gold at the end"), ("KL at the end", "KL at the end, nats"))
            for name, words in {"one": "one", "slower": "one, slower", **COMBINED}.items()
        ),
    ],
)  # fmt: skip
