"""What a judgement may hold comes back as it was said; who overrules whom; what a snapshot weighs; and checksums."""

import math
from dataclasses import replace

import pytest
import sqlalchemy as sa

from bridle.core.errors import DataError
from bridle.core.records import Completion, Judgement, LabelerKind, Rating
from bridle.feedback.rankings import pairs_of
from bridle.feedback.store import tables
from bridle.feedback.store.checksums import UNCOVERED, checksum, checksum_of
from bridle.feedback.store.ratings import add_ratings, ratings
from bridle.feedback.store.store import Store
from tests.feedback.sample import Sample


def whole(sample: Sample, item: str) -> Judgement:
    return replace(
        sample.judgement(item, "k"),
        strength=2,
        margin=1,
        rationale="It answers — 因为",
        lang="en",
        marks=("late",),
        wall_seconds=9,
        client={"viewport": [1, 2.5]},
    )


def test_everything_said_comes_back(any_store: Store, sample: Sample) -> None:
    item = sample.fill(any_store)[0]
    judgement = whole(sample, item)
    any_store.add_judgements([judgement])
    flag = Rating(
        sample.groups[0][1], "sim-1", LabelerKind.SIMULATED, "flag", None, criterion="private", source="study", lang="zh",
        note="a name", judgement_id=judgement.id,
    )  # fmt: skip
    add_ratings(any_store, [flag])
    ((_, found),) = any_store.judgements()
    assert found == judgement and found.client == {"viewport": [1, 2.5]}
    assert [one for _, one in ratings(any_store)] == [flag]


@pytest.mark.parametrize("outcome", ["cannot_judge", "skip"])
def test_who_cannot_judge_says_nothing_of_the_answers(store: Store, sample: Sample, outcome: str) -> None:
    items = sample.fill(store)
    told = Judgement(items[0], "sim-1", LabelerKind.SIMULATED, (), (0, 1, 2, 3), outcome=outcome)  # type: ignore[arg-type]
    assert store.add_judgements([told]) == 1 and store.add_judgements([told]) == 0
    assert store.judgements() == [] and items[0] in {item.id for item in store.unjudged_items("first")}
    assert pairs_of(store.items(study="first")[0], told) == []
    with pytest.raises(DataError, match="give one of the two"):
        store.add_judgements([replace(told, ranking=((0,), (1, 2, 3)))])
    with pytest.raises(DataError, match="each slot"):
        store.add_judgements([replace(told, outcome="")])


def test_an_adjudication_overrules_by_its_criterion_alone(any_store: Store, sample: Sample) -> None:
    store, item = any_store, sample.fill(any_store)[0]
    first, second = (sample.judgement(item, name, name, best) for best, name in enumerate(("one", "two")))
    harmless = replace(sample.judgement(item, "other", "one"), criterion="harmless")
    final, later = sample.judgement(item, "final", "chief", 3), sample.judgement(item, "later", "chief", 0)
    store.add_judgements([first, second, harmless, final, later])
    for decided in (final, later):
        with store.writing() as connection:
            row = {
                "item_sha256": item,
                "judgement_sha256": decided.id,
                "adjudicated_by": "chief",
                "created_at": "2026-01-01",
            }
            connection.execute(sa.insert(tables.adjudication), [row])
        assert [one for _, one in store.judgements()] == [decided]
    assert [one for _, one in store.judgements_by("harmless")] == [harmless]


def test_the_vote_of_one_who_may_not_judge_is_kept_and_not_in_force(store: Store, sample: Sample) -> None:
    item = sample.fill(store)[0]
    store.add_judgements([replace(sample.judgement(item, "k"), marks=("late", "unskilled"))])
    assert store.judgements() == [] and store.counts()["judgements"] == {"simulated": 1}


