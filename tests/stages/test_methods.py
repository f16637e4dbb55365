"""The table of methods: who begins where, who is held to what, and that a row is all that a method needs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import bridle as bridle_api
from bridle.cli.train import train as train_verb
from bridle.core.errors import UsageError
from bridle.models.files.new_tokenizer import train_tokenizer
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe, sections
from bridle.report.stages import STAGES
from bridle.stages.methods import METHODS
from bridle.stages.practice import practise
from bridle.stages.workspace import Method, Work
from bridle.training import rebel
from tests.models.tiny import TEXTS
from tests.tiny_project import SHAPE, bridle, complaint, done, metrics, preferences, result, settings, weights

SMALL: dict[str, Any] = {
    **SHAPE, "data.heldout_share": 0.4, "sft.epochs": 1, "ppo.steps": 2, "ppo.kl_target": 0.0, "sampling.max_new_tokens": 12,
    "data.pretrain_tokens": 20_000, "reward.slim": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a base, an SFT model, a reward model and a policy of PPO."""
    folder = tmp_path_factory.mktemp("methods")
    project = folder / "project"
    done("init", project, *settings(SMALL))
    done("import", preferences(folder / "pairs.jsonl"), "--project", project)
    for stage in ("pretrain", "sft", "reward", "ppo"):
        done("train", stage, "--project", project)
    return project


@pytest.fixture
def project(walked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(walked, tmp_path / "project"))


