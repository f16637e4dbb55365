"""Every trainer on five families, of all weights and by an adapter: as a stage of a project, and as a call from Python.

docs/models.md and docs/python.md are written from the tables here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import bridle
from bridle.core.records import Completion, FinishReason, Prompt
from bridle.models.contents import folder_hash
from bridle.models.lora.adapter import base_weights, learning_tensors
from bridle.models.lora.low_rank import merged_tensors
from bridle.models.policy import load_reward_model
from bridle.project.metrics import read_metrics
from bridle.stages import revise
from bridle.stages.methods import METHODS
from tests.families.table import WALKED
from tests.families.test_lora_walk import LORA, check_adapters
from tests.families.test_walk import FEW, TURNS, greedy_by_bridle, greedy_by_transformers
from tests.models.tiny import CPU, random_ids
from tests.tiny_project import done, metrics, preferences, result, settings

FAMILIES = ("llama", "qwen3", "gemma3_text", "gpt2", "qwen3_moe")
TUNED = ("whole", "adapter")  # all weights, or an adapter


@dataclass(frozen=True)
class Cell:
    """A way to train: its name in the table of methods, its call from Python, and what is set of it in both."""

    method: str
    call: Callable[..., Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)


STEPS: dict[str, Any] = {"steps": 1, "prompts_per_step": 4}
GROUPS: dict[str, Any] = {**STEPS, "group_size": 4}
ONLINE: dict[str, Any] = {"online_rounds": 1, "online_prompts": 4}
TEACHER: dict[str, Any] = {"scored_by": "nothing", "reference": "base", "kl_coef": 1.0, "missing_stop_penalty": 0.0}
CELLS = {
    "SFT": Cell("sft", bridle.sft),
    "reward model": Cell("reward", bridle.reward_model),
    "PPO": Cell("ppo", bridle.ppo, STEPS),
    "DPO": Cell("dpo", bridle.dpo),
    "IPO": Cell("dpo", bridle.dpo, {"loss": "ipo"}),
    "SimPO": Cell("dpo", bridle.dpo, {"loss": "simpo"}),
    "online DPO": Cell("dpo", bridle.online_dpo, ONLINE),
    "KTO": Cell("kto", bridle.kto),
    "ORPO": Cell("orpo", bridle.orpo),
    "GRPO": Cell("grpo", bridle.grpo, GROUPS),
    "RLOO": Cell("rloo", bridle.rloo, GROUPS),
    "REBEL": Cell("rebel", bridle.rebel, STEPS),
    "best of n": Cell("best-of-n", bridle.best_of_n, {"rounds": 1, "prompts_per_round": 12, "answers": 8}),
    "distillation": Cell("rloo", None, {**GROUPS, **TEACHER}),
    "SL-CAI": Cell("sl-cai"),
}
LONG = 24  # tokens in which a random model now and then ends an answer, as best of n needs
PROMPTS = [f"What is {i} + {i % 7}?" for i in range(12)]
PAIRS = [(prompt, "It is a cat.", "No no no.") for prompt in PROMPTS]


def test_every_method_of_the_table_has_a_cell() -> None:
    """But pretraining, which makes a model of one shape from nothing."""
    assert {cell.method for cell in CELLS.values()} == METHODS.keys() - {"pretrain"}


def finite(lines: Sequence[dict[str, Any]]) -> None:
    assert lines and all(math.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))
    for line in lines[:1]:
        assert abs(line.get("logprob_gap", 0.0)) < 1e-4, "what is sampled is what is trained"


# --------------------------------------------------------------------------------------------------- stages of a project


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The project of a family, with its SFT, reward model and revised answers."""

    @cache
    def begin(name: str, tuned: str) -> Path:
        folder = tmp_path_factory.mktemp("matrix")
        WALKED[name].write(folder / "mine", TURNS)
        project, recipe = folder / "project", FEW if tuned == "whole" else LORA
        more = {"constitution.rounds": 1, "constitution.prompts": 8, "constitution.optimizer": "adamw"}
        more |= {"constitution.learning_rate": 1e-3, "grpo.scored_by": "reward", "rejection.scored_by": "reward"}
        done("init", project, "--model", folder / "mine", *settings({**recipe, **more}))
        done("import", preferences(folder / "pairs.jsonl", 16), "--project", project)
        for words in ("train sft", "train reward"):
            done(*words.split(), "--project", project)
        with pytest.MonkeyPatch.context() as patch:  # a random model writes no revision that ends
            patch.setattr(revise, "ask_model", replies)
            done("revise", "--project", project)
        return project

    return begin


