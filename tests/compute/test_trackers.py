"""What a run's metrics go to besides metrics.jsonl: resumed they go on in place, text never leaves, and no fault of theirs ends a run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bridle.compute.trackers import tracked, wandb_tracker
from bridle.core.errors import UsageError
from bridle.project.metrics import read_metrics
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.project.run import Run
from bridle.recipe.recipe import Recipe
from tests.compute.wandb_stand_in import Remote

SECRET = "what nobody else may read"


@pytest.fixture(params=[False, True], ids=["online", "offline"])
def remote(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Remote:
    found = Remote(request.param)
    monkeypatch.setitem(sys.modules, "wandb", found)
    return found


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Remote:
    found = Remote()
    monkeypatch.setitem(sys.modules, "wandb", found)
    return found


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project.create(tmp_path / "project", Recipe())


def session(project: Project, lines: list[str], steps: range, *to: str) -> Run:
    """One session of a run of six steps, tracked, from the step of its checkpoint on."""
    recipe = project.recipe.with_settings(
        {"track.to": list(to), "judge.rubric": SECRET, "model.path": SECRET, "reward.path": SECRET}
    )
    run = Run.begin(replace(project, recipe=recipe), "ppo", "k", {}, Progress(write=lines.append, live=False))
    with run, tracked(run, recipe, "project"):
        run.rewind(steps.start)
        for step in steps:
            run.log(step, 6, {"reward": step / 2, "note": SECRET, "kl": float("nan"), "pairs": 3})
        if steps.stop == 6:
            run.finish({})
    return run


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(folder))
    found.Reload()
    return {name: [(one.step, one.value) for one in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_a_resumed_run_has_each_step_once_in_tensorboard(project: Project, lines: list[str]) -> None:
    session(project, lines, range(4), "tensorboard")
    run = session(project, lines, range(2, 6), "tensorboard")  # the checkpoint was that of step 2
    assert scalars(run.folder / "tensorboard") == {
        "reward": [(step, step / 2) for step in range(6)],
        "pairs": [(step, 3.0) for step in range(6)],
    }
    assert SECRET not in "".join(p.read_bytes().decode("latin-1") for p in (run.folder / "tensorboard").iterdir())


def test_a_resumed_run_goes_on_in_the_same_run_of_wandb_and_sends_no_step_twice(
    project: Project, lines: list[str], remote: Remote
) -> None:
    session(project, lines, range(4), "wandb")
    run = session(project, lines, range(2, 6), "wandb")
    assert [list(rows) for rows in remote.rows.values()] == [
        [(step, {"reward": step / 2, "pairs": 3}) for step in range(6)]
    ]
    assert remote.ended == [0, 0]
    first, second = remote.asked
    assert first["id"] == second["id"] and {first["resume"], second["resume"]} == {"allow"}
    assert (first["project"], first["name"], first["dir"]) == ("project", "ppo-0001", run.folder)
    assert "mode" not in first  # WANDB_MODE is wandb's own to read
    assert any(
        "W&B: offline; `wandb sync wandb/offline-run` sends" if remote.offline else "W&B: https://" in line
        for line in lines
    )


def test_what_is_sent_to_wandb_holds_no_text_of_the_users(project: Project, lines: list[str], remote: Remote) -> None:
    session(project, lines, range(6), "wandb")
    assert SECRET not in repr((remote.asked, remote.rows))
    assert {"console": "off", "disable_code": True, "x_disable_meta": True}.items() <= remote.asked[0][
        "settings"
    ].items()
    config = remote.asked[0]["config"]
    assert (config["stage"], config["seed"], config["ppo"]["steps"]) == ("ppo", 0, 12)
    assert not {"judge", "label", "serve", "loop", "reward_source"} & config.keys() and "path" not in config["model"]


def test_turning_a_tracker_on_resumes_the_same_run_and_its_key(project: Project, lines: list[str]) -> None:
    plain = session(project, lines, range(4))
    followed = session(project, lines, range(2, 6), "tensorboard")
    assert followed.resumed and followed.folder == plain.folder
    assert [row[0] for row in scalars(followed.folder / "tensorboard")["reward"]] == [2, 3, 4, 5]
    sections = [name for name in Recipe.model_fields if name not in ("seed", "track", "reward_source")]
    changed = Recipe().with_settings({"track.to": ["wandb"], "track.project": "p"})
    assert changed.hash_of(*sections) == Recipe().hash_of(*sections)


@pytest.mark.parametrize("fault", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_said_once_and_ends_nothing(
    project: Project, lines: list[str], online: Remote, fault: str
) -> None:
    online.fault = fault
    run = session(project, lines, range(6), "wandb", "tensorboard")
    assert [line["step"] for line in read_metrics(run.folder)] == list(range(6)) and (
        run.folder / "result.json"
    ).exists()
    said = [line for line in lines if "failed" in line]
    assert [line.strip() for line in said] == [
        "W&B failed, and gets nothing more of this run, which goes on: no route to host"
    ]
    assert len(scalars(run.folder / "tensorboard")["reward"]) == 6  # the other one misses nothing


def test_a_run_that_fails_is_one_that_failed_there_too(project: Project, lines: list[str], online: Remote) -> None:
    recipe = project.recipe.with_settings({"track.to": ["wandb"]})
    run = Run.begin(project, "ppo", "k", {}, Progress(write=lines.append, live=False))
    with pytest.raises(ZeroDivisionError), run, tracked(run, recipe, "project"):
        run.log(0, 6, {"reward": 1.0})
        raise ZeroDivisionError
    assert online.ended == [1]


@pytest.mark.parametrize(
    ("setting", "variable", "meant"), [("", "", "project"), ("", "theirs", "theirs"), ("mine", "theirs", "mine")]
)
def test_the_project_at_wandb_is_the_recipes_or_the_environments_or_called_as_the_folder(
    project: Project, lines: list[str], online: Remote, monkeypatch: pytest.MonkeyPatch, setting: str, variable: str,
    meant: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("WANDB_PROJECT", variable)
    session(replace(project, recipe=project.recipe.with_settings({"track.project": setting})), lines, range(1), "wandb")
    assert online.asked[0]["project"] == meant


def test_a_stage_that_logs_nothing_begins_nothing(project: Project, lines: list[str], online: Remote) -> None:
    session(project, lines, range(6, 6), "wandb", "tensorboard")
    assert not online.asked and not (project.folder / "runs/ppo-0001/tensorboard").exists()


def test_without_a_folder_each_training_is_a_run_of_its_own(lines: list[str], online: Remote) -> None:
    log = wandb_tracker(None, {}, {}, lines.append)
    for _ in range(2):
        log(0, 1, {"loss": 1.0})
        log.close()
    assert len(online.rows) == 2 and online.asked[0]["dir"] is None


@pytest.mark.parametrize(
    ("module", "name", "extra"), [("torch.utils.tensorboard", "TensorBoard", "track"), ("wandb", "wandb", "wandb")]
)
def test_one_that_is_not_installed_is_missed_before_the_work_begins(
    project: Project, monkeypatch: pytest.MonkeyPatch, module: str, name: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"{name} is not installed; install it by `pip install 'bridle\[{extra}\]'`"):
        session(project, [], range(6), "wandb" if module == "wandb" else "tensorboard")
    assert not (project.folder / "runs/ppo-0001/metrics.jsonl").exists()
