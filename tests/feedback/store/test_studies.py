import math
from dataclasses import replace
from typing import Literal

import pytest
from sqlalchemy import select

from bridle.core.errors import DataError
from bridle.core.records import LabelerKind
from bridle.feedback.quality.votes import FIRST, UNKNOWN, read_votes
from bridle.feedback.store import tables
from bridle.feedback.store.assignment import next_task, next_tasks, submit, submit_and_ask
from bridle.feedback.store.ratings import add_model_scores
from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import (
    adjudicate,
    disagreements,
    guideline_text,
    informativeness,
    mark_items,
    publish_guideline,
    recount,
    set_gold,
    set_priorities,
    set_study,
    studies,
    uniform,
)
from tests.feedback.sample import Sample
from tests.feedback.store.test_assignment import STUDY, answer, opened


def entropy(p: float) -> float:
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def test_informativeness_by_hand() -> None:
    assert informativeness([[0.5, 0.5]]) == 1
    assert informativeness([[math.log(3), 0.0]]) == pytest.approx(entropy(0.75))
    assert informativeness([[math.log(3), 0.0], [0.0, math.log(3)]]) == pytest.approx(1)  # two that disagree
    assert informativeness([[math.log(3), 0.0], [0.0, 0.0]]) == pytest.approx(entropy(0.625))
    assert informativeness([[1e9, 0.0]]) == 0 and informativeness([[1.0]]) == 0
    three = informativeness([[math.log(3), 0.0, 0.0]])
    assert three == pytest.approx((2 * entropy(0.75) + 1) / 3)


def test_items_are_ordered_by_what_reward_models_make_of_their_answers(any_store: Store) -> None:
    items = opened(any_store, 4)
    mark_items(any_store, STUDY, items)
    answers = [item.completions for item in any_store.items(study=STUDY)]
    for weights, gaps in (("a" * 64, (3.0, 1.0, 0.1)), ("b" * 64, (3.0, -2.0, 0.2))):
        pairs = [(pair[0], gap) for pair, gap in zip(answers, gaps, strict=False)]
        pairs += [(pair[1], 0.0) for pair in answers[:3]]
        chosen, scores = zip(*pairs, strict=True)
        assert add_model_scores(any_store, chosen, weights, "reward", scores) == 6
        assert add_model_scores(any_store, chosen, weights, "reward", scores) == 0
    set_study(any_store, STUDY, {"random_share": 0.0})
    assert set_priorities(any_store, STUDY) == 3
    query = select(tables.item.c.priority).order_by(tables.item.c.id)
    with any_store.reading() as connection:
        clear, disputed, close, unknown = connection.execute(query).scalars()
    assert close > disputed > clear > unknown == 0
    assert clear == pytest.approx(entropy(1 / (1 + math.exp(-3))))
    task = next_task(any_store, STUDY, "anna")
    assert task is not None and task.item.id == items[2]


def test_a_random_sample_is_chosen_by_hash_alone(any_store: Store) -> None:
    items = opened(any_store, 100, random_share=0.3)
    mark_items(any_store, STUDY, items)
    with any_store.reading() as connection:
        rows = connection.execute(select(tables.item)).all()
    expected = {item for item in items if uniform("random", item) < 0.3}
    assert {row.sha256 for row in rows if row.acquisition == "random"} == expected
    assert {row.acquisition for row in rows} == {"random", "informative"}
    with pytest.raises(DataError, match="part of the random sample"):
        set_gold(any_store, min(expected), [[0], [1]], by="owner")


def test_settings_are_kept_checked_and_changed(any_store: Store, sample: Sample) -> None:
    first = set_study(any_store, STUDY, {"overlap": 3, "topics": {"medicine": ["anna"]}})
    assert first.settings.seed and set_study(any_store, "second", {}).settings.seed != first.settings.seed
    changed = set_study(any_store, STUDY, {"gold_rate": 0.1}, state="paused")
    assert changed.settings == first.settings.model_copy(update={"gold_rate": 0.1})
    assert studies(any_store) == [changed, studies(any_store)[1]]
    for wrong, words in (({"overlap": 0}, "'overlap'"), ({"overlaps": 2}, "'overlaps'"), ({"gold_rate": 1.0}, "less")):
        with pytest.raises(DataError, match=words):
            set_study(any_store, STUDY, wrong)
    with pytest.raises(DataError, match="has no study 'third'"):
        next_task(any_store, "third", "anna")


def test_more_people_are_asked_where_the_overlap_grows_or_one_is_excluded(any_store: Store) -> None:
    opened(any_store, 1)
    task = next_task(any_store, STUDY, "anna")
    submit(any_store, STUDY, [answer(task)])
    assert next_task(any_store, STUDY, "bo") is None
    any_store.exclude("labeler", "anna", reason="test", by="owner")
    recount(any_store, STUDY)
    task = next_task(any_store, STUDY, "bo")
    submit(any_store, STUDY, [answer(task)])
    assert next_task(any_store, STUDY, "cy") is None
    set_study(any_store, STUDY, {"overlap": 2})
    assert next_task(any_store, STUDY, "cy") is not None


def test_what_was_judged_before_its_study_opened_counts(any_store: Store, sample: Sample) -> None:
    items = sample.fill(any_store)
    before = sample.judgement(items[0], "before", labeler="anna")
    any_store.add_judgements([replace(before, labeler_kind=LabelerKind.PERSON)])
    set_study(any_store, STUDY, {"overlap": 2, "gold_rate": 0.0})
    given = []
    task = next_task(any_store, STUDY, "anna")
    while task is not None:
        given.append(task.item.id)
        _, task = submit_and_ask(any_store, STUDY, [answer(task)])
    assert sorted(given) == sorted(items[1:])
    second = next_task(any_store, STUDY, "anna")
    assert second is None
    again = replace(before, labeler_kind=LabelerKind.PERSON, ranking=((0,), (1, 2, 3)), submission_key="after")
    assert submit(any_store, STUDY, [again])[0].display_order == (3, 0, 2, 1)


