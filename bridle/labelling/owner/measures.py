"""What an owner is shown of a study's labels: their quality, how many came when, and what they cost.

That takes seconds where there are many judgements. So it is kept until a judgement is added or an owner changes something, and what took
long is kept a while longer: new judgements come every second then, and no number changes by one of them.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import fmean, median
from typing import Generic, TypeVar

from bridle.core.errors import DataError
from bridle.feedback.people.overview import (
    ItemRow,
    StudyProgress,
    TimedJudgement,
    find_items,
    given_judgements,
    state_of_labels,
    study_counts,
)
from bridle.feedback.quality.agreement import Period, agreement_over_time
from bridle.feedback.quality.groups import GroupQuality, group_quality
from bridle.feedback.quality.summary import Quality, quality_of
from bridle.feedback.quality.votes import read_votes
from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import StudySettings, find_study
from bridle.recipe.services import LabelSection

T = TypeVar("T")
QUICK = 0.5  # seconds; what takes less is as new as can be
KEPT_TIMES = 20  # so many times as long as it took it is shown
MOST_DAYS = 42


@dataclass(frozen=True)
class Measures:
    """`quality` is None where nobody judged yet. `days`: of each day in UTC how many judgements were given, without a gap."""

    quality: Quality | None
    periods: Sequence[Period]
    groups: Sequence[GroupQuality]
    days: Sequence[tuple[str, int]]
    last_seen: dict[str, str]
    pieces: int
    seconds: float  # of all judgements whose time is known
    mean_seconds: float | None
    median_seconds: float | None
    at: str


@dataclass(frozen=True)
class Cost:
    """`by` "piece" or "hour", in whatever currency the price is in; None where no price is set, or no time is known."""

    by: str
    price: float
    one: float
    spent: float
    to_go: float


def measure(store: Store, study: str) -> Measures:
    given = given_judgements(store, study)
    known = [one.seconds for one in given if one.seconds is not None]
    try:
        votes = read_votes(store, study)
    except DataError:  # nobody judged
        quality, periods, groups = None, list[Period](), list[GroupQuality]()
    else:
        quality, periods = quality_of(votes), agreement_over_time(votes)
        groups = group_quality(store, study, votes)
    return Measures(
        quality=quality,
        periods=periods,
        groups=groups,
        days=by_day(given),
        last_seen={one.labeler: moment_of(one.at) for one in given},
        pieces=sum(one.counts for one in given),
        seconds=sum(known),
        mean_seconds=fmean(known) if known else None,
        median_seconds=median(known) if known else None,
        at=datetime.now(UTC).strftime("%H:%M"),
    )


def moment_of(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def by_day(given: Sequence[TimedJudgement]) -> list[tuple[str, int]]:
    """The last days up to the last judgement."""
    if not given:
        return []
    counts: dict[int, int] = {}
    for one in given:
        counts[int(one.at // 86400)] = counts.get(int(one.at // 86400), 0) + one.counts
    first, last = max(min(counts), max(counts) - MOST_DAYS + 1), max(counts)
    begin = datetime(1970, 1, 1, tzinfo=UTC)
    return [((begin + timedelta(days=day)).date().isoformat(), counts.get(day, 0)) for day in range(first, last + 1)]


@dataclass(frozen=True)
class Counts:
    """How far a study is, and the first of its disagreements."""

    progress: StudyProgress
    queue: Sequence[ItemRow]


def count(store: Store, study: str) -> Counts:
    found = find_study(store, study)
    overlap = found.settings.overlap if found else 1
    return Counts(study_counts(store, study, overlap), find_items(store, study, only="disagreed"))


class Kept(Generic[T]):
    """What was last computed of each study: by one call at a time, and never in a transaction that others wait for."""

    def __init__(self, compute: Callable[[Store, str], T]) -> None:
        self._compute, self._lock = compute, threading.Lock()
        self._kept: dict[str, tuple[tuple[int, ...], float, T]] = {}

    def of(self, store: Store, study: str, *, earlier: bool = False) -> T:
        """`earlier`: what was computed before will do, whatever happened since."""
        with self._lock:
            (last, *others), begin = state_of_labels(store), time.monotonic()
            if study in self._kept:
                before, until, found = self._kept[study]
                if earlier or (last, *others) == before or (others == [*before[1:]] and begin < until):
                    return found
            found = self._compute(store, study)
            took = time.monotonic() - begin
            self._kept[study] = ((last, *others), begin + took * (1 + KEPT_TIMES) if took > QUICK else begin, found)
            return found


def cost_of(settings: StudySettings, recipe: LabelSection | None, found: Measures, to_go: int) -> Cost | None:
    """What the judgements cost so far, and those to go, by the study's price or else the recipe's."""
    piece, hour = settings.piece_price, settings.hour_price
    if piece is None and hour is None and recipe is not None:
        piece, hour = recipe.piece_price or None, recipe.hour_price or None
    if piece is not None:
        return Cost("piece", piece, piece, piece * found.pieces, piece * to_go)
    if hour is None or found.mean_seconds is None:
        return None
    one = hour * found.mean_seconds / 3600
    return Cost("hour", hour, one, hour * found.seconds / 3600, one * to_go)
