"""What a user says of one answer: thumbs with a reason, a comment, a better answer of their own, a flag.

    react(store, user, answer.id, Reaction("vote", key="k1", value=1, reason="correctness", text="It names its source."))
    react(store, user, answer.id, Reaction("demonstration", key="k2", text="I should say …"))

Each is a row of its own. A vote and a flag are ratings too, with the source "serving", which nothing learns from unless it names that
source: thumbs alone never train a policy. A demonstration is an answer with its writer as author. Sent again with its key it is the same.
"""

from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from bridle.core.errors import DataError
from bridle.core.records import Completion, LabelerKind, Rating, content_hash
from bridle.feedback.serving.answers import ServedAnswer, answer_of, is_gone_text
from bridle.feedback.serving.comparisons import USERS_OWN, require_key, require_note
from bridle.feedback.serving.consent import has_agreed, hold_user
from bridle.feedback.serving.honesty import OVER_CAP, is_over_cap
from bridle.feedback.store import tables
from bridle.feedback.store.ratings import add_ratings
from bridle.feedback.store.reading import SERVING
from bridle.feedback.store.rows import Values
from bridle.feedback.store.store import Store, add_free_texts, insert_new

WHY = ("correctness", "following", "safety", "length", "style")  # what thumbs, up or down, are about
FLAGGED_FOR = ("harmful", "untrue", "personal", "broken", "names_model", "other")  # as annotators flag answers


@dataclass(frozen=True)
class Reaction:
    """`value`: of a vote 1 for the answer, 0 against it. `reason`: of a vote one of WHY, of a flag one of FLAGGED_FOR, or None. `text`:
    words besides; the comment, or the demonstration, itself."""

    kind: Literal["vote", "comment", "demonstration", "flag"]
    key: str
    value: Literal[0, 1] | None = None
    reason: str | None = None
    text: str = ""


def react(store: Store, user: str, answer: str, reaction: Reaction, *, cap: int | None = None) -> bool | None:
    """Keep it; True where it is new, False where it came before with this key. None: the user no longer agrees, or the text was taken down,
    and nothing is kept. `cap`: as `vote` takes it. DataError: no such answer of theirs, or the key came with something else."""
    require_reaction(reaction)
    with store.transaction() as one, one.writing() as connection:
        if not hold_user(connection, user) or not has_agreed(connection, user):
            return None
        served = answer_of(connection, user, answer)
        row = reaction_row(served, reaction)
        table = tables.reaction
        known = connection.execute(sa.select(table).where(table.c.key == row["key"])).one_or_none()
        if known is not None:
            if {name: known._asdict()[name] for name in row} != row:
                raise DataError(
                    f"the key {reaction.key!r} came with something else; what differs needs a key of its own"
                )
            return False
        if is_gone_text(connection, [row["note"] or "", row["written"] or ""]):
            return None
        over = is_over_cap(connection, user, cap)
        if reaction.kind == "demonstration":
            one.add_completions([own_answer(served, reaction)], source=USERS_OWN, author=user)
        else:
            add_free_texts(connection, [reaction.text.strip()])
        insert_new(connection, table, [{**row, "marks": [OVER_CAP] if over else None}])
        if reaction.kind in ("vote", "flag"):
            add_ratings(one, [rating_by(served, reaction, over)])
        return True


def require_reaction(reaction: Reaction) -> None:
    reasons = {"vote": WHY, "flag": FLAGGED_FOR}.get(reaction.kind, ())
    if reaction.kind not in ("vote", "comment", "demonstration", "flag"):
        raise DataError(f"an answer has no {reaction.kind[:40]!r}; send a vote, comment, demonstration or flag")
    if (reaction.kind == "vote") != (type(reaction.value) is int and reaction.value in (0, 1)):
        raise DataError(
            f"a vote has the value 1 or 0, and nothing else has one, but this {reaction.kind} has {reaction.value!r}"
        )
    if reaction.reason is not None and reaction.reason not in reasons:
        allowed = f"must be one of {', '.join(reasons)}" if reasons else "has none"
        raise DataError(f"the reason of a {reaction.kind} {allowed}, but got {reaction.reason[:40]!r}")
    if reaction.kind in ("comment", "demonstration") and not reaction.text.strip():
        raise DataError(f"a {reaction.kind} without a text is nothing; write one")
    require_key(reaction.key)
    require_note(reaction.text)


def reaction_row(served: ServedAnswer, reaction: Reaction) -> Values:
    text = reaction.text.strip()
    own = own_answer(served, reaction).id if reaction.kind == "demonstration" else None
    return {
        "key": content_hash([served.user, served.id, reaction.key]),
        "labeler": served.user,
        "answer": served.id,
        "kind": reaction.kind,
        "value": reaction.value,
        "reason": reaction.reason,
        "note": content_hash(text) if text and own is None else None,
        "written": own,
    }


def own_answer(served: ServedAnswer, reaction: Reaction) -> Completion:
    return Completion(served.completion.prompt_id, reaction.text.strip())


def rating_by(served: ServedAnswer, reaction: Reaction, over: bool) -> Rating:
    """Words stay with the reaction: a rating is never changed, and what a user said can be asked back."""
    return Rating(
        completion=served.completion,
        labeler=served.user,
        labeler_kind=LabelerKind.PERSON,
        kind="vote" if reaction.kind == "vote" else "flag",
        value=None if reaction.value is None else float(reaction.value),
        criterion=(reaction.reason or "other") if reaction.kind == "flag" else None,
        weight=0.0 if over else 1.0,
        source=SERVING,
    )
