"""What a run says of the machine that it found, before it begins."""

from pathlib import Path

import pytest

from bridle import stages
from bridle.core.recipe import Recipe
from bridle.core.runlog import Progress, Project
from bridle.stages import Work


def said(tmp_path: Path) -> list[str]:
    lines: list[str] = []
    work = Work(Project(tmp_path, Recipe()), Progress(lines.append, live=False))
    assert work.engine.dtype == work.device.precision
    return lines


def test_one_line_where_everything_is_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "onednn_packs", lambda dtype: True)
    (line,) = said(tmp_path)
    assert "running on" in line and "products" in line and "kernels" in line


def test_decoding_without_onednn_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "onednn_packs", lambda dtype: False)
    assert any("decoding by plain products" in line for line in said(tmp_path))
