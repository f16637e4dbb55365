"""`bridle demo`: the whole loop on the playground."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from bridle.cli.options import Options, chosen_settings, loading, opened_work, print_found, shared_options
from bridle.core.errors import UsageError


class Seed(click.IntRange):
    name = "whole number"  # as click calls it where it gets something else


@click.command()
@click.option("--seed", type=Seed(min=0), default=0, show_default=True, help="Random seed.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder to make; an unfinished demo there is resumed.",
)
@click.option("--quick", is_flag=True, help="Every stage, smaller: a minute or two, and numbers that prove nothing.")
@click.option(
    "--world", type=click.Path(path_type=Path), help="Data file of another playground world of the same form."
)
@click.option(
    "--recipe",
    type=click.Choice(["loop", "verifiable", "constitution", "rlaif"]),
    default="loop",
    show_default=True,
    help="What is shown: the whole loop, practice on answers that a program checks, a model that revises its answers by principles, or one "
    "that judges answers in people's place.",
)
@shared_options("project")
def demo(options: Options, seed: int, out: Path, quick: bool, world: Path | None, recipe: str) -> None:
    """The whole loop on the playground, from nothing to a report, in minutes."""
    with loading():
        from bridle.demo.demo import run_demo
        from bridle.demo.recipes import OWN_SETTINGS, RECIPES, recipe_lines, walk_recipe
        from bridle.demo.stages import QUICK
        from bridle.demo.summary import summary_lines
        from bridle.recipe.recipe import Recipe

    settings: dict[str, Any] = {"seed": seed, "data.source": "playground"}
    settings |= {**OWN_SETTINGS.get(recipe, {}), **(QUICK if quick else {}), **chosen_settings(options)}
    if world is not None:
        if not world.is_file():
            raise UsageError(f"there is no world file at {world}")
        settings["world.file"] = str(world.resolve())
    if recipe == "verifiable":
        show_checked(options, out, settings)
        return
    if recipe in RECIPES:
        summary = walk_recipe(recipe, out, Recipe().with_settings(settings), wait=options.wait)
        print_found(options, summary, recipe_lines(summary, out))
        return
    summary = run_demo(out, Recipe().with_settings(settings), wait=options.wait)
    print_found(options, summary, summary_lines(summary, out))


def show_checked(options: Options, out: Path, settings: dict[str, Any]) -> None:
    from bridle.demo.verifiable import show_verifiable, verifiable_lines, verifiable_project

    project = verifiable_project(out.resolve(), settings)
    with opened_work(replace(options, project=str(project.folder))) as work:
        found = show_verifiable(work)
    print_found(options, found, verifiable_lines(found))


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of a project of its own, made where there is none (default: the project here).",
)
@shared_options()
def cliff(options: Options, out: Path | None) -> None:
    """Reinforcement learning past the cliff, and held by the guard: both runs, in one picture."""
    with loading():
        from bridle.demo.cliff import cliff_lines, cliff_project, show_cliff

    if out is not None and options.project is not None:
        raise UsageError("--out makes a project, and --project names one; give one of them")
    if out is not None:
        options = replace(options, project=str(cliff_project(out.resolve()).folder))
    with opened_work(options) as work:
        found = show_cliff(work)
    print_found(options, found, cliff_lines(found))