def replies(_: object, policy: Any, prompts: Sequence[Prompt], *rest: object) -> list[Completion | None]:
    return [
        Completion(prompt.id, "It is so.", (5, 6), (-1.0, -1.0), FinishReason.STOP, policy.stamp, {})
        for prompt in prompts
    ]


@pytest.mark.slow
@pytest.mark.parametrize("tuned", TUNED)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("what", CELLS)
def test_a_stage(what: str, name: str, tuned: str, begun: Callable[[str, str], Path]) -> None:
    project, cell = begun(name, tuned), CELLS[what]
    before = folder_hash(project / "models/base")
    section = METHODS[cell.method].section
    if cell.method not in ("sft", "reward"):
        own = {f"{section}.{key}": value for key, value in cell.settings.items()}
        own |= {"sampling.max_new_tokens": LONG} if what == "best of n" else {}
        done("train", cell.method, "--project", project, *settings(own))
    assert folder_hash(project / "models/base") == before
    run, model = sorted(project.glob(f"runs/{cell.method}-*"))[-1], project / "models" / cell.method
    finite(metrics(run))
    assert result(run)["model"] == folder_hash(model)
    assert (model / "adapter").exists() == (tuned == "adapter")
    if cell.method == "reward":
        check_scores(model)
        return
    assert folder_hash(model) != (before if cell.method == "sft" else folder_hash(project / "models/sft"))
    assert greedy_by_bridle(model) == greedy_by_transformers(model)
    if tuned == "adapter":
        check_adapters(project, cell.method)


def check_scores(folder: Path) -> None:
    """transformers reads the reward model to bridle's own numbers."""
    scorer = load_reward_model(folder, CPU).module
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for ids in random_ids(3, 4, 12):
        with torch.no_grad():
            own = scorer.task_scores(torch.tensor([ids]), torch.tensor([len(ids)]))
            torch.testing.assert_close(theirs(torch.tensor([ids])).logits, own, rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------------------------ calls from Python

COMPARED = (bridle.reward_model, bridle.dpo, bridle.kto, bridle.orpo)
ROWS = {
    bridle.sft: ([pair[:2] for pair in PAIRS],),
    **dict.fromkeys(COMPARED, (PAIRS,)),
}  # others take prompts and a reward


def length(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
    return [len(answer) / 10 for answer in answers]


def weights_of(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in merged_tensors(model.policy.module)}


CALLED = [what for what, cell in CELLS.items() if cell.call]
DIAGONAL = {(what, FAMILIES[i % 5], TUNED[i % 2]) for i, what in enumerate(CALLED)}  # in `make test` too
EVERY_CALL = [
    pytest.param(*cell, marks=() if cell in DIAGONAL else pytest.mark.slow) for cell in product(CALLED, FAMILIES, TUNED)
]


@pytest.mark.parametrize(("what", "name", "tuned"), EVERY_CALL)
def test_a_call(what: str, name: str, tuned: str, tmp_path: Path) -> None:
    cell = CELLS[what]
    assert cell.call is not None
    WALKED[name].write(tmp_path / "mine", TURNS)
    model = bridle.load(tmp_path / "mine", precision="float32")
    before = weights_of(model)
    given: dict[str, Any] = {"folder": tmp_path / "run", "learning_rate": 1e-3, **cell.settings}
    given |= {"lora_r": 4, "learning_rate": 1e-2} if tuned == "adapter" else {}
    given |= {} if cell.call in ROWS else {"max_new_tokens": LONG if what == "best of n" else 8}
    made = cell.call(model, *(ROWS.get(cell.call) or (PROMPTS, length)), **given)
    finite(read_metrics(tmp_path / "run"))
    after = weights_of(model)
    if cell.call == bridle.reward_model:
        assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
        made.save(tmp_path / "saved")
        check_scores(tmp_path / "saved")
        return
    assert any(not torch.equal(after[key], tensor) for key, tensor in before.items())
    if tuned == "adapter":
        learnt = learning_tensors(model.policy.module)
        assert learnt and all(".lora." in key for key in learnt)
        assert all(torch.equal(tensor, before[key]) for key, tensor in base_weights(model.policy.module).items())
    model.save(tmp_path / "saved")
    ids = torch.tensor(random_ids(1, 12, 12))
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()(ids).logits
        torch.testing.assert_close(model.policy.module(ids), theirs, rtol=0, atol=1e-4)