def test_guidelines_have_versions_that_stay(any_store: Store) -> None:
    opened(any_store, 3)
    assert publish_guideline(any_store, STUDY, {"en": "Be fair.", "zh": "公平"}) == 1
    assert publish_guideline(any_store, STUDY, {"en": "Be fair.", "zh": "公平"}) == 1
    task = next_task(any_store, STUDY, "anna", lang="zh")
    assert task is not None and guideline_text(any_store, str(task.guideline)) == "公平"
    assert publish_guideline(any_store, STUDY, {"en": "Be very fair.", "zh": "很公平"}) == 2
    shown = replace(answer(task), guideline=task.guideline)  # the one that they saw
    (stored,), following = submit_and_ask(any_store, STUDY, [shown], lang="en")
    assert stored.guideline == task.guideline and following is not None
    assert guideline_text(any_store, str(following.guideline)) == "Be very fair."
    (stored,) = submit(any_store, STUDY, [answer(following)])
    assert guideline_text(any_store, str(stored.guideline)) in ("Be very fair.", "很公平")
    with pytest.raises(DataError, match="has no guideline"):
        guideline_text(any_store, "0" * 64)


def test_disagreements_are_listed_until_somebody_decides(any_store: Store) -> None:
    items = opened(any_store, 3, overlap=2)
    for name in ("anna", "bo"):
        for _ in items:
            task = next_task(any_store, STUDY, name)
            assert task is not None
            best = int(name == "bo" and task.item.id != items[0])
            submit(any_store, STUDY, [answer(task, best)])
    found = disagreements(any_store, STUDY)
    assert {item.id for item, _ in found} == set(items[1:])
    assert [[one.labeler for one in judged] for _, judged in found] == [["anna", "bo"]] * 2
    decided = replace(found[0][1][0], labeler="cy", submission_key="final")
    adjudicate(any_store, decided)
    assert [item.id for item, _ in disagreements(any_store, STUDY)] == [found[1][0].id]
    final = [one for item, one in any_store.judgements() if item.id == found[0][0].id]
    assert final == [decided]
    set_study(any_store, STUDY, {"overlap": 3})
    asked = {task.item.id for task in next_tasks(any_store, STUDY, "dan", 3)}
    assert asked == set(items) - {found[0][0].id}  # what was decided is asked of nobody else
    with any_store.reading() as connection:
        assert "adjudicate" in connection.execute(select(tables.audit.c.action)).scalars().all()


def test_gold_is_checked(any_store: Store) -> None:
    (item,) = opened(any_store, 1, slots=3)
    with pytest.raises(DataError, match="each slot"):
        set_gold(any_store, item, [[0], [1]], by="owner")
    with pytest.raises(DataError, match="is not in the store"):
        set_gold(any_store, "0" * 64, [[0], [1]], by="owner")
    set_gold(any_store, item, [[0], [2, 1]], by="owner")
    with any_store.reading() as connection:
        row = connection.execute(select(tables.item)).one()
        assert (row.gold, row.acquisition) == ([[0], [2, 1]], "gold")
        audit = connection.execute(select(tables.audit).order_by(tables.audit.c.id.desc())).first()
        assert audit is not None and (audit.actor, audit.action, audit.object) == ("owner", "gold", item)


@pytest.mark.parametrize("gone", ["labeler", "judgement"])
def test_a_decision_falls_with_its_adjudicator(any_store: Store, gone: Literal["labeler", "judgement"]) -> None:
    (item,) = opened(any_store, 1, overlap=3)
    for labeler, best in (("anna", 0), ("bo", 1)):
        submit(any_store, STUDY, [answer(next_task(any_store, STUDY, labeler), best)])
    decided = replace(any_store.judgements()[0][1], labeler="cy", submission_key="final")
    adjudicate(any_store, decided)
    assert [one.labeler for _, one in any_store.judgements()] == ["cy"]
    assert read_votes(any_store).gold_U.tolist() == [FIRST] and next_task(any_store, STUDY, "dan") is None
    target = "cy" if gone == "labeler" else decided.id
    any_store.exclude(gone, target, reason="misread the guideline", by="owner")
    assert [one.labeler for _, one in any_store.judgements()] == ["anna", "bo"]
    assert read_votes(any_store).gold_U.tolist() == [UNKNOWN]
    assert [found.id for found, _ in disagreements(any_store, STUDY)] == [item]
    if gone == "labeler":
        recount(any_store, STUDY)
        assert next_task(any_store, STUDY, "dan") is not None


def test_a_decision_that_is_taken_back_leaves_what_others_said(any_store: Store) -> None:
    opened(any_store, 1, overlap=2)
    for labeler, best in (("anna", 0), ("bo", 1)):
        submit(any_store, STUDY, [answer(next_task(any_store, STUDY, labeler), best)])
    decided = replace(any_store.judgements()[0][1], labeler="cy", submission_key="final")
    adjudicate(any_store, decided)
    any_store.correct(replace(decided, ranking=((1,), (0,)), submission_key="changed"), supersedes=decided.id)
    assert [one.labeler for _, one in any_store.judgements()] == ["anna", "bo", "cy"]
    assert read_votes(any_store).gold_U.tolist() == [UNKNOWN]
