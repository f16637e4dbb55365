"""End to end through the command line, with models that know nothing: the playground, imported preferences, a model of one's own."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, Qwen3Config

from bridle.models.policy import load_policy
from bridle.models.template import train_tokenizer
from tests.project import PLAYGROUND, SHAPE, bridle, done, lines_of, metrics, preferences, result, settings, untimed

SMALL_WORLD = Path(__file__).parent / "playground" / "small_world.toml"


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


# ------------------------------------------------------------------------------------------------- the demo


def test_a_demo_leaves_a_report_and_a_summary(finished_demo: Path) -> None:
    summary = json.loads((finished_demo / "summary.json").read_text())
    assert summary["seed"] == 0 and summary["threads"] == 1
    stages = summary["stages"]
    assert all(is_number(stage["seconds"]) for stage in stages.values())
    assert summary["seconds"] == pytest.approx(sum(stage["seconds"] for stage in stages.values()), abs=0.2)
    wanted = {
        "reward": ["pair_accuracy", "pair_accuracy_low", "pair_accuracy_high"],
        "ppo": ["gold_before", "gold_after", "win_rate", "win_rate_low", "win_rate_high", "kl", "complies", "refuses_benign"],
        "unbridled": ["proxy_start", "proxy_end", "gold_peak", "gold_end"],
    }  # fmt: skip
    for name, figures in wanted.items():
        assert all(is_number(stages[name][figure]) for figure in figures), stages[name]
    assert stages["reward"]["pair_accuracy_low"] <= stages["reward"]["pair_accuracy"]
    assert stages["ppo"]["win_rate_low"] <= stages["ppo"]["win_rate"] <= stages["ppo"]["win_rate_high"]
    assert {"pretrain", "sft", "sample", "label", "reward-shuffled", "report"} <= stages.keys()


def test_the_summary_says_what_the_evaluations_found(finished_demo: Path) -> None:
    stages = json.loads((finished_demo / "summary.json").read_text())["stages"]
    answers = {name: lines_of(finished_demo / f"runs/evaluate-{name}-0001/answers.jsonl") for name in ("sft", "ppo")}
    gold = {name: [line["gold"] for line in lines] for name, lines in answers.items()}
    assert stages["ppo"]["gold_before"] == pytest.approx(sum(gold["sft"]) / 24)
    assert stages["ppo"]["gold_after"] == pytest.approx(sum(gold["ppo"]) / 24)
    wins = [(a > b) + (a == b) / 2 for a, b in zip(gold["ppo"], gold["sft"], strict=True)]
    assert stages["ppo"]["win_rate"] == pytest.approx(sum(wins) / 24)
    assert [line["prompt"] for line in answers["sft"]] == [line["prompt"] for line in answers["ppo"]]


def test_models_runs_and_their_parents_lie_where_they_belong(finished_demo: Path) -> None:
    names = {folder.name for folder in (finished_demo / "models").iterdir()}
    assert names == {"base", "sft", "reward", "reward-slim", "reward-shuffled", "ppo", "unbridled"}
    for run in (finished_demo / "runs").iterdir():
        assert (run / "recipe.toml").is_file() and (run / "result.json").is_file()
        parents = json.loads((run / "parents.json").read_text())
        assert parents["threads"] == 1 and len(parents["key"]) == 64
    assert len(metrics(finished_demo / "runs/ppo-0001")) == 5
    leftovers = [path for path in finished_demo.rglob(".*") if path.name.endswith((".new", ".old"))]
    assert not leftovers


def test_the_report_is_one_page_that_loads_nothing(finished_demo: Path) -> None:
    page = (finished_demo / "report.html").read_text()
    assert "<svg" in page or "data:image" in page
    assert "<script src" not in page and "<link" not in page and 'src="http' not in page


def test_the_demos_project_answers_more_questions(
    finished_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Path(shutil.copytree(finished_demo, tmp_path / "copy"))
    monkeypatch.chdir(project)
    figures = json.loads(done("evaluate", "ppo", "sft", "--json"))
    assert figures["win_rate"]["by"] == "gold" and figures["win_rate"]["n"] == 24
    assert figures["ppo"]["gold"] == result(project / "runs/evaluate-ppo-0001")["gold"]
    assert not (project / "runs/evaluate-ppo-0002").exists()  # the same question is not asked twice
    (project / "report.html").unlink()
    assert "wrote" in done("report") and (project / "report.html").is_file()
    done("report", "runs/ppo-0001")
    assert (project / "runs/ppo-0001/report.html").is_file()
    done("report", "sft-0001", "--project", project)
    assert (project / "runs/sft-0001/report.html").is_file()


def test_transformers_reads_what_was_trained(finished_demo: Path) -> None:
    ours = load_policy(finished_demo / "models/ppo", torch.device("cpu"))
    theirs = AutoModelForCausalLM.from_pretrained(finished_demo / "models/ppo")
    ids = torch.tensor([[2, 40, 50, 60, 70]])
    with torch.no_grad():
        torch.testing.assert_close(ours.module(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    scorer = AutoModelForSequenceClassification.from_pretrained(finished_demo / "models/reward")
    notes = json.loads((finished_demo / "models/reward/bridle_reward.json").read_text())
    for probe in notes["probes"]:
        with torch.no_grad():
            assert float(scorer(torch.tensor([probe["ids"]])).logits) == pytest.approx(probe["score"], abs=1e-3)


def test_another_world_walks_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridle.demo.UNBRIDLED", {"kl_coef": 0.0, "kl_target": 0.0, "learning_rate": 1e-3, "steps": 2})
    few = {"data.pretrain_tokens": 10_000, "ppo.steps": 2, "data.train_prompts": 12, "data.demonstrations": 20}
    few |= {"data.heldout_prompts": 12, "data.compared_heldout": 8, "data.probe_prompts": 3}
    out = done("demo", "--out", tmp_path / "d", "--seed", "3", "--world", SMALL_WORLD, *settings({**PLAYGROUND, **few}))
    assert "report.html" in out
    summary = json.loads((tmp_path / "d/summary.json").read_text())
    assert summary["seed"] == 3 and is_number(summary["stages"]["ppo"]["win_rate"])
    assert str(SMALL_WORLD) in (tmp_path / "d/bridle.toml").read_text()


# ---------------------------------------------------------------------------------- preferences of one's own


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of imported preferences, walked up to PPO."""
    folder = tmp_path_factory.mktemp("imported")
    project, file = folder / "project", preferences(folder / "pairs.jsonl")
    few = {"data.pretrain_tokens": 10_000, "data.heldout_share": 0.4, "ppo.steps": 2, "reward.slim": False}
    done("init", project, *settings({**SHAPE, **few}))
    report = json.loads(done("import", file, "--project", project, "--json"))
    assert report["rows"] == 40, report
    for method in ("pretrain", "sft", "reward", "ppo"):
        done("train", method, "--project", project)
    return project


