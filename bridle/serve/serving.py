"""`bridle serve`: the app on an address, connections that may not linger, and an end that lets answers end.

A connection that sends no request, or a part of one, drop by drop, is closed in `head_seconds`; where all places are taken the one that
has waited longest makes room. So those who only hold connections disturb nobody.
"""

import asyncio
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from bridle.core.errors import Interrupted, UsageError
from bridle.recipe.services import ServeSection
from bridle.serve.openai import Desk
from bridle.serve.scheduler import ServedModel
from bridle.site.listening import Place, in_thread, listen

KEEP_ALIVE_SECONDS = 75
LAST_SECONDS = 5  # in which answers that were broken off say so
SPARE_FILES = 256  # beside connections


class Connection(H11Protocol):
    """One connection, which has to send its first request within `head_seconds`, and each further one within the keep-alive time."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        head_seconds: float,
        most: int,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.head_seconds, self.most = head_seconds, most
        self.since = time.monotonic()
        self.patience: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether no request of it is being answered."""
        cycle: RequestResponseCycle | None = self.cycle  # none before the first
        return cycle is None or cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= self.most:
            close_idlest([one for one in self.connections if isinstance(one, Connection)], transport)
        super().connection_made(transport)
        self.wait_for_request(self.head_seconds)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.wait_for_request(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.patience is not None:
            self.patience.cancel()

    def wait_for_request(self, seconds: float) -> None:
        if self.patience is not None:
            self.patience.cancel()
        self.since = time.monotonic()
        self.patience = self.loop.call_later(seconds, self.give_up)

    def give_up(self) -> None:
        if self.idle:
            self.transport.close()


def close_idlest(connections: list[Connection], newest: asyncio.Transport) -> None:
    """Close the connection that has been idle for longest; where all are at work, the newest."""
    idle = [one for one in connections if one.idle and not one.transport.is_closing()]
    (min(idle, key=lambda one: one.since).transport if idle else newest).close()


class DrainingServer(uvicorn.Server):
    """Lets answers end before it does."""

    def __init__(self, config: uvicorn.Config, desk: Desk) -> None:
        super().__init__(config)
        self.desk = desk

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.desk.scheduler.drain(self.desk.settings.drain_seconds)
        await super().shutdown(sockets)


def server_of(app: FastAPI, settings: ServeSection) -> DrainingServer:
    allow_files(settings.connections + SPARE_FILES)
    protocol = partial(Connection, head_seconds=settings.head_seconds, most=settings.connections)
    config = uvicorn.Config(
        app,
        http=protocol,  # type: ignore[arg-type]
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # ours believes whom the owner named, and nobody by default
        server_header=False,
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=round(settings.drain_seconds) + LAST_SECONDS,
    )
    return DrainingServer(config, app.state.desk)


def serve_model(app: FastAPI, settings: ServeSection, place: Place, report: Callable[[str], None]) -> None:
    """Until it is interrupted, which raises Interrupted; what the model cannot be loaded for is raised too. UsageError where the place is
    invalid or taken."""
    place.check()
    listening = listen(place.host, place.port)
    url = place.url(listening.getsockname()[1])
    if not place.loopback:
        report(
            f"warning: {place.host} can be reached from other machines, and what is sent there is not encrypted; put a TLS proxy before it"
        )
    server, scheduler = server_of(app, settings), app.state.desk.scheduler
    failures: list[BaseException] = []

    def fail(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    def ready(served: ServedModel) -> None:
        report(f"{served.name} ({served.fingerprint}) answers at {url}/v1")

    scheduler.on_ready, scheduler.on_failure = ready, fail
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        listening.close()
    if failures:
        raise failures[0]
    raise Interrupted("the server has stopped")


def allow_files(wanted: int) -> None:
    """As many open files as connections may need, as far as this process may have them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted and soft != resource.RLIM_INFINITY:
        with suppress(ValueError, OSError):
            resource.setrlimit(
                resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
            )


def require_guard(place: Place, keys: int) -> None:
    """UsageError where others could reach a server that knows no key."""
    if not keys and not (place.loopback and not place.proxies):
        raise UsageError(
            f"{place.host} would be open to whoever reaches it; make a key first: `bridle keys create NAME`, in the project's folder"
        )


@contextmanager
def served_in_thread(app: FastAPI, settings: ServeSection) -> Iterator[str]:
    """The app in a thread of this process, on a free port of the loopback, while the block runs; its address."""
    with in_thread(server_of(app, settings), "server") as address:
        yield address
