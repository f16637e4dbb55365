"""What the owner of a study looks at: how far it is, what was given when, and its items with all that was said of them.

    study_counts(store, "first")                                   # items, done, judgements to go, …
    find_items(store, "first", only="disagreed", words="deposit")  # a page of them
    item_record(store, "first", item)                             # one of them whole; None where the study has no such item

Only what is shown is read: pages are found by the number of their first item, texts are cut by the database.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import sqlalchemy as sa

from bridle.core.errors import DataError
from bridle.core.records import UNDECIDED
from bridle.feedback.quality.votes import since_1970
from bridle.feedback.rankings import Item
from bridle.feedback.store import tables
from bridle.feedback.store.assignment import not_out
from bridle.feedback.store.reading import decisions, excluded_items, in_force, in_study, judged_by, stands
from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import Study, open_or_done, trusted
from bridle.feedback.upkeep.audit import append_audit

PAGE_ITEMS = 50
BEGINNING = 240  # characters of a text in a list
MOST_PRIORITY = 1e9

item, judgement, completion = tables.item.c, tables.judgement.c, tables.completion.c
slot, rating = tables.item_completion.c, tables.rating.c


# ---------------------------------------------------------------------------------------------- how far a study is


@dataclass(frozen=True)
class StudyProgress:
    """Items without gold that are done and open, gold ones, excluded ones; `to_go` judgements are needed yet, of `judgements` that were
    given."""

    done: int = 0
    open: int = 0
    gold: int = 0
    excluded: int = 0
    to_go: int = 0
    judgements: int = 0

    @property
    def items(self) -> int:
        return self.done + self.open


def study_counts(store: Store, study: str, overlap: int) -> StudyProgress:
    """`overlap`: people that an item needs which does not say itself how many."""
    given = tables.assignment.alias("given").c
    people = sa.select(given.item_id, sa.func.count().label("people")).where(given.state == "done", trusted(given))
    done = people.group_by(given.item_id).subquery()
    missing = sa.func.coalesce(item.need, overlap) - sa.func.coalesce(done.c.people, 0)
    left_out, known = item.sha256.in_(excluded_items()), item.gold.is_not(None)
    counted = sa.case((left_out, "excluded"), (known, "gold"), else_=open_or_done())
    each = sa.select(counted.label("counted"), sa.case((item.state != "done", missing), else_=0).label("missing"))
    each = each.select_from(tables.item).outerjoin(done, done.c.item_id == item.id).where(item.study == study)
    of = each.subquery().c
    to_go = sa.func.sum(sa.case((of.missing > 0, of.missing), else_=0))
    query = sa.select(of.counted, sa.func.count(), to_go).group_by(of.counted)
    answered = sa.select(sa.func.count()).select_from(tables.judgement).join(tables.item)
    answered = answered.where(item.study == study, judgement.criterion.is_(None), judgement.outcome != "skip")
    with store.reading() as connection:
        found = {row[0]: (row[1], int(row[2] or 0)) for row in connection.execute(query)}
        counts = {name: count for name, (count, _) in found.items()}
        left = found.get("open", (0, 0))[1]
        return StudyProgress(**counts, to_go=left, judgements=connection.execute(answered).scalar_one())


def unopened_studies(store: Store) -> dict[str, int]:
    """How many items there are of each study that nobody opened, by name."""
    query = sa.select(item.study, sa.func.count()).where(item.study.not_in(sa.select(tables.study.c.name)))
    with store.reading() as connection:
        return {row[0]: row[1] for row in connection.execute(query.group_by(item.study).order_by(item.study))}


def state_of_labels(store: Store) -> tuple[int, int, int]:
    """What changes with every judgement; with everything that an owner does to them; and with every item that comes."""
    with store.reading() as connection:
        last = (sa.select(sa.func.max(table.c.id)) for table in (tables.judgement, tables.audit, tables.item))
        judged, done, came = (int(connection.execute(query).scalar() or 0) for query in last)
        return judged, done, came


class TimedJudgement(NamedTuple):
    """A judgement of a study's people on the whole, when it came in seconds since 1970; `counts`: it was neither skipped nor superseded."""

    labeler: str
    at: float
    seconds: float | None
    counts: bool


