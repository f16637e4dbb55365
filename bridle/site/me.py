"""What everybody has of their own: a password, sessions, tokens for programs, and a profile if they like."""

from typing import Annotated

from fastapi import APIRouter, Depends, Form
from fastapi.responses import Response

from bridle.core.errors import DataError
from bridle.feedback.people.accounts import DAY, change_account, credentials, issue, revoke
from bridle.feedback.people.profiles import SEVERAL, TRAITS, checked_profile
from bridle.site.passwords import LONGEST, SHORTEST, hash_password, verify
from bridle.site.signing_in import SHOWN_ONCE, Number, Text, set_cookie, show_once, shown_once
from bridle.site.viewer import SESSION, Viewer, limit_rate, themselves

router = APIRouter(prefix="/me", include_in_schema=False)
Self = Annotated[Viewer, Depends(themselves)]
Several = Annotated[list[str], Form(default_factory=list, max_length=40)]
RIGHTS = ("read", "full")
DAYS = (30, 90, 365)  # that a token may last


@router.get("")
def me_page(viewer: Self) -> Response:
    return own_page(viewer)


def own_page(viewer: Viewer, status: int = 200, problem: str | None = None) -> Response:
    page = viewer.page(
        "me.html",
        status,
        problem=problem,
        done=viewer.request.query_params.get("done") if status == 200 else None,
        sessions=len(credentials(viewer.store, "session", viewer.handle)),
        tokens=credentials(viewer.store, "token", viewer.handle),
        token=shown_once(viewer, "token"),
        traits=TRAITS,
        several=SEVERAL,
        rights=RIGHTS,
        days=DAYS,
    )
    return set_cookie(viewer.request, page, SHOWN_ONCE, "", 0) if SHOWN_ONCE in viewer.request.cookies else page


@router.post("/password")
def change_password(viewer: Self, current: Text, password: Text) -> Response:
    """It ends every other session: who knew the old one is out."""
    assert viewer.account is not None
    limit_rate(viewer, viewer.limits.sign_ins, f"name {viewer.handle}")
    if not verify(viewer.account.password_hash, current):
        return own_page(viewer, 403, viewer.words("people.current_wrong"))
    if not SHORTEST <= len(password) <= LONGEST:
        problem = viewer.words("site.password_wrong", shortest=SHORTEST, longest=LONGEST)
        return own_page(viewer, 422, problem)
    change_account(viewer.store, viewer.handle, by=viewer.handle, password_hash=hash_password(password))
    revoke(viewer.store, labeler=viewer.handle, kind="session", but=viewer.credential)
    return viewer.go("/me?done=password")


@router.post("/sign-out-everywhere")
def sign_out_everywhere(viewer: Self) -> Response:
    revoke(viewer.store, labeler=viewer.handle, kind="session")
    return set_cookie(viewer.request, viewer.go("/sign-in"), SESSION, "", 0)


@router.post("/tokens")
def make_token(viewer: Self, name: Text, rights: Text = "read", days: Annotated[int, Form()] = DAYS[0]) -> Response:
    if not 0 < len(name := name.strip()) <= 80 or rights not in RIGHTS or days not in DAYS:
        return own_page(viewer, 422, viewer.words("people.token_wrong"))
    scopes = {"name": name, "rights": rights}
    secret = issue(viewer.store, "token", labeler=viewer.handle, scopes=scopes, seconds=days * DAY, by=viewer.handle)
    return show_once(viewer, "/me", secret)


@router.post("/tokens/{number}/end")
def end_token(viewer: Self, number: Number) -> Response:
    revoke(viewer.store, credential=number, labeler=viewer.handle, kind="token")
    return viewer.go("/me?done=token")


@router.post("/profile")
def set_profile(
    viewer: Self, languages: Several, fields: Several, region: Text = "", age: Text = "", clear: Text = ""
) -> Response:
    chosen = {"languages": languages, "fields": fields, "region": [region], "age": [age]}
    try:
        profile = checked_profile({} if clear else chosen)
    except DataError as error:
        return own_page(viewer, 422, viewer.sentence(error))
    change_account(viewer.store, viewer.handle, by=viewer.handle, profile=profile)
    return viewer.go(f"/me?done={'cleared' if clear else 'profile'}")
