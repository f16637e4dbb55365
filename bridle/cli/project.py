"""Verbs of a project: init, import, report."""

from pathlib import Path

import click

from bridle.cli.options import (
    Options,
    chosen_settings,
    loading,
    open_project,
    opened_work,
    print_found,
    print_lines,
    profile_in,
    shared_options,
)
from bridle.core.errors import DataError, UsageError
from bridle.core.timeline import timed


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--model", metavar="PATH", help="A Hugging Face model folder to start from, instead of pretraining a small one."
)
@shared_options("project", "as_json", "wait")
def init(options: Options, folder: Path, model: str | None) -> None:
    """Make a project: a folder with bridle.toml, in which every setting is explained."""
    from bridle.project.project import Project, require_new
    from bridle.recipe.recipe import Recipe

    settings, lines = chosen_settings(options), list[str]()
    if model is not None:
        if (Path(model) / "adapter_config.json").is_file() and not (Path(model) / "config.json").is_file():
            raise UsageError(
                f"{model} is a LoRA adapter and not a whole model; merge it into its base and name that folder"
            )
        if not (Path(model) / "config.json").is_file():
            raise UsageError(
                f"there is no model at {model}; --model takes a folder with config.json and model.safetensors"
            )
        settings["model.path"] = str(Path(model).resolve())
    recipe = Recipe().with_settings(settings)
    first = "train pretrain" if recipe.data.source == "playground" else "import FILE"
    if model is None:
        project = Project.create(folder, recipe)
    else:
        require_new(folder)
        with loading():
            from bridle.stages.own_model import begin_project
        project, lines = begin_project(folder, Path(model).resolve(), settings)
        first = first.replace("pretrain", "sft")
    profile_in(project.folder)
    print_lines([*lines, f"made {project.folder}; next: cd {project.folder} && bridle {first}"])


@click.command("import")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["hh", "preference", "prompt", "completion", "messages", "sharegpt", "alpaca"]),
    help="The form of every row (default: inferred from each row's fields).",
)
@shared_options()
def import_(options: Options, source: Path, form: str | None) -> None:
    """Bring preferences, demonstrations or prompts into the store: JSON lines, a JSON list or Parquet; gzip or not."""
    from bridle.project.lock import held
    from bridle.project.progress import Progress

    project, progress, megabyte = open_project(options), Progress(), 10**6
    progress.begin(f"importing {source}")
    with timed("import"):
        from bridle.feedback.importing.formats import Form
        from bridle.feedback.importing.importer import import_file
        from bridle.feedback.store.store import Store
    project.require_store()
    try:
        waiting = progress.say if options.wait else None
        with held(project.folder / ".import.lock", project.store, waiting), Store.open(project.store) as store:
            report = import_file(
                store, source, form=Form(form) if form else None, held_out_share=project.recipe.data.heldout_share,
                progress=lambda done, size: progress.update(done // megabyte, 1 + size // megabyte, unit="MB"),
            )  # fmt: skip
    finally:
        progress.clear()
    print_found(options, report.as_dict(), report.lines())


@click.command()
@click.argument("run", metavar="[RUN]", type=click.Path(path_type=Path), required=False)
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
