"""Projects and runs: numbering, going on with what was begun, and stopping without losing anything."""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from bridle.core import runlog
from bridle.core.errors import BridleError, Interrupted, ProjectError
from bridle.core.recipe import Recipe, load_recipe
from bridle.core.runlog import Progress, Project, Run, chunked, clock, count_through, read_metrics


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project.create(tmp_path / "project", Recipe())


class Screen:
    """What a person would read."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


def quiet() -> Progress:
    return Progress(write=lambda text: None, live=False)


def begin(project: Project, stage: str = "ppo", key: str = "k", parents: Mapping[str, object] | None = None) -> Run:
    return Run.begin(project, stage, key, parents or {}, quiet())


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


def test_runs_are_numbered_by_stage(project: Project) -> None:
    assert begin(project).folder.name == "ppo-0001"
    begin(project).finish({})
    assert begin(project).folder.name == "ppo-0002"
    assert begin(project, "sft").folder.name == "sft-0001"
    assert begin(project, "reward-slim").folder.name == "reward-slim-0001"
    assert begin(project, "reward").folder.name == "reward-0001"
    assert [f.name for f in project.runs("reward")] == ["reward-0001"]


def test_a_number_is_never_given_twice(project: Project) -> None:
    for number in (1, 7):
        (project.folder / "runs" / f"ppo-{number:04d}").mkdir(parents=True)
        (project.folder / "runs" / f"ppo-{number:04d}" / "result.json").write_text("{}")
    assert begin(project).folder.name == "ppo-0008"


def test_a_run_keeps_the_recipe_and_the_parents_it_ran_with(project: Project) -> None:
    run = begin(project, parents={"sft": "abc"})
    assert load_recipe(run.folder / "recipe.toml") == project.recipe
    run.record_device(2, "cpu")
    assert json.loads((run.folder / "parents.json").read_text()) == {
        "stage": "ppo",
        "key": "k",
        "sft": "abc",
        "threads": 2,
        "device": "cpu",
    }


def test_an_unfinished_run_is_gone_on_with(project: Project) -> None:
    first = begin(project)
    assert not first.resumed and first.threads is None
    first.record_device(2, "cpu")
    second = begin(project)
    assert second.folder == first.folder
    assert second.resumed and second.threads == 2


def test_an_unfinished_run_of_another_key_is_not_touched(project: Project) -> None:
    first = begin(project)
    first.checkpoints.mkdir()
    with pytest.raises(ProjectError, match="ppo-0001 is unfinished and was begun with another recipe") as caught:
        begin(project, key="other")
    assert "\n" not in str(caught.value) and caught.value.exit_status == 2
    first.finish({})
    assert begin(project, key="other").folder.name == "ppo-0002"


def test_an_unfinished_run_that_kept_nothing_gives_way(project: Project) -> None:
    begin(project)
    assert begin(project, key="other").folder.name == "ppo-0001"
    assert json.loads((project.folder / "runs" / "ppo-0001" / "parents.json").read_text())["key"] == "other"


def test_a_folder_without_parents_was_never_begun(project: Project) -> None:
    (project.folder / "runs" / "ppo-0001").mkdir(parents=True)
    assert begin(project).folder.name == "ppo-0002"


def test_the_last_finished_run_is_found_when_it_has_the_key(project: Project) -> None:
    assert project.finished("ppo") is None and project.finished_folder("ppo") is None
    begin(project, key="a").finish({"gold": 1.0})
    begin(project, key="b").finish({"gold": 2.0})
    begin(project, key="c")
    found = [project.finished("ppo", key) for key in ("a", "b", "c", None)]
    assert [None if f is None else f["gold"] for f in found] == [None, 2.0, None, 2.0]
    assert project.finished_folder("ppo") == project.runs("ppo")[1]


def test_seconds_add_up_over_sittings(project: Project) -> None:
    first = begin(project)
    first.started -= 100
    first.saved(3, 10)
    second = begin(project)
    second.started -= 50
    assert 149 < second.seconds < 160
    assert 149 < second.finish({})["seconds"] < 160


def test_rewinding_drops_what_will_be_done_again_and_what_was_cut_off(project: Project) -> None:
    run = begin(project)
    for step in range(5):
        run.log(step, 10, {"loss": step / 2})
    with open(run.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 5, "loss": 0.')
    assert [m["step"] for m in read_metrics(run.folder)] == [0, 1, 2, 3, 4]
    run.rewind(3)
    assert [m["step"] for m in read_metrics(run.folder)] == [0, 1, 2]
    run.log(3, 10, {"loss": 9.0})
    assert [m["loss"] for m in read_metrics(run.folder)] == [0.0, 0.5, 1.0, 9.0]
    assert run.last_save == 3
    run.rewind(0)
    assert read_metrics(run.folder) == []


def test_rewinding_before_anything_was_logged(project: Project) -> None:
    run = begin(project)
    run.rewind(0)
    assert read_metrics(run.folder) == []


def test_numbers_that_json_does_not_know_become_null(project: Project) -> None:
    run = begin(project)
    run.log(0, 1, {"kl": float("nan"), "loss": float("inf"), "lr": float("-inf"), "n": 3, "name": "x"})
    line = (run.folder / "metrics.jsonl").read_text()
    assert "NaN" not in line and "Infinity" not in line
    found = json.loads(line)
    assert found.pop("seconds") >= 0
    assert found == {"step": 0, "kl": None, "loss": None, "lr": None, "n": 3, "name": "x"}


def test_a_full_disk_is_one_sentence(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin(project)

    def full(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runlog, "open", full, raising=False)
    with pytest.raises(BridleError, match="no space left while saving .*metrics.jsonl"):
        run.log(0, 1, {"loss": 1.0})


def test_saving_is_due_by_steps_at_the_end_and_when_asked(project: Project) -> None:
    run = begin(project)
    assert [done for done in range(1, 8) if run.due(done, 3, 7)] == [3, 4, 5, 6, 7]
    run.saved(3, 7)
    assert [done for done in range(4, 8) if run.due(done, 3, 7)] == [6, 7]
    run.stop_asked = True
    assert run.due(4, 3, 7)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_for_a_stop_at_the_next_save(number: signal.Signals, project: Project) -> None:
    before = signal.getsignal(number)
    with pytest.raises(
        Interrupted, match="ppo stopped after step 3 of 10; everything is saved in .*ppo-0001"
    ) as caught:
        with begin(project) as run:
            run.log(0, 10, {})
            os.kill(os.getpid(), number)
            assert run.stop_asked
            run.log(1, 10, {})  # the step is finished first
            run.saved(3, 10)
    assert caught.value.exit_status == 130
    assert signal.getsignal(number) is before
    assert begin(project).resumed


def test_a_second_signal_stops_at_once(project: Project) -> None:
    with pytest.raises(KeyboardInterrupt), begin(project):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_two_processes_do_not_work_on_one_run(project: Project) -> None:
    with begin(project):
        with pytest.raises(ProjectError, match="another process is at work in .*ppo-0001; wait for it, or stop it"):
            with begin(project):
                raise AssertionError("not reached")
    with begin(project) as run:  # and afterwards it is free
        assert run.resumed


def test_a_stop_that_comes_with_the_last_step_lets_the_run_end_and_then_stops(project: Project) -> None:
    run = begin(project)
    run.stop_asked = True
    run.saved(10, 10)
    with pytest.raises(Interrupted, match="ppo is finished"):
        run.finish({})
    assert project.finished("ppo") is not None


def test_progress_without_a_terminal_is_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(runlog.time, "monotonic", lambda: now)
    screen = Screen()
    progress = Progress(screen.write, live=False, every=15.0)
    progress.begin("Training", later=60.0)
    for done in range(1, 101):
        now += 1.0
        progress.update(done, 100, {"loss": 1.23456, "steps": 7, "none": None})
    progress.say("done")
    progress.clear()
    assert "\r" not in screen.text
    lines = screen.text.splitlines()
    assert lines[0] == "Training"
    assert lines[1] == "  15/100  1:25 left, 2:25 to the end  loss 1.23"
    assert len(lines) == 1 + 6 + 1 + 1  # one in 15 seconds, the last, what was said
    assert lines[-2].startswith("  100/100  0:00 left") and lines[-1] == "  done"


def test_progress_that_never_draws_says_what_must_be_said() -> None:
    screen = Screen()
    progress = Progress(screen.write, live=False, every=float("inf"))
    for done in range(1, 4):
        progress.update(done, 3, {"loss": 1.0})
    progress.say("2 of 7 prompts are left out")
    assert screen.text == "  2 of 7 prompts are left out\n"


def test_progress_at_a_terminal_is_one_line_written_over() -> None:
    screen = Screen()
    progress = Progress(screen.write, live=True)
    progress.begin("Training")
    progress.last = 0.0
    progress.update(10, 10, {"loss": 1.0})
    progress.say("saved")
    assert screen.text.startswith("Training\n\r  10/10")
    assert screen.text.endswith("\r  saved\n")
    assert "\n" not in screen.text[len("Training\n") : -len("  saved\n")]


def test_counting_through_moves_the_line() -> None:
    screen = Screen()
    progress = Progress(screen.write, live=False, every=0.0)
    add = count_through(5, progress)
    add(2)
    add(3)
    assert [line.split()[0] for line in screen.text.splitlines()] == ["2/5", "5/5"]


def test_clock_and_chunks() -> None:
    assert [clock(s) for s in (-3, 0.4, 59.6, 61, 3600)] == ["0:00", "0:00", "1:00", "1:01", "60:00"]
    assert list(chunked([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
