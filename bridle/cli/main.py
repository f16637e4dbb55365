"""The command line: a verb for each intention. A verb imports what it needs when it runs, so help is instant."""

import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO, cast

import click

from bridle.cli.demo import cliff, demo
from bridle.cli.feedback import agreement, judge, label, revise, sample
from bridle.cli.loop import loop
from bridle.cli.models import models
from bridle.cli.options import Options, let_go, print_lines
from bridle.cli.project import export, import_, init, push, report
from bridle.cli.serving import keys, serve
from bridle.cli.store import store
from bridle.cli.train import evaluate, plan, reward, sweep, train
from bridle.core import timeline
from bridle.core.errors import BridleError, Interrupted
from bridle.core.text import VisibleStream


class Verbs(click.Group):
    """Errors, click's own too, end in one sentence on standard error and the exit status that they carry; --debug shows where they
    came from."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            return super().parse_args(ctx, args)  # shows the help
        with telling(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with visible_streams(), telling(ctx), ended_by_signals(), writing_profile():
            return super().invoke(ctx)


@contextmanager
def telling(ctx: click.Context) -> Iterator[None]:
    """Tell of an error in one sentence, and end with its status."""
    status: int | None = None
    try:
        yield
    except (click.exceptions.Exit, click.Abort):
        raise
    except BrokenPipeError:  # help that nobody read to its end
        status = 0
    except (Exception, KeyboardInterrupt) as error:
        if ctx.ensure_object(Options).debug:
            print_lines(traceback_lines(error), err=True)
        command = " ".join(filter(None, (ctx.command_path, ctx.invoked_subcommand)))
        sentence, status = sentence_and_status(error, command)
        print_lines([f"bridle: {sentence}"], err=True)
    finally:
        for stream in (sys.stdout, sys.stderr):
            let_go(stream)
    if status is not None:
        ctx.exit(status)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM, and SIGHUP where it is not ignored (nohup), end a verb as Ctrl-C does. A run puts handlers of its own in their place.

    Where the interpreter cannot hand the KeyboardInterrupt on (it came into a destructor or a callback of a library's), it comes again.
    """
    before: dict[int, Any] = {}
    unraisable = sys.unraisablehook

    def end(number: int, frame: FrameType | None) -> None:
        for known in before:
            signal.signal(
                known, signal.SIG_IGN if known == signal.SIGHUP else signal.SIG_DFL
            )  # a hang-up may come twice
        raise KeyboardInterrupt

    def again(lost: Any) -> None:
        if not isinstance(lost.exc_value, KeyboardInterrupt):
            unraisable(lost)
            return
        signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, 0.001)  # not at once: that would be in here, and lost again

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, end)
        sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = unraisable
        if signal.getsignal(signal.SIGALRM) is end:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        for caught, handler in before.items():
            signal.signal(caught, handler)


def traceback_lines(error: BaseException) -> Iterator[str]:
    """As Python prints it, but that a message, whatever line ends it holds, is one line."""
    for piece in traceback.format_exception(error):
        ours = piece.startswith(('  File "', "\n"))  # a frame with its line of code, or how two errors hang together
        yield from piece.removesuffix("\n").split("\n") if ours else [piece.removesuffix("\n")]


@contextmanager
def visible_streams() -> Iterator[None]:
    """What libraries write to the terminal, warnings say, goes the same way out as our own lines."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and cast(TextIO, VisibleStream(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


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
    print_lines(["", *lines, "", f"trace: {recorded.place / FILE}"], err=True)


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
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] != "bridle":
        return f"{error.name} is not installed, and `{command}` needs it; `pip install bridle` brings what is needed", 1
    return f"unexpected {type(error).__name__}: {error}; run again with --debug to see where", 1  # a fault of ours


@click.group(
    name="bridle",
    cls=Verbs,
    commands=[
        agreement,
        demo,
        cliff,
        evaluate,
        export,
        import_,
        init,
        judge,
        keys,
        label,
        loop,
        models,
        push,
        report,
        revise,
        reward,
        sample,
        serve,
        store,
        plan,
        sweep,
        train,
    ],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="bridle")
def main() -> None:
    """The whole RLHF loop: people compare a model's answers, a reward model learns from them, the policy is tuned against it
    under a KL bridle.

    `bridle demo` walks the loop once. With a project of your own: init, import, then train, sample, evaluate, report, export.
    """
