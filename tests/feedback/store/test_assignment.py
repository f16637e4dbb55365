import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Executable, event, func, select

from bridle.core.errors import DataError
from bridle.core.records import Completion, Judgement, LabelerKind, Prompt
from bridle.feedback.people import at_work
from bridle.feedback.people.at_work import note_first_seen, own_judgements, return_task, save_draft, study_progress
from bridle.feedback.store import assignment, tables
from bridle.feedback.store import driver as driver_module
from bridle.feedback.store.assignment import (
    Asked,
    begun_item,
    display_order,
    earlier_answers,
    fresh_item,
    gold_items,
    items_asked,
    next_task,
    next_tasks,
    submit,
    submit_and_ask,
    tasks_asked,
    tasks_held,
)
from bridle.feedback.store.driver import driver
from bridle.feedback.store.rows import now
from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import (
    describe_items,
    find_study,
    items_counted,
    mark_items,
    sample_judgements,
    set_gold,
    set_study,
)
from tests.feedback.sample import Sample

STUDY = "first"
PLAIN = {"seed": "a", "gold_rate": 0.0, "random_share": 0.0}


def opened(store: Store, count: int, slots: int = 2, **settings: Any) -> list[str]:
    """A study of so many items."""
    prompts = [Prompt.from_text(f"Question {n}?") for n in range(count)]
    groups = [[Completion(prompt.id, f"Answer {slot}") for slot in range(slots)] for prompt in prompts]
    store.add_prompts(prompts, split="train", source="test")
    store.add_completions([answer for group in groups for answer in group], source="sample")
    items = store.add_items(groups, study=STUDY)
    set_study(store, STUDY, PLAIN | settings)
    return items


def answer(task: Asked | None, best: int = 0, key: str = "", **fields: Any) -> Judgement:
    assert task is not None
    rest = tuple(slot for slot in range(len(task.item.completions)) if slot != best)
    key = key or f"{task.assignment}/{best}"
    return Judgement(
        task.item.id, task.labeler, LabelerKind.PERSON, ((best,), rest), None, submission_key=key, **fields
    )


def change_items(store: Store, items: Sequence[str], **values: Any) -> None:
    with store.writing() as connection:
        connection.execute(tables.item.update().where(tables.item.c.sha256.in_(items)).values(**values))


def address(store: Store) -> str:
    return store._engine.url.render_as_string(hide_password=False)


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    at = datetime.fromisoformat(now()) + timedelta(seconds=seconds)
    monkeypatch.setattr(assignment, "now", lambda: at.isoformat(timespec="milliseconds"))


def test_sixteen_people_at_once_share_the_places(any_store: Store) -> None:
    """Each item is given to exactly three, nobody twice, and nobody is refused."""
    items = opened(any_store, 40, overlap=3)
    errors: list[BaseException] = []
    start = threading.Barrier(16)

    def work(labeler: str) -> None:
        try:
            with Store.open(address(any_store)) as own:
                start.wait()
                task = next_task(own, STUDY, labeler)
                while task is not None:
                    _, task = submit_and_ask(own, STUDY, [answer(task)])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"person {n}",)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    judged = Counter((item.id, one.labeler) for item, one in any_store.judgements(study=STUDY))
    assert set(judged.values()) == {1}
    assert Counter(item for item, _ in judged) == dict.fromkeys(items, 3)
    with any_store.reading() as connection:
        assert connection.execute(select(func.count()).select_from(tables.assignment)).scalar() == 120


def test_held_places_count(any_store: Store) -> None:
    opened(any_store, 2, overlap=2)
    tasks = [next_task(any_store, STUDY, name) for name in "abcde"]
    assert tasks[4] is None
    assert sorted(Counter(task.item.id for task in tasks if task).values()) == [2, 2]


def test_a_task_is_the_same_until_it_is_answered(any_store: Store) -> None:
    opened(any_store, 5, slots=4)
    task = next_task(any_store, STUDY, "anna")
    assert task == next_task(any_store, STUDY, "anna")
    with Store.open(address(any_store)) as other:
        assert task == next_task(other, STUDY, "anna")
    assert task is not None and task.display_order == display_order(STUDY, task.item.id, "anna", 4)
    (stored,), following = submit_and_ask(any_store, STUDY, [answer(task)])
    assert stored.display_order == task.display_order
    assert following is not None and following.item.id != task.item.id


