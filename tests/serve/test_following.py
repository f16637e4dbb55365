"""`bridle serve` without MODEL: what is promoted is served, as that changes, and whatever cannot be loaded leaves what answers as it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridle.core.errors import StoreError, UsageError
from bridle.feedback.serving.promotion import Served, promote, withdraw
from bridle.feedback.store.store import Store
from bridle.feedback.store.versions import model_versions
from bridle.models.policy import save_policy
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe
from bridle.serve.gate import Keys
from bridle.serve.scheduler import Roster
from bridle.stages import serve
from bridle.stages.serve import Following, promoted_folder
from bridle.stages.workspace import Work
from tests.models.tiny import policy
from tests.serving_app import Server, served, until
from tests.tiny_project import bridle, complaint

NAMES = ("one", "two", "three")


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    settings = {"model.precision": "float32", "serve.threads": 1, "serve.look_seconds": 60.0}
    work = Work(Project.create(tmp_path / "p", Recipe().with_settings(settings)), Progress())
    for seed, name in enumerate(NAMES):
        save_policy(work.project.model(name), policy("llama", seed))
        work.register(work.project.model(name), "sft", None)
    yield work
    work.close()


def content_of(work: Work, name: str) -> str:
    return work.registry.content(work.project.model(name))


def answered_by(server: Server) -> str:
    asked = server.asked(model="bridle", max_tokens=2)
    return str(server.http.post("/v1/chat/completions", json=asked).json()["system_fingerprint"])


def roster_of(server: Server) -> Roster:
    assert server.scheduler.roster is not None
    return server.scheduler.roster


def test_nothing_promoted_is_nothing_to_serve(work: Work) -> None:
    with pytest.raises(UsageError, match="bridle models promote NAME"):
        Following(work, work.recipe)
    assert "bridle models promote" in complaint(bridle("serve", "--project", work.project.folder))


def test_what_is_promoted_is_served_as_it_changes(work: Work) -> None:
    one, two, three = (content_of(work, name) for name in NAMES)
    promote(work.store, one, by="owner")
    following = Following(work, work.recipe)
    with served(load=following.load, keys=Keys(work.store)) as server:
        metrics = server.app.state.desk.metrics
        until_loaded(server)
        assert answered_by(server).startswith(one[:16]) and roster_of(server).current.title == "one"
        kept = roster_of(server)
        following.look(server.scheduler, metrics)
        assert roster_of(server) == kept
        promote(work.store, two, by="owner", share=0.5)
        following.look(server.scheduler, metrics)
        candidate = roster_of(server).candidate
        assert candidate is not None and candidate.title == "two" and roster_of(server).share == 0.5
        promote(work.store, two, by="owner")
        following.look(server.scheduler, metrics)
        assert roster_of(server) == Roster(candidate, previous=kept.current)  # nothing was loaded twice
        assert answered_by(server).startswith(two[:16])
        # one whose weights are gone: said, counted, and what answers goes on; tried again when something changes
        promote(work.store, three, by="owner")
        shutil.rmtree(work.project.model("three"))
        following.look(server.scheduler, metrics)
        following.look(server.scheduler, metrics)
        assert answered_by(server).startswith(two[:16])
        assert 'bridle_swaps_total{result="failed"} 1.0' in server.http.get("/metrics").text
        withdraw(work.store, by="owner")
        following.patience = 0.0
        following.look(server.scheduler, metrics)
        assert answered_by(server).startswith(two[:16]) and following.seen is not None
        assert [model.title for model, _ in roster_of(server).arms.values()] == ["two", "one"]
        assert following.loaded.keys() == {two, one}


@pytest.mark.parametrize("error", [StoreError("the store is locked"), RuntimeError("of whatever kind")])
def test_a_look_at_a_broken_store_ends_neither_the_server_nor_the_looking(
    work: Work, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    promote(work.store, content_of(work, "one"), by="owner")
    following = Following(work, work.recipe.with_settings({"serve.look_seconds": 0.01}))
    looked, served_now = list[bool](), serve.served_now

    def fail_twice(store: Store) -> Served:
        looked.append(len(looked) >= 2)
        if not looked[-1]:
            raise error
        return served_now(store)

    with served(load=following.load, keys=Keys(work.store)) as server:
        metrics = server.app.state.desk.metrics
        until_loaded(server)
        monkeypatch.setattr(serve, "served_now", fail_twice)
        with following.kept_up(server.scheduler, metrics):
            until(lambda: any(looked))
        assert "bridle_store_failures_total 2.0" in server.http.get("/metrics").text


def until_loaded(server: Server) -> None:
    until(lambda: server.scheduler.roster is not None)


def test_weights_that_were_kept_come_before_those_in_models(work: Work) -> None:
    content = content_of(work, "one")
    [version] = [one for one in model_versions(work.store) if one.hash == content]
    assert promoted_folder(work, version) == work.project.model("one")
    kept = work.project.reference(content)
    shutil.copytree(work.project.model("one"), kept)
    assert promoted_folder(work, version) == kept
