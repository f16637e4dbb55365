"""Which model is served: what the store's account of what was done says, and nothing else.

    promote(share 1)     this version is served from now on; what was served before is kept in mind
    promote(share < 1)   this share of the users meets it, the others what is served: it is a candidate still
    withdraw             a candidate's share is taken back; without one, what was served before is served again

Every step is a row of `audit` with its numbers, written in one transaction with the versions' status, so that what is served can be
replayed from these rows alone, and a step that was done is not done twice.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, select, update

from bridle.core.errors import DataError
from bridle.feedback.store import tables
from bridle.feedback.store.store import Store
from bridle.feedback.upkeep.audit import append_audit, hold_account

PROMOTE, ROLL_BACK = "promote", "roll_back"


@dataclass(frozen=True)
class Promotion:
    """One row of the account: what was promoted or taken back, by whom, when, and why."""

    action: str
    content: str
    details: Mapping[str, Any]
    by: str = ""
    at: str = ""


@dataclass(frozen=True)
class Served:
    """The version that is served; the candidate that a share of the users meets; and what was served before, the newest last. Versions by
    the hash of their weights."""

    content: str | None = None
    candidate: str | None = None
    share: float = 0.0
    before: tuple[str, ...] = ()

    def after(self, step: Promotion) -> "Served":
        if step.action == ROLL_BACK:
            if self.candidate is not None:
                return replace(self, candidate=None, share=0.0)
            return Served(self.before[-1], before=self.before[:-1])
        share = float(step.details["share"])
        if share < 1:
            return replace(self, candidate=step.content, share=share)
        return Served(step.content, before=(*self.before, *([self.content] if self.content else ())))

    def status(self, content: str) -> str:
        """Of a version that was promoted once."""
        if content == self.content:
            return "serving"
        return "candidate" if content == self.candidate else "retired"


def promotion_steps(store: Store) -> list[Promotion]:
    """In their order."""
    with store.reading() as connection:
        return steps_among(connection)


def steps_among(connection: Connection) -> list[Promotion]:
    table = tables.audit.c
    query = select(table.action, table.object, table.details, table.actor, table.created_at)
    rows = connection.execute(query.where(table.action.in_((PROMOTE, ROLL_BACK))).order_by(table.id))
    return [Promotion(*row) for row in rows]


def replayed(steps: Iterable[Promotion]) -> Served:
    """What is served after these steps."""
    found = Served()
    for step in steps:
        found = found.after(step)
    return found


def served_now(store: Store) -> Served:
    return replayed(promotion_steps(store))


def promote(
    store: Store, content: str, *, by: str, share: float = 1.0, details: Mapping[str, Any] | None = None
) -> Served:
    """Serve a registered version to a share of the users, or to all. `details`: the numbers that speak for it. DataError where it is not
    registered, is a reward model, or there is nothing that the other users could be served."""
    if not 0 < share <= 1:
        raise DataError(f"the share of the users that meet it must be over 0 and at most 1, got {share:g}")
    with store.writing() as connection:
        hold_account(connection)
        steps = steps_among(connection)
        now, table = replayed(steps), tables.model_version.c
        kind = connection.execute(select(table.kind).where(table.weights_sha256 == content)).scalar()
        if kind is None or kind == "reward":
            what = "not registered" if kind is None else "a reward model, which answers nobody"
            raise DataError(f"{content[:15]}… is {what}; `bridle models list` names the models that can be served")
        if (now.content, share) == (content, 1.0) or (now.candidate, now.share) == (content, share):
            return now
        if share < 1 and now.content in (None, content):
            other = "nothing is served yet" if now.content is None else "it is served already"
            raise DataError(f"a share of the users needs another model for the rest, but {other}; promote it whole")
        append_audit(connection, by, PROMOTE, content, {**(details or {}), "share": share, "instead_of": now.content})
        return note_status(connection, steps_among(connection))


def withdraw(store: Store, *, by: str, of: str | None = None, details: Mapping[str, Any] | None = None) -> Served:
    """Take back the candidate's share; where there is none, serve what was served before. `of`: the version that is to be taken back, so
    that doing it twice does it once. DataError where there is nothing to go back to."""
    with store.writing() as connection:
        hold_account(connection)
        now = replayed(steps_among(connection))
        gone = now.candidate or now.content
        if gone is None or (now.candidate is None and not now.before):
            held = "nothing is served" if gone is None else f"nothing was served before {gone[:15]}…"
            raise DataError(f"there is nothing to go back to: {held}; promote the model that should be served")
        if of not in (None, gone):
            return now
        append_audit(connection, by, ROLL_BACK, gone, dict(details or {}))
        return note_status(connection, steps_among(connection))


def note_status(connection: Connection, steps: Iterable[Promotion]) -> Served:
    """Write what follows from the steps beside the versions."""
    steps = list(steps)
    now, table = replayed(steps), tables.model_version
    for content in {step.content for step in steps}:
        row = table.c.weights_sha256 == content
        connection.execute(update(table).where(row).values(status=now.status(content)))
    return now
