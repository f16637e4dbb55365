"""All that is said of a study's labels, in one object that is JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bridle.feedback.quality.agreement import Estimate, agreement_of
from bridle.feedback.quality.conditions import Condition, by_position, by_topic, positions, share_over_items
from bridle.feedback.quality.consensus import consensus
from bridle.feedback.quality.people import Person, Remark, Speed, people_of, remarks, right_against, share_of, speed_of
from bridle.feedback.quality.reliability import skills_of, weights_of
from bridle.feedback.quality.votes import FIRST, SECOND, TIE, Votes
from bridle.maths.statistics import Proportion

ONE_SLOT = 0.8  # share of the winners


@dataclass(frozen=True)
class Quality:
    """Numbers of a study: `agreement` by "raw", "nominal", "ordinal" and "interval"; shares of all votes; a row for each person."""

    judgements: int
    items: int
    several: int  # items that two people or more judged
    repeated: int
    agreement: Mapping[str, Estimate]
    ties: Proportion | None
    left: Proportion | None
    speed: Speed | None
    gold: Proportion | None
    converged: bool
    people: Sequence[Person]
    remarks: Sequence[Remark]
    topics: Sequence[Condition]
    positions: Sequence[Condition]
    without_position: int
    left_out: Sequence[Mapping[str, str]]
    notes: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def quality_of(votes: Votes) -> Quality:
    """Everything at once: agreement, consensus, the people, topics and sittings."""
    found = consensus(votes)
    skills = skills_of(votes, found)
    people = people_of(votes, found, skills, weights_of(votes, skills))
    placed = positions(votes) > 0
    judges_I = np.bincount(votes.item_J, minlength=len(votes.items))
    gold_V = right_against(votes.verdict_V, votes.gold_U[votes.unit_V])
    return Quality(
        judgements=len(votes.item_J),
        items=int((judges_I > 0).sum()),
        several=int((judges_I > 1).sum()),
        repeated=votes.repeated,
        agreement=agreement_of(votes),
        ties=share_of((votes.verdict_V == TIE).astype(np.float64), votes.judgement_V),
        left=share_of(votes.left_V, votes.judgement_V),
        speed=speed_of(votes.seconds_J),
        gold=share_over_items(gold_V, votes.item_V),
        converged=found.converged,
        people=people,
        remarks=remarks(people),
        topics=by_topic(votes, found),
        positions=by_position(votes, found),
        without_position=int((~placed).sum()),
        left_out=votes.left_out,
        notes=notes(votes, found.converged),
    )


def notes(votes: Votes, converged: bool) -> list[str]:
    """Sentences to read before the numbers."""
    found = []
    won = {slot: float((votes.verdict_V == slot).sum()) for slot in (FIRST, SECOND)}
    if sum(won.values()) and max(won.values()) > ONE_SLOT * sum(won.values()):
        share = max(won.values()) / sum(won.values())
        found.append(
            f"One slot wins {share:.0%} of the comparisons, whoever judges. Alpha takes that for chance and is low for it; the raw "
            "agreement is not."
        )
    if votes.repeated:
        found.append(
            f"Of several judgements of one item by one person the last one counts; {votes.repeated} earlier ones are left out."
        )
    if not converged:
        found.append(
            "The consensus did not converge, so no skill has an interval; more items that several people judge would help."
        )
    return found
