"""The store's tables as they stand after the newest migration. A test compares both.

Rows refer to one another by content hash, so that a reference means the same in every copy of a store; the integer `id`
only keeps the order of arrival. Types are those that SQLite and PostgreSQL share. Times are ISO 8601 text in UTC.
`checksum` covers a row's other values (see `checksums.py`), where no hash of its content does.

    prompt ─< completion ─< item_completion >─ item ─< judgement >─ labeler ── account ─< credential
                 │ └─< rating >─ labeler        │          │ └── free_text, guideline
                 └─< completion_score           │          └─< snapshot_row >─ snapshot ─< model_version
                                                └─< assignment ── draft      └─ adjudication
    study, exclusion and audit (by name or hash)      solution >─ prompt      document, imported_file
    labeler ── served_user, ─< consent >─ guideline, ─< served >─ completion, served ─< reaction, ══< comparison >─ item
"""

import sqlalchemy as sa

from bridle.feedback.store.types import Hash, Time

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

labeler = sa.Table(
    "labeler",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("handle", Hash(200), nullable=False, unique=True),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("created_at", Time(32), nullable=False),
    sa.CheckConstraint("kind IN ('person', 'ai', 'simulated', 'imported')", name="kind"),
)

account = sa.Table(  # of a labeler who signs in; closed and never deleted
    "account",
    metadata,
    sa.Column("labeler", Hash(200), sa.ForeignKey("labeler.handle"), primary_key=True),
    sa.Column("role", sa.String(20), nullable=False),
    sa.Column("password_hash", sa.String(200)),  # argon2id
    sa.Column("locale", sa.String(20)),
    sa.Column("profile", sa.JSON, nullable=False),  # what they chose to say of themselves
    sa.Column("created_at", Time(32), nullable=False),
    sa.Column("disabled_at", Time(32)),
    sa.CheckConstraint("role IN ('owner', 'adjudicator', 'annotator', 'service')", name="role"),
)

credential = sa.Table(  # a session, an API token or an invitation, of which the hash alone is kept
    "credential",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("sha256", Hash(64), nullable=False, unique=True),
    sa.Column("labeler", Hash(200), sa.ForeignKey("account.labeler")),  # null until an invitation is taken up
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("created_at", Time(32), nullable=False),
    sa.Column("expires_at", Time(32)),
    sa.Column("revoked_at", Time(32)),
    sa.Column("last_used_at", Time(32)),
    sa.CheckConstraint("kind IN ('session', 'token', 'invitation')", name="kind"),
)

free_text = sa.Table(  # reasons and notes of people, by hash; a takedown leaves the hash alone
    "free_text",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("sha256", Hash(64), nullable=False, unique=True),
    sa.Column("body", sa.Text),
    sa.Column("created_at", Time(32), nullable=False),
)

prompt = sa.Table(
    "prompt",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("sha256", Hash(64), nullable=False, unique=True),
    sa.Column("messages", sa.JSON, nullable=False),
    sa.Column("meta", sa.JSON, nullable=False),
    sa.Column("split", sa.String(40), nullable=False),  # one row for each prompt, so it cannot sit in two splits
    sa.Column("source", sa.String(200), nullable=False),
    sa.Column("lang", sa.String(20)),
    # Equal where prompts differ in case, white space and punctuation alone.
    sa.Column("nearness", sa.BigInteger, index=True),
    sa.Column("created_at", Time(32), nullable=False),
    sa.Column("checksum", sa.BigInteger),
)

model_version = sa.Table(
    "model_version",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("kind", sa.String(40), nullable=False),
    sa.Column("status", sa.String(20), nullable=False),
    sa.Column("weights_sha256", sa.String(64), nullable=False, unique=True),
    sa.Column("parent", sa.String(64), sa.ForeignKey("model_version.weights_sha256")),
    sa.Column("config", sa.JSON, nullable=False),
    sa.Column("created_at", Time(32), nullable=False),
    sa.Column("snapshot_sha256", Hash(64), sa.ForeignKey("snapshot.sha256")),  # the judgements that it learnt from
    # Hashes of the other models that it learnt from: what scored its answers.
    sa.Column("shaped_by", sa.JSON(none_as_null=True)),
    sa.CheckConstraint("status IN ('candidate', 'serving', 'retired')", name="status"),
)

