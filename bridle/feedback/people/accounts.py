"""Accounts, and the secrets that prove who somebody is: sessions, API tokens and invitations, of which the hash alone is kept.

    secret = issue(store, "invitation", scopes={"role": "annotator"}, seconds=7 * DAY)
    anna = take_up(store, secret, "anna", password_hash=hashed, locale="en")      # once; then a session of hers
    cookie = issue(store, "session", labeler="anna", seconds=30 * DAY)
    found = holder(store, "session", cookie)                                      # None once it ended or was revoked

A person's handle is that of the labeler whose judgements are theirs. An account is closed and never deleted, and with it ends every session
and token of it.
"""

import hashlib
import re
import secrets
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Literal

import sqlalchemy as sa

from bridle.core.errors import DataError, StoreError
from bridle.core.records import LabelerKind
from bridle.feedback.store import tables
from bridle.feedback.store.driver import fetch_rows
from bridle.feedback.store.rows import Values, now
from bridle.feedback.store.store import Store, insert_new
from bridle.feedback.upkeep.audit import append_audit

Role = Literal["owner", "adjudicator", "annotator", "service"]
CredentialKind = Literal["session", "token", "invitation"]
ROLES: tuple[Role, ...] = ("owner", "adjudicator", "annotator", "service")
DAY = 24 * 3600.0
NOTED_EVERY = (
    300.0  # seconds between two notes of when a credential was used: a write for each request would be too many
)
HANDLE = re.compile(r"[^\W_][\w.@+-]{0,63}")
ACCOUNT = ("labeler", "role", "locale", "profile", "created_at", "disabled_at", "password_hash")
CREDENTIAL = ("id", "kind", "labeler", "scopes", "created_at", "expires_at", "last_used_at")


@dataclass(frozen=True)
class Account:
    handle: str
    role: str
    locale: str | None
    profile: Mapping[str, Any]
    created_at: str
    disabled_at: str | None
    password_hash: str | None = field(repr=False)
    kind: LabelerKind = LabelerKind.PERSON


@dataclass(frozen=True)
class Credential:
    id: int
    kind: str
    labeler: str | None
    scopes: Mapping[str, Any]
    created_at: str
    expires_at: str | None
    last_used_at: str | None


def secret_hash(secret: str) -> str:
    """What the store keeps of a secret. It is random and of 256 bits, so that nobody finds it from the hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def moment(seconds_from_now: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds_from_now)).isoformat(timespec="milliseconds")


# ------------------------------------------------------------------------------------------------------- accounts


def create_account(
    store: Store,
    handle: str,
    role: str,
    *,
    password_hash: str | None = None,
    locale: str | None = None,
    kind: LabelerKind = LabelerKind.PERSON,
) -> Account:
    """Raises DataError where the handle is none, or is somebody's. A simulated labeler that labelled without an account may have one."""
    if not HANDLE.fullmatch(handle):
        raise DataError(
            f"{handle[:64]!r} cannot be a name here; take letters, digits and . _ @ + -, beginning with a letter or a digit, 64 at most"
        )
    if role not in ROLES:
        raise DataError(f"there is no role {role!r}; the roles are {', '.join(ROLES)}")
    with store.writing() as connection:
        known = connection.execute(sa.select(tables.labeler.c.kind).where(tables.labeler.c.handle == handle)).scalar()
        # Also one whose judgements were imported: nobody takes over what another said. A simulated one is the same program again.
        again = known == kind.value == LabelerKind.SIMULATED.value
        if known is not None and not (again and not connection.execute(account_query(), {"labeler": handle}).first()):
            raise DataError(f"the name {handle!r} is taken; choose another")
        insert_new(connection, tables.labeler, [{"handle": handle, "kind": kind.value}])
        row: Values = {"labeler": handle, "role": role, "password_hash": password_hash, "locale": locale, "profile": {}}
        insert_new(connection, tables.account, [row])
        append_audit(connection, handle, "account", handle, {"role": role})
        return account_of(connection.execute(account_query(), {"labeler": handle}).one())


@cache
def account_query() -> sa.Select[Any]:
    return every_account().where(tables.account.c.labeler == sa.bindparam("labeler"))


def account_columns() -> list[sa.Label[Any]]:
    own = [tables.account.c[name].label(f"account_{name}") for name in ACCOUNT]
    return [*own, tables.labeler.c.kind.label("account_kind")]