def test_reliability_weighs_in_a_snapshot(any_store: Store, sample: Sample) -> None:
    store, items = any_store, sample.fill(any_store)
    names = ("good", "fair", "bad")
    store.add_judgements([replace(sample.judgement(items[0], name, name), weight=2.0) for name in names])
    plain, weighed = store.take_snapshot(), store.take_snapshot(reliability={"good": 1.5, "bad": 0.0})
    assert plain.id == store.take_snapshot(reliability=dict.fromkeys(names, 1.0)).id != weighed.id
    assert store.snapshot(weighed.id) == weighed
    found = {one.labeler: one.weight for _, one in store.snapshot_judgements(weighed.id)}
    assert found == {"good": 3.0, "fair": 2.0, "bad": 0.0}
    assert sum(pair.weight for pair in store.snapshot_pairs(weighed.id)) == pytest.approx(5.0)
    assert {one.labeler: one.weight for _, one in store.snapshot_judgements(plain.id)} == dict.fromkeys(names, 2.0)


def test_a_snapshot_of_one_criterion(store: Store, sample: Sample) -> None:
    item = sample.fill(store)[0]
    store.add_judgements([sample.judgement(item, "a"), replace(sample.judgement(item, "b"), criterion="harmless")])
    (one,) = store.snapshot_judgements(store.take_snapshot(criterion="harmless").id)
    assert one[1].criterion == "harmless"
    with pytest.raises(DataError, match="criterion 'honest', so a snapshot would be empty"):
        store.take_snapshot(criterion="honest")


def test_an_excluded_answer_takes_its_items_and_ratings_along(store: Store, sample: Sample) -> None:
    items = sample.fill(store)
    store.add_judgements([sample.judgement(item, item) for item in items])
    answer = sample.groups[0][1]
    add_ratings(store, [Rating(answer, "sim-1", LabelerKind.SIMULATED, "vote", 1.0)])
    store.exclude("completion", answer.id, reason="private", by="me")
    assert {item.id for item, _ in store.judgements()} == set(items[1:])
    assert ratings(store) == [] and answer not in [one for _, one in store.completions()]
    store.exclude("prompt", sample.prompts[1].id, reason="private", by="me")
    assert sample.prompts[1] not in store.prompts() and not {one.prompt_id for _, one in store.completions()} & {
        sample.prompts[1].id
    }


def test_what_an_excluded_person_wrote_is_not_imitated(store: Store, sample: Sample) -> None:
    items = sample.fill(store)
    store.add_judgements([sample.judgement(items[0], "one", labeler="ann")])
    written = [Completion(sample.prompts[0].id, f"By {name}.") for name in ("ann", "ben")]
    for name, answer in zip(("ann", "ben"), written, strict=True):
        store.add_completions([answer], source="demonstration", author=name)
    store.exclude("labeler", "ann", reason="spam", by="me")
    assert [one for _, one in store.completions(source="demonstration")] == written[1:]


def test_a_rating_is_a_finite_number(store: Store, sample: Sample) -> None:
    sample.fill(store)
    for value in (math.inf, math.nan, True):
        with pytest.raises(DataError, match="must be a finite number"):
            add_ratings(store, [Rating(sample.groups[0][0], "ann", LabelerKind.PERSON, "score", value)])


def test_every_row_has_the_checksum_of_its_values(any_store: Store, sample: Sample) -> None:
    store, item = any_store, sample.fill(any_store)[0]
    store.add_judgements([whole(sample, item)])
    add_ratings(store, [Rating(sample.groups[0][0], "sim-1", LabelerKind.SIMULATED, "score", 3)])
    written = [Completion(prompt.id, "x") for prompt in sample.prompts]
    store.add_completions(written, source="import")
    with store.reading() as connection:
        for table in (tables.prompt, tables.completion, tables.judgement, tables.rating):
            names = sorted(column.name for column in table.c if column.name not in UNCOVERED)
            if connection.dialect.name == "sqlite":
                raw = connection.exec_driver_sql(f"SELECT checksum, {', '.join(names)} FROM {table.name}").all()
                found = [(row[0], checksum(row[1:])) for row in raw]
            else:
                found = [(row.checksum, checksum_of(row._asdict())) for row in connection.execute(sa.select(table))]
            assert found and all(stored == counted for stored, counted in found), table.name
