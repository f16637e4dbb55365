"""What every request passes first: by which name the server was called, whose key it shows, and how many are under way."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as StarletteError
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bridle.core.errors import DataError
from bridle.feedback.people.accounts import Credential, credentials, holder, issue, revoke
from bridle.feedback.store.store import Store
from bridle.serve.chat.users import Caller, cookie_of
from bridle.serve.openai import Desk
from bridle.serve.problems import RequestProblem
from bridle.site.limits import RateLimit, network
from bridle.site.listening import LOOPBACK, Place
from bridle.site.origins import is_foreign
from bridle.site.viewer import own_path

OPEN = ("/health",)  # to whoever asks
PAGE = ("/chat", "/static")  # of the chat, and what lies below; its page and files need no cookie
OF_USERS = (
    "/v1/feedback",
    "/v1/comparisons",
    "/v1/consent",
    "/v1/forget",
)  # of a user: by a key, or the cookie of the chat
JSON = "application/json"
RIGHTS = "serve"  # of a token that opens this API, and nothing of the labelling app


@dataclass(frozen=True)
class Keys:
    """The keys of a server, in the project's store, which keeps their hashes alone."""

    store: Store

    def create(self, name: str) -> str:
        """A new key, which is told once. DataError where the name cannot be one, or is that of another key."""
        if not name.strip() or len(name) > 100 or not name.isprintable():
            raise DataError(f"{name[:100]!r} cannot be the name of a key; take up to 100 characters that can be read")
        if any(one.scopes["name"] == name for one in self.all()):
            raise DataError(f"there is a key called {name!r} already; revoke it first, or take another name")
        return issue(self.store, "token", scopes={"name": name, "rights": RIGHTS}, seconds=None, by="terminal")

    def all(self) -> list[Credential]:
        return [one for one in credentials(self.store, "token") if one.scopes.get("rights") == RIGHTS]

    def revoke(self, name: str) -> None:
        """DataError where there is none of this name."""
        found = next((one for one in self.all() if one.scopes["name"] == name), None)
        if found is None:
            names = ", ".join(repr(one.scopes["name"]) for one in self.all()) or "none"
            raise DataError(f"there is no key called {name[:100]!r}; there is {names}")
        revoke(self.store, credential=found.id)

    def name_of(self, secret: str) -> str | None:
        """Whose key it is; None where it is none, or not good any more."""
        found = holder(self.store, "token", secret)
        if found is None or found[0].scopes.get("rights") != RIGHTS:
            return None
        return f"key {found[0].id}"


