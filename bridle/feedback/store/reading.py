"""Reading a store: items with their prompts and answers, judgements in force, snapshots; and the conditions that say which."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Select, Table, Text, and_, cast, func, or_, select

from bridle.core.errors import StoreError
from bridle.core.records import Completion, Judgement, content_hash
from bridle.feedback.rankings import Item
from bridle.feedback.store import tables
from bridle.feedback.store.driver import fetch_rows
from bridle.feedback.store.rows import completion_of, judgement_of, prompt_of

PAGE = 1_000  # rows that are held at once where a whole store is read
Source = Literal["import", "serving", "study"]
SERVING: Source = "serving"  # the source, and the study, of what users of a served model say
SOURCES: tuple[Source, ...] = ("import", "study")  # what is read where nobody asks for more


@dataclass(frozen=True)
class Snapshot:
    """The judgements of one moment, sorted, and what each weighs; or, where the query names a kind, the ratings. `id` is the hash of query,
    ids and weights: the same data, the same id."""

    id: str
    query: Mapping[str, str | None]
    judgement_ids: tuple[str, ...]
    weights: tuple[float, ...]


def items_where(connection: Connection, where: Sequence[ColumnElement[bool]]) -> dict[str, Item]:
    """Items by id, in the order in which they came."""
    return items_by(connection, item_queries(where))


def item_queries(where: Sequence[ColumnElement[bool]]) -> tuple[Select[Any], Select[Any]]:
    """Of items their prompts, and what stands in their slots: for `items_by`. Made once where it is asked often."""
    item, slot = tables.item, tables.item_completion
    key, answer = item.c.sha256.label("item_sha256"), tables.completion.c
    prompts = select(tables.prompt.c.messages, tables.prompt.c.meta, key, item.c.kind).select_from(item)
    prompts = prompts.join(tables.prompt)
    written = [answer.prompt_sha256, answer.text, answer.token_ids, answer.sampled_logprobs]
    written += [answer.finish_reason, answer.weight_stamp, answer.sampling]
    slots = select(*written, key).select_from(item).join(slot)
    slots = slots.join(tables.completion).where(*where).order_by(item.c.id, slot.c.slot)
    return prompts.where(*where).order_by(item.c.id), slots


def items_by(
    connection: Connection, queries: tuple[Select[Any], Select[Any]], bound: Mapping[str, Any] | None = None
) -> dict[str, Item]:
    prompts, slots = (
        connection.execute(query) if bound is None else fetch_rows(connection, query, bound) for query in queries
    )
    asked = {row.item_sha256: (prompt_of(row), row.kind) for row in prompts}
    answers: dict[str, list[Completion]] = {key: [] for key in asked}
    for row in slots:
        answers[row.item_sha256].append(completion_of(row))
    return {key: Item(key, prompt, tuple(answers[key]), kind) for key, (prompt, kind) in asked.items()}


def judged_where(connection: Connection, where: Sequence[ColumnElement[bool]]) -> list[tuple[Item, Judgement]]:
    judgement, item, text = tables.judgement, tables.item, tables.free_text
    query = select(judgement, tables.labeler.c.kind.label("labeler_kind"), text.c.body.label("words"))
    query = query.join(tables.labeler, tables.labeler.c.handle == judgement.c.labeler).join(item)
    query = query.outerjoin(text, text.c.sha256 == judgement.c.rationale)
    found = [judgement_of(row) for row in connection.execute(query.where(*where).order_by(judgement.c.id))]
    named = select(judgement.c.item_sha256).join(item).where(*where)
    items = items_where(connection, [item.c.sha256.in_(named)])
    return [(items[judgement.item_id], judgement) for judgement in found]


def each_judged(
    connection: Connection, where: Sequence[ColumnElement[bool]], by_item: bool = False
) -> Iterator[tuple[Item, Judgement]]:
    """The same one after another, in memory that does not grow with their number; `by_item`: those of an item together."""
    judgement = tables.judgement.c
    order = [judgement.item_sha256] if by_item else []
    ids = (
        select(judgement.id)
        .select_from(tables.judgement)
        .join(tables.item)
        .where(*where)
        .order_by(*order, judgement.id)
    )
    for page in connection.execute(ids.execution_options(yield_per=PAGE)).scalars().partitions():
        found = judged_where(connection, [judgement.id.in_(page)])
        yield from sorted(found, key=lambda one: one[0].id) if by_item else found


def snapshot_of(connection: Connection, snapshot_id: str) -> Snapshot:
    table = tables.snapshot
    found = connection.execute(select(table).where(table.c.sha256 == snapshot_id)).one_or_none()
    if found is None:
        raise StoreError(f"there is no snapshot {snapshot_id!r} in the store; take one with take_snapshot")
    row, rated = tables.snapshot_row.c, tables.snapshot_rating.c
    members = select(row.judgement_sha256, row.weight).where(row.snapshot_sha256 == snapshot_id)
    if "kind" in found.query:
        members = select(rated.rating_sha256, rated.weight).where(rated.snapshot_sha256 == snapshot_id)
    weight_of = {key: 1.0 if weight is None else weight for key, weight in connection.execute(members)}
    ids = tuple(sorted(weight_of))
    snapshot = Snapshot(snapshot_id, found.query, ids, tuple(weight_of[key] for key in ids))
    if snapshot_hash(snapshot) != snapshot_id:
        raise StoreError(
            f"snapshot {snapshot_id[:12]} has {len(ids)} judgements where {found.n} were written, and their hash is "
            "another: somebody changed the store by hand; restore a backup of it"
        )
    return snapshot


def snapshot_hash(snapshot: Snapshot) -> str:
    """Weights that are all 1 are not part of it: the same as before there were any."""
    weights = [] if all(weight == 1 for weight in snapshot.weights) else [list(snapshot.weights)]
    return content_hash([snapshot.query, list(snapshot.judgement_ids), *weights])


# -------------------------------------------------------------------------------------------------- conditions


def equal(wanted: Mapping[ColumnElement[Any], object | None]) -> list[ColumnElement[bool]]:
    return [column == value for column, value in wanted.items() if value is not None]


def prompt_in_split(table: Table, split: str) -> ColumnElement[bool]:
    # Here and below correlate(None) keeps a subquery whole, also where the query round it reads the same table.
    return table.c.prompt_sha256.in_(
        select(tables.prompt.c.sha256).where(tables.prompt.c.split == split).correlate(None)
    )


def in_study(study: str | None, split: str | None, acquisition: str | None = None) -> list[ColumnElement[bool]]:
    """Conditions on the item table; None is any. `acquisition` "random": of the sample that was drawn for figures without bias."""
    conditions = equal({tables.item.c.study: study, tables.item.c.acquisition: acquisition})
    return conditions if split is None else [*conditions, prompt_in_split(tables.item, split)]


def judged_in(
    study: str | None, split: str | None, sources: Collection[Source] = SOURCES, acquisition: str | None = None
) -> list[ColumnElement[bool]]:
    """Conditions on judgements and their items: those of a study (None: of all) that came from these sources. What users of a served model
    say belongs to none: it comes in where `sources` has "serving", whatever study is named, or where that is the study's name."""
    if study == SERVING:
        return in_study(study, split, acquisition)
    source = tables.judgement.c.source
    wanted = and_(source.in_(set(sources) - {SERVING}), *equal({tables.item.c.study: study}))
    return [or_(wanted, source == SERVING) if SERVING in sources else wanted, *in_study(None, split, acquisition)]


