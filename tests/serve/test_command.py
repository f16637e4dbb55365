"""`bridle serve` and `bridle keys` as programs: what is served, what is refused at once, and how it ends."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import httpx2
import pytest

from bridle.models.files.chat_template import OWN_FILES
from bridle.models.policy import save_policy
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe
from bridle.stages.serve import load_served, model_folder
from tests.models.tiny import policy
from tests.serving_app import HELLO, error_of
from tests.tiny_project import bridle, complaint, done, started

TINY = ("--set", "model.precision=float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models") / "tiny"
    save_policy(place, policy())
    return place


def test_a_folder_is_served_without_a_project(folder: Path) -> None:
    with started("serve", folder, "--port", "0", *TINY) as serving:
        try:
            assert serving.stdout is not None and serving.stderr is not None
            found = re.search(
                r"tiny \(([\w-]+\+0-float32)\) answers at (http://127\.0\.0\.1:\d+)/v1", serving.stdout.readline()
            )
            assert found
            body = {"model": "tiny", "messages": HELLO, "max_tokens": 3}
            reply = httpx2.post(f"{found[2]}/v1/chat/completions", json=body, timeout=30).json()
            assert reply["system_fingerprint"] == found[1] and reply["usage"]["completion_tokens"] <= 3
            error_of(httpx2.post(f"{found[2]}/v1/chat/completions", json={**body, "model": "x"}), 404)
        finally:
            serving.send_signal(signal.SIGTERM)
        assert serving.wait(60) == 130
        assert serving.stderr.read().splitlines()[-1] == "bridle: the server has stopped"


def test_what_cannot_be_served_is_refused_at_once(folder: Path, tmp_path: Path) -> None:
    missing = complaint(bridle("serve", tmp_path / "nothing", "--project", tmp_path))
    assert "no bridle.toml" in missing
    project = Project.create(tmp_path / "p", Recipe())
    assert "make it with `bridle train ppo`" in complaint(bridle("serve", "ppo", "--project", project.folder))
    assert "bridle keys create" in complaint(bridle("serve", folder, "--host", "0.0.0.0", "--project", project.folder))
    assert "must be a path" in complaint(bridle("serve", folder, "--root-path", "x", "--project", project.folder))
    assert complaint(bridle("serve", folder, "--project", project.folder, "--set", "serve.batch=0"))


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    project = Project.create(tmp_path / "p", Recipe()).folder
    assert "no key" in done("keys", "list", "--project", project)
    key = done("keys", "create", "laptop", "--project", project).strip()
    assert re.fullmatch(r"[\w-]{43}", key)
    assert "already" in complaint(bridle("keys", "create", "laptop", "--project", project))
    listed = done("keys", "list", "--project", project)
    assert listed.startswith("laptop ") and key not in listed
    (one,) = json.loads(done("keys", "list", "--json", "--project", project))["keys"]
    assert one["name"] == "laptop" and one["last_used"] is None
    done("keys", "revoke", "laptop", "--project", project)
    assert "there is no key called 'laptop'" in complaint(bridle("keys", "revoke", "laptop", "--project", project))


def test_a_model_without_a_chat_template_says_so(folder: Path, tmp_path: Path) -> None:
    recipe = Recipe().with_settings({"model.precision": "float32", "serve.threads": 1})
    assert load_served(None, recipe, model_folder(None, str(folder)), "tiny").no_chat == ""  # its file has one
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    for name in (*OWN_FILES, "tokenizer_config.json"):
        config = bare / name
        if name == "tokenizer_config.json":
            raw = json.loads(config.read_text())
            raw.pop("chat_template", None)
            config.write_text(json.dumps(raw))
        else:
            config.unlink(missing_ok=True)
    assert "base model without a chat template" in load_served(None, recipe, bare, "bare").no_chat


@pytest.mark.slow
def test_the_models_of_a_project_are_served(finished_demo: Path) -> None:
    from bridle.project.progress import Progress
    from bridle.stages.workspace import Work

    project = Project.find(finished_demo)
    work = Work(project, Progress(), threads=1)
    try:
        base = load_served(work, work.recipe, model_folder(work, "base"), "base")
        assert "base model" in base.no_chat
        tuned = load_served(work, work.recipe, model_folder(work, "ppo"), "ppo")
        assert tuned.no_chat == "" and tuned.reward is not None
    finally:
        work.close()
