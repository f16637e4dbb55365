"""A store of before: everything in it is found again after the migration, by the same names, and takes less room."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError

from bridle.core.records import Completion, Judgement, LabelerKind, Prompt, Rating, content_hash
from bridle.feedback.importing.importer import import_file
from bridle.feedback.people.at_work import study_progress
from bridle.feedback.rankings import item_id
from bridle.feedback.store import database, tables
from bridle.feedback.store.assignment import next_tasks
from bridle.feedback.store.ratings import ratings
from bridle.feedback.store.store import Store
from bridle.feedback.store.types import Hash, Time, hash_bytes, time_bytes
from bridle.feedback.upkeep.verify import store_faults

WHEN = "2026-01-02T03:04:05.678+00:00"
A, B = "a" * 64, "b" * 64
OPEN = "import sys; from bridle.feedback.store.store import Store; print(len(Store.open(sys.argv[1]).judgements()))"


@contextmanager
def as_of(revision: str) -> Iterator[None]:
    """Stores are made, or brought up to date, as far as an earlier migration."""
    steps = ScriptDirectory.iterate_revisions

    def fewer(self: ScriptDirectory, upper: str, *rest: Any) -> Any:
        return steps(self, revision if upper == "head" else upper, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "iterate_revisions", fewer)
        yield


def made_before(store: Store, revision: str) -> None:
    """Make an empty database the store that an earlier version left, with data in it."""
    first = min(revision, "0002")
    with as_of(first):
        database.migrate(store._engine)
    filled(store, first)
    with as_of(revision):
        database.migrate(store._engine)


@pytest.fixture(params=["0001", "0002", "0003", "0004", "0005"])
def before(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def empty_store(any_store: Store) -> Store:
    """On both databases, without a table."""
    with any_store._engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            (schema,) = connection.exec_driver_sql("SELECT current_schema()").one()
            connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")
            connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    if any_store._engine.dialect.name == "sqlite":
        path = Path(str(any_store._engine.url.database))
        any_store.close()
        path.unlink()
        with as_of("0001"):
            return Store.open(path)
    return any_store


def filled(store: Store, revision: str) -> None:
    """One pair with its judgement, a vote, an exclusion and a snapshot, written as rows of before."""
    prompt = Prompt.from_text("Why?")
    answers = sorted((Completion(prompt.id, text) for text in ("Because.", "No.")), key=lambda answer: answer.id)
    item = item_id(answers, "import")
    key = content_hash([item, 0])
    said = Judgement(item, "import", LabelerKind.IMPORTED, ((0,), (1,)), None, "import", key)
    vote = Rating(answers[0], A, LabelerKind.IMPORTED, "vote", 1)
    query = {"split": "train", "study": None}
    taken = content_hash([query, [said.id]])
    rows = {
        "labeler": [{"handle": "import", "kind": "imported"}, {"handle": A, "kind": "imported"}]
        + [{"handle": B, "kind": "imported"}],
        "prompt": [
            {"sha256": prompt.id, "messages": '[{"role":"user","content":"Why?"}]', "meta": "{}", "split": "train", "source": "import"}
        ],
        "completion": [
            {"sha256": content_hash([answer.id, "", "", "import"]), "content_sha256": answer.id, "prompt_sha256": prompt.id}
            | {"weight_stamp": "", "author": "", "source": "import", "text": answer.text, "token_ids": "[]"}
            | {"sampled_logprobs": "[]", "sampling": "{}", "finish_reason": "imported"}
            for answer in answers
        ],
        "item": [{"sha256": item, "study": "import", "kind": "pairwise", "prompt_sha256": prompt.id, "state": "open"}],
        "item_completion": [
            {"item_sha256": item, "slot": slot, "completion_sha256": content_hash([answer.id, "", "", "import"])}
            for slot, answer in enumerate(answers)
        ],
        "judgement": [
            {"sha256": said.id, "submission_key": key, "item_sha256": item, "labeler": "import", "ranking": "[[0],[1]]"}
            | {"outcome": "0", "source": "import"}
        ],
        "rating": [
            {"sha256": vote.id, "completion_sha256": content_hash([answers[0].id, "", "", "import"]), "labeler": A, "kind": "vote"}
            | {"value": 1, "source": "import"}
        ],
        "exclusion": [{"target": "labeler", "target_id": B, "reason": "", "excluded_by": ""}],
        "snapshot": [{"sha256": taken, "query": json.dumps(query), "n": 1}],
        "snapshot_row": [{"snapshot_sha256": taken, "judgement_sha256": said.id}],
        "model_version": [{"name": "base", "kind": "base", "status": "candidate", "weights_sha256": A, "config": "{}"}],
    }  # fmt: skip
    if revision == "0001":
        del rows["rating"]
    with store.writing() as connection:
        for table, values in rows.items():
            for row in values:
                row = row if table in ("item_completion", "snapshot_row") else row | {"created_at": WHEN}
                types = {name: sa.bindparam(f"{name}_") for name in row}
                statement = sa.table(table, *(sa.column(name) for name in row)).insert().values(types)
                connection.execute(statement, {f"{name}_": value for name, value in row.items()})


def test_a_store_of_before_is_found_again(before: str, empty_store: Store, tmp_path: Path) -> None:
    store = empty_store
    made_before(store, before)
    database.migrate(store._engine)
    assert list(store_faults(store)) == []
    with store.reading() as connection:
        numbers = {
            name: connection.execute(sa.select(table.c.id)).scalars().all()
            for name, table in tables.metadata.tables.items()
            if "id" in table.c
        }
        item_row = connection.execute(sa.select(tables.item)).one()
        times = [
            connection.execute(sa.select(table.c.created_at)).scalars().all()
            for table in (tables.prompt, tables.judgement, tables.snapshot)
        ]
    found = {name: ids for name, ids in numbers.items() if ids}
    assert found == {
        "labeler": [1, 2, 3], "prompt": [1], "completion": [1, 2], "item": [1], "judgement": [1], "exclusion": [1], "snapshot": [1],
        "model_version": [1], **({"rating": [1]} if before != "0001" else {}),
    }  # fmt: skip
    assert (item_row.gold, item_row.need, item_row.priority) == (None, None, 0) and times == [[WHEN]] * 3
    ((taken,),) = [snapshots(store)]
    assert store.snapshot(taken).weights == (1.0,) and len(store.snapshot_pairs(taken)) == 1
    with store._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []
    ((item, judgement),) = store.judgements()
    assert judgement.submission_key == content_hash([item.id, 0]) and item.prompt.text == "Why?"
    assert {answer.text for answer in item.completions} == {"Because.", "No."}
    if before != "0001":
        ((_, vote),) = ratings(store)
        assert vote.labeler == A and vote.completion == item.completions[0]
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}\n')
    same = item.completions[0].text == "Because."
    assert import_file(store, tmp_path / "rows.jsonl").new == (
        0 if same else 1
    )  # the same verdict is the same judgement
    snapshot = store.take_snapshot(split="train")
    assert (snapshot.id == taken) == same, "the same judgements are the same snapshot as before"
    store.exclude("item", item.id, reason="", by="me")
    assert store.judgements() == [] and store.snapshot(snapshot.id) == snapshot
    for change in ("UPDATE judgement SET outcome = '1'", "DELETE FROM judgement"):
        with store._engine.begin() as connection, pytest.raises(DBAPIError, match="append-only"):
            connection.exec_driver_sql(change)
    if store._engine.dialect.name == "sqlite":
        with store._engine.connect() as connection:
            kinds = "SELECT DISTINCT typeof(sha256), length(sha256), typeof(created_at) FROM judgement"
            assert connection.exec_driver_sql(kinds).all() == [("blob", 32, "blob")]
            assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
            assert connection.exec_driver_sql("PRAGMA integrity_check").all() == [("ok",)]


def test_who_was_asked_what_before_is_asked_on(empty_store: Store) -> None:
    """A study of schema 0004: what was answered, is held and was given back stays so, and the places that are left are found."""
    made_before(empty_store, "0004")
    items = [("one", "open"), ("both", "open"), ("nobody", "open"), ("closed", "done")]
    given = [
        (2, "ann", "done"),
        (2, "bea", "returned"),
        (3, "ann", "done"),
        (3, "bea", "open"),
        (5, "ann", "done"),
        (5, "bea", "done"),
    ]
    settings = '{"overlap": 2, "gold_rate": 0, "random_share": 0, "seed": "a"}'
    ends: Any = "2999-01-01T00:00:00.000+00:00"
    rows: list[tuple[str, dict[str, Any]]] = [
        ("study", {"name": "s", "state": "open", "settings": settings, "created_at": WHEN})
    ]
    rows += [("labeler", {"handle": who, "kind": "person", "created_at": WHEN}) for who in ("ann", "bea")]
    with empty_store.writing() as connection:
        prompt = connection.exec_driver_sql("SELECT prompt_sha256 FROM item").scalar()
        if connection.dialect.name == "sqlite":
            ends = time_bytes(ends)
        for number, (name, state) in enumerate(items, 2):
            row = {
                "id": number,
                "sha256": name,
                "study": "s",
                "kind": "pairwise",
                "prompt_sha256": prompt,
                "state": state,
            }
            rows.append(("item", row | {"created_at": WHEN}))
            rows += [
                ("item_completion", {"item_id": number, "slot": slot, "completion_id": slot + 1}) for slot in (0, 1)
            ]
        for number, who, state in given:
            row = {"item_id": number, "labeler": who, "display_order": "[0,1]", "state": state, "lease_until": ends}
            rows.append(("assignment", row | {"created_at": WHEN}))
        for table, row in rows:
            names = ", ".join(row)
            values = ", ".join(f":{name}" for name in row)
            connection.execute(sa.text(f"INSERT INTO {table} ({names}) VALUES ({values})"), row)
    database.migrate(empty_store._engine)
    assert [task.item.id for task in next_tasks(empty_store, "s", "bea", 9)] == ["both", "nobody"]
    assert [task.item.id for task in next_tasks(empty_store, "s", "new", 9)] == ["one", "nobody"]
    assert next_tasks(empty_store, "s", "ann", 9) == []
    assert study_progress(empty_store, "s")[0] == {"done": 1, "open": 3}


def snapshots(store: Store) -> Any:
    with store.reading() as connection:
        return tuple(connection.execute(sa.select(tables.snapshot.c.sha256)).scalars())


def test_every_hash_and_time_has_its_type() -> None:
    for table in tables.metadata.tables.values():
        for column in table.columns:
            assert isinstance(column.type, Time) == column.name.endswith(("_at", "_until")), column
            if column.name.endswith("sha256") and column.name != "weights_sha256":
                assert isinstance(column.type, Hash), column


def test_what_is_no_hash_and_no_time_stays_as_it_is() -> None:
    assert [hash_bytes(text) for text in ("", "x", A.upper(), A[1:], None)] == ["", "x", A.upper(), A[1:], None]
    assert hash_bytes(A) == bytes.fromhex(A)
    assert [time_bytes(text) for text in ("", "soon", None)] == ["", "soon", None]
    engine = sa.create_engine("sqlite://")
    table = sa.Table("t", sa.MetaData(), sa.Column("h", Hash(64)), sa.Column("at", Time(32)))
    rows = [(A, WHEN), ("x", ""), ("0" * 64, "2106-02-07T06:28:16.001+00:00")]
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(table.insert(), [{"h": h, "at": at} for h, at in rows])
        assert [tuple(row) for row in connection.execute(sa.select(table))] == rows


@pytest.mark.parametrize("any_store", ["postgresql"], indirect=True)
def test_those_who_bring_a_database_up_to_date_at_once_wait_for_one_another(empty_store: Store) -> None:
    made_before(empty_store, "0003")
    address = empty_store._engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", OPEN, address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(3)]
    assert [(one.communicate(timeout=60), one.returncode) for one in processes] == [(("1\n", ""), 0)] * 3
    assert list(store_faults(empty_store)) == []