def excluded(target: str) -> Select[str]:
    """The ids of what was excluded of a kind."""
    return select(tables.exclusion.c.target_id).where(tables.exclusion.c.target == target)


def judged_by(criterion: str | None) -> ColumnElement[bool]:
    """What was judged is this criterion alone; None: which answer is better on the whole."""
    return tables.judgement.c.criterion.is_not_distinct_from(criterion)


def in_force() -> ColumnElement[bool]:
    """In force is a verdict that stands, and that no adjudication overrules."""
    return and_(stands(), tables.judgement.c.sha256.not_in(overruled()))


def stands() -> ColumnElement[bool]:
    """What people say, overruled or not: a ranking that nothing supersedes, of one who may judge the topic, and of which neither the
    labeler, item, prompt or an answer nor itself is excluded."""
    judgement = tables.judgement.c
    return and_(
        judgement.ranking.is_not(None),
        not_replaced(judgement.sha256),
        judgement.labeler.not_in(excluded("labeler")),
        judgement.item_sha256.not_in(excluded_items()),
        or_(judgement.marks.is_(None), cast(judgement.marks, Text).not_like('%"unskilled"%')),
    )


def not_replaced(judgement: ColumnElement[str]) -> ColumnElement[bool]:
    """Nothing supersedes the judgement, and it is not excluded."""
    newer = tables.judgement.alias("newer").c
    superseded = select(newer.supersedes).where(newer.supersedes.is_not(None)).correlate(None)
    return and_(judgement.not_in(superseded), judgement.not_in(excluded("judgement")))


