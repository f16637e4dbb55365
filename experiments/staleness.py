"""staleness: how often `guard/staleness.py` raises a false alarm, and how soon a true one, on the linear world of experiments/noise.py.

A stream is a world, a reward model of 1,000 judged pairs of which a share slips, a temperature fitted on 300 held-out ones, and 10,000
fresh judgements, looked at after each. Only two numbers of a pair matter, its gap by the model and its gap by gold, and these are drawn.

    fresh       nothing has changed
    exact       the same, the model stating the true probabilities
    alike       answers have grown alike (gaps a third as wide): accuracy falls, the model is as good as it was
    reversed d  a share of the judgements goes the other way, so that accuracy falls by d points
    turned d    gold has turned from what the model learnt, so that accuracy falls by d points: the policy has moved where it knows less
    late 20     reversed 20, from the 1,001st judgement on

Beside it what one would do without: accuracy so far against that on the 300 pairs, a test of two shares at 5% after each judgement.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bridle.guard.staleness import evidence_of, judgements_to_notice
from bridle.maths.statistics import fit_temperature, logistic_regression
from experiments.harness import Claim, Experiment, Row

STREAMS, LENGTH = 100, 10_000
TRAINED, HELD_OUT, NOISE, WIDTH = 1000, 300, 0.1, 20
LEVEL = 0.05
DROPS = (5, 10, 20)
LATE = 1000
ALIKE = 1 / 3

Floats = NDArray[np.float64]


class Model(NamedTuple):
    """Gold and a reward model as vectors; what it states is σ(gap / temperature). Accuracies are on judged pairs, slips and all."""

    gold_D: Floats
    weight_D: Floats
    accuracy: float
    held_out_accuracy: float


def sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def judge_pairs(gap_N: Floats, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Whether the first was preferred, by the gap of gold, and a slip."""
    return (rng.random(gap_N.shape) < sigmoid(gap_N)) ^ (rng.random(gap_N.shape) < NOISE)


def make_model(rng: np.random.Generator) -> Model:
    gold_D = rng.normal(size=WIDTH) * 2 / math.sqrt(WIDTH)
    difference_PD = rng.normal(size=(TRAINED + HELD_OUT, WIDTH)) * math.sqrt(2)
    won_P = judge_pairs(difference_PD @ gold_D, rng)
    weight_D, _ = logistic_regression(difference_PD[:TRAINED], won_P[:TRAINED].astype(float))
    gap_P = (difference_PD @ weight_D)[TRAINED:] * (2 * won_P[TRAINED:] - 1)
    weight_D = weight_D / fit_temperature(gap_P)
    stated_N, won_N = stream(gold_D, weight_D, 20_000, rng)
    return Model(gold_D, weight_D, float(((stated_N > 0.5) == won_N).mean()), float((gap_P > 0).mean()))


def stream(
    gold_D: Floats, weight_D: Floats, length: int, rng: np.random.Generator, width: float = 1.0
) -> tuple[Floats, NDArray[np.bool_]]:
    """Stated probabilities and outcomes: both gaps are normal, and go together as far as the vectors do."""
    size = np.linalg.norm(weight_D)
    along = rng.normal(size=length) * math.sqrt(2) * width
    across = rng.normal(size=length) * math.sqrt(2) * width
    shared = float(weight_D @ gold_D) / size
    rest = math.sqrt(max(0.0, float(gold_D @ gold_D) - shared**2))
    return sigmoid(along * size), judge_pairs(along * shared + across * rest, rng)


def turned(model: Model, drop: float, rng: np.random.Generator) -> Floats:
    """Gold turned away from the model's weights, its size kept, until accuracy has fallen by `drop`: the angle by halving."""
    size, along = np.linalg.norm(model.gold_D), model.weight_D / np.linalg.norm(model.weight_D)
    across = rng.normal(size=WIDTH)
    across -= along * (across @ along)
    across /= np.linalg.norm(across)
    x, y = (rng.normal(size=20_000) * math.sqrt(2) for _ in range(2))

    def accuracy(angle: float) -> float:
        right = sigmoid(size * (math.cos(angle) * x + math.sin(angle) * y) * np.sign(x))
        return float(((1 - 2 * NOISE) * right + NOISE).mean())

    low, high = 0.0, math.pi
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if accuracy(middle) > model.accuracy - drop else (low, middle)
    found: Floats = size * (math.cos(low) * along + math.sin(low) * across)
    return found


def first(raised_NS: NDArray[np.bool_]) -> Floats:
    """After how many judgements each stream was first raised; infinite where it never was."""
    return np.where(raised_NS.any(0), raised_NS.argmax(0) + 1.0, math.inf)


def plain_test(stated_NS: Floats, won_NS: NDArray[np.bool_], held_out_S: Floats) -> NDArray[np.bool_]:
    """Accuracy so far under that on the held-out pairs by 1.645 standard errors of the difference, from 30 judgements on."""
    n_N1 = np.arange(1, len(won_NS) + 1)[:, None]
    accuracy_NS = np.cumsum((stated_NS > 0.5) == won_NS, axis=0) / n_N1
    variance_NS = accuracy_NS * (1 - accuracy_NS) / n_N1 + held_out_S * (1 - held_out_S) / HELD_OUT
    low_NS: NDArray[np.bool_] = (held_out_S - accuracy_NS > 1.645 * np.sqrt(variance_NS)) & (n_N1 >= 30)
    return low_NS


