"""Studies: how a study asks people, the guidelines that they go by, items whose answer is known, and which items teach most.

    set_study(store, "first", {"overlap": 3, "topics": {"medicine": ["anna"]}})
    publish_guideline(store, "first", {"en": "Prefer what is true…", "zh": "…"})
    mark_items(store, "first", ids)          # a share of them to be asked as a random sample
    set_priorities(store, "first")           # the others by what reward models make of their answers
    set_gold(store, item, ((1,), (0,)), by="anna")

Who is given what by them: `assignment.py`.
"""

import math
import secrets
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import combinations
from statistics import fmean
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bridle.core.errors import DataError
from bridle.core.records import CANONICAL, Judgement, LabelerKind, content_hash
from bridle.feedback.rankings import Item, check_judgement
from bridle.feedback.store import tables
from bridle.feedback.store.driver import fetch_rows
from bridle.feedback.store.reading import in_force, in_study, judged_by, judged_in, judged_where
from bridle.feedback.store.rows import now
from bridle.feedback.store.store import LOOKUP_SIZE, Store, insert_new, lookup
from bridle.feedback.upkeep.audit import append_audit

STATES = ("open", "paused", "closed")


class StudySettings(BaseModel):
    """How a study asks. A topic that `topics` does not name is everybody's; `criteria` are asked besides which answer is better on the
    whole; `seed` decides which tasks of whom are gold, and is shown to nobody."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    overlap: int = Field(default=1, ge=1, description="people who judge an item that does not say itself how many")
    lease_seconds: float = Field(default=1800, gt=0, description="how long a task is kept for whom it was given to")
    gold_rate: float = Field(default=0.05, ge=0, lt=1, description="share of a person's tasks whose answer is known")
    random_share: float = Field(
        default=0.2, ge=0, le=1, description="of a person's other tasks, and of new items: a random sample"
    )
    qualification: int = Field(default=0, ge=0, description="gold items that a person is given before any other")
    pass_mark: float = Field(default=0, ge=0, le=1, description="how right a person must be in these to go on")
    let_in: tuple[str, ...] = Field(default=(), description="who goes on whatever they got right, by handle")
    criteria: tuple[str, ...] = ()
    topics: dict[str, tuple[str, ...]] = Field(default={}, description="who may judge a topic, by handle")
    show_suggestions: bool = Field(
        default=False, description="whether people see what a reward model makes of the answers"
    )
    piece_price: float | None = Field(default=None, ge=0, description="what one judgement costs, in any currency")
    hour_price: float | None = Field(default=None, ge=0, description="what an hour of a person costs, in any currency")
    seed: str = ""


@dataclass(frozen=True)
class Study:
    """`guideline` is the hash of the newest one."""

    name: str
    state: str
    settings: StudySettings
    guideline: str | None = None


def uniform(*parts: str | int | None) -> float:
    """A number in [0, 1) that is always the same for the same parts."""
    return (int.from_bytes(blake2b(CANONICAL.encode(parts).encode(), digest_size=8).digest()) >> 11) / 2**53


def set_study(store: Store, name: str, settings: Mapping[str, Any], *, state: str = "open") -> Study:
    """Open a study, or change one: what `settings` leaves out is as it was, or the default. Raises DataError for what is none."""
    table = tables.study
    if state not in STATES:
        raise DataError(f"study {name!r} cannot be {state!r}; it is {', '.join(STATES)}")
    with store.transaction() as one, one.writing() as connection:
        old = connection.execute(sa.select(table.c.settings).where(table.c.name == name)).scalar()
        try:
            new = StudySettings.model_validate({"seed": secrets.token_hex(8), **(old or {}), **settings})
        except ValidationError as error:
            wrong = error.errors()[0]
            where = ".".join(map(str, wrong["loc"]))
            raise DataError(
                f"setting {where!r} of study {name!r} is invalid: {wrong['msg']}, but got {wrong['input']!r}; the settings are "
                + ", ".join(StudySettings.model_fields)
            ) from error
        values = {"state": state, "settings": new.model_dump(mode="json")}
        if old is None:
            insert_new(connection, table, [{"name": name, **values}])
            _count_judged(connection, name)
        connection.execute(sa.update(table).where(table.c.name == name), values)
        recount(one, name)
    return Study(name, state, new)


def studies(store: Store) -> list[Study]:
    with store.reading() as connection:
        names = connection.execute(sa.select(tables.study.c.name).order_by(tables.study.c.id)).scalars().all()
        return [study_named(connection, name) for name in names]


def find_study(store: Store, name: str, lang: str | None = None) -> Study | None:
    """A study, with its newest guideline, in this language where there is one; None where there is none of this name."""
    with store.reading(one_query=True) as connection:
        found = fetch_rows(connection, study_query(), {"study": name, "lang": lang})
    return study_of(name, found[0]) if found else None


@cache
def study_query() -> sa.Select[Any]:
    guideline = tables.guideline.c
    name: sa.BindParameter[str] = sa.bindparam("study")
    newest = sa.select(guideline.sha256).where(guideline.study == name)
    newest = newest.order_by(guideline.version.desc(), (guideline.lang == sa.bindparam("lang")).desc()).limit(1)
    query = sa.select(tables.study.c.state, tables.study.c.settings, newest.scalar_subquery())
    return query.where(tables.study.c.name == name)


def study_named(connection: sa.Connection, name: str, lang: str | None = None) -> Study:
    """A study, with its newest guideline, in this language where there is one. Raises DataError."""
    found = fetch_rows(connection, study_query(), {"study": name, "lang": lang})
    if not found:
        raise DataError(f"the store has no study {name!r}; open it first with set_study")
    return study_of(name, found[0])


def study_of(name: str, row: Any) -> Study:
    return Study(name, row[0], StudySettings.model_validate(row[1]), row[2])


def open_or_done() -> sa.Case[Any]:
    """The state of an item as people see it: until enough have judged it, it is open, whoever holds it now."""
    return sa.case((tables.item.c.state == "done", "done"), else_="open")


def trusted(assignment: Any) -> sa.ColumnElement[bool]:
    """Who an assignment, or a judgement, is of is not excluded. Asked of each: SQLite would make a list of all anew for each query."""
    gone = tables.exclusion.c
    return ~sa.exists().where(gone.target_id == assignment.labeler, gone.target == "labeler")


def people(item: Any, which: sa.ColumnElement[bool] | None = None) -> Any:
    """How many people were given an item; or of how many of them something holds, which is asked of each: were it a condition, PostgreSQL
    might go by an index of it, through all that was ever judged."""
    given = tables.assignment.c
    number = sa.func.count() if which is None else sa.func.count(sa.case((which, 1)))
    return sa.select(number).where(given.item_id == item.id).correlate(tables.item).scalar_subquery()


def has_answered(given: Any) -> sa.ColumnElement[bool]:
    return sa.and_(given.state == "done", trusted(given))


def takes_place(given: Any) -> sa.ColumnElement[bool]:
    return sa.or_(has_answered(given), given.state == "open")


@cache
def items_counted(named: bool) -> sa.Select[Any]:
    """Of a study's items, or of those named by their numbers: what decides whether anybody is to be asked them."""
    item, given = tables.item.c, tables.assignment.c
    decision, final = tables.adjudication.c, tables.judgement.alias("final").c
    by_one = [decision.item_sha256 == item.sha256, final.sha256 == decision.judgement_sha256, trusted(final)]
    query = sa.select(
        *(item.id, item.state, item.turn),
        sa.func.coalesce(item.need, sa.bindparam("overlap")).label("need"),
        people(item).label("had"),
        people(item, takes_place(given)).label("taken"),
        people(item, has_answered(given)).label("answered"),
        sa.exists().where(*by_one).correlate(tables.item).label("decided"),
        sa.select(sa.func.max(given.id)).scalar_subquery().label("newest"),
    )
    return query.where(chosen(named), item.gold.is_(None))


