"""Two served answers to one prompt, and which of them their user prefers: a judgement with the source "serving", in the study "serving".

    pair = keep_pair(store, user, left.id, right.id)                      # left is displayed first
    vote(store, user, pair.id, Ballot("first", key="a1"), cap=50)
    reveal(store, user, pair.id)                                          # which models they were; no vote from here on

One vote counts of a user on a prompt: a later one supersedes it. Sent again with its key it is the same vote. What is over a user's cap of
a day is kept with the mark "over_cap", and weighs nothing.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

import sqlalchemy as sa

from bridle.core.errors import DataError
from bridle.core.records import Completion, Judgement, LabelerKind, Prompt
from bridle.feedback.people.items import add_writing_items
from bridle.feedback.serving.answers import Choice, ServedAnswer, answer_of, new_id, not_known, require_storable
from bridle.feedback.serving.consent import has_agreed, hold_user
from bridle.feedback.serving.honesty import OVER_CAP, is_over_cap
from bridle.feedback.serving.personal import personal_data
from bridle.feedback.store import tables
from bridle.feedback.store.reading import SERVING, excluded_items, in_force, judged_where
from bridle.feedback.store.rows import Values, now, prompt_of
from bridle.feedback.store.store import Store, append_judgements, insert_new
from bridle.feedback.upkeep.takedown import renew_checksum

Pick = Literal["first", "second", "tie", "both_bad", "skip"]
PICKS: tuple[Pick, ...] = get_args(Pick)
LONGEST_KEY, LONGEST_NOTE = 64, 10_000
USERS_OWN = "serving:demonstration"  # the source of answers that users wrote


@dataclass(frozen=True)
class ServedPair:
    """`first` is displayed first; `display_order` says which canonical slot of the item stands where. The votes on it end once it was
    `revealed`."""

    id: str
    user: str
    first: ServedAnswer
    second: ServedAnswer
    item: str
    display_order: tuple[int, int]
    at: str
    revealed: bool = False


@dataclass(frozen=True)
class Ballot:
    """What a user picks. `key` names the submission; `early`: before both answers had ended; `words`: why, in their own."""

    pick: Pick
    key: str
    early: bool = False
    words: str = ""
    lang: str | None = None


def keep_pair(store: Store, user: str, first: str, second: str, *, public_id: str | None = None) -> ServedPair | None:
    """Keep that these two answers, by their ids, were displayed to a user side by side. None: they no longer agree. DataError: one is not
    theirs, or the two are not to one prompt, on sides 0 and 1, chosen as a pair."""
    with store.transaction() as one, one.writing() as connection:
        if not hold_user(connection, user) or not has_agreed(connection, user):
            return None
        answers = [answer_of(connection, user, key) for key in (first, second)]
        require_pair(answers[0], answers[1])
        completions = [answer.completion for answer in answers]
        slots = sorted(range(2), key=lambda side: slot_key(completions[side]))
        (item,) = one.add_items([[completions[side] for side in slots]], study=SERVING)
        at_random = {"acquisition": answers[0].choice.acquisition}
        unmarked = sa.and_(tables.item.c.sha256 == item, tables.item.c.acquisition.is_(None))
        connection.execute(sa.update(tables.item).where(unmarked).values(at_random))
        row: Values = {"public_id": public_id or new_id("cmp"), "labeler": user, "item_sha256": item}
        row |= {"first": first, "second": second, "revealed_at": None}
        if not insert_new(connection, tables.comparison, [{**row, "display_order": [slots.index(0), slots.index(1)]}]):
            raise DataError(f"the id {str(public_id)[:100]!r} is another comparison's already; draw one with new_id")
        return pair_of(connection, user, str(row["public_id"]))


def require_pair(first: ServedAnswer, second: ServedAnswer) -> None:
    def pair_wide(choice: Choice) -> tuple[object, ...]:
        return choice.propensity, choice.acquisition, choice.conversation

    one, other = first.choice, second.choice
    if first.completion.prompt_id != second.completion.prompt_id:
        raise DataError("the two answers are to different prompts, but only answers to one prompt can be compared")
    if first.id == second.id or (one.place, other.place) != (0, 1) or pair_wide(one) != pair_wide(other):
        raise DataError(
            f"{first.id[:100]} and {second.id[:100]} are no pair: keep them with the places 0 and 1, and one propensity, acquisition and "
            "conversation"
        )


def slot_key(completion: Completion) -> tuple[str, str]:
    """What orders the canonical slots, whatever the sides."""
    return completion.id, completion.weight_stamp


def find_pair(store: Store, user: str, public_id: str) -> ServedPair:
    """DataError where this user was served no comparison of this id, or it was taken down."""
    with store.reading() as connection:
        return pair_of(connection, user, public_id)


def pair_of(connection: sa.Connection, user: str, public_id: str) -> ServedPair:
    table = tables.comparison.c
    query = sa.select(tables.comparison).where(table.public_id == public_id, table.labeler == user)
    row = connection.execute(query.where(table.item_sha256.not_in(excluded_items()))).one_or_none()
    if row is None:
        raise not_known(public_id)
    first, second = (answer_of(connection, user, key) for key in (row.first, row.second))
    order = (row.display_order[0], row.display_order[1])
    revealed = row.revealed_at is not None
    return ServedPair(row.public_id, user, first, second, row.item_sha256, order, row.created_at, revealed)


# ---------------------------------------------------------------------------------------------------------- votes


def vote(store: Store, user: str, comparison: str, ballot: Ballot, *, cap: int | None = None) -> Judgement | None:
    """Keep a user's vote; `cap`: how much of what they say in a day (UTC) weighs anything, None all. None: they no longer agree, and
    nothing is kept. DataError: no such comparison of theirs, its models were revealed, or the key came with another vote."""
    require_ballot(ballot)
    with store.writing() as connection:
        if not hold_user(connection, user) or not has_agreed(connection, user):
            return None
        pair, table = pair_of(connection, user, comparison), tables.judgement.c
        over = is_over_cap(connection, user, cap)
        judgement = judgement_on(pair, ballot, over)
        known = connection.execute(sa.select(table.sha256).where(table.submission_key == judgement.submission_key))
        if (before := known.scalar()) is not None:
            if before != judgement.id:
                raise DataError(f"the key {ballot.key!r} came with another vote; a changed vote needs a key of its own")
            return judged_where(connection, [table.sha256 == before])[0][1]
        if pair.revealed:
            raise DataError("voting on this comparison is closed, for its models were named; vote before they are")
        earlier = sa.select(table.sha256).join(tables.item).where(table.labeler == user, table.source == SERVING)
        newer = tables.judgement.alias("later").c
        superseded = sa.exists().where(newer.supersedes == table.sha256)
        earlier = earlier.where(tables.item.c.prompt_sha256 == pair.first.completion.prompt_id, ~superseded)
        last = connection.execute(earlier.order_by(table.id.desc()).limit(1)).scalar()
        append_judgements(connection, [judgement], supersedes=last)
        return judgement


def require_ballot(ballot: Ballot) -> None:
    if ballot.pick not in PICKS:
        raise DataError(f"the pick is {str(ballot.pick)[:40]!r}, but it must be one of {', '.join(PICKS)}")
    require_key(ballot.key)
    require_note(ballot.words)


def require_key(key: str) -> None:
    if not (0 < len(key) <= LONGEST_KEY and key.isascii() and key.isprintable()):
        raise DataError(f"an idempotency key has 1 to {LONGEST_KEY} printable ASCII characters, but got {key[:80]!r}")


def require_note(text: str) -> None:
    if len(text) > LONGEST_NOTE:
        raise DataError(f"the text has {len(text):,} characters, where {LONGEST_NOTE:,} are allowed; shorten it")
    require_storable([text])


def judgement_on(pair: ServedPair, ballot: Ballot, over: bool) -> Judgement:
    """In canonical slots. What it weighs beyond 0 or 1 is found when it is learnt from."""
    left, right = pair.display_order
    rankings = {"first": ((left,), (right,)), "second": ((right,), (left,)), "skip": ()}
    return Judgement(
        item_id=pair.item,
        labeler=pair.user,
        labeler_kind=LabelerKind.PERSON,
        ranking=rankings.get(ballot.pick, ((0, 1),)),
        display_order=pair.display_order,
        source=SERVING,
        submission_key=f"{pair.id}:{ballot.key}",
        outcome=ballot.pick if ballot.pick in ("both_bad", "skip") else "",
        weight=0.0 if over else 1.0,
        rationale=ballot.words.strip(),
        lang=ballot.lang,
        marks=(*(["early"] if ballot.early else []), *([OVER_CAP] if over else [])),
        wall_seconds=(datetime.fromisoformat(now()) - datetime.fromisoformat(pair.at)).total_seconds(),
        client={"comparison": pair.id},
    )


def reveal(store: Store, user: str, comparison: str) -> ServedPair:
    """Close the votes on a comparison, for its models are about to be named; done again, it is the same."""
    table = tables.comparison
    with store.writing() as connection:
        hold_user(connection, user)
        pair = pair_of(connection, user, comparison)
        if not pair.revealed:
            row = table.c.public_id == comparison
            connection.execute(sa.update(table).where(row).values(revealed_at=now()))
            number = connection.execute(sa.select(table.c.id).where(row)).scalar_one()
            renew_checksum(connection, table, number)
        return pair_of(connection, user, comparison)


# ------------------------------------------------------------------------------------- where both answers were bad


def demonstration_queue(store: Store) -> list[Prompt]:
    """Prompts that a standing vote calls both answers to bad, to which nobody has written an answer; those with personal data stay out, for
    people would read them. The first that came first."""
    judgement, answer, item = tables.judgement.c, tables.completion.c, tables.item.c
    written = sa.select(answer.prompt_sha256).where(answer.source.in_(("demonstration", USERS_OWN)))
    standing = [judgement.source == SERVING, judgement.outcome == "both_bad", in_force()]
    bad = sa.select(item.prompt_sha256, sa.func.min(judgement.id).label("since")).select_from(tables.judgement)
    bad_of = bad.join(tables.item).where(*standing).group_by(item.prompt_sha256).subquery().c
    query = sa.select(tables.prompt).join(bad_of.since.table, bad_of.prompt_sha256 == tables.prompt.c.sha256)
    query = query.where(tables.prompt.c.sha256.not_in(written)).order_by(bad_of.since)
    with store.reading() as connection:
        prompts = [prompt_of(row) for row in connection.execute(query)]
    return [prompt for prompt in prompts if not any(personal_data(one.content) for one in prompt.messages)]


def ask_for_demonstrations(store: Store, *, study: str) -> list[str]:
    """Make each prompt of the queue a task of a study, to be answered by people; returns the items' ids, also of those that were there."""
    return add_writing_items(store, demonstration_queue(store), study=study)
