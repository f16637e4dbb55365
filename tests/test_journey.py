"""End to end through the command line, with models that know nothing: the playground, imported preferences, a model of one's own."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, Qwen3Config

from bridle.core.records import Completion, FinishReason
from bridle.models.files.new_tokenizer import train_tokenizer
from bridle.models.policy import load_policy
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.stages.workspace import Work
from tests.tiny_project import (
    PLAYGROUND,
    SHAPE,
    bridle,
    complaint,
    done,
    lines_of,
    metrics,
    preferences,
    result,
    settings,
    untimed,
    weights,
)

SMALL_WORLD = Path(__file__).parent / "playground" / "small_world.toml"


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


# ------------------------------------------------------------------------------------------------- the demo


def test_a_demo_leaves_a_report_and_a_summary(finished_demo: Path) -> None:
    summary = json.loads((finished_demo / "summary.json").read_text())
    assert summary["seed"] == 0 and summary["threads"] == 1
    stages = summary["stages"]
    assert all(is_number(stage["seconds"]) for stage in stages.values())
    at_work = sum(stage["seconds"] for stage in stages.values())  # on one thread, so one after another
    assert at_work <= summary["seconds"] <= at_work + 30
    tuned = [
        "gold_before",
        "gold_after",
        "win_rate",
        "win_rate_low",
        "win_rate_high",
    ]
    wanted = {
        "reward": ["pair_accuracy", "pair_accuracy_low", "pair_accuracy_high"],
        "ppo": tuned,
        "dpo": tuned,
        "unbridled": ["proxy_start", "proxy_end", "gold_peak", "gold_end"],
        "best_of_4": ["gold", "gold_se", "proxy", "kl"],
        "grpo": ["accuracy_before", "accuracy_after", "worked_before", "worked_after", "without_variance"],
    }
    for name, figures in wanted.items():
        assert all(is_number(stages[name][figure]) for figure in figures), stages[name]
    assert stages["reward"]["pair_accuracy_low"] <= stages["reward"]["pair_accuracy"]
    assert stages["ppo"]["win_rate_low"] <= stages["ppo"]["win_rate"] <= stages["ppo"]["win_rate_high"]
    assert {"pretrain", "sft", "sample", "label", "reward-shuffled", "report"} <= stages.keys()


def test_the_summary_says_what_the_evaluations_found(finished_demo: Path) -> None:
    stages = json.loads((finished_demo / "summary.json").read_text())["stages"]
    answers = {
        name: lines_of(finished_demo / f"runs/evaluate-{name}-0001/answers.jsonl") for name in ("sft", "ppo", "dpo")
    }
    gold = {name: [line["gold"] for line in lines] for name, lines in answers.items()}
    for name in ("ppo", "dpo"):
        assert stages[name]["gold_before"] == pytest.approx(sum(gold["sft"]) / 24)
        assert stages[name]["gold_after"] == pytest.approx(sum(gold[name]) / 24)
        wins = [(a > b) + (a == b) / 2 for a, b in zip(gold[name], gold["sft"], strict=True)]
        assert stages[name]["win_rate"] == pytest.approx(sum(wins) / 24)
        trained, measured = (result(finished_demo / f"runs/{stage}-0001") for stage in (name, f"evaluate-{name}"))
        assert trained.items() <= untimed(stages[name]).items(), "training's figures stay training's"
        assert measured.items() <= untimed(stages[f"evaluate-{name}"]).items()
        assert [line["prompt"] for line in answers["sft"]] == [line["prompt"] for line in answers[name]]


def test_choosing_among_more_answers_never_lowers_the_score_that_is_chosen_by(finished_demo: Path) -> None:
    """The expected best of n by the reward model's own score rises with n, whatever the models are worth."""
    best = json.loads((finished_demo / "summary.json").read_text())["stages"]["best_of_4"]
    frontier = best["frontier"]
    assert [point["n"] for point in frontier] == [1, 2, 4] and best["prompts"] == 24
    assert frontier[0]["proxy"] < frontier[1]["proxy"] < frontier[2]["proxy"] == best["proxy"]
    assert frontier[2]["kl"] == pytest.approx(math.log(4) - 3 / 4) and frontier[0]["kl"] == 0
    assert frontier[2]["gold"] == best["gold"]


