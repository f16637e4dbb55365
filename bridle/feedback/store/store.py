"""The store: prompts, answers, and what people said of them. One file (SQLite) or a PostgreSQL database.

Functions in, records out. Everything is named by its content, so adding a thing twice adds it once. A judgement is
never updated or deleted: a correction is a row that supersedes, an exclusion a row of its own, and a snapshot keeps
for ever which judgements a model was trained on.

    with Store.open("store.sqlite") as store:
        store.add_prompts(prompts, split=None, source="world")
        store.add_completions(answers, source="sample")
        store.add_items(groups, study="first")
        store.add_judgements(judgements)
        pairs = store.snapshot_pairs(store.take_snapshot(study="first").id)

Beside it: votes and scores of single answers (`ratings.py`), what reading means (`reading.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from sqlalchemy import Column, Connection, Engine, Table, func, insert, select

from bridle.core.errors import DataError
from bridle.core.records import Completion, Judgement, Pair, Prompt, Ranking, Rating, content_hash
from bridle.feedback.rankings import Item, check_judgement, counted_pairs, item_id, ranking_of
from bridle.feedback.store import tables
from bridle.feedback.store.database import connect, hold_numbers, joining, reading, writing
from bridle.feedback.store.driver import insert_new_rows, rows_among
from bridle.feedback.store.nearness import split_key
from bridle.feedback.store.reading import (
    SERVING,
    SOURCES,
    Snapshot,
    Source,
    equal,
    excluded,
    excluded_items,
    in_force,
    in_study,
    items_where,
    judged_by,
    judged_in,
    judged_where,
    not_blanked,
    not_excluded,
    prompt_in_split,
    snapshot_hash,
    snapshot_of,
    taken_down,
)
from bridle.feedback.store.rows import (
    Values,
    completion_of,
    completion_values,
    judgement_values,
    now,
    prompt_of,
    prompt_values,
    shortened,
)
from bridle.feedback.upkeep.audit import append_audit

T = TypeVar("T")
LOOKUP_SIZE = 5_000  # values in one IN (…); SQLite takes 32,766


@dataclass(frozen=True)
class LearntFrom:
    """What a model learnt from besides its parent: snapshots of judgements, by task, and the models that scored its answers."""

    snapshots: Mapping[str, str] = field(default_factory=dict)
    shaped_by: Sequence[str] = ()


def split_of(prompt_id: str, held_out_share: float) -> Literal["train", "heldout"]:
    """The split of a prompt, by its hash alone: the same in every store, and a larger share keeps what was held out."""
    if not 0 <= held_out_share < 1:
        raise DataError(f"the held-out share is {held_out_share}, but it must be at least 0 and less than 1")
    digest = hashlib.sha256(f"split:{prompt_id}".encode()).digest()
    return "heldout" if int.from_bytes(digest[:8], "big") / 2**64 < held_out_share else "train"


class Store:
    """Open with `Store.open`. Safe to share between threads; each call is one transaction, on disk when it returns."""

    def __init__(self, engine: Engine, connection: Connection | None = None) -> None:
        self._engine = engine
        self._connection = connection  # of the transaction that every call joins; None: each has its own

    @classmethod
    def open(cls, target: str | Path) -> Store:
        """Open the store at a file or database URL, making it where there is none. Raises StoreError."""
        return cls(connect(target))

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[Store]:
        """A store whose calls are one transaction: all of them are kept when the block ends well, or none. Others wait with their writing
        until then, and read what was there before."""
        with self.writing() as connection:
            yield Store(self._engine, connection)

    def writing(self) -> AbstractContextManager[Connection]:
        return writing(self._engine) if self._connection is None else joining(self._engine, self._connection)

    def reading(self, *, one_query: bool = False) -> AbstractContextManager[Connection]:
        """`one_query`: that is all, so no transaction is begun for it."""
        if self._connection is not None:
            return joining(self._engine, self._connection)
        return reading(self._engine, "single" if one_query else "reader")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------- prompts

    def add_prompts(
        self, prompts: Iterable[Prompt], *, split: str | None, source: str, held_out_share: float = 0.1
    ) -> int:
        """Add prompts that are new; returns their number. A prompt stays in the split it was first put in.

        `split=None`: a new prompt's hash decides, `held_out_share` of them being held out. A named split that differs
        from the one a prompt already has raises DataError, and nothing is added.
        """
        wanted = {prompt.id: prompt for prompt in reversed(list(prompts))}  # the first of equal prompts gives the meta
        with self.writing() as connection:
            asked = wanted if split else ()  # of the others the insertion leaves those out that are known
            known = dict(lookup(connection, tables.prompt.c.sha256, asked, tables.prompt.c.split))
            for key, old in known.items():
                if old != split:
                    raise DataError(
                        f"the prompt {shortened(wanted[key].text)!r} is in split {old!r} and cannot be "
                        f"added to {split!r} too; leave it out, or give split=None to keep each where it is"
                    )
            new = [prompt for prompt in reversed(wanted.values()) if prompt.id not in known]
            rows = [prompt_values(p, split or split_of(split_key(p), held_out_share), source) for p in new]
            return insert_new(connection, tables.prompt, rows)

    def prompts(self, *, split: str | None = None, source: str | None = None, limit: int | None = None) -> list[Prompt]:
        """Prompts in the order in which they came."""
        query = select(tables.prompt).order_by(tables.prompt.c.id).limit(limit)
        query = query.where(*equal({tables.prompt.c.split: split, tables.prompt.c.source: source}))
        query = query.where(tables.prompt.c.sha256.not_in(excluded("prompt")))
        with self.reading() as connection:
            return [prompt_of(row) for row in connection.execute(query)]

    # --------------------------------------------------------------------------------------------- completions

    def add_completions(self, completions: Iterable[Completion], *, source: str, author: str | None = None) -> int:
        """Add answers that are new; returns their number. Their prompts must be there (else DataError).

        `source` is for example "sample", "demonstration" or "import". The same answer by other weights, by another
        author or from another source is another row, so each keeps its parents.
        """
        rows = [completion_values(completion, source, author or "") for completion in completions]
        with self.writing() as connection:
            wanted = {row["prompt_sha256"] for row in rows}
            known = {key for (key,) in lookup(connection, tables.prompt.c.sha256, wanted)}
            if missing := wanted - known:
                raise DataError(
                    f"{len(missing)} of the answers' {len(wanted)} prompts are not in the store "
                    f"(such as {min(missing)[:12]}…); add the prompts first"
                )
            gone = taken_down(connection)  # and what answered such a prompt
            rows = [row for row in rows if gone.isdisjoint((row["prompt_sha256"], row["content_sha256"]))]
            return insert_new(connection, tables.completion, rows)

    def completions(
        self, *, source: str | None = None, split: str | None = None, weight_stamp: str | None = None
    ) -> list[tuple[Prompt, Completion]]:
        """Answers with their prompts, in the order in which they came; equal in every field to what was added. What users of a served model
        were answered, or wrote themselves, where its `source` is named alone."""
        table = tables.completion
        chosen = [
            not_excluded(table),
            table.c.author.not_in(excluded("labeler")),
            *([table.c.source.not_like(f"{SERVING}%")] if source is None else [table.c.source == source]),
            *equal({table.c.weight_stamp: weight_stamp}),
            *([prompt_in_split(table, split)] if split is not None else []),
        ]
        prompt_query = select(tables.prompt).where(
            tables.prompt.c.sha256.in_(select(table.c.prompt_sha256).where(*chosen))
        )
        with self.reading() as connection:
            prompts = {row.sha256: prompt_of(row) for row in connection.execute(prompt_query)}
            rows = connection.execute(select(table).where(*chosen).order_by(table.c.id))
            return [(prompts[row.prompt_sha256], completion_of(row)) for row in rows]

    # --------------------------------------------------------------------------------------------------- items

    def add_items(self, groups: Iterable[Sequence[Completion]], *, study: str) -> list[str]:
        """Add one item for each group of two or more answers to one prompt; the order given is that of the slots.

        Returns the items' ids in the order of the groups, also for those that were there. Answers must be in the store.
        """
        groups = list(groups)
        for group in groups:
            _check_group(group)
        ids = [item_id(group, study) for group in groups]
        with self.writing() as connection:
            rows_by_origin = completion_keys(connection, [completion for group in groups for completion in group])
            items: list[Values] = []
            for key, group in zip(ids, groups, strict=True):
                kind = "pairwise" if len(group) == 2 else "ranking"
                items.append(
                    {"sha256": key, "study": study, "kind": kind, "prompt_sha256": group[0].prompt_id, "state": "open"}
                )
            insert_new(connection, tables.item, items)
            numbers = dict(lookup(connection, tables.item.c.sha256, set(ids), tables.item.c.id))
            slots: list[Values] = [
                {"item_id": numbers[key], "slot": slot, "completion_id": rows_by_origin[one.id, one.weight_stamp]}
                for key, group in zip(ids, groups, strict=True)
                for slot, one in enumerate(group)
            ]
            insert_new(connection, tables.item_completion, slots)
        return ids

    def items(self, *, study: str, split: str | None = None) -> list[Item]:
        """A study's items in the order in which they came."""
        with self.reading() as connection:
            return list(items_where(connection, [*in_study(study, split), not_blanked()]).values())

    def unjudged_items(self, study: str) -> list[Item]:
        """A study's comparisons that have no judgement in force, in the order in which they came; excluded items left out."""
        judged = select(tables.judgement.c.item_sha256).where(in_force())
        item = tables.item.c
        compared, there = item.kind.in_(("pairwise", "ranking")), item.sha256.not_in(excluded_items())
        open_items = [*in_study(study, None), compared, item.sha256.not_in(judged), there]
        with self.reading() as connection:
            return list(items_where(connection, open_items).values())

    # ---------------------------------------------------------------------------------------------- judgements

    def add_judgements(self, judgements: Iterable[Judgement]) -> int:
        """Add judgements; returns how many were new. A submission sent again (same key, same answer) adds nothing.

        Raises DataError, and adds nothing, if an item is unknown, a ranking does not cover its slots, a display order
        does not permute them, a labeler is known as another kind, or a key stands for another answer already.
        """
        judgements = list(judgements)
        with self.writing() as connection:
            return append_judgements(connection, judgements, supersedes=None)

    def correct(self, judgement: Judgement, *, supersedes: str) -> int:
        """Add a judgement in place of an earlier one of the same labeler on the same item, which stays in the store.

        `supersedes` is the earlier judgement's id. Returns 1, or 0 if this correction was there.
        """
        with self.writing() as connection:
            table = tables.judgement
            old = connection.execute(select(table).where(table.c.sha256 == supersedes)).one_or_none()
            if old is None or (old.item_sha256, old.labeler) != (judgement.item_id, judgement.labeler):
                raise DataError(
                    f"the correction by {judgement.labeler!r} names judgement {supersedes[:12]}, "
                    "but that is not a judgement of the same labeler on the same item"
                )
            newer = connection.execute(select(table.c.sha256).where(table.c.supersedes == supersedes)).scalar()
            if newer not in (None, judgement.id):
                raise DataError(f"judgement {supersedes[:12]} was corrected already; supersede the newer one, {newer}")
            if newer is None and any(lookup(connection, table.c.sha256, [judgement.id])):
                raise DataError(
                    f"the correction by {judgement.labeler!r} equals a judgement given before; "
                    "to go back to an earlier answer, give the correction a submission key of its own"
                )
            return append_judgements(connection, [judgement], supersedes=supersedes)

    def exclude(
        self,
        target: Literal["labeler", "judgement", "item", "prompt", "completion"],
        target_id: str,
        *,
        reason: str,
        by: str,
    ) -> None:
        """Keep what this concerns out of `judgements`, `prompts`, `completions` and later snapshots, from now on; nothing is deleted.

        `target_id` is a labeler's handle, or the id of a judgement, an item, a prompt or an answer.
        """
        key = {
            "labeler": tables.labeler.c.handle,
            "judgement": tables.judgement.c.sha256,
            "item": tables.item.c.sha256,
            "prompt": tables.prompt.c.sha256,
            "completion": tables.completion.c.content_sha256,
        }[target]
        with self.writing() as connection:
            if connection.execute(select(key).where(key == target_id)).first() is None:
                raise DataError(f"there is no {target} {target_id!r} in the store to exclude")
            values = {"target": target, "target_id": target_id, "reason": reason, "excluded_by": by}
            connection.execute(insert(tables.exclusion), [values | {"created_at": now()}])
            append_audit(connection, by, "exclude", target_id, {"target": target, "reason": reason})

    def judgements(
        self,
        *,
        study: str | None = None,
        split: str | None = None,
        criterion: str | None = None,
        sources: Collection[Source] = SOURCES,
    ) -> list[tuple[Item, Judgement]]:
        """The judgements in force, with their items, in the order in which they came: none superseded or excluded. Those on the whole, or
        those by one criterion. `sources`: as `judged_in` takes them."""
        with self.reading() as connection:
            return judged_where(connection, [in_force(), judged_by(criterion), *judged_in(study, split, sources)])

    def judgements_by(self, criterion: str) -> list[tuple[Item, Judgement]]:
        """The judgements in force by one criterion, of every study and split."""
        return self.judgements(criterion=criterion)

    # ----------------------------------------------------------------------------------------------- snapshots

    def take_snapshot(
        self,
        *,
        study: str | None = None,
        split: str = "train",
        criterion: str | None = None,
        reliability: Mapping[str, float] | None = None,
        sources: Collection[Source] = SOURCES,
        weights: Mapping[str, float] | None = None,
    ) -> Snapshot:
        """Write down which judgements are in force now, on the whole or by a criterion, and what each weighs: by its own id (`weights`),
        else by its giver's reliability (by handle), else 1. Taken twice of the same data, it is the same snapshot. `sources`: as
        `judged_in` takes them; what users of a served model say is in it where they are named alone."""
        query: dict[str, str | None] = {"study": study, "split": split}
        query |= {} if criterion is None else {"criterion": criterion}
        query |= {} if set(sources) == set(SOURCES) else {"sources": " ".join(sorted(sources))}
        table = tables.judgement.c
        with self.writing() as connection:
            chosen = [in_force(), judged_by(criterion), *judged_in(study, split, sources)]
            found = select(table.sha256, table.labeler).join(tables.item).where(*chosen)
            labelers: dict[str, str] = dict(sorted(tuple(row) for row in connection.execute(found)))
            if not labelers:
                raise DataError(
                    f"there is no judgement in study {study!r}, split {split!r}"
                    + (f", criterion {criterion!r}" if criterion else "")
                    + ", so a snapshot would be empty; the store's studies are "
                    + (", ".join(_studies(connection)) or "none")
                )
            given, of_giver = weights or {}, reliability or {}
            weighed = [round(given.get(key, of_giver.get(name, 1.0)), 6) for key, name in labelers.items()]
            snapshot = Snapshot("", query, tuple(labelers), tuple(weighed))
            snapshot = replace(snapshot, id=snapshot_hash(snapshot))
            values = {"sha256": snapshot.id, "query": query, "n": len(labelers)}
            if insert_new(connection, tables.snapshot, [values]):
                append_audit(connection, "bridle", "snapshot", snapshot.id, {"query": query, "n": len(labelers)})
            rows = [
                {"snapshot_sha256": snapshot.id, "judgement_sha256": key, "weight": None if weight == 1 else weight}
                for key, weight in zip(labelers, weighed, strict=True)
            ]
            insert_new(connection, tables.snapshot_row, rows)
        return snapshot

    def snapshot(self, snapshot_id: str) -> Snapshot:
        """A snapshot that was taken before. Raises StoreError if there is none or its rows do not give its hash."""
        with self.reading() as connection:
            return snapshot_of(connection, snapshot_id)

    def snapshot_judgements(self, snapshot_id: str) -> list[tuple[Item, Judgement]]:
        """A snapshot's judgements with their items, ordered by judgement id: always the same from one snapshot, but for items of which a
        text was taken down. Each weighs what it and its giver's reliability say together."""
        with self.reading() as connection:
            snapshot = snapshot_of(connection, snapshot_id)
            rows = tables.snapshot_row.c
            members = select(rows.judgement_sha256).where(rows.snapshot_sha256 == snapshot_id)
            there = [tables.judgement.c.sha256.in_(members), not_blanked()]
            judged = {one.id: (item, one) for item, one in judged_where(connection, there)}
        weighed = zip(snapshot.judgement_ids, snapshot.weights, strict=True)
        found = [(*judged[key], weight) for key, weight in weighed if key in judged]
        return [(item, replace(one, weight=one.weight * weight)) for item, one, weight in found]

    def snapshot_pairs(self, snapshot_id: str, ties: bool = False) -> list[Pair]:
        """The pairs of a snapshot's judgements that weigh anything, votes on the same two answers counted (`counted_pairs`)."""
        return counted_pairs(self.snapshot_judgements(snapshot_id), ties)

    def snapshot_rankings(self, snapshot_id: str) -> list[Ranking]:
        """The same judgements as whole rankings."""
        judged = self.snapshot_judgements(snapshot_id)
        return [ranking_of(item, judgement) for item, judgement in judged if judgement.weight > 0]

    # ------------------------------------------------------------------------------------------ models, counts

    def add_model_version(
        self, name: str, *, kind: str, weights_sha256: str, parent: str | None = None, learnt: LearntFrom | None = None
    ) -> None:
        """Register a model as a candidate by the hash of its weights; `parent` is the hash of those it came from. `learnt`: None where
        that is not known."""
        snapshots = {} if learnt is None else dict(learnt.snapshots)
        values: Values = {"name": name, "kind": kind, "status": "candidate", "weights_sha256": weights_sha256}
        values |= {"parent": parent, "config": {"snapshots": snapshots} if any(snapshots) else {}}
        values |= {"snapshot_sha256": next(iter(snapshots.values()), None)}
        values |= {"shaped_by": None if learnt is None else list(learnt.shaped_by)}
        with self.writing() as connection:
            insert_new(connection, tables.model_version, [values])

    def model_hashes(self, name: str) -> set[str]:
        """The hashes of all models that were registered under a name."""
        table = tables.model_version.c
        with self.reading() as connection:
            return set(connection.execute(select(table.weights_sha256).where(table.name == name)).scalars())

    def counts(self) -> dict[str, dict[str, int]]:
        """What there is: prompts by split, answers by source, items by study, judgements by kind of labeler."""
        groups = {
            "prompts": select(tables.prompt.c.split, func.count()).group_by(tables.prompt.c.split),
            "completions": select(tables.completion.c.source, func.count()).group_by(tables.completion.c.source),
            "items": select(tables.item.c.study, func.count()).group_by(tables.item.c.study),
            "judgements": select(tables.labeler.c.kind, func.count())
            .join(tables.judgement, tables.judgement.c.labeler == tables.labeler.c.handle)
            .group_by(tables.labeler.c.kind),
            "ratings": select(tables.rating.c.kind, func.count()).group_by(tables.rating.c.kind),
            "exclusions": select(tables.exclusion.c.target, func.count()).group_by(tables.exclusion.c.target),
        }
        with self.reading() as connection:
            rows = {name: connection.execute(query).all() for name, query in groups.items()}
        return {name: dict(sorted((row[0], row[1]) for row in found)) for name, found in rows.items()}


