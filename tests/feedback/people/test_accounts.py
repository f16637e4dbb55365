"""Accounts and their secrets, in both databases."""

import pytest

from bridle.core.errors import DataError
from bridle.feedback.people.accounts import (
    DAY,
    change_account,
    create_account,
    credentials,
    find_account,
    holder,
    issue,
    last_seen,
    revoke,
    take_up,
)
from bridle.feedback.store.store import Store
from bridle.feedback.upkeep.audit import audit_faults


def test_accounts_and_their_secrets(any_store: Store) -> None:
    store = any_store
    invitation = issue(store, "invitation", scopes={"role": "owner"}, seconds=DAY, by="terminal")
    anna = take_up(store, invitation, "anna", password_hash="1", locale="zh")
    assert (anna.role, anna.locale, holder(store, "invitation", invitation)) == ("owner", "zh", None)
    with pytest.raises(DataError, match="was used, has ended or was taken back"):
        take_up(store, invitation, "eve", password_hash="1", locale=None)
    assert find_account(store, "eve") is None and last_seen(store) == {}

    sessions = [issue(store, "session", labeler="anna", seconds=DAY) for _ in range(3)]
    token = issue(store, "token", labeler="anna", scopes={"name": "x", "rights": "read"}, seconds=None)
    found = holder(store, "session", sessions[0])
    assert (
        found is not None and found[1] is not None and found[1].handle == "anna" and last_seen(store).keys() == {"anna"}
    )
    assert revoke(store, labeler="anna", kind="session", but=found[0].id) == 2
    assert (
        holder(store, "session", sessions[0])
        and not holder(store, "session", sessions[1])
        and holder(store, "token", token)
    )
    assert not holder(store, "session", token) and not holder(store, "token", sessions[0])

    link = issue(store, "invitation", scopes={"role": "owner", "handle": "anna", "existing": True}, seconds=DAY)
    with pytest.raises(DataError, match="not for 'bob'"):
        take_up(store, link, "bob", password_hash="2", locale=None)
    assert take_up(store, link, "anna", password_hash="2", locale=None).password_hash == "2"
    assert not credentials(store, "session", "anna") and not credentials(store, "token")
    assert revoke(store) == 0  # nothing named, nothing ended

    with pytest.raises(DataError, match="only owner"):
        change_account(store, "anna", by="anna", role="annotator")
    create_account(store, "sync", "service")
    for wrong in ({"role": "owner"}, {"role": "king"}):
        with pytest.raises(DataError, match="is service, and cannot be"):
            change_account(store, "sync", by="anna", **wrong)
    with store.reading() as connection:
        assert not list(audit_faults(connection))
