"""Matrices in four bits a number: what they compute, what waits for the backward pass, what is saved, what is refused."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bridle
from bridle.compute.randomness import generator
from bridle.core.errors import RecipeError, UnsupportedModel, UsageError
from bridle.core.records import Prompt
from bridle.generation.engine import Engine, answer_prompts
from bridle.generation.sampling import Sampling
from bridle.kernels.kernels import project_by
from bridle.models.batches import make_batch, sequence_logprobs
from bridle.models.lora.adapter import branch, learning_tensors
from bridle.models.lora.four_bit import FourBit, is_four_bit
from bridle.models.lora.frozen import is_narrow, narrow_matrices
from bridle.models.lora.low_rank import become, merged_copy, nearly_same
from bridle.models.lora.policies import learner, load_adapted, save_adapter
from bridle.models.policy import (
    Policy,
    RewardModel,
    load_policy,
    load_reward_model,
    save_policy,
    save_reward_model,
)
from bridle.models.scorer import critic_from, scorer_from
from bridle.recipe.data import LoRASection
from bridle.recipe.recipe import Recipe
from tests.models.lora.test_frozen import lively
from tests.models.tiny import CPU, policy, random_ids

needs_bits = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes, of bridle[bits], is not installed"
)
BATCH = make_batch(random_ids(3, 4, 8, seed=1), random_ids(3, 3, 6, seed=2), 0)
LORA = LoRASection(r=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save_policy(place := tmp_path_factory.mktemp("base") / "model", policy())
    return place


def four_bits(folder: Path) -> Policy:
    return load_policy(folder, CPU, held="nf4")


def logprobs(found: Policy) -> Tensor:
    return sequence_logprobs(found.module, BATCH)


@needs_bits
def test_a_matrix_is_as_near_as_four_bits_come() -> None:
    """Of normal numbers, by NF4's 16 levels within blocks of 64, the root mean square is some 9% off (a level's cell, by integration)."""
    weight = torch.randn(96, 80, generator=torch.Generator().manual_seed(0)).bfloat16()
    held = FourBit.of(weight)
    off = (held.float() - weight.float()).square().mean().sqrt() / weight.float().std()
    assert held.shape == weight.shape and held.dtype == torch.bfloat16 and 0.05 < float(off) < 0.12
    state = held.state
    constants = [held.packed, state.absmax, state.state2.absmax]
    assert sum(t.nbytes for t in constants) == pytest.approx((0.5 + 1 / 64 + 4 / (64 * 256)) * weight.numel(), rel=0.01)
    assert len(held.packed.unique()) > 100 and held.clone().packed is held.packed
    with pytest.raises(UsageError, match="cannot be written to"):
        held.copy_(weight)


@needs_bits
@pytest.mark.parametrize("shape", ["llama", "llama-tied", "qwen2", "qwen3", "gemma2", "mixtral"])
def test_an_adapter_learns_on_it_and_its_reference_is_the_base_itself(shape: str) -> None:
    """Log-probs and gradients are those of a model in bfloat16 with the same numbers; the whole one's are not far."""
    exact, base, same = (policy(shape) for _ in range(3))
    assert narrow_matrices(base.module, CPU, "nf4") and is_four_bit(base.module) and is_narrow(base.module)
    same.module = merged_copy(learner(base, LORA, generator(0, "lora")).module)  # unpacked
    assert not is_four_bit(same.module)
    tuned = [lively(learner(found, LORA, generator(0, "lora"))) for found in (base, same)]
    for autocast in (False, True):
        found = []
        for one in tuned:
            one.module.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                logp = logprobs(one)
            logp.sum().backward()
            found.append((logp.detach(), [weight.grad for weight in learning_tensors(one.module).values()]))
        torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=0 if shape != "mixtral" else 1e-6)
        assert found[0][1] and all(grad is not None for grad in found[0][1])
        for ours, theirs in zip(found[0][1], found[1][1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    fresh = learner(base, LORA, generator(0, "lora"))
    assert torch.equal(logprobs(fresh), logprobs(base)), "with the adapter off, and with one that is zero yet"
    off = (logprobs(base) - logprobs(exact))[BATCH.mask_BT].detach().abs()
    assert 1e-3 < float(off.mean()) < 1.0


@needs_bits
def test_no_unpacked_copy_waits_for_the_backward_pass() -> None:
    x = torch.randn(2, 3, 64, requires_grad=True)
    weights = [nn.Parameter(FourBit.of(torch.randn(4, 64)), requires_grad=False) for _ in range(2)]
    saved = list[Tensor]()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        y = project_by(x, weights, [None, None])
    assert [type(tensor) for tensor in saved] == [Tensor, FourBit, FourBit]
    y.sum().backward()
    assert x.grad is not None
    whole = torch.cat([weight.float() for weight in weights])
    torch.testing.assert_close(x.grad, whole.sum(0).expand_as(x))


@needs_bits
def test_what_is_saved_is_what_was_trained_and_the_adapter_alone_loads_again(folder: Path, tmp_path: Path) -> None:
    tuned = lively(learner(four_bits(folder), LORA, generator(0, "lora")))
    tuned.step = 1
    save_policy(tmp_path / "whole", tuned)
    save_adapter(tmp_path / "adapter", tuned)
    assert {file.name for file in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    whole, again = load_policy(tmp_path / "whole", CPU), load_adapted(tmp_path / "adapter", four_bits(folder))
    assert torch.equal(logprobs(again), logprobs(tuned))
    torch.testing.assert_close(logprobs(whole), logprobs(tuned), rtol=0, atol=2e-5)
    assert not is_four_bit(whole.module) and nearly_same(again.module, whole.module)
    merged = bridle.load(folder, adapter=tmp_path / "adapter", precision="float32", frozen_precision="nf4")
    merged.merge()
    torch.testing.assert_close(logprobs(merged.policy), logprobs(tuned), rtol=0, atol=2e-5)
    again_alone = bridle.load(folder, precision="float32", frozen_precision="nf4").copy()
    assert torch.equal(logprobs(again_alone.policy), logprobs(four_bits(folder)))
    assert save_policy(tmp_path / "base", four_bits(folder)) == save_policy(
        tmp_path / "exact", load_policy(folder, CPU)
    )


@needs_bits
def test_heads_and_adapters_of_all_four_lie_on_one_trunk(folder: Path, tmp_path: Path) -> None:
    begins = learner(four_bits(folder), LORA, generator(0, "lora"))
    scorer = scorer_from(lively(begins).module, generator(0, "head"))
    made = RewardModel(
        scorer, begins.template, "new", source=begins.source, adapter=begins.adapter, rounded=True,
        probes=[{"ids": [5, 6, 7], "scores": [0.0]}],
    )  # fmt: skip
    save_reward_model(tmp_path / "reward", made)
    tuned = learner(four_bits(folder), LORA, generator(0, "lora"))
    reward = load_reward_model(tmp_path / "reward", CPU, on_base_of=tuned)
    torch.testing.assert_close(reward.module.batch_scores(BATCH), scorer.batch_scores(BATCH), rtol=0, atol=2e-5)
    critic = critic_from(reward.module, LORA, generator(0, "critic"))
    packed = [
        {id(w.packed) for w in net.parameters() if isinstance(w, FourBit)}
        for net in (tuned.module, reward.module, critic)
    ]
    assert packed[0] == packed[1] == packed[2] and len(packed[0]) == 14
    alone = load_reward_model(tmp_path / "reward", CPU, held="nf4")
    assert is_four_bit(alone.module) and alone.rounded


@needs_bits
@pytest.mark.parametrize("shape", ["llama", "gemma2"])
def test_it_is_decoded_and_goes_back_to_what_it_was(shape: str) -> None:
    base = policy(shape)
    narrow_matrices(base.module, CPU, "nf4")
    tuned = lively(
        learner(base, LoRASection(r=4, target_modules=["q_proj"], modules_to_save=["up_proj"]), generator(0, "lora"))
    )
    began = branch(tuned.module)
    found = []
    for module in (tuned.module, merged_copy(tuned.module)):
        engine, one = Engine(torch.float32), Policy(module, base.template, "made")
        engine.load(one)
        found.append(
            answer_prompts(engine, one, [Prompt.from_text("Tell me a joke.")], Sampling(8, 0.0), seed=0)[0].token_ids
        )
    assert found[0] == found[1]
    before = logprobs(tuned)
    for weight in learning_tensors(tuned.module).values():
        weight.data += 1
    become(tuned.module, began)
    assert torch.equal(logprobs(tuned), before)


@needs_bits
def test_layers_of_another_kind_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="linear layers of a gpt2 model are of another kind"):
        narrow_matrices(policy("gpt2").module, CPU, "nf4")


@needs_bits
def test_from_python_an_adapter_alone_learns_on_it(folder: Path) -> None:
    low = bridle.load(folder, precision="float32", frozen_precision="nf4")
    with pytest.raises(UsageError, match="an adapter alone can learn"):
        bridle.sft(low, [("Hi", "Hello.")])
    before = logprobs(low.policy)
    bridle.sft(low, [("Hi", "Hello."), ("And you?", "Fine.")] * 4, lora_r=4, learning_rate=1e-2)
    assert is_four_bit(low.policy.module) and not torch.equal(logprobs(low.policy), before)


def test_whole_training_and_compiled_layers_are_refused() -> None:
    with pytest.raises(RecipeError, match="an adapter alone can learn, and lora.r is 0; set lora.r, 16 is usual"):
        Recipe().with_settings({"model.frozen_precision": "nf4"})
    with pytest.raises(RecipeError, match="compiles no matrices in four bits"):
        Recipe().with_settings({"model.frozen_precision": "nf4", "model.kernels": "torch", "lora.r": 16})
    assert Recipe().with_settings({"model.frozen_precision": "nf4", "lora.r": 16}).model.frozen_precision == "nf4"


def test_without_bitsandbytes_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UsageError, match=r"needs bitsandbytes, which is not installed; `pip install 'bridle\[bits\]'`"):
        FourBit.of(torch.zeros(4, 64))
