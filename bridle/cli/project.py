"""Verbs of a project: init, import, export, push, report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bridle.cli.completion import model_names, run_names
from bridle.cli.options import (
    Options,
    chosen_settings,
    loading,
    open_project,
    opened_work,
    print_found,
    print_lines,
    print_metrics,
    profile_in,
    shared_options,
)
from bridle.cli.store import data_options, export_data
from bridle.core.errors import DataError, UsageError
from bridle.core.timeline import timed


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--model",
    metavar="PATH|ORG/NAME[@REVISION]",
    help="A model to start from, instead of pretraining a small one: a Hugging Face folder, a GGUF file, or a name on the hub "
    "(modelscope:ORG/NAME: on ModelScope).",
)
@shared_options("project", "as_json", "wait")
def init(options: Options, folder: Path, model: str | None) -> None:
    """Make a project: a folder with bridle.toml, in which every setting is explained."""
    from bridle.models.files.hub import model_place, require_model_place
    from bridle.project.project import Project, require_new
    from bridle.recipe.recipe import Recipe

    settings, lines, pins = chosen_settings(options), list[str](), None
    if model is not None:
        require_new(folder)
        Recipe().with_settings(settings)  # what is wrong with them is told before anything is downloaded
        place, pins, lines = model_place(model, lambda sentence: print_lines([sentence], err=True))
        settings["model.path"] = str(place)
    recipe = Recipe().with_settings(settings)
    first = "train pretrain" if recipe.data.source == "playground" else "import FILE"
    if not recipe.model.path:
        project = Project.create(folder, recipe)
    else:
        require_new(folder)
        place = require_model_place(folder.resolve(), recipe.model.path)
        with loading():
            from bridle.models.lora.merging import as_whole
            from bridle.stages.own_model import begin_project
        with as_whole(place) as read:
            project, done = begin_project(folder, read, settings, pins, take=model is not None)
        lines, first = [*lines, *done], first.replace("pretrain", "sft")
    profile_in(project.folder)
    print_lines([*lines, f"made {project.folder}; next: cd {project.folder} && bridle {first}"])


@click.command("import")
@click.argument("sources", metavar="FILE", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--format", "form", metavar="FORM", help="The form of every row (docs/data.md; default: told by each row's fields)."
)
@click.option(
    "--map", "mapped", metavar="FIELD=NAME,…", multiple=True, help="Read a field of yours under a name that forms know."
)
@click.option("--encoding", metavar="NAME", help="The files' encoding, such as gb18030 (default: found out).")
@shared_options()
def import_(
    options: Options, sources: tuple[Path, ...], form: str | None, mapped: tuple[str, ...], encoding: str | None
) -> None:
    """Bring preferences, votes, demonstrations, prompts or texts into the store: JSON, CSV, Parquet and more, packed or not."""
    from bridle.project.lock import held
    from bridle.project.progress import Progress

    project, progress, megabyte = open_project(options), Progress(), 10**6
    with timed("import"):
        from bridle.feedback.importing.formats import named_form, parse_mapping
        from bridle.feedback.importing.importer import import_file
        from bridle.feedback.importing.report import ImportReport, NothingImported, sum_of_reports
        from bridle.stages.registry import open_store
    chosen: dict[str, Any] = {"form": named_form(form), "mapping": parse_mapping(mapped), "encoding": encoding}
    chosen["held_out_share"] = project.recipe.data.heldout_share
    chosen["progress"] = lambda done, size: progress.update(done // megabyte, 1 + size // megabyte, unit="MB")
    reports, nothing = list[ImportReport](), None
    progress.begin(f"importing {sources[0]}" + (f" and {len(sources) - 1} more" if sources[1:] else ""))
    try:
        waiting = progress.say if options.wait else None
        with held(project.folder / ".import.lock", project.store, waiting), open_store(project) as store:
            for source in sources:
                try:
                    reports += [import_file(store, source, **chosen)]
                except NothingImported as error:
                    reports, nothing = [*reports, error.report], nothing or error
    finally:
        progress.clear()
        if reports:
            print_found(options, sum_of_reports(reports), [line for report in reports for line in report.lines()])
    if nothing is not None:
        raise nothing


def dtype_option(verb: Callable[..., None]) -> Callable[..., None]:
    choice = click.Choice(["float32", "bfloat16", "float16"])
    return click.option("--dtype", type=choice, help="The type of the weights (default: as each tensor came).")(verb)


@click.command()
@click.argument("model", metavar="DEST|MODEL", shell_complete=model_names)
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path), required=False)
@dtype_option
@click.option("--adapter", is_flag=True, help="The adapter that the model was left with, alone, in peft's form.")
@data_options
@shared_options("wait")
def export(options: Options, model: str, folder: Path | None, dtype: str | None, adapter: bool, **part: Any) -> None:
    """Write the store's data to the file DEST, for others or to be imported again; or, of two arguments, a MODEL of the project as a
    Hugging Face folder DIR, with what its numbers lose by that."""
    if folder is None:
        if dtype is not None or adapter:
            raise UsageError("--dtype and --adapter are of a model; name the model and a folder, or leave them out")
        export_data(options, Path(model), part)
        return
    if any(part.values()):
        raise UsageError("of a model nothing but --dtype can be chosen; name one file to export the store's data")
    if adapter and dtype is not None:
        raise UsageError("an adapter is written as it was trained, in float32; leave --dtype out, or --adapter")
    with loading():
        from bridle.stages.export import export_adapter, export_model

    with opened_work(options) as work:
        metrics = export_adapter(work, model, folder) if adapter else export_model(work, model, folder, dtype or "")
    print_metrics(options, metrics)


@click.command()
@click.argument("model", metavar="MODEL", shell_complete=model_names)
@click.argument("repository", metavar="ORG/NAME")
@dtype_option
@click.option("--public", is_flag=True, help="Let everybody read a repository that is made new.")
@click.option("--adapter", is_flag=True, help="The adapter alone, in peft's form.")
@shared_options("wait")
def push(options: Options, model: str, repository: str, dtype: str | None, public: bool, adapter: bool) -> None:
    """Export a model of the project to a hub, with a card, into a repository that is private unless --public is given."""
    if adapter and dtype is not None:
        raise UsageError("an adapter is written as it was trained, in float32; leave --dtype out, or --adapter")
    with loading():
        from bridle.stages.export import push_model

    with opened_work(options) as work:
        metrics = push_model(work, model, repository, dtype or "", public, adapter)
    print_metrics(options, metrics)


@click.command()
@click.argument("run", metavar="[RUN]", type=click.Path(path_type=Path), required=False, shell_complete=run_names)
@shared_options("settings", "as_json", "wait")
def report(options: Options, run: Path | None) -> None:
    """Write report.html: of one run's folder, or of the whole project."""
    with loading():
        from bridle.report.project import write_project_report
        from bridle.report.run import write_run_report

    with opened_work(options) as work:
        if run is not None:
            print_lines([f"wrote {write_run_report(work, run)}"])
            return
        path = write_project_report(work)
    runs = work.project.folder / "runs"
    if not any(runs.glob("*/result.json")):
        begun = ", ".join(sorted(folder.parent.name for folder in runs.glob("*/parents.json")))
        raise DataError(
            f"{path} shows nothing yet, for no run of this project is finished; "
            + (f"finish {begun}, or give one to `bridle report`" if begun else "`bridle train METHOD` makes one")
        )
    print_lines([f"wrote {path}"])