def given_judgements(store: Store, study: str) -> list[TimedJudgement]:
    """What was answered here, in the order in which it came; nothing that was imported."""
    newer = tables.judgement.alias("newer").c
    replaced = sa.exists().where(newer.supersedes == judgement.sha256).correlate(tables.judgement)
    at = sa.type_coerce(judgement.created_at, sa.types.NullType())
    query = sa.select(judgement.labeler, at, judgement.seconds, judgement.outcome, replaced)
    query = query.select_from(tables.judgement).join(tables.item).order_by(judgement.id)
    query = query.where(item.study == study, judgement.criterion.is_(None), judgement.source == "study")
    with store.reading() as connection:
        return [
            TimedJudgement(labeler, since_1970(when), seconds, outcome != "skip" and not gone)
            for labeler, when, seconds, outcome, gone in connection.execute(query)
        ]


# --------------------------------------------------------------------------------------------------------- its items


@dataclass(frozen=True)
class ItemRow:
    """An item in a list: beginnings of its texts; `votes` by outcome, as judgements have it."""

    number: int
    id: str
    prompt: str
    turns: int
    answers: Sequence[str]
    votes: Mapping[str, int]
    state: str
    gold: bool
    excluded: bool
    flagged: bool
    priority: float
    topic: str | None


@cache
def filters() -> dict[str, list[sa.ColumnElement[bool]]]:
    """Conditions on items by the word for them."""
    kept = item.sha256.not_in(excluded_items())
    plain = [item.gold.is_(None), kept]
    decided = sa.exists().where(judgement.item_sha256 == item.sha256, judgement.outcome.not_in(UNDECIDED))
    decided = decided.where(judgement.criterion.is_(None), trusted(judgement)).correlate(tables.item)
    split = sa.select(judgement.item_sha256).where(in_force(), judged_by(None)).group_by(judgement.item_sha256)
    split = split.having(sa.func.count(sa.distinct(judgement.outcome)) > 1)
    return {
        "unlabelled": [*plain, item.state != "done", ~decided],
        "open": [*plain, item.state != "done"],
        "done": [*plain, item.state == "done"],
        "disagreed": [*plain, item.sha256.in_(split)],
        "gold": [item.gold.is_not(None), kept],
        "flagged": [flagged(), kept],
        "excluded": [item.sha256.in_(excluded_items())],
    }


def flagged() -> sa.ColumnElement[bool]:
    flags = sa.select(slot.item_id).join(tables.rating, rating.completion_id == slot.completion_id)
    return item.id.in_(flags.where(rating.kind == "flag"))


def with_words(words: str) -> sa.ColumnElement[bool]:
    """Items in whose prompt or answers these words stand one after another, in capitals or not."""
    stored, each = sa.cast(tables.prompt.c.messages, sa.Text), spellings(words)
    asked = sa.select(tables.prompt.c.sha256).where(
        sa.or_(*(like(stored, json.dumps(one, ensure_ascii=False)[1:-1]) for one in each))
    )
    answers = sa.select(slot.item_id).join(tables.completion, completion.id == slot.completion_id)
    answers = answers.where(sa.or_(*(like(completion.text, one) for one in each)))
    return sa.or_(item.prompt_sha256.in_(asked.correlate(None)), item.id.in_(answers.correlate(None)))


def spellings(words: str) -> list[str]:
    """SQLite takes no letter but those of ASCII for the same in capitals."""
    if words.isascii():
        return [words]
    return list(dict.fromkeys((words, words.lower(), words.upper(), words.capitalize())))


def like(column: sa.ColumnElement[str], words: str) -> sa.ColumnElement[bool]:
    plain = words.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return column.ilike(f"%{plain}%", escape="\\")


def find_items(
    store: Store, study: str, *, only: str = "", words: str = "", before: int | None = None, limit: int = PAGE_ITEMS
) -> list[ItemRow]:
    """A study's items, the newest first: of those of the filter `only` with these words, up to so many `before` the item of a number."""
    where = [*in_study(study, None), *filters().get(only, [])]
    where += [with_words(words)] if words else []
    where += [item.id < before] if before is not None else []
    columns = [item.id, item.sha256, open_or_done().label("state"), item.priority, item.topic]
    columns.append(item.gold.is_not(None).label("gold"))
    columns += [sa.not_(sa.and_(*not_out())).label("excluded"), flagged().label("flagged")]
    chosen = sa.select(item.id).where(*where).order_by(item.id.desc()).limit(limit)
    query = sa.select(*columns, tables.prompt.c.messages).select_from(tables.item).join(tables.prompt)
    with store.reading() as connection:
        rows = connection.execute(query.where(item.id.in_(chosen)).order_by(item.id.desc())).all()
        answers, votes = (
            beginnings(connection, [row.id for row in rows]),
            votes_on(connection, [r.sha256 for r in rows]),
        )
    return [
        ItemRow(
            number=row.id,
            id=row.sha256,
            prompt=row.messages[-1]["content"][:BEGINNING] if row.messages else "",
            turns=len(row.messages),
            answers=answers.get(row.id, []),
            votes=votes.get(row.sha256, {}),
            state=row.state,
            gold=row.gold,
            excluded=row.excluded,
            flagged=row.flagged,
            priority=row.priority,
            topic=row.topic,
        )
        for row in rows
    ]


