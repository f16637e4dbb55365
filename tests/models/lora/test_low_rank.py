"""Adapters on a network: what they compute, what of it learns, what is shared, and what the engine decodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridle.compute.randomness import generator
from bridle.core.errors import RecipeError, UsageError
from bridle.core.records import Prompt
from bridle.generation.engine import Engine, answer_prompts
from bridle.generation.sampling import Sampling
from bridle.kernels.kernels import project
from bridle.models.batches import make_batch, sequence_logprobs
from bridle.models.foreign import LanguageModel
from bridle.models.lora.adapter import branch, learning_tensors
from bridle.models.lora.low_rank import (
    LowRank,
    add_low_rank,
    become,
    is_adapted,
    merged_copy,
    merged_tensors,
    merged_weight,
    same_function,
    through,
    without_adapter,
)
from bridle.models.lora.policies import learner
from bridle.models.policy import Policy
from bridle.models.scorer import critic_from, scorer_from
from bridle.recipe.data import LoRASection
from tests.models.tiny import policy, random_ids

SHAPES = ["llama", "qwen2", "gpt2", "gemma2", "mixtral"]


def adapted(shape: str = "llama", lively: bool = True, **settings: Any) -> tuple[Policy, Policy]:
    """A base, and the same with an adapter that changes what it says."""
    base = policy(shape)
    found = learner(base, LoRASection(**{"r": 4, **settings}), generator(0, "lora"))
    if lively:
        draws = torch.Generator().manual_seed(7)
        for part in found.module.modules():
            if isinstance(part, LowRank):
                part.B.data.normal_(0, 0.1, generator=draws)
    return base, found


def logits(found: Policy) -> Tensor:
    with torch.no_grad():
        return found.module(torch.tensor(random_ids(2, 12, 12)))


def places(module: nn.Module) -> set[int]:
    return {weight.data_ptr() for weight in module.parameters()}


@pytest.mark.parametrize(("rslora", "scale"), [(False, 32 / 4), (True, 32 / math.sqrt(4))])
def test_what_an_adapter_adds_is_the_product_of_its_matrices(rslora: bool, scale: float) -> None:
    config = LoRASection(r=4, rslora=rslora)
    linear, x = nn.Linear(3, 2), torch.tensor([[1.0, -2.0, 0.5]])
    adapter = add_low_rank(linear, config.r, config.scale)
    adapter.A.data, adapter.B.data = torch.arange(12.0).view(4, 3) / 10, torch.arange(8.0).view(2, 4) / 5
    by_hand = x @ linear.weight.T + linear.bias + scale * (x @ (adapter.B @ adapter.A).T)
    torch.testing.assert_close(through(x, linear), by_hand)
    torch.testing.assert_close(linear(x), by_hand)
    torch.testing.assert_close(merged_weight(linear), linear.weight + scale * adapter.B @ adapter.A)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_the_formula(frozen: bool, bias: bool) -> None:
    """Of maps side by side, of which one has no adapter: x Wᵀ + b + s x Aᵀ Bᵀ for each, by autograd."""
    draws = torch.Generator().manual_seed(3)
    linears = [nn.Linear(6, width, bias=bias, dtype=torch.float64).requires_grad_(not frozen) for width in (4, 3, 5)]
    adapters = {n: add_low_rank(linears[n], 2, 1.5) for n in (0, 2)}
    for adapter in adapters.values():
        adapter.A.data.normal_(generator=draws), adapter.B.data.normal_(generator=draws)
    x = torch.randn(2, 7, 6, dtype=torch.float64, generator=draws).requires_grad_()
    upstream = torch.randn(2, 7, 12, dtype=torch.float64, generator=draws)
    learns = [x, *(p for linear in linears for p in linear.parameters() if p.requires_grad)]
    ours = torch.autograd.grad((through(x, *linears) * upstream).sum(), learns)
    by_hand = torch.cat(
        [
            F.linear(x, m.weight, m.bias) + (1.5 * x @ (a.B @ a.A).T if (a := adapters.get(n)) else 0)
            for n, m in enumerate(linears)
        ],
        -1,
    )
    torch.testing.assert_close(ours, torch.autograd.grad((by_hand * upstream).sum(), learns))
    with torch.no_grad():
        torch.testing.assert_close(through(x, *linears), by_hand)


def test_gpt_2_has_its_weights_the_other_way_round() -> None:
    from transformers.pytorch_utils import Conv1D

    linear, x = Conv1D(5, 3), torch.randn(2, 3)
    adapter = add_low_rank(linear, 2, 1.0)
    nn.init.normal_(adapter.A)
    nn.init.normal_(adapter.B)
    assert adapter.A.shape == (2, 3) and adapter.B.shape == (5, 2)
    torch.testing.assert_close(linear(x), x @ merged_weight(linear) + linear.bias)


def test_it_begins_as_pefts_do() -> None:
    """A uniform within ±1/√in, with the spread of that, B zero."""
    _, found = adapted(lively=False, r=16)
    for part in found.module.modules():
        if isinstance(part, LowRank):
            bound = part.A.shape[1] ** -0.5
            assert not part.B.any() and float(part.A.detach().abs().max()) <= bound
            assert float(part.A.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_new_one_changes_nothing_and_a_trained_one_decodes_as_it_was_trained(shape: str) -> None:
    base, new = adapted(shape, lively=False)
    assert torch.equal(logits(base), logits(new)) and same_function(base.module, new.module)
    base, trained = adapted(shape)
    assert not torch.allclose(logits(base), logits(trained), atol=0.1) and not same_function(
        base.module, trained.module
    )
    whole = merged_copy(trained.module)
    assert not is_adapted(whole) and not places(whole) & places(trained.module)
    torch.testing.assert_close(logits(trained), whole(torch.tensor(random_ids(2, 12, 12))).detach(), rtol=0, atol=1e-4)
    assert list(dict(merged_tensors(trained.module))) == list(base.module.state_dict())


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_what_is_sampled_is_what_is_trained(shape: str) -> None:
    _, found = adapted(shape)
    engine, prompts = Engine(torch.float32), [Prompt.from_text(f"What is {i} + 1?") for i in range(4)]
    engine.load(found)
    answers = answer_prompts(engine, found, prompts, Sampling(8, 1.0), seed=0)
    batch = make_batch(
        found.template.prompt_ids(prompts), [a.token_ids for a in answers], found.template.pad_id, torch.device("cpu")
    )
    with torch.no_grad():
        read = sequence_logprobs(found.module, batch)[batch.mask_BT]
    sampled = torch.tensor([logp for answer in answers for logp in answer.sampled_logprobs])
    torch.testing.assert_close(read, sampled, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", ["llama", "gemma2"])
def test_padding_and_company_change_no_log_prob(shape: str) -> None:
    _, found = adapted(shape)
    prompts, answers = random_ids(4, 3, 20, 1), random_ids(4, 2, 9, 2)
    with torch.no_grad():
        together = sequence_logprobs(found.module, make_batch(prompts, answers, 0, torch.device("cpu"))).sum(1)
        alone = [
            sequence_logprobs(found.module, make_batch([p], [a], 0, torch.device("cpu"))).sum()
            for p, a in zip(prompts, answers, strict=True)
        ]
    torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_base_and_reference_are_one_memory(shape: str) -> None:
    base, found = adapted(shape)
    own = {
        name: weight for name, weight in found.module.named_parameters() if weight.data_ptr() not in places(base.module)
    }
    assert own and all(name.endswith((".lora.A", ".lora.B")) for name in own)
    assert sum(w.numel() for w in own.values()) < 0.2 * sum(w.numel() for w in base.module.parameters())
    assert set(own) == set(learning_tensors(found.module)) and all(w.requires_grad for w in base.module.parameters())
    again = branch(found.module)
    assert places(again) & places(found.module) == places(base.module)
    for name, weight in learning_tensors(again).items():
        assert torch.equal(weight, own[name]) and weight.data_ptr() != own[name].data_ptr()


@pytest.mark.parametrize("shape", ["llama", "mixtral"])
def test_nothing_but_the_adapter_gets_a_gradient(shape: str) -> None:
    base, found = adapted(shape)
    found.module.hidden(torch.tensor(random_ids(2, 12, 12))).square().sum().backward()
    with_gradient = {name for name, weight in found.module.named_parameters() if weight.grad is not None}
    assert with_gradient == set(learning_tensors(found.module))
    assert all(weight.grad is None for weight in base.module.parameters())


def test_gradients_are_those_of_the_merged_product() -> None:
    torch.manual_seed(0)
    linears, x = [nn.Linear(6, 4), nn.Linear(6, 3)], torch.randn(5, 6, requires_grad=True)
    adapters = [add_low_rank(linear, 2, 0.5) for linear in linears]
    for part in (*adapters, *linears):
        nn.init.normal_(part.B if isinstance(part, LowRank) else part.weight)
    for linear in linears:
        linear.requires_grad_(False)
        for name, weight in linear.named_parameters():
            weight.requires_grad_(".A" in name or ".B" in name)
    through(x, *linears).square().sum().backward()
    found = [weight.grad for weight in (x, *(w for a in adapters for w in (a.A, a.B)))]
    merged = [linear.weight.detach() + 0.5 * a.B @ a.A for linear, a in zip(linears, adapters, strict=True)]
    weights = [x, *(w for a in adapters for w in (a.A, a.B))]
    whole = torch.cat([x @ merged[0].T + linears[0].bias, x @ merged[1].T + linears[1].bias], -1)
    for one, expected in zip(found, torch.autograd.grad(whole.square().sum(), weights), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-4)
    assert all(linear.weight.grad is None for linear in linears)


def test_a_frozen_product_has_the_gradient_of_its_input_alone() -> None:
    torch.manual_seed(0)
    learns, x = nn.Linear(6, 4), torch.randn(5, 6, requires_grad=True)
    project(x, learns).square().sum().backward()
    expected, x.grad = x.grad, None
    learns.requires_grad_(False)
    project(x, learns).square().sum().backward()
    assert x.grad is not None and torch.equal(x.grad, expected)


def test_heads_on_an_adapted_trunk_share_its_base() -> None:
    base, found = adapted()
    reward = scorer_from(found.module, torch.Generator().manual_seed(0))
    critic = critic_from(reward)
    for scorer in (reward, critic):
        assert places(base.module.model) < places(scorer) and scorer.score.weight.requires_grad
        learns = set(learning_tensors(scorer))
        assert "score.weight" in learns and all(".lora." in name for name in learns - {"score.weight"})
    on_it = critic_from(scorer_from(base.module, torch.Generator()), LoRASection(r=2), torch.Generator().manual_seed(0))
    assert not on_it.score.weight.any() and is_adapted(on_it)


def test_it_becomes_again_what_it_began_as() -> None:
    base, found = adapted(modules_to_save=["lm_head"])
    with torch.no_grad():
        found.module.output_weight().mul_(2)
    assert not torch.equal(found.module.output_weight(), base.module.output_weight())
    kept = branch(found.module)
    become(found.module, base.module)
    assert torch.equal(logits(found), logits(base))
    become(found.module, kept)
    assert same_function(found.module, kept) and not same_function(found.module, base.module)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target_modules": ["q_proj", "query"]}, "target_modules names 'query', and no linear layer of the model is called that; it has"),
        ({"modules_to_save": ["lm_haed"]}, "modules_to_save names 'lm_haed', and no part of the model is called that"),
    ],
)  # fmt: skip
def test_what_no_part_is_called_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        adapted(**settings)


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
@pytest.mark.parametrize("left", [merged_copy, without_adapter])
def test_one_that_follows_another_counts_once(left: Callable[[LanguageModel], LanguageModel], shape: str) -> None:
    first, second = (replace(base := policy(shape), module=base.module) for _ in range(2))
    first.module = left(learner(first, LoRASection(r=4), generator(0, "before")).module)
    tuned = [learner(found, LoRASection(r=4), generator(0, "lora")) for found in (first, second)]
    for found in tuned:
        for part in found.module.modules():
            if isinstance(part, LowRank):
                nn.init.constant_(part.B, 0.05)
    logp = [sequence_logprobs(found.module, make_batch([[5, 6]], [[7, 8, 9]], 0)) for found in tuned]
    assert torch.equal(*logp)


def test_a_tied_head_is_named_by_the_embeddings() -> None:
    with pytest.raises(RecipeError, match="'lm_head', .*; its head is tied to its embeddings, so name these"):
        adapted("llama-tied", modules_to_save=["lm_head"])
    base, found = adapted("llama-tied", modules_to_save=["embed_tokens"])
    assert found.module.output_weight().requires_grad and found.module.output_weight().data_ptr() not in places(
        base.module
    )


def test_some_layers_alone_and_never_two_adapters() -> None:
    _, found = adapted(target_modules=["q_proj", "v_proj"])
    assert {name.split(".")[-3] for name in learning_tensors(found.module)} == {"q_proj", "v_proj"}
    with pytest.raises(UsageError, match="has an adapter already"):
        learner(found, LoRASection(r=2), torch.Generator())
