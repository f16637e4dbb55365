"""What is wrong is said in one sentence, with the exit status that programs rely on; nothing that was there is lost."""

import errno
import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file
from tokenizers import Tokenizer

from bridle.cli.options import Options, metric_lines, print_metrics
from bridle.core.errors import ModelError, TrainingStopped, UsageError
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.stages.methods import METHODS
from bridle.stages.workspace import Work
from tests.tiny_project import PLAYGROUND, SHAPE, bridle, complaint, done, preferences, settings, weights


@pytest.fixture
def project(finished_demo: Path, tmp_path: Path) -> Path:
    """A playground project in which everything was done once."""
    return Path(shutil.copytree(finished_demo, tmp_path / "project"))


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A project into which nothing was imported yet."""
    done("init", tmp_path / "empty", *settings(SHAPE))
    return tmp_path / "empty"


@dataclass
class Bad:
    """A command that must fail: its words (with {} for the test's folder), the status, and words of its sentence."""

    words: str
    status: int
    told: str

    def run(self, folder: Path, *more: str) -> Result:
        return bridle(*self.words.format(folder).split(), *more)


def refused(bad: Bad, folder: Path) -> None:
    """One sentence, and nothing of where it came from."""
    plain = bad.run(folder)
    assert plain.exit_code == bad.status, plain.output
    assert bad.told in complaint(plain), plain.stderr
    assert "Traceback" not in plain.output and "unexpected" not in plain.stderr
    assert len(complaint(plain)) < 700


@pytest.mark.parametrize(
    "bad",
    [
        Bad("train sft --project {}/nowhere", 2, "nowhere"),
        Bad("train sft --project {}/empty", 1, "bridle train pretrain"),
        Bad("import {0}/pairs.jsonl --project {0}/empty", 1, "there is no file"),
        Bad("init {}/p --set ppo.kl_ceof=0.2", 2, "did you mean 'kl_coef'?"),
    ],
    ids=lambda bad: bad.words,
)
def test_debug_shows_where_a_sentence_came_from(bad: Bad, empty: Path) -> None:
    refused(bad, empty.parent)
    shown = bad.run(empty.parent, "--debug")
    assert shown.exit_code == bad.status
    assert "Traceback" in shown.stderr and bad.told in complaint(shown)


# --------------------------------------------------------------------------------- the command or the recipe: 2


@pytest.mark.parametrize(
    "bad",
    [
        Bad("train sft --project {}", 2, "no bridle.toml in"),
        Bad("report --project {}/nowhere", 2, "nowhere"),
        Bad("init {}/p --set ppo.kl_ceof=0.2", 2, "did you mean 'kl_coef'?"),
        Bad("init {}/p --set pppo.steps=3", 2, "did you mean 'ppo'?"),
        Bad("init {}/p --set guard.dead_stpes=0", 2, "did you mean 'dead_steps'?"),
        Bad("init {}/p --set data.drop_limit=1.5", 2, "data.drop_limit = 1.5 is invalid: must"),
        Bad("init {}/p --set ppo.steps=many", 2, "ppo.steps = 'many' is invalid: must"),
        Bad("init {}/p --set ppo.steps=2.5", 2, "ppo.steps = 2.5 is invalid: must"),
        Bad("init {}/p --set ppo.steps=0", 2, "ppo.steps = 0 is invalid: must"),
        Bad("init {}/p --set ppo.learning_rate=nan", 2, "ppo.learning_rate = nan is invalid: must"),
        Bad("init {}/p --set ppo=3", 2, "ppo = 3 is invalid: must"),
        Bad("init {}/p --set ppo.steps", 2, "--set takes section.key=value"),
        Bad("init {}/p --set kl_coef=0.2", 2, "a section: ppo.kl_coef, grpo.kl_coef, rloo.kl_coef, rebel.kl_coef"),
        Bad("init {}/p --set kl_ceof=0.2", 2, "did you mean ppo.kl_coef, grpo.kl_coef, rloo.kl_coef, rebel.kl_coef?"),
        Bad("init {}/p --set reward.kl_coef=0.2", 2, "other sections have it: ppo.kl_coef, "),
        Bad("init {}/p --set sede=1", 2, "did you mean 'seed'?"),
        Bad("init {}/p --set best-of-n.rounds=3", 2, "its section is 'rejection'"),
        Bad("evaluate a --by gold --project {}", 2, "--by gold compares two models, and a alone was named"),
        Bad("train zzz --project {}", 2, "'zzz' is not a method; the methods are pretrain, sft, reward, ppo"),
        Bad("init {}/p --set sft.optimizer=sgd", 2, "sft.optimizer = 'sgd' is invalid: must"),
        Bad("init {}/p --model {}/nowhere", 2, "no model at"),
        Bad("demo --out {}/d --world {}/nowhere.toml", 2, "no world file at"),
        Bad("demo --out {}/d --set world.file={}/nowhere.toml", 2, "nowhere.toml"),
    ],
    ids=lambda bad: bad.words,
)  # fmt: skip
def test_a_wrong_command_or_recipe_is_told(bad: Bad, tmp_path: Path) -> None:
    refused(Bad(bad.words.replace("{}", "{0}"), bad.status, bad.told), tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[ppo]\nlearning_rat = 1.0\n", "did you mean 'learning_rate'?"),
        ("[ppo]\nsteps = '12'\n", "ppo.steps = '12' is invalid: must"),
        ("[ppo\n", "is not valid TOML"),
        ("sede = 3\n", "did you mean 'seed'?"),
        ("[model]\nprecision = 'float16'\n", "model.precision = 'float16' is invalid: must"),
    ],
)
def test_a_wrong_line_of_the_recipe_is_told(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "bridle.toml").write_text(text)
    refused(Bad("train sft --project {}", 2, told), tmp_path)


