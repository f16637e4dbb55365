"""Verbs of feedback: sample, label, agreement."""

from pathlib import Path

import click

from bridle.cli.options import (
    Options,
    loading,
    open_project,
    opened_work,
    print_found,
    print_lines,
    print_metrics,
    shared_options,
)
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


@click.group(invoke_without_command=True)
@click.option("--simulate", is_flag=True, help="Let the playground's simulated people compare.")
@shared_options()
@click.pass_context
def label(ctx: click.Context, options: Options, simulate: bool) -> None:
    """Compare the sampled answers; `label plan` tells what more comparisons would buy."""
    if ctx.invoked_subcommand is not None:
        return
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


@click.command()
@click.option("--study", metavar="NAME", help="Judgements of this study alone (default: all).")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where the page goes (default: agreement.html in the project)."
)
@click.option(
    "--exclude", metavar="NAME", help="First leave this person's judgements out, from now on; none is deleted."
)
@click.option("--reason", metavar="TEXT", help="Why the person is left out; kept with it.")
@shared_options("wait")
def agreement(options: Options, study: str | None, out: Path | None, exclude: str | None, reason: str | None) -> None:
    """How good the labels are: agreement, each person's skill, side bias and speed, and whom to look at; with a page."""
    from bridle.feedback.quality.summary import quality_of
    from bridle.feedback.quality.votes import read_votes
    from bridle.feedback.store.studies import recount, studies
    from bridle.report.agreement import quality_lines, write_agreement_page
    from bridle.stages.registry import open_store

    if (exclude is None) != (not (reason or "").strip()):
        raise UsageError(
            "leaving somebody out takes the name and the reason: `bridle agreement --exclude NAME --reason TEXT`"
        )
    project = open_project(options)
    page = out or project.folder / "agreement.html"
    with open_store(project) as store:
        if exclude is not None and reason is not None:
            store.exclude("labeler", exclude, reason=reason, by="owner")
            for one in studies(store):
                recount(store, one.name)  # what this person judged is asked of others again
            print_lines([f"left out {exclude}; the judgements stay in {project.store}, and count nowhere"], err=True)
        quality = quality_of(read_votes(store, study))
    write_agreement_page(quality, study, page)
    print_found(
        options, {"study": study, **quality.as_json(), "page": str(page)}, [*quality_lines(quality), f"wrote {page}"]
    )


@label.command()
@shared_options()
def plan(options: Options) -> None:
    """Forecast what more judgements buy: reward models on parts of those there are, their learning curve, topics, people and prices."""
    with loading():
        from bridle.evaluation.label_plan import plan_lines
        from bridle.stages.plan import plan_labels

    with opened_work(options) as work:
        metrics = plan_labels(work)
    print_found(options, metrics, plan_lines(metrics))