completion = sa.Table(
    "completion",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("content_sha256", Hash(64), nullable=False),  # Completion.id
    sa.Column("prompt_sha256", Hash(64), sa.ForeignKey("prompt.sha256"), nullable=False),
    sa.Column("weight_stamp", sa.String(200), nullable=False),  # "" where no weights of ours wrote it
    sa.Column("author", sa.String(200), nullable=False),  # "" where a model wrote it, or nobody knows
    sa.Column("source", sa.String(40), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("token_ids", sa.JSON, nullable=False),
    sa.Column("sampled_logprobs", sa.JSON, nullable=False),
    sa.Column("sum_logprob", sa.Float),  # null where nothing was sampled
    sa.Column("sampling", sa.JSON, nullable=False),
    sa.Column("finish_reason", sa.String(20), nullable=False),
    sa.Column("created_at", Time(32), nullable=False),
    sa.Column("checksum", sa.BigInteger),
    sa.UniqueConstraint("content_sha256", "weight_stamp", "author", "source"),  # two models may write the same answer
)

completion_score = sa.Table(  # what a reward model made of an answer
    "completion_score",
    metadata,
    sa.Column("completion_id", sa.Integer, sa.ForeignKey("completion.id"), primary_key=True),
    sa.Column("weights_sha256", Hash(64), primary_key=True),  # the reward model's
    sa.Column("task", sa.String(100), primary_key=True),
    sa.Column("score", sa.Float, nullable=False),
    sqlite_with_rowid=False,
)

study = sa.Table(
    "study",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(200), nullable=False, unique=True),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("settings", sa.JSON, nullable=False),  # overlap, lease, share of gold items, …
    sa.Column("created_at", Time(32), nullable=False),
    sa.CheckConstraint("state IN ('open', 'paused', 'closed')", name="state"),
)

