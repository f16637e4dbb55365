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
    """Errors end in one sentence on standard error and the exit status that they carry; --debug shows where they came from."""

    def invoke(self, ctx: click.Context) -> Any:
        ctx.ensure_object(Options)
        try:
            with writing_profile():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if ctx.obj.debug:
                traceback.print_exception(error)
            sentence, status = sentence_and_status(error)
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


def sentence_and_status(error: BaseException) -> tuple[str, int]:
    """An error as a sentence and an exit status."""
    if isinstance(error, BridleError):
        return str(error), error.exit_status
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; what was saved stays, run the same command again to resume", Interrupted.exit_status
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1
    return f"unexpected {type(error).__name__}: {error}; run again with --debug to see where", 1  # a fault of ours


@click.group(
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
