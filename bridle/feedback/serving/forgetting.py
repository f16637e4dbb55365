"""A user's whole trace, deleted where they ask for it, by the rules of a takedown: texts are blanked, hashes and exclusions stay.

Blanked: prompts that only they asked, with all answers to these; answers that only they were given; what they wrote. What somebody else
asked, was given or wrote in the same words stays that person's. Their votes are never changed and count no more: they are excluded, as
all that is theirs. The conversations they were part of, and the hash of their token, go; no request can be theirs again.
"""

from collections.abc import Collection
from pathlib import Path

import sqlalchemy as sa

from bridle.core.errors import DataError
from bridle.feedback.serving.comparisons import USERS_OWN
from bridle.feedback.serving.consent import hold_user
from bridle.feedback.store import tables
from bridle.feedback.store.reading import SERVING
from bridle.feedback.store.rows import now
from bridle.feedback.store.store import Store, insert_new
from bridle.feedback.upkeep.audit import append_audit
from bridle.feedback.upkeep.takedown import (
    Sources,
    Takedown,
    blank_texts,
    files_that_hold,
    name_models,
    purge,
    renew_checksum,
)


def forget_user(
    store: Store, user: str, *, reason: str, by: str, runs: Path | None = None, made: Sources | None = None
) -> Takedown:
    """Delete what a user left, and refuse what they send from now on. Returns what was blanked and which models learnt from it, as
    `take_down`, whose `runs` and `made` these are. DataError where there is no such user; done again, it finishes what a reader of the
    file kept from being done."""
    with store.writing() as connection:
        known = sa.select(tables.served_user.c.labeler).where(tables.served_user.c.labeler == user)
        if connection.execute(known).first() is None:
            raise DataError(f"there is no user {user[:64]!r}")
        first, done = hold_user(connection, user), Takedown(user)
        keys = {*prompts_asked_by(connection, user), *answers_given_to(connection, user), *texts_by(connection, user)}
        hashes = blank_texts(connection, keys, done, reason, by)
        name_models(connection, hashes, done, made or {}, by=user)
        if first:
            cut_loose(connection, user)
            insert_new(connection, tables.consent, [{"labeler": user, "answer": "refused", "guideline": None}])
            gone = {"target": "labeler", "target_id": user, "reason": reason, "excluded_by": by, "created_at": now()}
            connection.execute(sa.insert(tables.exclusion), [gone])
            details = {"reason": reason, "rows": done.blanked, "texts": len(hashes)}
            append_audit(connection, by, "forget", user, details)
    done.runs = [] if runs is None else list(files_that_hold(runs, done.texts))
    purge(store)
    return done


def prompts_asked_by(connection: sa.Connection, user: str) -> Collection[str]:
    """The prompts that nobody but this user asked, and that came from nowhere else."""
    prompt, answer, served = tables.prompt.c, tables.completion.c, tables.served.c
    asked = sa.select(answer.prompt_sha256).join_from(tables.served, tables.completion)
    theirs = asked.where(served.labeler == user).correlate(None)
    others = asked.where(served.labeler != user).correlate(None)
    query = sa.select(prompt.sha256).where(prompt.source == SERVING, prompt.sha256.in_(theirs))
    return connection.execute(query.where(prompt.sha256.not_in(others))).scalars().all()


def answers_given_to(connection: sa.Connection, user: str) -> Collection[str]:
    """The answers that nobody but this user was given, and that are there for nothing else; and those that they wrote and nobody else."""
    answer, served = tables.completion.c, tables.served.c
    given = sa.select(answer.content_sha256).join_from(tables.served, tables.completion)
    elsewhere = sa.select(answer.content_sha256).where(answer.source != SERVING, answer.author != user)
    theirs = [given.where(served.labeler == user), sa.select(answer.content_sha256).where(answer.author == user)]
    others = [given.where(served.labeler != user), elsewhere.where(answer.source != USERS_OWN)]
    others += [sa.select(answer.content_sha256).where(answer.source == USERS_OWN, answer.author != user)]
    found, kept = (set(connection.execute(sa.union(*queries)).scalars()) for queries in (theirs, others))
    return found - kept


def texts_by(connection: sa.Connection, user: str) -> Collection[str]:
    """The words of theirs, with votes and of single answers, that nobody else wrote too."""
    judgement, rating, reaction = tables.judgement.c, tables.rating.c, tables.reaction.c
    columns = (
        (judgement.rationale, judgement.labeler),
        (rating.note, rating.labeler),
        (reaction.note, reaction.labeler),
    )
    written = [sa.select(text).where(text.is_not(None), labeler == user) for text, labeler in columns]
    by_others = [sa.select(text).where(text.is_not(None), labeler != user) for text, labeler in columns]
    return set(connection.execute(sa.union(*written)).scalars()) - set(
        connection.execute(sa.union(*by_others)).scalars()
    )


def cut_loose(connection: sa.Connection, user: str) -> None:
    """Their token opens nothing, and which answers were one conversation is not known any more."""
    user_row, served = tables.served_user.c.labeler == user, tables.served
    connection.execute(sa.update(tables.served_user).where(user_row).values(sha256=None))
    talked = sa.select(served.c.id).where(served.c.labeler == user, served.c.conversation.is_not(None))
    for number in connection.execute(talked).scalars().all():
        connection.execute(sa.update(served).where(served.c.id == number).values(conversation=None))
        renew_checksum(connection, served, number)
