"""Verbs of serving: serve, keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from bridle.cli.completion import language_model_names
from bridle.cli.options import (
    Options,
    chosen_settings,
    listening_options,
    loading,
    open_project,
    print_found,
    print_lines,
    shared_options,
)
from bridle.core.errors import ProjectError, UsageError

if TYPE_CHECKING:
    from bridle.serve.gate import Keys
    from bridle.stages.workspace import Work


@click.command()
@click.argument("model", metavar="[MODEL]", required=False, shell_complete=language_model_names)
@listening_options(8000, "/model")
@shared_options("as_json", "wait")
def serve(options: Options, model: str | None, **given: Any) -> None:
    """Serve what is promoted, a model of the project, or a Hugging Face folder, by an API of OpenAI's shape."""
    with loading():
        from bridle.recipe.recipe import Recipe
        from bridle.serve.app import serving_app
        from bridle.serve.chat.keeping import forget_alone
        from bridle.serve.gate import Keys
        from bridle.serve.scheduler import Scheduler
        from bridle.serve.serving import require_guard, serve_model
        from bridle.site.listening import Place
        from bridle.stages.serve import Following, forget_in, load_served, model_folder

    place = Place(given["host"], given["port"], given["root_path"].rstrip("/"), given["proxies"])
    with project_at_work(options) as work:
        recipe = Recipe().with_settings(chosen_settings(options)) if work is None else work.recipe
        keys = None if work is None else Keys(work.store)
        require_guard(place, 0 if keys is None else len(keys.all()))
        following = None
        if model is None:
            if work is None:
                raise UsageError(
                    "what is promoted is a project's, and there is none here: go to its folder, or name a model to serve"
                )
            following = Following(work, recipe)
            load = following.load
        else:
            folder = model_folder(work, model)
            name = model.rstrip("/").rpartition("/")[2] if folder.name != model else model
            load = partial(load_served, work, recipe, folder, name)
        scheduler = Scheduler(load, max_waiting=recipe.serve.max_waiting)
        forget = forget_alone if work is None else forget_in(work)
        app = serving_app(scheduler, recipe.serve, place, keys, forget)
        with nullcontext() if following is None else following.kept_up(scheduler, app.state.desk.metrics):
            serve_model(app, recipe.serve, place, lambda line: print_lines([line]))


@contextmanager
def project_at_work(options: Options) -> Iterator[Work | None]:
    """The project here or above; None where there is none and none was named: a folder can be served without one."""
    from bridle.project.progress import Progress
    from bridle.stages.workspace import Work

    work = None
    with suppress(ProjectError):
        work = Work(open_project(options), Progress())
    if work is None and options.project is not None:
        open_project(options)  # says what is wrong with it
    try:
        yield work
    finally:
        if work is not None:
            work.close()


@click.group()
def keys() -> None:
    """The keys that open a served model to programs; the store has their hashes alone."""


@contextmanager
def opened_keys(options: Options) -> Iterator[Keys]:
    from bridle.serve.gate import Keys
    from bridle.stages.registry import open_store

    with open_store(open_project(options)) as store:
        yield Keys(store)


@keys.command()
@click.argument("name")
@shared_options("settings", "wait")
def create(options: Options, name: str) -> None:
    """Make a key and print it, this once; NAME is what the list calls it."""
    with opened_keys(options) as opened:
        secret = opened.create(name)
    print_found(options, {"name": name, "key": secret}, [secret])


@keys.command("list")
@shared_options("settings", "wait")
def list_keys(options: Options) -> None:
    """The keys that are good, with when each was made and last used."""
    with opened_keys(options) as opened:
        found = [
            {"name": one.scopes["name"], "made": one.created_at, "last_used": one.last_used_at} for one in opened.all()
        ]
    lines = [f"{one['name']}  made {one['made'][:10]}, last used {(one['last_used'] or 'never')[:10]}" for one in found]
    print_found(options, {"keys": found}, lines or ["no key is made yet; `bridle keys create NAME` makes one"])


@keys.command()
@click.argument("name")
@shared_options("settings", "wait")
def revoke(options: Options, name: str) -> None:
    """End a key; a server that runs refuses it from its next request on."""
    with opened_keys(options) as opened:
        opened.revoke(name)
    print_found(options, {"revoked": name}, [f"revoked {name}"])
