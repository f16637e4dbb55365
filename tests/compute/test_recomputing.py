"""Layers that are run again in the backward pass: the same gradients to the bit, and fewer bytes that wait for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bridle
from bridle.compute.randomness import generator
from bridle.compute.recomputing import Layered, recompute_layers
from bridle.core.errors import UnsupportedModel
from bridle.kernels.kernels import choose_kernels
from bridle.models.batches import make_batch, sequence_logprobs
from bridle.models.decoder import DecoderConfig, Layer, View, rope_tables
from bridle.models.foreign import ForeignTrunk
from bridle.models.lora.policies import learner
from bridle.models.policy import Policy, save_policy
from bridle.recipe.data import LoRASection
from bridle.recipe.recipe import Recipe
from tests.api.test_lora import CALLS, tensors
from tests.families.lora_memory import waiting
from tests.models.tiny import CPU, policy, random_ids

SHAPES = ["llama", "qwen2", "qwen3", "gpt2", "gemma2", "bloom", "mixtral"]
BATCH = make_batch(random_ids(2, 20, 30, seed=1) * 2, random_ids(4, 10, 20, seed=2), 0)  # prompts with two answers


def read(found: Policy) -> tuple[Tensor, dict[str, Tensor], int]:
    """Log-probs of a batch, the gradients of all that learns, and the bytes that waited for them."""
    found.module.zero_grad()
    weights = {weight.untyped_storage().data_ptr() for weight in found.module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logp = sequence_logprobs(found.module, BATCH)
    waited = sum(kept.values())
    logp.sum().backward()
    grads = {name: w.grad.clone() for name, w in found.module.named_parameters() if w.grad is not None}
    return logp.detach(), grads, waited


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("adapted", [False, True])
def test_the_gradients_are_the_same_and_fewer_bytes_wait_for_them(shape: str, adapted: bool) -> None:
    found = policy(shape)
    if adapted:
        found = learner(found, LoRASection(r=4), generator(0, "lora"))
        nn.init.normal_(next(w for name, w in found.module.named_parameters() if name.endswith("lora.B")))
    logp, grads, waited = read(found)
    recompute_layers(found.module, True)
    again, same, fewer = read(found)
    assert torch.equal(again, logp) and same.keys() == grads.keys() != set()
    assert all(torch.equal(same[name], grad) for name, grad in grads.items())
    assert fewer < 0.5 * waited, (fewer, waited)
    recompute_layers(found.module, False)
    assert read(found)[2] == waited


def test_a_layer_keeps_what_the_documentation_counts() -> None:
    config = DecoderConfig("llama", 300, 64, 192, 1, 4, 2, 16)
    layer, view = Layer(config), View(rope_tables(config, torch.float32, CPU))
    x, delta = (torch.randn(1, 200, 64, requires_grad=True) for _ in range(2))
    kept = dict[int, int]()
    weights = {weight.data_ptr() for weight in layer.parameters()} | {table.data_ptr() for table in view.tables}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    choose_kernels("auto")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _outputs = layer(x, delta, view, torch.float32)
    joined = (
        4 * 64 * (2 * 32 + 2 * 192)
    )  # of weights that are trained, key's and value's, gate's and up's, a copy waits too
    waited = sum(count for place, count in kept.items() if place not in weights) - joined
    assert waiting(config, 200, 4) <= waited <= 1.05 * waiting(config, 200, 4)


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_without_gradients_no_layer_is_run_twice(shape: str) -> None:
    found, runs = policy(shape), list[object]()
    recompute_layers(found.module, True)
    layers = [part for part in found.module.modules() if isinstance(part, nn.ModuleList)][0]
    layers[0].register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        sequence_logprobs(found.module, BATCH)
    assert len(runs) == 1


def test_layers_that_cannot_be_told_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = policy("gpt2")
    monkeypatch.setattr(ForeignTrunk, "parts", lambda self: [])
    with pytest.raises(UnsupportedModel, match="set checkpoint_activations to false"):
        recompute_layers(found.module, True)


@pytest.mark.parametrize("name", ["sft", "dpo", "ppo", "grpo"])
def test_a_trainer_ends_in_the_same_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_policy(tmp_path / "base", policy())
    (call, settings), found, trained = CALLS[name], list[Mapping[str, Tensor]](), set[bool]()
    plain = Layered.recompute
    monkeypatch.setattr(Layered, "recompute", lambda self, on: (trained.add(on), plain(self, on)))
    for again in (False, True):
        model = bridle.load(tmp_path / "base", precision="float32")
        spared: dict[str, Any] = {"checkpoint_activations": again, "offload_optimizer": again}
        more: dict[str, Any] = {**spared, "optimizer": "adamw", "learning_rate": 1e-3}
        call(model, **settings, **more)
        found.append(tensors(model))
        trunk = model.policy.module.model
        assert trunk.recomputed is again and trained == {again}
        trained.clear()
        said = capsys.readouterr()
        assert ("offload_optimizer changes nothing here" in said.out + said.err) is again
    assert all(torch.equal(found[0][part], tensor) for part, tensor in found[1].items())


@pytest.mark.parametrize("name", ["checkpoint_activations", "offload_optimizer"])
def test_a_run_may_be_resumed_with_it(name: str) -> None:
    keys = {Recipe().with_settings({f"model.{name}": on}).hash_of("model", "sft") for on in (False, True)}
    assert len(keys) == 1
