"""A store of before: everything in it is found again after the migration, by the same names, and takes less room."""

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError

from bridle.core.records import Completion, Judgement, LabelerKind, Prompt, content_hash
from bridle.feedback.importing.importer import import_file
from bridle.feedback.rankings import item_id
from bridle.feedback.store import database, tables
from bridle.feedback.store.ratings import ratings
from bridle.feedback.store.store import Store
from bridle.feedback.store.types import Hash, Time, hash_bytes, time_bytes

WHEN = "2026-01-02T03:04:05.678+00:00"
A = "a" * 64


@pytest.fixture(params=["0001", "0002"])
def before(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Stores are made as an earlier migration left them."""
    steps = ScriptDirectory.iterate_revisions

    def fewer(self: ScriptDirectory, upper: str, *rest: Any) -> Any:
        return steps(self, request.param if upper == "head" else upper, *rest)

    monkeypatch.setattr(ScriptDirectory, "iterate_revisions", fewer)
    return str(request.param)


def filled(store: Store, revision: str) -> None:
    """One pair with its judgement, a vote, an exclusion and a snapshot, written as rows of before."""
    prompt = Prompt.from_text("Why?")
    answers = sorted((Completion(prompt.id, text) for text in ("Because.", "No.")), key=lambda answer: answer.id)
    item = item_id(answers, "import")
    key = content_hash([item, 0])
    said = Judgement(item, "import", LabelerKind.IMPORTED, ((0,), (1,)), None, "import", key)
    rows = {
        "labeler": [{"handle": "import", "kind": "imported"}, {"handle": A, "kind": "imported"}],
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
            {"sha256": A, "completion_sha256": content_hash([answers[0].id, "", "", "import"]), "labeler": A, "kind": "vote"}
            | {"value": 1, "source": "import"}
        ],
        "exclusion": [{"target": "labeler", "target_id": A, "reason": "", "excluded_by": ""}],
    }  # fmt: skip
    if revision == "0001":
        del rows["rating"]
    with store.writing() as connection:
        for table, values in rows.items():
            for row in values:
                row = row if table == "item_completion" else row | {"created_at": WHEN}
                types = {name: sa.bindparam(f"{name}_") for name in row}
                statement = sa.table(table, *(sa.column(name) for name in row)).insert().values(types)
                connection.execute(statement, {f"{name}_": value for name, value in row.items()})


def test_a_store_of_before_is_found_again(
    before: str, any_store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = any_store
    filled(store, before)
    monkeypatch.undo()
    database.migrate(store._engine)
    with store._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []
    ((item, judgement),) = store.judgements()
    assert judgement.submission_key == content_hash([item.id, 0]) and item.prompt.text == "Why?"
    assert {answer.text for answer in item.completions} == {"Because.", "No."}
    if before == "0002":
        ((_, vote),) = ratings(store)
        assert vote.labeler == A and vote.completion == item.completions[0]
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}\n')
    same = item.completions[0].text == "Because."
    assert import_file(store, tmp_path / "rows.jsonl").new == (
        0 if same else 1
    )  # the same verdict is the same judgement
    snapshot = store.take_snapshot(split="train")
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


def test_every_hash_and_time_has_its_type() -> None:
    for table in tables.metadata.tables.values():
        for column in table.columns:
            assert isinstance(column.type, Time) == (column.name == "created_at"), column
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
