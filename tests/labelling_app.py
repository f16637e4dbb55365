"""A store with the labelling app on it, and a browser or a program for each role.

    with opened(folder) as site:
        site.client("annotator").get("/")                       # signed in by a session's cookie
        site.client("nobody").get("/", follow_redirects=False)  # 303 to /sign-in
        site.client("service").get("/api/…")                    # by a token; "reader": one of the owner's that may only read

Passwords are hashed with next to no work, within `cheap_passwords` alone.
"""

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import argon2
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from bridle.core.records import Completion, Prompt
from bridle.feedback.people.accounts import create_account, find_account, issue
from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import publish_guideline, set_study
from bridle.labelling.app import labelling_app
from bridle.site import passwords
from bridle.site.viewer import SESSION

HOST = "http://testserver"
PASSWORD = "a long password"
STUDY = "first"
ROLES = ("owner", "adjudicator", "annotator", "service")
WHO = ("nobody", *ROLES, "reader")


@dataclass
class Site:
    """`people`: an account of each role, called as it. `items`: two pairs and a ranking of three, in this order."""

    store: Store
    app: FastAPI
    items: list[str]
    password_hash: str
    root_path: str = ""
    _clients: dict[str, TestClient] = field(default_factory=dict)

    def client(self, who: str = "nobody", new: bool = False) -> TestClient:
        """Of one person always the same, unless a `new` one is asked for; an error of the app's comes as its answer."""
        if new or who not in self._clients:
            client = TestClient(self.app, HOST, raise_server_exceptions=False, follow_redirects=False)
            if who in ("service", "reader"):
                client.headers["authorization"] = f"Bearer {self.token(who)}"
            elif who != "nobody":
                secret = issue(self.store, "session", labeler=who, seconds=3600)
                client.cookies.set(SESSION, secret, domain="testserver.local", path=self.root_path or "/")
            if new:
                return client
            self._clients[who] = client
        return self._clients[who]

    def token(self, who: str) -> str:
        labeler, rights = ("owner", "read") if who == "reader" else (who, "full")
        return issue(self.store, "token", labeler=labeler, scopes={"name": "test", "rights": rights}, seconds=3600)

    def join(self, handle: str, role: str = "annotator") -> TestClient:
        """One person more."""
        create_account(self.store, handle, role, password_hash=self.password_hash)
        return self.client(handle)


@contextmanager
def cheap_passwords() -> Iterator[None]:
    cheap = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    passwords.nobodys.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "hasher", lambda: cheap)
        yield
        passwords.nobodys.cache_clear()


@contextmanager
def opened(folder: Path, *, root_path: str = "", target: str | None = None, items: bool = True) -> Iterator[Site]:
    """`target`: the address of a database in place of a file in the folder. `items`: whether the study has any."""
    with cheap_passwords():
        if target is None:
            shutil.copyfile(filled_store(items), folder / "store.sqlite")
        with Store.open(target or folder / "store.sqlite") as store:
            if target is not None:
                make_people(store, items)
            found = [item.id for item in store.items(study=STUDY)]
            hashed = str(getattr(find_account(store, "owner"), "password_hash", ""))
            app = labelling_app(store, root_path=root_path)
            yield Site(store, app, sorted(found, key=ORDER.index), hashed, root_path)


@cache
def filled_store(items: bool) -> Path:
    """A store with an account of each role, made once and copied."""
    path = Path(tempfile.mkdtemp(prefix="bridle-test-")) / "store.sqlite"
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    with Store.open(path) as store:
        make_people(store, items)
    return path


def make_people(store: Store, items: bool) -> None:
    hashed = passwords.hash_password(PASSWORD)
    for role in ROLES:
        create_account(store, role, role, password_hash=None if role == "service" else hashed)
    if items:
        ORDER[:] = fill(store)


ORDER: list[str] = []  # of the items, by their hashes


def fill(store: Store) -> list[str]:
    prompts = [Prompt.from_text(f"What is {n} + {n}?") for n in range(3)]
    texts = (("Zero.", "Two."), ("Two, of course.", "Eleven <b>!</b>"), ("Four.", "Four, I think.", "22"))
    groups = [[Completion(prompt.id, text) for text in of] for prompt, of in zip(prompts, texts, strict=True)]
    store.add_prompts(prompts, split="train", source="test")
    store.add_completions([answer for group in groups for answer in group], source="test")
    items = store.add_items(groups, study=STUDY)
    set_study(store, STUDY, {"gold_rate": 0, "overlap": 3})
    publish_guideline(store, STUDY, {"en": "Prefer what is *true*.", "zh": "请选择*正确*的回答。"})
    return items