def every_account() -> sa.Select[Any]:
    return sa.select(*account_columns()).join_from(tables.account, tables.labeler)


def account_of(row: Any) -> Account:
    values = row._asdict()
    return Account(*(*(values[f"account_{name}"] for name in ACCOUNT), LabelerKind(row.account_kind)))


def as_handle(text: str) -> str:
    """A name as it was typed, in the one form in which it is kept: letters with accents can be typed in two."""
    return unicodedata.normalize("NFC", text.strip())


def is_taken(store: Store, handle: str) -> bool:
    """Whether it is the name of an account, or of whoever else judged."""
    with store.reading() as connection:
        return connection.execute(sa.select(1).where(tables.labeler.c.handle == handle)).first() is not None


def find_account(store: Store, handle: str) -> Account | None:
    with store.reading() as connection:
        row = connection.execute(account_query(), {"labeler": handle}).one_or_none()
    return None if row is None else account_of(row)


def accounts(store: Store) -> list[Account]:
    with store.reading() as connection:
        return [account_of(row) for row in connection.execute(every_account().order_by(tables.account.c.created_at))]


def change_account(store: Store, handle: str, *, by: str, **values: Any) -> None:
    """Change an account's role, locale, profile, password_hash or disabled_at. Closing it ends its sessions and tokens. Raises DataError
    where there is none, where no owner would be left, and where a program would become a person or the reverse."""
    table = tables.account.c
    with store.writing() as connection:
        others = sa.select(sa.func.count()).where(table.role == "owner", table.disabled_at.is_(None))
        others = others.where(table.labeler != handle)
        row = connection.execute(account_query(), {"labeler": handle}).one_or_none()
        if row is None:
            raise DataError(f"there is no account {handle[:64]!r}")
        was = account_of(row)
        role = values.get("role", was.role)
        if role not in ROLES or (role == "service") != (was.role == "service"):
            raise DataError(f"{handle!r} is {was.role}, and cannot be {role[:64]!r}; people are {', '.join(ROLES[:3])}")
        loses = values.get("role", "owner") != "owner" or values.get("disabled_at") is not None
        if was.role == "owner" and loses and not connection.execute(others).scalar_one():
            raise DataError(f"{handle!r} is the only owner; make somebody else an owner first")
        connection.execute(sa.update(tables.account).where(table.labeler == handle).values(values))
        if values.get("disabled_at") is not None:
            _end(connection, tables.credential.c.labeler == handle)
        if noted := {name: value for name, value in values.items() if name in ("role", "disabled_at")}:
            append_audit(connection, by, "account", handle, noted)


# ---------------------------------------------------------------------------------------------------- credentials


def issue(
    store: Store,
    kind: CredentialKind,
    *,
    labeler: str | None = None,
    scopes: Mapping[str, Any] | None = None,
    seconds: float | None,
    by: str | None = None,
) -> str:
    """A new secret, which is told once. `seconds`: until it ends; None: never. `by`: who gave it out, for the store's account.

    An invitation's scopes are its "role", and "existing" where it may set the password of an account of that role instead: of any, or of
    the one that "handle" names. A token's are its "name", and its "rights": "full" or "read".
    """
    secret = secrets.token_urlsafe(32)
    row: Values = {"sha256": secret_hash(secret), "labeler": labeler, "kind": kind, "scopes": dict(scopes or {})}
    row["expires_at"] = None if seconds is None else moment(seconds)
    with store.writing() as connection:
        insert_new(connection, tables.credential, [row])
        if by is not None:
            granted = {key: value for key, value in row["scopes"].items() if key != "name"}
            append_audit(connection, by, kind, labeler or granted.get("handle", ""), granted)
    return secret


@cache
def credential_query() -> sa.Select[Any]:
    credential, account = tables.credential.c, tables.account
    query = sa.select(*(credential[name] for name in CREDENTIAL), *account_columns()).select_from(tables.credential)
    query = query.outerjoin(account, account.c.labeler == credential.labeler)
    query = query.outerjoin(tables.labeler, tables.labeler.c.handle == account.c.labeler)
    query = query.where(credential.sha256 == sa.bindparam("sha256"), credential.kind == sa.bindparam("kind"))
    query = query.where(credential.revoked_at.is_(None), account.c.disabled_at.is_(None))
    return query.where(sa.or_(credential.expires_at.is_(None), credential.expires_at > sa.bindparam("at")))


