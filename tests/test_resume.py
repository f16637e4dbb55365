"""A run that is stopped at any moment and started again ends in the same bytes as one that was left alone (on a CPU)."""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from bridle.compute import steps
from bridle.demo import second
from bridle.demo.session import keep_device
from bridle.evaluation.answers import Answered
from bridle.feedback.store.store import Store
from bridle.kernels import kernels
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.project.run import Run
from bridle.stages import reward, workspace
from bridle.stages.workspace import Work
from tests.tiny_project import (
    PLAYGROUND,
    bridle,
    complaint,
    done,
    metrics,
    result,
    settings,
    started,
    untimed,
    wait_for_lines,
    weights,
)


def equal(project: Path, demo: Path, run: str, model: str) -> None:
    """Weights to the byte, every logged line, and the result."""
    assert weights(project, model) == weights(demo, model)
    assert metrics(project / "runs" / run) == metrics(demo / "runs" / run)
    assert result(project / "runs" / run) == result(demo / "runs" / run)


@pytest.fixture
def without(finished_demo: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the demo's project in which some stages were never run."""

    def copy(*stages: str) -> Path:
        project = Path(shutil.copytree(finished_demo, tmp_path / "project"))
        for stage in stages:
            shutil.rmtree(project / "runs" / f"{stage}-0001")
            shutil.rmtree(project / "models" / {"pretrain": "base"}.get(stage, stage))
        return project

    return copy


def killed(project: Path, method: str, lines: int) -> None:
    """Start a training, kill it once its log has so many lines. It must not have ended by itself."""
    process = started("train", method, "--project", project)
    run = project / "runs" / f"{method}-0001"
    wait_for_lines(process, run / "metrics.jsonl", lines)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (run / "result.json").exists()


@pytest.mark.slow  # PPO is killed below, SFT and DPO in tests/test_kills.py; that pretraining resumes is shown in this process
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pretraining_killed_at_random_ends_as_if_left_alone(seed: int, finished_demo: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    done("init", project, *settings(PLAYGROUND))
    draw = random.Random(seed)
    for lines in sorted(draw.sample([1, 2, 3], 1 + bool(seed))):  # of five: a line is ten steps, a checkpoint five
        killed(project, "pretrain", lines)
    done("train", "pretrain", "--project", project)
    equal(project, finished_demo, "pretrain-0001", "base")


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_ppo_killed_at_random_ends_as_if_left_alone(
    seed: int, finished_demo: Path, without: Callable[..., Path]
) -> None:
    """And the seconds of a killed session count, up to its last logged step, though nothing was saved after it."""
    project = without("ppo")
    run = project / "runs/ppo-0001"
    draw = random.Random(seed)
    for lines in sorted(draw.sample([1, 2, 3, 4], 1 + bool(seed))):  # of five
        killed(project, "ppo", lines)
    logged = [json.loads(line)["seconds"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    done("train", "ppo", "--project", project)
    equal(project, finished_demo, "ppo-0001", "ppo")
    assert json.loads((run / "result.json").read_text())["seconds"] > logged[-1] > logged[0] > 0


# SIGHUP, and SIGINT where nobody reads the output any more, are among the points of tests/test_kills.py too.
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_an_interrupted_run_saves_and_says_how_to_go_on(
    number: signal.Signals, finished_demo: Path, without: Callable[..., Path]
) -> None:
    project = without("ppo")
    process = started("train", "ppo", "--project", project)
    wait_for_lines(process, project / "runs/ppo-0001/metrics.jsonl", 2)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    last = told.splitlines()[-1]
    assert last.startswith("bridle:") and "run the same command again to resume" in last and "Traceback" not in told
    done("train", "ppo", "--project", project)
    equal(project, finished_demo, "ppo-0001", "ppo")


@pytest.mark.slow
def test_a_run_whose_output_nobody_reads_any_more_saves_at_a_signal(
    finished_demo: Path, without: Callable[..., Path]
) -> None:
    """`bridle train sft 2>&1 | tee log`, and Ctrl-C takes tee first: that which tests/test_kills.py strikes at a fixed point."""
    project = without("sft")
    process = started("train", "sft", "--project", project)
    assert process.stderr is not None and process.stdout is not None
    process.stderr.close()
    process.stdout.close()
    wait_for_lines(process, project / "runs/sft-0001/metrics.jsonl", 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    done("train", "sft", "--project", project)
    equal(project, finished_demo, "sft-0001", "sft")


# ------------------------------------------------------- stopped where it hurts, in this process: no step is random


class Killed(BaseException):
    """As if the process were gone: nothing in bridle may catch it."""


def dies(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int, *words: str | Path) -> None:
    """Run a command that dies at the end of the so-manieth call of a function of a module or a class."""
    plain, count = owner.__dict__[name], [0]

    def deadly(*arguments: Any, **named: Any) -> Any:
        value = plain(*arguments, **named)
        count[0] += 1
        if count[0] == calls:
            raise Killed
        return value

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, deadly)
        with pytest.raises(Killed):
            bridle(*words)


@pytest.mark.parametrize(
    ("stage", "model", "lines"),
    [
        ("pretrain", "base", 2),
        ("sft", "sft", 2),
        ("reward", "reward", 3),
        ("ppo", "ppo", 4),
        ("dpo", "dpo", 3),
        ("grpo", "grpo", 2),
    ],
)
def test_every_trainer_resumes_from_its_checkpoint_and_writes_the_lines_after_it_again(
    stage: str, model: str, lines: int, finished_demo: Path, without: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    project = without(stage, *(["reward-slim"] if stage == "reward" else []))
    dies(monkeypatch, Run, "log", lines, "train", stage, "--project", project)
    again = bridle("train", stage, "--project", project)
    assert again.exit_code == 0 and "resuming after step" in again.stderr, again.stderr
    equal(project, finished_demo, f"{stage}-0001", model)


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "ppo", "dpo", "grpo"])
def test_a_run_killed_after_its_last_step_tells_the_same_result(
    stage: str, finished_demo: Path, without: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = without(stage, *(["reward-slim"] if stage == "reward" else []))
    owner, saving = (reward, "save_reward_model") if stage == "reward" else (Work, "keep_policy")
    dies(monkeypatch, owner, saving, 1, "train", stage, "--project", project)
    done("train", stage, "--project", project)
    equal(project, finished_demo, f"{stage}-0001", {"pretrain": "base"}.get(stage, stage))


@pytest.mark.parametrize(
    ("method", "extra"),
    [
        ("rloo", {}),
        pytest.param("rloo", {"rloo.scored_by": "verifier"}, marks=pytest.mark.slow),
        # Of the same stage as RLOO; that their loops resume, tests/training shows.
        pytest.param("rebel", {}, marks=pytest.mark.slow),
        pytest.param("best-of-n", {}, marks=pytest.mark.slow),
        ("dpo", {"dpo.online_rounds": 2}),
        ("kto", {}),
        pytest.param("orpo", {}, marks=pytest.mark.slow),
        pytest.param("grpo", {"grpo.scored_by": "reward"}, marks=pytest.mark.slow),
        pytest.param(
            "best-of-n",
            {"rejection.scored_by": "verifier", "rejection.keep": "threshold", "rejection.threshold": 0.0},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "ppo",
            {"ppo.shared_trunk": True, "ppo.critic_warmup": 1, "ppo.early_stop_kl": 0.05, "ppo.steps": 2},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_the_demo_does_not_do_resumes_from_its_checkpoint_too(
    method: str, extra: dict[str, Any], without: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its last line but one step short of saved, then after all is trained and nothing kept."""
    project = without(*([method] if method in ("dpo", "grpo", "ppo") else []))
    whole = Path(shutil.copytree(project, tmp_path / "whole"))
    command = ["train", method, *settings(extra), "--project"]
    done(*command, whole)
    dies(monkeypatch, Run, "log", 2, *command, project)
    again = bridle(*command, project)
    assert again.exit_code == 0 and "resuming after step 1" in again.stderr, again.stderr
    equal(project, whole, f"{method}-0001", method)
    shutil.rmtree(project / "models" / method)
    (project / f"runs/{method}-0001/result.json").unlink()
    done(*command, project)
    equal(project, whole, f"{method}-0001", method)
    assert json.loads(done("evaluate", method, "sft", "--json", "--project", project))["win_rate"]["n"] == 24


def test_a_half_written_and_a_damaged_checkpoint_are_passed_over(
    finished_demo: Path, without: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = without("ppo")
    dies(monkeypatch, steps, "save_checkpoint", 4, "train", "ppo", "--project", project)
    checkpoints = project / "runs/ppo-0001/checkpoints"
    there = sorted(path.name for path in checkpoints.iterdir())
    assert there[-2:] == ["step-000003", "step-000004"] and len(there) <= 3  # besides them at most the best one
    newest = checkpoints / "step-000004" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1000])
    half = checkpoints / ".step-000005.4242.new"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    again = bridle("train", "ppo", "--project", project)
    assert again.exit_code == 0, again.stderr
    assert "step-000004 is damaged" in again.stderr and "resuming after step 3" in again.stderr
    equal(project, finished_demo, "ppo-0001", "ppo")
    assert not half.exists(), "what is half written is not left to fill the disk"


def test_a_line_cut_off_in_the_log_is_written_again(
    finished_demo: Path, without: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = without("ppo")
    dies(monkeypatch, steps, "save_checkpoint", 2, "train", "ppo", "--project", project)
    with (project / "runs/ppo-0001/metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "proxy": 0.1')
    done("train", "ppo", "--project", project)
    equal(project, finished_demo, "ppo-0001", "ppo")


def test_a_runs_thread_count_is_kept(without: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    project = without("ppo")
    dies(monkeypatch, steps, "save_checkpoint", 5, "train", "ppo", "--project", project)  # all is trained, nothing kept
    noted = project / "runs/ppo-0001/parents.json"
    noted.write_text(json.dumps({**json.loads(noted.read_text()), "threads": 2}))
    try:
        assert "keeping 2 thread(s)" in bridle("train", "ppo", "--project", project).stderr
    finally:
        torch.set_num_threads(1)
    assert json.loads(noted.read_text())["threads"] == 2


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """Takes the C compiler away, and gives it back."""
    plain = kernels.shutil.which

    def there(is_there: bool) -> None:
        kernels.built.cache_clear()
        kernels.found.cache_clear()
        monkeypatch.setattr(kernels.shutil, "which", plain if is_there else lambda name: None)

    yield there
    there(True)
    kernels.wish = "auto"


def test_a_run_resumed_without_the_compiler_it_began_with_is_refused_or_says_so(
    finished_demo: Path, without: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, compiler: Callable[[bool], None]
) -> None:
    """In a cron job or a container, say. With the compiler it resumes as if nothing had been."""
    project = without("ppo")
    dies(monkeypatch, steps, "save_checkpoint", 3, "train", "ppo", "--project", project)
    noted, other = project / "runs/ppo-0001/parents.json", Path(shutil.copytree(project, project.with_name("other")))
    began = json.loads(noted.read_text())
    earlier = {name: value for name, value in began.items() if name != "arithmetic"}
    compiler(False)
    for parents in (began, earlier):
        noted.write_text(json.dumps(parents))
        refused = bridle("train", "ppo", "--project", project)
        assert refused.exit_code == 2, refused.stderr
        assert "ppo-0001 was begun with compiled kernels, and here it would resume with plain" in complaint(refused)
        assert "--set guard.other_arithmetic=true" in complaint(refused) and json.loads(noted.read_text()) == parents
    allowed = bridle("train", "ppo", "--project", other, "--set", "guard.other_arithmetic=true")
    assert allowed.exit_code == 0 and "resuming after step 3" in allowed.stderr
    assert "resuming with plain kernels, though it was begun with compiled kernels" in allowed.stderr
    now = json.loads((other / "runs/ppo-0001/parents.json").read_text())
    assert now["earlier_devices"] == [began["device"]] and now["arithmetic"]["kernels"] == "plain kernels"
    compiler(True)
    done("train", "ppo", "--project", project)
    equal(project, finished_demo, "ppo-0001", "ppo")


def test_a_run_begun_without_a_compiler_keeps_plain_kernels_where_there_is_one(
    without: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: Callable[[bool], None]
) -> None:
    project = without("ppo")
    whole = Path(shutil.copytree(project, tmp_path / "whole"))
    compiler(False)
    done("train", "ppo", "--project", whole)
    dies(monkeypatch, steps, "save_checkpoint", 3, "train", "ppo", "--project", project)
    compiler(True)
    resumed = bridle("train", "ppo", "--project", project)
    assert resumed.exit_code == 0 and "keeping plain kernels, as this run began" in resumed.stderr
    equal(project, whole, "ppo-0001", "ppo")


def test_a_demo_keeps_its_arithmetic_in_the_stages_that_it_has_not_begun(
    without: Callable[..., Path], compiler: Callable[[bool], None]
) -> None:
    project = without("grpo")
    (project / "summary.json").unlink()
    compiler(False)
    refused = bridle("demo", "--out", project, *settings(PLAYGROUND))
    assert refused.exit_code == 2 and f"{project} was begun with compiled kernels" in complaint(refused)
    assert not (project / "runs/grpo-0001").exists()
    compiler(True)
    noted = json.loads((project / "demo.json").read_text())
    kept = {**noted["arithmetic"], "kernels": "plain kernels"}
    (project / "demo.json").write_text(json.dumps({**noted, "arithmetic": kept}))
    done("demo", "--out", project, *settings(PLAYGROUND))
    assert json.loads((project / "runs/grpo-0001/parents.json").read_text())["arithmetic"] == kept
    demo_second = workspace.Work(Project.find(project), Progress(lambda text: None, live=False), threads=1)
    keep_device(demo_second, json.loads((project / "demo.json").read_text()))
    assert demo_second.device.arithmetic == kept


def test_an_unfinished_run_is_not_resumed_under_another_recipe(
    without: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = without("ppo")
    dies(monkeypatch, steps, "save_checkpoint", 1, "train", "ppo", "--project", project)
    for setting in ("ppo.kl_coef=0.3", "seed=1", "sampling.max_new_tokens=20", "model.precision='bfloat16'"):
        refused = bridle("train", "ppo", "--project", project, "--set", setting)
        assert refused.exit_code == 2
        assert "begun with another recipe" in complaint(refused) and "recipe.toml" in complaint(refused)


def test_the_full_reward_model_is_not_trained_again_when_the_slim_one_was_cut_off(
    finished_demo: Path, without: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = without("reward", "reward-slim")
    dies(monkeypatch, reward, "save_reward_model", 2, "train", "reward", "--project", project)
    done("train", "reward", "--project", project)
    assert not (project / "runs/reward-0002").exists()
    equal(project, finished_demo, "reward-0001", "reward")
    equal(project, finished_demo, "reward-slim-0001", "reward-slim")


# --------------------------------------------------------------------------------------------------- the demo


def state(project: Path) -> dict[str, int]:
    """When each run's result and each model was written."""
    files = [*project.glob("runs/*/result.json"), *project.glob("models/*/model.safetensors")]
    return {str(path.relative_to(project)): path.stat().st_mtime_ns for path in files}


def summary(project: Path) -> dict[str, Any]:
    """The metrics; not the words about the machine, which tell who chose the thread count."""
    found: dict[str, Any] = untimed(json.loads((project / "summary.json").read_text()))
    return {name: value for name, value in found.items() if name != "device"}


def test_a_finished_demo_does_nothing_again(finished_demo: Path, tmp_path: Path) -> None:
    project = Path(shutil.copytree(finished_demo, tmp_path / "demo"))
    before, told = state(project), summary(project)
    again = bridle("demo", "--out", project, *settings(PLAYGROUND))
    assert again.exit_code == 0, again.stderr
    assert state(project) == before and summary(project) == told
    assert "Training" not in again.stderr and "Evaluating" not in again.stderr


@pytest.mark.slow
def test_a_demo_killed_three_times_ends_as_if_left_alone(finished_demo: Path, tmp_path: Path) -> None:
    project = tmp_path / "demo"
    for run, lines in (("sft-0001", 2), ("ppo-0001", 3), ("grpo-0001", 1)):
        process = started("demo", "--out", project, *settings(PLAYGROUND))
        wait_for_lines(process, project / "runs" / run / "metrics.jsonl", lines)
        process.kill()
        process.communicate()
        assert not (project / "runs" / run / "result.json").exists()
    before = state(project)
    assert {"models/sft/model.safetensors", "runs/dpo-0001/result.json"} <= before.keys()
    done("demo", "--out", project, *settings(PLAYGROUND))
    after = state(project)
    assert {name: after[name] for name in before} == before, "a finished stage was run again"
    assert summary(project) == summary(finished_demo)
    for run, model in (("sft", "sft"), ("ppo", "ppo"), ("unbridled", "unbridled"), ("dpo", "dpo"), ("grpo", "grpo")):
        equal(project, finished_demo, f"{run}-0001", model)


def second_process(project: Path) -> bool:
    """Whether one is at work on a demo, as Linux tells."""
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            lines.append((process / "cmdline").read_bytes().decode().split("\0"))
    return any("bridle.demo.second" in words and str(project) in words for words in lines)


def ends(project: Path, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while second_process(project) and time.monotonic() < end:
        time.sleep(0.05)
    return not second_process(project)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the second process in /proc")
def test_a_demo_in_two_processes_killed_and_stopped_ends_as_one_alone(finished_demo: Path, tmp_path: Path) -> None:
    project = tmp_path / "demo"
    for kept in ("models/base", "runs/pretrain-0001"):  # two threads sum in another order: begin after it
        shutil.copytree(finished_demo / kept, project / kept)
    shutil.copy(finished_demo / "bridle.toml", project)
    (project / "demo.json").write_text(json.dumps({"threads": 2, "seconds": 100.0}))
    command = ["demo", "--out", project, *settings(PLAYGROUND)]
    runs = project / "runs"

    process = started(*command)  # killed while both processes are at work
    wait_for_lines(process, runs / "grpo-0001/metrics.jsonl", 1)
    assert second_process(project)
    process.kill()
    process.communicate()
    assert ends(project), "the second process outlived the first"

    process = started(*command)  # stopped by Ctrl-C, which reaches the first process alone
    while not second_process(project):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and told.splitlines()[-1].startswith("bridle:") and "Traceback" not in told, told
    assert ends(project), "the second process outlived the first"

    done(*command)
    torch.set_num_threads(1)
    assert {**summary(project), "threads": 1} == summary(finished_demo)
    for stage in ("sft", "reward", "ppo", "unbridled", "dpo", "grpo", "reward-shuffled"):
        equal(project, finished_demo, f"{stage}-0001", stage)
    seconds = json.loads((project / "summary.json").read_text())["seconds"]
    assert 100 < seconds == pytest.approx(json.loads((project / "demo.json").read_text())["seconds"], abs=1)


def test_what_the_second_process_leaves_undone_the_first_one_does(
    finished_demo: Path, without: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = without("grpo")
    (project / "demo.json").write_text(json.dumps({"threads": 2, "seconds": 0.0}))
    monkeypatch.setattr(second, "second_process_command", lambda *_: [sys.executable, "-c", "raise SystemExit(1)"])
    done("demo", "--out", project, *settings(PLAYGROUND))
    torch.set_num_threads(1)
    equal(project, finished_demo, "grpo-0001", "grpo")


@pytest.mark.parametrize("method", ["add_prompts", "add_completions", "add_items", "add_judgements"])
def test_stages_killed_while_they_fill_the_store_tell_the_same(
    method: str, finished_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    done("init", project, *settings(PLAYGROUND))
    shutil.copytree(finished_demo / "models/base", project / "models/base")
    walk = (["train", "sft"], ["sample"], ["label", "--simulate"])
    with monkeypatch.context() as patch:
        plain = Store.__dict__[method]

        def deadly(*arguments: Any, **named: Any) -> None:
            plain(*arguments, **named)
            raise Killed

        patch.setattr(Store, method, deadly)
        # Judgements come in through the API, whose server is what dies; the command ends for want of an answer.
        with pytest.raises(AssertionError if method == "add_judgements" else Killed):
            for words in walk:
                done(*words, "--project", project)
    for words in walk:
        run = f"{words[1] if words[0] == 'train' else words[0]}-0001"
        if not (project / "runs" / run / "result.json").exists():
            done(*words, "--project", project)
        assert result(project / "runs" / run) == result(finished_demo / "runs" / run)


@pytest.mark.parametrize("words", [["evaluate", "ppo"], ["demo", "--out"]], ids=["evaluate", "demo"])
def test_ctrl_c_while_answers_are_written_ends_there(
    words: list[str], finished_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a stage has no checkpoint: it is finished, which takes seconds, and the next one is not begun."""
    project = Path(shutil.copytree(finished_demo, tmp_path / "demo"))
    for stage in ("evaluate-ppo", "evaluate-unbridled"):
        shutil.rmtree(project / f"runs/{stage}-0001")
    command = [*words, project, *settings(PLAYGROUND)] if words[0] == "demo" else [*words, "--project", project]
    with monkeypatch.context() as patch:
        plain = workspace.answer_all

        def interrupted(*arguments: Any, **named: Any) -> Answered:
            patch.setattr(workspace, "answer_all", plain)  # once: a second time stops at once
            os.kill(os.getpid(), signal.SIGINT)
            return plain(*arguments, **named)

        patch.setattr(workspace, "answer_all", interrupted)
        stopped = bridle(*command)
    assert stopped.exit_code == 130 and "evaluate-ppo is finished" in complaint(stopped)
    assert not (project / "runs/evaluate-unbridled-0001").exists()
    done(*command)
    assert result(project / "runs/evaluate-ppo-0001") == result(finished_demo / "runs/evaluate-ppo-0001")


@pytest.mark.parametrize("setting", ["ppo.start=ppo", "ppo.reference=ppo"])
def test_a_run_that_replaces_its_own_origin_is_finished_where_it_was_killed_after_that(
    setting: str, finished_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when its model has taken the place of the one that it began from, or was held to, and before it says that it is finished."""
    whole, cut = (Path(shutil.copytree(finished_demo, tmp_path / name)) for name in ("whole", "cut"))
    # No audits: where one takes the policy back to its origin, nothing is replaced.
    words = ["train", "ppo", "--set", setting, "--set", "ppo.steps=2", "--set", "guard.audits=off"]
    done(*words, "--project", whole)

    def killed(run: Run, result: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "finish", killed)
        assert bridle(*words, "--project", cut).exit_code == 130
    assert weights(cut, "ppo") == weights(whole, "ppo") != weights(finished_demo, "ppo")
    again = bridle(*words, "--project", cut)
    assert again.exit_code == 0 and "resuming after step 2" in again.stderr, again.stderr
    assert result(cut / "runs/ppo-0002") == result(whole / "runs/ppo-0002")
    assert weights(cut, "ppo") == weights(whole, "ppo")
