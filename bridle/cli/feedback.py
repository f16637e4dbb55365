"""Verbs of feedback: sample, revise, label, judge, agreement."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from bridle.cli.completion import language_model_names
from bridle.cli.options import (
    Options,
    listening_options,
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
@click.option(
    "--model", default="sft", metavar="NAME", show_default=True, shell_complete=language_model_names,
    help="The project's model that answers.",
)  # fmt: skip
@click.option(
    "--prompts",
    type=click.IntRange(0, 10**7),
    default=0,
    metavar="N",
    help="Training prompts at most, and the same share of the held-out ones (default: all).",
)
@shared_options()
def sample(options: Options, model: str, prompts: int) -> None:
    """Answer each prompt several times (nucleus sampling), into the store, to be compared."""
    with loading():
        from bridle.stages.sample import sample as sample_answers

    with opened_work(options) as work:
        metrics = sample_answers(work, model=model, most=prompts)
    print_metrics(options, metrics)


@click.command()
@shared_options()
def revise(options: Options) -> None:
    """A model criticises and revises its own answers by a constitution, into the store; `bridle train sl-cai` imitates what comes of it."""
    with loading():
        from bridle.stages.revise import revise as revise_answers
        from bridle.stages.revise import revised_lines

    with opened_work(options) as work:
        metrics = revise_answers(work)
    print_found(options, metrics, revised_lines(metrics))


@click.group(invoke_without_command=True)
@click.option("--simulate", is_flag=True, help="Let the playground's simulated people compare.")
@click.option(
    "--owner-link",
    is_flag=True,
    help="Print a new link to become the owner or to set an owner's password anew, once; and end.",
)
@listening_options(8020, "/labels")
@click.option(
    "--workers", default=1, type=click.IntRange(1, 64), help="Processes that serve (several with PostgreSQL alone)."
)
@shared_options()
@click.pass_context
def label(ctx: click.Context, /, options: Options, simulate: bool, owner_link: bool, **given: Any) -> None:
    """Serve the labelling app, where people compare answers; `label plan` tells what more comparisons would buy."""
    if ctx.invoked_subcommand is not None:
        return
    if not simulate:
        return serve_labelling(options, given, owner_link)
    with loading():
        from bridle.stages.label import label_simulated

    with opened_work(options) as work:
        metrics = label_simulated(work, through_http=True)
    print_metrics(options, metrics)


def serve_labelling(options: Options, given: Mapping[str, Any], owner_link: bool) -> None:
    from bridle.labelling.serving import owner_path, serve_app
    from bridle.site.listening import Place
    from bridle.stages.registry import open_store

    project = open_project(options)
    place = Place(given["host"], given["port"], given["root_path"].rstrip("/"), given["proxies"], given["workers"])
    with open_store(project) as store:  # makes it where there is none yet
        if owner_link:
            print_lines([f"open this once (it ends in 24 hours): {place.url()}{owner_path(store)}"])
            return
    serve_app(project.store, place, lambda line: print_lines([line]), project)


@click.command()
@click.option(
    "--study",
    metavar="NAME",
    help="What waits in this study (default: comparisons, where `bridle sample` puts answers).",
)
@click.option(
    "--items", type=click.IntRange(0, 10**7), default=0, metavar="N", help="Items at most (default: all that wait)."
)
@click.option(
    "--audit",
    type=click.IntRange(0, 10**7),
    default=0,
    metavar="N",
    help="Judge N items again that people have judged, and compare; the store stays as it is.",
)
@shared_options()
def judge(options: Options, study: str | None, items: int, audit: int) -> None:
    """Let a model judge what waits, in people's place ([judge] says which), and report what its verdicts are worth."""
    if audit and items:
        raise UsageError("--audit and --items are two things: give one of them")
    with loading():
        from bridle.stages.data import STUDY
        from bridle.stages.judge import audit_judge, judge_lines, judge_waiting

    with opened_work(options) as work:
        metrics = audit_judge(work, audit, study) if audit else judge_waiting(work, study or STUDY, items)
    print_found(options, metrics, judge_lines(metrics))


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
    from bridle.feedback.store.studies import exclude_person
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
            exclude_person(store, exclude, reason=reason, by="owner")
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
