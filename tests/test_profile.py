"""`--profile` from end to end: every command takes it, results stay as they were, what was done is told whatever happens."""

import json
import os
import shutil
import signal as signals
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from bridle.cli.main import main
from bridle.core import timeline
from bridle.project.run import Run, Signal
from tests.house.test_command_line import commands
from tests.tiny_project import PLAYGROUND, bridle, complaint, done, metrics, preferences, result, settings, weights
from tests.traces import complete, nested, written


@pytest.fixture
def project(finished_demo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_demo, tmp_path / "project"))


def parts_of(folder: Path) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(row["stage"], row["part"]): row for row in written(folder)["bridle"]["parts"]}


def test_every_command_takes_it() -> None:
    verbs = [command for _, command in commands(main, "bridle") if not isinstance(command, click.Group)]
    assert len(verbs) > 7 and all("--profile" in command_options(command) for command in verbs)


def command_options(command: click.Command) -> list[str]:
    return [name for parameter in command.params for name in parameter.opts]


def test_a_training_with_it_is_the_same_and_tells_where_the_time_went(project: Path, finished_demo: Path) -> None:
    shutil.rmtree(project / "runs/ppo-0001")
    told = bridle("train", "ppo", "--project", project, "--profile", "--json")
    assert told.exit_code == 0, told.stderr
    run = project / "runs/ppo-0001"
    assert weights(project, "ppo") == weights(finished_demo, "ppo")
    assert metrics(run) == metrics(finished_demo / "runs/ppo-0001")
    assert result(run) == result(finished_demo / "runs/ppo-0001")
    printed = json.loads(told.stdout)  # nothing but the metrics
    assert {name: value for name, value in printed.items() if name != "seconds"} == result(run)
    assert "share of time, bridle train" in told.stderr and f"trace: {run / 'profile.json'}" in told.stderr
    trace = written(run)
    assert nested(complete(trace)) and len({event["pid"] for event in complete(trace)}) == 1
    rows = parts_of(run)
    for part in ("answer", "score", "advantages", "improve"):
        assert rows["ppo", part]["calls"] == 5
    assert ("", "import") in rows and ("ppo", "improve/backward") in rows
    assert rows["ppo", ""]["seconds"] == pytest.approx(printed["seconds"], abs=0.5)
    own = json.loads((run / "session.json").read_text())["parts"]  # the run's own account, kept without a profile too
    for part in ("answer", "improve", "improve/forward"):
        assert own[part]["seconds"] == pytest.approx(rows["ppo", part]["seconds"], abs=1e-3)
    assert "answer" in json.loads((finished_demo / "runs/ppo-0001/session.json").read_text())["parts"]
    assert not (finished_demo / "runs/ppo-0001/profile.json").exists() and timeline.recording() is None

    done("report", "ppo-0001", "--project", project)
    page = (run / "report.html").read_text()
    assert "Share of time: every part" in page and "\u2003improve</th>" in page and "\u2003\u2003backward</th>" in page
    assert "by operator" in page and "aten::" in page


