"""A project that begins with a model of the user's: its base, and settings that suit it."""

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch

from bridle.core.files import write_json
from bridle.models.contents import weight_files
from bridle.models.files.agreement import notes_of_taking
from bridle.models.files.chat_template import settings_of, stored_settings, template_source
from bridle.models.files.hub import PINS
from bridle.models.policy import inspect_policy, load_policy, read_config
from bridle.models.sizes import elements_of, read_object, shape_of, stored_shapes
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.recipe.by_size import Suited, settings_by_shape, settings_by_size, size_text
from bridle.recipe.recipe import Recipe
from bridle.stages.workspace import Work


def begin_project(
    folder: Path, model: Path, given: Mapping[str, Any], pins: Mapping[str, Any] | None = None, take: bool = True
) -> tuple[Project, list[str]]:
    """Make a project whose base is the model in a folder, with `given` settings, by dotted key, and for the rest those that suit it.
    Returns it, and what was done, in lines. A model that cannot be read makes no project. `pins`: what a hub sent, for hub.json; without
    `take` the model is taken when it is first needed."""
    written = written_settings(model)
    values = {dotted: one.value for dotted, one in written.items()}
    settings = settings_of(Recipe().with_settings({**values, **given}).model)
    inspect_policy(model, settings)  # what can be told without the weights comes first
    policy = load_policy(model, torch.device("cpu"), settings=settings)
    notes = notes_of_taking(policy, model)
    config, parameters = policy.module.config, elements_of(stored_shapes(weight_files(model)))
    shape = {**shape_of(read_config(model)), "vocab_size": config.vocab_size, "hidden_size": config.hidden_size}
    tokens, lora = given.get("sampling.max_new_tokens"), Recipe().with_settings(given).lora.on
    suited = {
        **settings_by_shape({**shape, "max_positions": config.max_positions}),
        **settings_by_size(parameters, config.max_positions, tokens if isinstance(tokens, int) else 0, lora),
        **written,
    }
    chosen = {dotted: one for dotted, one in suited.items() if dotted not in given}
    recipe = Recipe().with_settings({**{dotted: one.value for dotted, one in chosen.items()}, **given})
    project = Project.create(folder, recipe, {dotted: one.why for dotted, one in chosen.items()})
    if pins is not None:
        write_json(project.folder / PINS, pins)
    lines = [*notes, f"settings suit its {size_text(parameters)} parameters; bridle.toml has the source of each"]
    place = (folder / Path(recipe.model.path).expanduser()).resolve()
    if not take:
        return project, [f"your model {place} is taken as the base when it is first needed", *lines]
    work = Work(project, Progress())
    try:
        taken = work.take_base(policy)["base"]
    finally:
        work.close()
    return project, [taken, *lines]


def written_settings(model: Path) -> dict[str, Suited]:
    """The settings of the model's chat template, by dotted key: those that bridle saved it with, and the day, where the template asks."""
    source = template_source(model, read_object(model / "tokenizer_config.json"))
    stored = stored_settings(model).chosen(source)
    found = {f"model.{name}": Suited(one, "your model's") for name, one in stored.items()}
    if "strftime_now" in source and "model.template_date" not in found:
        found["model.template_date"] = Suited(date.today().isoformat(), "the day that this project was made")
    return found
