"""What a study needs: who may do what, who is asked what and until when, reasons, guidelines, gold, reward models' scores, adjudication,
weights in snapshots, a checksum for each row, and an account of what was done to the store.

SQLite cannot change a table's rules: such a table is made anew, while foreign keys are off (`database.migrate`).

Revision id: 0004
"""

import re
from typing import Any

import sqlalchemy as sa
from alembic import op

from bridle.feedback.store.checksums import checksum
from bridle.feedback.store.migrations.versions import v0001_first_tables as first
from bridle.feedback.store.migrations.versions import v0002_what_rows_say as second

revision = "0004"
down_revision = "0003"

NEW: dict[str, dict[str, Any]] = {
    "prompt": {"checksum": sa.BigInteger()},
    "completion": {"checksum": sa.BigInteger()},
    "judgement": {
        "lang": sa.String(20),
        "rationale": sa.String(64),
        "guideline": sa.String(64),
        "marks": sa.JSON(),
        "wall_seconds": sa.Float(),
        "client": sa.JSON(),
        "checksum": sa.BigInteger(),
    },
    "rating": {
        "lang": sa.String(20),
        "judgement_sha256": sa.String(64),
        "note": sa.String(64),
        "checksum": sa.BigInteger(),
    },
    "item": {
        "need": sa.SmallInteger(),
        "priority": sa.Float(),
        "acquisition": sa.String(20),
        "topic": sa.String(100),
        "gold": sa.JSON(),
    },
    "model_version": {"snapshot_sha256": sa.String(64), "shaped_by": sa.JSON()},
    "snapshot_row": {"weight": sa.Float()},
}
REFERENCES = {
    ("judgement", "rationale"): "free_text",
    ("judgement", "guideline"): "guideline",
    ("rating", "judgement_sha256"): "judgement",
    ("rating", "note"): "free_text",
    ("model_version", "snapshot_sha256"): "snapshot",
}
ACQUISITION = "acquisition IN ('random', 'informative', 'gold')"
WIDER = {  # what is allowed, and what was
    ("item", "kind"): ("('pairwise', 'ranking', 'rating', 'demonstration')", "('pairwise', 'ranking')"),
    ("rating", "kind"): ("('vote', 'score', 'steps', 'flag')", "('vote', 'score', 'steps')"),
    ("exclusion", "target"): (
        "('labeler', 'judgement', 'item', 'prompt', 'completion', 'text')",
        "('labeler', 'judgement', 'item', 'prompt')",
    ),
}
# The columns that a row's checksum covers, by name; those that are new are null.
CHECKED = {
    "prompt": "created_at lang messages meta nearness sha256 source split",
    "completion": "author content_sha256 created_at finish_reason prompt_sha256 sampled_logprobs sampling source sum_logprob text "
    "token_ids weight_stamp",
    "judgement": "confidence created_at criterion display_order item_sha256 labeler margin outcome ranking seconds sha256 source strength "
    "submission_key supersedes weight",
    "rating": "completion_id created_at criterion kind labeler sha256 source steps value weight",
}


def upgrade() -> None:
    create_people()
    create_studies()
    create_answers_of_models()
    if op.get_bind().dialect.name == "sqlite":
        upgrade_sqlite()
    else:
        upgrade_postgresql()
    op.create_index("ix_item_asked", "item", ["study", "state", "acquisition", "priority", "id"])


def upgrade_sqlite() -> None:
    connection = op.get_bind()
    for table in ("judgement", "rating"):
        for change in ("update", "delete", "replace"):
            op.execute(f"DROP TRIGGER {table}_no_{change}")
    for table, columns in NEW.items():
        for name, kind in columns.items():
            target = REFERENCES.get((table, name))
            key = f" CONSTRAINT fk_{table}_{name} REFERENCES {target} (sha256)" if target else ""
            rule = {
                "acquisition": f" CONSTRAINT ck_item_acquisition CHECK ({ACQUISITION})",
                "priority": " DEFAULT 0 NOT NULL",
            }.get(name, "")
            op.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind.compile(dialect=connection.dialect)}{key}{rule}")
    for (table, _), (now, before) in WIDER.items():
        remake_sqlite(connection, table, now, before)
    raw: Any = connection.connection.dbapi_connection
    raw.create_function("row_checksum", -1, lambda *values: checksum(values))
    for table, names in CHECKED.items():
        op.execute(f"UPDATE {table} SET checksum = row_checksum({', '.join(names.split())})")
    for statement in (*first.SQLITE_APPEND_ONLY, *second.SQLITE_APPEND_ONLY):
        op.execute(statement)


