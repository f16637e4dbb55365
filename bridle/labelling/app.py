"""The labelling app of a project's store."""

from collections.abc import Sequence

from fastapi import FastAPI

from bridle.feedback.store.store import Store
from bridle.labelling import api, tasks
from bridle.labelling.owner import chains, dashboard, items, review, settings
from bridle.labelling.owner.measures import Kept, count, measure
from bridle.project.project import Project
from bridle.site.app import create_site
from bridle.site.limits import Limits

ROOMS = (tasks, api, dashboard, items, review, settings, chains)


def labelling_app(
    store: Store,
    *,
    root_path: str = "",
    proxies: Sequence[str] = (),
    limits: Limits | None = None,
    project: Project | None = None,
) -> FastAPI:
    """`project`: whose recipe names prices, and whose last plan for labels is shown."""
    rooms = [room.router for room in ROOMS]
    app = create_site(store, rooms, root_path=root_path, proxies=proxies, limits=limits)
    app.state.counts, app.state.measures, app.state.project = Kept(count), Kept(measure), project
    return app
