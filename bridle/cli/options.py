"""What the verbs share: options, the project that they work in, metrics printed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from bridle.cli.completion import setting_names
from bridle.core import timeline
from bridle.core.files import finite_or_none
from bridle.core.processes import is_first_rank
from bridle.core.text import one_line
from bridle.core.timeline import timed

if TYPE_CHECKING:
    from bridle.project.project import Project
    from bridle.stages.workspace import Work


@dataclass(frozen=True)
class Options:
    """What the shared options were given."""

    project: str | None = None
    settings: tuple[str, ...] = ()
    as_json: bool = False
    wait: bool = False
    debug: bool = False


def note_option(ctx: click.Context, option: click.Parameter, value: Any) -> None:
    """Note it for the verb, and for the group, which reports errors."""
    ctx.obj = ctx.find_root().obj = replace(ctx.ensure_object(Options), **{str(option.name): value})


def start_profile(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        timeline.record(f"bridle {ctx.info_name}")


SHARED = {
    "project": click.option(
        "--project", metavar="DIR", expose_value=False, callback=note_option,
        help="The project's folder (default: here or above).",
    ),
    "settings": click.option(
        "--set", "settings", metavar="SECTION.KEY=VALUE", multiple=True, expose_value=False, callback=note_option,
        shell_complete=setting_names,
        help="Replace a setting of the recipe for this command; may be given several times.",
    ),
    "as_json": click.option(
        "--json", "as_json", is_flag=True, expose_value=False, callback=note_option,
        help="Print the metrics as JSON, for programs.",
    ),
    "wait": click.option(
        "--wait", is_flag=True, expose_value=False, callback=note_option,
        help="Where another process is at work on the same, wait until it is done.",
    ),
    "profile": click.option(
        "--profile", is_flag=True, expose_value=False, callback=start_profile, is_eager=True,
        help="Write profile.json, a timeline for chrome://tracing or Perfetto, and show where the time went.",
    ),
    "debug": click.option(
        "--debug", is_flag=True, expose_value=False, callback=note_option, is_eager=True,
        help="Show the traceback of an error.",
    ),
}  # fmt: skip


def shared_options(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options that every verb has, in one decorator: all of SHARED but those named. The verb gets what they were given as its
    first argument, `options`."""

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        verb = click.pass_obj(verb)
        for name in reversed([name for name in SHARED if name not in without]):
            verb = SHARED[name](verb)
        return verb

    return decorate


def listening_options(port: int, path: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Where an app listens, by default at this port, and what stands before it; `path` is an example of where a proxy may put it."""

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        for option in (
            click.option("--host", default="127.0.0.1", metavar="ADDRESS", help="Where the app listens (default: this machine alone)."),
            click.option("--port", default=port, type=click.IntRange(0, 65535), help=f"Its port (default: {port}; 0: any that is free)."),
            click.option("--root-path", default="", metavar="PATH", help=f"The path that a proxy puts the app under, such as {path}."),
            click.option("--trust-proxy", "proxies", multiple=True, metavar="ADDRESS", help="Believe what the proxy at this "
                         "address, or in this network, says of who asks (X-Forwarded-For, -Proto, -Host); may be given several times."),
        )[::-1]:  # fmt: skip
            verb = option(verb)
        return verb

    return decorate


def chosen_settings(options: Options) -> dict[str, Any]:
    """What --set was given, by dotted key."""
    from bridle.recipe.recipe import parse_setting

    return dict(parse_setting(text) for text in options.settings)


@contextmanager
def loading() -> Iterator[None]:
    """Around the import of what loads PyTorch: it takes seconds, in which somebody waits."""
    if is_first_rank():
        print_lines(["loading PyTorch …"], err=True)
    with timed("import"):
        yield


def profile_in(folder: Path) -> None:
    """Where --profile will write: of ranks the first one."""
    if (recorded := timeline.recording()) is not None and is_first_rank():
        recorded.place = folder


def open_project(options: Options) -> Project:
    from bridle.project.project import Project

    project = Project.find(Path(options.project or "."))
    profile_in(project.folder)
    return replace(project, recipe=project.recipe.with_settings(chosen_settings(options)))


@contextmanager
def opened_work(options: Options, shared: bool = False) -> Iterator[Work]:
    """The project at work, `shared` by ranks where the recipe or torchrun wants that. What one run alone recorded is written into its
    folder."""
    from bridle.launch.processes import local_workers
    from bridle.launch.ray import ray_workers
    from bridle.launch.torchrun import ranks
    from bridle.project.progress import Progress
    from bridle.stages.workspace import Work

    project = open_project(options)
    scale = project.recipe.scale if shared else None
    workers = project.recipe.rollout.workers + project.recipe.scale.reward_workers
    with ranks(scale, project.folder, workers), ExitStack() as closing:
        start = None if scale is None else ray_workers if scale.launcher == "ray" else local_workers
        work = Work(project, Progress() if is_first_rank() else Progress(len), wait=options.wait, start_workers=start)
        closing.callback(close_work, work)
        yield work


def close_work(work: Work) -> None:
    work.close()
    if (recorded := timeline.recording()) is not None and len(set(recorded.runs)) == 1 and is_first_rank():
        recorded.place = recorded.runs[0]


def print_lines(lines: Iterable[str], err: bool = False) -> None:
    """All that a verb says: lines of ours, in which nothing that others wrote is obeyed or begins another."""
    write_out("\n".join(map(one_line, lines)), err)


def print_found(options: Options, found: Mapping[str, Any], lines: Iterable[str]) -> None:
    """What a verb found, in lines, or as JSON where that was asked for: as it was found, and in ASCII, whatever the terminal writes."""
    if options.as_json:
        click.echo(json.dumps(finite_or_none(found)))
    else:
        print_lines(lines)


def print_metrics(options: Options, metrics: Mapping[str, Any]) -> None:
    if is_first_rank():
        print_found(options, metrics, metric_lines(finite_or_none(metrics)))


def write_out(text: str, err: bool = False) -> None:
    """Print what is fit to be shown. Where nobody reads any more (`| head`, a terminal that was closed) nothing comes of it; a full disk
    costs only what goes to standard error."""
    try:
        click.echo(text, err=err)
    except OSError as error:
        if not err and error.errno not in (errno.EPIPE, errno.EIO):
            raise


def let_go(stream: TextIO | None) -> None:
    """Leave nothing in a stream that nobody reads: Python would complain of it at its very end, with an exit status of its own."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def metric_lines(metrics: Mapping[str, Any], indent: str = "") -> list[str]:
    """Metrics a line each, nested ones indented, hashes left to --json."""
    lines = []
    for name, value in metrics.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", *metric_lines(value, indent + "  ")]
        elif isinstance(value, float):
            lines.append(f"{indent}{name:<24} {value:.4g}")
        elif not (isinstance(value, str) and len(value) == 64):
            lines.append(f"{indent}{name:<24} {'not measured' if value is None else value}")
    return lines
