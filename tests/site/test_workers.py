"""`bridle label --workers`: several processes at one port, on one PostgreSQL, of which any may be killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from bridle.core.records import Completion, Prompt
from bridle.feedback.people.accounts import create_account, issue
from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import set_study
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe
from bridle.site.listening import listen
from bridle.sweep.sweep import keep_data, plan_sweep
from tests.feedback.conftest import postgresql_store
from tests.tiny_project import bridle, complaint, done, preferences, settings

ITEMS, OVERLAP, PEOPLE = 60, 2, 6
PATIENCE = 240.0  # seconds, on the busiest of machines


@pytest.fixture
def shared() -> Iterator[Store]:
    yield from postgresql_store()


def address_of(store: Store) -> str:
    return str(store._engine.url.render_as_string(hide_password=False))


def test_a_project_keeps_its_store_in_a_database(shared: Store, tmp_path: Path) -> None:
    """What was in its file goes there by a backup; nothing is written beside it any more."""
    here, there = tmp_path / "here", tmp_path / "there"
    done("init", here, *settings({"data.source": "store"}))
    done("import", preferences(tmp_path / "rows.jsonl"), "--project", here)
    done("store", "backup", tmp_path / "all.jsonl", "--project", here)
    done("init", there, *settings({"data.source": "store", "scale.store": address_of(shared)}))
    done("store", "restore", tmp_path / "all.jsonl", "--project", there)
    done("store", "verify", "--project", there)
    with Store.open(here / "store.sqlite") as before:
        assert shared.counts() == before.counts() and shared.counts()["prompts"]
    assert not (there / "store.sqlite").exists()
    project = Project.find(there)
    sweep = plan_sweep(
        project.recipe, [{"dpo.beta": 0.1}, {"dpo.beta": 0.2}], "dpo", "proxy", 1, tmp_path / "out", project
    )
    sweep.out.mkdir()
    keep_data(sweep)
    assert not any(recipe.scale.store for recipe in sweep.recipes), "seeds train on a copy"
    with Store.open(sweep.out / "store.sqlite") as copy:
        assert copy.counts() == shared.counts()
    assert "the store holds something already" in complaint(
        bridle("store", "restore", tmp_path / "all.jsonl", "--project", there)
    )


@pytest.mark.parametrize(
    "address",
    ["store.sqlite", "postgresql+psycopg://me:SECRET@host/db", "postgresql+psycopg://host/db?password=SECRET"],
)
def test_a_store_that_the_recipe_may_not_name(address: str, tmp_path: Path) -> None:
    told = complaint(bridle("init", tmp_path / "p", "--set", f"scale.store={address}"))
    assert (
        "scale" in told and "postgresql+psycopg://user@host/name, without a password" in told and "SECRET" not in told
    )


def workers_of(parent: int) -> list[int]:
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def wait_for_workers(parent: int, without: int = 0) -> list[int]:
    end = time.monotonic() + PATIENCE
    while len(found := [pid for pid in workers_of(parent) if pid != without]) < 2:
        assert time.monotonic() < end, f"only {found} are there"
        time.sleep(0.05)
    return found


class Person:
    """Answers until there is nothing more to answer; what a worker that was killed did not acknowledge is sent again, with its key."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.headers = url, {"authorization": f"Bearer {token}", "connection": "close"}
        self.given: list[str] = []
        self.acknowledged: list[str] = []
        self.failures = 0

    def sent(self, path: str, body: dict[str, object]) -> dict[str, object]:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                answer = httpx2.post(
                    f"{self.url}/api/studies/first/{path}", json=body, headers=self.headers, timeout=60
                )
                assert answer.status_code == 200, answer.text
                found: dict[str, object] = answer.json()
                return found
            except httpx2.TransportError:
                self.failures += 1
                assert time.monotonic() < end, "nobody answers any more"
                time.sleep(0.02)

    def work(self, allowed: threading.Semaphore, noted: threading.Semaphore) -> None:
        task = self.sent("next", {})["task"]
        while isinstance(task, dict):
            assert allowed.acquire(timeout=PATIENCE)
            self.given.append(task["item"])
            found = self.sent("answers", {"item": task["item"], "key": f"k{len(self.given)}", "verdict": -2})
            assert isinstance(found["judgements"], list)
            self.acknowledged += found["judgements"]
            noted.release()
            task = found["task"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the workers are found in /proc")
def test_two_workers_at_one_port_and_one_killed_and_then_the_other(shared: Store, tmp_path: Path) -> None:
    prompts = [Prompt.from_text(f"What is {n} + {n}?") for n in range(ITEMS)]
    pairs = [[Completion(one.id, text) for text in ("Two.", "Four.")] for one in prompts]
    shared.add_prompts(prompts, split="train", source="test")
    shared.add_completions([answer for pair in pairs for answer in pair], source="test")
    shared.add_items(pairs, study="first")
    set_study(shared, "first", {"gold_rate": 0, "overlap": OVERLAP})
    project = Project.create(
        tmp_path / "p", Recipe().with_settings({"data.source": "store", "scale.store": address_of(shared)})
    )
    tokens = []
    for name in (f"person-{n}" for n in range(PEOPLE)):
        create_account(shared, name, "annotator", password_hash="none that anybody has")
        tokens.append(issue(shared, "token", labeler=name, scopes={"name": "t", "rights": "full"}, seconds=3600))
    command = [sys.executable, "-m", "bridle.cli", "label", "--project", str(project.folder), "--port", "0"]
    with subprocess.Popen([*command, "--workers", "2"], stdout=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:\d+", serving.stdout.readline())
            assert found
            people = [Person(found[0], token) for token in tokens]
            allowed, noted = threading.Semaphore(0), threading.Semaphore(0)
            first, second = wait_for_workers(serving.pid)
            with ThreadPoolExecutor(PEOPLE) as threads:
                working = [threads.submit(person.work, allowed, noted) for person in people]
                for killed in (first, second):
                    allowed.release(40)
                    for number in range(40):
                        assert noted.acquire(timeout=PATIENCE)
                        if number == 15:
                            os.kill(killed, signal.SIGKILL)
                    wait_for_workers(serving.pid, without=killed)
                allowed.release(ITEMS * OVERLAP)
                for one in working:
                    one.result(timeout=PATIENCE)
        finally:
            serving.send_signal(signal.SIGINT)
        assert serving.wait(PATIENCE) == 130
    stored = [judgement for _, judgement in shared.judgements()]
    assert {one.id for one in stored} == {one for person in people for one in person.acknowledged}, "none is lost"
    judged = Counter(one.item_id for one in stored)
    assert len(judged) == ITEMS and set(judged.values()) == {OVERLAP}
    assert Counter(item for person in people for item in set(person.given)) == judged, (
        "nothing was given beyond its overlap"
    )
    assert len({(one.item_id, one.labeler) for one in stored}) == len(stored)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the workers are found in /proc")
def test_workers_end_with_their_parent(shared: Store, tmp_path: Path) -> None:
    project = Project.create(tmp_path / "p", Recipe().with_settings({"scale.store": address_of(shared)}))
    command = [sys.executable, "-m", "bridle.cli", "label", "--project", str(project.folder), "--port", "0"]
    with subprocess.Popen([*command, "--workers", "2"], stdout=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:(\d+)", serving.stdout.readline())
            assert found
            workers = wait_for_workers(serving.pid)
            assert httpx2.get(found[0], timeout=60).status_code in (200, 303)
        finally:
            serving.kill()
    end = time.monotonic() + PATIENCE
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < end, "they hold the port for ever"
        time.sleep(0.05)
    listen("127.0.0.1", int(found[1])).close()
