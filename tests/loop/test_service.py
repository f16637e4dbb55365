"""The wheel as a service: turn after turn, one at a time, waiting where people are waited for, ended by a signal and taken up again."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bridle.feedback.serving.turns import steps_taken
from bridle.feedback.store.store import Store
from bridle.loop import service
from bridle.loop import turn as stage
from tests.loop.test_turn import FEW, STEPS, project, served, store, users_vote
from tests.tiny_project import bridle, complaint, done, settings, started

__all__ = ["project", "store"]  # fixtures of this file's tests too


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], Any]]]:
    """What happens in each wait of the service, one after another; after the last of them it is ended."""
    happening: list[Callable[[], Any]] = []

    def sleep(seconds: float) -> None:
        assert seconds == 7
        if not happening:
            raise KeyboardInterrupt
        happening.pop(0)()

    monkeypatch.setattr(service, "time", type("Clock", (), {"sleep": staticmethod(sleep)}))
    yield happening
    assert not happening


def states(project: Path) -> list[dict[str, Any]]:
    found = bridle("loop", "--every", "7", "--json", "--project", project, *settings(FEW))
    assert found.exit_code == 130 and "run the same command again to resume" in complaint(found)
    return [json.loads(line) for line in found.stdout.splitlines()]


def faked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Turns whose steps do nothing and whose candidate is refused; the steps that were taken."""
    taken: list[str] = []
    fakes = {"collect": "collect", "refresh": "refresh", "train": "train_candidate", "gate": "pass_gate"}
    for name, function in fakes.items():
        found = {"decision": "refused", "passed": False}
        monkeypatch.setattr(stage, function, lambda *_, name=name, found=found: taken.append(name) or found)
    return taken


def test_a_turn_begins_where_something_came(
    project: Path, store: Store, waits: list[Callable[[], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ppo", "sft"):
        done("models", "promote", name, "--project", project)
    taken, now = faked(monkeypatch), served(store)
    vote = lambda: users_vote(store, now.content or "", now.before[-1], lambda _: now.content or "", 1)  # noqa: E731
    waits += [lambda: None, vote, lambda: done("models", "promote", "ppo", "--project", project)]
    found = states(project)
    assert [(one["turn"], one["waits"]) for one in found] == [(1, False), (2, True), (2, False), (3, False)]
    assert found[0]["state"] == "not promoted: refused" and "nothing came since" in found[1]["state"]
    assert len(taken) == 3 * 4 and found[-1]["served"]["content"] == now.before[-1]
    assert states(project)[0]["turn"] == 4, "what a turn knew is kept, whoever takes the next"
    assert len(taken) == 3 * 4
    line = bridle("loop", "--every", "7", "--project", project).stdout
    assert line.count("\n") == 1 and " turn 4: nothing came since" in line and line[:2] == "20"


def test_a_turn_that_waits_is_tried_again(
    project: Path, store: Store, waits: list[Callable[[], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    done("models", "promote", "sft", "--project", project)
    done("models", "promote", "ppo", "--share", "0.2", "--project", project)
    faked(monkeypatch)
    now = served(store)
    old, new = now.content or "", now.candidate or ""
    waits += [lambda: users_vote(store, new, old, lambda number: (old, new)[number % 2], 4)]
    first, second = states(project)
    assert first["waits"] and first["state"].startswith("waits: 0 of 4 users' comparisons")
    assert second["turn"] == first["turn"] and not second["waits"] and second["served"]["content"] == new
    assert [step for _, step, _ in steps_taken(store)] == STEPS


def test_one_at_a_time_and_a_signal_ends_it(project: Path) -> None:
    done("models", "promote", "sft", "--project", project)
    done("models", "promote", "ppo", "--share", "0.2", "--project", project)
    assert "leave one of them out" in complaint(bridle("loop", "--every", "9", "--turns", "2", "--project", project))
    with started("loop", "--every", "3600", "--project", project) as running:
        try:
            assert running.stdout is not None and running.stderr is not None
            assert " turn 1: waits: 0 of 100" in running.stdout.readline()
            assert "another process is at work" in complaint(bridle("loop", "--project", project))
        finally:
            running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 130 and "interrupted" in running.stderr.read().splitlines()[-1]
    assert bridle("loop", "--project", project).exit_code == 3, "the next one has the lock"
