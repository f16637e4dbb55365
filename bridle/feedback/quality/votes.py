"""Judgements as columns of numbers: what each says of each two answers, by whom, on which side, when.

A worked example: the ranking ((2,), (0, 1)) of three answers is three votes. Of slots 0 and 1 it says that they tie, of 0 and 2, and of
1 and 2, that the second is better. What people are compared on is a `unit`: two slots of an item, the lower one first, whatever side
they were shown on. Of two answers with one text nothing can be said, so they are none.
"""

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from bridle.core.errors import DataError
from bridle.core.records import UNDECIDED
from bridle.feedback.store import tables
from bridle.feedback.store.reading import decisions, in_study, judged_by, judged_in, stands
from bridle.feedback.store.store import Store

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Groups = tuple[tuple[int, ...], ...]  # a ranking: slots, the best first
FIRST, TIE, SECOND = 0, 1, 2  # what a vote says of the two slots of its unit
UNKNOWN = -1  # the side, or gold
# All white space, as `Completion.stripped` takes it away.
BLANKS = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680"
    "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
TOPICS = ("family", "topic")  # where a prompt's meta may name one, the coarser first


class Vote(NamedTuple):
    """One judgement, as it is read. `at` is seconds since 1970."""

    item: str
    labeler: str
    ranking: Groups
    display_order: tuple[int, ...] | None = None
    seconds: float | None = None
    at: float | None = None


class Subject(NamedTuple):
    """What is known of an item besides: its topic, what is right, and which slots hold one text."""

    topic: str = ""
    gold: Groups | None = None
    alike: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Votes:
    """J judgements of I items by W people, and their V votes on U units. Of several by one person of one item the last one counts."""

    people: Sequence[str]
    items: Sequence[str]
    topic_I: Sequence[str]
    item_J: Ints
    person_J: Ints
    seconds_J: Floats  # nan where nobody knows
    time_J: Floats
    judgement_V: Ints
    unit_V: Ints
    verdict_V: Ints
    first_left_V: Ints  # 1 where the unit's first slot was shown before its second, 0 after, UNKNOWN
    weight_V: Floats  # 2 / K: a ranking of K answers counts as K − 1 comparisons, though it has K (K − 1) / 2 pairs
    units: Sequence[tuple[str, int, int]]  # item, first slot, second slot
    item_U: Ints
    gold_U: Ints
    repeated: int = 0  # judgements that a later one by the same person took the place of
    undecided: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # by person: "cannot_judge", "skip"
    left_out: Sequence[Mapping[str, str]] = ()  # people who were excluded: who, why, by whom, when

    @property
    def person_V(self) -> Ints:
        return self.person_J[self.judgement_V]

    @property
    def item_V(self) -> Ints:
        return self.item_U[self.unit_V]

    @property
    def left_V(self) -> Floats:
        """1 where what was shown first won, 0 where it lost; nan for a tie, or where nobody knows what was shown first."""
        won = np.where(self.verdict_V == FIRST, self.first_left_V, 1 - self.first_left_V).astype(np.float64)
        return np.where((self.verdict_V == TIE) | (self.first_left_V == UNKNOWN), np.nan, won)


