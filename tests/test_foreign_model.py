"""End to end through the command line with models that the native decoder does not know: transformers runs them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from bridle.models.policy import load_policy
from tests.models.tiny import write_foreign
from tests.tiny_project import SHAPE, bridle, done, metrics, preferences, result, settings

LONGER = {"gpt2": {"n_positions": 160}, "gemma2": {"max_position_embeddings": 160}}
FEW = {
    **{key: value for key, value in SHAPE.items() if not key.startswith("model.")},
    "model.precision": "float32", "data.heldout_share": 0.4, "ppo.steps": 2, "sft.epochs": 1, "reward.epochs": 1,
    "reward.slim_epochs": 1, "sampling.max_new_tokens": 12,
}  # fmt: skip


@pytest.fixture(scope="module", params=["gpt2", pytest.param("gemma2", marks=pytest.mark.slow)])
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The family and a project that began with such a model and was walked up to PPO."""
    folder = tmp_path_factory.mktemp(request.param)
    write_foreign(folder / "mine", request.param, **LONGER[request.param])
    project = folder / "project"
    done("init", project, "--model", folder / "mine", *settings(FEW))
    done("import", preferences(folder / "pairs.jsonl"), "--project", project)
    adopted = bridle("train", "pretrain", "--project", project)
    assert adopted.exit_code == 0 and f"transformers runs this {request.param} model" in adopted.stderr
    for method in ("sft", "reward", "ppo"):
        done("train", method, "--project", project)
    return request.param, project


def tensors(project: Path, name: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(project / "models" / name / "model.safetensors")
    return found


def test_the_base_is_the_model_that_was_named(tuned: tuple[str, Path]) -> None:
    family, project = tuned
    mine, base = load_file(project.parent / "mine/model.safetensors"), tensors(project, "base")
    assert mine.keys() == base.keys() and all(torch.equal(mine[name], base[name]) for name in mine)
    assert json.loads((project / "models/ppo/config.json").read_text())["model_type"] == family


def test_every_stage_changed_the_weights(tuned: tuple[str, Path]) -> None:
    _, project = tuned
    for before, after in (("base", "sft"), ("sft", "ppo")):
        old, new = tensors(project, before), tensors(project, after)
        assert old.keys() == new.keys()
        assert sum(not torch.equal(old[name], new[name]) for name in old) > 0.9 * len(old)
    lines = metrics(project / "runs/ppo-0001")
    assert len(lines) == 2 and all(line["logprob_gap"] < 1e-4 for line in lines)
    assert lines[0]["kl_k3"] < 1e-6 < lines[1]["kl_k3"]


def test_transformers_reads_every_model(tuned: tuple[str, Path]) -> None:
    _, project = tuned
    ids = torch.tensor([[2, 40, 50, 60, 70]])
    with torch.no_grad():
        for name in ("base", "sft", "ppo"):
            theirs = AutoModelForCausalLM.from_pretrained(project / "models" / name).eval()
            ours = load_policy(project / "models" / name, torch.device("cpu")).module
            torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-4)
        for name in ("reward", "reward-slim"):
            scorer = AutoModelForSequenceClassification.from_pretrained(project / "models" / name).eval()
            for probe in json.loads((project / "models" / name / "bridle_reward.json").read_text())["probes"]:
                assert float(scorer(torch.tensor([probe["ids"]])).logits) == pytest.approx(probe["scores"][0], abs=1e-3)


def test_what_was_trained_is_evaluated_and_sampled(tuned: tuple[str, Path]) -> None:
    _, project = tuned
    figures = json.loads(done("evaluate", "ppo", "sft", "--by", "reward", "--project", project, "--json"))
    assert 0 <= figures["win_rate"]["rate"] <= 1 and figures["ppo"]["kl_se"] > 0
    assert json.loads(done("sample", "--project", project, "--json"))["answers"] > 0


def test_a_stopped_run_goes_on_to_the_same_weights(tuned: tuple[str, Path], tmp_path: Path) -> None:
    """PPO again from its first checkpoint: what lies on disk is all that a run is."""
    family, project = tuned
    copy = Path(shutil.copytree(project, tmp_path / "copy"))
    run = copy / "runs/ppo-0001"
    assert len(list(run.glob("checkpoints/step-*"))) == 2
    shutil.rmtree(run / "checkpoints/step-000002")
    (run / "result.json").unlink()
    resumed = bridle("train", "ppo", "--project", copy)
    assert resumed.exit_code == 0 and "resuming after step 1" in resumed.stdout + resumed.stderr
    again, before = tensors(copy, "ppo"), tensors(project, "ppo")
    assert all(torch.equal(again[name], before[name]) for name in before)
    assert result(run)["steps"] == 2 and len(metrics(run)) == 2
