"""What a run says of the machine that it found, before it begins."""

from pathlib import Path

import pytest

from bridle.kernels import kernels
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe
from bridle.stages.workspace import Work


def said(tmp_path: Path) -> list[str]:
    lines: list[str] = []
    work = Work(Project(tmp_path, Recipe()), Progress(lines.append, live=False))
    assert work.engine.dtype == work.device.precision
    return lines


def test_one_line_says_what_was_chosen(tmp_path: Path) -> None:
    (line,) = said(tmp_path)
    assert "running on" in line and "products" in line and "kernels" in line


def test_without_a_compiler_the_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.built.cache_clear()
    monkeypatch.setattr(kernels, "wish", "auto")
    monkeypatch.setattr("bridle.kernels.kernels.shutil.which", lambda name: None)
    try:
        (line,) = said(tmp_path)
    finally:
        kernels.built.cache_clear()
    assert "plain kernels (no C compiler)" in line