def test_orders_of_display_are_fixed_for_ever_and_fair() -> None:
    assert [display_order("s", "item", name, 4) for name in ("anna", "bo")] == [(3, 0, 2, 1), (1, 3, 2, 0)]
    orders = Counter(display_order("s", f"item {n}", "anna", 3) for n in range(3000))
    assert len(orders) == 6 and all(400 < count < 600 for count in orders.values())


def test_an_order_that_was_not_displayed_is_refused(store: Store) -> None:
    opened(store, 1)
    task = next_task(store, STUDY, "anna")
    assert task is not None
    wrong = replace(answer(task), display_order=task.display_order[::-1])
    with pytest.raises(DataError, match="was displayed in the order"):
        submit(store, STUDY, [wrong])
    with pytest.raises(DataError, match="never asked them"):
        submit(store, STUDY, [replace(answer(task), labeler="bo", display_order=None)])
    assert store.judgements() == []


def test_a_lease_that_ends_frees_its_place_and_the_late_answer_counts(
    any_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (item,) = opened(any_store, 1, lease_seconds=60)
    task = next_task(any_store, STUDY, "anna")
    assert next_task(any_store, STUDY, "bo") is None
    later(monkeypatch, 61)
    second = next_task(any_store, STUDY, "bo")
    assert second is not None and second.item.id == item
    assert next_task(any_store, STUDY, "anna") is None  # her place is taken
    (late,) = submit(any_store, STUDY, [answer(task)])
    (right,) = submit(any_store, STUDY, [answer(second)])
    assert (late.marks, right.marks) == (("late",), ())
    assert [one for _, one in any_store.judgements(study=STUDY)] == [late, right]


def test_a_lease_that_ended_is_given_again_to_the_same_person_in_the_same_order(
    any_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(any_store, 1, slots=4, lease_seconds=60)
    task = next_task(any_store, STUDY, "anna")
    later(monkeypatch, 61)
    again = next_task(any_store, STUDY, "anna")
    assert task is not None and again is not None and again.lease_until > task.lease_until
    assert replace(again, lease_until=task.lease_until) == task
    assert next_task(any_store, STUDY, "bo") is None
    assert submit(any_store, STUDY, [answer(again)])[0].marks == ()


def test_an_answer_sent_again_is_one_row_and_the_same_reply(any_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(any_store, 3, lease_seconds=60)
    task = next_task(any_store, STUDY, "anna")
    first = submit_and_ask(any_store, STUDY, [answer(task)])
    assert submit_and_ask(any_store, STUDY, [answer(task)]) == first
    submit(any_store, STUDY, [answer(task, best=1)])
    later(monkeypatch, 61)
    assert submit(any_store, STUDY, [answer(task)]) == first[0]
    assert [one.ranking[0] for _, one in any_store.judgements()] == [(1,)]
    with pytest.raises(DataError, match="came before with another answer"):
        submit(any_store, STUDY, [answer(task, best=1, key=answer(task).submission_key)])


def test_a_second_answer_supersedes_the_first(any_store: Store) -> None:
    opened(any_store, 2)
    task = next_task(any_store, STUDY, "anna")
    for best, key in ((0, "1"), (1, "2"), (0, "3")):
        submit(any_store, STUDY, [answer(task, best, key)])
    assert [one.submission_key for _, one in any_store.judgements()] == ["3"]
    assert [one.submission_key for _, one in own_judgements(any_store, STUDY, "anna")] == ["3"]
    assert any_store.counts()["judgements"] == {"person": 3}
    unkeyed = replace(answer(task, 1), submission_key="")
    submit(any_store, STUDY, [unkeyed, answer(task, 0, "4")])
    with pytest.raises(DataError, match="give the correction a submission key"):
        submit(any_store, STUDY, [unkeyed])


def test_criteria_are_part_of_one_answer(any_store: Store) -> None:
    opened(any_store, 1)
    task = next_task(any_store, STUDY, "anna")
    harmless = answer(task, 1, "harmless", criterion="harmless")
    submit(any_store, STUDY, [answer(task), harmless])
    submit(any_store, STUDY, [replace(harmless, submission_key="again", ranking=((0,), (1,)))])
    assert [one.ranking[0] for _, one in any_store.judgements()] == [(0,)]
    assert [one.ranking[0] for _, one in any_store.judgements_by("harmless")] == [(0,)]


def test_a_skip_leaves_the_place_to_another_and_does_not_come_back(any_store: Store) -> None:
    opened(any_store, 1)
    task = next_task(any_store, STUDY, "anna")
    assert task is not None
    skip = Judgement(task.item.id, "anna", LabelerKind.PERSON, (), None, outcome="skip", submission_key="s")
    assert submit_and_ask(any_store, STUDY, [skip])[1] is None
    second = next_task(any_store, STUDY, "bo")
    assert second is not None
    return_task(any_store, "bo", second.item.id)
    assert next_task(any_store, STUDY, "bo") is None
    assert submit(any_store, STUDY, [answer(second)])[0].marks == ("late",)
    assert next_task(any_store, STUDY, "cy") is None
    assert study_progress(any_store, STUDY) == ({"done": 1}, {"anna": {"returned": 1}, "bo": {"done": 1}})


def test_a_draft_comes_back_until_there_is_an_answer(any_store: Store) -> None:
    opened(any_store, 1)
    task = next_task(any_store, STUDY, "anna")
    assert task is not None and task.draft is None
    for text in ("hm", "ah"):
        save_draft(any_store, "anna", task.item.id, {"why": text})
    again = next_task(any_store, STUDY, "anna")
    assert again is not None and again.draft == {"why": "ah"}
    note_first_seen(any_store, "anna", task.item.id)
    (stored,) = submit(any_store, STUDY, [answer(task)])
    assert stored.wall_seconds is not None and stored.wall_seconds >= 0
    with any_store.reading() as connection:
        assert connection.execute(select(tables.draft)).all() == []
    with pytest.raises(DataError, match="was never given item"):
        save_draft(any_store, "bo", task.item.id, {})


def test_gold_is_mixed_in_at_its_rate_and_looks_like_the_rest(any_store: Store) -> None:
    items = opened(any_store, 220, gold_rate=0.2)
    gold = set(items[:60])
    with any_store.transaction() as one:
        for item in gold:
            set_gold(one, item, [[0], [1]], by="owner")
    tasks, others = ([t.item.id for t in next_tasks(any_store, STUDY, name, 100)] for name in ("anna", "bo"))
    assert len(set(tasks)) == len(set(others)) == 100
    mine, theirs = ([item for item in given if item in gold] for given in (tasks, others))
    assert 8 < len(mine) < 32 and 8 < len(theirs) < 32
    assert mine[:8] != theirs[:8]  # each in an order of their own
    shown = next_tasks(any_store, STUDY, "anna", 100)
    assert "gold" not in json.dumps([asdict(task) for task in shown], default=str)


def test_gold_alone_is_no_work(store: Store) -> None:
    items = opened(store, 2, gold_rate=0.0)
    set_gold(store, items[0], [[0], [1]], by="owner")
    task = next_task(store, STUDY, "anna")
    assert submit_and_ask(store, STUDY, [answer(task)])[1] is None


def test_whoever_is_new_is_given_gold_first(any_store: Store) -> None:
    items = opened(any_store, 10, qualification=3, overlap=2)
    for item in items[:5]:
        set_gold(any_store, item, [[0], [1]], by="owner")
    task, given = next_task(any_store, STUDY, "anna"), []
    while task is not None:
        given.append(task.item.id in items[:5])
        _, task = submit_and_ask(any_store, STUDY, [answer(task)])
    assert given == [True] * 3 + [False] * 5
    at_once = next_tasks(any_store, STUDY, "bo", 5)
    assert sum(one.item.id in items[:5] for one in at_once) == 3


def test_what_teaches_most_comes_first_beside_a_random_sample(any_store: Store) -> None:
    items = opened(any_store, 200, random_share=0.25)
    mark_items(any_store, STUDY, items)
    mark_items(any_store, STUDY, items)  # changes nothing
    with any_store.reading() as connection:
        rows = connection.execute(select(tables.item.c.sha256, tables.item.c.acquisition, tables.item.c.priority))
        known = {row.sha256: row for row in rows}
    sample = [item for item in items if known[item].acquisition == "random"]
    assert 30 < len(sample) < 70
    for place, item in enumerate(items):
        change_items(any_store, {item} - set(sample), priority=place)
    tasks = [task.item.id for task in next_tasks(any_store, STUDY, "anna", 80)]
    taught = [item for item in tasks if item not in sample]
    drawn = [item for item in tasks if item in sample]
    assert taught == [item for item in reversed(items) if item not in sample][: len(taught)]
    assert drawn == sorted(sample, key=lambda item: -known[item].priority)[: len(drawn)]
    assert 10 < len(drawn) < 32
    submit(any_store, STUDY, [answer(task) for task in next_tasks(any_store, STUDY, "anna", 80)])
    judged = sample_judgements(any_store, STUDY)
    assert {item.id for item, _ in judged} == set(drawn)


def test_an_item_of_a_topic_is_for_those_who_may_judge_it(any_store: Store) -> None:
    items = opened(any_store, 2, topics={"medicine": ["anna"]}, overlap=2)
    describe_items(any_store, items[:1], topic="medicine")
    describe_items(any_store, items[1:], topic="cooking")
    change_items(any_store, items[:1], priority=1)
    task = next_task(any_store, STUDY, "anna")
    other = next_task(any_store, STUDY, "bo")
    assert task is not None and other is not None
    assert (task.item.id, other.item.id) == tuple(items)
    set_study(any_store, STUDY, {"topics": {"medicine": []}})
    (stored,) = submit(any_store, STUDY, [answer(task)])
    assert stored.marks == ("unskilled",)
    assert any_store.judgements() == [] and any_store.counts()["judgements"] == {"person": 1}


def test_an_item_may_need_more_people_than_its_study_says(any_store: Store) -> None:
    items = opened(any_store, 2)
    describe_items(any_store, items[:1], need=2)
    with pytest.raises(DataError, match="at least 1"):
        describe_items(any_store, items, need=0)
    tasks = [next_task(any_store, STUDY, name) for name in "abcd"]
    assert Counter(task.item.id for task in tasks if task) == {items[0]: 2, items[1]: 1}


def test_what_was_excluded_is_not_asked(any_store: Store) -> None:
    items = opened(any_store, 5)
    first = any_store.items(study=STUDY)[1]
    any_store.exclude("item", items[0], reason="test", by="owner")
    any_store.exclude("prompt", first.prompt.id, reason="test", by="owner")
    any_store.exclude("completion", any_store.items(study=STUDY)[2].completions[1].id, reason="test", by="owner")
    assert {task.item.id for task in next_tasks(any_store, STUDY, "anna", 5)} == set(items[3:])


def test_what_was_excluded_while_somebody_holds_it_is_not_asked_again(any_store: Store) -> None:
    items = opened(any_store, 3)
    first = next_task(any_store, STUDY, "anna")
    assert first is not None
    any_store.exclude("completion", first.item.completions[1].id, reason="private", by="owner")
    second = next_task(any_store, STUDY, "anna")
    assert second is not None and second.item.id in set(items) - {first.item.id}


def test_who_is_excluded_is_asked_nothing(any_store: Store) -> None:
    opened(any_store, 2)
    assert next_task(any_store, STUDY, "anna") is not None
    any_store.exclude("labeler", "anna", reason="spam", by="owner")
    assert next_task(any_store, STUDY, "anna") is None and next_task(any_store, STUDY, "bo") is not None


def test_a_study_that_is_paused_asks_nothing_and_keeps_answers(any_store: Store) -> None:
    opened(any_store, 2)
    task = next_task(any_store, STUDY, "anna")
    set_study(any_store, STUDY, {}, state="paused")
    assert next_task(any_store, STUDY, "anna") is None
    stored, following = submit_and_ask(any_store, STUDY, [answer(task)])
    assert following is None and [one for _, one in any_store.judgements()] == stored


def test_many_at_once_give_the_same_rows(store: Store, sample: Sample) -> None:
    opened(store, 30, overlap=2)
    for name in ("anna", "bo"):
        tasks = next_tasks(store, STUDY, name, 40, kind=LabelerKind.SIMULATED)
        assert len(tasks) == 30 and next_tasks(store, STUDY, name, 40) == tasks
        stored = submit(store, STUDY, [replace(answer(task), labeler_kind=LabelerKind.SIMULATED) for task in tasks])
        assert [one.display_order for one in stored] == [task.display_order for task in tasks]
    assert study_progress(store, STUDY) == ({"done": 30}, {"anna": {"done": 30}, "bo": {"done": 30}})
    assert len(store.judgements(study=STUDY)) == 60


ASKED_ITEMS = "SEARCH item USING INDEX ix_item_asked (study=? AND state=? AND acquisition=?)"


@pytest.mark.parametrize(
    ("query", "first"),
    [
        (fresh_item("informative"), ASKED_ITEMS),
        (fresh_item(None), ASKED_ITEMS),
        (gold_items(), ASKED_ITEMS),
        (begun_item(), "SEARCH item USING INDEX ix_item_turn (study=? AND turn>?)"),
        (tasks_held(), "SEARCH assignment USING INDEX ix_assignment_state (state=? AND labeler=?)"),
        (items_asked(), "SEARCH item USING INDEX sqlite_autoindex_item_1 (sha256=?)"),
        (tasks_asked(), "SEARCH assignment USING INDEX sqlite_autoindex_assignment_1 (item_id=? AND labeler=?)"),
        (earlier_answers(), "SEARCH judgement USING INDEX ix_judgement_item_sha256 (item_sha256=?)"),
        (items_counted(named=True), "SEARCH item USING INTEGER PRIMARY KEY (rowid=?)"),
    ],
)
def test_no_claim_and_no_answer_reads_or_sorts_all_of_a_table(store: Store, query: Executable, first: str) -> None:
    ran: list[tuple[str, Any]] = []

    @event.listens_for(store._engine, "before_cursor_execute")
    def note(_connection: object, _cursor: object, statement: str, values: object, *_: object) -> None:
        ran.append((statement, values))

    bound = {
        "labeler": "a",
        "study": STUDY,
        "at": now(),
        "overlap": 1,
        "barred": ["x"],
        "count": 1,
        "passed": 0,
        "numbers": [1],
    }
    with store.writing() as connection:
        connection.execute(
            query, bound | {"items": [1] if query is items_counted(named=True) else ["i"], "labelers": ["a"]}
        )
        statement, values = ran[-1]
        plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]
    assert plan[0] == first
    assert [step for step in plan if "SCAN" in step or "TEMP B-TREE" in step] == []


def test_who_takes_an_answer_back_and_skips_leaves_the_place(any_store: Store) -> None:
    opened(any_store, 1)
    task = next_task(any_store, STUDY, "anna")
    submit(any_store, STUDY, [answer(task)])
    assert study_progress(any_store, STUDY)[0] == {"done": 1} and next_task(any_store, STUDY, "bo") is None
    submit(any_store, STUDY, [replace(answer(task, key="by"), ranking=(), outcome="skip", criterion="harmless")])
    assert study_progress(any_store, STUDY) == ({"done": 1}, {"anna": {"done": 1}})
    submit(any_store, STUDY, [replace(answer(task, key="back"), ranking=(), outcome="skip")])
    assert study_progress(any_store, STUDY)[0] == {"open": 1} and not any_store.judgements()
    submit(any_store, STUDY, [answer(next_task(any_store, STUDY, "bo"))])
    assert study_progress(any_store, STUDY)[0] == {"done": 1} and next_task(any_store, STUDY, "anna") is None


def test_a_clock_that_goes_back_makes_no_negative_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(store, 1)
    task = next_task(store, STUDY, "anna")
    assert task is not None
    with monkeypatch.context() as later:
        later.setattr(at_work, "now", lambda: "2999-01-01T00:00:00.000+00:00")
        note_first_seen(store, "anna", task.item.id)
    assert submit(store, STUDY, [answer(task)])[0].wall_seconds == 0


def test_no_answer_is_refused_and_an_odd_state(store: Store) -> None:
    opened(store, 1)
    with pytest.raises(DataError, match="at least one judgement"):
        submit_and_ask(store, STUDY, [])
    with pytest.raises(DataError, match="'shut'; it is open, paused, closed"):
        set_study(store, STUDY, {}, state="shut")


def looked_at(store: Store, call: Callable[[], object]) -> int:
    """Rows that PostgreSQL reads for a call, or steps of SQLite's machine: no clock has a part in it."""
    steps = 0
    if store._engine.dialect.name == "sqlite":

        def count() -> None:
            nonlocal steps
            steps += 1

        with store.reading() as connection:  # of the pool's one connection, which the call uses next
            driver(connection).set_progress_handler(count, 10)
        call()
        with store.reading() as connection:
            driver(connection).set_progress_handler(None, 0)
        return steps

    def rows() -> int:
        with store.writing() as connection:
            connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
        with store.writing() as connection:
            connection.exec_driver_sql("SELECT pg_stat_clear_snapshot()")
            read = "coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)"
            query = f"SELECT sum({read}) FROM pg_stat_user_tables WHERE schemaname = current_schema()"
            return int(connection.exec_driver_sql(query).scalar_one())

    before = rows()
    call()
    return rows() - before


@pytest.mark.parametrize("overlap", [1, 2])
def test_a_claim_looks_at_as_much_however_much_was_judged_and_waits(any_store: Store, overlap: int) -> None:
    """Anna is ahead of all others, so that with overlap 2 all that she judged waits."""
    opened(any_store, 1_100, overlap=overlap)
    seen: dict[int, list[int]] = {}
    for judged in (100, 1_000):
        while (done := study_progress(any_store, STUDY)[1].get("anna", {}).get("done", 0)) < judged:
            tasks = next_tasks(any_store, STUDY, "anna", min(judged - done, 100))
            submit(any_store, STUDY, [answer(task) for task in tasks])
        task = next_task(any_store, STUDY, "anna")

        def judge() -> None:
            nonlocal task
            _, task = submit_and_ask(any_store, STUDY, [answer(task)])

        judge()
        seen[judged] = sorted(looked_at(any_store, judge) for _ in range(5))
    assert max(seen[1_000]) < 2 * max(seen[100]) + 50, seen


def test_an_item_that_was_asked_is_found_by_its_hash_and_not_in_its_study(any_store: Store) -> None:
    """Of tables that grew since PostgreSQL last looked at them it takes any index that fits, such as that of a study's items."""
    opened(any_store, 400)
    tasks = next_tasks(any_store, STUDY, "anna", 20)
    study = find_study(any_store, STUDY)
    assert study is not None
    found = []
    seen = looked_at(any_store, lambda: found.append(at_work.given_task(any_store, study, "anna", tasks[5].item.id)))
    assert found[0] is not None and found[0].item == tasks[5].item and seen < 2_000
    assert at_work.given_task(any_store, replace(study, name="other"), "anna", tasks[5].item.id) is None


def test_an_answer_with_its_next_task_takes_few_statements(any_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(any_store, 6)
    task = next_task(any_store, STUDY, "anna")
    raw, asked = driver_module.driver, list[str]()

    class Counted:
        def __init__(self, connection: Any) -> None:
            self.connection = connection

        def execute(self, statement: str, *values: Any) -> Any:
            asked.append(statement)
            return self.connection.execute(statement, *values)

        def cursor(self) -> Any:
            asked.append("an insertion")
            return self.connection.cursor()

    monkeypatch.setattr(driver_module, "driver", lambda connection: Counted(raw(connection)))
    event.listen(any_store._engine, "before_cursor_execute", lambda *call: asked.append(call[2]))
    for _ in range(3):
        asked.clear()
        _, task = submit_and_ask(any_store, STUDY, [answer(task)])
        assert task is not None and len(asked) <= 24, asked
