"""A taste that labelers share: how much the style of an answer, its length or its flattery, wins votes that its quality does not.

Agreement cannot show it, for all of them have it, and weights cannot remove it. What can is a slice of items of which the right ranking is
known, a gold one or an adjudicator's. On the ordinary votes of that slice, y being 1, 0 or -1 as the first answer is truly better, ties or
is worse, and f the features of an answer,

    P(first wins) = σ(α y + γ · (f_first - f_second))

is fitted, so γ is what a feature adds to the log-odds of a vote between answers of the same truth: a longer answer that is truly better
wins by α, and not by γ. The reward model then learns  P(a beats b) = σ(s_a - s_b + γ · (f_a - f_b)),  γ held fixed, from all other votes:
its score need not explain the taste, and is used without it. The covariates are those of AlpacaEval's length-controlled win rates (Dubois
2024, arxiv.org/abs/2404.04475, eq. 2) and of Chatbot Arena's style control (Li 2024), which fit γ on the votes alone and so take for bias
what of length is worth it. Where gold says which answer is better and not by how much, a rest of that remains in γ: with a feature worth
as much as the taste for it, γ was a third too large (1.3 for 1.0, 400 votes; tests/feedback/test_style.py).
"""

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from sqlalchemy import select

from bridle.core.errors import DataError, UsageError
from bridle.core.records import Pair
from bridle.feedback.quality.votes import FIRST, SECOND, UNKNOWN, read_votes
from bridle.feedback.rankings import Item
from bridle.feedback.store import tables
from bridle.feedback.store.reading import decisions, in_study, items_where, judged_by
from bridle.feedback.store.store import LOOKUP_SIZE, Store
from bridle.maths.statistics import logistic_regression

FEWEST = 100  # votes on items whose right ranking is known


@lru_cache(1)
def flattering_phrases() -> tuple[str, ...]:
    return tuple(tomllib.loads(Path(__file__).with_name("flattery.toml").read_text("utf-8"))["phrases"])


def log_length(text: str) -> float:
    """Of 1 + the characters."""
    return math.log1p(len(text.strip()))


def flattery(text: str) -> float:
    """Whether it flatters, once or more often: how many of the phrases occur in it."""
    lower = text.casefold()
    return float(sum(phrase in lower for phrase in flattering_phrases()))


STYLES: Mapping[str, Callable[[str], float]] = {"length": log_length, "flattery": flattery}


@dataclass(frozen=True)
class Taste:
    """γ of each feature with its standard error, fitted on so many votes."""

    weights: Mapping[str, float]
    errors: Mapping[str, float]
    votes: int

    def favours(self, one: str, other: str) -> float:
        """Log-odds that style alone gives the first of two texts."""
        return sum(weight * (STYLES[name](one) - STYLES[name](other)) for name, weight in self.weights.items())


def fit_taste(store: Store, names: Sequence[str], study: str | None = None) -> Taste:
    """The taste of a study's labelers for these features. UsageError for a feature that is not known, DataError for too few votes."""
    names = list(dict.fromkeys(names))
    if odd := [name for name in names if name not in STYLES]:
        raise UsageError(f"style_control knows no feature {odd[0]!r}; there are {', '.join(STYLES)}")
    votes = read_votes(store, study)
    known = np.flatnonzero(votes.gold_U[votes.unit_V] != UNKNOWN)
    items = training_items(store, {votes.units[unit][0] for unit in votes.unit_V[known].tolist()}, study)
    rows, outcomes = list[list[float]](), list[float]()
    for vote in known.tolist():
        name, first, second = votes.units[votes.unit_V[vote]]
        if name not in items:
            continue
        one, other = (items[name].completions[slot].text for slot in (first, second))
        truth = {FIRST: 1.0, SECOND: -1.0}.get(int(votes.gold_U[votes.unit_V[vote]]), 0.0)
        rows.append([truth, *(STYLES[feature](one) - STYLES[feature](other) for feature in names)])
        outcomes.append({FIRST: 1.0, SECOND: 0.0}.get(int(votes.verdict_V[vote]), 0.5))
    if len(rows) < FEWEST:
        raise DataError(
            f"reward.style_control needs {FEWEST} votes of training prompts on items whose right ranking is known, got {len(rows)}; "
            "have about a tenth of the items adjudicated, or give them gold rankings, or set reward.style_control = []"
        )
    coefficients, errors = (found.tolist() for found in logistic_regression(np.array(rows), np.array(outcomes)))
    return Taste(dict(zip(names, coefficients[1:], strict=True)), dict(zip(names, errors[1:], strict=True)), len(rows))


def training_items(store: Store, names: set[str], study: str | None) -> dict[str, Item]:
    """Those of these items whose prompts are trained on."""
    found, ordered = dict[str, Item](), sorted(names)
    with store.reading() as connection:
        for start in range(0, len(ordered), LOOKUP_SIZE):
            some = tables.item.c.sha256.in_(ordered[start : start + LOOKUP_SIZE])
            found |= items_where(connection, [*in_study(study, "train"), some])
    return found


def without_taste(store: Store, pairs: Sequence[Pair], taste: Taste) -> list[Pair]:
    """The pairs, each with what style alone gives its chosen answer, which the score need not explain. What an adjudicator decided is
    taken as it is."""
    with store.reading() as connection:
        adjudication, final = tables.adjudication.c, tables.judgement.c
        query = select(adjudication.item_sha256).join(tables.judgement, final.sha256 == adjudication.judgement_sha256)
        decided = set(connection.execute(query.where(judged_by(None), adjudication.id.in_(decisions()))).scalars())
    return [
        pair if pair.item_id in decided else replace(pair, offset=taste.favours(pair.chosen.text, pair.rejected.text))
        for pair in pairs
    ]
