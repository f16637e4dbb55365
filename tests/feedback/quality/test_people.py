"""Weights, whom to look at, topics and sittings, on planted people."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bridle.core.files import finite_or_none
from bridle.feedback.quality.conditions import by_topic, positions, share_over_items
from bridle.feedback.quality.consensus import consensus
from bridle.feedback.quality.people import right_against, truth_by_others
from bridle.feedback.quality.reliability import reliability_weights
from bridle.feedback.quality.summary import quality_of
from bridle.feedback.quality.votes import UNKNOWN, Subject, Vote, Votes, votes_of
from experiments.labelers import SKILLS, SOUGHT, error_of_skill, named, planted

FIRST, SECOND = ((0,), (1,)), ((1,), (0,))


def test_planted_people_are_measured_and_named() -> None:
    for items, limit, draws in ((100, 0.06, 6), (300, 0.04, 3)):
        errors = [error_of_skill(planted(items, np.random.default_rng([items, draw]))) for draw in range(draws)]
        assert np.mean(errors) < limit
    quality = quality_of(planted(300, np.random.default_rng(1)))
    assert named(quality) >= {("coin", "answers like a coin"), ("against", "answers against the others")}
    assert ("left", "nearly always left") in named(quality)
    assert not {"nine", "eight", "seven"} & {one.labeler for one in quality.remarks}


@pytest.mark.slow
@pytest.mark.parametrize(("items", "limit"), [(100, 0.06), (300, 0.04), (1000, 0.022)])
def test_planted_people_in_thirty_draws(items: int, limit: float) -> None:
    errors, missed = [], 0
    for draw in range(30):
        votes = planted(items, np.random.default_rng([items, draw]))
        errors.append(error_of_skill(votes))
        missed += not {name for name, what in named(quality_of(votes)) if what.startswith("answers")} >= SOUGHT
    assert np.mean(errors) <= limit
    assert items < 300 or not missed


def test_weights_follow_skill() -> None:
    votes = planted(400, np.random.default_rng(0), ties=0.1)
    weight = reliability_weights(votes)
    assert weight["against"] == 0 and weight["coin"] < 0.1
    assert weight["nine"] > weight["eight"] > weight["seven"] > weight["six"] > weight["coin"]
    assert np.mean([weight[votes.people[w]] for w in votes.person_J]) == pytest.approx(1)


def test_weights_are_one_a_judgement_and_not_a_person() -> None:
    rows = [Vote(f"{n}", "ada", FIRST) for n in range(50)] + [
        Vote(f"{n}", "bo", (FIRST, SECOND)[n % 2]) for n in range(10)
    ]
    weight = reliability_weights(votes_of(rows, {row.item: Subject(gold=FIRST) for row in rows}))
    assert weight["ada"] > weight["bo"] and 50 * weight["ada"] + 10 * weight["bo"] == pytest.approx(60)


def test_who_shares_nothing_weighs_as_three_right_of_four() -> None:
    votes = votes_of([*(Vote("a", name, FIRST) for name in ("ada", "bo", "cleo")), Vote("b", "new", FIRST)])
    weight = reliability_weights(votes)
    assert weight["new"] < weight["ada"] == weight["bo"] == weight["cleo"]
    assert weight["new"] > 0.5


def test_where_nobody_is_better_than_a_coin_all_weigh_one() -> None:
    rows = [Vote(f"{n}", "ada", FIRST) for n in range(50)]
    votes = votes_of(rows, {row.item: Subject(gold=SECOND) for row in rows})
    assert reliability_weights(votes) == {"ada": 1.0}


def timed(votes: Votes, seconds: dict[str, float]) -> Votes:
    return replace(votes, seconds_J=np.array([seconds[votes.people[w]] for w in votes.person_J]))


def test_who_is_much_faster_is_named() -> None:
    votes = planted(30, np.random.default_rng(0))
    usual = dict.fromkeys(SKILLS, 12.0)
    assert not {what for _, what in named(quality_of(timed(votes, usual)))} & {"much faster than the others"}
    found = quality_of(timed(votes, {**usual, "eight": 3.0}))
    assert ("eight", "much faster than the others") in named(found)
    assert found.speed is not None and found.speed.median == 12.0
    assert next(one.speed for one in found.people if one.labeler == "eight").median == 3.0  # type: ignore[union-attr]


def test_gold_counts_a_tie_against_a_winner_one_half() -> None:
    rows = [Vote("a", "ada", FIRST), Vote("b", "ada", ((0, 1),)), Vote("c", "ada", SECOND), Vote("d", "ada", SECOND)]
    gold = {"a": Subject(gold=FIRST), "b": Subject(gold=FIRST), "c": Subject(gold=FIRST)}
    (ada,) = quality_of(votes_of(rows, gold)).people
    assert ada.gold is not None and ada.gold.rate == 0.5 and ada.gold.n == 3


def test_nobody_is_measured_against_oneself() -> None:
    """Two who always differ are both wrong by the other; alone on an item there is nobody to be measured by."""
    votes = votes_of([Vote("a", "ada", FIRST), Vote("a", "bo", SECOND), Vote("b", "ada", FIRST)])
    right = right_against(votes.verdict_V, truth_by_others(votes, consensus(votes)))
    assert right[:2].tolist() == [0, 0] and np.isnan(right[2])


def test_topics_are_measured_against_gold_where_there_is_any() -> None:
    rows = [
        Vote(f"{topic}{n}", name, FIRST)
        for topic in "xy"
        for n in range(20 if topic == "x" else 5)
        for name in ("ada", "bo", "cleo")
    ]
    subjects = {row.item: Subject(row.item[0], SECOND if row.item[0] == "y" else None) for row in rows}
    votes = votes_of(rows, subjects)
    found = by_topic(votes, consensus(votes))
    assert [(one.name, one.right.rate, one.right.n) for one in found] == [("x", 1.0, 60), ("y", 0.0, 15)]


def test_intervals_over_items_are_wide_where_an_items_votes_are_alike() -> None:
    right = np.repeat([1.0, 0.0, 1.0, 1.0], 25)
    alike = share_over_items(right, np.repeat(np.arange(4), 25))
    apart = share_over_items(right, np.tile(np.arange(25), 4))
    assert alike is not None and apart is not None and alike.rate == apart.rate == 0.75
    assert alike.high - alike.low > 2 * (apart.high - apart.low)
    assert apart.high - apart.low > 0.15  # no more than 100 votes apart


def test_a_sitting_ends_with_a_pause_and_one_time_for_several_has_none() -> None:
    times = {"ada": [0.0, 60.0, 120.0, 120.0 + 1801, 2000.0], "bo": [5.0, 5.0, 30.0], "cleo": [None, 7.0]}
    rows = [
        Vote(f"{name}{n}", name, FIRST, at=at)
        for name, own in times.items()
        for n, at in reversed(list(enumerate(own)))
    ]
    votes = votes_of(rows)
    place = {votes.items[i]: p for i, p in zip(votes.item_J, positions(votes), strict=True)}
    assert [place[f"ada{n}"] for n in range(5)] == [1, 2, 3, 1, 2]
    assert [place[f"bo{n}"] for n in range(3)] == [0, 0, 1]
    assert place["cleo0"] == 0 and place["cleo1"] == 1
    assert quality_of(votes).without_position == 3


def test_people_who_tire_show_in_the_positions() -> None:
    rng, rows = np.random.default_rng(0), []
    for n in range(160):
        for name in ("ada", "bo", "cleo"):
            right = rng.random() < (0.95 if n % 40 < 20 else 0.65)
            rows.append(Vote(f"{n:03}", name, FIRST if right else SECOND, at=n // 40 * 86_400 + n % 40 * 30.0))
    found = quality_of(votes_of(rows, {row.item: Subject(gold=FIRST) for row in rows}))
    rates = {one.name: one.right.rate for one in found.positions}
    assert list(rates) == ["1 to 5", "6 to 10", "11 to 20", "21 to 40"]
    assert rates["11 to 20"] > rates["21 to 40"] + 0.2


def test_everything_is_json_and_says_what_is_odd() -> None:
    rows = [Vote(f"{n}", name, FIRST) for n in range(30) for name in ("ada", "bo")]
    found = quality_of(votes_of([*rows, rows[0]]))
    text = json.dumps(finite_or_none(found.as_json()))
    assert json.loads(text)["agreement"]["nominal"]["value"] is None and "undefined" in text
    assert any("One slot wins 100%" in note for note in found.notes) and any(
        "1 earlier" in note for note in found.notes
    )


def test_rankings_of_several_count_through_their_pairs() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for n in range(120):
        for name, noise in (("ada", 0.3), ("bo", 0.3), ("cleo", 0.6), ("dan", 5.0)):
            order = np.argsort(-(np.arange(4) + rng.normal(0, noise * 2, 4)))
            rows.append(Vote(f"{n}", name, tuple((int(slot),) for slot in order), tuple(rng.permutation(4).tolist())))
    quality = quality_of(votes_of(rows))
    skill = {one.labeler: one.skill.value or 0 for one in quality.people}
    assert skill["ada"] > skill["cleo"] > skill["dan"] and skill["dan"] < 0.65
    assert quality.people[0].compared == pytest.approx(120 * 3)  # 6 pairs at 2/4 each


def test_unknown_truth_is_nothing() -> None:
    assert np.isnan(right_against(np.array([0]), np.array([UNKNOWN])))[0]
