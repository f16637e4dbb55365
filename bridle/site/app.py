"""The web application that rooms hang their routes into: what a browser may do, who may send what, and errors said in words.

Every answer carries a policy that lets in no script, style, picture or connection but our own, so that what a model wrote stays text even
where a page forgot to escape it. A request that another site sends in somebody's name is refused, and so is a body that is too large.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from urllib.parse import quote

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException as StarletteError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import bridle
from bridle.core.errors import BridleError, StoreError
from bridle.core.text import one_line
from bridle.feedback.store.store import Store
from bridle.site import me, people, signing_in
from bridle.site.languages import catalogue, translate
from bridle.site.limits import Limits
from bridle.site.origins import HOST, address, is_foreign
from bridle.site.proxies import Forwarded, networks
from bridle.site.rendering import ROOMS, static
from bridle.site.viewer import SignInFirst, Viewer, identify, is_api, nobody, own_path, root_of

log = logging.getLogger(__name__)
LONGEST_FORM, LONGEST_IMPORT = 2 * 2**20, 64 * 2**20  # bytes of a body; the second of paths that end in /import
SLOWEST_BODY = 900.0  # seconds: an import over a slow line
STATIC_ROOMS = ("site", "labelling", "serve")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def create_site(
    store: Store,
    rooms: list[APIRouter],
    *,
    root_path: str = "",
    proxies: Sequence[str] = (),
    limits: Limits | None = None,
) -> FastAPI:
    """`root_path`: the path that a proxy puts us under, such as "/labels". `proxies`: the addresses whose word on who asks is believed."""
    app = FastAPI(
        title="bridle",
        version=bridle.__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        redirect_slashes=False,  # it would lead to whatever host a request names
    )
    app.state.store, app.state.limits = store, limits or Limits()
    app.state.counted = {}
    for room in [signing_in.router, me.router, people.router, *rooms]:
        app.include_router(room)
    mount_static(app)
    app.add_exception_handler(SignInFirst, sign_in_first)
    app.add_exception_handler(StarletteError, refused)
    app.add_exception_handler(RequestValidationError, refused)
    app.add_exception_handler(BridleError, refused)
    app.add_middleware(Guarded, root_path=root_path, bounds=Bounds(longest_body, SLOWEST_BODY), explain=refused)
    app.add_middleware(Forwarded, trusted=networks(proxies))
    return app


def mount_static(app: FastAPI) -> None:
    """The style sheets, scripts and pictures of every room that has any."""
    for name in STATIC_ROOMS:
        if (folder := ROOMS / name / "static").is_dir():
            app.mount(f"/static/{name}", StaticFiles(directory=folder), f"static-{name}")


@dataclass(frozen=True)
class Bounds:
    """What a request may ask: bytes of its body, by its path, and seconds in which all of that comes; `origins`: other sites whose pages
    may send something."""

    longest: Callable[[Scope], int]
    seconds: float
    origins: Sequence[str] = ()


class Guarded:
    """Around everything: the policy on every answer, no request of another site's, no body too large or too slow, no error without
    words, which `explain` finds."""

    def __init__(
        self, app: ASGIApp, root_path: str, bounds: Bounds, explain: Callable[[Request, Exception], Awaitable[Response]]
    ) -> None:
        self.app, self.root_path, self.bounds, self.explain = app, root_path, bounds, explain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        cut_off = not f"{scope['path']}/".startswith(f"{self.root_path}/")  # as some proxies do
        scope = {**scope, "root_path": self.root_path, "path": self.root_path * cut_off + scope["path"]}
        without_body, begun, longest = scope["method"] == "HEAD", False, self.bounds.longest(scope)
        ends: float | None = asyncio.get_running_loop().time() + self.bounds.seconds  # of the body

        async def send_guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if "cache-control" not in headers:
                    headers["cache-control"] = cache_control(scope, message["status"])
            elif without_body:
                message = {**message, "body": b""}
            await send(message)

        async def receive_bounded() -> Message:
            nonlocal longest, ends
            try:
                async with asyncio.timeout_at(ends):
                    message = await receive()
            except TimeoutError as error:
                raise StarletteError(408) from error
            if not message.get("more_body"):
                ends = None  # what comes now is that the other side has left
            longest -= len(message.get("body", b""))
            if longest < 0:
                raise StarletteError(413)
            return message

        headers = Headers(scope=scope)
        try:
            refuse_oddities(scope, headers, longest, self.bounds.origins)
            as_get = {"method": "GET"} if without_body else {}
            await self.app({**scope, **as_get}, receive_bounded, send_guarded)  # a copy, which routes write into
        except Exception as error:
            if begun:
                raise
            answer = await self.explain(Request(scope), error)
            await answer(scope, receive, send_guarded)


def refuse_oddities(scope: Scope, headers: Headers, longest: int, origins: Sequence[str]) -> None:
    """Raises for what no page of ours, and no program in its right mind, sends."""
    host, length = headers.get("host", ""), headers.get("content-length", "0")
    if host and not HOST.fullmatch(host):
        raise StarletteError(400, "the Host header names no host")
    listed = address(headers.get("origin", "")) in {address(origin) for origin in origins} - {None}
    if not listed and is_foreign(scope["method"], headers, scope["scheme"], host):
        raise StarletteError(403)
    if not length.isdecimal():
        raise StarletteError(400, "the Content-Length header is not a number")
    if int(length) > longest:
        raise StarletteError(413)


def longest_body(scope: Scope) -> int:
    return LONGEST_IMPORT if own_path(scope).endswith("/import") else LONGEST_FORM


def cache_control(scope: Scope, status: int) -> str:
    """A static file may be kept for ever under the address that holds the hash of what it is, and under another be asked for again."""
    path, query = own_path(scope), scope["query_string"].decode("latin-1")
    if status not in (200, 304) or not path.startswith("/static/"):
        return "no-store"
    return "public, max-age=31536000, immutable" if f"{path}?{query}" in immutable_files() else "no-cache"


@cache
def immutable_files() -> frozenset[str]:
    """The addresses of the static files as they are now."""
    folders = {room: ROOMS / room / "static" for room in STATIC_ROOMS}
    files = [(room, file.relative_to(top)) for room, top in folders.items() for file in top.rglob("*")]
    return frozenset(static(room, name.as_posix()) for room, name in files if (folders[room] / name).is_file())


async def sign_in_first(request: Request, _: Exception) -> Response:
    back = f"?next={quote(own_path(request.scope))}" if request.method == "GET" else ""
    return RedirectResponse(f"{root_of(request.scope)}/sign-in{back}", 303)


async def refused(request: Request, error: Exception) -> Response:
    """One sentence, as JSON for programs, in English, and for the scripts of a page, as a page for people."""
    status, sentence, headers = explain_error(error)
    if status >= 500:
        log.error("a request failed", exc_info=error)
    answer = await run_in_threadpool(refusal, request, status, sentence)
    answer.headers.update(headers)
    return answer


def refusal(request: Request, status: int, sentence: str) -> Response:
    if is_api(request):
        return JSONResponse({"error": sentence or words_for("en", status)}, status)
    viewer = looked_for(request)
    sentence = viewer.sentence(sentence) or words_for(viewer.language, status)
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"error": sentence}, status)
    return viewer.page("error.html", status, sentence=sentence)


def looked_for(request: Request) -> Viewer:
    """Who looks, where the store can tell."""
    try:
        return identify(request)
    except BridleError:
        return nobody(request)


def words_for(language: str, status: int) -> str:
    key = f"site.error_{status}"
    return translate(language, key) if key in catalogue(language) else HTTPStatus(status).phrase


def explain_error(error: Exception) -> tuple[int, str, dict[str, str]]:
    """Status, sentence and headers. No sentence: that of the status. What a fault of the server's or the store's says is for its log."""
    if isinstance(error, StarletteError):
        own = str(error.detail)
        return error.status_code, "" if own == HTTPStatus(error.status_code).phrase else own, dict(error.headers or {})
    if isinstance(error, RequestValidationError):
        wrong = error.errors()[0]
        where = ".".join(str(part) for part in wrong["loc"][1:])
        return 422, one_line(f"{where or 'the request'} is invalid: {wrong['msg']}"), {}
    if isinstance(error, BridleError) and not isinstance(error, StoreError):
        return 422, str(error), {}
    return 503 if isinstance(error, StoreError) else 500, "", {}