def test_where_it_lies(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one run in its folder, else in the project's; a command that never came to a project leaves none anywhere."""
    done("evaluate", "sft", "--project", project, "--profile")  # done before: no run at all
    assert "import" in {part for _, part in parts_of(project)}
    (project / "profile.json").unlink()
    for stage in ("evaluate-sft", "evaluate-ppo"):
        shutil.rmtree(project / f"runs/{stage}-0001")
    done("evaluate", "sft", "ppo", "--project", project, "--profile")
    assert {stage for stage, _ in parts_of(project)} == {"", "evaluate-sft", "evaluate-ppo"}
    done("init", tmp_path / "new", "--profile", *settings({"data.source": "store"}))
    assert complete(written(tmp_path / "new")) == []
    done("import", preferences(tmp_path / "rows.jsonl"), "--project", tmp_path / "new", "--profile")
    assert parts_of(tmp_path / "new").keys() == {("", "import")}
    done("report", "--project", project, "--profile")
    assert ("", "import") in parts_of(project)
    monkeypatch.chdir(tmp_path)
    assert "no bridle.toml" in complaint(bridle("train", "sft", "--profile"))
    assert bridle("train", "nothing", "--profile").exit_code == 2
    assert bridle("train", "--profile", "--help").exit_code == 0
    assert not (tmp_path / "profile.json").exists() and timeline.recording() is None


class Faulty(Exception):
    pass


@pytest.mark.parametrize("how", ["fails", "is stopped"])
def test_what_was_done_is_told_when_a_command_fails_or_is_stopped(
    how: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(project / "runs/ppo-0001")
    words = ["train", "ppo", "--project", project, "--set", "ppo.steps=3"]
    plain, count = Run.log, 0

    def log(
        run: Run, step: int, total: int, values: Mapping[str, float | int | str], signal: Signal | None = None
    ) -> None:
        nonlocal count
        count += 1
        if count == 2 and how == "fails":
            raise Faulty
        if count == 2:
            os.kill(os.getpid(), signals.SIGINT)
        plain(run, step, total, values, signal)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log)
        stopped = bridle(*words, "--profile")
    run = project / "runs/ppo-0001"
    assert stopped.exit_code == (1 if how == "fails" else 130) and complaint(stopped)
    assert nested(complete(written(run))) and parts_of(run)["ppo", "answer"]["calls"] == 2
    assert not torch.autograd._profiler_enabled()
    noted = json.loads((run / "session.json").read_text())
    assert noted["parts"]["answer"]["calls"] == 2 and noted["seconds"] > 0

    done(*words)  # resumed: the two sessions' parts together
    whole = json.loads((run / "session.json").read_text())["parts"]
    again = 1 if how == "fails" else 0  # a step that failed is done again
    assert whole["answer"]["calls"] == whole["improve"]["calls"] == 3 + again
    assert whole["answer"]["seconds"] > noted["parts"]["answer"]["seconds"]


def test_a_profile_that_cannot_be_written_is_one_sentence_and_costs_no_result(
    project: Path, finished_demo: Path
) -> None:
    for stage in ("evaluate-sft", "evaluate-ppo"):
        shutil.rmtree(project / f"runs/{stage}-0001")
    (project / "profile.json").mkdir()  # not even root can write a file there
    told = complaint(bridle("evaluate", "sft", "ppo", "--project", project, "--profile"))
    assert told.startswith(f"bridle: could not save {project / 'profile.json'}: ")
    assert result(project / "runs/evaluate-ppo-0001") == result(finished_demo / "runs/evaluate-ppo-0001")
    assert timeline.recording() is None


def test_a_demo_in_two_processes_leaves_one_trace(project: Path) -> None:
    shutil.rmtree(project / "runs/grpo-0001")
    (project / "demo.json").write_text(json.dumps({"threads": 2, "seconds": 0.0}))
    done("demo", "--out", project, "--profile", *settings(PLAYGROUND))
    torch.set_num_threads(1)
    found = complete(written(project))
    assert nested(found)
    first, second = ({e["pid"] for e in found if e["name"] == name} for name in ("import", "grpo"))
    assert len(first) == len(second) == 1 and first != second
    processes = [e for e in written(project)["traceEvents"] if e["name"] == "process_name"]
    assert [e["pid"] for e in processes] == [*first, *second] and processes[0]["args"]["name"] == "bridle demo"
    (wait,) = [e for e in found if e["name"] == "wait"]
    (grpo,) = [e for e in found if e["cat"] == "stage" and e["name"] == "grpo"]
    assert wait["ts"] < grpo["ts"] < grpo["ts"] + grpo["dur"] < wait["ts"] + wait["dur"]  # one clock
    assert {stage for stage, _ in parts_of(project)} == {"", "grpo"}
    assert not list(project.glob(".profile*"))
    assert "by operator" in (project / "report.html").read_text()  # the page shows the profile of its own demo