@pytest.mark.parametrize("words", ["demo --out {}/taken", "init {}/taken"])
def test_a_folder_with_other_things_is_left_alone(words: str, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/thesis.txt").write_text("mine")
    refused(Bad(words, 2, "is not empty"), tmp_path)
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["thesis.txt"]


def test_a_demo_of_another_seed_is_left_alone(project: Path) -> None:
    found = bridle("demo", "--out", project, "--seed", "5", *settings(PLAYGROUND))
    assert found.exit_code == 2 and "another recipe or seed" in complaint(found)


def test_a_project_is_not_made_twice(empty: Path) -> None:
    refused(Bad("init {}", 2, "is a project already"), empty)


@pytest.mark.parametrize("threads", ["abc", "0", "-1", "1.5"])
def test_a_thread_count_that_is_none_is_told(threads: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("tests.tiny_project", fromlist=["ALONE"]).ALONE, "BRIDLE_THREADS", threads)
    refused(
        Bad("demo --out {}/d", 2, f"BRIDLE_THREADS must be a whole number of at least 1, got {threads!r}"), tmp_path
    )


def test_a_place_where_nobody_can_label(project: Path) -> None:
    refused(Bad("label --project {} --root-path labels/", 2, "must be a path such as /labels"), project)
    refused(Bad("label --project {} --workers 2", 2, "need a store in PostgreSQL"), project)
    refused(Bad("label --project {} --trust-proxy nowhere", 2, "nowhere"), project)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("nothing", "no such command 'nothing'; `bridle --help` shows"),
        ("--nothing", "no such option '--nothing'; `bridle --help` shows"),
        ("train", "missing argument '{pretrain|sft|"),
        ("train nothing", "'nothing' is not a method; the methods are pretrain, sft"),
        ("train sft --nothing", "no such option '--nothing'; `bridle train --help` shows"),
        ("train sft more", "unexpected extra argument (more); `bridle train --help` shows"),
        ("train sft --set", "option '--set' requires an argument; `bridle train --help` shows"),
        ("evaluate", "missing argument 'A'; `bridle evaluate --help` shows"),
        ("evaluate a b --by me", "invalid value for '--by': 'me' is not one of 'gold', 'reward', "),
        ("import", "missing argument 'FILE'; `bridle import --help` shows"),
        ("init", "missing argument 'DIR'; `bridle init --help` shows"),
        ("demo --seed -1", "invalid value for '--seed': -1 is not in the range x>=0; `bridle demo --help` shows"),
        ("demo --seed one", "'one' is not a valid whole number; `bridle demo --help` shows"),
    ],
)
def test_what_the_command_line_does_not_know_is_told_in_a_sentence(words: str, told: str) -> None:
    found = bridle(*words.split())
    assert found.exit_code == 2 and complaint(found).startswith("bridle: ") and told in complaint(found)
    assert "Traceback" not in found.output and "Usage" not in found.output


def test_the_command_alone_shows_its_help() -> None:
    found = bridle()
    assert "Usage: bridle" in found.output and "bridle: " not in found.output


# --------------------------------------------------------------------------------------------- the work failed: 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "there is no file"),
        (b"", "no usable row"),
        (b"this is no JSON\nnor this\n", "no usable row"),
        (b'{"chosen": "x"}\n', "no usable row"),
        (b'{"a": 1}\n[]\n3\n', "no usable row"),
        (b"\x1f\x8bbroken gzip", "breaks off or is damaged"),
        (b"\xff\xfe\x00\x01", "no usable row"),
    ],
)
def test_a_file_that_cannot_be_imported_is_told(content: bytes | None, told: str, empty: Path) -> None:
    if content is not None:
        (empty / "pairs.jsonl").write_bytes(content)
    bad = Bad(f"import {empty / 'pairs.jsonl'} --project {{}}", 1, told)
    refused(bad, empty)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train pretrain", "bridle import FILE"),
        ("train sft", "bridle train pretrain"),
        ("train reward", "bridle train sft"),
        ("train ppo", "bridle train sft"),
        ("sample", "bridle train sft"),
        ("evaluate ppo", "bridle train ppo"),
        ("evaluate nothing", "no model at"),
        ("evaluate zzz", "none yet, and `bridle train pretrain` makes the first, called base"),
        ("evaluate pretrain", "none yet"),
        ("evaluate rewards", "none yet"),
        ("evaluate arithmetic", "bridle train grpo"),
        ("report", "report.html shows nothing yet, for no run of this project is finished; `bridle train METHOD`"),
    ],
)
def test_a_step_before_its_time_says_which_comes_first(words: str, told: str, empty: Path) -> None:
    refused(Bad(f"{words} --project {{}}", 1, told), empty)


