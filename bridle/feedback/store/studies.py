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
from collections.abc import Mapping, Sequence
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
from bridle.feedback.store.reading import in_force, in_study, judged_by, judged_where
from bridle.feedback.store.rows import now
from bridle.feedback.store.store import Store, insert_new, lookup
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
    criteria: tuple[str, ...] = ()
    topics: dict[str, tuple[str, ...]] = Field(default={}, description="who may judge a topic, by handle")
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
    found = connection.execute(study_query(), {"study": name, "lang": lang}).one_or_none()
    if found is None:
        raise DataError(f"the store has no study {name!r}; open it first with set_study")
    return Study(name, found[0], StudySettings.model_validate(found[1]), found[2])


def trusted(assignment: Any) -> sa.ColumnElement[bool]:
    """Who an assignment, or a judgement, is of is not excluded. Asked of each: SQLite would make a list of all anew for each query."""
    gone = tables.exclusion.c
    return ~sa.exists().where(gone.target_id == assignment.labeler, gone.target == "labeler")


@cache
def close_judged(named: bool = False) -> sa.Update:
    """Close the items, or those named by their numbers, that as many people have judged as they need, or an adjudicator."""
    item, done = tables.item.c, tables.assignment.alias("done").c
    people = sa.select(sa.func.count()).where(done.item_id == item.id, done.state == "done", trusted(done))
    decision, final = tables.adjudication.c, tables.judgement.alias("final").c
    by_one = [decision.item_sha256 == item.sha256, final.sha256 == decision.judgement_sha256, trusted(final)]
    decided = sa.exists().where(*by_one).correlate(tables.item)
    count = people.correlate(tables.item).scalar_subquery()
    enough = sa.or_(count >= sa.func.coalesce(item.need, sa.bindparam("overlap")), decided)
    change = sa.update(tables.item).where(item.state == "open", item.gold.is_(None), enough).values(state="done")
    return change.where(item.id.in_(sa.bindparam("items", expanding=True))) if named else change


def recount(store: Store, study: str) -> None:
    """Find again which items enough people have judged, after anything but an answer has changed it, such as an exclusion."""
    of_study = tables.item.c.study == study
    with store.writing() as connection:
        overlap = study_named(connection, study).settings.overlap
        connection.execute(sa.update(tables.item).where(of_study, tables.item.c.state == "done").values(state="open"))
        connection.execute(close_judged().where(of_study), {"overlap": overlap})


def _count_judged(connection: sa.Connection, study: str) -> None:
    """Who has judged an item before its study was opened is not asked again, and counts."""
    judgement, item = tables.judgement.c, tables.item.c
    query = sa.select(item.id, judgement.labeler, judgement.display_order).join(tables.item).where(item.study == study)
    stated = {(row[0], row[1]): row[2] or [] for row in connection.execute(query.where(judgement.outcome != "skip"))}
    rows = [{"item_id": key[0], "labeler": key[1], "display_order": order} for key, order in stated.items()]
    insert_new(connection, tables.assignment, [row | {"state": "done", "lease_until": now()} for row in rows])


# ------------------------------------------------------------------------------------------------------- guidelines


def publish_guideline(store: Store, study: str, texts: Mapping[str, str]) -> int:
    """Publish a guideline's text in each of its languages; returns its version. One that was published stays as it is: texts that differ
    from the newest ones are the next version."""
    table = tables.guideline.c
    with store.writing() as connection:
        study_named(connection, study)
        version = connection.execute(sa.select(sa.func.max(table.version)).where(table.study == study)).scalar() or 0
        newest = sa.select(table.lang, table.markdown).where(table.study == study, table.version == version)
        if {row.lang: row.markdown for row in connection.execute(newest)} == dict(texts):
            return version
        rows = [{"study": study, "version": version + 1, "lang": lang, "markdown": t} for lang, t in texts.items()]
        insert_new(connection, tables.guideline, [{"sha256": content_hash([*row.values()]), **row} for row in rows])
        return version + 1


def guideline_text(store: Store, sha256: str) -> str:
    """What people were asked to go by, by the hash that their judgements carry."""
    table = tables.guideline.c
    with store.reading() as connection:
        found = connection.execute(sa.select(table.markdown).where(table.sha256 == sha256)).scalar()
    if found is None:
        raise DataError(f"the store has no guideline {sha256!r}")
    return str(found)


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
        return judged_where(connection, [in_force(), judged_by(None), *in_study(study, split, "random")])


def describe_items(store: Store, items: Sequence[str], *, need: int | None = None, topic: str | None = None) -> None:
    """Say how many people these items need, where that is not their study's overlap, and what they are about."""
    values = {name: value for name, value in (("need", need), ("topic", topic)) if value is not None}
    if need is not None and need < 1:
        raise DataError(f"an item cannot need {need} people; it needs at least 1")
    with store.writing() as connection:
        change = sa.update(tables.item).where(tables.item.c.sha256 == sa.bindparam("item"))
        connection.execute(change.values(values), [{"item": item} for item in items])


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
    query = query.where(item.c.study == study, item.c.state == "open", item.c.acquisition == "informative")
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
        of_item = tables.item.c.sha256 == judgement.item_id
        connection.execute(close_judged().where(of_item), {"overlap": 1})
        append_audit(connection, judgement.labeler, "adjudicate", judgement.item_id, {"judgement": judgement.id})
