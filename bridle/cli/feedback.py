"""Verbs of feedback: sample, label."""

import click

from bridle.cli.options import Options, opened_work, print_metrics, shared_options
from bridle.core.errors import UsageError
from bridle.core.timeline import timed


@click.command()
@shared_options()
def sample(options: Options) -> None:
    """Answer each prompt several times (nucleus sampling), into the store, to be compared."""
    with timed("import"):
        from bridle.stages.sample import sample as sample_answers

    with opened_work(options) as work:
        metrics = sample_answers(work)
    print_metrics(options, metrics)


@click.command()
@click.option("--simulate", is_flag=True, help="Let the playground's simulated people compare.")
@shared_options()
def label(options: Options, simulate: bool) -> None:
    """Compare the sampled answers."""
    with timed("import"):
        from bridle.stages.label import label_simulated

    if not simulate:
        raise UsageError(
            "labelling by people comes with the labelling app; for now `bridle label --simulate` on the playground"
        )
    with opened_work(options) as work:
        metrics = label_simulated(work)
    print_metrics(options, metrics)