# ------------------------------------------------------------------------------------------ looking up, writing


def _check_group(group: Sequence[Completion]) -> None:
    if len(group) < 2:
        raise DataError(f"an item has {len(group)} answers, but comparing needs at least 2")
    if len({completion.prompt_id for completion in group}) > 1:
        raise DataError("an item holds answers to different prompts, but only answers to one prompt can be compared")


def _batches(values: Iterable[T], size: int) -> Iterator[list[T]]:
    values = list(values)
    for start in range(0, len(values), size):
        yield values[start : start + size]


def lookup(
    connection: Connection, key: Column[Any], values: Iterable[str | int], *columns: Column[Any]
) -> Iterator[tuple[Any, ...]]:
    """Rows of (key, *columns) whose key is among the values, however many these are."""
    for batch in _batches(values, LOOKUP_SIZE):
        yield from rows_among(connection, key, batch, columns)


def insert_new(connection: Connection, table: Table, rows: Sequence[Values]) -> int:
    """Insert the rows, all of the same columns, that are new by the table's unique keys; returns their number. Those without a time get
    one."""
    if not rows:
        return 0
    if table is tables.judgement:
        hold_numbers(connection)
    at = {"created_at": now()} if "created_at" in table.c and "created_at" not in rows[0] else {}
    return insert_new_rows(connection, table, rows, at)