@pytest.fixture(scope="module")
def strayed(walked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a policy of PPO that went somewhere."""
    project = Path(shutil.copytree(walked, tmp_path_factory.mktemp("strayed") / "project"))
    with Quiet(project, {"ppo.learning_rate": 3e-2, "ppo.kl_coef": 0.0}) as work:
        METHODS["ppo"].train(work, name="ppo")
    return project


def parents(project: Path, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((project / "runs" / run / "parents.json").read_text())
    return found


def test_every_method_has_settings_a_title_and_a_name_of_its_own() -> None:
    assert all(method.section in sections() and method.title for method in METHODS.values())
    assert [name for name, method in METHODS.items() if method.name != name] == []
    assert len({method.title for method in METHODS.values()}) == len(METHODS)


def test_a_row_of_the_table_is_all_that_a_method_needs(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REBEL's loop under another name: a stage of a project, a call from Python, a section of the report."""
    monkeypatch.setitem(METHODS, "mine", Method("mine", "rebel", "Mine: a method of one's own", practise, rebel.train))
    with Quiet(project, {}) as work:
        result = METHODS["mine"].train(work)
    assert result["steps"] == 2 and weights(project, "mine") != weights(project, "sft")
    model = bridle_api.load(project / "models/sft", precision="float32")
    found = bridle_api.tune(
        "mine", model, ["Tell me about a cat."], lambda prompts, answers: [float(len(a)) for a in answers], steps=1,
        max_new_tokens=8, on_log=lambda *_: None,
    )  # fmt: skip
    assert found["steps"] == 1
    with pytest.raises(UsageError, match="'mina' is not a method that `tune` can run; did you mean 'mine'"):
        bridle_api.tune("mina", model, ["Why?"], lambda prompts, answers: [0.0])
    assert set(METHODS) - {"mine"} <= set(STAGES)


def test_a_project_as_it_was_begins_from_sft_and_notes_it_as_ever(project: Path) -> None:
    noted = parents(project, "ppo-0001")
    assert (
        noted["sft"] == result(project / "runs/sft-0001")["model"] and "start" not in noted and "reference" not in noted
    )


@pytest.mark.parametrize(
    ("method", "section"),
    [("ppo", "ppo"), ("grpo", "grpo"), ("rloo", "rloo"), ("rebel", "rebel"), ("best-of-n", "rejection")],
)
def test_a_policy_begins_from_any_model_and_is_held_to_any_other(
    method: str, section: str, strayed: Path, tmp_path: Path
) -> None:
    """From PPO's policy, held to SFT: at the first step it is as far from SFT as PPO had come."""
    project = Path(shutil.copytree(strayed, tmp_path / "project"))
    if section == "grpo":
        more = {"grpo.scored_by": "reward"}
    else:
        more = {}
    far = {**more, f"{section}.start": "ppo", f"{section}.reference": "sft", f"{section}.learning_rate": 0.0}
    if section == "ppo":
        far["ppo.critic_learning_rate"] = 0.0
    done("train", method, "--project", project, *settings(far))
    run = sorted((project / "runs").glob(f"{method}-*"))[-1].name
    noted = parents(project, run)
    assert noted["start"] == result(project / "runs/ppo-0002")["model"]
    assert noted["reference"] == result(project / "runs/sft-0001")["model"] and "sft" not in noted
    assert metrics(project / "runs" / run)[0]["kl"] > 0.2, "measured against SFT"
    near = {**far, f"{section}.reference": ""}
    done("train", method, "--project", project, *settings(near))
    run = sorted((project / "runs").glob(f"{method}-*"))[-1].name
    assert "reference" not in parents(project, run) and abs(metrics(project / "runs" / run)[0]["kl"]) < 1e-3


def test_dpo_begins_from_any_model(project: Path) -> None:
    done("train", "dpo", "--project", project, *settings({"dpo.start": "base", "dpo.reference": "sft"}))
    noted = parents(project, "dpo-0001")
    assert noted["start"] == result(project / "runs/pretrain-0001")["model"] and "reference" in noted


def test_dpo_looks_at_no_answers_where_it_is_not_to(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Work, "answer", None)  # nobody calls it, so no engine packs a copy of the weights
    done("train", "dpo", "--project", project, *settings({"dpo.observe_every": 0}))
    assert "kl" not in result(project / "runs/dpo-0001")


def test_simpo_is_held_by_no_reference(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    plain = Work.load_policy

    def load_policy(work: Work, name: str, kept: Path | None = None, frozen: bool = False) -> Any:
        loaded.append(name)
        return plain(work, name, kept, frozen)

    monkeypatch.setattr(Work, "load_policy", load_policy)
    before = weights(project, "sft")
    done("train", "dpo", "--project", project, *settings({"dpo.loss": "simpo", "dpo.beta": 2.0, "dpo.gamma": 1.0}))
    assert loaded == ["sft"], "the policy alone"
    assert weights(project, "dpo") != before and not (project / "cache").exists()
    assert "chosen_moved" not in metrics(project / "runs/dpo-0001")[0]


def test_orpo_may_begin_from_the_base_and_is_held_by_no_reference(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    plain = Work.load_policy

    def load_policy(work: Work, name: str, kept: Path | None = None, frozen: bool = False) -> Any:
        loaded.append(name)
        return plain(work, name, kept, frozen)

    monkeypatch.setattr(Work, "load_policy", load_policy)
    before = weights(project, "base")
    found = json.loads(done("train", "orpo", "--project", project, "--json", *settings({"orpo.start": "base"})))
    assert loaded == ["base"], "the policy alone"
    assert weights(project, "orpo") != before and not (project / "cache").exists()
    noted, line = parents(project, "orpo-0001"), metrics(project / "runs/orpo-0001")[0]
    assert noted["start"] == result(project / "runs/pretrain-0001")["model"] and "reference" not in noted
    assert line["loss"] == pytest.approx(line["sft_loss"] + 0.1 * line["odds_loss"], rel=1e-5)
    assert "kl" not in found and found["snapshot"] == noted["snapshot"]
    refused = bridle("train", "orpo", "--project", project, *settings({"orpo.reference": "sft"}))
    assert "[orpo] is invalid: ORPO has no reference; leave reference out, or train by dpo or kto" in complaint(refused)


def test_kto_begins_from_any_model_and_is_held_to_any_other(project: Path) -> None:
    far = settings({"kto.start": "ppo", "kto.reference": "sft", "kto.learning_rate": 0.0})
    found = json.loads(done("train", "kto", "--project", project, "--json", *far))
    noted = parents(project, "kto-0001")
    assert noted["start"] == result(project / "runs/ppo-0001")["model"]
    assert noted["reference"] == result(project / "runs/sft-0001")["model"]
    assert noted["snapshot"] == found["snapshot"] and found["kl"] > 0 and found["good"] == found["bad"]
    assert metrics(project / "runs/kto-0001")[0]["good_reward"] != 0, "measured against SFT"
    near = json.loads(done("train", "kto", "--project", project, "--json", *settings({"kto.epochs": 3})))
    assert near["good_reward"] > near["bad_reward"] and near["margin"] > 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ppo.start": "nowhere"}, "there is no model at {}/models/nowhere; the project has base, ppo, sft"),
        ({"ppo.reference": "rloo"}, "there is no model at {}/models/rloo; make it with `bridle train rloo`"),
    ],
)
def test_a_model_that_is_not_there_ends_before_any_step(values: dict[str, Any], words: str, project: Path) -> None:
    shutil.rmtree(project / "runs/ppo-0001")
    found = bridle("train", "ppo", "--project", project, *settings(values))
    assert found.exit_code == 1 and words.format(project) in complaint(found)
    assert not list(project.glob("runs/ppo-*"))


def test_a_reference_of_other_tokens_is_refused(project: Path) -> None:
    other = Path(shutil.copytree(project / "models/sft", project / "models/other"))
    train_tokenizer(TEXTS, 300).save(other, 400)
    found = bridle("train", "rebel", "--project", project, *settings({"rebel.reference": "other"}))
    assert found.exit_code == 1 and "the reference other has another tokenizer" in complaint(found), complaint(found)


def test_what_a_stage_does_not_take_is_refused(project: Path) -> None:
    with Quiet(project, {}) as work:
        with pytest.raises(UsageError, match="reward takes no settings of its own"):
            METHODS["reward"].train(work, settings={"epochs": 3})
        with pytest.raises(UsageError, match="sft takes no reward of its own"):
            METHODS["sft"].train(work, reward=lambda prompts, completions: [0.0] * len(completions))


def test_a_run_of_ppo_knows_the_model_that_its_critic_began_as(project: Path) -> None:
    """Whatever scores: with a reward of the caller's own too."""
    with Quiet(project, {}) as work:
        METHODS["ppo"].train(work, name="own", reward=lambda prompts, completions: [1.0, 0.0] * (len(completions) // 2))
    noted = parents(project, "own-0001")
    assert noted["reward"] == parents(project, "ppo-0001")["reward"] and noted["source"] == "own"


def test_simpo_from_python_takes_no_reference(project: Path) -> None:
    model = bridle_api.load(project / "models/sft", precision="float32")
    with pytest.raises(UsageError, match="loss = 'simpo' has no reference, and one was given"):
        bridle_api.dpo(model, [("Why?", "Because.", "No.")], reference=model.copy(), loss="simpo", beta=2.0)


def test_orpo_from_python_takes_no_reference(project: Path) -> None:
    model = bridle_api.load(project / "models/sft", precision="float32")
    with pytest.raises(UsageError, match="ORPO has no reference, and one was given; leave it out, or call dpo or kto"):
        bridle_api.orpo(model, [("Why?", "Because.", "No.")], reference=model.copy())


def test_the_command_line_trains_what_the_table_holds() -> None:
    (argument,) = (parameter for parameter in train_verb.params if parameter.name == "method")
    context = train_verb.make_context("train", ["ppo"])
    assert argument.type.choices == tuple(METHODS) or list(argument.type.choices) == list(METHODS)
    assert context.params["method"] == "ppo"


class Quiet:
    """A project at work under some settings, which says nothing."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        project = Project.find(folder)
        recipe: Recipe = project.recipe.with_settings(values)
        self.work = Work(Project(folder, recipe), Progress(write=lambda text: None, live=False))

    def __enter__(self) -> Work:
        return self.work

    def __exit__(self, *error: object) -> None:
        self.work.close()


def test_the_reward_of_an_imported_project_is_probed(project: Path) -> None:
    found = json.loads(done("reward", "probe", "--project", project, "--json"))
    assert found["kinds"]["good"]["n"] == found["kinds"]["empty"]["n"] == found["prompts"]
    assert parents(project, "reward-probe-0001")["reward"] == parents(project, "ppo-0001")["reward"]
