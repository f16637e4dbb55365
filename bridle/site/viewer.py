"""Who looks: the account behind a request's cookie or token, their language, and what their role may do.

    @router.get("/studies")
    def studies_page(viewer: Annotated[Viewer, Depends(owners)]) -> Response:
        return viewer.page("studies.html", studies=studies(viewer.store))

A page that one may not see without signing in leads to signing in; a program is told with status 401 or 403. A session may do what its
account may; a token the same, or where its scopes say "read", look alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.types import Scope

from bridle.feedback.people.accounts import Account, holder
from bridle.feedback.store.store import Store
from bridle.site.languages import LANGUAGES, in_words, preferred, translate
from bridle.site.limits import Limits, RateLimit, network
from bridle.site.origins import SAFE_METHODS
from bridle.site.rendering import render_page

SESSION, LANGUAGE = "bridle_session", "bridle_language"  # cookies


class SignInFirst(Exception):
    """A page needs somebody: they are led to signing in, and back."""


@dataclass(frozen=True)
class Viewer:
    """`account` is None for who has not signed in; `credential` the number of what proved who they are, with its `scopes`."""

    request: Request
    store: Store
    language: str
    account: Account | None = None
    credential: int | None = None
    by_token: bool = False
    scopes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def signed_in(self) -> Account:
        assert self.account is not None, "the route lets in who has not signed in"
        return self.account

    @property
    def handle(self) -> str:
        return self.signed_in.handle

    @property
    def limits(self) -> Limits:
        found: Limits = self.request.app.state.limits
        return found

    @property
    def address(self) -> str:
        return network(self.request.client.host if self.request.client else "")

    def words(self, key: str, **values: object) -> str:
        return translate(self.language, key, values)

    def sentence(self, error: object) -> str:
        """What an error says, in their language."""
        return in_words(self.language, str(error))

    def path(self, path: str) -> str:
        """A path of ours as the browser sees it, below the one that a proxy puts us under."""
        return f"{root_of(self.request.scope)}{path}"

    def link(self, path: str) -> str:
        """The same as somebody else can open it."""
        return f"{self.request.url.scheme}://{self.request.url.netloc}{self.path(path)}"

    @property
    def here(self) -> str:
        """The path of this page, to come back to; of what a form sent to, the start."""
        return own_path(self.request.scope) if self.request.method == "GET" else "/"

    def page(self, name: str, status: int = 200, **values: Any) -> HTMLResponse:
        known = {"viewer": self, "account": self.account, "language": self.language, "languages": LANGUAGES}
        return render_page(name, known | {"t": self.words, "path": self.path} | values, status)

    def go(self, path: str) -> RedirectResponse:
        """To another page of ours, after a form was sent: that a page is loaded again sends nothing again."""
        return RedirectResponse(self.path(path), 303)


def root_of(scope: Scope) -> str:
    """The path that a proxy puts us under: "" or "/labels"."""
    root: str = scope.get("root_path", "")
    return root.rstrip("/")


def own_path(scope: Scope) -> str:
    """The path of a request below that, as routes know it."""
    path: str = scope["path"]
    root = root_of(scope)
    return path[len(root) :] or "/" if f"{path}/".startswith(f"{root}/") else path


def is_api(request: Request) -> bool:
    return own_path(request.scope).startswith("/api/")


def identify(request: Request) -> Viewer:
    """Whoever it is."""
    store: Store = request.app.state.store
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    by_token = kind.lower() == "bearer"
    secret = token.strip() if by_token else request.cookies.get(SESSION, "")
    found = holder(store, "token" if by_token else "session", secret) if secret else None
    credential, account = found or (None, None)
    viewer = nobody(request, account.locale if account else None)
    if credential is None:
        return viewer if not by_token else Viewer(request, store, viewer.language, by_token=True)
    return Viewer(request, store, viewer.language, account, credential.id, by_token, credential.scopes)


def nobody(request: Request, locale: str | None = None) -> Viewer:
    """Somebody of whom nothing is asked but the language."""
    wished = (request.cookies.get(LANGUAGE), locale)
    language = preferred(request.headers.get("accept-language", ""), wished)
    return Viewer(request, request.app.state.store, language)


def anyone(request: Request) -> Viewer:
    """A dependency of routes for everybody, at a rate that a person has, and of who may only read the changes of nothing."""
    viewer = identify(request)
    safe = request.method in SAFE_METHODS
    key = f"person {viewer.handle}" if viewer.account else f"address {viewer.address}"
    limit_rate(viewer, viewer.limits.pages if safe else viewer.limits.changes, key)
    if not safe and viewer.scopes.get("rights") == "read":
        raise HTTPException(403, viewer.words("site.token_may_read"))
    return viewer


def limit_rate(viewer: Viewer, limit: RateLimit, key: str) -> None:
    if wait := limit.wait(key):
        seconds = round(wait + 0.5)
        raise HTTPException(429, viewer.words("site.too_many", seconds=seconds), {"Retry-After": str(seconds)})


def allowed(request: Request, *roles: str, at_page: bool = False) -> Viewer:
    """Who it is, if of these roles. `at_page`: and signed in with a password, not by a token."""
    found = anyone(request)
    if found.account is None:
        if found.by_token or is_api(request):
            raise HTTPException(401, found.words("site.sign_in_or_token"), {"WWW-Authenticate": "Bearer"})
        raise SignInFirst
    if found.account.role not in roles:
        role = found.words(f"site.role_{found.account.role}")
        raise HTTPException(403, found.words("site.not_for_role", role=role))
    if at_page and found.by_token:
        raise HTTPException(403, found.words("site.not_by_token"))
    return found


# Dependencies of routes, each for the roles that it names.


def owners(request: Request) -> Viewer:
    return allowed(request, "owner")


def deciders(request: Request) -> Viewer:
    return allowed(request, "owner", "adjudicator")


def labelers(request: Request) -> Viewer:
    return allowed(request, "owner", "adjudicator", "annotator")


def members(request: Request) -> Viewer:
    return allowed(request, "owner", "adjudicator", "annotator", "service")


def followers(request: Request) -> Viewer:
    return allowed(request, "owner", "service")


def themselves(request: Request) -> Viewer:
    return allowed(request, "owner", "adjudicator", "annotator", at_page=True)


def owners_at_page(request: Request) -> Viewer:
    return allowed(request, "owner", at_page=True)