def votes_of(rows: Iterable[Vote], subjects: Mapping[str, Subject] | None = None) -> Votes:
    """The columns of judgements in the order in which they came. DataError: a gold ranking lacks a slot that people rank."""
    subjects = subjects or {}
    items, people, shapes = dict[str, int](), dict[str, int](), dict[tuple[Any, ...], int]()
    item, person, shape, seconds, times = array("q"), array("q"), array("q"), array("d"), array("d")
    for row in rows:
        number = items.setdefault(row.item, len(items))
        item.append(number)
        person.append(people.setdefault(row.labeler, len(people)))
        alike = subjects[row.item].alike if row.item in subjects else frozenset()
        shape.append(shapes.setdefault((row.ranking, row.display_order, alike), len(shapes)))
        seconds.append(np.nan if row.seconds is None else row.seconds)
        times.append(np.nan if row.at is None else row.at)
    item_J, person_J, shape_J = (np.array(column, dtype=np.int64) for column in (item, person, shape))
    last = np.unique((item_J * max(1, len(people)) + person_J)[::-1], return_index=True)[1]
    kept = np.sort(len(item_J) - 1 - last)
    item_J, person_J, shape_J = item_J[kept], person_J[kept], shape_J[kept]
    judgement_V, columns = expanded(list(shapes), shape_J)
    first_V, second_V, verdict_V, first_left_V, slots_V = columns.T
    most = int(columns[:, 4].max(initial=2))
    key_V = (item_J[judgement_V] * most + first_V) * most + second_V
    key_U, unit_V = np.unique(key_V, return_inverse=True)
    names = list(items)
    units = [(names[key // most**2], key // most % most, key % most) for key in key_U.tolist()]
    return Votes(
        people=list(people),
        items=names,
        topic_I=[subjects[name].topic if name in subjects else "" for name in names],
        item_J=item_J,
        person_J=person_J,
        seconds_J=np.array(seconds)[kept],
        time_J=np.array(times)[kept],
        judgement_V=judgement_V,
        unit_V=unit_V,
        verdict_V=verdict_V,
        first_left_V=first_left_V,
        weight_V=2 / slots_V,
        units=units,
        item_U=key_U // most**2,
        gold_U=np.array([gold_verdict(unit, subjects.get(unit[0])) for unit in units], dtype=np.int64),
        repeated=len(item) - len(kept),
    )


def expanded(shapes: Sequence[tuple[Any, ...]], shape_J: Ints) -> tuple[Ints, Ints]:
    """Of each judgement its votes: the judgement's number, and (first slot, second, verdict, whether the first was shown first, slots).

    There are few shapes, the distinct rankings with their display order, so each is taken apart once.
    """
    tables_S = [np.array(list(votes_of_shape(*shape)), dtype=np.int64).reshape(-1, 5) for shape in shapes]
    flat = np.concatenate([np.empty((0, 5), dtype=np.int64), *tables_S])
    sizes_S = np.array([len(table) for table in tables_S], dtype=np.int64)
    starts_S = np.cumsum(sizes_S) - sizes_S
    sizes_J = sizes_S[shape_J]
    judgement_V = np.repeat(np.arange(len(shape_J)), sizes_J)
    within_V = np.arange(len(judgement_V)) - np.repeat(np.cumsum(sizes_J) - sizes_J, sizes_J)
    return judgement_V, flat[starts_S[shape_J][judgement_V] + within_V]


def votes_of_shape(
    ranking: Groups, order: tuple[int, ...] | None, alike: frozenset[tuple[int, int]]
) -> Iterator[tuple[int, int, int, int, int]]:
    place = places(ranking)
    for first, second in combinations(sorted(place), 2):
        if (first, second) not in alike:
            side = UNKNOWN if order is None else int(order.index(first) < order.index(second))
            yield first, second, verdict_between(place, first, second), side, len(place)


def places(ranking: Groups) -> dict[int, int]:
    return {slot: place for place, group in enumerate(ranking) for slot in group}


def verdict_between(place: Mapping[int, int], first: int, second: int) -> int:
    return TIE if place[first] == place[second] else FIRST if place[first] < place[second] else SECOND


def gold_verdict(unit: tuple[str, int, int], subject: Subject | None) -> int:
    if subject is None or subject.gold is None:
        return UNKNOWN
    place, (item, first, second) = places(subject.gold), unit
    if first not in place or second not in place:
        raise DataError(
            f"gold of item {item[:12]} ranks the slots {sorted(place)}, but people ranked {first} and {second} too; "
            "a gold ranking must hold every slot of its item"
        )
    return verdict_between(place, first, second)


# ------------------------------------------------------------------------------------------------ from the store


def read_votes(store: Store, study: str | None = None, where: Sequence[sa.ColumnElement[bool]] = ()) -> Votes:
    """The judgements that stand in a study (None: of all), on the whole and not by one criterion. DataError where there are none.

    What an adjudicator decided is an item's gold where it has no other; the adjudicator's own judgement of it does not count. Judgements of
    users of a served model are read by themselves, as study "serving". `where`: more conditions on judgements.
    """
    judgement, adjudication = tables.judgement.c, tables.adjudication.c
    theirs = sa.select(adjudication.judgement_sha256).join(tables.judgement)
    theirs = theirs.where(judgement.labeler == adjudication.adjudicated_by).correlate(None)
    chosen = [stands(), judged_by(None), *judged_in(study, None), judgement.sha256.not_in(theirs), *where]
    # As text, and bytes: there are few distinct rankings, and each is read once.
    raw = [sa.cast(judgement.ranking, sa.Text), sa.cast(judgement.display_order, sa.Text)]
    at = sa.type_coerce(judgement.created_at, sa.types.NullType())
    query = sa.select(judgement.item_sha256, judgement.labeler, *raw, judgement.seconds, at)
    query = query.select_from(tables.judgement).join(tables.item).where(*chosen).order_by(judgement.id)
    with store.reading() as connection:
        subjects = subjects_of(connection, study)
        rows = connection.execute(query, execution_options={"yield_per": 10_000})
        read = (
            Vote(item, labeler, nested(ranking), nested(order), seconds, since_1970(given))
            for item, labeler, ranking, order, seconds, given in rows
        )
        found = votes_of(read, subjects)
        if not len(found.item_J):
            studies = connection.execute(sa.select(tables.item.c.study).distinct().order_by(tables.item.c.study))
            raise DataError(
                f"no judgement stands in {'the store' if study is None else f'study {study!r}'}, so nothing can be said of "
                f"agreement; the store's studies are {', '.join(studies.scalars()) or 'none'}"
            )
        return replace(found, undecided=undecided(connection, study), left_out=excluded_people(connection))


def undecided(connection: sa.Connection, study: str | None) -> dict[str, dict[str, int]]:
    """How often each person could or would not say, by outcome."""
    judgement = tables.judgement.c
    query = sa.select(judgement.labeler, judgement.outcome, sa.func.count()).select_from(tables.judgement)
    query = query.join(tables.item).where(judgement.outcome.in_(UNDECIDED), *judged_in(study, None))
    found: dict[str, dict[str, int]] = {}
    for labeler, outcome, count in connection.execute(query.group_by(judgement.labeler, judgement.outcome)):
        found.setdefault(labeler, {})[outcome] = count
    return found


def excluded_people(connection: sa.Connection) -> list[dict[str, str]]:
    """The people who were excluded."""
    row = tables.exclusion.c
    query = sa.select(row.target_id, row.reason, row.excluded_by, row.created_at).where(row.target == "labeler")
    names = ("labeler", "reason", "by", "at")
    rows = connection.execute(query.order_by(row.id.desc())).all()  # who was excluded twice is so since the first time
    once = {found.target_id: dict(zip(names, found, strict=True)) for found in rows}
    return [*once.values()][::-1]


def subjects_of(connection: sa.Connection, study: str | None) -> dict[str, Subject]:
    """Topic, gold and slots of one text of a study's items, where there is any of these."""
    item, prompt, judgement, adjudication = tables.item, tables.prompt, tables.judgement, tables.adjudication
    decided = sa.select(adjudication.c.item_sha256, sa.cast(judgement.c.ranking, sa.Text)).select_from(adjudication)
    decided = decided.join(judgement, judgement.c.sha256 == adjudication.c.judgement_sha256)
    decided = decided.where(judged_by(None), adjudication.c.id.in_(decisions()))
    final: dict[str, str] = dict(tuple(row) for row in connection.execute(decided))
    alike = alike_slots(connection, study)
    query = sa.select(item.c.sha256, item.c.topic, sa.cast(item.c.gold, sa.Text), sa.cast(prompt.c.meta, sa.Text))
    query = query.select_from(item).join(prompt).where(*in_study(study, None))
    found = {}
    for name, topic, gold, meta in connection.execute(query):
        subject = Subject(
            topic or topic_in(json.loads(meta)), nested(gold or final.get(name)), frozenset(alike.get(name, ()))
        )
        if subject != Subject():
            found[name] = subject
    return found


def alike_slots(connection: sa.Connection, study: str | None) -> dict[str, set[tuple[int, int]]]:
    """Of each item the pairs of slots whose answers have one text."""
    item, one, other = tables.item, tables.item_completion.alias("one"), tables.item_completion.alias("other")
    text, its = tables.completion.alias("text"), tables.completion.alias("its")
    query = sa.select(item.c.sha256, one.c.slot, other.c.slot).select_from(item)
    query = query.join(one, one.c.item_id == item.c.id).join(text, text.c.id == one.c.completion_id)
    query = query.join(other, sa.and_(other.c.item_id == item.c.id, other.c.slot > one.c.slot))
    stripped = [sa.func.trim(table.c.text, BLANKS) for table in (its, text)]
    query = query.join(its, sa.and_(its.c.id == other.c.completion_id, stripped[0] == stripped[1]))
    found: dict[str, set[tuple[int, int]]] = {}
    for name, first, second in connection.execute(query.where(*in_study(study, None))):
        found.setdefault(name, set()).add((first, second))
    return found


def topic_in(meta: Mapping[str, Any]) -> str:
    """What a prompt's meta calls its topic; "" where it says nothing of one."""
    return next((str(meta[name]) for name in TOPICS if meta.get(name)), "")


@lru_cache(10_000)
def nested(text: str | None) -> Any:
    """[[1], [0, 2]] as tuples; None of null."""
    value = None if text is None else json.loads(text)
    return value if value is None else tuple(tuple(each) if isinstance(each, list) else each for each in value)


def since_1970(at: bytes | str) -> float:
    return int.from_bytes(at, "big") / 1000 if isinstance(at, bytes) else datetime.fromisoformat(at).timestamp()