class Gate:
    """`keys`: None where there is no store that could hold any. Without a key one is let in on the loopback alone, while there is none."""

    def __init__(self, app: ASGIApp, desk: Desk, place: Place, keys: Keys | None) -> None:
        self.app, self.desk, self.place, self.keys = app, desk, place, keys
        self.under_way = Counter[str]()
        self.addresses = RateLimit(4 * desk.settings.user_rate, 60)  # of browsers: a cookie costs nothing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status = 500

        async def send_watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.let_in(scope, receive, send_watched)
        except RequestProblem as problem:
            status = problem.status
            raise
        except StarletteError as error:
            status = error.status_code
            raise
        finally:
            route = scope.get("route")
            self.desk.metrics.requests.labels("other" if route is None else route.path, str(status)).inc()

    async def let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self.require_host(headers.get("host", ""))
        if own_path(scope) in OPEN:
            return await self.app(scope, receive, send)
        caller = await self.caller(scope, headers)
        scope["caller"], who = caller, caller.key or caller.cookie
        if scope["method"] != "POST":
            return await self.app(scope, receive, send)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
            raise StarletteError(415)
        settings = self.desk.settings
        with self.counted(who, settings.max_requests_per_key) if who else nullcontext():
            body = await whole_body(receive)
            with self.counted("", settings.max_requests):  # once it is whole: who sends slowly takes no place of others
                await self.app(scope, receiving_again(body, receive), send)

    async def caller(self, scope: Scope, headers: Headers) -> Caller:
        """Who it is; raises RequestProblem for who may not ask this."""
        path, authorization = own_path(scope), headers.get("authorization", "")
        of_page = any(f"{path}/".startswith(f"{one}/") for one in PAGE)
        if not of_page and path not in OF_USERS:
            return Caller(await self.require_key(authorization), bearer_of(authorization))
        if authorization:
            if not (who := await self.key_of(authorization)):
                raise without_key("is not good here, or not any more")
            return Caller(who, bearer_of(authorization))
        if self.guarded and not self.desk.settings.public_chat:
            if of_page:
                raise RequestProblem(
                    403, "the chat is not open here; serve.public_chat = true opens it", code="no_chat"
                )
            raise without_key("is missing")
        return self.session(scope, headers, needed=path != "/chat" and not path.startswith("/static/"))

    def session(self, scope: Scope, headers: Headers, needed: bool) -> Caller:
        """A browser's, which no page of another site may use, be it one that may ask without."""
        if is_foreign(scope["method"], headers, scope["scheme"], headers.get("host", "")):
            raise StarletteError(403)
        cookie = cookie_of(Request(scope))
        if needed and not cookie:
            raise RequestProblem(
                401,
                "this needs a user: the cookie that the page /chat gives, or a key as `Authorization: Bearer KEY`",
                code="no_session",
            )
        if needed:
            address = network(scope["client"][0]) if scope.get("client") else ""
            self.desk.require_rate(self.addresses, address)
        return Caller(cookie=cookie)

    def require_host(self, host: str) -> None:
        """A page whose own name leads to this machine (DNS rebinding) shows by which name it was called."""
        known = self.desk.settings.hosts
        if not known and not self.place.loopback:
            return  # no browser sends our key for such a page
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and not host.endswith("]") else host
        if name.strip("[]").lower() not in (*LOOPBACK, *(one.lower() for one in known)):
            raise RequestProblem(
                403,
                f"this server is not called {name[:100]!r}; serve.hosts names what else it is called",
                code="unknown_host",
            )

    async def require_key(self, authorization: str) -> str:
        """Whose key came with it; empty where none is needed."""
        if self.keys is None:
            return ""
        if who := await self.key_of(authorization):
            return who
        made = [] if self.guarded else await run_in_threadpool(self.keys.all)
        if self.guarded or made:
            raise without_key("is not good here, or not any more" if bearer_of(authorization) else "is missing")
        return ""

    async def key_of(self, authorization: str) -> str:
        """Whose key it is; empty where it is none."""
        secret = bearer_of(authorization)
        found = await run_in_threadpool(self.keys.name_of, secret) if secret and self.keys is not None else None
        return found or ""

    @property
    def guarded(self) -> bool:
        """Whether others than this machine's own programs may reach it."""
        return not self.place.loopback or bool(self.place.proxies)

    @contextmanager
    def counted(self, name: str, most: int) -> Iterator[None]:
        """One of those of a key, or of all for an empty name; raises RequestProblem where all are taken."""
        if self.under_way[name] >= most:
            whose = "of this key" if name else "in all"
            raise RequestProblem(
                429,
                f"{most} requests {whose} are under way; ask again when one has ended",
                code="rate_limit_exceeded",
                retry=1,
            )
        self.under_way[name] += 1
        try:
            yield
        finally:
            self.under_way -= Counter({name: 1})


async def whole_body(receive: Receive) -> bytes:
    """What a request sends, whose size and time are bounded before this; RequestProblem where it is broken off."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestProblem(499, "whoever asked has left")
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def receiving_again(body: bytes, receive: Receive) -> Receive:
    """The body, which was read already, and then what comes after it."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return first.pop() if first else await receive()

    return receive_again


def bearer_of(authorization: str) -> str:
    """The key that a header shows; empty where it shows none."""
    kind, _, secret = authorization.partition(" ")
    return secret.strip() if kind.lower() == "bearer" else ""


def without_key(what: str) -> RequestProblem:
    return RequestProblem(
        401,
        f"the key {what}: send one as `Authorization: Bearer KEY` (`bridle keys create` makes it)",
        code="invalid_api_key",
    )