def chosen(named: bool) -> sa.ColumnElement[bool]:
    item = tables.item.c
    return item.id.in_(sa.bindparam("items", expanding=True)) if named else item.study == sa.bindparam("study")


@cache
def lock_items(named: bool) -> sa.Select[Any]:
    item = tables.item.c
    return sa.select(item.id).where(chosen(named)).order_by(item.id).with_for_update(key_share=True)


@cache
def put_item() -> sa.Update:
    change = sa.update(tables.item).where(tables.item.c.id == sa.bindparam("number"))
    return change.values(state=sa.bindparam("becomes"), turn=sa.bindparam("joins"))


def settle(connection: sa.Connection, overlap: int, *, items: Collection[int] = (), study: str | None = None) -> None:
    """Say of items anew whether anybody is to be asked them. In PostgreSQL others are waited for first, whose answers count too."""
    bound = {"overlap": overlap} | ({"items": list(items)} if study is None else {"study": study})
    if connection.dialect.name != "sqlite":
        fetch_rows(connection, lock_items(study is None), bound)
    for row in fetch_rows(connection, items_counted(study is None), bound):
        turn = None
        if row.decided or row.answered >= row.need:
            state = "done"
        elif row.taken >= row.need:
            state = "full"
        elif row.had:
            state, turn = "begun", row.newest if row.turn is None else row.turn
        else:
            state = "open"
        if (state, turn) != (row.state, row.turn):
            fetch_rows(connection, put_item(), {"number": row.id, "becomes": state, "joins": turn})


