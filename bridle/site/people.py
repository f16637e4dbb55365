"""The owner's page of who takes part: invitations, roles, programs, and accounts that are closed and opened again."""

from typing import Annotated

from fastapi import APIRouter, Depends, Form
from fastapi.responses import Response

from bridle.core.errors import DataError
from bridle.feedback.people.accounts import (
    DAY,
    HANDLE,
    ROLES,
    accounts,
    as_handle,
    change_account,
    create_account,
    credentials,
    find_account,
    is_taken,
    issue,
    last_seen,
    revoke,
)
from bridle.feedback.store.rows import now
from bridle.feedback.store.studies import exclude_person
from bridle.site.signing_in import SHOWN_ONCE, Number, Text, set_cookie, show_once, shown_once
from bridle.site.viewer import Viewer, owners_at_page

router = APIRouter(prefix="/people", include_in_schema=False)
Owner = Annotated[Viewer, Depends(owners_at_page)]
PEOPLES_ROLES = ROLES[:3]
INVITED_DAYS = (1, 7, 30)


@router.get("")
def people_page(viewer: Owner) -> Response:
    return all_people(viewer)


def all_people(viewer: Viewer, status: int = 200, problem: str | None = None) -> Response:
    invitation, token = shown_once(viewer, "invitation"), shown_once(viewer, "token")
    page = viewer.page(
        "people.html",
        status,
        problem=problem,
        people=accounts(viewer.store),
        seen=last_seen(viewer.store),
        invitations=credentials(viewer.store, "invitation"),
        link=invitation and viewer.link(f"/join/{invitation}"),
        token=token,
        roles=PEOPLES_ROLES,
        days=INVITED_DAYS,
    )
    return set_cookie(viewer.request, page, SHOWN_ONCE, "", 0) if SHOWN_ONCE in viewer.request.cookies else page


@router.post("/invitations")
def invite(viewer: Owner, role: Text, days: Annotated[int, Form()] = INVITED_DAYS[1]) -> Response:
    if role not in PEOPLES_ROLES or days not in INVITED_DAYS:
        return all_people(viewer, 422, viewer.words("people.invitation_wrong"))
    secret = issue(viewer.store, "invitation", scopes={"role": role}, seconds=days * DAY, by=viewer.handle)
    return show_once(viewer, "/people", secret)


@router.post("/invitations/{number}/end")
def take_back(viewer: Owner, number: Number) -> Response:
    revoke(viewer.store, credential=number, kind="invitation")
    return viewer.go("/people")


@router.post("/programs")
def add_program(viewer: Owner, handle: Text, days: Annotated[int, Form()] = 365) -> Response:
    """An account without a password, and the token by which the program signs in."""
    handle = as_handle(handle)
    if not HANDLE.fullmatch(handle) or not 0 < days <= 3650:
        return all_people(viewer, 422, viewer.words("site.name_wrong"))
    account = find_account(viewer.store, handle)
    if account is None and is_taken(viewer.store, handle) or account is not None and account.role != "service":
        return all_people(viewer, 422, viewer.words("site.name_taken"))
    with viewer.store.transaction() as store:
        if account is None:
            create_account(store, handle, "service")
        scopes = {"name": handle, "rights": "full"}
        secret = issue(store, "token", labeler=handle, scopes=scopes, seconds=days * DAY, by=viewer.handle)
    return show_once(viewer, "/people", secret)


@router.post("/role")
def change_role(viewer: Owner, handle: Text, role: Text) -> Response:
    return changed(viewer, handle, role=role)


@router.post("/close")
def close(viewer: Owner, handle: Text, exclude: Text = "", reason: Text = "") -> Response:
    """The judgements stay; they count no more where that is asked for, with a reason."""
    if exclude and not reason.strip():
        return all_people(viewer, 422, viewer.words("people.reason_missing"))
    try:
        with viewer.store.transaction() as store:
            change_account(store, handle, by=viewer.handle, disabled_at=now())
            if exclude:
                exclude_person(store, handle, reason=reason.strip(), by=viewer.handle)
    except DataError as error:
        return all_people(viewer, 422, viewer.sentence(error))
    return viewer.go("/people" if handle != viewer.handle else "/sign-in")


@router.post("/open")
def open_again(viewer: Owner, handle: Text) -> Response:
    return changed(viewer, handle, disabled_at=None)


@router.post("/link")
def password_link(viewer: Owner, handle: Text) -> Response:
    """For who lost a password: a link by which a new one is set, once."""
    account = find_account(viewer.store, handle)
    if account is None or account.disabled_at or account.role == "service":
        return all_people(viewer, 422, viewer.words("people.no_such_person"))
    scopes = {"role": account.role, "handle": handle, "existing": True}
    return show_once(viewer, "/people", issue(viewer.store, "invitation", scopes=scopes, seconds=DAY, by=viewer.handle))


def changed(viewer: Viewer, handle: str, *, role: str | None = None, disabled_at: str | None = "") -> Response:
    values = {"role": role} if role is not None else {"disabled_at": disabled_at}
    try:
        change_account(viewer.store, handle, by=viewer.handle, **values)
    except DataError as error:
        return all_people(viewer, 422, viewer.sentence(error))
    return viewer.go("/people")