def test_nothing_imported_is_told(empty: Path, finished_demo: Path) -> None:
    shutil.copytree(finished_demo / "models/base", empty / "models/base")
    shutil.copytree(finished_demo / "models/sft", empty / "models/sft")
    refused(Bad("train sft --project {}", 1, "holds no demonstrations or preferred answers"), empty)
    refused(Bad("sample --project {}", 1, "holds no"), empty)
    refused(Bad("train reward --project {}", 1, "holds no comparisons to learn from"), empty)
    refused(Bad("label --simulate --project {}", 2, "know the playground alone"), empty)


def test_comparing_before_sampling_is_told(finished_demo: Path, tmp_path: Path) -> None:
    done("init", tmp_path / "new", *settings(PLAYGROUND))
    shutil.copytree(finished_demo / "models", tmp_path / "new/models")
    refused(
        Bad("label --simulate --project {}", 1, "holds no answers to compare; `bridle sample` draws some"),
        tmp_path / "new",
    )


def test_answers_that_can_be_checked_are_counted_where_they_are_too_few(empty: Path, finished_demo: Path) -> None:
    """ "#### number" ends the answer, on a line of its own or not; all of them fell into one split."""
    answers = ["It is 4. #### 4", "So:\n#### 5", "#### 6, I think.", "It is 7.", "It is 8. #### eight"]
    rows = [{"prompt": f"Question {i}?", "completion": answer} for i, answer in enumerate(answers)]
    (empty / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done("import", empty / "rows.jsonl", "--project", empty, "--set", "data.heldout_share=0.0001")
    shutil.copytree(finished_demo / "models/sft", empty / "models/sft")
    told = "no held-out prompts whose answers can be checked: 5 solutions and written answers were looked at, and 2 give a number"
    refused(Bad("train grpo --project {}", 1, told), empty)


def test_a_model_of_the_users_is_taken_and_not_pretrained(project: Path) -> None:
    printed = done("train", "pretrain", "--project", project, "--set", f"model.path={project / 'models/sft'}")
    assert f"your model is taken as the base: {project / 'models/sft'}" in printed
    assert "None" not in printed and "steps" not in printed and "loss" not in printed


def test_what_was_not_measured_is_printed_as_that(capsys: pytest.CaptureFixture[str]) -> None:
    for as_json, printed in ((True, '{"ppo": {"kl_se": null}}\n'), (False, f"ppo\n  {'kl_se':<24} not measured\n")):
        print_metrics(Options(as_json=as_json), {"ppo": {"kl_se": math.nan}})
        assert capsys.readouterr().out == printed
    assert metric_lines({"a": {"temperature": None}}) == ["a", f"  {'temperature':<24} not measured"]


@pytest.mark.parametrize(
    ("source", "first"), [("playground", "bridle train pretrain"), ("store", "bridle import FILE")]
)
def test_a_new_project_is_told_what_comes_first(source: str, first: str, tmp_path: Path) -> None:
    assert done("init", tmp_path / "p", "--set", f"data.source={source}").endswith(f"&& {first}\n")


def test_a_report_of_runs_that_are_not_finished_names_them(project: Path) -> None:
    for path in project.glob("runs/*/result.json"):
        path.unlink()
    told = complaint(bridle("report", "--project", project))
    assert "no run of this project is finished; finish arithmetic-0001, " in told and "ppo-0001" in told


def test_ppo_before_the_reward_model_is_told(project: Path) -> None:
    shutil.rmtree(project / "models/reward")
    refused(Bad("train ppo --project {}", 1, "bridle train reward"), project)


def test_a_model_that_is_no_language_model_is_not_evaluated(project: Path) -> None:
    refused(Bad("evaluate reward --project {}", 1, "models/reward"), project)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("report runs/ppo-0009", "is not a run folder"),
        ("report models", "is not a run folder"),
        ("evaluate ppo rpo", "no model at"),
        ("evaluate zzz", "models/zzz; the project has arithmetic, base, dpo, grpo, ppo, sft, "),
        ("evaluate pretrain", "models/pretrain; the project has arithmetic, base, "),
        ("evaluate rewards", "models/rewards; the project has arithmetic, base, "),
        ("evaluate reward-2", "models/reward-2; the project has arithmetic, base, "),
    ],
)
def test_a_name_that_is_not_there_is_told(words: str, told: str, project: Path) -> None:
    refused(Bad(f"{words} --project {{}}", 2 if words.startswith("report") else 1, told), project)


def test_gold_is_asked_for_where_there_is_none(empty: Path, finished_demo: Path) -> None:
    done("import", preferences(empty / "pairs.jsonl"), "--project", empty)
    shutil.copytree(finished_demo / "models/base", empty / "models/base")
    shutil.copytree(finished_demo / "models/sft", empty / "models/sft")
    refused(Bad("evaluate base sft --by gold --project {}", 2, "gold needs the playground"), empty)
    told = complaint(bridle("evaluate", "base", "sft", "--by", "gold", "--project", empty))
    assert "`--by reward` judges by the reward model" in told
    refused(Bad("evaluate base sft --project {}", 1, "models/reward; make it with `bridle train reward`"), empty)
    assert not list(empty.glob("runs/evaluate-*")), "no model answers for a comparison that cannot be made"


