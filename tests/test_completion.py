"""What a shell offers, as click asks for it, and in a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from bridle.cli.main import main
from tests.tiny_project import done

COMMAND = f"{sys.executable} -m bridle.cli"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    done("init", tmp_path / "p")
    for name, files in {"sft": ["config.json"], "slim": [], "reward": ["config.json", "bridle_reward.json"]}.items():
        (tmp_path / "p/models" / name).mkdir(parents=True)
        for file in files:
            (tmp_path / "p/models" / name / file).write_text("{}")
    for run in ("sft-0001", "ppo-0001"):
        (tmp_path / "p/runs" / run).mkdir(parents=True)
        (tmp_path / "p/runs" / run / "parents.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "p")
    return tmp_path / "p"


def offered(*words: str) -> list[str]:
    *args, incomplete = words
    complete = ShellComplete(main, {}, "bridle", "_BRIDLE_COMPLETE")
    return [item.value for item in complete.get_completions(args, incomplete)]


def test_verbs_and_options_are_offered() -> None:
    assert offered("sw") == ["sweep"] and offered("models", "sh") == ["show"]
    assert {"--seeds", "--method", "--dry-run"} <= set(offered("sweep", "--"))


def test_methods_are_offered_without_torch() -> None:
    assert offered("train", "re") == ["reward", "rebel"]
    assert offered("sweep", "--method", "pp") == ["ppo"]
    code = "import sys\nfrom tests.test_completion import offered\noffered('train', '--set', 'ppo.')\nprint('torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("evaluate", ""), ["sft"]),
        (("evaluate", "sft", "s"), ["sft"]),
        (("export", ""), ["reward", "sft"]),
        (("push", "r"), ["reward"]),
        (("models", "show", "r"), ["reward"]),
        (("models", "promote", ""), ["sft"]),
        (("serve", "x"), []),
        (("sample", "--model", "s"), ["sft"]),
        (("report", ""), ["ppo-0001", "sft-0001"]),
    ],
)
def test_models_and_runs_of_the_project_are_offered(
    project: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], names: list[str]
) -> None:
    assert offered(*words) == names
    monkeypatch.chdir(project.parent)
    assert offered(*words) == []
    verb = 2 if words[0] == "models" else 1
    assert offered(*words[:verb], "--project", str(project), *words[verb:]) == names


def test_a_look_leaves_a_project_as_it_is(project: Path) -> None:
    left = project / "models/.sft.1234abcd.new"  # which a verb would tidy away
    left.mkdir()
    (project / "bridle.toml").write_text("[[[")
    assert offered("evaluate", "s") == ["sft"] and left.is_dir()


def test_settings_are_offered_with_what_they_mean_and_their_few_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = ShellComplete(main, {}, "bridle", "_BRIDLE_COMPLETE")
    (found,) = complete.get_completions(["train", "ppo", "--set"], "ppo.kl_tar")
    assert (found.value, (found.help or "")[:15]) == ("ppo.kl_target=", "nats per answer")
    assert offered("train", "dpo", "--set", "dpo.loss=") == ["dpo.loss=dpo", "dpo.loss=ipo", "dpo.loss=simpo"]
    assert offered("train", "dpo", "--set", "reward.slim=f") == ["reward.slim=false"]
    assert offered("train", "dpo", "--set", "sft.weight_decay=") == ["sft.weight_decay=auto"]
    assert offered("train", "dpo", "--set", "dpo.beta=") == offered("train", "dpo", "--set", "no.such=") == []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ppo.toml").touch()
    assert offered("sweep", "ppo.t") == ["ppo.toml", "ppo.temperature="]
    assert offered("sweep", "ppo.toml", "dpo.gam") == ["dpo.gamma="]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(shell: str) -> None:
    environment = {**os.environ, "_BRIDLE_COMPLETE": f"{shell}_source"}
    script = subprocess.run(COMMAND.split(), env=environment, capture_output=True, text=True, check=True).stdout
    assert "bridle" in script and f"_BRIDLE_COMPLETE={shell}_complete" in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_offers_a_setting_without_a_space_behind_it(project: Path) -> None:
    program = project / "bridle"
    program.write_text(f'#!/bin/sh\nexec {COMMAND} "$@"\n')
    program.chmod(0o755)
    asked = (
        "compopt() { echo compopt $*; }; COMP_WORDS=(bridle train ppo --set ppo.kl_ta); COMP_CWORD=4; "
        'eval "$(_BRIDLE_COMPLETE=bash_source bridle)"; _bridle_completion bridle; echo ${COMPREPLY[*]}'
    )
    environment = {**os.environ, "PATH": f"{project}:{os.environ['PATH']}"}
    told = subprocess.run(["bash", "-c", asked], env=environment, capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == ["compopt -o nospace", "ppo.kl_target="]
