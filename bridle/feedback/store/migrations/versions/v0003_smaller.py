"""The same in a third of the room: hashes and times as bytes (SQLite), an item's answers by number, no index that no question uses, and
no submission key where the judgement itself gives it.

Revision id: 0003
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from bridle.feedback.store.migrations.versions import v0001_first_tables as first
from bridle.feedback.store.migrations.versions import v0002_what_rows_say as second
from bridle.feedback.store.types import hash_bytes, time_bytes

revision = "0003"
down_revision = "0002"

REBUILT = ("snapshot_row", "rating", "judgement", "item_completion", "completion")  # those that refer to others first
HASHES = {
    "labeler": ("handle",),  # a name may be a hash
    "prompt": ("sha256",),
    "item": ("sha256", "prompt_sha256"),
    "solution": ("sha256", "prompt_sha256"),
    "document": ("sha256",),
    "imported_file": ("sha256",),
    "exclusion": ("target_id",),
    "snapshot": ("sha256",),
}
TIMES = ("labeler", "prompt", "model_version", "item", "solution", "document", "imported_file", "exclusion", "snapshot")


def upgrade() -> None:
    connection = op.get_bind()
    sqlite = connection.dialect.name == "sqlite"
    if sqlite:
        raw: Any = connection.connection.dbapi_connection
        raw.create_function("hash_bytes", 1, hash_bytes)
        raw.create_function("time_bytes", 1, time_bytes)
        op.execute("PRAGMA defer_foreign_keys = ON")
    for table in REBUILT:
        op.execute(f"CREATE TEMPORARY TABLE old_{table} AS SELECT * FROM {table}")
        op.drop_table(table)
    if sqlite:
        for table, columns in HASHES.items():
            op.execute(f"UPDATE {table} SET " + ", ".join(f"{name} = hash_bytes({name})" for name in columns))
        for table in TIMES:
            op.execute(f"UPDATE {table} SET created_at = time_bytes(created_at)")
    op.drop_index(op.f("ix_item_prompt_sha256"), "item")
    op.drop_index(op.f("ix_item_study"), "item")
    create_answers()
    create_judgements()
    copy_back(sqlite)
    for table in REBUILT:
        op.execute(f"DROP TABLE old_{table}")
    made = (
        (first.SQLITE_APPEND_ONLY, second.SQLITE_APPEND_ONLY)
        if sqlite
        else (first.POSTGRESQL_APPEND_ONLY, second.POSTGRESQL_APPEND_ONLY)
    )
    for statement in (*made[0], *made[1]):
        if "CREATE FUNCTION" not in statement:  # PostgreSQL's stand
            op.execute(statement)
    if not sqlite:
        for table in ("completion", "rating", "judgement"):
            op.execute(
                f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table} HAVING max(id) > 0"
            )


def copy_back(sqlite: bool) -> None:
    def hashed(*names: str) -> str:
        return ", ".join(f"hash_bytes({name})" if sqlite else name for name in names)

    when = "time_bytes(created_at)" if sqlite else "created_at"
    same = "weight_stamp, author, source, text, token_ids, sampled_logprobs, sum_logprob, sampling, finish_reason"
    op.execute(
        f"INSERT INTO completion (id, content_sha256, prompt_sha256, {same}, created_at) "
        f"SELECT id, {hashed('content_sha256', 'prompt_sha256')}, {same}, {when} FROM old_completion"
    )
    item = "hash_bytes(old.item_sha256)" if sqlite else "old.item_sha256"
    op.execute(
        "INSERT INTO item_completion (item_id, slot, completion_id) SELECT item.id, old.slot, answer.id FROM old_item_completion old "
        f"JOIN item ON item.sha256 = {item} JOIN old_completion answer ON answer.sha256 = old.completion_sha256"
    )
    same = "ranking, outcome, strength, display_order, source, seconds, criterion, margin, weight, confidence"
    op.execute(
        f"INSERT INTO judgement (id, sha256, submission_key, item_sha256, supersedes, labeler, {same}, created_at) "
        f"SELECT id, {hashed('sha256', 'submission_key', 'item_sha256', 'supersedes', 'labeler')}, {same}, {when} "
        "FROM old_judgement ORDER BY id"
    )
    same = "kind, criterion, value, steps, weight, source"
    old = ", ".join(f"old.{name}" for name in same.split(", "))
    op.execute(
        f"INSERT INTO rating (id, sha256, labeler, completion_id, {same}, created_at) "
        f"SELECT old.id, {hashed('old.sha256', 'old.labeler')}, answer.id, {old}, "
        + when.replace("created_at", "old.created_at")
        + " FROM old_rating old JOIN old_completion answer ON answer.sha256 = old.completion_sha256"
    )
    op.execute(
        "INSERT INTO snapshot_row (snapshot_sha256, judgement_sha256) "
        f"SELECT {hashed('snapshot_sha256', 'judgement_sha256')} FROM old_snapshot_row"
    )


def create_answers() -> None:
    op.create_table(
        "completion",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("content_sha256", sa.String(length=64), nullable=False),
        sa.Column("prompt_sha256", sa.String(length=64), nullable=False),
        sa.Column("weight_stamp", sa.String(length=200), nullable=False),
        sa.Column("author", sa.String(length=200), nullable=False),
        sa.Column("source", sa.String(length=40), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("token_ids", sa.JSON(), nullable=False),
        sa.Column("sampled_logprobs", sa.JSON(), nullable=False),
        sa.Column("sum_logprob", sa.Float(), nullable=True),
        sa.Column("sampling", sa.JSON(), nullable=False),
        sa.Column("finish_reason", sa.String(length=20), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["prompt_sha256"], ["prompt.sha256"], name=op.f("fk_completion_prompt_sha256")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_completion")),
        sa.UniqueConstraint(
            "content_sha256", "weight_stamp", "author", "source", name=op.f("uq_completion_content_sha256")
        ),
    )
    op.create_table(
        "item_completion",
        sa.Column("item_id", sa.Integer(), nullable=False),
        sa.Column("slot", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("completion_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["completion_id"], ["completion.id"], name=op.f("fk_item_completion_completion_id")),
        sa.ForeignKeyConstraint(["item_id"], ["item.id"], name=op.f("fk_item_completion_item_id")),
        sa.PrimaryKeyConstraint("item_id", "slot", name=op.f("pk_item_completion")),
        sqlite_with_rowid=False,
    )


def create_judgements() -> None:
    op.create_table(
        "judgement",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("submission_key", sa.String(length=200), nullable=True),
        sa.Column("item_sha256", sa.String(length=64), nullable=False),
        sa.Column("labeler", sa.String(length=200), nullable=False),
        sa.Column("ranking", sa.JSON(), nullable=True),
        sa.Column("outcome", sa.String(length=20), nullable=False),
        sa.Column("strength", sa.SmallInteger(), nullable=True),
        sa.Column("display_order", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("source", sa.String(length=20), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=True),
        sa.Column("supersedes", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.Column("criterion", sa.String(length=100), nullable=True),
        sa.Column("margin", sa.Float(), nullable=True),
        sa.Column("weight", sa.Float(), nullable=True),
        sa.Column("confidence", sa.Float(), nullable=True),
        sa.CheckConstraint("source IN ('study', 'serving', 'import')", name=op.f("ck_judgement_source")),
        sa.CheckConstraint("strength BETWEEN 0 AND 3", name=op.f("ck_judgement_strength")),
        sa.ForeignKeyConstraint(["item_sha256"], ["item.sha256"], name=op.f("fk_judgement_item_sha256")),
        sa.ForeignKeyConstraint(["labeler"], ["labeler.handle"], name=op.f("fk_judgement_labeler")),
        sa.ForeignKeyConstraint(["supersedes"], ["judgement.sha256"], name=op.f("fk_judgement_supersedes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_judgement")),
        sa.UniqueConstraint("sha256", name=op.f("uq_judgement_sha256")),
        sa.UniqueConstraint("submission_key", name=op.f("uq_judgement_submission_key")),
        sa.UniqueConstraint("supersedes", name=op.f("uq_judgement_supersedes")),
    )
    op.create_index(op.f("ix_judgement_item_sha256"), "judgement", ["item_sha256"])
    op.create_table(
        "rating",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("completion_id", sa.Integer(), nullable=False),
        sa.Column("labeler", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("criterion", sa.String(length=100), nullable=True),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("steps", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("weight", sa.Float(), nullable=True),
        sa.Column("source", sa.String(length=20), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.CheckConstraint("kind IN ('vote', 'score', 'steps')", name=op.f("ck_rating_kind")),
        sa.CheckConstraint("source IN ('study', 'serving', 'import')", name=op.f("ck_rating_source")),
        sa.ForeignKeyConstraint(["completion_id"], ["completion.id"], name=op.f("fk_rating_completion_id")),
        sa.ForeignKeyConstraint(["labeler"], ["labeler.handle"], name=op.f("fk_rating_labeler")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rating")),
        sa.UniqueConstraint("sha256", name=op.f("uq_rating_sha256")),
    )
    op.create_index(op.f("ix_rating_completion_id"), "rating", ["completion_id"])
    op.create_table(
        "snapshot_row",
        sa.Column("snapshot_sha256", sa.String(length=64), nullable=False),
        sa.Column("judgement_sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["judgement_sha256"], ["judgement.sha256"], name=op.f("fk_snapshot_row_judgement_sha256")
        ),
        sa.ForeignKeyConstraint(["snapshot_sha256"], ["snapshot.sha256"], name=op.f("fk_snapshot_row_snapshot_sha256")),
        sa.PrimaryKeyConstraint("snapshot_sha256", "judgement_sha256", name=op.f("pk_snapshot_row")),
    )
