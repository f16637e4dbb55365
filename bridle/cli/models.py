"""Verbs of models: list, show."""

import click

from bridle.cli.options import Options, open_project, print_found, shared_options
from bridle.core.errors import UsageError


@click.group()
def models() -> None:
    """The models that were registered, and what each came from."""


@models.command("list")
@shared_options("settings", "wait")
def list_(options: Options) -> None:
    """Every model that was registered, in that order; * marks what models/ holds now."""
    from bridle.feedback.store.versions import model_versions, version_line
    from bridle.stages.registry import Registry, open_store

    project = open_project(options)
    with open_store(project) as store:
        versions = model_versions(store)
    present = Registry(project).present()
    marked = [f"{'*' if one.hash in present else ' '} {version_line(one)}" for one in versions]
    rows = [{**one.as_dict(), "present": one.hash in present} for one in versions]
    print_found(options, {"models": rows}, marked or ["no model is registered yet; `bridle train METHOD` makes one"])


@models.command()
@click.argument("name", metavar="NAME|HASH")
@shared_options("settings", "wait")
def show(options: Options, name: str) -> None:
    """Follow a model to its base: parents, reward models that shaped it, and the judgements that each learnt from."""
    from bridle.feedback.store.versions import lineage_lines, lineage_of, model_versions, with_contents
    from bridle.stages.registry import Registry, open_store

    project = open_project(options)
    with open_store(project) as store:
        versions = model_versions(store)
        held = [content for content, named in Registry(project).present().items() if named == name]
        known = [one.hash for one in versions if one.name == name or (len(name) >= 8 and one.hash.startswith(name))]
        if not known:
            named = ", ".join(dict.fromkeys(one.name for one in versions)) or "none yet"
            raise UsageError(f"no model is registered as {name!r}; there is {named}")
        chosen = next((content for content in held if content in known), known[-1])
        lineage = with_contents(store, lineage_of(versions, chosen))
    print_found(options, {"lineage": lineage}, lineage_lines(lineage))
