"""Verbs of feedback: sample, label."""

import click

from bridle.cli.options import Options, loading, open_project, opened_work, print_metrics, shared_options
from bridle.core.errors import UsageError


@click.command()
@shared_options()
def sample(options: Options) -> None:
    """Answer each prompt several times (nucleus sampling), into the store, to be compared."""
    with loading():
        from bridle.stages.sample import sample as sample_answers

    with opened_work(options) as work:
        metrics = sample_answers(work)
    print_metrics(options, metrics)


@click.command()
@click.option("--simulate", is_flag=True, help="Let the playground's simulated people compare.")
@shared_options()
def label(options: Options, simulate: bool) -> None:
    """Compare the sampled answers."""
    if not simulate:
        playground = open_project(options).recipe.data.source == "playground"
        raise UsageError(
            "comparing by hand needs the labelling app, which is not there yet; "
            + (
                "`bridle label --simulate` lets the playground's simulated people compare"
                if playground
                else "`bridle import FILE` brings comparisons that were made elsewhere"
            )
        )
    with loading():
        from bridle.stages.label import label_simulated

    with opened_work(options) as work:
        metrics = label_simulated(work)
    print_metrics(options, metrics)
