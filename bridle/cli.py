"""The command line: a verb for each intention. A verb imports what it needs when it runs, so help is instant."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bridle.core import timeline
from bridle.core.errors import BridleError, Interrupted, UsageError
from bridle.core.timeline import timed

if TYPE_CHECKING:
    from bridle.core.recipe import Recipe
    from bridle.core.runlog import Project
    from bridle.stages import Work


@dataclass
class Options:
    """What every verb takes; gathered by the options' callbacks."""

    project: Path = Path(".")
    settings: list[str] = field(default_factory=list)
    as_json: bool = False
    debug: bool = False


class Verbs(click.Group):
    """Errors end in one sentence on standard error and the exit status that they carry; --debug shows where they came from."""

    def invoke(self, ctx: click.Context) -> Any:
        ctx.ensure_object(Options)
        try:
            with profiled():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if ctx.obj.debug:
                traceback.print_exception(error)
            sentence, status = told(error)
        click.echo(f"bridle: {sentence}", err=True)
        ctx.exit(status)


@contextmanager
def profiled() -> Iterator[None]:
    """Write what --profile recorded when the verb has ended, well or not; a verb that never came to a place leaves nothing."""
    try:
        yield
    except BaseException:
        with suppress(BridleError):  # the error that is on its way tells more
            write_what_was_recorded()
        raise
    write_what_was_recorded()


def write_what_was_recorded() -> None:
    recorded = timeline.stop()
    if recorded is None or recorded.place is None:
        return
    from bridle.core.profile import FILE, table_lines, write_profile

    lines = table_lines(write_profile(recorded, recorded.place))
    click.echo("\n".join(["", *lines, "", f"trace: {recorded.place / FILE}"]), err=True)


def told(error: BaseException) -> tuple[str, int]:
    """An error as a sentence and an exit status."""
    if isinstance(error, BridleError):
        return str(error), error.exit_status
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; what was saved stays, run the same command again to go on", Interrupted.exit_status
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1
    return f"unexpected {type(error).__name__}: {error}; run again with --debug to see where", 1  # a fault of ours


def set_project(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value:
        ctx.ensure_object(Options).project = Path(value)


def set_settings(ctx: click.Context, _: click.Parameter, value: tuple[str, ...]) -> None:
    ctx.ensure_object(Options).settings.extend(value)


def set_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.ensure_object(Options).as_json |= value


def set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.ensure_object(Options).debug |= value


def set_profile(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        timeline.record(f"bridle {ctx.info_name}")


project_option = click.option(
    "--project",
    metavar="DIR",
    expose_value=False,
    callback=set_project,
    help="The project's folder (default: here or above).",
)
set_option = click.option(
    "--set", metavar="SECTION.KEY=VALUE", multiple=True, expose_value=False, callback=set_settings,
    help="Replace a setting of the recipe for this command; may be given several times.",
)  # fmt: skip
json_option = click.option(
    "--json", is_flag=True, expose_value=False, callback=set_json, help="Print the figures as JSON, for programs."
)
debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=set_debug,
    is_eager=True,
    help="Show the traceback of an error.",
)
profile_option = click.option(
    "--profile",
    is_flag=True,
    expose_value=False,
    callback=set_profile,
    is_eager=True,
    help="Write profile.json, a timeline for chrome://tracing or Perfetto, and tell where the time went.",
)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bridle")
def main() -> None:
    """The whole RLHF loop: people compare a model's answers, a reward model learns from them, the policy is tuned against it
    under a KL bridle.

    `bridle demo` walks the loop once. With a project of your own: init, import, then train, sample, evaluate, report.
    """


@main.command()
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Every random number follows from it."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder to make; a demo that lies there unfinished is gone on with.",
)
@click.option("--quick", is_flag=True, help="Every stage, smaller: a minute or two, and figures that prove nothing.")
@click.option(
    "--world", type=click.Path(path_type=Path), help="Data file of another playground world of the same form."
)
@set_option
@json_option
@profile_option
@debug_option
@click.pass_obj
def demo(options: Options, seed: int, out: Path, quick: bool, world: Path | None) -> None:
    """The whole loop on the playground, from nothing to a report, in minutes."""
    with timed("import"):
        from bridle.demo import QUICK, run_demo, summary_lines

    summary = run_demo(out, demo_recipe(options, seed, world, QUICK if quick else {}))
    if options.as_json:
        click.echo(json.dumps(summary))
    else:
        click.echo("\n".join(summary_lines(summary, out)))