guideline = sa.Table(  # a version, once published, stays as it is
    "guideline",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("sha256", Hash(64), nullable=False, unique=True),
    sa.Column("study", sa.String(200), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("lang", sa.String(20), nullable=False),
    sa.Column("markdown", sa.Text, nullable=False),
    sa.Column("created_at", Time(32), nullable=False),
    sa.UniqueConstraint("study", "version", "lang"),
)

IN_LINE, IS_HELD = sa.text("turn IS NOT NULL"), sa.text("state = 'open'")
IS_SHOWN = sa.text("criterion IS NULL AND display_order IS NOT NULL")  # on the whole, of what somebody was asked

item = sa.Table(
    "item",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("sha256", Hash(64), nullable=False, unique=True),
    sa.Column("study", sa.String(200), nullable=False),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("prompt_sha256", Hash(64), sa.ForeignKey("prompt.sha256"), nullable=False),
    # open: nobody was given it; begun: somebody was, and a place is left; full: none is, or it is excluded; done: judged
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("created_at", Time(32), nullable=False),
    sa.Column("need", sa.SmallInteger),  # people who should judge it; null: as many as its study says
    sa.Column("priority", sa.Float, nullable=False, server_default="0"),  # the higher, the sooner it is asked
    sa.Column("acquisition", sa.String(20)),  # why it is asked
    sa.Column("topic", sa.String(100)),
    sa.Column("gold", sa.JSON(none_as_null=True)),  # the ranking that is known to be right
    sa.Column("turn", sa.Integer),  # of one begun, its place in the line: the newest assignment's number when it joined
    sa.Index("ix_item_asked", "study", "state", "acquisition", "priority", "id"),  # as a claim looks for one
    # Of those in the line alone: PostgreSQL may take an index of a study's items to find whatever is asked of one.
    sa.Index("ix_item_turn", "study", "turn", "id", postgresql_where=IN_LINE, sqlite_where=IN_LINE),
    sa.CheckConstraint("kind IN ('pairwise', 'ranking', 'rating', 'demonstration')", name="kind"),
    sa.CheckConstraint("acquisition IN ('random', 'informative', 'gold')", name="acquisition"),
)

item_completion = sa.Table(
    "item_completion",
    metadata,
    sa.Column("item_id", sa.Integer, sa.ForeignKey("item.id"), primary_key=True),
    sa.Column("slot", sa.SmallInteger, primary_key=True, autoincrement=False),  # canonical, never the order of display
    sa.Column("completion_id", sa.Integer, sa.ForeignKey("completion.id"), nullable=False),
    sqlite_with_rowid=False,
)

judgement = sa.Table(  # append-only: triggers refuse UPDATE and DELETE
    "judgement",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("sha256", Hash(64), nullable=False, unique=True),
    sa.Column("submission_key", Hash(200), unique=True),  # null where it follows from the judgement
    sa.Column("item_sha256", Hash(64), sa.ForeignKey("item.sha256"), nullable=False, index=True),
    sa.Column("labeler", Hash(200), sa.ForeignKey("labeler.handle"), nullable=False),
    # [[2], [0, 1]]: best group first; null where nobody could or would say.
    sa.Column("ranking", sa.JSON(none_as_null=True)),
    # The winning slot, or where the best group has several 'tie', 'both_good' or 'both_bad'; without a ranking 'cannot_judge' or
    # 'skip', or 'unranked' of a task with less than two answers to compare.
    sa.Column("outcome", sa.String(20), nullable=False),
    sa.Column("strength", sa.SmallInteger),
    sa.Column("display_order", sa.JSON(none_as_null=True)),
    sa.Column("source", sa.String(20), nullable=False),
    sa.Column("seconds", sa.Float),
    sa.Column("supersedes", Hash(64), sa.ForeignKey("judgement.sha256"), unique=True),
    sa.Column("created_at", Time(32), nullable=False),
    sa.Column("criterion", sa.String(100)),  # such as "harmless"; null is which answer is better on the whole
    sa.Column("margin", sa.Float),  # how much better, in its giver's units
    sa.Column("weight", sa.Float),  # null is 1
    sa.Column("confidence", sa.Float),  # in its giver's units
    sa.Column("lang", sa.String(20)),  # of the page that it was given on, or of its reason
    sa.Column("rationale", Hash(64), sa.ForeignKey("free_text.sha256")),
    sa.Column("guideline", Hash(64), sa.ForeignKey("guideline.sha256")),
    sa.Column("marks", sa.JSON(none_as_null=True)),  # such as ["late", "unskilled"]
    sa.Column("wall_seconds", sa.Float),  # from when it was shown, where `seconds` counts those of looking at it
    sa.Column("client", sa.JSON(none_as_null=True)),
    sa.Column("checksum", sa.BigInteger),
    sa.Index("ix_judgement_own", "labeler", "id", postgresql_where=IS_SHOWN, sqlite_where=IS_SHOWN),
    sa.CheckConstraint("strength BETWEEN 0 AND 3", name="strength"),
    sa.CheckConstraint("source IN ('study', 'serving', 'import')", name="source"),
)

rating = sa.Table(  # what somebody said of one answer by itself; append-only too
    "rating",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("sha256", Hash(64), nullable=False, unique=True),
    sa.Column("completion_id", sa.Integer, sa.ForeignKey("completion.id"), nullable=False, index=True),
    sa.Column("labeler", Hash(200), sa.ForeignKey("labeler.handle"), nullable=False),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("criterion", sa.String(100)),
    sa.Column("value", sa.Float),  # of a vote 1 or 0 (for, against), of a score in its giver's units
    sa.Column("steps", sa.JSON(none_as_null=True)),  # [["2 + 2 = 4.", 1.0], …]: the answer's steps, each with its label
    sa.Column("weight", sa.Float),
    sa.Column("source", sa.String(20), nullable=False),
    sa.Column("created_at", Time(32), nullable=False),
    sa.Column("lang", sa.String(20)),
    sa.Column("judgement_sha256", Hash(64), sa.ForeignKey("judgement.sha256")),  # given with it
    sa.Column("note", Hash(64), sa.ForeignKey("free_text.sha256")),
    sa.Column("checksum", sa.BigInteger),
    sa.CheckConstraint("kind IN ('vote', 'score', 'steps', 'flag')", name="kind"),
    sa.CheckConstraint("source IN ('study', 'serving', 'import')", name="source"),
)

solution = sa.Table(  # what a prompt's answers are checked against
    "solution",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("sha256", Hash(64), nullable=False, unique=True),
    sa.Column("prompt_sha256", Hash(64), sa.ForeignKey("prompt.sha256"), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("created_at", Time(32), nullable=False),
)

document = sa.Table(  # plain text to learn language from
    "document",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("sha256", Hash(64), nullable=False, unique=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("created_at", Time(32), nullable=False),
)

imported_file = sa.Table(  # what was read of it, under the hash of its bytes and of how it was read
    "imported_file",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("sha256", Hash(64), nullable=False, unique=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("report", sa.JSON, nullable=False),
    sa.Column("created_at", Time(32), nullable=False),
)

exclusion = sa.Table(  # keeps a judgement out of training without touching it
    "exclusion",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("target", sa.String(20), nullable=False),
    sa.Column("target_id", Hash(200), nullable=False, index=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("excluded_by", sa.String(200), nullable=False),
    sa.Column("created_at", Time(32), nullable=False),
    sa.CheckConstraint("target IN ('labeler', 'judgement', 'item', 'prompt', 'completion', 'text')", name="target"),
)

adjudication = sa.Table(  # of several judgements of an item, the one that counts; of several rows the last
    "adjudication",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("item_sha256", Hash(64), sa.ForeignKey("item.sha256"), nullable=False, index=True),
    sa.Column("judgement_sha256", Hash(64), sa.ForeignKey("judgement.sha256"), nullable=False),
    sa.Column("adjudicated_by", Hash(200), sa.ForeignKey("labeler.handle"), nullable=False),
    sa.Column("created_at", Time(32), nullable=False),
)

assignment = sa.Table(  # who is asked what, shown in which order, until when
    "assignment",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("item_id", sa.Integer, sa.ForeignKey("item.id"), nullable=False),
    sa.Column("labeler", Hash(200), sa.ForeignKey("labeler.handle"), nullable=False),
    sa.Column("display_order", sa.JSON, nullable=False),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("lease_until", Time(32), nullable=False),
    sa.Column("created_at", Time(32), nullable=False),
    sa.Column("first_seen_at", Time(32)),
    sa.UniqueConstraint("item_id", "labeler"),
    # Not by labeler first, for the same reason: of a person and an item.
    sa.Index("ix_assignment_state", "state", "labeler"),
    sa.Index("ix_assignment_lease", "lease_until", postgresql_where=IS_HELD, sqlite_where=IS_HELD),
    sa.CheckConstraint("state IN ('open', 'ended', 'done', 'returned')", name="state"),
)

passed = sa.Table(  # how far a person has come in a study's line of items that were begun: none before it is for them
    "passed",
    metadata,
    sa.Column("labeler", Hash(200), sa.ForeignKey("labeler.handle"), primary_key=True),
    sa.Column("study", sa.String(200), primary_key=True),
    sa.Column("turn", sa.Integer, nullable=False),
    sqlite_with_rowid=False,
)

draft = sa.Table(  # the one answer that may change
    "draft",
    metadata,
    sa.Column("assignment_id", sa.Integer, sa.ForeignKey("assignment.id"), primary_key=True),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("saved_at", Time(32), nullable=False),
)

audit = sa.Table(  # who did what to the store; each row's hash covers that of the row before
    "audit",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("sha256", Hash(64), nullable=False, unique=True),
    sa.Column("previous_sha256", Hash(64)),
    sa.Column("actor", sa.String(200), nullable=False),
    sa.Column("action", sa.String(40), nullable=False),
    sa.Column("object", Hash(200), nullable=False),
    sa.Column("details", sa.JSON, nullable=False),
    sa.Column("created_at", Time(32), nullable=False),
)

served_user = sa.Table(  # of a labeler who uses a served model; of the token that names them the hash alone, none once they are forgotten
    "served_user",
    metadata,
    sa.Column("labeler", Hash(200), sa.ForeignKey("labeler.handle"), primary_key=True),
    sa.Column("sha256", Hash(64), unique=True),
    sa.Column("created_at", Time(32), nullable=False),
)

consent = sa.Table(  # whether what a user says may be kept: their newest answer counts; append-only
    "consent",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("labeler", Hash(200), sa.ForeignKey("labeler.handle"), nullable=False, index=True),
    sa.Column("answer", sa.String(20), nullable=False),
    sa.Column("guideline", Hash(64), sa.ForeignKey("guideline.sha256")),  # the text that they were asked with
    sa.Column("created_at", Time(32), nullable=False),
    sa.Column("checksum", sa.BigInteger),
    sa.CheckConstraint("answer IN ('agreed', 'refused')", name="answer"),
)

served = sa.Table(  # an answer that a user got, and how it came to be this one
    "served",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("public_id", sa.String(100), nullable=False, unique=True),
    sa.Column("labeler", Hash(200), sa.ForeignKey("labeler.handle"), nullable=False, index=True),
    sa.Column("completion_id", sa.Integer, sa.ForeignKey("completion.id"), nullable=False, index=True),
    sa.Column("conversation", sa.String(100)),
    sa.Column("arm", sa.String(20), nullable=False),
    sa.Column("propensity", sa.Float, nullable=False),  # the probability that it, or its pair, was chosen
    sa.Column("place", sa.SmallInteger),  # 0 where it was displayed first of two, 1 second, null alone
    sa.Column("acquisition", sa.String(20), nullable=False),
    sa.Column("sampling", sa.JSON, nullable=False),  # its own: another with the same text may have had another seed
    sa.Column("sum_logprob", sa.Float),
    sa.Column("created_at", Time(32), nullable=False),
    sa.Column("checksum", sa.BigInteger),
    sa.CheckConstraint("arm IN ('current', 'previous', 'candidate')", name="arm"),
    sa.CheckConstraint("propensity > 0 AND propensity <= 1", name="propensity"),
    sa.CheckConstraint("acquisition IN ('random', 'informative')", name="acquisition"),
)

comparison = sa.Table(  # two of them to one prompt; the votes on it are judgements of its item
    "comparison",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("public_id", sa.String(100), nullable=False, unique=True),
    sa.Column("labeler", Hash(200), sa.ForeignKey("labeler.handle"), nullable=False),
    sa.Column("item_sha256", Hash(64), sa.ForeignKey("item.sha256"), nullable=False),
    sa.Column("first", sa.String(100), sa.ForeignKey("served.public_id"), nullable=False),
    sa.Column("second", sa.String(100), sa.ForeignKey("served.public_id"), nullable=False),
    sa.Column("display_order", sa.JSON, nullable=False),
    sa.Column("created_at", Time(32), nullable=False),
    sa.Column("revealed_at", Time(32)),  # when its models were named, which ends voting
    sa.Column("checksum", sa.BigInteger),
)

reaction = sa.Table(  # what a user said of one answer; of several votes on it the newest counts
    "reaction",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("key", Hash(64), nullable=False, unique=True),  # of user, answer and the key that it was sent with
    sa.Column("labeler", Hash(200), sa.ForeignKey("labeler.handle"), nullable=False, index=True),
    sa.Column("answer", sa.String(100), sa.ForeignKey("served.public_id"), nullable=False, index=True),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("value", sa.SmallInteger),  # of a vote 1 or 0
    sa.Column("reason", sa.String(40)),
    sa.Column("note", Hash(64), sa.ForeignKey("free_text.sha256")),
    sa.Column("written", Hash(64)),  # the user's own answer, by its content
    sa.Column("marks", sa.JSON(none_as_null=True)),
    sa.Column("created_at", Time(32), nullable=False),
    sa.Column("checksum", sa.BigInteger),
    sa.CheckConstraint("kind IN ('vote', 'comment', 'demonstration', 'flag')", name="kind"),
)

snapshot = sa.Table(
    "snapshot",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("sha256", Hash(64), nullable=False, unique=True),
    sa.Column("query", sa.JSON, nullable=False),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("created_at", Time(32), nullable=False),
)

snapshot_row = sa.Table(
    "snapshot_row",
    metadata,
    sa.Column("snapshot_sha256", Hash(64), sa.ForeignKey("snapshot.sha256"), primary_key=True),
    sa.Column("judgement_sha256", Hash(64), sa.ForeignKey("judgement.sha256"), primary_key=True),
    sa.Column("weight", sa.Float),  # what its giver's reliability makes of it; null is 1
)

snapshot_rating = sa.Table(
    "snapshot_rating",
    metadata,
    sa.Column("snapshot_sha256", Hash(64), sa.ForeignKey("snapshot.sha256"), primary_key=True),
    sa.Column("rating_sha256", Hash(64), sa.ForeignKey("rating.sha256"), primary_key=True),
    sa.Column("weight", sa.Float),
)
