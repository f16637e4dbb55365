"""Two processes on one project: the second is refused, or waits, before it has read or changed anything."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import bridle as package
from bridle.core.errors import ProjectError
from bridle.models.policy import save_policy
from bridle.project import lock
from bridle.project.lock import held
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.project.run import Run
from bridle.stages import workspace
from bridle.stages.methods import METHODS
from tests.models.tiny import policy as tiny_policy
from tests.tiny_project import PLAYGROUND, bridle, complaint, done, preferences, result, settings, weights


@pytest.fixture
def project(finished_demo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_demo, tmp_path / "project"))


@contextmanager
def at_work(folder: Path, name: str) -> Iterator[None]:
    """As another process that is at work on a stage, one of this version or, in the run's own folder, of an earlier one."""
    with ExitStack() as both:
        both.enter_context(held(Project.find(folder).lock(name), folder))
        for run in sorted((folder / "runs").glob(f"{name}-[0-9]*"))[-1:]:
            both.enter_context(held(run / "lock", run))
        yield


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix != ".lock"
        and path.name not in ("lock", "models.json")  # what was looked at is noted, whoever is at work
        and not path.name.startswith("store.sqlite")
    }


TRAINING = [(f"train {method}", {"pretrain": "base"}.get(method, method)) for method in METHODS]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        *TRAINING,
        ("sample", "sample"),
        ("label --simulate", "label"),
        ("evaluate ppo", "evaluate-ppo"),
        ("evaluate sft ppo --by gold", "evaluate-ppo"),
    ],
)
def test_no_verb_touches_what_another_process_is_at_work_on(words: str, name: str, project: Path) -> None:
    """Neither a run that it would resume, nor, with another setting, one that it would take away: nothing there is kept yet."""
    run = next(iter(sorted((project / "runs").glob(f"{words.split()[-1] if 'train' in words else name}-0001"))), None)
    if run is not None:
        (run / "result.json").unlink()
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
    before = contents(project)
    with at_work(project, name):
        for setting in ("sampling.max_new_tokens=24", "sampling.max_new_tokens=20"):
            refused = bridle(*words.split(), "--project", project, "--set", setting)
            assert refused.exit_code == 2, refused.output
            assert "another process is at work in" in complaint(refused) and "--wait" in complaint(refused)
            assert contents(project) == before


def test_a_demo_and_an_import_are_done_by_one_process_at_a_time(project: Path, tmp_path: Path) -> None:
    before, rows = contents(project), preferences(tmp_path / "rows.jsonl", 4)
    with held(project / ".demo.lock", project), held(project / ".import.lock", project):
        for words in (["demo", "--out", project, *settings(PLAYGROUND)], ["import", rows, "--project", project]):
            refused = bridle(*words)
            assert refused.exit_code == 2 and "another process is at work in" in complaint(refused)
    assert contents(project) == before
    assert "4  kept" in done("import", rows, "--project", project)


def test_a_second_training_is_refused_while_the_first_steps(
    finished_demo: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step, from before the first checkpoint on, the same run and one of another setting; the first ends as if it had been
    alone."""
    shutil.rmtree(project / "runs/ppo-0001")
    shutil.rmtree(project / "models/ppo")
    plain, refused = Run.log, []

    def log(run: Run, *arguments: Any) -> None:
        plain(run, *arguments)
        more = ["--set", "ppo.kl_coef=0.3"] * (len(refused) % 2)
        refused.append(bridle("train", "ppo", *more, "--project", project))

    monkeypatch.setattr(Run, "log", log)
    done("train", "ppo", "--project", project)
    assert len(refused) == 5 and all("another process is at work in" in complaint(second) for second in refused)
    assert weights(project, "ppo") == weights(finished_demo, "ppo")
    assert result(project / "runs/ppo-0001") == result(finished_demo / "runs/ppo-0001")
    assert not (project / "runs/ppo-0002").exists()


def test_what_is_waited_for_is_looked_at_anew(
    finished_demo: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process ends the very evaluation: it is taken as it is, and not made again."""
    run, waiting = project / "runs/evaluate-ppo-0001", threading.Event()
    shutil.rmtree(run)
    say = Progress.say

    def noticed(progress: Progress, text: str) -> None:
        say(progress, text)
        if "waiting for the process that is at work in" in text:
            waiting.set()

    begun = threading.Event()

    def other() -> None:
        with held(Project.find(project).lock("evaluate-ppo"), project):
            begun.set()
            waiting.wait(60)
            shutil.copytree(finished_demo / "runs/evaluate-ppo-0001", run)

    monkeypatch.setattr(Progress, "say", noticed)
    thread = threading.Thread(target=other)
    thread.start()
    begun.wait(60)
    done("evaluate", "ppo", "--wait", "--project", project)
    thread.join()
    assert result(run) == result(finished_demo / "runs/evaluate-ppo-0001")
    assert not (project / "runs/evaluate-ppo-0002").exists()


@pytest.mark.parametrize("words", ["evaluate ppo", "train dpo", "train ppo", "sample"])
def test_a_model_that_is_replaced_while_a_run_begins_is_not_taken_for_the_one_of_its_key(
    words: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = {"evaluate ppo": "ppo", "train ppo": "reward"}.get(words, "sft")
    for run in project.glob(f"runs/{'-'.join(words.split()[-2:])}-0001"):
        shutil.rmtree(run)
    plain = Run.begin

    def begin(*arguments: Any) -> Run:
        config = project / "models" / read / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "replaced": True}))
        return plain(*arguments)

    monkeypatch.setattr(Run, "begin", begin)
    refused = bridle(*words.split(), "--project", project, "--set", "guard.changed_models=register")
    assert refused.exit_code == 1, refused.output
    assert f"models/{read} was replaced by another process" in complaint(refused)