def remake_sqlite(connection: sa.Connection, table: str, now: str, before: str) -> None:
    """Make a table anew with another rule in place of the one before."""
    made = connection.exec_driver_sql("SELECT type, sql FROM sqlite_master WHERE tbl_name = ? AND sql > ''", (table,))
    schemas = made.all()
    (schema,) = (sql for kind, sql in schemas if kind == "table")
    assert before in schema, schema
    connection.exec_driver_sql(
        re.sub(rf'\ACREATE TABLE "?{table}"?', f"CREATE TABLE new_{table}", schema.replace(before, now))
    )
    connection.exec_driver_sql(f"INSERT INTO new_{table} SELECT * FROM {table}")
    connection.exec_driver_sql(f"DROP TABLE {table}")
    connection.exec_driver_sql(f"ALTER TABLE new_{table} RENAME TO {table}")
    for kind, sql in schemas:
        if kind == "index":
            connection.exec_driver_sql(sql)


def upgrade_postgresql() -> None:
    for table, columns in NEW.items():
        for name, kind in columns.items():
            given = {"server_default": "0", "nullable": False} if name == "priority" else {"nullable": True}
            op.add_column(table, sa.Column(name, kind, **given))
    for (table, name), target in REFERENCES.items():
        op.create_foreign_key(op.f(f"fk_{table}_{name}"), table, target, [name], ["sha256"])
    op.create_check_constraint(op.f("ck_item_acquisition"), "item", ACQUISITION)
    for (table, name), (now, _) in WIDER.items():
        op.drop_constraint(op.f(f"ck_{table}_{name}"), table, type_="check")
        op.create_check_constraint(op.f(f"ck_{table}_{name}"), table, f"{name} IN {now}")
    connection = op.get_bind()
    for table, covered in CHECKED.items():
        names = covered.split()
        if protected := table in ("judgement", "rating"):
            op.execute(f"ALTER TABLE {table} DISABLE TRIGGER {table}_no_change")
        change = sa.text(f"UPDATE {table} SET checksum = :checksum WHERE id = :id")
        last = 0
        query = sa.text(f"SELECT id, {', '.join(names)} FROM {table} WHERE id > :last ORDER BY id LIMIT 1000")
        while rows := connection.execute(query, {"last": last}).all():
            last = rows[-1].id
            connection.execute(change, [{"id": number, "checksum": checksum(values)} for number, *values in rows])
        if protected:
            op.execute(f"ALTER TABLE {table} ENABLE TRIGGER {table}_no_change")


