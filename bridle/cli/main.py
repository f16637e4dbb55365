"""The command line: a verb for each intention. A verb imports what it needs when it runs, so help is instant."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from bridle.cli.demo import demo
from bridle.cli.feedback import label, sample
from bridle.cli.options import Options
from bridle.cli.project import import_, init, report
from bridle.cli.train import evaluate, train
from bridle.core import timeline
from bridle.core.errors import BridleError, Interrupted


class Verbs(click.Group):
    """Errors, click's own too, end in one sentence on standard error and the exit status that they carry; --debug shows where they
    came from."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            return super().parse_args(ctx, args)  # shows the help
        with telling(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with telling(ctx), writing_profile():
            return super().invoke(ctx)


@contextmanager
def telling(ctx: click.Context) -> Iterator[None]:
    """Tell of an error in one sentence, and end with its status."""
    try:
        yield
        return
    except (click.exceptions.Exit, click.Abort):
        raise
    except (Exception, KeyboardInterrupt) as error:
        if ctx.ensure_object(Options).debug:
            traceback.print_exception(error)
        command = " ".join(filter(None, (ctx.command_path, ctx.invoked_subcommand)))
        sentence, status = sentence_and_status(error, command)
    click.echo(f"bridle: {sentence}", err=True)
    ctx.exit(status)


@contextmanager
def writing_profile() -> Iterator[None]:
    """Write what --profile recorded when the verb has ended, well or not; a verb that never came to a place leaves nothing."""
    try:
        yield
    except BaseException:
        with suppress(BridleError):  # the error that is on its way says more
            write_recording()
        raise
    write_recording()


def write_recording() -> None:
    recorded = timeline.stop()
    if recorded is None or recorded.place is None:
        return
    from bridle.project.profile import FILE, table_lines, write_profile

    lines = table_lines(write_profile(recorded, recorded.place))
    click.echo("\n".join(["", *lines, "", f"trace: {recorded.place / FILE}"]), err=True)


def sentence_and_status(error: BaseException, command: str) -> tuple[str, int]:
    """An error of a command (`bridle train`) as a sentence and an exit status."""
    if isinstance(error, BridleError):
        return str(error), error.exit_status
    if isinstance(error, click.ClickException):
        message = error.format_message().rstrip(".")
        return f"{message[:1].lower()}{message[1:]}; `{command} --help` shows what there is", error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; what was saved stays, run the same command again to resume", Interrupted.exit_status
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1
    return f"unexpected {type(error).__name__}: {error}; run again with --debug to see where", 1  # a fault of ours


@click.group(
    name="bridle",
    cls=Verbs,
    commands=[demo, evaluate, import_, init, label, report, sample, train],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="bridle")
def main() -> None:
    """The whole RLHF loop: people compare a model's answers, a reward model learns from them, the policy is tuned against it
    under a KL bridle.

    `bridle demo` walks the loop once. With a project of your own: init, import, then train, sample, evaluate, report.
    """