def test_imported_preferences_walk_through(imported: Path) -> None:
    figures = json.loads(done("evaluate", "ppo", "sft", "--by", "reward", "--project", imported, "--json"))
    assert figures["win_rate"]["by"] == "reward" and 0 <= figures["win_rate"]["rate"] <= 1
    assert figures["ppo"]["kl_se"] > 0 and "gold" not in figures["ppo"]
    sampled = json.loads(done("sample", "--project", imported, "--json"))
    assert sampled["answers"] == 4 * sampled["prompts"] > 0
    done("report", "--project", imported)
    assert "from preferences to a tuned model" in (imported / "report.html").read_text()


def test_the_reward_model_is_tested_on_pairs_that_were_held_out(imported: Path) -> None:
    found = result(imported / "runs/reward-0001")
    assert found["pairs"] + found["heldout_pairs"] == 40 and found["heldout_pairs"] > 5
    assert found["longest"] == 1.0 and found["shortest"] == 0.0  # the better answer says more, in every pair


def test_equal_last_turns_of_different_prompts_are_not_taken_for_one(imported: Path) -> None:
    """A third of the prompts end in the same words; each answer is compared with the one to its own prompt."""
    done("evaluate", "ppo", "sft", "--project", imported)
    lines = {name: lines_of(imported / f"runs/evaluate-{name}-0001/answers.jsonl") for name in ("ppo", "sft")}
    assert len({line["prompt"] for line in lines["ppo"]}) < len(lines["ppo"]), "the test needs equal last turns"
    pairs = zip((x["proxy"] for x in lines["ppo"]), (x["proxy"] for x in lines["sft"]), strict=True)
    wins = [(a > b) + (a == b) / 2 for a, b in pairs]
    rate = json.loads(done("evaluate", "ppo", "sft", "--project", imported, "--json"))["win_rate"]
    assert rate["rate"] == pytest.approx(sum(wins) / len(wins)) and rate["n"] == len(wins)


