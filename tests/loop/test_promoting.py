"""Promotion from the command line: the weights that are served stay, whatever is trained under their name afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bridle.feedback.serving.promotion import served_now
from bridle.loop.turn import policy_of, served_name
from bridle.models.policy import save_policy
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe
from bridle.stages.workspace import Work
from tests.models.tiny import policy
from tests.tiny_project import bridle, complaint, done


@pytest.fixture
def project(finished_demo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_demo, tmp_path / "project"))


def test_what_is_served_stays_though_its_name_is_given_to_another_model(project: Path) -> None:
    assert "nothing was promoted yet" in done("models", "history", "--project", project)
    assert "served: sft" in done("models", "promote", "sft", "--project", project)
    found = json.loads(done("models", "promote", "ppo", "--why", "better", "--project", project, "--json"))["served"]
    kept = Project.find(project).reference(found["content"])
    weights = (project / "models/ppo/model.safetensors").read_bytes()
    assert (kept / "model.safetensors").read_bytes() == weights
    shutil.copytree(project / "models/dpo", project / "models/ppo", dirs_exist_ok=True)  # as another run would leave it
    assert (
        (kept / "model.safetensors").read_bytes() == weights != (project / "models/ppo/model.safetensors").read_bytes()
    )
    lines = done("models", "history", "--project", project).splitlines()
    assert "ppo promoted to 100% by owner: better" in lines[1] and lines[2].startswith("served: ppo")
    assert "serving" in next(
        line for line in done("models", "list", "--project", project).splitlines() if found["content"][:15] in line
    )
    assert "served: sft" in done("models", "rollback", "--project", project)
    assert "served: ppo" in done("models", "promote", found["content"][:12], "--project", project), (
        "by its hash, from what was kept"
    )


def test_a_share_of_the_users_meets_a_candidate(project: Path) -> None:
    done("models", "promote", "sft", "--project", project)
    assert "met by 10% of the users: ppo" in done("models", "promote", "ppo", "--share", "0.1", "--project", project)
    found = json.loads(done("models", "rollback", "--project", project, "--json"))["served"]
    assert found["candidate"] is None and found["share"] == 0


def test_what_cannot_be_served_is_refused_in_a_sentence(project: Path) -> None:
    for words, refusal in (
        (["promote", "nobody"], "no model is registered as 'nobody'"),
        (["promote", "reward"], "is a reward model"),
        (["promote", "ppo", "--share", "2"], "at most 1, got 2"),
        (["promote", "ppo", "--share", ".1"], "nothing is served yet"),
        (["rollback"], "nothing is served"),
    ):
        found = bridle("models", *words, "--project", project)
        assert found.exit_code in (1, 2) and refusal in complaint(found), words


def test_weights_that_are_gone_are_neither_served_nor_gone_back_to(project: Path) -> None:
    for name in ("sft", "ppo"):
        done("models", "promote", name, "--project", project)
    references = project / "references"
    listed = json.loads(done("models", "history", "--project", project, "--json"))["served"]
    shutil.rmtree(references / listed["before"][0])
    found = bridle("models", "rollback", "--project", project)
    assert found.exit_code == 1 and "no longer in" in complaint(found)
    shutil.rmtree(references)
    shutil.copytree(project / "models/dpo", project / "models/ppo", dirs_exist_ok=True)
    found = bridle("models", "promote", listed["content"][:20], "--project", project)
    assert found.exit_code == 1 and (
        "holds another model now" in complaint(found) or "not what was registered" in complaint(found)
    )


def test_a_model_that_was_given_another_name_is_the_same_version(project: Path) -> None:
    (project / "models/ppo").rename(project / "models/better")
    assert "served: ppo" in done("models", "promote", "better", "--project", project), (
        "the name that it was registered by"
    )
    found = Project.find(project)
    work = Work(found, Progress(live=False), threads=1)
    try:
        now = served_now(work.store)
        assert now.content is not None and served_name(work, now) == "better"
        shutil.rmtree(project / "references")
        assert policy_of(work, now.content).origin == now.content, "read where it lies"
    finally:
        work.close()


def test_a_model_of_yours_is_promoted_by_either_name(tmp_path: Path) -> None:
    """`bridle init --model` makes it base and sft; it is registered once."""
    work = Work(Project.create(tmp_path / "p", Recipe()), Progress())
    for name in ("base", "sft"):
        save_policy(work.project.model(name), policy())
    work.register(work.project.model("base"), "base", None)
    work.close()
    assert "served: base" in done("models", "promote", "sft", "--project", tmp_path / "p")
    assert "there is base" in complaint(bridle("models", "promote", "ppo", "--project", tmp_path / "p"))
