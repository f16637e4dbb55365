"""The verb of sweeps."""

from pathlib import Path

import click

from bridle.cli.options import (
    Options,
    chosen_settings,
    loading,
    open_project,
    print_found,
    profile_in,
    shared_options,
)
from bridle.cli.train import MethodName
from bridle.core.errors import ProjectError
from bridle.project.progress import Progress


@click.command()
@click.argument("words", metavar="[RECIPE] [SECTION.KEY=A,B,…]…", nargs=-1)
@click.option(
    "--seeds",
    type=click.IntRange(1, 1000),
    default=3,
    show_default=True,
    metavar="N",
    help="Seeds of each setting: the recipe's and those after it.",
)
@click.option(
    "--method", type=MethodName(), help="What the sweep ends with (default: the method whose section is swept)."
)
@click.option(
    "--metric",
    metavar="NAME",
    help="What is compared (default: gold on the playground, else proxy; accuracy_after by a verifier, pair_accuracy of a reward model).",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("sweep"),
    show_default=True,
    help="Folder to make, with a project for each setting and seed; an unfinished sweep there is resumed.",
)
@click.option("--dry-run", is_flag=True, help="Show how many runs there are and what settings share; run nothing.")
@shared_options()
def sweep(
    options: Options,
    words: tuple[str, ...],
    seeds: int,
    method: str | None,
    metric: str | None,
    out: Path,
    dry_run: bool,
) -> None:
    """Train with every combination of settings on the same seeds, and compare: `bridle sweep ppo.kl_coef=0.05,0.1,0.2 --seeds 5`. RECIPE
    is a TOML file (default: the project's own). Stages that settings share are done once."""
    from bridle.recipe.recipe import load_recipe
    from bridle.sweep.grid import read_words

    named, settings = read_words(words)
    try:
        source = open_project(options)
    except ProjectError:
        if named is None or options.project is not None:
            raise
        source = None  # a recipe of the playground needs none
    with loading():
        from bridle.sweep.sweep import outline, outline_lines, plan_sweep, run_sweep, with_whole_paths
        from bridle.sweep.table import sweep_lines

    if named is not None:
        recipe = with_whole_paths(load_recipe(named).with_settings(chosen_settings(options)), named.resolve().parent)
    else:
        assert source is not None
        recipe = with_whole_paths(source.recipe, source.folder)
    plan = plan_sweep(recipe, settings, method, metric, seeds, out, source)
    if dry_run:
        planned = outline(plan)
        print_found(options, planned, outline_lines(planned))
        return
    profile_in(plan.out)
    found = run_sweep(plan, Progress(), options.wait)
    print_found(options, found, sweep_lines(found))