def beginnings(connection: sa.Connection, numbers: Sequence[int]) -> dict[int, list[str]]:
    """Of each of these items the beginnings of its answers, in slots."""
    query = sa.select(slot.item_id, sa.func.substr(completion.text, 1, BEGINNING)).join(tables.completion)
    found: dict[int, list[str]] = {}
    for number, text in connection.execute(query.where(slot.item_id.in_(numbers)).order_by(slot.item_id, slot.slot)):
        found.setdefault(number, []).append(text)
    return found


def votes_on(connection: sa.Connection, items: Sequence[str]) -> dict[str, dict[str, int]]:
    """How often each outcome stands, on the whole, of each of these items."""
    query = sa.select(judgement.item_sha256, judgement.outcome, sa.func.count())
    query = query.where(stands(), judged_by(None), judgement.item_sha256.in_(items))
    found: dict[str, dict[str, int]] = {}
    for name, outcome, count in connection.execute(query.group_by(judgement.item_sha256, judgement.outcome)):
        found.setdefault(name, {})[outcome] = count
    return found


def set_priority(store: Store, study: str, items: Sequence[str], priority: float, *, by: str) -> int:
    """Say how soon these items of a study are asked, the higher the sooner; returns how many there were. One that was drawn at random keeps
    its place, which makes it a random sample."""
    if not abs(priority) <= MOST_PRIORITY:
        raise DataError(
            f"a priority of {priority} is invalid: it must be between {-MOST_PRIORITY:g} and {MOST_PRIORITY:g}"
        )
    named = [item.study == study, item.sha256.in_(items), item.acquisition.is_distinct_from("random")]
    with store.writing() as connection:
        count = connection.execute(sa.update(tables.item).where(*named).values(priority=priority)).rowcount
        append_audit(connection, by, "priority", study, {"priority": priority, "items": count})
        return count


# ---------------------------------------------------------------------------------------------------------- one item


@dataclass(frozen=True)
class ItemAnswer:
    """`writer`: the model, or the person or file, that it is of."""

    id: str
    text: str
    writer: str
    source: str
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class JudgementRow:
    """A judgement of an item: `stands` unless it was superseded, is excluded or undecided; `decides` where an adjudication names it."""

    id: str
    labeler: str
    criterion: str | None
    outcome: str
    ranking: Sequence[Sequence[int]]
    display_order: Sequence[int] | None
    strength: int | None
    seconds: float | None
    rationale: str
    at: str
    stands: bool
    decides: bool


@dataclass(frozen=True)
class ItemRecord:
    row: ItemRow
    kind: str
    messages: Sequence[Mapping[str, str]]
    answers: Sequence[ItemAnswer]
    judgements: Sequence[JudgementRow]
    ratings: Sequence[Mapping[str, Any]]
    need: int | None
    acquisition: str | None
    ranking: Sequence[Sequence[int]] | None  # gold
    exclusions: Sequence[Mapping[str, str]]
    created_at: str


def item_record(store: Store, study: str, name: str) -> ItemRecord | None:
    """Everything of an item; None where the study has none of this hash."""
    query = sa.select(tables.item, tables.prompt.c.messages).join(tables.prompt)
    with store.reading() as connection:
        found = connection.execute(query.where(item.sha256 == name, item.study == study)).one_or_none()
        if found is None:
            return None
        (row,) = find_items(store, study, before=found.id + 1, limit=1)
        answers = answers_of(connection, found.id)
        gone = tables.exclusion.c
        targets = [name, found.prompt_sha256, *(answer.id for answer in answers)]
        why = sa.select(gone.target, gone.reason, gone.excluded_by, gone.created_at).where(gone.target_id.in_(targets))
        return ItemRecord(
            row=row,
            kind=found.kind,
            messages=found.messages,
            answers=answers,
            judgements=judgements_of(connection, name),
            ratings=[
                dict(each) for each in connection.execute(ratings_query().where(slot.item_id == found.id)).mappings()
            ],
            need=found.need,
            acquisition=found.acquisition,
            ranking=found.gold,
            exclusions=[dict(each) for each in connection.execute(why).mappings()],
            created_at=found.created_at,
        )