def completion_keys(connection: Connection, completions: Sequence[Completion]) -> dict[tuple[str, str], int]:
    """The rows of answers, by content and weights; of several origins the one that came first."""
    table = tables.completion.c
    wanted = {completion.id for completion in completions}
    keys: dict[tuple[str, str], int] = {}
    for content, stamp, number in lookup(connection, table.content_sha256, wanted, table.weight_stamp, table.id):
        keys[content, stamp] = min(number, keys.get((content, stamp), number))
    missing = [c for c in completions if (c.id, c.weight_stamp) not in keys]
    if missing:
        raise DataError(
            f"{len(missing)} answers of the items are not in the store (such as {shortened(missing[0].text)!r}); "
            "add them first with add_completions"
        )
    return keys


def append_judgements(connection: Connection, judgements: Sequence[Judgement], supersedes: str | None) -> int:
    """`Store.add_judgements` in a transaction; `supersedes`: an earlier judgement of the same labeler that they take the place of."""
    slots = answer_counts(connection, {judgement.item_id for judgement in judgements})
    for judgement in judgements:
        if judgement.item_id not in slots:
            raise DataError(
                f"{judgement.labeler!r} judged item {judgement.item_id[:12]}, which is not in the store; add it first"
            )
        check_judgement(judgement, slots[judgement.item_id])
    add_labelers(connection, judgements)
    add_free_texts(connection, [judgement.rationale for judgement in judgements])
    known = tables.judgement.c
    rows = [judgement_values(judgement, supersedes) for judgement in judgements]
    unnamed = {row["sha256"] for row in rows if row["submission_key"] is None}
    by_key = {key: key for (key,) in lookup(connection, known.sha256, unnamed)}
    keys = {row["submission_key"] for row in rows} - {None}
    by_key |= dict(lookup(connection, known.submission_key, keys, known.sha256))
    new = []
    for values in rows:
        key, sha256 = values["submission_key"] or values["sha256"], values["sha256"]
        if key not in by_key:
            new.append(values)
        elif by_key[key] != sha256:
            raise DataError(
                f"submission {key!r} of {values['labeler']!r} came before with another answer; "
                "a changed answer needs a key of its own and supersedes the first"
            )
        by_key[key] = sha256
    return insert_new(connection, tables.judgement, new)


