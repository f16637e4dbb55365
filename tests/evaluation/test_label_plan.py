"""Topics, people and prices of a plan."""

from types import SimpleNamespace
from typing import Any

import pytest

from bridle.core.records import Judgement, LabelerKind, Prompt
from bridle.evaluation.label_plan import people_of_plan, plan_lines, prices_of, topics_of, votes_of_plan
from bridle.evaluation.learning_curve import vote_information
from bridle.feedback.rankings import Item
from bridle.recipe.services import LabelSection


def person(name: str, skill: float | None, seconds: float | None = None, judgements: int = 10) -> Any:
    speed = None if seconds is None else SimpleNamespace(median=seconds)
    return SimpleNamespace(labeler=name, skill=SimpleNamespace(value=skill), speed=speed, judgements=judgements)


def quality(*people: Any, seconds: float | None = None) -> Any:
    return SimpleNamespace(people=people, speed=None if seconds is None else SimpleNamespace(median=seconds))


def test_a_price_is_by_the_piece_or_by_the_time_that_one_takes() -> None:
    assert prices_of(LabelSection(), quality(seconds=36)) is None
    assert prices_of(LabelSection(hour_price=30), quality()) is None
    assert prices_of(LabelSection(hour_price=30), quality(seconds=36)) == pytest.approx(0.3)
    assert prices_of(LabelSection(hour_price=30, piece_price=2), quality(seconds=36)) == 2


def test_people_come_by_what_their_votes_tell() -> None:
    rows = people_of_plan(
        quality(person("coin", 0.5), person("good", 0.9, 60), person("new", None)), LabelSection(hour_price=60)
    )
    assert [row["labeler"] for row in rows] == ["good", "coin", "new"]
    bits = vote_information(0.9, 1)
    assert rows[0]["bits"] == pytest.approx(bits) and rows[0]["price_of_a_bit"] == pytest.approx(1 / bits)
    assert rows[1]["bits"] == pytest.approx(0) and rows[1]["price_of_a_bit"] is None
    votes = votes_of_plan(
        quality(person("a", 0.9, judgements=30), person("b", 0.7, judgements=10), person("new", None))
    )
    assert votes["skill"] == pytest.approx(0.85) and votes["first"] > votes["second"] > votes["third"] > 0  # type: ignore[operator]
    assert votes_of_plan(quality(person("new", None)))["first"] is None


def test_topics_with_more_errors_than_judgements_come_first() -> None:
    def judged(topic: str, count: int) -> list[tuple[Item, Judgement]]:
        item = Item("i", Prompt.from_text("?", {"family": topic}), ())
        return [(item, Judgement("i", "a", LabelerKind.PERSON, ((0,), (1,)), None))] * count

    topic = {"pairs": 200, "low": 0.5, "high": 0.9}
    found = {"easy": topic | {"accuracy": 0.9}, "hard": topic | {"accuracy": 0.7}, "unseen": topic | {"accuracy": 0.6}}
    rows = topics_of(found, judged("easy", 75) + judged("hard", 25))
    assert [row["topic"] for row in rows] == ["unseen", "hard", "easy"]
    assert rows[0]["wanting"] is None and rows[1]["wanting"] == pytest.approx((60 / 160) / 0.25)
    lines = list(plan_lines({
        "judgements": 100, "measured": [{"judgements": 100, "accuracy": 0.7}], "price_of_one": 0.5, "topics": rows, "unjudged_items": 3,
        "forecast": [{"count": 200, "accuracy": 0.75, "low": 0.7, "high": 0.8, "price": 50.0}],
        "people": people_of_plan(quality(person("a", 0.9)), LabelSection()), "votes": votes_of_plan(quality(person("a", 0.9))),
    }))  # fmt: skip
    assert any("0.750 (0.700 to 0.800)  for 50.00 more" in line for line in lines)
    assert any("unseen: 0 judgements" in line and "errors none yet" in line for line in lines)
    assert lines[-1] == "3 sampled items wait to be judged"