@pytest.mark.parametrize("name", ["", ".", "..", "../etc", "sft/", "/etc", "a\\b", ".sft", "a\nb", "s*", "x" * 300])
def test_a_model_is_named_and_not_pointed_at(name: str, project: Path) -> None:
    runs = sorted(project.glob("runs/*"))
    shown = repr(name[:80])
    for words in ([name], ["sft", name], [name, "sft"]):
        found = bridle("evaluate", *words, "--project", project)
        assert found.exit_code == 2 and f"{shown} is not the name of a model" in complaint(found), complaint(found)
    for setting in ("ppo.start", "ppo.reference", "grpo.reference", "dpo.start", "dpo.reference") if name else ():
        found = bridle(
            "train", setting.partition(".")[0], "--project", project, "--set", f"{setting}={json.dumps(name)}"
        )
        assert found.exit_code == 2 and f"{shown} is not the name of a model" in complaint(found), complaint(found)
    assert sorted(project.glob("runs/*")) == runs


def test_what_is_missing_of_a_comparison_is_told_before_anything_is_answered(project: Path) -> None:
    for run in project.glob("runs/evaluate-*"):
        shutil.rmtree(run)
    for words, told in {
        "ppo reward": "which scores text and writes none",
        "ppo nothing": "no model at",
        "nothing ppo": "no model at",
    }.items():
        refused(Bad(f"evaluate {words} --project {{}}", 1, told), project)
    shutil.rmtree(project / "models/reward")
    refused(Bad("evaluate ppo sft --by reward --project {}", 1, "make it with `bridle train reward`"), project)
    assert not list(project.glob("runs/evaluate-*"))