def test_dpo_learns_from_the_reward_models_comparisons_and_grpo_from_its_branch(finished_demo: Path) -> None:
    dpo, reward, grpo = (result(finished_demo / f"runs/{stage}-0001") for stage in ("dpo", "reward", "grpo"))
    assert dpo["pairs"] == reward["pairs"] and dpo["snapshot"] == reward["snapshot"]
    lines = metrics(finished_demo / "runs/dpo-0001")
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert ["kl" in line for line in lines] == [False, True, False]
    parents = {s: json.loads((finished_demo / f"runs/{s}-0001/parents.json").read_text()) for s in ("dpo", "grpo")}
    assert parents["dpo"]["sft"] == result(finished_demo / "runs/sft-0001")["model"]
    branch = result(finished_demo / "runs/arithmetic-0001")
    assert parents["grpo"]["start"] == branch["model"] and branch["demonstrations"] == 16
    assert grpo["problems"] == 24 and len(metrics(finished_demo / "runs/grpo-0001")) == 2


def test_models_runs_and_their_parents_lie_where_they_belong(finished_demo: Path) -> None:
    names = {folder.name for folder in (finished_demo / "models").iterdir()}
    tuned = {"ppo", "unbridled", "dpo", "grpo"}
    assert names == {"base", "sft", "arithmetic", "reward", "reward-slim", "reward-shuffled", *tuned}
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
            assert float(scorer(torch.tensor([probe["ids"]])).logits) == pytest.approx(probe["scores"][0], abs=1e-3)


def test_the_report_shows_a_dpo_that_measured_no_distance(finished_demo: Path, tmp_path: Path) -> None:
    """SimPO is held by no reference, so what it logs on its way holds gold and no KL."""
    project = Path(shutil.copytree(finished_demo, tmp_path / "demo"))
    path = project / "runs/dpo-0001/metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line.pop("kl", None)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert any("gold" in line for line in lines) and "wrote" in done("report", "--project", project)


@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_tuning_again_by_its_verb_gives_the_same_model(method: str, finished_demo: Path, tmp_path: Path) -> None:
    """The branch that GRPO starts from is there already, and is not made twice."""
    project = Path(shutil.copytree(finished_demo, tmp_path / "copy"))
    figures = untimed(json.loads(done("train", method, "--project", project, "--json")))
    figures.pop("branch", None)
    assert figures == result(finished_demo / f"runs/{method}-0001") == result(project / f"runs/{method}-0002")
    assert metrics(project / f"runs/{method}-0002") == metrics(finished_demo / f"runs/{method}-0001")
    assert weights(project, method) == weights(finished_demo, method)
    assert not (project / "runs/arithmetic-0002").exists()


def test_another_world_walks_through(tmp_path: Path) -> None:
    few = {"data.pretrain_tokens": 10_000, "ppo.steps": 2, "data.train_prompts": 12, "data.demonstrations": 20}
    few |= {"data.heldout_prompts": 12, "data.compared_heldout": 8, "data.probe_prompts": 3}
    out = done("demo", "--out", tmp_path / "d", "--seed", "3", "--world", SMALL_WORLD, *settings({**PLAYGROUND, **few}))
    assert "report.html" in out
    summary = json.loads((tmp_path / "d/summary.json").read_text())
    assert summary["seed"] == 3 and all(is_number(summary["stages"][name]["win_rate"]) for name in ("ppo", "dpo"))
    assert is_number(summary["stages"]["grpo"]["accuracy_after"])
    assert str(SMALL_WORLD) in (tmp_path / "d/bridle.toml").read_text()


