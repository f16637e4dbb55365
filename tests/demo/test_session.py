"""Seconds of a demo over its sessions, and a second process that was never needed."""

import json
import os
from pathlib import Path

import pytest
import torch

import bridle.demo.demo
from bridle.compute.device import Device
from bridle.core.errors import ProjectError
from bridle.demo import second
from bridle.demo.demo import walk
from bridle.demo.second import SecondProcess
from bridle.demo.session import DemoSession
from bridle.demo.stages import DemoStage
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe
from bridle.stages.workspace import Work


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project.create(tmp_path / "demo", Recipe())


def noted(project: Project) -> dict[str, float]:
    found: dict[str, float] = json.loads((project.folder / "demo.json").read_text())
    return found


def test_a_session_that_was_killed_counts_up_to_the_last_file_of_its_runs(project: Project) -> None:
    run = project.folder / "runs/sft-0001"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("")
    os.utime(run / "metrics.jsonl", (1_000_040, 1_000_040))
    (project.folder / "demo.json").write_text(json.dumps({"threads": 2, "seconds": 100.0, "began": 1_000_000.0}))
    session = DemoSession.begin(project)
    assert session.threads == 2 and session.earlier == 140.0 and session.seconds == pytest.approx(140.0, abs=5)
    session.end()
    assert noted(project)["seconds"] == pytest.approx(140.0, abs=5) and "began" not in noted(project)


def test_a_look_at_a_finished_demo_adds_nothing(project: Project) -> None:
    (project.folder / "demo.json").write_text(json.dumps({"threads": 1, "seconds": 60.0}))
    (project.folder / "summary.json").write_text("{}")
    session = DemoSession.begin(project)
    session.began -= 1000
    assert session.seconds == 60.0


def test_a_first_session_notes_its_threads_when_the_device_is_known(project: Project) -> None:
    session = DemoSession.begin(project)
    assert session.threads is None
    session.end()  # stopped before a device was chosen: nothing to note
    assert not (project.folder / "demo.json").exists()
    session.note(Device(torch.device("cpu"), torch.float32, 3, "asked for"))
    assert noted(project)["threads"] == 3 and noted(project)["began"] == session.began and "3" in session.device


def test_the_second_process_runs_no_module_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is started as ever, but for the module's name: one that loads no torch shows where modules come from."""
    plain, light = second.second_process_command(tmp_path, 1), "bridle.core.records"
    at = plain.index("bridle.demo.second")
    monkeypatch.setattr(second, "second_process_command", lambda *_: [*plain[:at], light, *plain[at + 1 :]])
    for name in ("json", "bridle"):
        (tmp_path / f"{name}.py").write_text("import os; os.mkdir('stranger')")
    monkeypatch.chdir(tmp_path)
    with SecondProcess(tmp_path) as process:
        process.give("no such stage", 1)
        process.wait(Progress(write=lambda text: None, live=False))
        assert process.process is not None and process.process.returncode == 0
    assert not (tmp_path / "stranger").exists()


def test_a_second_process_that_nothing_was_given_was_never_started(tmp_path: Path) -> None:
    lines: list[str] = []
    with SecondProcess(tmp_path) as second:
        second.wait(Progress(write=lines.append, live=False))
    assert second.process is None and lines == []


@pytest.mark.parametrize("busy", [False, True])
def test_the_last_stage_is_done_by_whichever_process_comes_to_it_first(
    project: Project, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    seen: list[str] = []

    class Second(SecondProcess):
        def give(self, name: str, threads: int) -> None:
            seen.append(f"given {name}")

        def wait(self, progress: Progress) -> None:
            seen.append("waited")

    def last(work: Work) -> dict[str, int]:
        seen.append("last")
        if busy and "waited" not in seen:
            raise ProjectError("another process is at work")
        return {"done": 1}

    stages = [DemoStage("one", 1, lambda work: {"done": 1}), DemoStage("last", 1, last, after="one")]
    monkeypatch.setattr(bridle.demo.demo, "STAGES", stages)
    monkeypatch.setattr(bridle.demo.demo, "SecondProcess", Second)
    work = Work(project, Progress(write=lambda text: None, live=False), threads=2)
    work.device = Device(torch.device("cpu"), torch.float32, 2, "asked for")
    assert walk(work) == {"one": {"done": 1}, "last": {"done": 1}}
    assert seen == ["given last", "last", "waited", *(["last"] if busy else [])]
