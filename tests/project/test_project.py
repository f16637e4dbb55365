"""A project: found from below, never made over anything, and its finished runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bridle.core.errors import DataError, ProjectError, StoreError, UsageError
from bridle.project.names import is_name
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.project.run import Run
from bridle.recipe.recipe import Recipe
from tests.tiny_project import bridle, complaint, done, preferences

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


def test_what_a_kill_left_of_a_model_is_put_right_when_the_project_is_found(project: Project) -> None:
    for name, content in ((".base.4711.old", "whole"), (".sft.0123abcd.new", "half"), ("reward", "whole")):
        (project.folder / "models" / name).mkdir(parents=True)
        (project.folder / "models" / name / "config.json").write_text(content)
    (project.folder / "references" / ".0f1e.12.new").mkdir(parents=True)
    (project.folder / "runs" / ".ppo-0001.0123abcd.new" / "half").mkdir(parents=True)  # one that was being removed
    (project.folder / ".notes.1.old").mkdir()  # the user's own
    Project.find(project.folder)
    assert sorted(path.name for path in project.folder.glob("models/*")) == ["base", "reward"]
    assert (project.model("base") / "config.json").read_text() == "whole"
    assert not list((project.folder / "runs").iterdir())
    assert not list((project.folder / "references").iterdir()) and (project.folder / ".notes.1.old").is_dir()


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../x", "a/b", "sft/", "/etc", "a\\b", "C:x", "-x", ".x", " x", "x ", "x.", "+x"),
        *(
            "a\0b",
            "a\nb",
            "a\x1b[2J",
            "a\u202eb",
            "\udc80",
            "a*",
            "a[0]",
            "a?b",
            "~",
            "$x",
            "a|b",
            "\u0301x",
            "x" * 300,
            "模" * 100,
        ),
    ],
)
def test_what_is_no_single_name_names_nothing(name: str, project: Project) -> None:
    assert not is_name(name)
    with pytest.raises(UsageError, match="is not the name of a model") as caught:
        project.model(name)
    assert len(str(caught.value)) < 500 + len(str(project.folder)) and str(caught.value).isprintable()
    with pytest.raises(UsageError, match="is not the name of a stage"):
        Run.begin(project, name, "k", {}, Progress(write=lambda text: None, live=False))
    assert [path.name for path in project.folder.iterdir()] == ["bridle.toml"]


@pytest.mark.parametrize(
    "name",
    [
        "sft",
        "reward-member-2",
        "best-of-4",
        "my model",
        "模型",
        "हिन्दी",
        "v1.2+lora",
        "ppo (old, β=0)",
        "sft~",
        "_x",
        "7b",
    ],
)
def test_a_name_in_any_script_names_one_folder(name: str, project: Project) -> None:
    assert is_name(name) and project.model(name).parent == project.folder / "models" and project.runs(name) == []


def test_a_run_of_another_project_is_none_of_this(project: Project, begin: Begin, tmp_path: Path) -> None:
    """By no path, and by no link: a report of it would be written there."""
    ours = begin().folder
    other = Project.create(tmp_path / "other", Recipe())
    theirs = Run.begin(other, "ppo", "k", {}, Progress(write=lambda text: None, live=False)).folder
    for named in (ours.name, f"runs/{ours.name}", ours, f"../project/runs/{ours.name}", ours / ".." / ours.name):
        assert project.run(Path(named)).samefile(ours)
    (project.folder / "runs/sft-0001").symlink_to(theirs)
    (project.folder / "runs/deep/x").mkdir(parents=True)
    (project.folder / "runs/deep/x/parents.json").write_text("{}")
    for named in (theirs, f"../../other/runs/{theirs.name}", "sft-0001", "runs/sft-0001", "deep/x"):
        with pytest.raises(ProjectError, match="is not a run of this project.* name its project with --project"):
            project.run(Path(named))
    for named in ("..", ".", "../..", "/", "a\0b", "nothing", "x" * 300):
        with pytest.raises(ProjectError, match="is not a run folder"):
            project.run(Path(named))
    with pytest.raises(ProjectError, match="sft-0001 is a link, and bridle writes into runs of this project alone"):
        begin(stage="sft")
    assert not (theirs / "report.html").exists()


def test_a_folder_of_runs_on_another_disk_is_the_users_choice(project: Project, begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (project.folder / "runs").symlink_to(tmp_path / "scratch")
    assert project.run(Path(begin().folder.name)) == project.folder / "runs/ppo-0001"


def test_a_store_that_is_gone_is_not_made_anew(project: Project) -> None:
    project.require_store()  # a new project may begin with one
    project.registered.write_text('{"references/x": {"files": {}, "names": {}}}')
    project.require_store()  # nothing was registered in any
    project.registered.write_text('{"models/sft": {"files": {}, "names": {"content": "content"}}}')
    for make in (lambda: None, project.store.touch):
        make()
        with pytest.raises(StoreError, match="store.sqlite is gone or empty.* put it back, or remove"):
            project.require_store()
    project.store.write_bytes(b"SQLite format 3\0")
    project.require_store()


def test_nor_is_one_in_which_no_model_was_registered_yet(tmp_path: Path) -> None:
    rows = preferences(tmp_path / "rows.jsonl", 4)
    done("init", tmp_path / "p")
    done("import", rows, "--project", tmp_path / "p")
    (tmp_path / "p/store.sqlite").unlink()
    refused = bridle("import", rows, "--project", tmp_path / "p")
    assert "store.sqlite is gone or empty" in complaint(refused) and not (tmp_path / "p/store.sqlite").exists()
    (tmp_path / "p/models.json").unlink()
    done("import", rows, "--project", tmp_path / "p")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "{",
            "[]",
            "3",
            '{"models/sft": []}',
            '{"models/sft": {"files": 3}}',
            '{"models/sft": {"names": {"a": 7}}}',
        ),
        *('{"models/sft": {"files": {"a": 1}}}', '{"models/sft": {"files": {"a": {"size": 1}}}}'),
    ],
)
def test_a_damaged_file_of_registrations_says_what_to_do(text: str, project: Project) -> None:
    project.registered.write_text(text)
    with pytest.raises(DataError, match="models.json is damaged; remove it, and every model is registered anew"):
        project.require_store()
