"""`bridle export` and `push`: from a model of the user's to one that others read, through the command line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import bridle as bridle_package
from tests.models.test_saved import contents, same_tensors, stored, write_native
from tests.models.tiny import template
from tests.test_own_model import TURNS
from tests.tiny_project import bridle, complaint, done, preferences, settings

FEW: dict[str, Any] = {
    "model.precision": "float32", "data.heldout_share": 0.4, "sampling.max_new_tokens": 12, "reward.slim": True,
    "reward.slim_hidden_size": 32, "reward.slim_layers": 1, "reward.slim_epochs": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project on a model in bfloat16, in which nothing is trained but a reward model."""
    folder = tmp_path_factory.mktemp("export")
    write_native(folder / "mine", "llama", replace(template(), source=TURNS))
    (folder / "mine/pytorch_model.bin").write_bytes(b"1")
    said = bridle("init", folder / "p", "--model", folder / "mine", *settings(FEW))
    assert said.exit_code == 0 and "not copied, for no setting is in it: pytorch_model.bin" in said.stderr
    done("import", preferences(folder / "pairs.jsonl", 24), "--project", folder / "p")
    done("train", "reward", "--project", folder / "p")
    return folder / "p"


def exported(project: Path, name: str, place: Path, *more: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done("export", name, place, *more, "--project", project, "--json"))
    return found


@pytest.mark.parametrize("name", ["base", "sft"])
def test_what_was_not_trained_comes_out_as_it_went_in(name: str, project: Path, tmp_path: Path) -> None:
    mine, found = project.parent / "mine", exported(project, name, tmp_path / "out")
    there = contents(mine)
    del there["pytorch_model.bin"]
    assert contents(tmp_path / "out") == there and same_tensors(stored(tmp_path / "out"), stored(mine))
    assert (found["largest_logit_difference"], found["mean_logit_difference"]) == (0, 0) and found["probe_tokens"] > 20
    assert {t.dtype for _, _, t in stored(project / "models/base").values()} == {torch.float32}


def test_another_type_is_a_loss_that_is_printed(project: Path, tmp_path: Path) -> None:
    found = exported(project, "sft", tmp_path / "out", "--dtype", "float16")
    assert 0 < found["largest_logit_difference"] < 1e-6, "float16 holds every number of these but the smallest"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float16


def test_reward_models_are_exported_too(project: Path, tmp_path: Path) -> None:
    found = exported(project, "reward", tmp_path / "out")
    assert 0 < found["mean_score_difference"] <= found["largest_score_difference"] < 0.5
    assert {t.dtype for _, _, t in stored(tmp_path / "out").values()} == {torch.bfloat16}
    assert (tmp_path / "out/LICENSE").read_bytes() == (project.parent / "mine/LICENSE").read_bytes()
    slim = exported(project, "reward-slim", tmp_path / "slim")  # made from nothing, with the same tokenizer
    assert slim["largest_score_difference"] == 0 and not (tmp_path / "slim/LICENSE").exists()
    assert json.loads((tmp_path / "slim/tokenizer_config.json").read_text())["padding_side"] == "left"


def test_an_export_that_cannot_be_is_refused(project: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("!")
    assert "holds more than a model" in complaint(bridle("export", "sft", tmp_path / "full", "--project", project))
    inside = project / "models/mine"
    assert "would be another model of this project" in complaint(bridle("export", "sft", inside, "--project", project))
    assert "there is no model" in complaint(bridle("export", "dpo", tmp_path / "out", "--project", project))
    assert "does not name a repository" in complaint(bridle("push", "sft", "mine", "--project", project))
    assert not (tmp_path / "out").exists() and not inside.exists()


class Hub:
    """Stands where huggingface_hub's client is: keeps what it was given, or refuses it."""

    endpoint = "https://hub.example"
    refuses, made, taken = False, list[tuple[str, bool]](), dict[str, bytes]()

    def create_repo(self, name: str, *, private: bool, exist_ok: bool, repo_type: str) -> None:
        if Hub.refuses:
            raise OSError("401 Unauthorized\nfor a token")
        Hub.made.append((name, private))

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str, repo_type: str) -> str:
        Hub.taken = contents(folder_path)
        return f"{Hub.endpoint}/{repo_id}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "made", [])
    monkeypatch.setattr(Hub, "taken", {})


@pytest.mark.usefixtures("hub")
def test_a_push_uploads_an_export(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(done("push", "base", "me/mine-1", "--project", project, "--json"))
    assert found["exported"] == "https://hub.example/me/mine-1" and Hub.made == [("me/mine-1", True)]
    assert Hub.taken["config.json"] == (project.parent / "mine/config.json").read_bytes()
    card = Hub.taken["README.md"].decode()
    assert (
        card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n")
        and "it was not evaluated" in card
    )
    assert "adapter" in complaint(bridle("push", "base", "me/mine-1", "--adapter", "--project", project))
    assert "in float32; leave --dtype out" in complaint(
        bridle("push", "base", "me/mine-1", "--adapter", "--dtype", "float16", "--project", project)
    )
    monkeypatch.setattr(Hub, "refuses", True)
    said = complaint(bridle("push", "base", "me/mine-1", "--public", "--project", project))
    assert (
        "hub.example did not take me/mine-1 (OSError: 401 Unauthorized)" in said and "hf upload me/mine-1 DIR" in said
    )
    assert not list(project.glob(".push.*"))


@pytest.mark.usefixtures("hub")
def test_a_card_says_what_a_model_learnt_from_and_names_nobody(project: Path) -> None:
    done("push", "reward", "me/scores", "--project", project)
    card = Hub.taken["README.md"].decode()
    shown = json.loads(done("models", "show", "reward", "--project", project, "--json"))["lineage"]
    (learnt,) = shown[0]["learnt_from"].values()
    result = json.loads((project / "runs/reward-0001/result.json").read_text())
    assert "pipeline_tag: text-classification" in card and f"written by bridle {bridle_package.__version__}" in card
    assert f"- `reward` (reward): {learnt['count']} judgements, by {len(learnt['labelers'])} who gave them" in card
    assert f"- `reward`, reward, `{shown[0]['hash'][:19]}…`, from `base`" in card
    least, value, most = (f"{result[f'pair_accuracy{end}']:.4g}" for end in ("_low", "", "_high"))
    assert f"| reward | pair_accuracy | {value} | {least} to {most} |" in card and "seconds" not in card
    sources = f"by where: import ({learnt['count']})"  # the giver of this file has the same name
    assert sources in card and not [name for name in learnt["labelers"] if name in card.replace(sources, "")]
    assert str(project.parent) not in card
    assert "was not evaluated" not in card and "made-up world" not in card