def answer_counts(connection: Connection, item_ids: Iterable[str]) -> dict[str, int]:
    """How many answers each of these items has."""
    slot = tables.item_completion.c
    items = {number: key for key, number in lookup(connection, tables.item.c.sha256, item_ids, tables.item.c.id)}
    slots = dict.fromkeys(items.values(), 0)  # an answer is yet to be written
    for number, place in lookup(connection, slot.item_id, items, slot.slot):
        slots[items[number]] = max(slots[items[number]], place + 1)
    return slots


def add_labelers(connection: Connection, judgements: Sequence[Judgement | Rating]) -> None:
    labeler = tables.labeler
    kinds = {judgement.labeler: judgement.labeler_kind for judgement in judgements}
    stored = dict(lookup(connection, labeler.c.handle, kinds, labeler.c.kind))
    if new := [{"handle": handle, "kind": kind.value} for handle, kind in kinds.items() if handle not in stored]:
        insert_new(connection, labeler, new)
        stored = dict(lookup(connection, labeler.c.handle, kinds, labeler.c.kind))  # another may have been faster
    for judgement in judgements:
        if stored[judgement.labeler] != judgement.labeler_kind:
            raise DataError(
                f"labeler {judgement.labeler!r} is known as {stored[judgement.labeler]}, not {judgement.labeler_kind}; "
                "give each kind of labeler a name of its own"
            )


def add_free_texts(connection: Connection, texts: Sequence[str]) -> None:
    """What was taken down stays so: its hash is there."""
    insert_new(connection, tables.free_text, [{"sha256": content_hash(text), "body": text} for text in {*texts} - {""}])


def _studies(connection: Connection) -> list[str]:
    return list(connection.execute(select(tables.item.c.study).distinct().order_by(tables.item.c.study)).scalars())