def recount(store: Store, study: str) -> None:
    """Find again which items enough people have judged, after anything but an answer has changed it, such as an exclusion."""
    with store.writing() as connection:
        settle(connection, study_named(connection, study).settings.overlap, study=study)
        look_anew(connection, [study])


def look_anew(connection: sa.Connection, studies: Collection[str]) -> None:
    """What was passed over may be for whoever passed it."""
    connection.execute(sa.delete(tables.passed).where(tables.passed.c.study.in_(studies)))


def exclude_person(store: Store, labeler: str, *, reason: str, by: str) -> None:
    """Leave a person's judgements out from now on; none is deleted. What they judged is asked of others again."""
    with store.transaction() as one:
        one.exclude("labeler", labeler, reason=reason, by=by)
        for study in studies(one):
            recount(one, study.name)


def _count_judged(connection: sa.Connection, study: str) -> None:
    """Who has judged an item before its study was opened is not asked again, and counts."""
    judgement, item = tables.judgement.c, tables.item.c
    query = sa.select(item.id, judgement.labeler, judgement.display_order).join(tables.item).where(item.study == study)
    stated = {(row[0], row[1]): row[2] or [] for row in connection.execute(query.where(judgement.outcome != "skip"))}
    rows = [{"item_id": key[0], "labeler": key[1], "display_order": order} for key, order in stated.items()]
    insert_new(connection, tables.assignment, [row | {"state": "done", "lease_until": now()} for row in rows])


def newest_item(connection: sa.Connection) -> int:
    """The number of the item that came last."""
    return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(tables.item.c.id), 0))).scalar_one())


def ask_new_items(store: Store, study: str, *, after: int) -> None:
    """What a study's items need that came after the one of this number: why they are asked, and who has judged them elsewhere."""
    item = tables.item.c
    with store.transaction() as one, one.writing() as connection:
        new = connection.execute(sa.select(item.sha256).where(item.study == study, item.id > after)).scalars().all()
        mark_items(one, study, new)
        set_priorities(one, study)
        _count_judged(connection, study)
        recount(one, study)


# ------------------------------------------------------------------------------------------------------- guidelines


def publish_guideline(store: Store, study: str, texts: Mapping[str, str]) -> int:
    """Publish a guideline's text in each of its languages; returns its version. One that was published stays as it is: texts that differ
    from the newest ones are the next version."""
    with store.writing() as connection:
        study_named(connection, study)
        return publish_texts(connection, study, texts)


def publish_texts(connection: sa.Connection, study: str, texts: Mapping[str, str]) -> int:
    """The same of a name that no study has: other texts that are published in versions."""
    table = tables.guideline.c
    version = connection.execute(sa.select(sa.func.max(table.version)).where(table.study == study)).scalar() or 0
    newest = sa.select(table.lang, table.markdown).where(table.study == study, table.version == version)
    if {row.lang: row.markdown for row in connection.execute(newest)} == dict(texts):
        return version
    rows = [{"study": study, "version": version + 1, "lang": lang, "markdown": text} for lang, text in texts.items()]
    insert_new(connection, tables.guideline, [{"sha256": content_hash([*row.values()]), **row} for row in rows])
    return version + 1


@dataclass(frozen=True)
class GuidelineText:
    study: str
    version: int
    lang: str
    markdown: str


def find_guideline(store: Store, sha256: str) -> GuidelineText | None:
    """What people were asked to go by, by the hash that their judgements carry."""
    with store.reading(one_query=True) as connection:
        found = fetch_rows(connection, guideline_query(), {"guideline": sha256})
    return GuidelineText(*found[0]) if found else None


