"""`bridle label`: the app on an address, and what its owner needs to begin."""

import errno
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from bridle.core.errors import Interrupted, UsageError
from bridle.feedback.people.accounts import accounts, credentials, issue, revoke
from bridle.feedback.store.store import Store
from bridle.labelling.app import labelling_app
from bridle.labelling.opening import ensure_studies
from bridle.project.project import Project
from bridle.site.limits import Limits, RateLimit
from bridle.site.proxies import networks

OWNER_LINK_SECONDS = 24 * 3600.0
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where this machine itself finds what listens there
ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")
KEEP_ALIVE_SECONDS = 120  # a connection that closes while somebody thinks may close just as they answer
FINISH_SECONDS = 5  # that answers on their way have, when the server is stopped
BACKLOG = 2048  # connections that wait to be taken up
READY_SECONDS = 60  # that a worker has to answer its parent, before it is started anew

Report = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """Where the app listens, and what stands before it. `workers` are processes; rate limits are each one's own."""

    host: str = "127.0.0.1"
    port: int = 8020
    root_path: str = ""
    proxies: Sequence[str] = ()
    workers: int = 1

    def url(self, port: int | None = None) -> str:
        host = EVERYWHERE.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{port or self.port}{self.root_path}"


def serve_app(target: str | Path, place: Place, report: Report, project: Project | None = None) -> None:
    """Until it is interrupted, which raises Interrupted. `target`: the store's file or the database's URL; `project`: whose prices and plan
    for labels are shown. Raises UsageError where the place is invalid or taken."""
    check(target, place)
    listening = listen(place.host, place.port)
    url = place.url(listening.getsockname()[1])
    if place.host not in ("127.0.0.1", "::1", "localhost"):
        report(
            f"warning: {place.host} can be reached from other machines, and what is sent there is not encrypted; put a TLS proxy before it"
        )
    with Store.open(target) as store:
        for name in ensure_studies(store):
            report(f"the items of {name!r} had no study yet, so it was opened with the usual settings")
        if any(one.role == "owner" and one.disabled_at is None for one in accounts(store)):
            report(f"label at {url}")
        else:
            report(f"open this once to become the owner (it ends in 24 hours): {url}{owner_path(store)}")
    app = partial(app_at, str(target), place, project)
    config = uvicorn.Config(
        app,
        factory=True,
        workers=place.workers,
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # ours believes whom the owner named, and nobody by default
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=FINISH_SECONDS,
        timeout_worker_healthcheck=READY_SECONDS,
    )
    try:
        if place.workers > 1:
            Multiprocess(config, sockets=[listening]).run()
        else:
            uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        listening.close()
    raise Interrupted("the labelling app has stopped; every answer that was acknowledged is in the store")


def app_at(target: str, place: Place, project: Project | None) -> FastAPI:
    """In each worker: its own app, and its own connections to the store."""
    return labelling_app(Store.open(target), root_path=place.root_path, proxies=place.proxies, project=project)


def owner_path(store: Store) -> str:
    """A link by which to become an owner, or to set an owner's password anew; the one before is good no more."""
    for one in credentials(store, "invitation"):
        if one.scopes.get("existing") and "handle" not in one.scopes:
            revoke(store, credential=one.id)
    scopes = {"role": "owner", "existing": True}
    return f"/join/{issue(store, 'invitation', scopes=scopes, seconds=OWNER_LINK_SECONDS, by='terminal')}"


def check(target: str | Path, place: Place) -> None:
    if not ROOT_PATH.fullmatch(place.root_path):
        raise UsageError(
            f"--root-path {place.root_path!r} is invalid: must be a path such as /labels, without a / at its end"
        )
    networks(place.proxies)
    if place.workers > 1 and not str(target).startswith("postgres"):
        raise UsageError(
            f"{place.workers} workers need a store in PostgreSQL, and {target} is a file of SQLite, which one process at a time writes; "
            "leave --workers out"
        )


def listen(host: str, port: int) -> socket.socket:
    """Raises UsageError where it cannot."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "another program listens there; choose another with --port" if taken else error.strerror
        raise UsageError(f"nobody can listen at {host}, port {port}: {why}") from error
    listening.set_inheritable(True)
    return listening


@contextmanager
def serving(store: Store) -> Iterator[str]:
    """The app in a thread of this process, on a free port of the loopback, while the block runs; its address."""
    listening = listen("127.0.0.1", 0)
    app = labelling_app(store, limits=Limits(changes=RateLimit(1_000_000, 1)))  # programs are faster than people
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="labelling app")
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"  # who connects before it runs waits in the socket's line
    finally:
        server.should_exit = True
        thread.join()
