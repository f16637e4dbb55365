"""How often A's answer is preferred to B's, by whoever judges: with an interval, ties counted, at equal length, and by category. Pure
functions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bridle.maths.statistics import logistic_regression, pass_at_k, proportion

FEWEST = 5  # comparisons of a category that has a line of its own


def win_rate_of(
    verdicts: Sequence[float],
    lengths_a: Sequence[int],
    lengths_b: Sequence[int],
    categories: Sequence[str],
    prompts: Sequence[str],
) -> dict[str, Any]:
    """Of each comparison the share by which A is preferred (½: a tie), the answers' lengths in characters, and what its prompt is called.
    What could not be judged is not among them. `by_category` is empty where there is one category."""
    rate = proportion(verdicts, prompts)
    found: dict[str, Any] = {
        "rate": rate.rate,
        "low": rate.low,
        "high": rate.high,
        "n": rate.n,
        "ties": sum(abs(verdict - 0.5) < 1e-9 for verdict in verdicts),
        "length_controlled": length_controlled(verdicts, lengths_a, lengths_b),
        "length": {"model": float(np.mean(lengths_a)), "against": float(np.mean(lengths_b))},
    }
    table = {}
    for name in sorted(set(categories)) if len(set(categories)) > 1 else ():
        rows = [row for row, category in enumerate(categories) if category == name]
        if len(rows) >= FEWEST:
            part = proportion([verdicts[row] for row in rows], [prompts[row] for row in rows])
            table[name] = {"rate": part.rate, "low": part.low, "high": part.high, "n": part.n}
    return {**found, "by_category": table}


def paired_difference(values_a: Sequence[float], values_b: Sequence[float], prompts: Sequence[str]) -> dict[str, float]:
    """A's mean less B's, of values from 0 to 1 of answers to the same prompts, with its interval by prompt: that of `proportion` for
    (1 + a − b) / 2, which has a width where all pairs are equal too."""
    found = proportion([(1 + a - b) / 2 for a, b in zip(values_a, values_b, strict=True)], prompts)
    return {"value": 2 * found.rate - 1, "low": 2 * found.low - 1, "high": 2 * found.high - 1}


def right_answers(values: Sequence[float], prompts: Sequence[str], unread: Sequence[str]) -> dict[str, float]:
    """Of answers that were checked, 0 to 1, by prompt: the share that is right with its interval, from two answers a prompt on the share of
    prompts with a right one (pass@k), and the shares that were not read: without anything stated, and cut off."""
    right, answers = proportion(values, prompts), dict[str, list[float]]()
    for value, prompt in zip(values, prompts, strict=True):
        answers.setdefault(prompt, []).append(float(value >= 1))
    found = {"accuracy": right.rate, "accuracy_low": right.low, "accuracy_high": right.high}
    if (k := max(map(len, answers.values()))) > 1:
        found["pass_at_k"] = float(pass_at_k([one for one in answers.values() if len(one) == k], k).mean())
    return {**found, **{why: sum(one == why for one in unread) / len(unread) for why in ("unparsed", "cut_off")}}


def length_controlled(
    verdicts: Sequence[float], lengths_a: Sequence[int], lengths_b: Sequence[int]
) -> dict[str, Any] | None:
    """The win rate of A over B if all answers were of one length: σ(w₀) of a logistic regression of the verdicts on a constant and
    tanh(d / sd(d)), d = A's length − B's (Dubois 2024, arxiv.org/abs/2404.04475, without its term for the instruction). None where there
    is nothing to fit."""
    gap = np.asarray(lengths_a, dtype=np.float64) - np.asarray(lengths_b, dtype=np.float64)
    if len(gap) < 2 or not gap.std():
        return None
    features = np.stack([np.ones_like(gap), np.tanh(gap / gap.std())], axis=1)
    weights, errors = logistic_regression(features, verdicts)
    value, low, high = (float(1 / (1 + np.exp(-(weights[0] + z * errors[0])))) for z in (0.0, -1.96, 1.96))
    return {"value": value, "low": low, "high": high, "n": len(gap)}
