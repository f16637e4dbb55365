"""One browser and one server for the tests of a file; every test has a study and a person of its own."""

import os
import shutil
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from bridle.core.records import Completion, Judgement, Prompt
from bridle.feedback.people.accounts import create_account, issue
from bridle.feedback.people.history import answer_given, own_answers
from bridle.feedback.people.items import add_rating_items, add_writing_items
from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import find_study, set_study
from bridle.labelling.app import labelling_app
from bridle.site.viewer import SESSION

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


expect.set_options(timeout=20_000)  # on a busy machine too


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The system's own. Without it a test is skipped; with CI=true it fails: CI leaves nothing out."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        reason = "there is no chromium on the PATH; install it, for example with `apt-get install chromium`"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@dataclass
class Site:
    """A labelling app that listens, and its store."""

    store: Store
    address: str
    browser: Browser
    contexts: list[BrowserContext] = field(default_factory=list)
    people: int = 0

    def study(
        self,
        tasks: Sequence[tuple[str, Sequence[str]]],
        *,
        kind: str = "",
        turns: int = 1,
        name: str = "",
        **settings: Any,
    ) -> str:
        """A study of prompts with their answers, of the kind that their number says, or of another one."""
        name = name or f"Study {len(self.contexts)}-{len(self.store.counts()['items'])}"
        prompts = [Prompt.from_text(prompt) for prompt, _ in tasks]
        groups = [[Completion(one.id, text) for text in texts] for one, (_, texts) in zip(prompts, tasks, strict=True)]
        self.store.add_prompts(prompts, split="train", source="test")
        self.store.add_completions([answer for group in groups for answer in group], source="test")
        if kind == "rating":
            add_rating_items(self.store, groups, study=name)
        elif kind == "demonstration":
            add_writing_items(self.store, prompts, study=name)
        else:
            self.store.add_items(groups, study=name)
        set_study(self.store, name, {"gold_rate": 0.0, "random_share": 0.0, **settings})
        return name

    def pairs(self, count: int, **settings: Any) -> str:
        """A study of so many pairs, no two of which are alike."""
        tag = len(self.store.counts()["items"])
        tasks = [(f"Question {n} of {tag}?", [f"Yes, {n}.", f"No, not {n} at all."]) for n in range(count)]
        return self.study(tasks, **settings)

    def page(
        self, study: str, path: str = "", *, language: str = "en", clock: bool = False, script: str = "", **options: Any
    ) -> Page:
        """The study's page in a browser of its own, signed in. `clock`: time passes only when the test says so; `script`
        runs before those of the page."""
        self.people += 1
        create_account(self.store, self.person, "annotator", locale=language)
        secret = issue(self.store, "session", labeler=self.person, seconds=3600)
        context = self.browser.new_context(**{"viewport": DESKTOP, "base_url": self.address} | options)
        context.add_cookies([{"name": SESSION, "value": secret, "url": self.address}])
        self.contexts.append(context)
        page = context.new_page()
        if script:
            page.add_init_script(script)
        if clock:
            page.clock.install()
        page.goto(f"/label/{study}{path}")
        return page

    def judged(self, study: str, criterion: str | None = None) -> list[Judgement]:
        """What the last person says, on the whole or by one criterion; what decides nothing too."""
        found = [item for item, _ in own_answers(self.store, study, self.person, limit=1000)]
        given = [answer_given(self.store, self.person, item.id) for item in found]
        return [one for judgements, _ in given for one in judgements if one.criterion == criterion]

    def guideline(self, study: str) -> str:
        found = find_study(self.store, study)
        assert found is not None and found.guideline is not None
        return found.guideline

    @property
    def person(self) -> str:
        return f"mei-{self.people}"

    def as_seen(self, study: str) -> list[tuple[str, ...]]:
        """Of each judgement the answers' texts in their order, the best first."""
        judged = self.store.judgements(study=study)
        return [tuple(item.completions[slot].text for group in one.ranking for slot in group) for item, one in judged]


@pytest.fixture(scope="module")
def running(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder: Path = tmp_path_factory.mktemp("labelling")
    with Store.open(folder / "store.sqlite") as store, socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(labelling_app(store), log_level="error", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield Site(store, f"http://127.0.0.1:{listening.getsockname()[1]}", chromium)
        server.should_exit = True
        thread.join()


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    yield running
    for context in running.contexts:
        context.close()
    running.contexts.clear()
