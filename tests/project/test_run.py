"""Runs: numbering, resuming what was begun, and stopping without losing anything."""

import json
import os
import signal
from collections.abc import Callable

import pytest

from bridle.core.errors import BridleError, Interrupted, ProjectError
from bridle.core.timeline import hand_in
from bridle.project import run as module
from bridle.project.kept import read_session, session_seconds
from bridle.project.project import Project
from bridle.project.run import Run
from bridle.recipe.recipe import load_recipe

Begin = Callable[..., Run]


def test_runs_are_numbered_by_stage(project: Project, begin: Begin) -> None:
    assert begin().folder.name == "ppo-0001"
    begin().finish({})
    assert begin().folder.name == "ppo-0002"
    assert begin("sft").folder.name == "sft-0001"
    assert begin("reward-slim").folder.name == "reward-slim-0001"
    assert begin("reward").folder.name == "reward-0001"
    assert [f.name for f in project.runs("reward")] == ["reward-0001"]


def test_a_number_is_never_given_twice(project: Project, begin: Begin) -> None:
    for number in (1, 7):
        (project.folder / "runs" / f"ppo-{number:04d}").mkdir(parents=True)
        (project.folder / "runs" / f"ppo-{number:04d}" / "result.json").write_text("{}")
    assert begin().folder.name == "ppo-0008"


def test_a_run_that_was_killed_before_it_had_a_key_is_begun_again_in_its_folder(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            begin()
    first = begin()
    assert (first.folder.name, first.resumed) == ("ppo-0001", False)
    (first.folder / "parents.json").unlink()
    (first.folder / "metrics.jsonl").write_text("kept\n")  # somebody's, whatever became of the rest
    assert begin().folder.name == "ppo-0002"


def test_a_run_keeps_the_recipe_and_the_parents_it_ran_with(project: Project, begin: Begin) -> None:
    run = begin(sft="abc")
    assert load_recipe(run.folder / "recipe.toml") == project.recipe
    run.record_device(2, "cpu")
    assert json.loads((run.folder / "parents.json").read_text()) == {
        "stage": "ppo",
        "key": "k",
        "sft": "abc",
        "threads": 2,
        "device": "cpu",
    }


def test_an_unfinished_run_is_resumed(begin: Begin) -> None:
    first = begin()
    assert not first.resumed and first.threads is None
    first.record_device(2, "cpu")
    second = begin()
    assert second.folder == first.folder
    assert second.resumed and second.threads == 2


def test_an_unfinished_run_of_another_key_is_not_touched(begin: Begin) -> None:
    first = begin()
    first.checkpoints.mkdir()
    with pytest.raises(ProjectError, match="ppo-0001 is unfinished and was begun with another recipe") as caught:
        begin(key="other")
    assert "\n" not in str(caught.value) and caught.value.exit_status == 2
    first.finish({})
    assert begin(key="other").folder.name == "ppo-0002"


def test_an_unfinished_run_that_kept_nothing_gives_way(project: Project, begin: Begin) -> None:
    begin()
    assert begin(key="other").folder.name == "ppo-0001"
    assert json.loads((project.folder / "runs" / "ppo-0001" / "parents.json").read_text())["key"] == "other"


def test_an_empty_folder_was_never_begun(project: Project, begin: Begin) -> None:
    (project.folder / "runs" / "ppo-0001").mkdir(parents=True)
    first = begin()
    assert (first.folder.name, first.resumed) == ("ppo-0001", False)


def test_seconds_add_up_over_sessions(begin: Begin) -> None:
    first = begin()
    first.started -= 100
    first.saved(3)
    second = begin()
    second.started -= 50
    assert 149 < second.seconds < 160
    assert 149 < second.finish({})["seconds"] < 160


def test_those_who_share_a_run_are_kept_by_name(begin: Begin) -> None:
    """What a worker handed in does not account for, it waited. One process alone notes nothing of the kind."""
    for shared in (1, 2):
        with begin() as run:
            run.started -= 10
            hand_in("worker 1", {"answer": {"seconds": 4.0, "calls": 1, "tokens": 99}})
            own = run.workers("rank 0")
            run.meet([own, {"rank 1": own["rank 0"]}])
            run.saved(shared)
        kept = read_session(run.folder)["workers"]
        assert list(kept) == ["rank 0", "worker 1", "rank 1"]
        assert kept["worker 1"]["parts"]["answer"] == {"seconds": 4.0 * shared, "calls": shared, "tokens": 99 * shared}
        assert kept["worker 1"]["parts"]["wait"]["seconds"] == pytest.approx(kept["worker 1"]["seconds"] - 4 * shared)
        assert kept["rank 0"]["seconds"] >= 10 * shared
    with begin() as run:
        run.meet([run.workers("rank 0")])
        run.saved(3)
    assert read_session(run.folder)["workers"] == kept
    with begin(stage="sft") as alone:
        alone.meet([alone.workers("rank 0")])
        alone.saved(1)
    assert "workers" not in read_session(alone.folder)


def test_seconds_of_a_run_of_an_earlier_version_are_read(begin: Begin) -> None:
    first = begin()
    (first.folder / "sitting.json").write_text('{"seconds": 100.0, "parts": {"save": {"seconds": 1.5, "calls": 2}}}')
    assert 100 <= begin().seconds < 110 and read_session(first.folder)["parts"] == {
        "save": {"seconds": 1.5, "calls": 2}
    }
    first.note_session()  # what this version notes comes before it
    assert session_seconds(first.folder) < 50


def test_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch, begin: Begin) -> None:
    run = begin()

    def full(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "open", full, raising=False)
    with pytest.raises(BridleError, match="no space left while saving .*metrics.jsonl"):
        run.log(0, 1, {"loss": 1.0})


