"""A project: found from below, never made over anything, and its finished runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bridle.core.errors import ProjectError
from bridle.project.project import Project
from bridle.project.run import Run
from bridle.recipe.recipe import Recipe

Begin = Callable[..., Run]


def test_a_project_is_found_from_below(project: Project) -> None:
    below = project.folder / "runs" / "deep"
    below.mkdir(parents=True)
    assert Project.find(below) == Project.find(project.folder) == project


def test_outside_a_project_one_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="no bridle.toml in .* or above it; make a project with `bridle init DIR`"):
        Project.find(tmp_path)


def test_a_project_is_not_made_over_anything(project: Project, tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="is a project already"):
        Project.create(project.folder, Recipe())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ProjectError, match="exists and is not empty"):
        Project.create(tmp_path / "full", Recipe())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ProjectError, match="exists and is not empty"):
        Project.create(tmp_path / "file", Recipe())
    assert (tmp_path / "full" / "thesis.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_the_last_finished_run_is_found_when_it_has_the_key(project: Project, begin: Begin) -> None:
    assert project.finished("ppo") is None and project.finished_folder("ppo") is None
    begin(key="a").finish({"gold": 1.0})
    begin(key="b").finish({"gold": 2.0})
    begin(key="c")
    found = [project.finished("ppo", key) for key in ("a", "b", "c", None)]
    assert [None if f is None else f["gold"] for f in found] == [None, 2.0, None, 2.0]
    assert project.finished_folder("ppo") == project.runs("ppo")[1]