def create_people() -> None:
    op.create_table(
        "account",
        sa.Column("labeler", sa.String(length=200), nullable=False),
        sa.Column("role", sa.String(length=20), nullable=False),
        sa.Column("password_hash", sa.String(length=200), nullable=True),
        sa.Column("locale", sa.String(length=20), nullable=True),
        sa.Column("profile", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.Column("disabled_at", sa.String(length=32), nullable=True),
        sa.CheckConstraint("role IN ('owner', 'adjudicator', 'annotator', 'service')", name=op.f("ck_account_role")),
        sa.ForeignKeyConstraint(["labeler"], ["labeler.handle"], name=op.f("fk_account_labeler")),
        sa.PrimaryKeyConstraint("labeler", name=op.f("pk_account")),
    )
    op.create_table(
        "credential",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("labeler", sa.String(length=200), nullable=True),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.Column("expires_at", sa.String(length=32), nullable=True),
        sa.Column("revoked_at", sa.String(length=32), nullable=True),
        sa.Column("last_used_at", sa.String(length=32), nullable=True),
        sa.CheckConstraint("kind IN ('session', 'token', 'invitation')", name=op.f("ck_credential_kind")),
        sa.ForeignKeyConstraint(["labeler"], ["account.labeler"], name=op.f("fk_credential_labeler")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_credential")),
        sa.UniqueConstraint("sha256", name=op.f("uq_credential_sha256")),
    )
    op.create_table(
        "free_text",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("body", sa.Text(), nullable=True),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_free_text")),
        sa.UniqueConstraint("sha256", name=op.f("uq_free_text_sha256")),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("previous_sha256", sa.String(length=64), nullable=True),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("action", sa.String(length=40), nullable=False),
        sa.Column("object", sa.String(length=200), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        sa.UniqueConstraint("sha256", name=op.f("uq_audit_sha256")),
    )


def create_studies() -> None:
    op.create_table(
        "study",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.CheckConstraint("state IN ('open', 'paused', 'closed')", name=op.f("ck_study_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_study")),
        sa.UniqueConstraint("name", name=op.f("uq_study_name")),
    )
    op.create_table(
        "guideline",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("study", sa.String(length=200), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("lang", sa.String(length=20), nullable=False),
        sa.Column("markdown", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_guideline")),
        sa.UniqueConstraint("sha256", name=op.f("uq_guideline_sha256")),
        sa.UniqueConstraint("study", "version", "lang", name=op.f("uq_guideline_study")),
    )
    op.create_table(
        "snapshot_rating",
        sa.Column("snapshot_sha256", sa.String(length=64), nullable=False),
        sa.Column("rating_sha256", sa.String(length=64), nullable=False),
        sa.Column("weight", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["snapshot_sha256"], ["snapshot.sha256"], name=op.f("fk_snapshot_rating_snapshot_sha256")
        ),
        sa.ForeignKeyConstraint(["rating_sha256"], ["rating.sha256"], name=op.f("fk_snapshot_rating_rating_sha256")),
        sa.PrimaryKeyConstraint("snapshot_sha256", "rating_sha256", name=op.f("pk_snapshot_rating")),
    )
    op.create_table(
        "assignment",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("item_id", sa.Integer(), nullable=False),
        sa.Column("labeler", sa.String(length=200), nullable=False),
        sa.Column("display_order", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("lease_until", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.Column("first_seen_at", sa.String(length=32), nullable=True),
        sa.CheckConstraint("state IN ('open', 'done', 'returned')", name=op.f("ck_assignment_state")),
        sa.ForeignKeyConstraint(["item_id"], ["item.id"], name=op.f("fk_assignment_item_id")),
        sa.ForeignKeyConstraint(["labeler"], ["labeler.handle"], name=op.f("fk_assignment_labeler")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_assignment")),
        sa.UniqueConstraint("item_id", "labeler", name=op.f("uq_assignment_item_id")),
    )
    op.create_index("ix_assignment_labeler", "assignment", ["labeler", "state"])
    op.create_table(
        "draft",
        sa.Column("assignment_id", sa.Integer(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("saved_at", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["assignment_id"], ["assignment.id"], name=op.f("fk_draft_assignment_id")),
        sa.PrimaryKeyConstraint("assignment_id", name=op.f("pk_draft")),
    )
    op.create_table(
        "adjudication",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("item_sha256", sa.String(length=64), nullable=False),
        sa.Column("judgement_sha256", sa.String(length=64), nullable=False),
        sa.Column("adjudicated_by", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["item_sha256"], ["item.sha256"], name=op.f("fk_adjudication_item_sha256")),
        sa.ForeignKeyConstraint(
            ["judgement_sha256"], ["judgement.sha256"], name=op.f("fk_adjudication_judgement_sha256")
        ),
        sa.ForeignKeyConstraint(["adjudicated_by"], ["labeler.handle"], name=op.f("fk_adjudication_adjudicated_by")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adjudication")),
    )
    op.create_index(op.f("ix_adjudication_item_sha256"), "adjudication", ["item_sha256"])


def create_answers_of_models() -> None:
    op.create_table(
        "completion_score",
        sa.Column("completion_id", sa.Integer(), nullable=False),
        sa.Column("weights_sha256", sa.String(length=64), nullable=False),
        sa.Column("task", sa.String(length=100), nullable=False),
        sa.Column("score", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["completion_id"], ["completion.id"], name=op.f("fk_completion_score_completion_id")),
        sa.PrimaryKeyConstraint("completion_id", "weights_sha256", "task", name=op.f("pk_completion_score")),
        sqlite_with_rowid=False,
    )
