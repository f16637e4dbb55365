"""A project that begins with a model of the user's: its base, and settings that suit it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bridle.models.contents import weight_files
from bridle.models.policy import inspect_policy, load_policy, read_config
from bridle.models.sizes import elements_of, shape_of, stored_shapes
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.recipe.by_size import settings_by_shape, settings_by_size, size_text
from bridle.recipe.recipe import Recipe
from bridle.stages.workspace import Work


def begin_project(folder: Path, model: Path, given: Mapping[str, Any]) -> tuple[Project, list[str]]:
    """Make a project whose base is the model in a folder, with `given` settings, by dotted key, and for the rest those that suit it.
    Returns it, and what was done, in lines. A model that cannot be read makes no project."""
    inspect_policy(model)  # what can be told without the weights comes first
    policy = load_policy(model, torch.device("cpu"))
    config, parameters = policy.module.config, elements_of(stored_shapes(weight_files(model)))
    shape = {**shape_of(read_config(model)), "vocab_size": config.vocab_size, "hidden_size": config.hidden_size}
    tokens = given.get("sampling.max_new_tokens")
    suited = {
        **settings_by_shape({**shape, "max_positions": config.max_positions}),
        **settings_by_size(parameters, config.max_positions, tokens if isinstance(tokens, int) else 0),
    }
    chosen = {dotted: one for dotted, one in suited.items() if dotted not in given}
    recipe = Recipe().with_settings({**{dotted: one.value for dotted, one in chosen.items()}, **given})
    project = Project.create(folder, recipe, {dotted: one.why for dotted, one in chosen.items()})
    work = Work(project, Progress())
    try:
        taken = work.take_base(policy)["base"]
    finally:
        work.close()
    return project, [taken, f"settings suit its {size_text(parameters)} parameters; bridle.toml has the source of each"]
