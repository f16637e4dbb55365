"""Adapters through the command line, on tiny models of several families: every trainer, trained further, exported, taken as the base."""

from __future__ import annotations

import json
import math
import shutil
import weakref
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from bridle.compute.steps import Session
from bridle.models.contents import folder_hash
from bridle.models.lora.adapter import learning_tensors
from bridle.models.lora.frozen import is_narrow
from bridle.models.lora.low_rank import merged_tensors
from bridle.models.lora.policies import load_adapted
from bridle.models.policy import Policy, load_policy, with_exact_base
from bridle.rewards.learned import LearnedReward
from bridle.stages import preferences as offline
from bridle.stages.methods import METHODS
from bridle.training import ppo
from tests.families.table import WALKED
from tests.families.test_walk import FEW, TURNS, check
from tests.generation.test_endpoint import further, serving
from tests.models.tiny import CPU, one_sentence
from tests.tiny_project import bridle, complaint, done, metrics, preferences, settings

LORA: dict[str, Any] = {
    **FEW, "lora.r": 4, "sft.epochs": 4, "sft.batch_size": 4, "rloo.scored_by": "reward", "rloo.steps": 1, "rloo.prompts_per_step": 4,
    "rebel.scored_by": "reward", "rebel.steps": 1, "rebel.prompts_per_step": 4, "rejection.rounds": 1, "rejection.prompts_per_round": 4,
    "rejection.scored_by": "reward",
}  # fmt: skip
QUICK = ("train sft", "train reward", "train ppo", "train dpo")
ALL = (*QUICK, "train rloo", "train rebel", "sample")
ADAPTED = ("qwen3", "gemma3_text", "gpt2", "qwen3_moe", "falcon_h1", "deepseek_v3")


def begin(name: str, folder: Path) -> Path:
    WALKED[name].write(folder / "mine", TURNS)
    done("init", folder / "project", "--model", folder / "mine", *settings(LORA))
    done("import", preferences(folder / "pairs.jsonl", 16), "--project", folder / "project")
    return folder / "project"


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_policy(folder, CPU).module.state_dict()