def credential_of(row: Any) -> Credential:
    values = row._asdict()
    return Credential(*(values[name] for name in CREDENTIAL))


def holder(
    store: Store, kind: CredentialKind, secret: str, *, used: bool = True
) -> tuple[Credential, Account | None] | None:
    """Whose a secret is, while it is good; an invitation is nobody's yet. That it was `used` is noted, every five minutes."""
    bound = {"sha256": secret_hash(secret), "kind": kind, "at": now()}
    with store.reading(one_query=True) as connection:
        rows = fetch_rows(connection, credential_query(), bound)
    if not rows:
        return None
    found = credential_of(rows[0])
    if used and kind != "invitation" and (found.last_used_at or "") < moment(-NOTED_EVERY):
        with suppress(StoreError), store.writing() as connection:  # who only looks need not wait for who writes
            change = sa.update(tables.credential).where(tables.credential.c.id == found.id)
            connection.execute(change.values(last_used_at=bound["at"]))
    return found, None if found.labeler is None else account_of(rows[0])


def take_up(store: Store, secret: str, handle: str, *, password_hash: str | None, locale: str | None) -> Account:
    """Make the account that an invitation is for, or set the password of one that it is for, which ends the invitation, and all that the
    old password opened. Raises DataError where it is not good any more, or not for this name."""
    bound = {"sha256": secret_hash(secret), "kind": "invitation", "at": now()}
    with store.transaction() as one, one.writing() as connection:
        row = connection.execute(credential_query(), bound).one_or_none()
        if row is None:
            raise DataError("this invitation was used, has ended or was taken back; ask for another")
        found = credential_of(row)
        role, old = found.scopes["role"], find_account(one, handle) if found.scopes.get("existing") else None
        if found.scopes.get("handle", handle) != handle or (old and (old.role != role or old.disabled_at)):
            raise DataError(f"this link is not for {handle[:64]!r}")
        if old is None:
            account = create_account(one, handle, role, password_hash=password_hash, locale=locale)
        else:
            change_account(one, handle, by=handle, password_hash=password_hash)
            _end(connection, tables.credential.c.labeler == handle)
            append_audit(connection, handle, "password", handle, {"by": "link"})
            account = replace(old, password_hash=password_hash)
        change = sa.update(tables.credential).where(tables.credential.c.id == found.id)
        connection.execute(change.values(labeler=handle, revoked_at=bound["at"]))
        return account


def credentials(store: Store, kind: CredentialKind, labeler: str | None = None) -> list[Credential]:
    """Those that are good now, the newest first: of one person, or of all."""
    table = tables.credential.c
    query = sa.select(tables.credential).where(table.kind == kind, table.revoked_at.is_(None))
    query = query.where(sa.or_(table.expires_at.is_(None), table.expires_at > now())).order_by(table.id.desc())
    if labeler is not None:
        query = query.where(table.labeler == labeler)
    with store.reading() as connection:
        return [credential_of(row) for row in connection.execute(query)]


def last_seen(store: Store) -> dict[str, str]:
    """When each account was last used, by handle."""
    table = tables.credential.c
    query = sa.select(table.labeler, sa.func.max(table.last_used_at)).where(table.last_used_at.is_not(None))
    query = query.where(table.kind != "invitation").group_by(table.labeler)
    with store.reading() as connection:
        return dict(tuple(row) for row in connection.execute(query))


def revoke(
    store: Store,
    *,
    credential: int | None = None,
    secret: str | None = None,
    labeler: str | None = None,
    kind: CredentialKind | None = None,
    but: int | None = None,
) -> int:
    """End one credential, by its number or secret, or all of a person, `but` one: of these, what all that is given names. Returns how many
    ended."""
    table = tables.credential.c
    named = {table.id: credential, table.labeler: labeler, table.sha256: secret and secret_hash(secret)}
    where = [column == value for column, value in named.items() if value is not None]
    if not where:
        return 0
    where += [table.kind == kind] if kind is not None else []
    where += [table.id != but] if but is not None else []
    with store.writing() as connection:
        return _end(connection, *where)


def _end(connection: sa.Connection, *where: sa.ColumnElement[bool]) -> int:
    change = sa.update(tables.credential).where(tables.credential.c.revoked_at.is_(None), *where)
    return connection.execute(change.values(revoked_at=now())).rowcount