def demo_recipe(options: Options, seed: int, world: Path | None, settings: Mapping[str, Any]) -> Recipe:
    from bridle.core.recipe import Recipe, parse_setting

    chosen = {**settings, **dict(parse_setting(text) for text in options.settings)}
    if world is not None:
        if not world.is_file():
            raise UsageError(f"there is no world file at {world}")
        chosen["world.file"] = str(world.resolve())
    return Recipe().with_settings({"seed": seed, "data.source": "playground", **chosen})


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--model", metavar="PATH", help="A Hugging Face model folder to start from, instead of pretraining a small one."
)
@set_option
@profile_option
@debug_option
@click.pass_obj
def init(options: Options, folder: Path, model: str | None) -> None:
    """Make a project: a folder with bridle.toml, in which every setting is explained."""
    from bridle.core.recipe import Recipe, parse_setting
    from bridle.core.runlog import Project

    settings = dict(parse_setting(text) for text in options.settings)
    if model is not None:
        if (Path(model) / "adapter_config.json").is_file() and not (Path(model) / "config.json").is_file():
            raise UsageError(
                f"{model} is a LoRA adapter and no whole model; merge it into its base and name that folder"
            )
        if not (Path(model) / "config.json").is_file():
            raise UsageError(
                f"there is no model at {model}; --model takes a folder with config.json and model.safetensors"
            )
        settings["model.path"] = str(Path(model).resolve())
    project = Project.create(folder, Recipe().with_settings(settings))
    profile_in(project.folder)
    click.echo(f"made {project.folder}; next: cd {project.folder} && bridle import FILE")


