from collections.abc import Callable
from pathlib import Path

import pytest

from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.project.run import Run
from bridle.recipe.recipe import Recipe


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project.create(tmp_path / "project", Recipe())


@pytest.fixture
def begin(project: Project) -> Callable[..., Run]:
    """Begin a run of the project that says nothing."""

    def begin(stage: str = "ppo", key: str = "k", **parents: object) -> Run:
        return Run.begin(project, stage, key, parents, Progress(write=lambda text: None, live=False))

    return begin
