"""A line of the items that somebody was given and that have a place left, how far each person has come in it, leases that are over, and
what one person answered.

Revision id: 0005
"""

import sqlalchemy as sa
from alembic import op

from bridle.feedback.store.migrations.versions.v0004_people_and_quality import remake_sqlite

revision = "0005"
down_revision = "0004"

STATES = ("('open', 'ended', 'done', 'returned')", "('open', 'done', 'returned')")  # what is allowed, and what was


def upgrade() -> None:
    op.create_table(
        "passed",
        sa.Column("labeler", sa.String(length=200), nullable=False),
        sa.Column("study", sa.String(length=200), nullable=False),
        sa.Column("turn", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["labeler"], ["labeler.handle"], name=op.f("fk_passed_labeler")),
        sa.PrimaryKeyConstraint("labeler", "study", name=op.f("pk_passed")),
        sqlite_with_rowid=False,
    )
    op.execute("ALTER TABLE item ADD COLUMN turn INTEGER")
    if op.get_bind().dialect.name == "sqlite":
        remake_sqlite(op.get_bind(), "assignment", *STATES)
    else:
        op.drop_constraint(op.f("ck_assignment_state"), "assignment", type_="check")
        op.create_check_constraint(op.f("ck_assignment_state"), "assignment", f"state IN {STATES[0]}")
    # Whether a place is left is found out when one of them is next in line.
    given = "id IN (SELECT item_id FROM assignment)"
    op.execute(f"UPDATE item SET state = 'begun', turn = 0 WHERE state = 'open' AND gold IS NULL AND {given}")
    in_line, is_held = sa.text("turn IS NOT NULL"), sa.text("state = 'open'")
    is_shown = sa.text("criterion IS NULL AND display_order IS NOT NULL")
    columns = ["study", "turn", "id"]
    op.create_index("ix_item_turn", "item", columns, postgresql_where=in_line, sqlite_where=in_line)
    op.drop_index("ix_assignment_labeler", "assignment")
    op.create_index("ix_assignment_state", "assignment", ["state", "labeler"])
    op.create_index(
        "ix_assignment_lease", "assignment", ["lease_until"], postgresql_where=is_held, sqlite_where=is_held
    )
    op.create_index(
        "ix_judgement_own", "judgement", ["labeler", "id"], postgresql_where=is_shown, sqlite_where=is_shown
    )
