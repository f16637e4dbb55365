"""Tiny models of every family, walked through the command line in this process: init, SFT, reward, PPO, DPO, sample, and back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bridle.core.records import Message, Prompt
from bridle.generation.engine import Engine, answer_prompts
from bridle.generation.sampling import Sampling
from bridle.models.policy import load_policy
from tests.families.table import REFUSED, WALKED
from tests.models.tiny import CPU, one_sentence, random_ids
from tests.tiny_project import bridle, complaint, done, metrics, preferences, settings

FEW: dict[str, Any] = {
    "model.precision": "float32", "data.heldout_share": 0.4, "sampling.max_new_tokens": 8, "sampling.answers": 2, "sft.epochs": 1,
    "reward.epochs": 1, "reward.slim": False, "ppo.steps": 1, "ppo.prompts_per_step": 4, "ppo.minibatches": 1, "ppo.epochs": 1,
}  # fmt: skip
STAGES = ("train sft", "train reward", "train ppo", "train dpo", "sample")
TURNS = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
ASKED = [
    Prompt((Message("user", text),)) for text in ("What is 2 + 3?", "Tell me about the rain, please, and the cat.")
]


def walk(name: str, folder: Path, stages: Sequence[str] = STAGES, source: str = "") -> Path:
    WALKED[name].write(folder / "mine", source)
    project = folder / "project"
    done("init", project, "--model", folder / "mine", *settings(FEW))
    done("import", preferences(folder / "pairs.jsonl", 16), "--project", project)
    for words in stages:
        done(*words.split(), "--project", project)
    return project


def greedy_by_bridle(folder: Path) -> list[list[int]]:
    policy, engine = load_policy(folder, CPU), Engine(torch.float32, batch_size=8)
    engine.load(policy)
    answers = answer_prompts(engine, policy, ASKED, Sampling(8, 0.0, 1.0), seed=0)
    return [list(answer.token_ids) for answer in answers]


def greedy_by_transformers(folder: Path) -> list[list[int]]:
    """One prompt after another, as its tokenizer writes it."""
    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found = []
    for prompt in ASKED:
        rows = [{"role": message.role, "content": message.content} for message in prompt.messages]
        text = tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            written = network.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        found.append(written[0, ids.shape[1] :].tolist())
    return found


def check(name: str, project: Path) -> None:
    """Its answers are transformers', token by token, whatever was trained."""
    if (project / "runs/ppo-0001").exists():
        [line] = metrics(project / "runs/ppo-0001")
        assert line["logprob_gap"] < 1e-4 and abs(line["kl_k3"]) < 1e-5, "what is sampled is what is trained"
    for model in sorted({path.parent.resolve() for path in project.glob("models/*/config.json")}):
        if (model / "bridle_reward.json").exists():
            continue
        assert json.loads((model / "config.json").read_text())["model_type"] == WALKED[name].model_type
        assert greedy_by_bridle(model) == greedy_by_transformers(model), model.name


@pytest.mark.slow
@pytest.mark.parametrize("name", WALKED)
def test_a_family_is_walked(name: str, tmp_path: Path) -> None:
    project = walk(name, tmp_path)
    assert {path.parent.name for path in project.glob("models/*/config.json")} == {
        "base",
        "sft",
        "reward",
        "ppo",
        "dpo",
    }
    check(name, project)


@pytest.mark.parametrize("name", [name for name, family in WALKED.items() if family.quick])
def test_a_diagonal_is_walked_each_time(name: str, tmp_path: Path) -> None:
    """Two stages of a family; one that does not begin with SFT has a chat template of its own."""
    stages = WALKED[name].quick
    check(name, walk(name, tmp_path, stages, "" if "train sft" in stages else TURNS))


def test_the_diagonal_meets_every_stage_twice() -> None:
    met = Counter(stage for family in WALKED.values() for stage in family.quick)
    assert set(met) == set(STAGES) and min(met.values()) >= 2


@pytest.mark.parametrize(
    "name", [name if name in ("mamba", "bert") else pytest.param(name, marks=pytest.mark.slow) for name in REFUSED]
)
def test_a_family_that_would_answer_otherwise_is_refused_by_name(name: str, tmp_path: Path) -> None:
    family, words = REFUSED[name]
    family.write(tmp_path / "mine")
    told = complaint(bridle("init", tmp_path / "p", "--model", tmp_path / "mine"))
    assert f"is of model_type {family.model_type!r}, which bridle cannot use: {words}" in told and one_sentence(told), (
        told
    )
    assert not (tmp_path / "p").exists()


def test_falcons_alibi_is_added_once(tmp_path: Path) -> None:
    """Its eager attention adds it twice, and transformers takes the fused one where nothing is said."""
    WALKED["falcon, alibi"].write(tmp_path)
    theirs, ids = AutoModelForCausalLM.from_pretrained(tmp_path).eval(), torch.tensor(random_ids(1, 40, 40))
    with torch.no_grad():
        torch.testing.assert_close(load_policy(tmp_path, CPU).module(ids), theirs(ids).logits, rtol=0, atol=1e-4)
