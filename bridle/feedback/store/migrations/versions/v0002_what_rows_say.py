"""What imported rows say beside who won: criteria, margins, weights, votes and scores of one answer, solutions, plain texts; and which
files were imported. Each prompt gets the hash by which prompts that nearly equal it are found.

Revision id: 0002
"""

import sqlalchemy as sa
from alembic import op

from bridle.feedback.store.nearness import nearness

revision = "0002"
down_revision = "0001"

BATCH = 1_000  # prompts that are read at once
SQLITE_APPEND_ONLY = [
    """
    CREATE TRIGGER rating_no_update BEFORE UPDATE ON rating
    BEGIN SELECT RAISE(ABORT, 'rating is append-only: no row is ever updated'); END
    """,
    """
    CREATE TRIGGER rating_no_delete BEFORE DELETE ON rating
    BEGIN SELECT RAISE(ABORT, 'rating is append-only: no row is ever deleted'); END
    """,
    """
    CREATE TRIGGER rating_no_replace BEFORE INSERT ON rating
    WHEN EXISTS (SELECT 1 FROM rating WHERE id = NEW.id OR sha256 = NEW.sha256)
    BEGIN SELECT RAISE(ABORT, 'rating is append-only: no row is ever replaced'); END
    """,
]
POSTGRESQL_APPEND_ONLY = [
    """
    CREATE FUNCTION rating_append_only() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'rating is append-only: no row is ever updated or deleted'; END $$
    """,
    """
    CREATE TRIGGER rating_no_change BEFORE UPDATE OR DELETE ON rating
    FOR EACH ROW EXECUTE FUNCTION rating_append_only()
    """,
    """
    CREATE TRIGGER rating_no_truncate BEFORE TRUNCATE ON rating
    FOR EACH STATEMENT EXECUTE FUNCTION rating_append_only()
    """,
]


def upgrade() -> None:
    for name, kind in (
        ("criterion", sa.String(100)),
        ("margin", sa.Float()),
        ("weight", sa.Float()),
        ("confidence", sa.Float()),
    ):
        op.add_column("judgement", sa.Column(name, kind, nullable=True))
    op.add_column("prompt", sa.Column("nearness", sa.BigInteger(), nullable=True))
    create_ratings()
    create_texts_and_files()
    fill_nearness()
    op.create_index(op.f("ix_prompt_nearness"), "prompt", ["nearness"])
    statements = SQLITE_APPEND_ONLY if op.get_bind().dialect.name == "sqlite" else POSTGRESQL_APPEND_ONLY
    for statement in statements:
        op.execute(statement)


def create_ratings() -> None:
    op.create_table(
        "rating",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("completion_sha256", sa.String(length=64), nullable=False),
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
        sa.ForeignKeyConstraint(["completion_sha256"], ["completion.sha256"], name=op.f("fk_rating_completion_sha256")),
        sa.ForeignKeyConstraint(["labeler"], ["labeler.handle"], name=op.f("fk_rating_labeler")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rating")),
        sa.UniqueConstraint("sha256", name=op.f("uq_rating_sha256")),
    )
    op.create_index(op.f("ix_rating_completion_sha256"), "rating", ["completion_sha256"])


def create_texts_and_files() -> None:
    op.create_table(
        "solution",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("prompt_sha256", sa.String(length=64), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["prompt_sha256"], ["prompt.sha256"], name=op.f("fk_solution_prompt_sha256")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_solution")),
        sa.UniqueConstraint("sha256", name=op.f("uq_solution_sha256")),
    )
    op.create_table(
        "document",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_document")),
        sa.UniqueConstraint("sha256", name=op.f("uq_document_sha256")),
    )
    op.create_table(
        "imported_file",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_imported_file")),
        sa.UniqueConstraint("sha256", name=op.f("uq_imported_file_sha256")),
    )


def fill_nearness() -> None:
    prompt = sa.table(
        "prompt", sa.column("id", sa.Integer), sa.column("messages", sa.JSON), sa.column("nearness", sa.BigInteger)
    )
    connection, last = op.get_bind(), 0
    change = sa.update(prompt).where(prompt.c.id == sa.bindparam("row")).values(nearness=sa.bindparam("hash"))
    query = sa.select(prompt.c.id, prompt.c.messages).order_by(prompt.c.id).limit(BATCH)
    while rows := connection.execute(query.where(prompt.c.id > last)).all():
        last = rows[-1].id
        connection.execute(
            change, [{"row": row.id, "hash": nearness(m["content"] for m in row.messages)} for row in rows]
        )
