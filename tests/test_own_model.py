"""End to end through the command line with a model of the user's: it is the base, it may be SFT too, and settings suit it."""

import json
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from bridle.api.models import load
from bridle.core.errors import BridleError
from bridle.core.records import Prompt
from bridle.models.contents import folder_hash
from bridle.models.files.chat_template import TemplateSettings
from bridle.models.policy import Policy, save_policy
from bridle.models.template import Template
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.recipe.recipe import load_recipe
from bridle.stages import workspace
from tests.models.tiny import native, template
from tests.tiny_project import bridle, complaint, done, preferences, settings, weights

TURNS = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
FEW: dict[str, Any] = {
    "model.precision": "float32", "data.heldout_share": 0.4, "sampling.max_new_tokens": 12, "sampling.answers": 2,
    "reward.slim": False, "ppo.steps": 1, "ppo.prompts_per_step": 8,
}  # fmt: skip


def write_mine(folder: Path, source: str = TURNS) -> Path:
    """A tiny native model with a chat template of its own, as its makers would save it."""
    spoken: Template = replace(template(), source=source)
    save_policy(folder, Policy(native("llama", 0), spoken, "mine"))
    return folder


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A project on an instruct model, walked to an evaluation without SFT, and what `init` said."""
    folder = tmp_path_factory.mktemp("instruct")
    said = done("init", folder / "p", "--model", write_mine(folder / "mine"), *settings(FEW))
    done("import", preferences(folder / "pairs.jsonl", 24), "--project", folder / "p")
    for words in ("sample", "train reward", "train ppo", "train dpo", "evaluate ppo sft --by reward"):
        done(*words.split(), "--project", folder / "p")
    return folder / "p", said


@pytest.fixture
def project(walked: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(walked[0], tmp_path / "p", symlinks=True))


def test_an_instruct_model_is_its_own_sft(walked: tuple[Path, str]) -> None:
    project, said = walked
    told = [line for line in said.splitlines() if "your model is taken as the base" in line]
    assert len(told) == 1 and "so it is sft too" in told[0]
    assert folder_hash(project / "models/sft") == folder_hash(project / "models/base")
    assert not any((project / "runs").glob("pretrain-*")) and not any((project / "runs").glob("sft-*"))
    kept = Project.find(project).registrations()
    assert list(kept["models/sft"]["names"]) == list(kept["models/base"]["names"]) != []
    assert weights(project, "ppo") != weights(project, "sft") != weights(project, "dpo")
    result = json.loads((project / "runs/evaluate-ppo-0001/result.json").read_text())
    assert result["kl_reference"]["name"] == "sft" and result["kl"] is not None


def test_it_lies_on_the_disk_once(walked: tuple[Path, str]) -> None:
    files = {path.resolve() for path in walked[0].glob("models/*/model.safetensors")}
    assert len(files) == 4, "base, which is sft, and reward, ppo, dpo"


def test_sft_that_is_trained_later_makes_what_came_before_stale(project: Path) -> None:
    before = weights(project, "base")
    done("train", "sft", "--set", "sft.epochs=1", "--project", project)
    assert weights(project, "base") == before != weights(project, "sft") and not (project / "models/sft").is_symlink()
    told = bridle("evaluate", "ppo", "--project", project).stderr
    assert "ppo descends from another sft" in told and "train ppo again" in told
    assert "reward descends from another sft" in told


def test_a_save_that_fails_leaves_sft_as_it_was(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise BridleError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(workspace, "save_policy", full)
        assert "no space" in complaint(bridle("train", "sft", "--set", "sft.epochs=1", "--project", project))
    assert json.loads(done("evaluate", "sft", "--project", project, "--json"))["sft"]["kl"] == 0
    assert folder_hash(project / "models/sft") == folder_hash(project / "models/base")


def test_a_model_that_is_named_later_is_taken_when_it_is_needed(tmp_path: Path) -> None:
    mine = write_mine(tmp_path / "mine")
    done("init", tmp_path / "p", *settings({**FEW, "model.path": "../mine"}))
    done("import", preferences(tmp_path / "pairs.jsonl", 24), "--project", tmp_path / "p")
    first = bridle("sample", "--project", tmp_path / "p")
    assert first.exit_code == 0 and f"your model is taken as the base: {tmp_path / 'p/../mine'}" in first.stderr
    shutil.rmtree(mine)
    again = bridle("evaluate", "sft", "--project", tmp_path / "p")
    assert again.exit_code == 0 and "is taken" not in again.stderr


def test_the_day_and_the_variables_of_its_chat_template_are_the_projects(tmp_path: Path) -> None:
    """Fixed when the project is made, in every prompt from then on, in the keys of stages, and with the model wherever it goes."""
    asking = "{{ strftime_now('%Y-%m-%d') }}{% if loud is defined %}!{% endif %}" + TURNS
    mine, folder = write_mine(tmp_path / "mine", asking), tmp_path / "p"
    done("init", folder, "--model", mine, *settings(FEW), "--set", "model.template_kwargs.loud=true")
    today = date.today().isoformat()
    recipe, line = (
        load_recipe(folder / "bridle.toml"),
        (folder / "bridle.toml").read_text().partition("template_date = ")[2],
    )
    assert recipe.model.template_date == today and "the day that this project was made" in line.partition("\n")[0]
    assert recipe.model.template_kwargs == {"loud": True}
    kept, other = load(folder / "models/sft"), load(folder / "models/sft", template={"template_date": "2025-01-02"})
    assert kept.policy.template.prompt_text(Prompt.from_text("Hi")).startswith(f"{today}!")
    assert other.policy.template.prompt_text(Prompt.from_text("Hi")).startswith("2025-01-02!")
    asked = ("sample", "--project", folder, "--set", "model.template_kwargs.loud=true")
    done("import", preferences(tmp_path / "pairs.jsonl", 24), "--project", folder)
    done(*asked)
    done(*asked[:3], "--set", "model.template_kwargs={}")
    keys = {json.loads(path.read_text())["key"] for path in folder.glob("runs/sample-*/parents.json")}
    assert len(keys) == 2
    work = workspace.Work(Project(folder, recipe.with_settings({"model.template_kwargs": {}})), Progress())
    assert work.read_policy(folder / "models/sft").template.settings == TemplateSettings(today)
    work.close()
    shutil.copytree(folder / "models/base", tmp_path / "again")
    done("init", tmp_path / "q", "--model", tmp_path / "again", *settings(FEW))
    assert load_recipe(tmp_path / "q/bridle.toml").model.template_kwargs == {"loud": True}


def test_a_model_without_a_chat_template_is_taught_first(tmp_path: Path) -> None:
    mine = write_mine(tmp_path / "mine", template().source)
    said = done("init", tmp_path / "p", "--model", mine, *settings(FEW))
    assert "no chat template, so `bridle train sft` comes first" in said and not (tmp_path / "p/models/sft").exists()
    done("import", preferences(tmp_path / "pairs.jsonl", 24), "--project", tmp_path / "p")
    assert "make it with `bridle train sft`" in complaint(bridle("sample", "--project", tmp_path / "p"))
    done("train", "sft", "--set", "sft.epochs=1", "--project", tmp_path / "p")
    done("train", "dpo", "--project", tmp_path / "p")


def test_another_model_is_taken_in_its_place(project: Path, tmp_path: Path) -> None:
    other = write_mine(tmp_path / "other", TURNS.replace("[", "<"))
    said = done("train", "pretrain", "--set", f"model.path={other}", "--project", project)
    assert f"your model is taken as the base: {other}" in said and "sft too" in said
    assert folder_hash(project / "models/sft") == folder_hash(project / "models/base")
    assert "descends from another sft" in bridle("evaluate", "ppo", "--project", project).stderr
    plain = write_mine(tmp_path / "plain", template().source)
    done("train", "pretrain", "--set", f"model.path={plain}", "--project", project)
    assert not (project / "models/sft").exists()


def test_pretraining_says_that_nothing_is_pretrained(walked: tuple[Path, str]) -> None:
    found = bridle("train", "pretrain", "--project", walked[0])
    assert found.exit_code == 0 and found.stdout.count("your model is taken as the base") == 1
    assert "nothing is pretrained" in found.stderr and "loss" not in found.stdout and "steps" not in found.stdout
    assert not any((walked[0] / "runs").glob("pretrain-*"))


# ------------------------------------------------------------------------------------------------- settings that suit it


def test_every_setting_suits_the_model_and_says_why(walked: tuple[Path, str]) -> None:
    recipe, lines = load_recipe(walked[0] / "bridle.toml"), (walked[0] / "bridle.toml").read_text().splitlines()
    shape = recipe.model
    assert (shape.vocab_size, shape.hidden_size, shape.intermediate_size, shape.layers) == (300, 32, 48, 2)
    assert (shape.heads, shape.kv_heads, shape.max_positions) == (4, 2, 96)
    for name in ("pretrain", "sft", "reward", "ppo", "dpo", "grpo", "rloo", "rebel", "rejection"):
        section = getattr(recipe, name)
        assert f"[{name}]" in "\n".join(lines) and section.optimizer == "adamw" and section.learning_rate <= 1e-4
    assert recipe.ppo.critic_learning_rate <= 1e-4 and recipe.reward.slim_learning_rate <= 1e-3
    (rate,) = [line for line in lines if line.startswith("learning_rate = ") and "Tunstall" in line]
    assert "by size " in rate and "5e-07 at 500M" in rate
    assert recipe.sampling.max_new_tokens == 12 and recipe.ppo.kl_target == pytest.approx(0.24), "by what was given"
    assert not any("by size" in line for line in lines if line.startswith("max_new_tokens"))


def test_what_is_set_at_init_wins(tmp_path: Path) -> None:
    mine = write_mine(tmp_path / "mine")
    done("init", tmp_path / "p", "--model", mine, "--set", "sft.optimizer=muon", "--set", "ppo.learning_rate=3e-5")
    recipe = load_recipe(tmp_path / "p/bridle.toml")
    assert recipe.sft.optimizer == "muon" and recipe.ppo.learning_rate == 3e-5 and recipe.dpo.learning_rate <= 1e-4
    assert recipe.sampling.max_new_tokens == 24, "a quarter of the context"


def test_a_model_that_is_named_as_a_setting_gets_settings_of_its_size(tmp_path: Path) -> None:
    write_mine(tmp_path / "mine")
    told = done("init", tmp_path / "p", "--set", "model.path=../mine", "--set", "ppo.learning_rate=3e-5")
    assert f"your model {tmp_path / 'mine'} is taken as the base when it is first needed" in told
    recipe = load_recipe(tmp_path / "p/bridle.toml")
    assert recipe.model.path == "../mine" and recipe.model.hidden_size == 32
    assert (recipe.sft.optimizer, recipe.dpo.learning_rate, recipe.ppo.learning_rate) == ("adamw", 1e-4, 3e-5)
    assert not (tmp_path / "p/models").exists()


def test_a_model_that_is_named_as_a_setting_and_is_not_there_is_refused(tmp_path: Path) -> None:
    found = bridle("init", tmp_path / "p", "--set", "model.path=../mine")
    assert found.exit_code == 2 and f"there is no model at {tmp_path / 'mine'}; --model takes" in complaint(found)
    assert not (tmp_path / "p").exists()


def test_a_model_whose_weights_cannot_be_read_makes_no_project(tmp_path: Path) -> None:
    mine = write_mine(tmp_path / "mine")
    content = bytearray((mine / "tokenizer.json").read_bytes())
    (mine / "tokenizer.json").write_bytes(content[: len(content) // 2])
    assert "tokenizer" in complaint(bridle("init", tmp_path / "p", "--model", mine))
    assert not (tmp_path / "p").exists()


def test_a_rate_made_for_another_size_is_warned_of(project: Path) -> None:
    found = bridle("train", "dpo", "--set", "dpo.learning_rate=0.01", "--project", project)
    (told,) = [line for line in found.stderr.splitlines() if "dpo.learning_rate = 0.01 is" in line]
    assert found.exit_code == 0 and "100 times the 0.0001" in told
    assert "times the" not in bridle("train", "dpo", "--project", project).stderr


def test_a_link_elsewhere_is_not_the_base(tmp_path: Path) -> None:
    done("init", tmp_path / "p")
    project = Project.find(tmp_path / "p")
    (project.folder / "models").mkdir()
    (project.folder / "models/sft").symlink_to(tmp_path)
    assert not project.shares_base(project.model("sft"))
    with pytest.raises(Exception, match="models/sft is a link"):
        project.place_for("sft")
    (project.folder / "models/ppo").symlink_to("base")
    assert project.shares_base(project.model("ppo"))
