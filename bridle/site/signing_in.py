"""Pages for signing in and out, for taking up an invitation, and the language."""

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Path, Request
from fastapi.responses import Response

from bridle.core.errors import DataError
from bridle.feedback.people.accounts import (
    DAY,
    HANDLE,
    CredentialKind,
    as_handle,
    change_account,
    find_account,
    holder,
    is_taken,
    issue,
    revoke,
    take_up,
)
from bridle.site.languages import LANGUAGES
from bridle.site.passwords import LONGEST, SHORTEST, hash_password, outdated, verify
from bridle.site.viewer import LANGUAGE, SESSION, Viewer, anyone, limit_rate, root_of

router = APIRouter(include_in_schema=False)
SESSION_SECONDS = 30 * DAY
SHOWN_ONCE = (
    "bridle_shown_once"  # a cookie: a new secret, on the way from the form that asked for it to the page that shows it
)

Anyone = Annotated[Viewer, Depends(anyone)]
Text = Annotated[str, Form(max_length=2000)]
Number = Annotated[int, Path(ge=1, lt=2**31)]  # of a credential
LOCAL = re.compile(r"/(?![/\\])[^\x00-\x20\\\x7f]*")


def local(path: str) -> str:
    """A path of this site, where to go on after signing in; never another site's."""
    return path if LOCAL.fullmatch(path) else "/"


def with_session(viewer: Viewer, answer: Response, handle: str) -> Response:
    """A session of its own for each sign-in, in place of the one before: a cookie that somebody planted is good for nothing."""
    if before := viewer.request.cookies.get(SESSION):
        revoke(viewer.store, secret=before, kind="session")
    secret = issue(viewer.store, "session", labeler=handle, seconds=SESSION_SECONDS)
    return set_cookie(viewer.request, answer, SESSION, secret, SESSION_SECONDS)


def set_cookie(request: Request, answer: Response, name: str, value: str, seconds: float) -> Response:
    """`seconds` 0: remove it."""
    secure = request.url.scheme == "https"
    path = root_of(request.scope) or "/"
    answer.set_cookie(name, value, int(seconds), path=path, secure=secure, httponly=True, samesite="lax")
    return answer


def show_once(viewer: Viewer, path: str, secret: str) -> Response:
    return set_cookie(viewer.request, viewer.go(path), SHOWN_ONCE, secret, 60)


def shown_once(viewer: Viewer, kind: CredentialKind) -> str | None:
    """The secret that was just made, if it is one."""
    secret = viewer.request.cookies.get(SHOWN_ONCE, "")
    return secret if secret and holder(viewer.store, kind, secret, used=False) else None


@router.get("/sign-in")
def sign_in_page(viewer: Anyone, next: str = "/") -> Response:
    return viewer.page("sign_in.html", next=local(next), handle="", problem=None)


@router.post("/sign-in")
def sign_in(viewer: Anyone, handle: Text, password: Text, next: Text = "/") -> Response:
    handle = as_handle(handle)
    sign_ins = viewer.limits.sign_ins
    if wait := max(sign_ins.wait(f"address {viewer.address}"), sign_ins.wait(f"name {handle}")):
        seconds = round(wait + 0.5)
        problem = viewer.words("site.too_many_tries", seconds=seconds)
        answer: Response = viewer.page("sign_in.html", 429, next=local(next), handle=handle, problem=problem)
        answer.headers["retry-after"] = str(seconds)
        return answer
    account = find_account(viewer.store, handle)
    if not verify(account.password_hash if account else None, password) or account is None or account.disabled_at:
        problem = viewer.words("site.wrong_password")
        return viewer.page("sign_in.html", 403, next=local(next), handle=handle, problem=problem)
    if outdated(str(account.password_hash)):
        change_account(viewer.store, handle, by=handle, password_hash=hash_password(password))
    return with_session(viewer, viewer.go(local(next)), handle)


@router.post("/sign-out")
def sign_out(viewer: Anyone) -> Response:
    if secret := viewer.request.cookies.get(SESSION):
        revoke(viewer.store, secret=secret, kind="session")
    return set_cookie(viewer.request, viewer.go("/sign-in"), SESSION, "", 0)


@router.get("/join/{secret}")
def join_page(viewer: Anyone, secret: str) -> Response:
    return join_form(viewer, secret)


def join_form(viewer: Viewer, secret: str, handle: str = "", problem: str | None = None) -> Response:
    found = holder(viewer.store, "invitation", secret)
    if found is None:
        return viewer.page(
            "join.html", 404, role=None, scopes={}, handle="", problem=viewer.words("site.invitation_gone")
        )
    scopes = found[0].scopes
    handle = scopes.get("handle", handle)
    return viewer.page(
        "join.html", 422 if problem else 200, role=scopes["role"], scopes=scopes, handle=handle, problem=problem
    )


@router.post("/join/{secret}")
def take_up_invitation(viewer: Anyone, secret: str, handle: Text, password: Text) -> Response:
    limit_rate(viewer, viewer.limits.joins, f"address {viewer.address}")
    handle = as_handle(handle)
    if problem := problem_of(viewer, handle, password):
        return join_form(viewer, secret, handle, problem)
    try:
        take_up(viewer.store, secret, handle, password_hash=hash_password(password), locale=viewer.language)
    except DataError as error:
        taken = is_taken(viewer.store, handle)
        return join_form(viewer, secret, handle, viewer.words("site.name_taken") if taken else viewer.sentence(error))
    return with_session(viewer, viewer.go("/"), handle)


def problem_of(viewer: Viewer, handle: str, password: str) -> str | None:
    """What is wrong with a new name or password, in words."""
    if not HANDLE.fullmatch(handle):
        return viewer.words("site.name_wrong")
    if not SHORTEST <= len(password) <= LONGEST:
        return viewer.words("site.password_wrong", shortest=SHORTEST, longest=LONGEST)
    return None


@router.post("/language")
def choose_language(viewer: Anyone, language: Text, next: Text = "/") -> Response:
    answer: Response = viewer.go(local(next))
    if language in LANGUAGES:
        if viewer.account is not None:
            change_account(viewer.store, viewer.handle, by=viewer.handle, locale=language)
        set_cookie(viewer.request, answer, LANGUAGE, language, 365 * DAY)
    return answer