# ---------------------------------------------------------------------------------- preferences of one's own


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of imported preferences, walked up to PPO and DPO."""
    folder = tmp_path_factory.mktemp("imported")
    project, file = folder / "project", preferences(folder / "pairs.jsonl")
    few = {"data.pretrain_tokens": 10_000, "data.heldout_share": 0.4, "ppo.steps": 2, "reward.slim": False}
    done("init", project, *settings({**SHAPE, **few}))
    report = json.loads(done("import", file, "--project", project, "--json"))
    assert report["rows"] == 40, report
    for method in ("pretrain", "sft", "reward", "ppo", "dpo"):
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


def test_dpo_learns_from_imported_preferences(imported: Path) -> None:
    dpo, reward = (result(imported / f"runs/{name}-0001") for name in ("dpo", "reward"))
    assert dpo["pairs"] == reward["pairs"] == dpo["prompts"] and dpo["snapshot"] == reward["snapshot"]
    assert is_number(dpo["kl"]) and "gold" not in dpo
    figures = json.loads(done("evaluate", "dpo", "sft", "--by", "reward", "--project", imported, "--json"))
    assert 0 <= figures["win_rate"]["rate"] <= 1


def test_rows_that_a_setting_leaves_out_are_said_and_reported(imported: Path, tmp_path: Path) -> None:
    project = Path(shutil.copytree(imported, tmp_path / "copy"))
    shown = tmp_path / "shown.jsonl"
    shown.write_text(json.dumps({"prompt": "What of the sea?", "completion": "It is wide."}))
    done("import", shown, "--project", project)
    pairs = result(project / "runs/reward-0001")["pairs"]
    (whole,) = [line for line in said("train", "sft", project) if "demonstrations: " in line]
    assert whole.strip() == f"demonstrations: 1 written, {pairs} preferred; all {pairs + 1} can be used as they are"
    (few,) = [line for line in said("train", "sft", project, "data.demonstrations=4") if "demonstrations: " in line]
    note = f"4 of {pairs + 1} used (data.demonstrations)"
    assert few.strip().startswith(f"demonstrations: {note}; ") and few.endswith(
        "preferred; all 4 can be used as they are"
    )
    run = project / "runs/sft-0003"
    assert note in json.loads((run / "data.json").read_text())["demonstrations"]["notes"]
    sampled = "\n".join(said("sample", project, "data.train_prompts=5", "data.compared_heldout=2"))
    assert f"prompts: 5 of {pairs + 1} used (data.train_prompts); all 5 can be used as they are" in sampled
    assert (
        "held-out prompts: 2 of " in sampled
        and "used (data.compared_heldout); all 2 can be used as they are" in sampled
    )
    evaluated = "\n".join(said("evaluate", "sft", project, "data.heldout_prompts=3"))
    assert "prompts: 3 of " in evaluated and "used (data.heldout_prompts); all 3 can be used as they are" in evaluated
    mixed = {"data.train_prompts": 5, "data.demonstrations": 3, "ppo.pretrain_coef": 0.5, "ppo.steps": 1}
    practised = "\n".join(said("train", "ppo", project, *(f"{key}={value}" for key, value in mixed.items())))
    assert f"prompts: 5 of {pairs + 1} used" in practised and f"demonstrations: 3 of {pairs + 1} used" in practised
    parents = json.loads((project / "runs/ppo-0002/parents.json").read_text())
    assert {"prompts", "demonstrations"} <= set(parents)
    done("evaluate", "ppo", "sft", "--project", project, "--set", "data.heldout_prompts=3")  # for a win rate of few
    for page, words in ((run, ()), (None, ("data.train_prompts", "data.heldout_prompts", "With 3 held-out prompts"))):
        done("report", *([page] if page else []), "--project", project)
        text = ((page or project) / "report.html").read_text()
        assert note in text and all(word in text for word in words)


def test_what_is_measured_on_few_prompts_says_of_how_many(
    imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Path(shutil.copytree(imported, tmp_path / "copy"))
    there = result(project / "runs/reward-0001")["pairs"]
    for method, few in (("dpo", "preferences.OBSERVED"), ("reward", "reward.CENTRED_ON")):
        monkeypatch.setattr(f"bridle.stages.{few}", 5)
        (line,) = [line for line in said("train", method, project) if line.strip().startswith("prompts: ")]
        assert line.strip().startswith(f"prompts: 5 of {there} used (to ") and line.endswith(
            "; all 5 can be used as they are"
        )


def said(*words: str | Path) -> list[str]:
    """What a verb, its project and settings print besides the metrics."""
    verb = [word for word in words if isinstance(word, str) and "=" not in word]
    (project,) = [word for word in words if isinstance(word, Path)]
    chosen = [part for word in words if isinstance(word, str) and "=" in word for part in ("--set", word)]
    found = bridle(*verb, "--project", project, *chosen)
    assert found.exit_code == 0, found.stderr
    return str(found.stderr).splitlines()


def test_preferences_alone_have_no_answers_to_check(imported: Path, tmp_path: Path) -> None:
    project = Path(shutil.copytree(imported, tmp_path / "copy"))
    told = complaint(bridle("train", "grpo", "--project", project))
    assert (
        "no prompts whose answers can be checked: 0 solutions and written answers were looked at, and 0 give a number"
        in told
    )
    assert '"#### number"' in told
    assert not (project / "models/grpo").exists()


# ----------------------------------------------------------------------------------------- answers to be checked


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of imported sums in the manner of GSM8K, and a few demonstrations that end in no number."""
    folder = tmp_path_factory.mktemp("problems")
    project, file = folder / "project", folder / "sums.jsonl"
    rows = [(f"What is {i} + {i % 7}?", f"{i} + {i % 7} = {i + i % 7}\n#### {i + i % 7}") for i in range(60)]
    rows += [(f"Tell me about sum {i}.", "Gladly. It is a large one.") for i in range(20)]
    with file.open("w") as lines:
        lines.writelines(json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in rows)
    few = {"data.pretrain_tokens": 10_000, "data.heldout_share": 0.3, "data.heldout_prompts": 10}
    done("init", project, *settings({**SHAPE, **few}))
    assert json.loads(done("import", file, "--project", project, "--json"))["rows"] == 80
    for method in ("pretrain", "sft", "grpo"):
        done("train", method, "--project", project)
    return project


