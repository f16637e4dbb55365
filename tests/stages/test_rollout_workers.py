"""Who answers while a policy practises, as the recipe has it: what is refused, and what is in a run's key."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridle.core.errors import RecipeError, UsageError
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe
from bridle.stages.methods import METHODS
from bridle.stages.practice import rollout_engine, stale_settings
from bridle.stages.workspace import Work
from tests.models.tiny import one_sentence
from tests.tiny_project import done

AHEAD = {"rollout.workers": 1, "rollout.staleness": 1}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rollout.staleness": 1}, "rollout.staleness = 1 needs others that answer while the policy learns"),
        (
            {"rollout.workers": 2, "rollout.endpoint": "http://127.0.0.1:8000/v1", "lora.r": 4},
            "rollout.workers = 2 and rollout.endpoint would both answer",
        ),
        (
            {"rollout.workers": 2, "model.frozen_precision": "nf4", "lora.r": 4},
            "in a form that one process alone can read",
        ),
    ],
)
def test_what_does_not_go_together(settings: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words) as refused:
        Recipe().with_settings(settings)
    assert one_sentence(str(refused.value))


def test_staleness_is_in_the_key_and_workers_are_not() -> None:
    method, recipe = METHODS["ppo"], Recipe()
    assert stale_settings(recipe.with_settings({"rollout.workers": 3}), method) == stale_settings(recipe, method) == {}
    found = stale_settings(recipe.with_settings(AHEAD), method)
    assert found == {"rollout": "staleness 1, importance_cap 2"}


@pytest.mark.parametrize("name", ["best-of-n", "dpo"])
def test_methods_that_weigh_nothing_refuse_older_weights(name: str) -> None:
    with pytest.raises(UsageError, match="which .* does not weigh; set it to 0, or train by ppo, grpo, rloo, rebel"):
        stale_settings(Recipe().with_settings(AHEAD), METHODS[name])


def test_only_train_starts_workers(tmp_path: Path) -> None:
    done("init", tmp_path / "p", "--set", "rollout.workers=2", "--set", 'data.source="playground"')
    with pytest.raises(UsageError, match="rollout.workers = 2, and only `bridle train` starts workers"):
        rollout_engine(Work(Project.find(tmp_path / "p"), Progress(len)))
