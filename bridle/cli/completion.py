"""What a shell offers for a word that is begun: methods, and names of models, runs and settings. Nothing here changes anything, loads
PyTorch or complains: what cannot be read is not offered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

BRACKETED = "COMPREPLY+=($value)"


@add_completion_class
class SettingsInBash(BashComplete):
    """Bash would put a space behind `ppo.kl_coef=`, where the value belongs."""

    source_template = f"{BRACKETED}; [[ $value == *= ]] && compopt -o nospace".join(
        BashComplete.source_template.split(BRACKETED)
    )


def begun_with(incomplete: str, names: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def paths_in_project(ctx: click.Context, pattern: str) -> list[Path]:
    """What there is in the project here, or that of a --project before the word."""
    from bridle.project.project import project_folder

    options: Any = ctx.find_root().obj  # what the shared options before the word were given, if any was
    folder = project_folder(Path("." if options is None else options.project or "."))
    return [] if folder is None else sorted(folder.glob(pattern))


def model_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return begun_with(incomplete, (path.parent.name for path in paths_in_project(ctx, "models/*/config.json")))


def language_model_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Of those that answer."""
    scoring = {path.parent.name for path in paths_in_project(ctx, "models/*/bridle_reward.json")}
    return [item for item in model_names(ctx, param, incomplete) if item.value not in scoring]


def run_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return begun_with(incomplete, (path.parent.name for path in paths_in_project(ctx, "runs/*/parents.json")))


def setting_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`ppo.kl_coef=` with its meaning; behind the sign the values of a setting that has few."""
    from bridle.recipe.documents import meaning_of
    from bridle.recipe.recipe import sections

    fields = {
        f"{section}.{key}": field for section, model in sections().items() for key, field in model.model_fields.items()
    }
    name, sign, _ = incomplete.partition("=")
    if sign:
        values = few_values(fields[name].annotation) if name in fields else ()
        return begun_with(incomplete, (f"{name}={value}" for value in values))
    return [
        CompletionItem(f"{name}=", help=meaning_of(field))
        for name, field in fields.items()
        if name.startswith(incomplete)
    ]


def few_values(annotation: Any) -> Iterator[str]:
    """The values of a choice, of yes or no, and of what a number may be besides."""
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    elif annotation is bool:
        yield from ("true", "false")
    elif get_origin(annotation) is not list:
        for part in get_args(annotation):
            yield from few_values(part)


def swept_words(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The recipes that lie here, and settings."""
    recipes = begun_with(incomplete, (str(path) for path in sorted(Path().glob("*.toml"))))
    return [*recipes, *setting_names(ctx, param, incomplete)]