def measure(seed: int) -> Row:
    rng = np.random.default_rng(seed)
    models = [make_model(rng) for _ in range(STREAMS)]
    accuracy_S, held_out_S = (
        np.array([getattr(m, name) for m in models]) for name in ("accuracy", "held_out_accuracy")
    )

    def streams(width: float = 1.0, golds: list[Floats] | None = None) -> tuple[Floats, NDArray[np.bool_]]:
        golds = golds or [model.gold_D for model in models]
        drawn = [stream(g, m.weight_D, LENGTH, rng, width) for g, m in zip(golds, models, strict=True)]
        return np.stack([stated for stated, _ in drawn], 1), np.stack([won for _, won in drawn], 1)

    stated_NS, won_NS = streams()
    alike_NS, alike_won_NS = streams(ALIKE)
    exact_won_NS = rng.random(stated_NS.shape) < stated_NS
    row = {
        "accuracy": float(accuracy_S.mean()),
        "accuracy alike": float(((alike_NS > 0.5) == alike_won_NS).mean()),
        "fresh": alarms(stated_NS, won_NS),
        "exact": alarms(stated_NS, exact_won_NS),
        "alike": alarms(alike_NS, alike_won_NS),
        "plain fresh": float(plain_test(stated_NS, won_NS, held_out_S).any(0).mean()),
        "plain alike": float(plain_test(alike_NS, alike_won_NS, held_out_S)[:1000].any(0).mean()),
    }
    for drop in DROPS:
        share_S = drop / 100 / (2 * accuracy_S - 1)
        reversed_NS = won_NS ^ (rng.random(won_NS.shape) < share_S)
        row |= power(f"reversed {drop}", stated_NS, reversed_NS)
        row |= power(f"turned {drop}", *streams(golds=[turned(model, drop / 100, rng) for model in models]))
        row[f"foretold {drop}"] = judgements_to_notice(stated_NS[:, 0], drop / 100) or math.nan
    late_NS = np.where(np.arange(LENGTH)[:, None] < LATE, won_NS, reversed_NS)
    row["late 20"] = float(np.median(first(evidence_of(stated_NS, late_NS) >= 1 / LEVEL))) - LATE
    return {name: value for name, value in row.items() if math.isfinite(value)}


def alarms(stated_NS: Floats, won_NS: NDArray[np.bool_]) -> float:
    return float((evidence_of(stated_NS, won_NS) >= 1 / LEVEL).any(0).mean())


def power(name: str, stated_NS: Floats, won_NS: NDArray[np.bool_]) -> Row:
    """Median and nine tenths of the judgements until the alarm; the share raised within 10,000."""
    at_S = first(evidence_of(stated_NS, won_NS) >= 1 / LEVEL)
    median, most = np.quantile(at_S, (0.5, 0.9), method="lower")
    return {
        name: float(median),
        f"{name}, nine of ten": float(most),
        f"{name}, raised": float(np.isfinite(at_S).mean()),
    }


EXPERIMENT = Experiment(
    name="staleness",
    title="a stale reward model is noticed, and a fresh one is let alone",
    setting="A linear world; 100 streams a seed, each with a world, a reward model of 1,000 judged pairs (a tenth of them slips),"
    " a temperature of 300 more, and 10,000 fresh judgements looked at after each. Alarm at evidence of 20. Times are "
    "medians of a seed's streams, in judgements; a seed counts only where the median stream was raised.",
    measure=measure,
    seeds=range(10),
    claims=[
        Claim("fresh", "false alarms of a fresh model within 10,000", "mean", at_most=0.05),
        Claim("exact", "false alarms where it states the truth", "mean", at_most=0.05),
        Claim("alike", "false alarms where answers grew alike", "mean", at_most=0.05),
        *(Claim(f"{kind} {d}, raised", f"noticed within 10,000: {kind}, {d} points", "mean", at_least=least)
          for kind in ("reversed", "turned") for d, least in ((5, 0.0), (10, 0.95), (20, 0.95))),
        Claim("reversed 5", "judgements until a fall of 5 points is noticed: reversed"),
        Claim("turned 5", "the same: turned"),
        Claim("reversed 10", "judgements until a fall of 10 points is noticed: reversed", "mean", at_most=1000),
        Claim("turned 10", "judgements until a fall of 10 points is noticed: turned", "mean", at_most=1000),
        Claim("reversed 20", "the same of 20 points: reversed", "mean", at_most=250),
        Claim("turned 20", "the same of 20 points: turned", "mean", at_most=250),
        Claim("late 20", "the same of 20 points that begin after 1,000 fresh ones", "mean", at_most=500),
    ],
    controls=[
        Claim("plain fresh", "false alarms of accuracy against held-out accuracy", at_least=0.1),
        Claim("plain alike", "the same where answers grew alike, within 1,000", at_least=0.9),
    ],
)  # fmt: skip
