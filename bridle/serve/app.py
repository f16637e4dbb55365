"""The serving app: one model under its name, within the limits of [serve]."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as StarletteError
from starlette.middleware.cors import CORSMiddleware

import bridle
from bridle.core.errors import BridleError
from bridle.recipe.services import ServeSection
from bridle.serve import openai
from bridle.serve.chat import consenting, feedback, turns
from bridle.serve.chat.consenting import publish_own_texts
from bridle.serve.chat.keeping import Forget, Keeper, forget_alone
from bridle.serve.chat.page import add_chat_page
from bridle.serve.gate import Gate, Keys
from bridle.serve.metrics import CONTENT_TYPE, ServeMetrics
from bridle.serve.openai import IGNORED, Desk
from bridle.serve.problems import RequestProblem, refuse
from bridle.serve.replies import Json
from bridle.serve.scheduler import Scheduler, ServedModel
from bridle.site.app import Bounds, Guarded
from bridle.site.listening import Place
from bridle.site.proxies import Forwarded, networks


def serving_app(
    scheduler: Scheduler,
    settings: ServeSection,
    place: Place,
    keys: Keys | None = None,
    forget: Forget = forget_alone,
) -> FastAPI:
    """`keys`: those of the project, whose store keeps what users agree to; None where there is none, and then it may be reached from this
    machine alone, and nothing is kept. `forget`: deletes what a user left."""

    @asynccontextmanager
    async def lifetime(_: FastAPI) -> AsyncIterator[None]:
        scheduler.start(asyncio.get_running_loop())
        if keys is not None:
            await desk.keeper.with_patience(desk.keeper.ask(publish_own_texts))
        yield
        await asyncio.to_thread(scheduler.stop)

    app = FastAPI(
        title="bridle serve",
        version=bridle.__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,  # it would lead to whatever host a request names
        lifespan=lifetime,
    )
    metrics = ServeMetrics(scheduler)
    keeper = Keeper(None if keys is None else keys.store, metrics)
    app.state.desk = desk = Desk(scheduler, settings, metrics, keeper, forget=forget)
    for router in (openai.router, turns.router, feedback.router, consenting.router):
        app.include_router(router)
    add_chat_page(app)
    app.add_api_route("/health", health, tags=["server"], summary="Whether answers can be had now, and whose")
    app.add_api_route("/metrics", metrics_page, tags=["server"], summary="Counts and times, as Prometheus reads them")
    for kind in (StarletteError, RequestValidationError, BridleError, RequestProblem):
        app.add_exception_handler(kind, refuse)
    app.add_middleware(Gate, desk=desk, place=place, keys=keys)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=[IGNORED],
        )
    bounds = Bounds(lambda scope: settings.body_bytes, settings.body_seconds, settings.origins)
    app.add_middleware(Guarded, root_path=place.root_path, bounds=bounds, explain=refuse)
    app.add_middleware(Forwarded, trusted=networks(place.proxies))
    return app


async def health(request: Request) -> JSONResponse:
    scheduler: Scheduler = request.app.state.desk.scheduler
    state = "draining" if scheduler.draining else "loading" if scheduler.current is None else "ready"
    found: Json = {"status": state}
    if (roster := scheduler.roster) is not None:
        found |= health_of(roster.current)
        if roster.candidate is not None:
            found["candidate"] = {**health_of(roster.candidate), "share": roster.share}
    return JSONResponse(found, 200 if state == "ready" else 503)


def health_of(served: ServedModel) -> Json:
    version = {"version": served.title} if served.title else {}
    return {"model": served.name, **version, "stamp": served.batch.stamp, "system_fingerprint": served.fingerprint}


async def metrics_page(request: Request) -> Response:
    return Response(request.app.state.desk.metrics.page(), media_type=CONTENT_TYPE)