def check_adapters(project: Path, name: str = "*") -> None:
    """Each model is its base with its adapter, and transformers finds none in its folder."""
    for place in sorted(project.glob(f"models/{name}/adapter")):
        model, base = (
            place.parent,
            Path(json.loads((place / "adapter_config.json").read_text())["base_model_name_or_path"]),
        )
        assert base.parent == project / "models" and not (model / "adapter_config.json").exists()
        if not (model / "bridle_reward.json").exists():
            whole = dict(merged_tensors(load_adapted(place, load_policy(base, CPU)).module))
            for name, tensor in weights_of(model).items():
                torch.testing.assert_close(whole[name], tensor, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SFT, reward model, PPO and DPO of a Llama, by adapters."""
    project = begin("llama", tmp_path_factory.mktemp("lora"))
    before = folder_hash(project / "models/base")
    for words in QUICK:
        done(*words.split(), "--project", project)
    assert folder_hash(project / "models/base") == before
    return project


@pytest.fixture
def project(walked: Path, tmp_path: Path) -> Path:
    """Of its own, where adapters name their bases by it."""
    copy = Path(shutil.copytree(walked, tmp_path / "project", symlinks=True))
    for path in copy.glob("models/*/adapter/adapter_config.json"):
        path.write_text(path.read_text().replace(str(walked), str(copy)))
    return copy


def test_the_whole_way_by_adapters(walked: Path) -> None:
    check("llama", walked)
    check_adapters(walked)
    assert sorted(path.parent.name for path in walked.glob("models/*/adapter")) == ["dpo", "ppo", "reward", "sft"]
    [line] = metrics(walked / "runs/ppo-0001")
    assert line["kl"] == 0 and line["logprob_gap"] < 1e-4
    assert (walked / "bridle.toml").read_text().count("and 10 times that for an adapter") > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTED)
def test_families_by_adapters(name: str, tmp_path: Path) -> None:
    project = begin(name, tmp_path)
    before = folder_hash(project / "models/base")
    for words in ALL:
        done(*words.split(), "--project", project)
    assert folder_hash(project / "models/base") == before
    check(name, project)
    check_adapters(project)


FURTHER = ("--set", "lora.r=0", "--set", "lora.continued=true")


@pytest.mark.parametrize("method", ["dpo", "ppo", "rloo"])
def test_an_adapter_is_trained_further_and_held_to_what_it_was(method: str, project: Path) -> None:
    before = weights_of(project / "models/sft")
    done("train", method, *FURTHER, "--set", f"{method}.start=sft", "--set", "seed=3", "--project", project)
    run = sorted(project.glob(f"runs/{method}-*"))[-1]
    first = metrics(run)[0]
    if method == "dpo":
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-6) and abs(first["chosen_moved"]) < 1e-4
    else:
        assert abs(first["kl"]) < 1e-6
    found = json.loads((project / f"models/{method}/adapter/adapter_config.json").read_text())
    assert Path(found["base_model_name_or_path"]) == project / "models/base" and found["r"] == 4
    check_adapters(project)
    after = weights_of(project / f"models/{method}")
    assert any(not torch.equal(before[name], tensor) for name, tensor in after.items())
    noted = json.loads((run / "parents.json").read_text())
    assert noted["sft"] == folder_hash(project / "models/sft") and len(noted["adapter"]) > 20


def test_policy_reference_reward_and_critic_lie_on_one_trunk(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[tuple[ppo.Actors, LearnedReward]]()
    plain = METHODS["ppo"].loop

    def watched(actors: ppo.Actors, reward: LearnedReward, *rest: Any) -> dict[str, float]:
        seen.append((actors, reward))
        return plain(actors, reward, *rest)

    monkeypatch.setitem(METHODS, "ppo", replace(METHODS["ppo"], loop=watched))
    for shared in (False, True):
        done(
            "train", "ppo", "--set", f"lora.shared_trunk={str(shared).lower()}", "--set", "seed=5", "--project", project
        )
    (apart, whole_reward), (actors, reward) = seen
    policy, scorer = actors.policy.module, reward.model.module
    one = numbers_of(actors.reference.module)
    adapters = sum(
        weight.numel() for module in (policy, actors.critic, scorer) for weight in learning_tensors(module).values()
    )
    assert numbers_of(policy, actors.reference.module, actors.critic, scorer) == one + adapters < 1.5 * one
    assert numbers_of(apart.policy.module, apart.reference.module, apart.critic, whole_reward.model.module) > 2.5 * one
    lines = [metrics(run)[0]["proxy"] for run in sorted(project.glob("runs/ppo-*"))[1:]]
    assert lines[0] == pytest.approx(lines[1], abs=1e-4), "the same rewards"
    shutil.rmtree(project / "models/reward/adapter")
    told = refused(project, "train", "ppo", "--set", "lora.shared_trunk=true", "--set", "seed=6")
    assert "models/reward was not left with an adapter on the base of the policy" in told


def numbers_of(*modules: torch.nn.Module) -> int:
    """How many some networks hold together, each once."""
    return sum({weight.data_ptr(): weight.numel() for module in modules for weight in module.parameters()}.values())


def refused(project: Path, *words: str) -> str:
    told = complaint(bridle(*words, "--project", project))
    assert one_sentence(told), told
    return told


def test_what_cannot_be_trained_further_is_refused(project: Path) -> None:
    assert "models/base was left with no adapter to train further" in refused(project, "train", "sft", *FURTHER)
    told = refused(
        project, "train", "dpo", "--set", "lora.r=8", "--set", "lora.continued=true", "--set", "dpo.start=ppo"
    )
    assert "lora.r = 8, and the adapter that is trained further has r = 4" in told
    shutil.copytree(project / "models/dpo/adapter", project / "models/ppo/adapter", dirs_exist_ok=True)
    told = refused(project, "train", "dpo", *FURTHER, "--set", "dpo.start=ppo")
    assert "models/ppo/adapter on" in told and "does not give the weights in" in told
    for place in (project / "models/base", *(project / "references").iterdir()):
        shutil.rmtree(place)
    told = refused(project, "train", "dpo", *FURTHER, "--set", "dpo.start=sft")
    assert "which is not there any more; put that back, or train a new adapter" in told


def test_an_adapter_is_exported_alone(project: Path, tmp_path: Path) -> None:
    done("export", "dpo", tmp_path / "alone", "--adapter", "--project", project)
    assert sorted(path.name for path in (tmp_path / "alone").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    base = load_policy(project / "models/sft", CPU)
    whole = dict(merged_tensors(load_adapted(tmp_path / "alone", base).module))
    assert all(
        torch.allclose(whole[name], tensor, atol=1e-6) for name, tensor in weights_of(project / "models/dpo").items()
    )
    assert "was left with no adapter; export it whole" in refused(
        project, "export", "base", str(tmp_path / "b"), "--adapter"
    )
    assert "exists; name a new folder" in refused(project, "export", "dpo", str(tmp_path / "alone"), "--adapter")
    done("export", "dpo", tmp_path / "whole", "--project", project)
    assert not (tmp_path / "whole/adapter").exists()


def test_an_adapter_of_others_is_taken_as_the_base_and_trained_further(project: Path, tmp_path: Path) -> None:
    done("export", "dpo", tmp_path / "theirs", "--adapter", "--project", project)
    done(
        "init", tmp_path / "p", "--model", tmp_path / "theirs", *settings({**LORA, "lora.r": 0, "lora.continued": True})
    )
    for name, tensor in weights_of(tmp_path / "p/models/base").items():
        torch.testing.assert_close(tensor, weights_of(project / "models/dpo")[name], rtol=1e-6, atol=1e-6)
    done("import", preferences(tmp_path / "pairs.jsonl", 16), "--project", tmp_path / "p")
    done("train", "dpo", "--project", tmp_path / "p")
    first = metrics(tmp_path / "p/runs/dpo-0001")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    found = json.loads((tmp_path / "p/models/dpo/adapter/adapter_config.json").read_text())
    assert Path(found["base_model_name_or_path"]) == project / "models/sft"
    path = tmp_path / "theirs/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_dora": True}))
    told = complaint(bridle("init", tmp_path / "q", "--model", tmp_path / "theirs"))
    assert "says use_dora = True, which bridle's adapters do not have" in told and not (tmp_path / "q").exists()


def test_an_adapters_optimiser_is_adamw(project: Path) -> None:
    told = refused(project, "train", "sft", "--set", "sft.optimizer=muon")
    assert "sft.optimizer = 'muon' is for whole matrices, and an adapter is trained by adamw" in told


def test_a_rate_that_suits_all_weights_is_told(project: Path) -> None:
    told = bridle("train", "dpo", "--set", "dpo.learning_rate=0.0001", "--project", project).stderr
    assert (
        "dpo.learning_rate = 0.0001 suits all weights of a model of" in told and "--set dpo.learning_rate=0.001" in told
    )


def test_a_base_in_two_bytes_is_saved_as_exactly_as_in_four(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[tuple[ppo.Actors, LearnedReward]]()
    plain = METHODS["ppo"].loop

    def watched(actors: ppo.Actors, reward: LearnedReward, *rest: Any) -> dict[str, float]:
        seen.append((actors, reward))
        return plain(actors, reward, *rest)

    monkeypatch.setitem(METHODS, "ppo", replace(METHODS["ppo"], loop=watched))
    low = ("--set", "model.frozen_precision=bfloat16", "--set", "seed=7")
    for words in ("sft", "reward", "dpo", "ppo"):
        done("train", words, *low, "--project", project)
    check_adapters(project)
    [(actors, reward)] = seen
    for module in (actors.policy.module, actors.reference.module, actors.critic.model, reward.model.module.model):
        assert is_narrow(module)
    done("train", "dpo", *low, *FURTHER, "--set", "dpo.start=sft", "--project", project)
    done("train", "ppo", *low, "--set", "lora.shared_trunk=true", "--project", project)
    check_adapters(project)
    done("train", "ppo", *low, "--set", "lora.r=0", "--project", project)  # beside a policy that learns whole
    actors, reward = seen[-1]
    assert not is_narrow(actors.policy.module) and not is_narrow(actors.critic)
    assert is_narrow(actors.reference.module) and is_narrow(reward.model.module)


def test_a_server_answers_in_turns(project: Path) -> None:
    with serving(load_policy(project / "models/sft", CPU)) as served:
        address = f"rollout.endpoint={served.address}"
        done("train", "ppo", "--set", "seed=3", "--set", address, "--project", project)
        assert served.asked[:4] == ["/sleep?level=1", "/wake_up", "/v1/load_lora_adapter", "/v1/completions"]
        assert not served.awake and not served.adapters
        served.takes_adapters, served.spoil = False, further
        said = complaint(bridle("train", "rloo", "--set", address, "--project", project))
        assert "the endpoint's log-probs are not those of the weights" in said and not served.awake


@pytest.mark.slow
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes, of bridle[bits], is not installed")
@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_a_base_in_four_bits_is_merged_as_it_lies_in_memory(name: str, tmp_path: Path) -> None:
    project = begin(name, tmp_path)
    low = ("--set", "model.frozen_precision=nf4", "--project", project)
    for words in ("sft", "reward", "dpo", "ppo"):
        done("train", words, *low)
    done("train", "ppo", *low, "--set", "lora.shared_trunk=true")
    done("train", "dpo", *low, *FURTHER, "--set", "dpo.start=sft")
    for place in sorted(project.glob("models/*/adapter")):
        base = Path(json.loads((place / "adapter_config.json").read_text())["base_model_name_or_path"])
        if not (place.parent / "bridle_reward.json").exists():
            trained = load_adapted(place, load_policy(base, CPU, held="nf4"))
            whole = dict(merged_tensors(with_exact_base(trained).module))
            for part, tensor in weights_of(place.parent).items():
                torch.testing.assert_close(whole[part], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_policy_that_learns_whole_trains_without_its_reference_in_memory(
    method: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, plain = list[str](), Session.__dataclass_fields__["release"].default

    def free_weights(reference: Policy) -> None:
        weight = weakref.ref(next(reference.module.parameters()))
        free(reference)
        seen.append("gone" if weight() is None else "held")

    free = offline.free_weights
    whole = ("train", method, "--set", "lora.r=0", "--set", f"{method}.observe_every=1", "--project", project)
    logged = list[list[dict[str, Any]]]()
    for release in (plain, free_weights):
        monkeypatch.setattr(offline, "free_weights", release)
        shutil.rmtree(project / "cache", ignore_errors=True)
        done(*whole, "--set", "seed=9")
        run = sorted(project.glob(f"runs/{method}-*"))[-1]
        logged.append([{name: value for name, value in line.items() if name != "seconds"} for line in metrics(run)])
    assert seen == ["gone"] and logged[0] == logged[1] and "kl" in logged[0][0]
