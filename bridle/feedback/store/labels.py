"""What a reward model's task can learn from in a store: comparisons, on the whole or by a criterion, or ratings of single answers."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from sqlalchemy import ColumnElement, func, select

from bridle.core.errors import DataError
from bridle.core.records import Prompt, Rating
from bridle.feedback.store import tables
from bridle.feedback.store.ratings import rated_where
from bridle.feedback.store.reading import (
    SOURCES,
    Snapshot,
    Source,
    excluded,
    in_force,
    judged_in,
    not_excluded,
    prompt_in_split,
    rating_stands,
    snapshot_hash,
    snapshot_of,
)
from bridle.feedback.store.store import Store, insert_new

Kind = Literal["comparisons", "vote", "score"]
CALLED = {"comparisons": "comparisons", "vote": "votes", "score": "scores"}
Found = dict[str | None, dict[Kind, int]]  # how many of each kind, by criterion; None: on the whole


@dataclass(frozen=True)
class Labels:
    """Of one kind and by one criterion; None is on the whole. `note` says what was taken where the criterion is not the one asked for."""

    kind: Kind
    criterion: str | None
    note: str = ""


@dataclass(frozen=True)
class Lesson:
    """What one task of a reward model learns from; `by` is its criterion as it was asked for, empty for the whole."""

    task: str
    labels: Labels
    snapshot: Snapshot
    by: str = ""

    @property
    def what(self) -> str:
        """As the report of its rows calls them."""
        return f"{CALLED[self.labels.kind]} by {self.by}" if self.by else CALLED[self.labels.kind]


def labels_by_criterion(
    store: Store, study: str | None = None, split: str | None = "train", sources: Collection[Source] = SOURCES
) -> Found:
    """What there is in force, in a split (None: in all), from these sources (`judged_in`)."""
    judgement, rating = tables.judgement.c, tables.rating.c
    compared = select(judgement.criterion, func.count()).select_from(tables.judgement).join(tables.item)
    compared = compared.where(in_force(), *judged_in(study, split, sources)).group_by(judgement.criterion)
    rated = select(rating.criterion, rating.kind, func.count()).select_from(tables.rating).join(tables.completion)
    rated = rated.where(*usable_ratings(split, sources)).group_by(rating.criterion, rating.kind)
    found: Found = {}
    with store.reading() as connection:
        for criterion, count in connection.execute(compared):
            found.setdefault(criterion, {})["comparisons"] = count
        for criterion, kind, count in connection.execute(rated):
            found.setdefault(criterion, {})[kind] = count
    return found


def labels_for(store: Store, criterion: str | None, study: str | None = None, split: str = "train") -> Labels:
    """What a task of this criterion learns from: comparisons where there are any, else votes or scores. Where no rating names a criterion,
    they are of whatever their file was of, and taken for this one.

    DataError where there is nothing by it, or both votes and scores, which are no one number.
    """
    found = labels_by_criterion(store, study, split)
    if criterion is None or "comparisons" in found.get(criterion, {}):
        return Labels("comparisons", criterion)
    rated = {name: kinds for name, kinds in found.items() if kinds.keys() - {"comparisons"}}
    taken: str | None = criterion
    note = ""
    if criterion not in rated and rated.keys() == {None}:
        taken, note = None, f"no rating names a criterion, so all are taken for {criterion}"
    kinds = sorted(rated.get(taken, {}).keys() - {"comparisons"})
    if len(kinds) != 1:
        both = " and ".join(f"{found[taken][kind]:,} {CALLED[kind]}" for kind in kinds)
        there = [f"{sum(kinds.values()):,} by {name or 'none'}" for name, kinds in sorted(found.items(), key=str)]
        raise DataError(
            f"the store has {both} by {criterion!r}, which are no one number; import one kind into a project of its own"
            if kinds
            else f"the store has no comparisons, votes or scores of training prompts by {criterion!r}; by criterion it has "
            f"{', '.join(there) or 'nothing at all'}"
        )
    return Labels(kinds[0], taken, note)


# ------------------------------------------------------------------------------------------ snapshots of ratings


def usable_ratings(split: str | None, sources: Collection[Source] = SOURCES) -> list[ColumnElement[bool]]:
    """Conditions on ratings and their answers: votes and scores of this split, from these sources, of which nothing is excluded."""
    rating, completion = tables.rating.c, tables.completion
    return [
        rating.kind.in_(("vote", "score")),
        rating.value.is_not(None),
        rating.source.in_(sources),
        rating_stands(),
        rating.labeler.not_in(excluded("labeler")),
        not_excluded(completion),
        *([] if split is None else [prompt_in_split(completion, split)]),
    ]


def by_these(labels: Labels) -> list[ColumnElement[bool]]:
    rating = tables.rating.c
    return [rating.kind == labels.kind, rating.criterion.is_not_distinct_from(labels.criterion)]


def take_rating_snapshot(
    store: Store,
    labels: Labels,
    *,
    split: str = "train",
    reliability: Mapping[str, float] | None = None,
    sources: Collection[Source] = SOURCES,
) -> Snapshot:
    """As `Store.take_snapshot`, of votes or scores: thumbs of users of a served model are in it where "serving" is named alone."""
    query: dict[str, str | None] = {"split": split, "kind": labels.kind, "criterion": labels.criterion}
    query |= {} if set(sources) == set(SOURCES) else {"sources": " ".join(sorted(sources))}
    rating = tables.rating.c
    with store.writing() as connection:
        found = select(rating.sha256, rating.labeler).select_from(tables.rating).join(tables.completion)
        found = found.where(*usable_ratings(split, sources), *by_these(labels))
        labelers: dict[str, str] = dict(sorted(tuple(row) for row in connection.execute(found)))
        weights = [round((reliability or {}).get(name, 1.0), 6) for name in labelers.values()]
        snapshot = Snapshot("", query, tuple(labelers), tuple(weights))
        snapshot = replace(snapshot, id=snapshot_hash(snapshot))
        insert_new(connection, tables.snapshot, [{"sha256": snapshot.id, "query": query, "n": len(labelers)}])
        rows = [
            {"snapshot_sha256": snapshot.id, "rating_sha256": key, "weight": None if weight == 1 else weight}
            for key, weight in zip(labelers, weights, strict=True)
        ]
        insert_new(connection, tables.snapshot_rating, rows)
    return snapshot


def answers_of_snapshot(store: Store, snapshot: Snapshot) -> dict[str, set[str]]:
    """Of each of its judgements or ratings, by id, the answers that it is of, by theirs."""
    found, answer = {key: set[str]() for key in snapshot.judgement_ids}, tables.completion.c.content_sha256
    member, given = tables.snapshot_row, tables.judgement
    query = select(member.c.judgement_sha256, answer).select_from(member)
    query = (
        query.join(given, given.c.sha256 == member.c.judgement_sha256).join(tables.item).join(tables.item_completion)
    )
    if "kind" in snapshot.query:
        member, given = tables.snapshot_rating, tables.rating
        query = select(member.c.rating_sha256, answer).select_from(member)
        query = query.join(given, given.c.sha256 == member.c.rating_sha256)
    query = query.join(tables.completion).where(member.c.snapshot_sha256 == snapshot.id)
    with store.reading() as connection:
        for key, content in connection.execute(query):
            found[key].add(content)
    return found


def part_of_snapshot(store: Store, whole: Snapshot, kept: Collection[str], why: str) -> Snapshot:
    """The snapshot of some of its judgements or ratings, each with what it weighs there."""
    weights = {key: one for key, one in zip(whole.judgement_ids, whole.weights, strict=True) if key in set(kept)}
    part = Snapshot("", {**whole.query, "mixture": why}, tuple(weights), tuple(weights.values()))
    part = replace(part, id=snapshot_hash(part))
    table, name = tables.snapshot_row, "judgement_sha256"
    if "kind" in whole.query:
        table, name = tables.snapshot_rating, "rating_sha256"
    with store.writing() as connection:
        insert_new(connection, tables.snapshot, [{"sha256": part.id, "query": dict(part.query), "n": len(weights)}])
        rows = [{"snapshot_sha256": part.id, name: key, "weight": weights[key]} for key in weights]
        insert_new(connection, table, rows)
    return part


def snapshot_ratings(store: Store, snapshot_id: str) -> list[tuple[Prompt, Rating]]:
    """Its ratings that weigh anything, with their prompts, ordered by id, but for those of texts that were taken down."""
    member, rating, answer = tables.snapshot_rating.c, tables.rating.c, tables.completion.c
    with store.reading() as connection:
        snapshot = snapshot_of(connection, snapshot_id)
        chosen = select(member.rating_sha256).where(member.snapshot_sha256 == snapshot_id)
        gone = excluded("text")
        there = [rating.sha256.in_(chosen), answer.content_sha256.not_in(gone), answer.prompt_sha256.not_in(gone)]
        # By the hash that is stored: the database made 3 to 3.0, and a rating may have been named before.
        keys = select(rating.sha256).join(tables.completion).where(*there).order_by(rating.id)
        rated = dict(zip(connection.execute(keys).scalars(), rated_where(connection, there), strict=True))
    weight_of = dict(zip(snapshot.judgement_ids, snapshot.weights, strict=True))
    weighed = [(*rated[key], weight) for key, weight in weight_of.items() if key in rated]
    return [
        (prompt, replace(one, weight=one.weight * weight)) for prompt, one, weight in weighed if one.weight * weight
    ]


def ratings_in_force(store: Store, labels: Labels, split: str) -> list[tuple[Prompt, Rating]]:
    """Those of a split, in the order in which they came."""
    with store.reading() as connection:
        return list(rated_where(connection, [*usable_ratings(split), *by_these(labels)]))