@cache
def guideline_query() -> sa.Select[Any]:
    table = tables.guideline.c
    query = sa.select(table.study, table.version, table.lang, table.markdown)
    return query.where(table.sha256 == sa.bindparam("guideline"))


def guideline_text(store: Store, sha256: str) -> str:
    """Its text. Raises DataError where there is none."""
    if (found := find_guideline(store, sha256)) is None:
        raise DataError(f"the store has no guideline {sha256!r}")
    return found.markdown


# ------------------------------------------------------------------------------------- what is asked first, and why


def mark_items(store: Store, study: str, items: Sequence[str]) -> None:
    """Say of items that are new why they are asked: a share at random, chosen and ordered by hash, the others for what they teach."""
    table = tables.item
    marked = []
    with store.writing() as connection:
        chosen = sa.select(tables.study.c.settings).where(tables.study.c.name == study)
        share = StudySettings.model_validate(connection.execute(chosen).scalar() or {}).random_share
        for item, why in lookup(connection, table.c.sha256, set(items), table.c.acquisition):
            at_random = uniform("random", item) < share
            order = {"why": "random", "order": uniform("order", item)} if at_random else {"why": "informative"}
            marked += [{"order": 0.0, "item": item, **order}] if why is None else []
        change = sa.update(table).where(table.c.sha256 == sa.bindparam("item"))
        change = change.values(acquisition=sa.bindparam("why"), priority=sa.bindparam("order"))
        if marked:
            connection.execute(change, marked)


def sample_judgements(store: Store, study: str, split: str | None = None) -> list[tuple[Item, Judgement]]:
    """The judgements in force of the items that were drawn at random: for figures without the bias of what is asked first."""
    with store.reading() as connection:
        return judged_where(connection, [in_force(), judged_by(None), *judged_in(study, split, acquisition="random")])


def describe_items(store: Store, items: Sequence[str], *, need: int | None = None, topic: str | None = None) -> None:
    """Say how many people these items need, where that is not their study's overlap, and what they are about."""
    values = {name: value for name, value in (("need", need), ("topic", topic)) if value is not None}
    if need is not None and need < 1:
        raise DataError(f"an item cannot need {need} people; it needs at least 1")
    if not items or not values:
        return
    with store.writing() as connection:
        change = sa.update(tables.item).where(tables.item.c.sha256 == sa.bindparam("item"))
        connection.execute(change.values(values), [{"item": item} for item in items])
        numbers = defaultdict(list)
        for _, number, study in lookup(connection, tables.item.c.sha256, items, tables.item.c.id, tables.item.c.study):
            numbers[study].append(number)
        opened = sa.select(tables.study.c.name).where(tables.study.c.name.in_(numbers))
        for study in connection.execute(opened).scalars().all():
            overlap, of_study = study_named(connection, study).settings.overlap, numbers[study]
            for start in range(0, len(of_study), LOOKUP_SIZE):
                settle(connection, overlap, items=of_study[start : start + LOOKUP_SIZE])
        look_anew(connection, numbers)


def informativeness(scores: Sequence[Sequence[float]]) -> float:
    """What a comparison is expected to teach, 0 to 1 bit: by the scores of M models for K answers, [M][K], as log-odds.

    Mean over pairs (a, b) of H(p), p = mean over models of σ(s_a - s_b), H(p) = -p log₂ p - (1 - p) log₂(1 - p): the entropy of the
    ensemble's prediction. It is the sum of the models' disagreement (mutual information: BALD, Houlsby 2011, eq. 2,
    arxiv.org/abs/1112.5745) and their mean entropy, which is highest where the gap is zero. One model has the second alone.
    """
    pairs = list(combinations(range(len(scores[0])), 2))
    chosen = [fmean(0.5 + 0.5 * math.tanh((s[a] - s[b]) / 2) for s in scores) for a, b in pairs]
    return fmean(-sum(q * math.log2(q) for q in (p, 1 - p) if q > 0) for p in chosen) if pairs else 0.0