def rating_stands() -> ColumnElement[bool]:
    """What was said with a judgement stands as long as that does, and a vote of a user of a served model until their next one on it."""
    rating, given_with = tables.rating.c, tables.rating.c.judgement_sha256
    reaction, served = tables.reaction.c, tables.served.c
    newest = select(reaction.value).join(tables.served).where(reaction.kind == "vote")
    newest = newest.where(reaction.labeler == rating.labeler, served.completion_id == rating.completion_id)
    newest_vote = newest.order_by(reaction.id.desc()).limit(1).correlate(tables.rating).scalar_subquery()
    return and_(
        or_(given_with.is_(None), not_replaced(given_with)),
        or_(rating.source != SERVING, rating.kind != "vote", newest_vote == rating.value),
    )


def overruled() -> Select[str]:
    """The judgements of adjudicated items that are not the one that counts; those by another criterion stand. What was decided by one who
    is excluded, or for a judgement that is, decides nothing."""
    decision, final, other = (
        tables.adjudication.alias("decision").c,
        tables.judgement.alias("final").c,
        tables.judgement.alias("other").c,
    )
    same = [other.item_sha256 == final.item_sha256, other.criterion.is_not_distinct_from(final.criterion)]
    return (
        select(other.sha256)
        .where(decision.judgement_sha256 == final.sha256, *same, other.sha256 != final.sha256)
        .where(decision.id.in_(decisions()))
        .correlate(None)
    )


def decisions() -> Select[int]:
    """The adjudications that count: of each item and criterion the newest whose judgement is not superseded, nor it or its giver
    excluded."""
    decision, final, newer = (
        tables.adjudication.c,
        tables.judgement.alias("decided").c,
        tables.judgement.alias("changed").c,
    )
    newest = select(func.max(decision.id)).join(final.sha256.table, final.sha256 == decision.judgement_sha256)
    newest = newest.where(
        final.sha256.not_in(select(newer.supersedes).where(newer.supersedes.is_not(None))),
        final.sha256.not_in(excluded("judgement")),
        final.labeler.not_in(excluded("labeler")),
    )
    return newest.group_by(decision.item_sha256, final.criterion).correlate(None)


def taken_down(connection: Connection) -> frozenset[str]:
    """The hashes of texts that were taken down: what has one of them is not stored again."""
    return frozenset(connection.execute(excluded("text")).scalars())


def not_blanked() -> ColumnElement[bool]:
    """Items of which no text was taken down."""
    return tables.item.c.sha256.not_in(items_with(excluded("text"), excluded("text")))


def excluded_items() -> Select[str]:
    """Items that are excluded, or whose prompt is, or one of their answers."""
    return items_with(excluded("prompt"), excluded("completion"), excluded("item"))


Hashes = Select[str] | Collection[str]


def items_with(prompts: Hashes, answers: Hashes, items: Hashes = ()) -> Select[str]:
    """Items whose prompt is one of these, or one of their answers, or that are named themselves."""
    item, slot, answer = (
        tables.item.alias("named").c,
        tables.item_completion.alias("slot").c,
        tables.completion.alias("answer").c,
    )
    gone = select(slot.item_id).where(slot.completion_id == answer.id, answer.content_sha256.in_(answers))
    if isinstance(answers, Select):  # PostgreSQL would look every answer up, and mostly there is nothing to find
        gone = gone.where(answers.exists())
    of_these = or_(item.prompt_sha256.in_(prompts), item.id.in_(gone), item.sha256.in_(items))
    return select(item.sha256).where(of_these).correlate(None)


def not_excluded(completion: Table) -> ColumnElement[bool]:
    """Answers of which neither they themselves nor their prompt is excluded."""
    return and_(
        completion.c.content_sha256.not_in(excluded("completion")),
        completion.c.prompt_sha256.not_in(excluded("prompt")),
    )