def test_a_comparison_that_fails_loses_no_evaluation(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_in_common(*arguments: object) -> None:
        raise ModelError("nothing in common")

    monkeypatch.setattr("bridle.stages.evaluate.compare", nothing_in_common)
    found = bridle("evaluate", "ppo", "sft", "--json", "--project", project)
    assert found.exit_code == 1 and "nothing in common" in complaint(found)
    assert {name: shown["prompts"] for name, shown in json.loads(found.stdout).items()} == {"ppo": 24, "sft": 24}


def test_a_reward_model_where_one_must_answer_ends_before_a_run_begins(project: Path) -> None:
    runs = sorted(project.glob("runs/*"))
    for words in ("evaluate reward", "train ppo --set ppo.start=reward", "train dpo --set dpo.reference=reward-slim"):
        refused(Bad(f"{words} --project {{}}", 1, "which scores text and writes none"), project)
    shutil.copytree(project / "models/reward-slim", project / "models/sft", dirs_exist_ok=True)
    for words in ("sample", "label --simulate", "train ppo", "train dpo", "train reward"):
        refused(Bad(f"{words} --project {{}}", 1, "which scores text and writes none"), project)
    assert sorted(project.glob("runs/*")) == runs


def test_a_missing_member_of_an_ensemble_is_made_with_the_others(project: Path) -> None:
    told = "models/reward-member-2; make it with `bridle train reward`"
    refused(Bad("train ppo --set reward.members=2 --project {}", 1, told), project)


def test_a_run_is_found_by_its_name_or_path_from_anywhere(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "elsewhere"  # where another project's run of that name lies, which is not what --project says
    shutil.copytree(project / "runs/sft-0001", other / "runs/sample-0001")
    monkeypatch.chdir(other)
    for named in ("sample-0001", "runs/sample-0001", project / "runs/sample-0001", "../project/runs/sample-0001"):
        printed = done("report", named, "--project", project)
        assert Path(printed.removeprefix("wrote ").strip()).resolve() == project / "runs/sample-0001/report.html"
    for named in ("ppo", "runs/ppo"):
        refused(
            Bad(f"report {named} --project {{}}", 2, "is not a run folder; the last run of ppo is ppo-0001"), project
        )
    refused(Bad("report nothing --project {}", 2, "is not a run folder; those of this project are in"), project)


def test_a_report_is_written_into_no_other_project(project: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(project, tmp_path / "another"))
    written = sorted(path.stat().st_mtime_ns for path in other.rglob("*"))
    (project / "runs/ppo-0009").symlink_to(other / "runs/ppo-0001")
    for named in (
        other / "runs/ppo-0001",
        "../another/runs/ppo-0001",
        "../../another/runs/ppo-0001",
        "ppo-0009",
        "..",
        "../x",
    ):
        found = bridle("report", named, "--project", project)
        assert found.exit_code == 2 and "is not a run" in complaint(found), complaint(found)
    told = complaint(bridle("train", "ppo", "--project", project))
    assert "ppo-0009 is a link, and bridle writes into runs of this project alone" in told
    assert sorted(path.stat().st_mtime_ns for path in other.rglob("*")) == written


def test_a_training_by_a_name_that_none_can_have_makes_nothing(project: Path) -> None:
    work = Work(Project.find(project), Progress(write=lambda text: None, live=False))
    there = sorted(project.rglob("*"))
    for method in ("sft", "dpo", "ppo", "grpo"):
        with pytest.raises(UsageError, match="'../mine' is not the name of a model"):
            METHODS[method].train(work, name="../mine")
    work.close()
    assert sorted(project.rglob("*")) == there


@pytest.mark.parametrize("setting", ["model.path", "reward.path", "world.file"])
def test_a_place_with_a_character_that_no_path_has_is_refused(setting: str, project: Path) -> None:
    found = bridle("train", "pretrain", "--project", project, "--set", f'{setting}="a\\u0000b"')
    assert found.exit_code == 2 and f"{setting} = 'a\\x00b' is invalid: must match" in complaint(found)


# ----------------------------------------------------------------------------------------------- models of others


def missing_folder(folder: Path) -> None:
    pass


def no_model(folder: Path) -> None:
    folder.mkdir()


def unknown_type(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "mine"}')
    (folder / "model.safetensors").write_bytes(b"")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def truncated(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (missing_folder, "no model folder at"), (no_model, "has no config.json"), (unknown_type, "model_type 'mine'"),
        (no_tokenizer, "no tokenizer.json"), (truncated, "truncated or corrupted"), (broken_config, "not valid JSON"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_used_is_told(
    damage: Callable[[Path], None], told: str, empty: Path, finished_demo: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    if damage in (no_tokenizer, truncated, broken_config):
        shutil.copytree(finished_demo / "models/base", mine)
    damage(mine)
    done("import", preferences(empty / "pairs.jsonl"), "--project", empty)
    refused(Bad(f"train pretrain --project {{}} --set model.path={mine}", 1, told), empty)
    assert not (empty / "models/base").exists()


def change_json(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


FORGETFUL = "{% for m in messages %}{% if loop.last %}{{ m.content }}{% endif %}{% endfor %}"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def forgetful_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(FORGETFUL)


def template_of_another(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(CHATML)


def broken_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}")


def start_token_twice(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text("{{ bos_token }}" + path.read_text())


def no_stop_token(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", eos_token=None)
    change_json(folder / "generation_config.json", eos_token_id=None)
    change_json(folder / "config.json", eos_token_id=None)


def unknown_stop_token(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", eos_token="</s>")


def tokenizer_of_another(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    whole = json.loads(tokenizer.to_str())
    whole["model"]["vocab"] |= {
        f"word{i}": len(whole["model"]["vocab"]) + i for i in range(100)
    }  # of its own, not added to it
    path.write_text(json.dumps(whole))


def adapter(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base", "peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(b"")


def reward_head(folder: Path) -> None:
    change_json(folder / "config.json", architectures=["Qwen3ForSequenceClassification"], num_labels=1)


def no_head(folder: Path) -> None:
    """As `AutoModel.from_pretrained(…).save_pretrained(…)` leaves it."""
    change_json(folder / "config.json", architectures=["Qwen3Model"], tie_word_embeddings=False)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (forgetful_template, "not prefix-preserving"), (broken_template, "the chat template could not render"),
        (template_of_another, "closes an answer with '<|im_end|>'"), (no_stop_token, "names no stop token; set eos_token"),
        (unknown_stop_token, "names the stop token '</s>', which its tokenizer does not have"),
        (tokenizer_of_another, "they are not of one model"),
        (adapter, "is a LoRA adapter of 'some/base', which is not a folder here; write where its base lies"),
        (reward_head, "which scores text and writes none"), (no_head, "a trunk without a language model's head"),
    ],
)  # fmt: skip
def test_a_model_with_a_mistake_of_its_maker_is_told(
    damage: Callable[[Path], None], told: str, empty: Path, finished_demo: Path, tmp_path: Path
) -> None:
    mine = Path(shutil.copytree(finished_demo / "models/base", tmp_path / "mine"))
    damage(mine)
    refused(Bad(f"train pretrain --project {{}} --set model.path={mine}", 1, told), empty)
    assert not (empty / "models/base").exists()


def endless_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ 'a' * 10 ** 12 }}")


def of_another_width(folder: Path) -> None:
    change_json(folder / "config.json", hidden_size=10**12)


def of_too_many_layers(folder: Path) -> None:
    change_json(folder / "config.json", num_hidden_layers=10**9)


def nested(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def epsilon_of_no_number(folder: Path) -> None:
    change_json(folder / "config.json", rms_norm_eps=math.nan)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (endless_template, "mine: the chat template needs more than 512 MiB of memory"),
        (of_another_width, "hidden_size = 1000000000000, where the weights have"),
        (of_too_many_layers, "num_hidden_layers = 1000000000, where the weights are"),
        (nested, "its values nest too deep"), (epsilon_of_no_number, "it holds NaN where a number is needed"),
        (truncated, "truncated or corrupted"), (template_of_another, "closes an answer with '<|im_end|>'"),
    ],
)  # fmt: skip
def test_a_model_that_could_not_be_used_makes_no_project(
    damage: Callable[[Path], None], told: str, finished_demo: Path, tmp_path: Path
) -> None:
    damage(Path(shutil.copytree(finished_demo / "models/base", tmp_path / "mine")))
    refused(Bad("init {0}/p --model {0}/mine", 1, told), tmp_path)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("set_", "told"),
    [
        ("model.layers=1000000", "GiB of memory, and this machine has"),
        ("model.hidden_size=1000000", "GiB of memory, and this machine has"),
        ("model.max_positions=1000000", "GiB of memory, and this machine has"),
        ("model.layers=1000000000", "model.layers = 1000000000 is invalid: must be less"),
        ("seed=" + "9" * 5000, "too many digits"),
        ("model.layers=" + "[" * 3000, "nest too deep"),
    ],
)
def test_a_model_that_no_machine_holds_begins_no_run(
    set_: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done("init", tmp_path / "p", *settings(PLAYGROUND))
    monkeypatch.setattr("bridle.compute.shapes.os.sysconf", lambda name: 10**4)  # 100 MB
    status = 1 if "machine" in told else 2
    refused(
        Bad(f"train pretrain --project {{}}/p --set model.heads=1 --set model.kv_heads=1 --set {set_}", status, told),
        tmp_path,
    )
    assert not list((tmp_path / "p/runs").glob("*"))


def test_an_adapter_is_no_model_to_begin_with(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    adapter(tmp_path / "mine")
    refused(Bad("init {0}/p --model {0}/mine", 2, "is a LoRA adapter and not a whole model"), tmp_path)


def test_a_template_that_writes_the_start_token_twice_is_told_before_training(project: Path) -> None:
    start_token_twice(project / "models/sft")
    shutil.rmtree(project / "models/ppo")
    taken = "--set guard.changed_models=register"
    refused(Bad(f"train ppo {taken} --project {{}}", 1, "writes '<|doc|>' twice"), project)
    assert not (project / "models/ppo").exists()


def test_a_pad_token_that_is_the_stop_token_changes_nothing(project: Path, finished_demo: Path) -> None:
    """As in many a base model. Masks come from lengths, so the stop token is learnt all the same, to the last bit."""
    config = json.loads((project / "models/base/tokenizer_config.json").read_text())
    change_json(project / "models/base/tokenizer_config.json", pad_token=config["eos_token"])
    done("train", "sft", "--project", project, "--set", "guard.changed_models=register")
    ours, theirs = (load_file(path / "models/sft/model.safetensors") for path in (project, finished_demo))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_language_model_in_the_reward_models_place_is_told(project: Path) -> None:
    shutil.rmtree(project / "models/reward")
    shutil.copytree(project / "models/sft", project / "models/reward")
    refused(Bad("train ppo --project {}", 1, "has no bridle_reward.json"), project)


# ---------------------------------------------------------------------------------------------- rows that cannot be used


def taught(project: Path, finished_demo: Path, rows: list[dict[str, Any]]) -> Path:
    """A project with a base, an SFT model and imported rows."""
    for name in ("base", "sft"):
        shutil.copytree(finished_demo / "models" / name, project / "models" / name)
    (project / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done("import", project / "rows.jsonl", "--project", project)
    return project


def talk(i: int) -> str:
    return f"Tell me about the moon, please. This is question {i}."


GOOD = [{"prompt": talk(i), "chosen": f"Gladly, {i} times.", "rejected": "No."} for i in range(20)]
UNSPEAKABLE = (
    "<|doc|>\U00100000"  # a special token's text beside a character that marks such tokens: cannot be encoded as text
)
SPELT = [{"prompt": f"{UNSPEAKABLE}{talk(i)}", "chosen": "Gladly.", "rejected": "No."} for i in range(20, 50)]
LONG = [{"prompt": talk(i), "chosen": "Gladly. " * 400, "rejected": "No."} for i in range(20, 50)]
ALIKE = [{"prompt": talk(i), "chosen": f"Gladly, {i}.", "rejected": f"Gladly, {i}.<|end|>"} for i in range(20, 50)]


@pytest.mark.parametrize(
    ("method", "rows", "told"),
    [
        ("sft", SPELT, "for a special token spelt in the text, which cannot"),
        ("dpo", SPELT, "for a special token spelt in the text, which cannot"),
        ("sft", LONG, "for an answer longer than the context"),
        ("reward", LONG, "for an answer longer than the context"),
        ("dpo", ALIKE, "for answers of the same tokens"),
    ],
    ids=["spelt-sft", "spelt-dpo", "long-sft", "long-reward", "alike-dpo"],
)
def test_data_of_which_most_cannot_be_used_ends_before_training(
    method: str, rows: list[dict[str, Any]], told: str, empty: Path, finished_demo: Path
) -> None:
    project = taught(empty, finished_demo, [*GOOD, *rows])
    refused(Bad(f"train {method} --project {{}}", 1, told), project)
    assert "data.drop_limit = 0.5 allows" in bridle("train", method, "--project", project).stderr
    run = project / f"runs/{method}-0001"
    assert not (run / "metrics.jsonl").exists() and not (run / "checkpoints").exists()
    [counted] = json.loads((run / "data.json").read_text()).values()
    assert sum(counted["dropped"].values()) > 0.5 * counted["rows"] and counted["examples"]


def test_what_is_left_out_is_said_kept_and_reported(empty: Path, finished_demo: Path) -> None:
    long_talk = [{"prompt": "And then? " * 300, "chosen": "Gladly.", "rejected": "No."}]
    project = taught(empty, finished_demo, [*GOOD, *LONG, *long_talk])
    found = bridle(
        "train", "reward", "--project", project, "--set", "data.drop_limit=0.9", "--set", "reward.slim=false"
    )
    assert found.exit_code == 0, found.stderr
    counted = json.loads((project / "runs/reward-0001/data.json").read_text())["comparisons"]
    assert counted["rows"] == counted["kept"] + counted["dropped"]["an answer longer than the context"]
    assert counted["cut"] == {"the prompt cut from the left": 1}
    assert set(counted["examples"]) == {*counted["cut"], *counted["dropped"]}
    assert "dropped: an answer longer than the context, such as “Tell me about the moon" in found.stderr
    done("report", project / "runs/reward-0001", "--project", project)
    page = (project / "runs/reward-0001/report.html").read_text()
    assert "an answer longer than the context" in page and "the prompt cut from the left" in page


def test_prompts_beyond_the_context_end_before_training(project: Path) -> None:
    for method in ("ppo", "grpo"):
        shutil.rmtree(project / f"runs/{method}-0001")
        more = ["--set", "sampling.max_new_tokens=511"]
        found = bridle("train", method, "--project", project, *more)
        assert found.exit_code == 1 and "none of 24 prompts leaves room for 511 new tokens" in complaint(found)
        assert not list((project / "runs").glob(f"{method}-*/metrics.jsonl"))


@pytest.mark.parametrize(
    ("rewards", "told"),
    [
        (lambda p, c: torch.zeros(len(c), 1), "8 misshapen: a tensor of shape [1]"),
        (lambda p, c: 1.0, "gave a float for 8 answers; it must give a list with a number for each"),
        (lambda p, c: [1.0], "gave 1 scores for 8 answers"),
        (lambda p, c: [float("nan")] * len(c), "none of 8 answers got a finite reward to learn from (8 nan)"),
    ],
)
def test_a_reward_function_of_the_wrong_shape_ends_before_training(rewards: Any, told: str, project: Path) -> None:
    shutil.rmtree(project / "models/ppo")
    work = Work(Project.find(project), Progress(write=lambda text: None, live=False))
    try:
        with pytest.raises(TrainingStopped) as caught:
            METHODS["ppo"].train(work, name="mine", reward=rewards)
    finally:
        work.close()
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert not (project / "runs/mine-0001/metrics.jsonl").exists() and not (project / "models/mine").exists()


@pytest.mark.parametrize(
    "sizes",
    [{"model.hidden_size": 30, "model.heads": 4}, {"model.hidden_size": 36, "model.heads": 3, "model.kv_heads": 2}],
)
def test_sizes_that_do_not_fit_are_told(sizes: dict[str, Any], tmp_path: Path) -> None:
    done("init", tmp_path / "p", *settings({**PLAYGROUND, "data.pretrain_tokens": 1000, **sizes}))
    refused(Bad("train pretrain --project {}/p", 1, "must be a multiple of"), tmp_path)


def test_a_recipe_is_mended_and_the_run_that_failed_does_not_stand_in_the_way(tmp_path: Path) -> None:
    few = {**PLAYGROUND, "data.pretrain_tokens": 1000}
    done("init", tmp_path / "p", *settings({**few, "model.hidden_size": 30, "model.heads": 4}))
    assert bridle("train", "pretrain", "--project", tmp_path / "p").exit_code == 1
    done("train", "pretrain", "--project", tmp_path / "p", "--set", "model.hidden_size=32")


# ------------------------------------------------------------------------------------- a full disk, a second process


def full_disk(patch: pytest.MonkeyPatch, call: str, part: str) -> None:
    """From now on the disk is full for whatever has `part` in its path."""
    plain = os.__dict__[call]

    def fail(first: Any, *others: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first)
        if part in path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(first, *others)

    patch.setattr(os, call, fail)
    if call == "replace":  # nor can two folders be swapped then
        patch.setattr("bridle.core.files.swap", lambda new, path: False)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("part", ["models/", "checkpoints/"])
def test_a_full_disk_leaves_the_old_model_and_the_way_on(
    call: str, part: str, project: Path, finished_demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights(project, "sft")
    with monkeypatch.context() as patch:
        full_disk(patch, call, part)
        found = bridle("train", "sft", "--project", project)
    assert found.exit_code == 1 and "no space left while saving" in complaint(found)
    assert weights(project, "sft") == before
    assert sorted(path.name for path in (project / "models").iterdir()) == sorted(
        path.name for path in (finished_demo / "models").iterdir()
    )
    done("train", "sft", "--project", project)
    assert weights(project, "sft") == before  # the same recipe once more: the same bytes
    assert not (project / "runs/sft-0003").exists()


@pytest.mark.parametrize("part", ["answers.jsonl", "result.json", "parents.json"])
def test_a_full_disk_while_figures_are_saved_is_told(part: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(project / "runs/evaluate-ppo-0001")
    with monkeypatch.context() as patch:
        full_disk(patch, "fsync", part)
        found = bridle("evaluate", "ppo", "--project", project)
    assert found.exit_code == 1 and "no space left while saving" in complaint(found)
    done("evaluate", "ppo", "--project", project)


@pytest.fixture
def busy(project: Path) -> Iterator[Path]:
    """A project in whose unfinished PPO run another process is at work."""
    run = project / "runs/ppo-0001"
    (run / "result.json").unlink()
    with open(run / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield project


def test_two_processes_do_not_work_in_one_run(busy: Path) -> None:
    before = (busy / "runs/ppo-0001/metrics.jsonl").read_bytes()
    refused(Bad("train ppo --project {}", 2, "another process is at work in"), busy)
    assert (busy / "runs/ppo-0001/metrics.jsonl").read_bytes() == before


def test_ctrl_c_before_a_run_began_ends_in_130(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bridle.stages.workspace.require_head", interrupted)
    found = bridle("train", "sft", "--project", project)
    assert found.exit_code == 130 and "run the same command again to resume" in complaint(found)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_into_a_destructor_ends_the_verb_all_the_same(
    number: signal.Signals, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python cannot hand on what is raised there: it would print a traceback, and go on."""

    class Closing:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            time.sleep(0.001)  # the handler runs in here

    def interrupted(*arguments: object) -> None:
        Closing()
        time.sleep(60)  # until it comes again
        raise AssertionError("it went on")

    monkeypatch.setattr("bridle.stages.registry.Registry.verify", interrupted)
    found = bridle("train", "sft", "--project", project)
    assert found.exit_code == 130 and "run the same command again to resume" in complaint(found)
    assert "Traceback" not in found.stderr and "ignored" not in found.stderr


def test_a_signal_when_all_is_done_leaves_no_traceback() -> None:
    code = (
        "import atexit, os, signal, sys; from bridle.cli.__main__ import run; sys.argv = ['bridle', '--version']\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler); atexit.register(os.kill, os.getpid(), signal.SIGINT); run()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_a_run_began_ends_in_130(
    number: signal.Signals, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(number)

    def interrupted(*arguments: object) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr("bridle.stages.registry.Registry.verify", interrupted)
    found = bridle("train", "sft", "--project", project)
    assert found.exit_code == 130 and "run the same command again to resume" in complaint(found)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("words", [["init", "p"], ["--help"], ["train", "--help"], ["init", "p", "--set", "sede=1"]])
def test_an_output_that_nobody_reads_ends_quietly(words: list[str], tmp_path: Path) -> None:
    """`bridle … | head -0`, both streams into one pipe or standard output alone: no traceback, and the status of the work."""
    for both in (False, True):
        shutil.rmtree(tmp_path / "p", ignore_errors=True)
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, "-m", "bridle.cli", *words]
        found = subprocess.run(command, stdout=writing, stderr=writing if both else subprocess.PIPE, cwd=tmp_path)
        os.close(writing)
        wrong = "sede=1" in words
        assert found.returncode == (2 if wrong else 0)
        assert both or (
            found.stderr.count(b"\n") == 1 and b"did you mean" in found.stderr if wrong else not found.stderr
        )
        assert (tmp_path / "p/bridle.toml").exists() == (words == ["init", "p"])


def test_a_result_that_finds_no_room_is_told(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "bridle.cli", "init", str(tmp_path / "p")]
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert found.returncode == 1 and found.stderr == "bridle: No space left on device\n"


def test_metrics_that_nobody_reads_lose_no_evaluation(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*arguments: object, **named: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with monkeypatch.context() as patch:
        patch.setattr("bridle.cli.options.click.echo", closed)
        assert bridle("evaluate", "reward-shuffled", "--json", "--project", project).exit_code == 1  # no language model
        found = bridle("evaluate", "ppo", "sft", "--json", "--project", project)
    assert found.exit_code == 0 and not found.output


def test_a_fault_of_ours_is_told_as_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("it broke")

    monkeypatch.setattr("bridle.stages.workspace.require_head", broken)
    found = bridle("train", "sft", "--project", project)
    assert found.exit_code == 1 and "unexpected RuntimeError: it broke; run again with --debug" in complaint(found)
    monkeypatch.setattr("bridle.stages.workspace.require_head", lambda *_: __import__("no_such_package.part"))
    found = bridle("train", "sft", "--project", project)
    assert found.exit_code == 1 and "no_such_package is not installed, and `bridle train` needs it" in complaint(found)


def test_answers_may_hold_any_character(project: Path) -> None:
    """A byte-level model may write U+2028 or NEL, which Python's splitlines takes for the end of a line."""
    path = project / "runs/evaluate-ppo-0001/answers.jsonl"
    lines = [json.loads(line) for line in path.read_text().split("\n") if line]
    lines[0]["answer"] = "one\u2028two\x85three"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    assert "n                        24" in done("evaluate", "ppo", "sft", "--project", project)
    done("report", "--project", project)


def test_prompts_without_room_end_reward_training_before_it_began(project: Path) -> None:
    shutil.rmtree(project / "runs/reward-0001")
    found = bridle("train", "reward", "--project", project, "--set", "sampling.max_new_tokens=511")
    assert found.exit_code == 1 and "none of 24 prompts leaves room" in complaint(found)
    assert not (project / "runs/reward-0001/metrics.jsonl").exists()