def test_a_reference_that_is_replaced_while_it_is_copied_is_not_kept(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(project / "references")
    plain = shutil.copyfile

    def copyfile(source: Path, target: Path) -> object:
        with open(project / "models/sft/config.json", "a") as file:
            file.write(" ")
        return plain(source, target)

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    refused = bridle("train", "dpo", "--project", project)
    assert refused.exit_code == 1 and "was replaced while it was copied" in complaint(refused)
    assert not [path for path in (project / "references").iterdir() if path.is_dir()]


def test_two_calls_from_python_do_not_share_a_folder(tmp_path: Path) -> None:
    save_policy(tmp_path / "model", tiny_policy())
    model, folder = package.load(tmp_path / "model", precision="float32"), tmp_path / "run"
    examples = [(f"What is {i}?", f"It is {i}.") for i in range(16)]
    refused: list[str] = []

    def second(*_: object) -> None:
        for size in (4, 8):
            with pytest.raises(ProjectError, match="another process is at work in") as caught:
                package.sft(model.copy(), examples, batch_size=size, epochs=1, folder=folder)
            refused.append(str(caught.value))

    before: list[bytes] = []
    package.sft(
        model.copy(), examples, batch_size=4, epochs=1, folder=folder,
        on_log=lambda *_: (before.append((folder / "recipe.toml").read_bytes()), second()),
    )  # fmt: skip
    assert refused and set(before) == {(folder / "recipe.toml").read_bytes()}


# -------------------------------------------------------------------------------------------------------- the lock


def test_a_lock_leaves_no_file_and_is_taken_from_whoever_waited_for_one_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs/.ppo.lock"
    with held(path, tmp_path):
        assert path.exists()
        with pytest.raises(ProjectError, match="another process is at work in"), held(path, tmp_path):
            raise AssertionError("not reached")
    assert not path.exists()
    plain, opened = lock.taken, list[object]()

    def taken_away(*arguments: Any) -> Any:
        file = plain(*arguments)
        opened.append(file)
        if len(opened) == 1:
            path.unlink()  # as the process does that was waited for
        return file

    monkeypatch.setattr(lock, "taken", taken_away)
    with held(path, tmp_path):
        assert len(opened) == 2 and path.exists()


def test_a_stage_may_begin_others_of_its_own_and_two_names_of_one_model_have_one_lock(tmp_path: Path) -> None:
    project = Project(tmp_path, workspace.Recipe())
    work, other = (workspace.Work(project, Progress(lambda _: None, live=False)) for _ in range(2))
    with work.alone("pretrain"), work.alone("pretrain"), work.alone("base"), work.alone("sft"):
        for name in ("pretrain", "base", "sft"):
            with pytest.raises(ProjectError), other.alone(name):
                raise AssertionError("not reached")
        with other.alone("ppo"):
            pass
    with other.alone("base"):
        pass


def test_a_project_whose_maker_was_killed_is_made_after_all(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for left in (".bridle.toml.7.new", ".bridle.toml.lock"):
        (tmp_path / "p" / left).write_text("")
    done("init", tmp_path / "p")