def set_priorities(store: Store, study: str) -> int:
    """Order a study's open items that are asked for what they teach by the scores that reward models gave their answers: `informativeness`,
    mean over tasks. Returns how many had all of a model's scores; the others stay as they were."""
    item, slot, score = tables.item, tables.item_completion.c, tables.completion_score.c
    query = sa.select(item.c.id, score.task, score.weights_sha256, slot.slot, score.score)
    query = query.join(tables.item_completion, slot.item_id == item.c.id)
    query = query.join(tables.completion_score, score.completion_id == slot.completion_id)
    query = query.where(item.c.study == study, item.c.state != "done", item.c.acquisition == "informative")
    with store.writing() as connection:
        slots = sa.select(slot.item_id, sa.func.count()).group_by(slot.item_id).join(item).where(item.c.study == study)
        size: dict[int, int] = dict(tuple(row) for row in connection.execute(slots))
        found: dict[int, dict[str, dict[str, dict[int, float]]]] = defaultdict(lambda: defaultdict(dict))
        for number, task, model, place, value in connection.execute(query):
            found[number][task].setdefault(model, {})[place] = value
        rows = []
        for number, tasks in found.items():
            whole = [
                [[s[k] for k in sorted(s)] for s in models.values() if len(s) == size[number]]
                for models in tasks.values()
            ]
            if known := [informativeness(scores) for scores in whole if scores]:
                rows.append({"number": number, "order": fmean(known)})
        if rows:
            change = sa.update(item).where(item.c.id == sa.bindparam("number")).values(priority=sa.bindparam("order"))
            connection.execute(change, rows)
        return len(rows)


def set_gold(store: Store, item_id: str, ranking: Sequence[Sequence[int]], *, by: str) -> None:
    """Say what the right ranking of an item is: from now on it is there to learn how well people judge, and everybody may be asked it."""
    item, slot = tables.item.c, tables.item_completion.c
    groups = tuple(tuple(group) for group in ranking)
    with store.writing() as connection:
        known = connection.execute(sa.select(item.id, item.acquisition).where(item.sha256 == item_id)).one_or_none()
        if known is None or known.acquisition == "random":
            why = "is part of the random sample, which stays as it was drawn" if known else "is not in the store"
            raise DataError(f"item {item_id[:12]} {why}, so it cannot be gold; take another")
        slots = connection.execute(sa.select(sa.func.count()).where(slot.item_id == known.id)).scalar_one()
        check_judgement(Judgement(item_id, by, LabelerKind.PERSON, groups, None), slots)
        values = {"gold": [list(group) for group in groups], "acquisition": "gold", "state": "open"}
        connection.execute(sa.update(tables.item).where(item.sha256 == item_id), values)
        append_audit(connection, by, "gold", item_id, {"ranking": values["gold"]})


# ------------------------------------------------------------------------------------------------------ adjudication


def disagreements(store: Store, study: str, limit: int = 100) -> list[tuple[Item, list[Judgement]]]:
    """Items of which people call different answers the best, and no adjudicator has decided; the first that came first."""
    judgement = tables.judgement.c
    standing = [in_force(), judged_by(None), *in_study(study, None), tables.item.c.gold.is_(None)]
    query = sa.select(judgement.item_sha256).join(tables.item).where(sa.and_(*standing)).group_by(judgement.item_sha256)
    query = (
        query.having(sa.func.count(sa.distinct(judgement.outcome)) > 1).order_by(sa.func.min(judgement.id)).limit(limit)
    )
    found: dict[str, tuple[Item, list[Judgement]]] = {}
    with store.reading() as connection:
        split = connection.execute(query).scalars().all()
        for item, one in judged_where(connection, [*standing, judgement.item_sha256.in_(split)]):
            found.setdefault(item.id, (item, []))[1].append(one)
    return [found[key] for key in split]


def adjudicate(store: Store, judgement: Judgement) -> None:
    """Add an adjudicator's judgement of an item as the one that counts; the others stay. Nobody else is asked the item."""
    with store.transaction() as one, one.writing() as connection:
        one.add_judgements([judgement])
        row = {"item_sha256": judgement.item_id, "judgement_sha256": judgement.id, "adjudicated_by": judgement.labeler}
        connection.execute(sa.insert(tables.adjudication), [row | {"created_at": now()}])
        ((_, number),) = lookup(connection, tables.item.c.sha256, [judgement.item_id], tables.item.c.id)
        settle(connection, 1, items=[number])
        append_audit(connection, judgement.labeler, "adjudicate", judgement.item_id, {"judgement": judgement.id})
