"""What keeps users' votes honest: a cap a day, and users to look at, as `quality/people.py` names annotators.

Nobody is left out by a remark: that takes an exclusion (`exclude_person`).
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import sqlalchemy as sa

from bridle.feedback.quality.people import FEWEST, ONE_SIDE, Remark
from bridle.feedback.store import tables
from bridle.feedback.store.reading import SERVING, excluded
from bridle.feedback.store.rows import now
from bridle.feedback.store.store import Store
from bridle.maths.statistics import wilson_interval

OVER_CAP = "over_cap"  # the mark of what weighs nothing
FASTEST_READING = 100.0  # characters a second: four times a fast reader of English
BURST, BURST_SECONDS = 10, 60.0
REPEATED = 10  # comments of the same words
HALF = 0.5


def is_over_cap(connection: sa.Connection, user: str, cap: int | None) -> bool:
    """Whether a user has said as much today (UTC) as weighs anything: votes and what they said of single answers together."""
    if cap is None:
        return False
    today, judgement, reaction = f"{now()[:10]}T00:00:00.000+00:00", tables.judgement.c, tables.reaction.c
    votes = sa.select(sa.func.count()).where(judgement.labeler == user, judgement.source == SERVING)
    others = sa.select(sa.func.count()).where(reaction.labeler == user, reaction.created_at >= today)
    given = connection.execute(votes.where(judgement.created_at >= today)).scalar_one()
    return given + connection.execute(others).scalar_one() >= cap


@dataclass
class UserVotes:
    """One user's votes, in the order in which they came."""

    first: list[bool] = field(default_factory=list)  # of those that prefer one: whether the one displayed first
    hasty: list[bool] = field(default_factory=list)  # of those on whole answers: whether nobody reads both so fast
    times: list[float] = field(default_factory=list)  # seconds since 1970
    prompts: list[int] = field(default_factory=list)  # equal where prompts nearly are


def odd_users(store: Store) -> list[Remark]:
    """Users whose votes look like a program's, or like carelessness, with the evidence; in the order of their handles."""
    found = list[Remark]()
    with store.reading() as connection:
        votes, repeated = votes_by_user(connection), repeated_comments(connection)
    for user in sorted(votes.keys() | repeated.keys()):
        about = [*remarks_on(votes.get(user, UserVotes())), *about_comments(repeated.get(user, 0))]
        found += [Remark(user, what, evidence) for what, evidence in about]
    return found


def votes_by_user(connection: sa.Connection) -> dict[str, UserVotes]:
    judgement, item, slot = tables.judgement.c, tables.item.c, tables.item_completion.c
    length = sa.select(sa.func.sum(sa.func.length(tables.completion.c.text)))
    length = length.join_from(tables.completion, tables.item_completion)
    columns = [judgement.labeler, judgement.outcome, judgement.display_order, judgement.wall_seconds, judgement.marks]
    columns += [judgement.created_at, tables.prompt.c.nearness]
    both = length.where(slot.item_id == item.id).correlate(tables.item).scalar_subquery().label("length")
    query = sa.select(*columns, both).select_from(tables.judgement).join(tables.item).join(tables.prompt)
    query = query.where(judgement.source == SERVING, judgement.labeler.not_in(excluded("labeler")))
    found = defaultdict[str, UserVotes](UserVotes)
    for row in connection.execute(query.order_by(judgement.id)):
        votes = found[row.labeler]
        votes.times.append(datetime.fromisoformat(row.created_at).timestamp())
        votes.prompts.append(row.nearness)
        if row.outcome.isdigit() and row.display_order:
            votes.first.append(int(row.outcome) == row.display_order[0])
        if row.wall_seconds is not None and "early" not in (row.marks or ()):
            votes.hasty.append(row.wall_seconds < row.length / FASTEST_READING)
    return dict(found)


def repeated_comments(connection: sa.Connection) -> dict[str, int]:
    """How often each user gave the comment that they gave most often."""
    reaction, number = tables.reaction.c, sa.func.count()
    query = sa.select(reaction.labeler, number).where(reaction.note.is_not(None))
    most = Counter[str]()
    for user, count in connection.execute(query.group_by(reaction.labeler, reaction.note)):
        most[user] = max(most[user], count)
    return dict(most)


def remarks_on(votes: UserVotes) -> Iterator[tuple[str, str]]:
    for side, same in (("first", sum(votes.first)), ("second", len(votes.first) - sum(votes.first))):
        if len(votes.first) >= FEWEST and wilson_interval(same, len(votes.first))[0] > ONE_SIDE:
            yield f"nearly always {side}", f"chose what was displayed {side} in {same} of {len(votes.first)} votes"
    if len(votes.hasty) >= FEWEST and sum(votes.hasty) > HALF * len(votes.hasty):
        much = f"{FASTEST_READING:.0f} characters a second"
        yield (
            "faster than reading",
            f"in {sum(votes.hasty)} of {len(votes.hasty)} votes both answers had more than {much}",
        )
    if (most := most_within(votes.times, BURST_SECONDS)) > BURST:
        yield "bursts of votes", f"{most} votes in {BURST_SECONDS:.0f} seconds"
    twice = len(votes.prompts) - len(set(votes.prompts))
    if len(votes.prompts) >= FEWEST and twice > HALF * len(votes.prompts):
        yield (
            "the same prompts again",
            f"{twice} of {len(votes.prompts)} votes are on prompts that nearly equal earlier ones",
        )


def about_comments(repeated: int) -> Iterator[tuple[str, str]]:
    if repeated >= REPEATED:
        yield "the same comment again", f"one comment was given {repeated} times"


def most_within(times: Sequence[float], seconds: float) -> int:
    """The most of these within so many seconds."""
    window, most = list[float](), 0
    for time in sorted(times):
        heapq.heappush(window, time)
        while window[0] <= time - seconds:
            heapq.heappop(window)
        most = max(most, len(window))
    return most
