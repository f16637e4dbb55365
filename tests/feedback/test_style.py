"""A taste that all labelers share is found on items of known ranking, and goes into the loss and not into the score."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa

from bridle.core.errors import DataError, UsageError
from bridle.core.records import Completion, Judgement, LabelerKind, Prompt
from bridle.feedback.quality.style import Taste, fit_taste, flattery, log_length, without_taste
from bridle.feedback.store import tables
from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import adjudicate
from bridle.maths.statistics import logistic_regression


def vote(store: Store, taste: float, worth: float = 0.0, count: int = 400, known: int = 400) -> None:
    """Votes on two answers each, of which one may flatter: by their quality, in which flattery is worth something, and by the taste."""
    rng, gold = random.Random(0), dict[str, list[list[int]]]()
    prompts = [Prompt.from_text(f"Question {number}?") for number in range(count)]
    flattering = [(rng.random() < 0.5, rng.random() < 0.5) for _ in prompts]
    groups = [
        [
            Completion(prompt.id, ("Great question! " if f else "") + f"Answer {number} {side}.")
            for f, side in zip(flatters, "ab", strict=True)
        ]
        for number, (prompt, flatters) in enumerate(zip(prompts, flattering, strict=True))
    ]
    store.add_prompts(prompts, split="train", source="import")
    store.add_completions([answer for answers in groups for answer in answers], source="import")
    judgements = []
    for number, item in enumerate(store.add_items(groups, study="s")):
        feature = flattering[number][0] - flattering[number][1]
        quality = rng.gauss(0, 2) + worth * feature
        won = int(rng.random() > 1 / (1 + math.exp(-quality - taste * feature)))
        judgements.append(Judgement(item, f"ann-{number % 4}", LabelerKind.IMPORTED, ((won,), (1 - won,)), None))
        if number < known:
            gold[item] = [[0], [1]] if quality > 0 else [[1], [0]]
    store.add_judgements(judgements)
    with store.writing() as connection:
        for item, ranking in gold.items():
            connection.execute(sa.update(tables.item).where(tables.item.c.sha256 == item).values(gold=ranking))


@pytest.mark.parametrize(
    ("taste", "worth", "low", "high"),
    [(1.0, 0.0, 0.6, 1.4), (0.0, 0.0, -0.4, 0.4), (1.0, 1.0, 0.8, 1.8), (0.0, 2.0, -0.4, 0.7)],
)
def test_a_shared_taste_is_told_from_what_is_better(
    store: Store, taste: float, worth: float, low: float, high: float
) -> None:
    vote(store, taste, worth)
    found = fit_taste(store, ["flattery"])
    assert low < found.weights["flattery"] < high and 0.1 < found.errors["flattery"] < 0.4 and found.votes == 400


def test_too_little_of_known_ranking_is_refused(store: Store) -> None:
    vote(store, 1.0, count=120, known=60)
    with pytest.raises(
        DataError, match="needs 100 votes of training prompts on items whose right ranking is known, got 60"
    ):
        fit_taste(store, ["length"])
    with pytest.raises(UsageError, match="knows no feature 'emojis'; there are length, flattery"):
        fit_taste(store, ["emojis"])


def test_pairs_carry_what_style_alone_gives_the_chosen_answer(store: Store) -> None:
    vote(store, 1.0, count=20, known=0)
    pairs = store.snapshot_pairs(store.take_snapshot().id)
    taste = Taste({"flattery": 2.0, "length": 0.5}, {}, 100)
    for pair in without_taste(store, pairs, taste):
        styles = [2.0 * flattery(one.text) + 0.5 * log_length(one.text) for one in (pair.chosen, pair.rejected)]
        assert pair.offset == pytest.approx(styles[0] - styles[1])
    [decided, *_] = store.judgements()
    with store.writing() as connection:
        row = {
            "item_sha256": decided[0].id,
            "judgement_sha256": decided[1].id,
            "adjudicated_by": "ann-0",
            "created_at": "2026-01-01",
        }
        connection.execute(sa.insert(tables.adjudication), [row])
    [taken] = [pair.offset for pair in without_taste(store, pairs, taste) if pair.item_id == decided[0].id]
    assert taken == 0, "an adjudicator's word is taken as it is"


def test_flattery_and_length() -> None:
    assert flattery("What a GREAT QUESTION! 好问题。") == 2 and flattery("It is a question.") == 0
    assert log_length("  abc ") == math.log(4)


def test_logistic_regression_finds_what_made_the_outcomes() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(20_000, 2)), np.array([1.0, -0.5])
    y = (rng.random(20_000) < 1 / (1 + np.exp(-x @ w))).astype(float)
    found, errors = logistic_regression(x, y)
    assert np.abs(found - w).max() < 0.05 and np.all((0.01 < errors) & (errors < 0.03))
    sure, _ = logistic_regression(np.array([[1.0], [-1.0]]), [1.0, 0.0])
    assert 0 < sure[0] < 5, "the prior keeps it finite"


def test_a_feature_named_twice_counts_once_and_a_constant_one_not_at_all(store: Store) -> None:
    vote(store, 1.0, count=150, known=150)
    once = fit_taste(store, ["flattery"])
    assert fit_taste(store, ["flattery", "flattery"]) == once
    with store.writing() as connection:
        number = sa.cast(tables.completion.c.id + 100_000, sa.Text)
        connection.execute(sa.update(tables.completion).values(text="Great question! " + number))
    assert fit_taste(store, ["length"]).weights == {"length": 0.0}


def test_what_was_decided_by_a_criterion_alone_is_no_known_ranking_of_the_whole(store: Store) -> None:
    vote(store, 1.0, count=2, known=0)
    taste = Taste({"length": 1.0}, {"length": 0.1}, 400)
    (_, first), (_, second) = store.judgements()
    pairs = store.snapshot_pairs(store.take_snapshot().id)
    pairs = [
        replace(
            pair,
            chosen=replace(pair.chosen, text="Long, longer, longest."),
            rejected=replace(pair.rejected, text="No."),
        )
        for pair in pairs
    ]
    adjudicate(store, replace(first, labeler="cy", criterion="harmless"))
    adjudicate(store, replace(second, labeler="cy"))
    offsets = {pair.item_id: pair.offset for pair in without_taste(store, pairs, taste)}
    assert offsets[first.item_id] > 0 == offsets[second.item_id]
