"""Tasks beyond comparing: answers to rate one by one, prompts to answer; and what a person wrote in answer, kept to learn from.

    add_rating_items(store, [[answer], [one, other]], study="first")
    add_writing_items(store, prompts, study="first")
    keep_written(store, "first", judgement, [(None, written), (0, edited)])      # in the transaction of the judgement

A text that a person writes is an answer with the source "demonstration" and its writer as author, which SFT imitates. One that edits
another is preferred to it besides: a pair of its own, by the same person, that nobody else is asked.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa

from bridle.core.errors import DataError
from bridle.core.records import Completion, Judgement, Prompt, content_hash
from bridle.feedback.importing.keeping import DEMONSTRATION
from bridle.feedback.rankings import Item
from bridle.feedback.store import tables
from bridle.feedback.store.driver import fetch_rows
from bridle.feedback.store.reading import not_blanked, taken_down
from bridle.feedback.store.rows import Values, now
from bridle.feedback.store.store import Store, completion_keys, insert_new, lookup
from bridle.feedback.upkeep.audit import append_audit

MOST_ANSWERS = 9
REWRITTEN = "rewritten by its author"


def add_rating_items(store: Store, groups: Sequence[Sequence[Completion]], *, study: str) -> list[str]:
    """Add one item for each group of 1 to 9 answers to one prompt, to be rated by themselves; returns their ids, also of those that were
    there. Answers must be in the store."""
    for group in groups:
        if not 1 <= len(group) <= MOST_ANSWERS or len({one.prompt_id for one in group}) > 1:
            raise DataError(f"an item to rate has 1 to {MOST_ANSWERS} answers to one prompt, but got {len(group)}")
    return _add_items(store, [(group[0].prompt_id, group) for group in groups], "rating", study)


def add_writing_items(store: Store, prompts: Sequence[Prompt], *, study: str) -> list[str]:
    """Add one item for each prompt, to be answered by people; returns their ids. The prompts must be in the store."""
    with store.reading() as connection:
        known = {key for (key,) in lookup(connection, tables.prompt.c.sha256, {prompt.id for prompt in prompts})}
    if missing := [prompt for prompt in prompts if prompt.id not in known]:
        raise DataError(f"{len(missing)} of the prompts are not in the store; add them first with add_prompts")
    return _add_items(store, [(prompt.id, ()) for prompt in prompts], "demonstration", study)


def _add_items(store: Store, contents: Sequence[tuple[str, Sequence[Completion]]], kind: str, study: str) -> list[str]:
    ids = [content_hash([study, prompt, [one.id for one in group], kind]) for prompt, group in contents]
    with store.writing() as connection:
        keys = completion_keys(connection, [one for _, group in contents for one in group])
        rows: list[Values] = [
            {"sha256": key, "study": study, "kind": kind, "prompt_sha256": prompt, "state": "open"}
            for key, (prompt, _) in zip(ids, contents, strict=True)
        ]
        insert_new(connection, tables.item, rows)
        numbers = dict(lookup(connection, tables.item.c.sha256, set(ids), tables.item.c.id))
        slots: list[Values] = [
            {"item_id": numbers[key], "slot": slot, "completion_id": keys[one.id, one.weight_stamp]}
            for key, (_, group) in zip(ids, contents, strict=True)
            for slot, one in enumerate(group)
        ]
        insert_new(connection, tables.item_completion, slots)
    return ids


# --------------------------------------------------------------------------------------------- what people write


def is_taken_down(store: Store, item: Item) -> bool:
    """Whether the prompt of an item, or one of its answers, was taken down, so that nothing more can be said of it."""
    if any(message.content for message in item.prompt.messages) and all(one.text for one in item.completions):
        return False  # a text that was taken down is blank
    with store.reading() as connection:
        there = sa.select(tables.item.c.id).where(tables.item.c.sha256 == item.id, not_blanked())
        return connection.execute(there).first() is None


def keep_written(
    store: Store, study: str, item: Item, judgement: Judgement, written: Sequence[tuple[int | None, Completion]]
) -> bool:
    """Keep new answers that a person wrote with a judgement of an item, each with the slot that it edits, or None, in place of what they
    wrote with an earlier one of the same item. False: one of these texts was taken down, and nothing was kept."""
    with store.transaction() as one, one.writing() as connection:
        _withdraw(one, connection, judgement, {completion.id for _, completion in written})
        if not written:
            return True
        if taken_down(connection) & {completion.id for _, completion in written}:
            return False
        one.add_completions([text for _, text in written], source=DEMONSTRATION, author=judgement.labeler)
        edits = [(item.completions[slot], text) for slot, text in written if slot is not None]
        if pairs := one.add_items(edits, study=study):
            _close_for(connection, pairs, judgement.labeler)
            one.add_judgements([_preferred(judgement, pair) for pair in pairs])
    return True


def texts_of(store: Store, completions: Sequence[str]) -> dict[str, str]:
    """The texts of answers by their ids."""
    answer = tables.completion.c
    with store.reading() as connection:
        return dict(lookup(connection, answer.content_sha256, completions, answer.text))


def _preferred(judgement: Judgement, pair: str) -> Judgement:
    """The edit is slot 1, and better: once, however often its author sends it. It was never shown beside what it edits, so no order of
    display is known."""
    return Judgement(
        pair,
        judgement.labeler,
        judgement.labeler_kind,
        ((1,), (0,)),
        None,
        submission_key=content_hash([judgement.labeler, pair]),
        lang=judgement.lang,
        guideline=judgement.guideline,
    )


def _close_for(connection: sa.Connection, items: Sequence[str], labeler: str) -> None:
    """Items that one person alone judges, and has."""
    item = tables.item
    change = sa.update(item).where(item.c.sha256.in_(items)).values(state="done", need=1)
    connection.execute(change)
    numbers = [number for _, number in lookup(connection, item.c.sha256, items, item.c.id)]
    done = {"labeler": labeler, "display_order": [], "state": "done", "lease_until": now()}
    insert_new(connection, tables.assignment, [done | {"item_id": number} for number in numbers])


@cache
def earlier_clients() -> sa.Select[Any]:
    earlier = tables.judgement.c
    query = sa.select(earlier.client).where(earlier.item_sha256 == sa.bindparam("item"), earlier.client.is_not(None))
    return query.where(earlier.labeler == sa.bindparam("labeler"), earlier.sha256 != sa.bindparam("judgement"))


def _withdraw(store: Store, connection: sa.Connection, judgement: Judgement, kept: set[str]) -> None:
    """Exclude what the same person wrote with an earlier judgement of the item, and let in again what they come back to. A text that
    somebody else wrote too stays theirs."""
    answer, gone = tables.completion.c, tables.exclusion
    bound = {"item": judgement.item_id, "labeler": judgement.labeler, "judgement": judgement.id}
    before = {
        key for row in fetch_rows(connection, earlier_clients(), bound) for _, key in row.client.get("written", ())
    }
    if not before:
        return
    by_them = sa.and_(answer.author == judgement.labeler, answer.source == DEMONSTRATION)
    others = set(
        connection.execute(
            sa.select(answer.content_sha256).where(answer.content_sha256.in_(before), ~by_them)
        ).scalars()
    )
    out = set(
        connection.execute(
            sa.select(gone.c.target_id).where(gone.c.target == "completion", gone.c.target_id.in_(before))
        ).scalars()
    )
    for key in sorted(before - kept - others - out):
        store.exclude("completion", key, reason=REWRITTEN, by=judgement.labeler)
    for key in sorted(before & kept & out):
        theirs = sa.and_(gone.c.target_id == key, gone.c.reason == REWRITTEN, gone.c.excluded_by == judgement.labeler)
        if connection.execute(sa.delete(gone).where(gone.c.target == "completion", theirs)).rowcount:
            append_audit(connection, judgement.labeler, "include", key, {"target": "completion"})
