"""`bridle serve`: the app on an address, connections that may not linger, and an end that lets answers end.

A connection that sends no request, or a part of one, drop by drop, is closed in `head_seconds`; one whose other side does not read for
`send_seconds` too; where all places are taken the one that has waited longest for the rest of a request makes room. So those who only hold
connections disturb nobody.
"""

import asyncio
import resource
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
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
    """One connection, which has to send its first request within `head_seconds`, each further one within the keep-alive time, and may not
    leave what it is sent unread for `send_seconds`. Whatever is closed for that is cut off: what is unread would keep it open."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        settings: ServeSection,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.settings = settings
        self.since = time.monotonic()
        self.patience: asyncio.TimerHandle | None = None  # with who sends
        self.reading: asyncio.TimerHandle | None = None  # with who reads

    @property
    def idle(self) -> bool:
        """Whether no request of it is being answered."""
        cycle: RequestResponseCycle | None = self.cycle  # none before the first
        return cycle is None or cycle.response_complete

    @property
    def unasked(self) -> bool:
        """Whether no request of it is whole, and waits for an answer."""
        return self.idle or self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= self.settings.connections:
            cut_idlest([one for one in self.connections if isinstance(one, Connection)], transport)
        super().connection_made(transport)
        self.wait_for_request(self.settings.head_seconds)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.wait_for_request(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self.patience, self.reading):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.reading = self.loop.call_later(self.settings.send_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.reading is not None:
            self.reading.cancel()

    def wait_for_request(self, seconds: float) -> None:
        if self.patience is not None:
            self.patience.cancel()
        self.since = time.monotonic()
        self.patience = self.loop.call_later(seconds, self.give_up)

    def give_up(self) -> None:
        if self.idle:
            self.transport.abort()


def cut_idlest(connections: list[Connection], newest: asyncio.Transport) -> None:
    """Cut off the connection that has asked nothing for longest; where all have asked, the newest."""
    waiting = [one for one in connections if one.unasked and not one.transport.is_closing()]
    (min(waiting, key=lambda one: one.since).transport if waiting else newest).abort()


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
    protocol = partial(Connection, settings=settings)
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


def served_in_thread(app: FastAPI, settings: ServeSection) -> AbstractContextManager[str]:
    """The app in a thread of this process, on a free port of the loopback, while the block runs; its address."""
    return in_thread(server_of(app, settings), "server")