def answers_of(connection: sa.Connection, number: int) -> list[ItemAnswer]:
    """An item's answers in their slots, each with its writer and its scores."""
    score, model = tables.completion_score.c, tables.model_version.c
    names = [completion.id, completion.content_sha256, completion.text, completion.weight_stamp, completion.author]
    query = sa.select(*names, completion.source).join(tables.item_completion, slot.completion_id == completion.id)
    query = query.where(slot.item_id == number).order_by(slot.slot)
    rows = connection.execute(query).all()
    scored = sa.select(score.completion_id, score.task, score.weights_sha256, model.name, score.score)
    scored = scored.outerjoin(tables.model_version, model.weights_sha256 == score.weights_sha256)
    scores: dict[int, dict[str, float]] = {}
    for key, task, weights, called, value in connection.execute(
        scored.where(score.completion_id.in_([row.id for row in rows])).order_by(score.task, score.weights_sha256)
    ):
        scores.setdefault(key, {})[f"{called or weights[:12]} · {task}"] = value
    return [
        ItemAnswer(row.content_sha256, row.text, row.weight_stamp or row.author, row.source, scores.get(row.id, {}))
        for row in rows
    ]


def model_scores(store: Store, study: str, name: str) -> list[Mapping[str, float]]:
    """What reward models make of an item's answers, in slots, as log-odds by model and task: a hint, which nobody needs to follow. None for
    gold and for the random sample, for what people and answers are measured by is judged without one: both, so that gold is not known by
    that."""
    hinted = sa.func.coalesce(item.acquisition, "").not_in(("gold", "random"))
    with store.reading() as connection:
        query = sa.select(item.id).where(item.sha256 == name, item.study == study, hinted)
        number = connection.execute(query).scalar()
        return [] if number is None else [answer.scores for answer in answers_of(connection, number)]


def suggestions(store: Store, study: Study, asked: Item, order: Sequence[int]) -> list[float | None] | None:
    """Where the study shows them, and for this item: for each answer, in this order of slots, the probability that it beats a typical one
    of the reference, as the reward models that scored it state it on the mean of their log-odds; None where none did. Read from the store,
    never made here."""
    if not study.settings.show_suggestions:
        return None
    found = model_scores(store, study.name, asked.id)
    if not found:
        return None
    means = [sum(scores.values()) / len(scores) if scores else None for scores in found]
    in_order = [means[place] for place in order]
    return (
        None
        if all(one is None for one in in_order)
        else [None if one is None else 1 / (1 + math.exp(-one)) for one in in_order]
    )


def judgements_of(connection: sa.Connection, name: str) -> list[JudgementRow]:
    """All judgements of an item, the first one first."""
    text, adjudication = tables.free_text, tables.adjudication.c
    decides = sa.select(adjudication.judgement_sha256).where(adjudication.id.in_(decisions()))
    columns = [judgement[name] for name in ("sha256", "labeler", "criterion", "outcome")]
    columns += [judgement.ranking, judgement.display_order, judgement.strength]
    query = sa.select(*columns, judgement.seconds, sa.func.coalesce(text.c.body, ""), judgement.created_at)
    query = query.add_columns(stands(), judgement.sha256.in_(decides)).select_from(tables.judgement)
    query = query.outerjoin(text, text.c.sha256 == judgement.rationale)
    rows = connection.execute(query.where(judgement.item_sha256 == name).order_by(judgement.id))
    return [JudgementRow(*row[:4], row[4] or (), *row[5:10], bool(row[10]), bool(row[11])) for row in rows]


def ratings_query() -> sa.Select[Any]:
    """What was said of single answers, with the slot that each has in the item."""
    text = tables.free_text
    columns = [slot.slot, rating.labeler, rating.kind, rating.criterion, rating.value, text.c.body.label("note")]
    query = sa.select(*columns).select_from(tables.item_completion)
    query = query.join(tables.rating, rating.completion_id == slot.completion_id)
    return query.outerjoin(text, text.c.sha256 == rating.note).order_by(rating.id)


# -------------------------------------------------------------------------------------------------------- guidelines


def guideline_versions(store: Store, study: str) -> list[dict[str, Any]]:
    """The guidelines of a study, the newest first: `version`, when it was published, and the `texts` as (hash, Markdown) by language."""
    table = tables.guideline.c
    found: dict[int, dict[str, Any]] = {}
    with store.reading() as connection:
        for row in connection.execute(
            sa.select(tables.guideline).where(table.study == study).order_by(table.version.desc(), table.id)
        ):
            one = found.setdefault(row.version, {"version": row.version, "at": row.created_at, "texts": {}})
            one["texts"][row.lang] = (row.sha256, row.markdown)
    return list(found.values())
