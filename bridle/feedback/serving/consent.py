"""Users of a served model, and whether what they say may be kept: nobody's words are, who was not asked and did not agree.

    publish_consent(store, {"en": "We keep …", "zh": "…"})     a new version asks everybody again
    user = add_user(store, token)                              at their first answer; of the token its hash alone is kept
    set_consent(store, user, "agreed", text=consent_text(store, "en").sha256)
    may_keep(store, user)                                      until set_consent(store, user, "refused")

A user is a labeler of kind person. Their handle is drawn, says nothing of them, and does not follow from the token.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from bridle.core.errors import DataError
from bridle.core.records import LabelerKind
from bridle.feedback.people.accounts import secret_hash
from bridle.feedback.store import tables
from bridle.feedback.store.store import Store, insert_new
from bridle.feedback.store.studies import publish_texts

CONSENT = "consent"  # the name that the texts stand under, among guidelines


@dataclass(frozen=True)
class ConsentText:
    version: int
    lang: str
    markdown: str
    sha256: str


@dataclass(frozen=True)
class Consent:
    """One answer of a user; `version` is that of the text that was asked then, None where they refused before there was one."""

    answer: Literal["agreed", "refused"]
    version: int | None
    at: str


# ---------------------------------------------------------------------------------------------------------- users


def add_user(store: Store, token: str) -> str:
    """The handle of the user who has this token, which is a random secret of 128 bits or more; a new one where there is none."""
    if len(token) < 22:
        raise DataError(f"a user's token has {len(token)} characters, but a secret needs 22 or more; draw a random one")
    with store.writing() as connection:
        if (known := _user_of(connection, token)) is not None:
            return known
        handle = f"user-{secrets.token_hex(8)}"
        insert_new(connection, tables.labeler, [{"handle": handle, "kind": LabelerKind.PERSON.value}])
        if not insert_new(connection, tables.served_user, [{"labeler": handle, "sha256": secret_hash(token)}]):
            raise DataError("another request has just made this user; send it again")
        return handle


def find_user(store: Store, token: str) -> str | None:
    """None where nobody has this token, or has it any more."""
    with store.reading() as connection:
        return _user_of(connection, token)


def _user_of(connection: sa.Connection, token: str) -> str | None:
    table = tables.served_user.c
    return connection.execute(sa.select(table.labeler).where(table.sha256 == secret_hash(token))).scalar()


# -------------------------------------------------------------------------------------------------------- consent


def publish_consent(store: Store, texts: Mapping[str, str]) -> int:
    """Publish what users are asked, by language; returns its version. What differs from the newest one is the next version, and an answer
    to an earlier one no longer counts."""
    if not texts or not all(text.strip() for text in texts.values()):
        raise DataError("a consent text is empty; say what is kept, what for, and how it is deleted")
    with store.writing() as connection:
        return publish_texts(connection, CONSENT, texts)


def consent_text(store: Store, lang: str | None = None) -> ConsentText | None:
    """The newest version, in this language where there is one; None where nothing was published, so that nobody can agree."""
    table = tables.guideline.c
    query = sa.select(table.version, table.lang, table.markdown, table.sha256).where(table.study == CONSENT)
    query = query.order_by(table.version.desc(), (table.lang == (lang or "")).desc(), table.id).limit(1)
    with store.reading() as connection:
        row = connection.execute(query).first()
    return None if row is None else ConsentText(*row)


def set_consent(store: Store, user: str, answer: Literal["agreed", "refused"], *, text: str | None = None) -> None:
    """Write down a user's answer to the consent text of this hash; refusing needs none. The same answer to the same text is one row.
    DataError: the user is not known, or agrees to what is not the newest text."""
    table, asked = tables.consent, tables.guideline.c
    with store.writing() as connection:
        if not hold_user(connection, user):
            raise DataError(f"there is no user {user[:64]!r}; make one with add_user")
        if answer not in ("agreed", "refused"):
            raise DataError(f"the answer to a consent text is {answer[:64]!r}, but it must be 'agreed' or 'refused'")
        newest = connection.execute(sa.select(asked.sha256).where(is_newest_text()).order_by(asked.id)).scalars().all()
        if text not in newest and (answer == "agreed" or text is not None):
            raise DataError("the text that was answered is not the newest consent text; ask again with that one")
        row = {"labeler": user, "answer": answer, "guideline": text or next(iter(newest), None)}
        before = sa.select(table.c.labeler, table.c.answer, table.c.guideline).where(table.c.labeler == user)
        last = connection.execute(before.order_by(table.c.id.desc()).limit(1)).first()
        if last is None or last._asdict() != row:
            insert_new(connection, table, [row])


def consents(store: Store, user: str) -> list[Consent]:
    """What a user answered, the oldest first."""
    table = tables.consent.c
    query = sa.select(table.answer, tables.guideline.c.version, table.created_at).select_from(tables.consent)
    query = query.outerjoin(tables.guideline).where(table.labeler == user).order_by(table.id)
    with store.reading() as connection:
        return [Consent(*row) for row in connection.execute(query)]


def must_ask(store: Store, user: str) -> bool:
    """Whether there is a text that a user has not answered."""
    text, answers = consent_text(store), consents(store, user)
    return text is not None and (not answers or answers[-1].version != text.version)


def may_keep(store: Store, user: str) -> bool:
    """Whether a user's newest answer agrees to the newest text."""
    with store.reading() as connection:
        return has_agreed(connection, user)


def has_agreed(connection: sa.Connection, user: str) -> bool:
    """The same in a transaction; one that writes calls `hold_user` first, so that a change of mind comes before it or after it."""
    table, known = tables.consent.c, tables.served_user.c
    newest = sa.select(table.id).where(table.labeler == user).order_by(table.id.desc()).limit(1).scalar_subquery()
    agreed = sa.select(table.id).join(tables.guideline).join(tables.served_user, known.labeler == table.labeler)
    agreed = agreed.where(table.id == newest, table.answer == "agreed", known.sha256.is_not(None), is_newest_text())
    return connection.execute(agreed).first() is not None


def hold_user(connection: sa.Connection, user: str) -> bool:
    """Whether somebody has the token of this user; who was forgotten has none. Others wait with what they write of the user until this
    transaction ends."""
    table = tables.served_user.c
    known = sa.select(table.labeler).where(table.labeler == user, table.sha256.is_not(None)).with_for_update()
    return connection.execute(known).first() is not None


def is_newest_text() -> sa.ColumnElement[bool]:
    """A condition on guidelines."""
    table, every = tables.guideline.c, tables.guideline.alias("every").c
    newest = sa.select(sa.func.max(every.version)).where(every.study == CONSENT).scalar_subquery()
    return sa.and_(table.study == CONSENT, table.version == newest)
