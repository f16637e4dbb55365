"""Where, by whom and at what price a further judgement tells most: the parts of a plan for labels, and the plan in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bridle.core.records import Judgement
from bridle.evaluation.learning_curve import vote_information
from bridle.feedback.quality.summary import Quality
from bridle.feedback.quality.votes import topic_in
from bridle.feedback.rankings import Item
from bridle.recipe.services import LabelSection

TOPICS = 100  # held-out pairs of a topic from which its accuracy says anything

Judged = tuple[Item, Judgement]


def prices_of(section: LabelSection, quality: Quality) -> float | None:
    """What one judgement costs: by the piece, or by the seconds that one takes; None where no price was set, or no time is known."""
    if section.piece_price:
        return section.piece_price
    known = section.hour_price and quality.speed is not None
    return section.hour_price * quality.speed.median / 3600 if known and quality.speed is not None else None


def price_for(judgements: int, price_of_one: float | None) -> float | None:
    return None if price_of_one is None else judgements * price_of_one


def topics_of(found: Mapping[str, Mapping[str, Any]], judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """Topics by the errors that a judgement of theirs could still mend: the share of held-out pairs that are wrong and of this topic, for
    each share of the judgements that are of it already. Above 1: it gets fewer judgements than its errors ask for."""
    pairs = sum(one["pairs"] for one in found.values())
    wrong = {topic: one["pairs"] * (1 - one["accuracy"]) for topic, one in found.items()}
    counted = dict.fromkeys(found, 0)
    for item, _ in judged:
        topic = topic_in(item.prompt.meta)
        counted[topic] = counted.get(topic, 0) + 1
    rows = []
    for topic, one in found.items():
        share = wrong[topic] / (sum(wrong.values()) or 1)
        asked = share / (counted[topic] / len(judged)) if counted[topic] else None
        sure = one["pairs"] >= min(TOPICS, pairs / len(found))
        rows.append(
            {
                "topic": topic,
                "judgements": counted[topic],
                **one,
                "share_of_errors": share,
                "wanting": asked,
                "sure": sure,
            }
        )
    return sorted(rows, key=lambda row: (row["wanting"] is not None, -(row["wanting"] or 0)))


def people_of_plan(quality: Quality, section: LabelSection) -> list[dict[str, Any]]:
    """People by what one of their votes tells, in bits, and what a bit of theirs costs where a price is known; those nobody knows last."""
    rows = []
    for one in quality.people:
        skill = one.skill.value
        bits = None if skill is None else vote_information(min(max(skill, 0.5), 0.999), 1)
        seconds = one.speed.median if one.speed is not None else None
        price = section.piece_price or (section.hour_price * seconds / 3600 if section.hour_price and seconds else None)
        row = {"labeler": one.labeler, "judgements": one.judgements, "skill": skill, "bits": bits, "seconds": seconds}
        rows.append(row | {"price_of_a_bit": price / bits if price and bits else None})
    return sorted(rows, key=lambda row: -(row["bits"] or -1.0))


def votes_of_plan(quality: Quality) -> dict[str, float | None]:
    """What a vote tells, in bits: a first one on a new item, a second and a third on the same; None where no skill is known."""
    known = [(one.skill.value, one.judgements) for one in quality.people if one.skill.value is not None]
    if not known:
        return {"skill": None, "first": None, "second": None, "third": None}
    skill = sum(min(max(value, 0.5), 0.999) * n for value, n in known) / sum(n for _, n in known)
    one, two, three = (vote_information(skill, votes) for votes in (1, 2, 3))
    return {"skill": skill, "first": one, "second": two - one, "third": three - two}


def plan_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The plan in words."""
    yield f"reward models on parts of {found['judgements']:,} judgements, accuracy on held-out comparisons:"
    for point in found["measured"]:
        yield f"  {point['judgements']:>7,} judgements  {point['accuracy']:.3f}"
    yield "with more judgements like these (90% interval):"
    for point in found["forecast"]:
        price = "" if point["price"] is None else f"  for {point['price']:,.2f} more"
        yield f"  {point['count']:>7,} judgements  {point['accuracy']:.3f} ({point['low']:.3f} to {point['high']:.3f}){price}"
    if found["price_of_one"] is None:
        yield "  no price is set; label.piece_price or label.hour_price gives one"
    named = [row for row in found["topics"] if row["topic"]]
    if named:
        yield "topics, those first that have fewer judgements than their errors ask for:"
    for row in named:
        wanting = "none yet" if row["wanting"] is None else f"{row['wanting']:.1f} times their share"
        interval = f"{row['low']:.3f} to {row['high']:.3f}" + ("" if row["sure"] else ", few pairs")
        yield f"  {row['topic']}: {row['judgements']:,} judgements, accuracy {row['accuracy']:.3f} ({interval}), errors {wanting}"
    yield from lines_of_people(found)
    if found["unjudged_items"]:
        yield f"{found['unjudged_items']:,} sampled items wait to be judged"


def lines_of_people(found: Mapping[str, Any]) -> Iterator[str]:
    votes, known = found["votes"], [row for row in found["people"] if row["bits"] is not None]
    if not known:
        yield (
            "who judges how well is not known, for nobody judged what another judged too; have several people judge a fifth of the items "
            "(label.overlap, label.overlap_share)"
        )
        return
    first, second, third = (f"{votes[place]:.2f}" for place in ("first", "second", "third"))
    yield (
        f"a vote on a new item tells {first} bits of which answer is better, a second on the same item {second}, a third {third}: take new "
        "items while there are any, and let several judge only what shows who judges well"
    )
    yield "people, by what a vote of theirs tells:"
    for row in known:
        price = "" if row["price_of_a_bit"] is None else f", {row['price_of_a_bit']:,.2f} a bit"
        yield f"  {row['labeler']}: skill {row['skill']:.2f}, {row['bits']:.2f} bits a vote, {row['judgements']:,} judgements{price}"
