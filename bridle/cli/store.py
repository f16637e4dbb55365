"""Verbs of the store: backup, restore, verify, find, takedown; and its data exported."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bridle.cli.options import Options, open_project, print_found, shared_options
from bridle.core.errors import StoreError, UsageError

if TYPE_CHECKING:
    from bridle.feedback.store.store import Store
    from bridle.project.project import Project

MOST_LISTED = 20  # faults and files that are printed; --json has all


def data_options(verb: Callable[..., None]) -> Callable[..., None]:
    """What can be chosen of the data that is exported."""
    for option in (
        click.option("--format", "form", metavar="FORM", help="preference (default), unpaired, prompts, rankings, ratings, full, argilla "
                     "or label-studio (docs/store.md)."),
        click.option("--study", metavar="NAME", help="Of the data, what one study asked."),
        click.option("--split", metavar="NAME", help="Of the data, what is in one split: train or heldout."),
        click.option("--snapshot", metavar="HASH", help="Of the judgements, those of a snapshot, weighed as it says."),
        click.option("--push", metavar="ORG/NAME", help="Upload the data to a private dataset repository of a hub too, with a card."),
        click.option("--licence", metavar="NAME", help="The licence that the card tells (default: unknown)."),
        click.option("--force", is_flag=True, help="Replace a file that is there."),
    )[::-1]:  # fmt: skip
        verb = option(verb)
    return verb


def export_data(options: Options, place: Path, part: Mapping[str, Any]) -> None:
    import shutil
    import tempfile

    from bridle.feedback.exporting.card import dataset_card
    from bridle.feedback.exporting.exporter import export_file
    from bridle.feedback.exporting.formats import Wanted
    from bridle.models.files.hub import push_folder, require_repository

    if part["push"]:
        require_repository(part["push"])
    elif part["licence"]:
        raise UsageError("--licence is told on the card that --push writes; give both, or neither")
    with opened_store(options) as (_, store):
        chosen = Wanted(part["study"], part["split"], part["snapshot"])
        form = part["form"] or "preference"
        report = export_file(store, place, form, chosen, by=user_name(), force=part["force"])
        found, lines = report.as_dict(), report.lines()
        if part["push"]:
            with tempfile.TemporaryDirectory(dir=place.absolute().parent, prefix=".push.") as folder:
                shutil.copyfile(place, Path(folder) / place.name)
                card = dataset_card(store, report, part["push"], part["licence"] or "unknown")
                (Path(folder) / "README.md").write_text(card, "utf-8")
                found["pushed"] = push_folder(Path(folder), part["push"], False, "dataset")
            lines.append(f"pushed to {found['pushed']}")
    print_found(options, found, lines)


@contextmanager
def opened_store(options: Options) -> Iterator[tuple["Project", "Store"]]:
    project = open_project(options)
    from bridle.stages.registry import open_store

    with open_store(project) as store:
        yield project, store


def user_name() -> str:
    """Who is at the terminal, for the store's account."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # one without a name, as in a container
        return "nobody named"


@click.group()
def store() -> None:
    """Keep the store safe: back it up, verify it, take a text down."""


FORCE = click.option("--force", is_flag=True, help="Replace what is there.")


@store.command()
@click.argument("place", metavar="DEST", type=click.Path(path_type=Path))
@FORCE
@shared_options("settings", "wait")
def backup(options: Options, place: Path, force: bool) -> None:
    """Copy the whole store into a file, verified, while others may write: SQLite, or JSON lines where it ends in .jsonl or .jsonl.gz."""
    from bridle.feedback.upkeep.backup import back_up

    with opened_store(options) as (_, opened):
        found = back_up(opened, place, force)
    print_found(options, found, [f"wrote {place}: {found['rows']:,} rows, {found['bytes']:,} bytes, verified"])


@store.command()
@click.argument("source", metavar="SOURCE", type=click.Path(path_type=Path))
@FORCE
@shared_options("settings", "wait")
def restore(options: Options, source: Path, force: bool) -> None:
    """Put a backup in the place of the project's store, once it is verified. Nothing else may be at work there."""
    from bridle.feedback.store.store import Store
    from bridle.feedback.upkeep.backup import restore_file, restore_into

    project = open_project(options)
    if isinstance(project.store, str):
        with Store.open(project.store) as opened:
            found = restore_into(opened, source, by=user_name())
    else:
        found = restore_file(source, project.store, by=user_name(), force=force)
    print_found(options, found, [f"restored {project.store}: {found['rows']:,} rows, verified"])


@store.command()
@shared_options("settings", "wait")
def verify(options: Options) -> None:
    """Look whether every row is what was written: hashes, checksums, references, snapshots, the account."""
    from bridle.feedback.upkeep.verify import store_faults

    with opened_store(options) as (project, opened):
        faults = list(store_faults(opened))
        rows = opened.counts()
    print_found(
        options,
        {"faults": faults, "counts": rows},
        [*first_of(faults), *([] if faults else ["the store is as it was written"])],
    )
    if faults:
        raise StoreError(f"{project.store} is damaged ({len(faults):,} faults); restore a backup of it")


@store.command()
@click.argument("text", metavar="TEXT")
@shared_options("settings", "wait")
def find(options: Options, text: str) -> None:
    """List the hashes of prompts, answers, solutions, texts, reasons and notes that contain a text."""
    from bridle.feedback.upkeep.takedown import find_text

    with opened_store(options) as (_, opened):
        found = find_text(opened, text)
    lines = [f"{one['hash'][:16]}  {one['what']:<10}  {' '.join(one['text'].split())[:100]}" for one in found]
    print_found(options, {"found": found}, lines or ["it stands in no text of the store"])


@store.command()
@click.argument("digits", metavar="HASH")
@click.option("--reason", metavar="TEXT", required=True, help="Why, for the store's account; do not quote the text.")
@shared_options("settings", "wait")
def takedown(options: Options, digits: str, reason: str) -> None:
    """Blank a text for good, of a prompt its answers too, and name the models that learnt from it and the runs that hold it."""
    from bridle.feedback.upkeep.takedown import take_down
    from bridle.stages.lineage import Lineage

    with opened_store(options) as (project, opened):
        noted = {
            made.model: [one for one in made.noted.values() if isinstance(one, str)] for made in Lineage(project).made
        }
        runs = project.folder / "runs"
        done = take_down(opened, digits, reason=reason, by=user_name(), runs=runs, made=noted)
    blanked = ", ".join(f"{count} {name}" for name, count in done.blanked.items())
    lines = [f"took down {done.hash[:16]}: {blanked or 'nothing was left to blank'}"]
    for title, names in (
        ("learnt from it, or descend from what did; train them anew", done.models),
        ("may have learnt from it, for nothing says what they learnt from", done.perhaps),
        ("hold it still; remove them", done.runs),
        ("ratings that repeat its steps, and are never changed", done.steps),
    ):
        lines += [f"{title}:", *first_of(names)] if names else []
    lines.append("backups, exports and trained weights are out of reach")
    print_found(options, {name: value for name, value in asdict(done).items() if name != "texts"}, lines)


def first_of(names: list[str]) -> list[str]:
    return [
        *(f"  {name}" for name in names[:MOST_LISTED]),
        *([f"  and {len(names) - MOST_LISTED:,} more"] if len(names) > MOST_LISTED else []),
    ]