def test_saving_is_due_by_steps_at_the_end_and_when_asked(begin: Begin) -> None:
    run = begin()
    assert [done for done in range(1, 8) if run.due(done, 3, 7)] == [3, 4, 5, 6, 7]
    run.saved(3)
    assert [done for done in range(4, 8) if run.due(done, 3, 7)] == [6, 7]
    run.stop_asked = True
    assert run.due(4, 3, 7)


def test_asking_whether_saving_is_due_changes_nothing(begin: Begin) -> None:
    """It is a predicate: it writes nothing, moves nothing and raises nothing, even where the run must stop."""
    for ended in (
        {},
        {"stop_asked": True},
        {"failure": ValueError("of the caller")},
        {"cannot_learn": "the gradient is zero"},
        {"kept": False},
    ):
        run = begin()
        vars(run).update(ended)
        before, files = dict(vars(run)), {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
        answers = [[run.due(done, 3, 7) for done in range(1, 8)] for _ in range(2)]
        assert answers[0] == answers[1] and vars(run) == before
        assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == files
        assert answers[0] == [bool(ended) and run.kept or run.kept and done >= 3 for done in range(1, 8)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_asks_for_a_stop_at_the_next_save(number: signal.Signals, begin: Begin) -> None:
    before = signal.getsignal(number)
    with pytest.raises(
        Interrupted, match="ppo stopped after step 3 of 10; everything is saved in .*ppo-0001"
    ) as caught:
        with begin() as run:
            run.log(0, 10, {})
            os.kill(os.getpid(), number)
            assert run.stop_asked
            run.log(1, 10, {})  # the step is finished first
            run.saved(3)
            run.stop_if_needed(3, 10)
    assert caught.value.exit_status == 130
    assert signal.getsignal(number) is before
    assert begin().resumed


def test_a_second_signal_stops_at_once(begin: Begin) -> None:
    with pytest.raises(KeyboardInterrupt), begin():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_two_processes_do_not_work_on_one_run(begin: Begin) -> None:
    with begin():
        with pytest.raises(ProjectError, match="another process is at work in .*ppo-0001; wait for it, or stop it"):
            with begin():
                raise AssertionError("not reached")
    with begin() as run:  # and afterwards it is free
        assert run.resumed


def test_a_stop_that_comes_with_the_last_step_lets_the_run_end_and_then_stops(project: Project, begin: Begin) -> None:
    run = begin()
    run.stop_asked = True
    run.saved(10)
    run.stop_if_needed(10, 10)
    with pytest.raises(Interrupted, match="ppo is finished"):
        run.finish({})
    assert project.finished("ppo") is not None


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("parents.json", "[]", "parents.json is damaged: it must hold a JSON object"),
        ("parents.json", "{}", "parents.json is damaged: it needs key as str"),
        ("parents.json", '{"key": ', "parents.json is not valid JSON"),
        ("session.json", "[" * 100_000, "session.json is not valid JSON: its values nest too deep"),
        ("session.json", "3", "session.json is damaged"),
        ("session.json", '{"seconds": "long"}', "session.json is damaged: it needs seconds as float"),
        (
            "session.json",
            '{"seconds": 1.0, "parts": {"save": 3}}',
            "session.json is damaged: it needs the seconds and calls",
        ),
        ("session.json", '{"seconds": 1.0, "parts": []}', "session.json is damaged: it needs the seconds and calls"),
        ("session.json", '{"seconds": 1.0, "workers": {"rank 0": 3}}', "session.json is damaged: it needs the seconds"),
    ],
)
def test_a_damaged_record_of_a_run_is_one_sentence(file: str, text: str, words: str, begin: Begin) -> None:
    run = begin()
    (run.folder / file).write_text(text)
    with pytest.raises(BridleError, match=words) as caught:
        begin()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", '"done"', "{"])
def test_a_damaged_result_is_one_sentence(text: str, project: Project, begin: Begin) -> None:
    run = begin()
    (run.folder / "result.json").write_text(text)
    with pytest.raises(BridleError, match=r"result\.json is (damaged|not valid JSON)"):
        project.finished("ppo")