def test_rl_learns_from_what_rows_ask_and_from_a_format(problems: Path, tmp_path: Path) -> None:
    """Constraints from a column of their own, tags from the recipe, both logged by name. An unknown one ends it before it begins."""
    project, file = Path(shutil.copytree(problems, tmp_path / "copy")), tmp_path / "asked.jsonl"
    rows = [{"prompt": f"Say {i}.", "constraints": [{"name": "characters", "least": 1 + i % 2}]} for i in range(40)]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert json.loads(done("import", file, "--project", project, "--json"))["rows"] == 40
    brief = '{name = "brief", kind = "verifier", check = "constraint_share"}'
    form = '{name = "form", kind = "verifier", check = "tags", expected = ["think"], weight = 0.1}'
    options = ["--set", f"reward_source=[{brief}, {form}]"]
    done("train", "grpo", "--project", project, *options)
    folder = sorted(project.glob("runs/grpo-*"))[-1]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"reward_brief", "reward_form", "unscored_brief"} <= set(lines[0]) and lines[0]["reward_form"] == 0.0
    assert "checks" in json.loads((folder / "parents.json").read_text())
    file.write_text(
        "\n".join(json.dumps({**row, "prompt": f"{row['prompt']} Well?", "constraints": ["rhyme"]}) for row in rows)
    )
    done("import", file, "--project", project)
    assert "'rhyme' is not a constraint" in complaint(bridle("train", "grpo", "--project", project, *options))
    assert len(sorted(project.glob("runs/grpo-*"))) == 2


def test_grpo_starts_from_sft_where_answers_can_be_checked(problems: Path) -> None:
    found = result(problems / "runs/grpo-0001")
    assert found["problems"] == 10 and found["steps"] == 2 and is_number(found["accuracy_after"])
    assert "worked_after" not in found and not (problems / "models/arithmetic").exists()
    parents = json.loads((problems / "runs/grpo-0001/parents.json").read_text())
    assert parents["start"] == result(problems / "runs/sft-0001")["model"]
    assert "accuracy" in metrics(problems / "runs/grpo-0001")[0]


def test_written_answers_are_right_by_their_own_numbers_and_the_splits_are_kept_apart(problems: Path) -> None:
    work = Work(Project.find(problems), Progress(write=lambda text: None, live=False))
    try:
        checkable = work.data.checkable()
        texts = {prompt.id: completion.text for prompt, completion in work.store.completions()}
    finally:
        work.close()
    train, heldout = checkable.train, checkable.heldout
    assert len(heldout) == 10 and 25 < len(train) < 55
    assert not {prompt.id for prompt in train} & {prompt.id for prompt in heldout}
    for prompt in train + heldout:
        assert prompt.text.startswith("What is")
        written = Completion(prompt.id, texts[prompt.id], finish_reason=FinishReason.STOP)
        other = Completion(prompt.id, texts[prompt.id] + "1", finish_reason=FinishReason.STOP)
        assert checkable.verifier([prompt, prompt], [written, other]) == [1.0, 0.0]


@pytest.mark.parametrize("source", ["playground", "store"])
@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_what_a_tuned_model_starts_from_must_be_there(method: str, source: str, tmp_path: Path) -> None:
    done("init", tmp_path / "p", *settings({**SHAPE, "data.source": source}))
    told = complaint(bridle("train", method, "--project", tmp_path / "p"))
    missing, verb = ("no comparisons", "bridle import") if method == "dpo" else ("no model at", "bridle train")
    assert missing in told and verb in told


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
