"""What users of a served model agreed to, what they were answered, which answers they compared, and what they said of one.

Revision id: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

# As of judgements: nobody agrees, or refuses, after the event.
SQLITE_APPEND_ONLY = [
    f"""
    CREATE TRIGGER consent_no_{change} BEFORE {change.upper()} ON consent
    BEGIN SELECT RAISE(ABORT, 'consent is append-only: no row is ever {change}d'); END
    """
    for change in ("update", "delete")
] + [
    """
    CREATE TRIGGER consent_no_replace BEFORE INSERT ON consent
    WHEN EXISTS (SELECT 1 FROM consent WHERE id = NEW.id)
    BEGIN SELECT RAISE(ABORT, 'consent is append-only: no row is ever replaced'); END
    """
]
POSTGRESQL_APPEND_ONLY = [
    """
    CREATE FUNCTION consent_append_only() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'consent is append-only: no row is ever updated or deleted'; END $$
    """,
    """
    CREATE TRIGGER consent_no_change BEFORE UPDATE OR DELETE ON consent
    FOR EACH ROW EXECUTE FUNCTION consent_append_only()
    """,
    """
    CREATE TRIGGER consent_no_truncate BEFORE TRUNCATE ON consent
    FOR EACH STATEMENT EXECUTE FUNCTION consent_append_only()
    """,
]


def upgrade() -> None:
    create_users()
    create_served()
    create_reactions()
    sqlite = op.get_bind().dialect.name == "sqlite"
    for statement in SQLITE_APPEND_ONLY if sqlite else POSTGRESQL_APPEND_ONLY:
        op.execute(statement)


def create_users() -> None:
    op.create_table(
        "served_user",
        sa.Column("labeler", sa.String(length=200), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["labeler"], ["labeler.handle"], name=op.f("fk_served_user_labeler")),
        sa.PrimaryKeyConstraint("labeler", name=op.f("pk_served_user")),
        sa.UniqueConstraint("sha256", name=op.f("uq_served_user_sha256")),
    )
    op.create_table(
        "consent",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("labeler", sa.String(length=200), nullable=False),
        sa.Column("answer", sa.String(length=20), nullable=False),
        sa.Column("guideline", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.Column("checksum", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("answer IN ('agreed', 'refused')", name=op.f("ck_consent_answer")),
        sa.ForeignKeyConstraint(["labeler"], ["labeler.handle"], name=op.f("fk_consent_labeler")),
        sa.ForeignKeyConstraint(["guideline"], ["guideline.sha256"], name=op.f("fk_consent_guideline")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_consent")),
    )
    op.create_index(op.f("ix_consent_labeler"), "consent", ["labeler"])


def create_served() -> None:
    op.create_table(
        "served",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("public_id", sa.String(length=100), nullable=False),
        sa.Column("labeler", sa.String(length=200), nullable=False),
        sa.Column("completion_id", sa.Integer(), nullable=False),
        sa.Column("conversation", sa.String(length=100), nullable=True),
        sa.Column("arm", sa.String(length=20), nullable=False),
        sa.Column("propensity", sa.Float(), nullable=False),
        sa.Column("place", sa.SmallInteger(), nullable=True),
        sa.Column("acquisition", sa.String(length=20), nullable=False),
        sa.Column("sampling", sa.JSON(), nullable=False),
        sa.Column("sum_logprob", sa.Float(), nullable=True),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.Column("checksum", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("arm IN ('current', 'previous', 'candidate')", name=op.f("ck_served_arm")),
        sa.CheckConstraint("propensity > 0 AND propensity <= 1", name=op.f("ck_served_propensity")),
        sa.CheckConstraint("acquisition IN ('random', 'informative')", name=op.f("ck_served_acquisition")),
        sa.ForeignKeyConstraint(["labeler"], ["labeler.handle"], name=op.f("fk_served_labeler")),
        sa.ForeignKeyConstraint(["completion_id"], ["completion.id"], name=op.f("fk_served_completion_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_served")),
        sa.UniqueConstraint("public_id", name=op.f("uq_served_public_id")),
    )
    op.create_index(op.f("ix_served_labeler"), "served", ["labeler"])
    op.create_index(op.f("ix_served_completion_id"), "served", ["completion_id"])
    op.create_table(
        "comparison",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("public_id", sa.String(length=100), nullable=False),
        sa.Column("labeler", sa.String(length=200), nullable=False),
        sa.Column("item_sha256", sa.String(length=64), nullable=False),
        sa.Column("first", sa.String(length=100), nullable=False),
        sa.Column("second", sa.String(length=100), nullable=False),
        sa.Column("display_order", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.Column("revealed_at", sa.String(length=32), nullable=True),
        sa.Column("checksum", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["labeler"], ["labeler.handle"], name=op.f("fk_comparison_labeler")),
        sa.ForeignKeyConstraint(["item_sha256"], ["item.sha256"], name=op.f("fk_comparison_item_sha256")),
        sa.ForeignKeyConstraint(["first"], ["served.public_id"], name=op.f("fk_comparison_first")),
        sa.ForeignKeyConstraint(["second"], ["served.public_id"], name=op.f("fk_comparison_second")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comparison")),
        sa.UniqueConstraint("public_id", name=op.f("uq_comparison_public_id")),
    )


def create_reactions() -> None:
    op.create_table(
        "reaction",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("labeler", sa.String(length=200), nullable=False),
        sa.Column("answer", sa.String(length=100), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("value", sa.SmallInteger(), nullable=True),
        sa.Column("reason", sa.String(length=40), nullable=True),
        sa.Column("note", sa.String(length=64), nullable=True),
        sa.Column("written", sa.String(length=64), nullable=True),
        sa.Column("marks", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.Column("checksum", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("kind IN ('vote', 'comment', 'demonstration', 'flag')", name=op.f("ck_reaction_kind")),
        sa.ForeignKeyConstraint(["labeler"], ["labeler.handle"], name=op.f("fk_reaction_labeler")),
        sa.ForeignKeyConstraint(["answer"], ["served.public_id"], name=op.f("fk_reaction_answer")),
        sa.ForeignKeyConstraint(["note"], ["free_text.sha256"], name=op.f("fk_reaction_note")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reaction")),
        sa.UniqueConstraint("key", name=op.f("uq_reaction_key")),
    )
    op.create_index(op.f("ix_reaction_answer"), "reaction", ["answer"])
    op.create_index(op.f("ix_reaction_labeler"), "reaction", ["labeler"])
