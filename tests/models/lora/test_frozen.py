"""Matrices that nothing trains, in two bytes a number: what they compute, what waits for the backward pass, what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bridle.compute.randomness import generator
from bridle.core.errors import ModelError
from bridle.core.records import Prompt
from bridle.generation.engine import Engine, answer_prompts
from bridle.generation.sampling import Sampling
from bridle.kernels.kernels import project_by
from bridle.models.batches import make_batch, sequence_logprobs
from bridle.models.lora.frozen import is_narrow, narrow_matrices
from bridle.models.lora.low_rank import LowRank, merged_tensors, nearly_same
from bridle.models.lora.policies import learner, load_adapted, save_adapter
from bridle.models.policy import (
    Policy,
    RewardModel,
    load_policy,
    load_reward_model,
    save_policy,
    save_reward_model,
    with_exact_base,
)
from bridle.models.scorer import critic_from, scorer_from
from bridle.recipe.data import FrozenPrecision, LoRASection
from tests.models.tiny import CPU, policy, random_ids, write_foreign

PRECISIONS: list[FrozenPrecision] = ["float32", "bfloat16"]
SHAPES = ["llama", "qwen2", "qwen3", "gpt2", "gemma2", "phi", "mixtral"]
BATCH = make_batch(random_ids(3, 4, 8, seed=1), random_ids(3, 3, 6, seed=2), 0)


def rounded_to_bfloat16(found: Policy) -> Policy:
    """One that loses nothing by being held so."""
    for weight in found.module.parameters():
        weight.data = weight.data.bfloat16().float()
    return found


def lively(found: Policy, seed: int = 7) -> Policy:
    """As if its adapter had been trained."""
    draws = torch.Generator().manual_seed(seed)
    for part in found.module.modules():
        if isinstance(part, LowRank):
            part.B.data.normal_(0, 0.1, generator=draws)
    return found


def logprobs(found: Policy) -> Tensor:
    return sequence_logprobs(found.module, BATCH)


def held(module: nn.Module) -> int:
    return sum(weight.nbytes for weight in module.parameters())


@pytest.fixture(scope="module", params=["llama", "mixtral"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("base") / "model"
    if request.param == "llama":
        save_policy(place, policy())
    else:
        place.mkdir()
        write_foreign(place, request.param)
    return place


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("autocast", [False, True])
def test_matrices_that_lose_nothing_compute_the_same(shape: str, autocast: bool) -> None:
    base = learner(rounded_to_bfloat16(policy(shape)), LoRASection(r=4), generator(0, "lora"))
    lively(base)
    found = {}
    for narrow in (False, True):
        if narrow:
            before = held(base.module)
            assert not narrow_matrices(base.module, CPU) and is_narrow(base.module)
            kept = {"gemma2": "its scaled embeddings", "mixtral": "its experts"}  # as they were
            assert held(base.module) < (0.9 if shape in kept else 0.65) * before
        base.module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logp = logprobs(base)
        logp.sum().backward()
        learns = {name: weight.grad for name, weight in base.module.named_parameters() if weight.requires_grad}
        assert all(grad is not None and grad.dtype == torch.float32 for grad in learns.values())
        found[narrow] = (logp.detach(), learns)
    assert torch.equal(found[True][0], found[False][0])
    for name, grad in found[False][1].items():
        torch.testing.assert_close(found[True][1][name], grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", ["llama", "gpt2", "mixtral"])
def test_decoding_reads_them_too(shape: str) -> None:
    base = lively(learner(rounded_to_bfloat16(policy(shape)), LoRASection(r=4), generator(0, "lora")))
    prompts, found = [Prompt.from_text("Tell me a joke.")], []
    for _ in range(2):
        engine = Engine(torch.float32)
        engine.load(base)
        found.append(answer_prompts(engine, base, prompts, Sampling(8, 0.0), seed=0)[0].token_ids)
        narrow_matrices(base.module, CPU)
    assert found[0] == found[1]


def test_no_widened_copy_waits_for_the_backward_pass() -> None:
    x = torch.randn(2, 3, 8, requires_grad=True)
    weights = [nn.Parameter(torch.randn(4, 8).bfloat16(), requires_grad=False) for _ in range(2)]
    saved = list[Tensor]()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        y = project_by(x, weights, [None, None])
    assert y.dtype == torch.float32 and {tensor.data_ptr() for tensor in saved} == {t.data_ptr() for t in (x, *weights)}
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.cat(weights).float().sum(0).expand_as(x))


def test_what_is_saved_has_the_base_as_its_folder_has_it(folder: Path, tmp_path: Path) -> None:
    config = LoRASection(r=4)
    exact, narrow = (load_policy(folder, CPU, held=precision) for precision in PRECISIONS)
    assert narrow.rounded and is_narrow(narrow.module) and not exact.rounded
    content = list[str]()
    for number, base in enumerate((exact, narrow)):
        tuned = lively(learner(base, config, generator(0, "lora")))
        tuned.step = 1
        content.append(save_policy(tmp_path / f"policy-{number}", tuned))
        scorer = RewardModel(
            scorer_from(tuned.module, generator(0, "head")), tuned.template, "new", source=tuned.source,
            adapter=tuned.adapter, rounded=tuned.rounded,
        )  # fmt: skip
        content.append(save_reward_model(tmp_path / f"reward-{number}", scorer))
        save_adapter(tmp_path / f"adapter-{number}", tuned)
    assert content[:2] == content[2:]
    continued = load_adapted(tmp_path / "adapter-1", load_policy(folder, CPU, held="bfloat16"))
    assert nearly_same(continued.module, load_policy(tmp_path / "policy-1", CPU).module)
    other = lively(learner(narrow, config, generator(0, "lora")), seed=8)
    assert not nearly_same(continued.module, other.module)


def test_a_base_that_is_gone_is_not_merged_into_another(folder: Path, tmp_path: Path) -> None:
    save_policy(tmp_path / "base", load_policy(folder, CPU))
    tuned = lively(
        learner(load_policy(tmp_path / "base", CPU, held="bfloat16"), LoRASection(r=4), generator(0, "lora"))
    )
    changed = load_policy(folder, CPU)
    next(iter(changed.module.parameters())).data += 1
    save_policy(tmp_path / "base", changed)
    with pytest.raises(ModelError, match="is not there any more with the content"):
        save_policy(tmp_path / "tuned", tuned)
    assert not (tmp_path / "tuned").exists()


def test_one_that_lost_nothing_needs_no_folder(tmp_path: Path) -> None:
    base = rounded_to_bfloat16(policy())
    before = {name: tensor.clone() for name, tensor in merged_tensors(base.module)}
    assert not narrow_matrices(base.module, CPU)
    after = dict(merged_tensors(with_exact_base(base).module))
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items()
    )


def test_a_reward_model_scores_by_them_and_a_critic_has_heads_in_float32(tmp_path: Path) -> None:
    scorer = scorer_from(policy().module, generator(0, "head"))
    save_reward_model(tmp_path / "reward", RewardModel(scorer, policy().template, "new"))
    whole, low = (load_reward_model(tmp_path / "reward", CPU, held=precision) for precision in PRECISIONS)
    assert low.rounded and is_narrow(low.module.model) and low.module.score.weight.dtype == torch.float32
    raw = [model.module.batch_scores(BATCH) for model in (whole, low)]
    assert raw[1].dtype == torch.float32 and not torch.equal(raw[0], raw[1])
    torch.testing.assert_close(raw[0], raw[1], rtol=0, atol=0.1)
    critic = critic_from(low.module, LoRASection(r=4), generator(0, "critic"))
    assert critic.score.weight.dtype == torch.float32
    again = save_reward_model(tmp_path / "again", low)
    assert again == save_reward_model(tmp_path / "whole", whole)


def test_parts_that_learn_whole_are_in_float32() -> None:
    base = policy("llama")
    narrow_matrices(base.module, CPU)
    found = learner(base, LoRASection(r=4, modules_to_save=["lm_head"]), generator(0, "lora"))
    learns: dict[str, Any] = {name: w for name, w in found.module.named_parameters() if w.requires_grad}
    assert "lm_head.weight" in learns and all(weight.dtype == torch.float32 for weight in learns.values())
    logprobs(found).sum().backward()
    assert all(weight.grad is not None for weight in learns.values())
