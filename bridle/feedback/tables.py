"""The store's tables as they stand after the newest migration. A test compares both.

Rows refer to one another by content hash, so that a reference means the same in every copy of a store; the integer `id`
only keeps the order of arrival. Types are those that SQLite and PostgreSQL share. Times are ISO 8601 text in UTC.

    prompt ─< completion ─< item_completion >─ item ─< judgement >─ labeler
                                                           │
                                    exclusion (by hash)    └─< snapshot_row >─ snapshot
"""

from sqlalchemy import (
    JSON,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

labeler = Table(
    "labeler",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("handle", String(200), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("created_at", String(32), nullable=False),
    UniqueConstraint("handle"),
    CheckConstraint("kind IN ('person', 'ai', 'simulated', 'imported')", name="kind"),
)

prompt = Table(
    "prompt",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("messages", JSON, nullable=False),
    Column("meta", JSON, nullable=False),
    Column("split", String(40), nullable=False),  # one row for each prompt, so it cannot sit in two splits
    Column("source", String(200), nullable=False),
    Column("lang", String(20)),
    Column("created_at", String(32), nullable=False),
    UniqueConstraint("sha256"),
)

model_version = Table(
    "model_version",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False),
    Column("kind", String(40), nullable=False),
    Column("status", String(20), nullable=False),
    Column("weights_sha256", String(64), nullable=False),
    Column("parent", String(64), ForeignKey("model_version.weights_sha256")),
    Column("config", JSON, nullable=False),
    Column("created_at", String(32), nullable=False),
    UniqueConstraint("weights_sha256"),
    CheckConstraint("status IN ('candidate', 'serving', 'retired')", name="status"),
)

completion = Table(
    "completion",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sha256", String(64), nullable=False),  # of content and origin: two models may write the same answer
    Column("content_sha256", String(64), nullable=False, index=True),  # Completion.id
    Column("prompt_sha256", String(64), ForeignKey("prompt.sha256"), nullable=False, index=True),
    Column("weight_stamp", String(200), nullable=False, index=True),  # "" where no weights of ours wrote it
    Column("author", String(200), nullable=False),  # "" where a model wrote it, or nobody knows
    Column("source", String(40), nullable=False),
    Column("text", Text, nullable=False),
    Column("token_ids", JSON, nullable=False),
    Column("sampled_logprobs", JSON, nullable=False),
    Column("sum_logprob", Float),  # null where nothing was sampled
    Column("sampling", JSON, nullable=False),
    Column("finish_reason", String(20), nullable=False),
    Column("created_at", String(32), nullable=False),
    UniqueConstraint("sha256"),
)

item = Table(
    "item",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("study", String(200), nullable=False, index=True),
    Column("kind", String(20), nullable=False),
    Column("prompt_sha256", String(64), ForeignKey("prompt.sha256"), nullable=False, index=True),
    Column("state", String(20), nullable=False),
    Column("created_at", String(32), nullable=False),
    UniqueConstraint("sha256"),
    CheckConstraint("kind IN ('pairwise', 'ranking')", name="kind"),
)

item_completion = Table(
    "item_completion",
    metadata,
    Column("item_sha256", String(64), ForeignKey("item.sha256"), primary_key=True),
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),  # canonical, never the order of display
    Column("completion_sha256", String(64), ForeignKey("completion.sha256"), nullable=False, index=True),
)

judgement = Table(  # append-only: triggers refuse UPDATE and DELETE
    "judgement",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("submission_key", String(200), nullable=False),
    Column("item_sha256", String(64), ForeignKey("item.sha256"), nullable=False, index=True),
    Column("labeler", String(200), ForeignKey("labeler.handle"), nullable=False, index=True),
    Column("ranking", JSON),  # [[2], [0, 1]]: best group first
    Column("outcome", String(20), nullable=False),  # the winning slot, or 'tie' where the best group has several
    Column("strength", SmallInteger),
    Column("display_order", JSON(none_as_null=True)),
    Column("source", String(20), nullable=False),
    Column("seconds", Float),
    Column("supersedes", String(64), ForeignKey("judgement.sha256")),
    Column("created_at", String(32), nullable=False),
    UniqueConstraint("sha256"),
    UniqueConstraint("submission_key"),
    UniqueConstraint("supersedes"),
    CheckConstraint("strength BETWEEN 0 AND 3", name="strength"),
    CheckConstraint("source IN ('study', 'serving', 'import')", name="source"),
)

exclusion = Table(  # keeps a judgement out of training without touching it
    "exclusion",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("target", String(20), nullable=False),
    Column("target_id", String(200), nullable=False, index=True),
    Column("reason", Text, nullable=False),
    Column("excluded_by", String(200), nullable=False),
    Column("created_at", String(32), nullable=False),
    CheckConstraint("target IN ('labeler', 'judgement', 'item', 'prompt')", name="target"),
)

snapshot = Table(
    "snapshot",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("query", JSON, nullable=False),
    Column("n", Integer, nullable=False),
    Column("created_at", String(32), nullable=False),
    UniqueConstraint("sha256"),
)

snapshot_row = Table(
    "snapshot_row",
    metadata,
    Column("snapshot_sha256", String(64), ForeignKey("snapshot.sha256"), primary_key=True),
    Column("judgement_sha256", String(64), ForeignKey("judgement.sha256"), primary_key=True),
)
