"""The first tables, and the triggers that keep judgements append-only.

Revision id: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# "INSERT OR REPLACE" deletes the old row without asking SQLite's delete triggers; hence the third one.
SQLITE_APPEND_ONLY = [
    """
    CREATE TRIGGER judgement_no_update BEFORE UPDATE ON judgement
    BEGIN SELECT RAISE(ABORT, 'judgement is append-only: no row is ever updated'); END
    """,
    """
    CREATE TRIGGER judgement_no_delete BEFORE DELETE ON judgement
    BEGIN SELECT RAISE(ABORT, 'judgement is append-only: no row is ever deleted'); END
    """,
    """
    CREATE TRIGGER judgement_no_replace BEFORE INSERT ON judgement
    WHEN EXISTS (
        SELECT 1 FROM judgement
        WHERE id = NEW.id OR sha256 = NEW.sha256 OR submission_key = NEW.submission_key OR supersedes = NEW.supersedes
    )
    BEGIN SELECT RAISE(ABORT, 'judgement is append-only: no row is ever replaced'); END
    """,
]
POSTGRESQL_APPEND_ONLY = [
    """
    CREATE FUNCTION judgement_append_only() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'judgement is append-only: no row is ever updated or deleted'; END $$
    """,
    """
    CREATE TRIGGER judgement_no_change BEFORE UPDATE OR DELETE ON judgement
    FOR EACH ROW EXECUTE FUNCTION judgement_append_only()
    """,
    """
    CREATE TRIGGER judgement_no_truncate BEFORE TRUNCATE ON judgement
    FOR EACH STATEMENT EXECUTE FUNCTION judgement_append_only()
    """,
]


def upgrade() -> None:
    create_people_and_models()
    create_content()
    create_judgements()
    statements = SQLITE_APPEND_ONLY if op.get_bind().dialect.name == "sqlite" else POSTGRESQL_APPEND_ONLY
    for statement in statements:
        op.execute(statement)


def create_people_and_models() -> None:
    op.create_table(
        "labeler",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("handle", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.CheckConstraint("kind IN ('person', 'ai', 'simulated', 'imported')", name=op.f("ck_labeler_kind")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_labeler")),
        sa.UniqueConstraint("handle", name=op.f("uq_labeler_handle")),
    )
    op.create_table(
        "model_version",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("weights_sha256", sa.String(length=64), nullable=False),
        sa.Column("parent", sa.String(length=64), nullable=True),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.CheckConstraint("status IN ('candidate', 'serving', 'retired')", name=op.f("ck_model_version_status")),
        sa.ForeignKeyConstraint(["parent"], ["model_version.weights_sha256"], name=op.f("fk_model_version_parent")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_version")),
        sa.UniqueConstraint("weights_sha256", name=op.f("uq_model_version_weights_sha256")),
    )


def create_content() -> None:
    op.create_table(
        "prompt",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("messages", sa.JSON(), nullable=False),
        sa.Column("meta", sa.JSON(), nullable=False),
        sa.Column("split", sa.String(length=40), nullable=False),
        sa.Column("source", sa.String(length=200), nullable=False),
        sa.Column("lang", sa.String(length=20), nullable=True),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prompt")),
        sa.UniqueConstraint("sha256", name=op.f("uq_prompt_sha256")),
    )
    op.create_table(
        "completion",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
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
        sa.UniqueConstraint("sha256", name=op.f("uq_completion_sha256")),
    )
    op.create_index(op.f("ix_completion_content_sha256"), "completion", ["content_sha256"])
    op.create_index(op.f("ix_completion_prompt_sha256"), "completion", ["prompt_sha256"])
    op.create_index(op.f("ix_completion_weight_stamp"), "completion", ["weight_stamp"])
    op.create_table(
        "item",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("study", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("prompt_sha256", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.CheckConstraint("kind IN ('pairwise', 'ranking')", name=op.f("ck_item_kind")),
        sa.ForeignKeyConstraint(["prompt_sha256"], ["prompt.sha256"], name=op.f("fk_item_prompt_sha256")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_item")),
        sa.UniqueConstraint("sha256", name=op.f("uq_item_sha256")),
    )
    op.create_index(op.f("ix_item_prompt_sha256"), "item", ["prompt_sha256"])
    op.create_index(op.f("ix_item_study"), "item", ["study"])
    op.create_table(
        "item_completion",
        sa.Column("item_sha256", sa.String(length=64), nullable=False),
        sa.Column("slot", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("completion_sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["completion_sha256"], ["completion.sha256"], name=op.f("fk_item_completion_completion_sha256")
        ),
        sa.ForeignKeyConstraint(["item_sha256"], ["item.sha256"], name=op.f("fk_item_completion_item_sha256")),
        sa.PrimaryKeyConstraint("item_sha256", "slot", name=op.f("pk_item_completion")),
    )
    op.create_index(op.f("ix_item_completion_completion_sha256"), "item_completion", ["completion_sha256"])


def create_judgements() -> None:
    op.create_table(
        "judgement",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("submission_key", sa.String(length=200), nullable=False),
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
    op.create_index(op.f("ix_judgement_labeler"), "judgement", ["labeler"])
    op.create_table(
        "exclusion",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("target", sa.String(length=20), nullable=False),
        sa.Column("target_id", sa.String(length=200), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("excluded_by", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.CheckConstraint("target IN ('labeler', 'judgement', 'item', 'prompt')", name=op.f("ck_exclusion_target")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_exclusion")),
    )
    op.create_index(op.f("ix_exclusion_target_id"), "exclusion", ["target_id"])
    op.create_table(
        "snapshot",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("query", sa.JSON(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_snapshot")),
        sa.UniqueConstraint("sha256", name=op.f("uq_snapshot_sha256")),
    )
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
