"""Verbs of models: list, show, promote, rollback, leaderboard, history."""

from dataclasses import asdict

import click

from bridle.cli.completion import language_model_names, model_names
from bridle.cli.options import Options, loading, open_project, opened_work, print_found, shared_options


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
@click.argument("name", metavar="NAME|HASH", shell_complete=model_names)
@shared_options("settings", "wait")
def show(options: Options, name: str) -> None:
    """Follow a model to its base: parents, reward models that shaped it, and the judgements that each learnt from."""
    with loading():
        from bridle.feedback.store.versions import lineage_lines, lineage_of, model_versions, with_contents
        from bridle.loop.promoting import version_named

    with opened_work(options) as work:
        versions = model_versions(work.store)
        lineage = with_contents(work.store, lineage_of(versions, version_named(work, name).hash))
    print_found(options, {"lineage": lineage}, lineage_lines(lineage))


@models.command()
@click.argument("name", metavar="NAME|HASH", shell_complete=language_model_names)
@click.option(
    "--share", type=float, default=1.0, help="Of the users who meet it, the rest what is served now (default: 1, all)."
)
@click.option("--why", default="", help="Kept with the promotion.")
@shared_options("settings", "wait")
def promote(options: Options, name: str, share: float, why: str) -> None:
    """Serve a model from now on, without a request lost: its weights are kept, whatever is trained under its name later."""
    with loading():
        from bridle.loop.promoting import promote_model, served_lines

    with opened_work(options) as work:
        now = promote_model(work, name, share=share, details={"why": why} if why else None)
        print_found(options, {"served": asdict(now)}, served_lines(work, now))


@models.command()
@click.option("--why", default="", help="Kept with the rollback.")
@shared_options("settings", "wait")
def rollback(options: Options, why: str) -> None:
    """Take a candidate's share back; where there is none, serve again what was served before."""
    with loading():
        from bridle.loop.promoting import served_lines, withdraw_model

    with opened_work(options) as work:
        now = withdraw_model(work, details={"why": why} if why else None)
        print_found(options, {"served": asdict(now)}, served_lines(work, now))


@models.command()
@shared_options("settings", "wait")
def leaderboard(options: Options) -> None:
    """How strong each version is, with intervals, by every comparison of two versions: of those who decide, and of users."""
    from bridle.evaluation.leaderboard import leaderboard_lines, leaderboards
    from bridle.feedback.serving.promotion import served_now
    from bridle.stages.registry import open_store

    with open_store(open_project(options)) as store:
        boards = leaderboards(store, served_now(store).content)
    print_found(options, boards, leaderboard_lines(boards))


@models.command()
@shared_options("settings", "wait")
def history(options: Options) -> None:
    """Every promotion and rollback, with its numbers, and what is served now."""
    with loading():
        from bridle.feedback.serving.promotion import promotion_steps, replayed
        from bridle.loop.promoting import history_lines, served_lines

    with opened_work(options) as work:
        steps = promotion_steps(work.store)
        now = replayed(steps)
        found = {"steps": [asdict(step) for step in steps], "served": asdict(now)}
        print_found(options, found, [*history_lines(work, steps), *served_lines(work, now)])
