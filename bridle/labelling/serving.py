"""`bridle label`: the app on an address, and what its owner needs to begin."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from multiprocessing.process import BaseProcess
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
from bridle.site.listening import Place, in_thread, listen

OWNER_LINK_SECONDS = 24 * 3600.0
KEEP_ALIVE_SECONDS = 120  # a connection that closes while somebody thinks may close just as they answer
FINISH_SECONDS = 5  # that answers on their way have, when the server is stopped
READY_SECONDS = 60  # that a worker has to answer its parent, before it is started anew

Report = Callable[[str], None]


def serve_app(target: str | Path, place: Place, report: Report, project: Project | None = None) -> None:
    """Until it is interrupted, which raises Interrupted. `target`: the store's file or the database's URL; `project`: whose prices and plan
    for labels are shown. Raises UsageError where the place is invalid or taken."""
    check(target, place)
    listening = listen(place.host, place.port)
    url = place.url(listening.getsockname()[1])
    if not place.loopback:
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
    """In each worker: its own app, and its own connections to the store. One whose parent was killed ends too, and lets go of the port."""
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=end_after, args=[parent], name="parent", daemon=True).start()
    return labelling_app(Store.open(target), root_path=place.root_path, proxies=place.proxies, project=project)


def end_after(parent: BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def owner_path(store: Store) -> str:
    """A link by which to become an owner, or to set an owner's password anew; the one before is good no more."""
    for one in credentials(store, "invitation"):
        if one.scopes.get("existing") and "handle" not in one.scopes:
            revoke(store, credential=one.id)
    scopes = {"role": "owner", "existing": True}
    return f"/join/{issue(store, 'invitation', scopes=scopes, seconds=OWNER_LINK_SECONDS, by='terminal')}"


def check(target: str | Path, place: Place) -> None:
    place.check()
    if place.workers > 1 and not str(target).startswith("postgres"):
        raise UsageError(
            f"{place.workers} workers need a store in PostgreSQL, and {target} is a file of SQLite, which one process at a time writes; "
            "leave --workers out, or name a database in scale.store"
        )


def serving(store: Store) -> AbstractContextManager[str]:
    """The app in a thread of this process, on a free port of the loopback, while the block runs; its address."""
    app = labelling_app(store, limits=Limits(changes=RateLimit(1_000_000, 1)))  # programs are faster than people
    return in_thread(uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)), "labelling app")