@main.command("import")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["hh", "preference", "prompt", "completion", "messages", "sharegpt", "alpaca"]),
    help="The form of every row, where its fields do not tell (default: they tell).",
)
@project_option
@set_option
@json_option
@profile_option
@debug_option
@click.pass_obj
def import_(options: Options, source: Path, form: str | None) -> None:
    """Bring preferences, demonstrations or prompts into the store: JSON lines, a JSON list or Parquet; gzip or not."""
    with timed("import"):
        from bridle.core.runlog import Progress
        from bridle.feedback.formats import Form
        from bridle.feedback.imports import import_file
        from bridle.feedback.store import Store

    project, progress, megabyte = open_project(options), Progress(), 10**6
    progress.begin(f"importing {source}, counted in megabytes")
    try:
        with Store.open(project.store) as store:
            report = import_file(
                store, source, form=Form(form) if form else None, held_out_share=project.recipe.data.heldout_share,
                progress=lambda done, size: progress.update(done // megabyte, 1 + size // megabyte),
            )  # fmt: skip
    finally:
        progress.clear()
    click.echo(json.dumps(report.as_dict()) if options.as_json else report.text())


@main.command()
@project_option
@set_option
@json_option
@profile_option
@debug_option
@click.pass_obj
def sample(options: Options) -> None:
    """Answer each prompt several times (nucleus sampling), into the store, to be compared."""
    with timed("import"):
        from bridle import stages

    with_work(options, stages.sample)


@main.command()
@click.option("--simulate", is_flag=True, help="Let the playground's simulated people compare.")
@project_option
@set_option
@json_option
@profile_option
@debug_option
@click.pass_obj
def label(options: Options, simulate: bool) -> None:
    """Compare the sampled answers."""
    with timed("import"):
        from bridle import stages

    if not simulate:
        raise UsageError(
            "labelling by people comes with the labelling app; for now `bridle label --simulate` on the playground"
        )
    with_work(options, stages.label_simulated)


@main.command()
@click.argument(
    "method", type=click.Choice(["pretrain", "sft", "reward", "ppo", "grpo", "rloo", "rebel", "dpo", "best-of-n"])
)
@project_option
@set_option
@json_option
@profile_option
@debug_option
@click.pass_obj
def train(options: Options, method: str) -> None:
    """Train a model: pretrain | sft | reward | ppo | grpo | rloo | rebel | dpo | best-of-n.

    An unfinished run of the same recipe is gone on with.
    """
    with timed("import"):
        from bridle import scoring, stages, tuning

    methods = {
        "pretrain": stages.train_pretrain,
        "sft": stages.train_sft,
        "reward": scoring.train_reward,
        "ppo": stages.train_ppo,
        "grpo": tuning.train_grpo,
        "rloo": tuning.train_rloo,
        "rebel": tuning.train_rebel,
        "dpo": tuning.train_dpo,
        "best-of-n": tuning.train_rejection,
    }
    with_work(options, methods[method])


@main.command()
@click.argument("model_a", metavar="A")
@click.argument("model_b", metavar="[B]", required=False)
@click.option(
    "--by",
    type=click.Choice(["gold", "reward"]),
    help="Who judges A against B (default: gold on the playground, else reward).",
)
@project_option
@set_option
@json_option
@profile_option
@debug_option
@click.pass_obj
def evaluate(options: Options, model_a: str, model_b: str | None, by: str | None) -> None:
    """Answer the held-out prompts with A (and B) and measure: win rate with interval, gold, KL, diversity."""
    with timed("import"):
        from bridle import stages

    def measure(work: Work) -> dict[str, Any]:
        figures: dict[str, Any] = {model_a: stages.evaluate(work, model_a, reuse=True)}
        if model_b is not None:
            figures[model_b] = stages.evaluate(work, model_b, reuse=True)
            judge = by or ("gold" if work.sources.playground else "reward")
            figures["win_rate"] = stages.compare(work, model_a, model_b, judge)
        return figures

    with_work(options, measure)


@main.command()
@click.argument("run", metavar="[RUN]", type=click.Path(path_type=Path), required=False)
@project_option
@profile_option
@debug_option
@click.pass_obj
def report(options: Options, run: Path | None) -> None:
    """Write report.html: of one run's folder, or of the whole project."""
    with timed("import"):
        from bridle.loop_report import write_project_report, write_run_report

    project = open_project(options)
    click.echo(f"wrote {write_run_report(project, run) if run is not None else write_project_report(project)}")


def profile_in(folder: Path) -> None:
    """Where --profile will write."""
    if (recorded := timeline.recording()) is not None:
        recorded.place = folder


def open_project(options: Options) -> Project:
    from dataclasses import replace

    from bridle.core.recipe import parse_setting
    from bridle.core.runlog import Project

    project = Project.find(options.project)
    profile_in(project.folder)
    return replace(project, recipe=project.recipe.with_settings(dict(parse_setting(text) for text in options.settings)))


def with_work(options: Options, stage: Any) -> None:
    """Run a stage in the project and print its figures."""
    from bridle.core.runlog import Progress
    from bridle.stages import Work

    work = Work(open_project(options), Progress())
    try:
        figures = stage(work)
    finally:
        work.close()
        if (recorded := timeline.recording()) is not None and len(set(recorded.runs)) == 1:
            recorded.place = recorded.runs[0]
    if options.as_json:
        click.echo(json.dumps(figures))
    else:
        for line in figure_lines(figures):
            click.echo(line)


def figure_lines(figures: dict[str, Any], indent: str = "") -> list[str]:
    """Figures a line each, nested ones indented, hashes left to --json."""
    lines = []
    for name, value in figures.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", *figure_lines(value, indent + "  ")]
        elif isinstance(value, float):
            lines.append(f"{indent}{name:<24} {value:.4g}")
        elif not (isinstance(value, str) and len(value) == 64):
            lines.append(f"{indent}{name:<24} {value}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
