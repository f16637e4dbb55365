"""Beside peft: its numbers, as recorded by `record_peft.py`; its folders read here and ours read by it, where it is installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bridle.compute.randomness import generator
from bridle.core.errors import BridleError, ModelError, UnsupportedModel
from bridle.models.lora.low_rank import add_low_rank, merged_weight, through
from bridle.models.lora.peft_files import read_settings
from bridle.models.lora.policies import learner, load_adapted, save_adapter
from bridle.models.policy import Policy, RewardModel, load_policy, load_reward_model, save_policy, save_reward_model
from bridle.models.scorer import scorer_from
from bridle.recipe.data import LoRASection
from tests.models.lora.record_peft import CASES, RECORDED, numbers
from tests.models.tiny import CPU, SHAPES, one_sentence, policy, random_ids, write_foreign

IDS = torch.tensor(random_ids(2, 12, 12))


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_are_pefts(name: str) -> None:
    """Outputs, gradients and merged weights of layers whose numbers are known."""
    from transformers.pytorch_utils import Conv1D

    expected, settings = json.loads(RECORDED.read_text())[name], CASES[name]
    layer = Conv1D(3, 5) if name == "conv1d" else nn.Linear(5, 3)
    layer.weight.data, layer.bias.data = numbers(*layer.weight.shape, seed=1), numbers(3, seed=2)
    config = LoRASection(r=settings["r"], alpha=float(settings["lora_alpha"]), rslora=settings.get("use_rslora", False))
    adapter = add_low_rank(layer, config.r, config.scale)
    adapter.A.data, adapter.B.data = numbers(*adapter.A.shape, seed=3), numbers(*adapter.B.shape, seed=4)
    for run in (lambda x: layer(x), *([lambda x: through(x, layer)] if isinstance(layer, nn.Linear) else [])):
        x = numbers(4, 5, seed=5).requires_grad_(True)
        y = run(x)
        adapter.zero_grad()
        y.square().sum().backward()
        found = {
            "y": y,
            "x_grad": x.grad,
            "a_grad": adapter.A.grad,
            "b_grad": adapter.B.grad,
            "merged": merged_weight(layer),
        }
        for key, tensor in found.items():
            assert tensor is not None
            torch.testing.assert_close(tensor.detach(), torch.tensor(expected[key]), rtol=1e-5, atol=1e-4, msg=key)


# ------------------------------------------------------------------------------------------------------------- folders


def trained(folder: Path, shape: str, **settings: Any) -> tuple[Policy, Policy]:
    """A base in `folder/base`, and it with an adapter that was trained, it seems, saved in `folder/out`."""
    if shape in SHAPES:
        save_policy(folder / "base", policy(shape))
    else:
        write_foreign(folder / "base", shape)
    base = load_policy(folder / "base", CPU)
    found = learner(base, LoRASection(**{"r": 4, **settings}), generator(0, "lora"))
    draws = torch.Generator().manual_seed(3)
    for weight in found.module.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn(weight.shape, generator=draws)
    found.step = 1
    save_policy(folder / "out", found)
    return base, found


def logits(found: Policy) -> Tensor:
    with torch.no_grad():
        return found.module(IDS)


COMBINATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "tied": ("llama-tied", {"modules_to_save": ["embed_tokens"]}),
    "some": ("qwen3", {"target_modules": ["q_proj", "v_proj"], "rslora": True}),
    "whole": ("llama", {"modules_to_save": ["lm_head", "norm"]}),
    "gpt2": ("gpt2", {}),
    "mixtral": ("mixtral", {}),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_what_is_saved_is_loaded_merged_or_to_be_trained_further(name: str, tmp_path: Path) -> None:
    shape, settings = COMBINATIONS[name]
    base, found = trained(tmp_path, shape, **settings)
    merged = load_policy(tmp_path / "out", CPU)
    assert merged.adapter is None
    torch.testing.assert_close(logits(merged), logits(found), rtol=0, atol=1e-4)
    again = load_adapted(tmp_path / "out/adapter", base)
    assert torch.equal(logits(again), logits(found)) and again.adapter is not None
    assert again.adapter.config.r == 4 and again.adapter.config.rslora == settings.get("rslora", False)
    save_adapter(tmp_path / "alone", again)
    assert (
        load_file(tmp_path / "alone/adapter_model.safetensors").keys()
        == load_file(tmp_path / "out/adapter/adapter_model.safetensors").keys()
    )
    own = [path.name for path in (tmp_path / "out").iterdir() if path.is_file()]
    assert not [name for name in own if "adapter" in name], "transformers would put it on the merged weights once more"


def test_a_reward_model_keeps_its_head_with_its_adapter(tmp_path: Path) -> None:
    base, found = trained(tmp_path, "llama")
    scorer = scorer_from(found.module, torch.Generator().manual_seed(0))
    model = RewardModel(scorer, base.template, "new", source=base.source, adapter=found.adapter)
    save_reward_model(tmp_path / "reward", model)
    tensors = load_file(tmp_path / "reward/adapter/adapter_model.safetensors")
    assert torch.equal(tensors["base_model.model.score.weight"], scorer.score.weight.detach())
    whole, lengths = load_reward_model(tmp_path / "reward", CPU).module, torch.tensor([12, 9])
    torch.testing.assert_close(whole.scores(IDS, lengths), scorer.scores(IDS, lengths), rtol=0, atol=1e-5)


peft_is_quiet = pytest.mark.filterwarnings("ignore::FutureWarning")


@peft_is_quiet
@pytest.mark.parametrize("name", COMBINATIONS)
def test_peft_reads_ours_and_we_read_pefts(name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    shape, settings = COMBINATIONS[name]
    base, found = trained(tmp_path, shape, **settings)
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32, attn_implementation="eager")
    theirs = peft.PeftModel.from_pretrained(network.eval(), tmp_path / "out/adapter")
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, logits(found), rtol=0, atol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(logits(load_adapted(tmp_path / "theirs", base)), logits(found), rtol=0, atol=1e-4)


@peft_is_quiet
def test_peft_reads_a_reward_models(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForSequenceClassification

    base, found = trained(tmp_path, "llama")
    scorer = scorer_from(found.module, torch.Generator().manual_seed(0))
    save_adapter(tmp_path / "alone", RewardModel(scorer, base.template, "new", adapter=found.adapter))
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1, dtype=torch.float32)
    network.config.pad_token_id = 299
    theirs = peft.PeftModel.from_pretrained(network.eval(), tmp_path / "alone")
    with torch.no_grad():
        expected = scorer.scores(IDS, torch.tensor([12, 12]))
        torch.testing.assert_close(theirs(IDS).logits[:, 0], expected, rtol=0, atol=1e-4)


@peft_is_quiet
def test_pefts_own_choice_of_layers_is_read(tmp_path: Path) -> None:
    """By a regular expression, with a name of its own for the base, and dropout, which has no effect on what is computed."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base, _ = trained(tmp_path, "llama")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    config = peft.LoraConfig(
        r=3, lora_alpha=5, lora_dropout=0.1, target_modules=r".*layers\.1\..*(q|down)_proj", task_type="CAUSAL_LM",
        init_lora_weights=False,
    )  # fmt: skip
    theirs = peft.get_peft_model(network, config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    found = load_adapted(tmp_path / "theirs", base)
    assert found.adapter is not None and found.adapter.config.alpha == 5
    with torch.no_grad():
        torch.testing.assert_close(logits(found), theirs(IDS).logits, rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------------------------------ refusals


def setting(key: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    return change


def without_a_tensor(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"]
    save_file(tensors, path)


def narrower(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    save_file({**tensors, name: tensors[name][:, :-1].contiguous()}, path)


def not_a_number(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(path).items()}, path)


def gone(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (setting("use_dora", True), UnsupportedModel, "says use_dora = True, which bridle's adapters do not have; merge it"),
        (setting("bias", "lora_only"), UnsupportedModel, "says bias = 'lora_only'"),
        (setting("layers_pattern", ["h"]), UnsupportedModel, "says layers_pattern = ['h']"),
        (setting("layers_to_transform", [0]), UnsupportedModel, "says layers_to_transform = [0]"),
        (setting("rank_pattern", {"q_proj": 8}), UnsupportedModel, "says rank_pattern = {'q_proj': 8}"),
        (setting("alpha_pattern", {"q_proj": 8}), UnsupportedModel, "says alpha_pattern"),
        (setting("target_parameters", ["experts.up"]), UnsupportedModel, "says target_parameters"),
        (setting("lora_bias", True), UnsupportedModel, "says lora_bias = True"),
        (setting("init_lora_weights", "pissa"), UnsupportedModel, "says init_lora_weights = 'pissa'"),
        (setting("what_comes_next", 3), UnsupportedModel, "says what_comes_next = 3"),
        (setting("peft_type", "IA3"), UnsupportedModel, "of an adapter of kind 'IA3', and bridle reads LORA alone"),
        (setting("r", 0), ModelError, "needs r and lora_alpha above 0"),
        (setting("r", "16"), ModelError, "needs r and lora_alpha above 0"),
        (setting("lora_alpha", None), ModelError, "needs r and lora_alpha above 0"),
        (setting("modules_to_save", [3]), ModelError, "names of modules as lists of texts"),
        (setting("r", 10**6), ModelError, "is of rank 4, where adapter_config.json says r = 1000000; they are not of one adapter"),
        (without_a_tensor, ModelError, "is not of this base model: it lacks model.layers.1.mlp.up_proj.lora.B"),
        (setting("target_modules", ["q_proj"]), ModelError, "is not of this base model: it holds model.layers.0.mlp.down_proj.lora.A"),
        (narrower, ModelError, "model.layers.0.mlp.up_proj.lora.A has shape [4, 31], where [4, 32] is needed"),
        (not_a_number, ModelError, "holds numbers that are NaN or infinite"),
        (gone, ModelError, "has no adapter_model.safetensors but adapter_model.bin, pickles"),
        (cut, ModelError, "cannot be read (truncated or corrupted?)"),
    ],
)  # fmt: skip
def test_what_would_compute_something_else_is_refused_by_name(
    damage: Callable[[Path], None], kind: type[BridleError], words: str, tmp_path: Path
) -> None:
    base, _ = trained(tmp_path, "llama")
    damage(tmp_path / "out/adapter")
    with pytest.raises(kind) as caught:
        load_adapted(tmp_path / "out/adapter", base)
    assert words in str(caught.value) and one_sentence(str(caught.value)), str(caught.value)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    """Of equal shapes by the hash that ours carry; of others by the first that differs."""
    trained(tmp_path, "llama")
    save_policy(tmp_path / "other", policy("llama", seed=1))
    with pytest.raises(ModelError, match=r"was trained on .*base with the content v2-.*, and .*other has v2-"):
        load_adapted(tmp_path / "out/adapter", load_policy(tmp_path / "other", CPU))
    save_policy(tmp_path / "wider", policy("qwen3"))
    with pytest.raises(ModelError, match="was trained on"):
        load_adapted(tmp_path / "out/adapter", load_policy(tmp_path / "wider", CPU))
    without_hash = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    save_file(without_hash, tmp_path / "out/adapter/adapter_model.safetensors")
    with pytest.raises(ModelError, match="is not of this base model: .* has shape"):
        load_adapted(tmp_path / "out/adapter", load_policy(tmp_path / "wider", CPU))


def test_embeddings_that_were_trained_apart_from_their_tied_head_are_refused(tmp_path: Path) -> None:
    base, _ = trained(tmp_path, "llama-tied", modules_to_save=["embed_tokens"])
    path = tmp_path / "out/adapter/adapter_model.safetensors"
    tensors = load_file(path)
    del tensors["base_model.model.lm_head.weight"]
    save_file(tensors, path)
    with pytest.raises(UnsupportedModel, match="trained the embeddings apart from the head that is tied to them"):
        load_adapted(tmp_path / "out/adapter", base)


def test_what_changes_nothing_is_taken(tmp_path: Path) -> None:
    trained(tmp_path, "llama")
    for key, value in {"lora_dropout": 0.05, "inference_mode": False, "revision": "main", "use_dora": False}.items():
        setting(key, value)(tmp_path / "out/adapter")
    config, base = read_settings(tmp_path / "out/adapter")
    assert config.r == 4 and config.alpha == 32 and base == str(tmp_path / "base")