def test_what_is_imported_twice_is_there_once(imported: Path, tmp_path: Path) -> None:
    project = Path(shutil.copytree(imported, tmp_path / "copy"))
    before = json.loads(done("import", preferences(tmp_path / "again.jsonl"), "--project", project, "--json"))
    assert before["rows"] == 40
    pairs = result(project / "runs/reward-0001")["pairs"]
    again = json.loads(done("train", "reward", "--project", project, "--json"))
    assert again["pairs"] == pairs


# ------------------------------------------------------------------------------------------ a model of one's own

MODELS = {
    "llama": LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, eos_token_id=1, bos_token_id=2, pad_token_id=0,
    ),
    "qwen3": Qwen3Config(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, eos_token_id=1, bos_token_id=2, pad_token_id=0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_ones_own_is_one_line_of_the_recipe(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(MODELS[name]).save_pretrained(tmp_path / "mine")
    train_tokenizer(["Tell me about a cat, please. Gladly."] * 5, 320).save(tmp_path / "mine", 256)
    project = tmp_path / "project"
    shaped = {key: value for key, value in SHAPE.items() if not key.startswith("model.")}
    done("init", project, *settings({**shaped, "sft.optimizer": "adamw", "sft.epochs": 1}))
    recipe = project / "bridle.toml"
    recipe.write_text(recipe.read_text().replace('path = ""', 'path = "../mine"', 1))
    done("import", preferences(tmp_path / "pairs.jsonl"), "--project", project)
    figures = json.loads(done("train", "pretrain", "--project", project, "--json"), parse_constant=pytest.fail)
    assert figures["parameters"] == sum(
        p.numel() for p in AutoModelForCausalLM.from_pretrained(tmp_path / "mine").parameters()
    )
    base = load_policy(project / "models/base", torch.device("cpu"))
    mine = load_policy(tmp_path / "mine", torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(base.module.parameters(), mine.module.parameters(), strict=True))
    done("train", "sft", "--project", project)
    assert AutoConfig.from_pretrained(project / "models/sft").model_type == name


def test_init_takes_a_model_by_its_folder(finished_demo: Path, tmp_path: Path) -> None:
    done("init", tmp_path / "p", "--model", finished_demo / "models/base")
    assert str(finished_demo / "models/base") in (tmp_path / "p/bridle.toml").read_text()


# ---------------------------------------------------------------------------------------------- small things


def test_figures_for_programs_are_json_alone(finished_demo: Path) -> None:
    found = bridle("evaluate", "ppo", "--project", finished_demo, "--json")
    assert untimed(json.loads(found.stdout, parse_constant=pytest.fail))["ppo"]["prompts"] == 24


def test_a_setting_for_one_command_does_not_change_the_recipe(finished_demo: Path, tmp_path: Path) -> None:
    project = Path(shutil.copytree(finished_demo, tmp_path / "copy"))
    before = (project / "bridle.toml").read_text()
    done("train", "sft", "--set", "sft.epochs=1", "--project", project)
    assert (project / "bridle.toml").read_text() == before
    assert "epochs = 1" in (project / "runs/sft-0002/recipe.toml").read_text()
