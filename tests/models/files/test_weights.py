"""Weights of a folder are read as transformers reads them, or refused by the name of the tensor or the setting."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bridle.core.errors import ModelError
from bridle.models.policy import (
    RewardModel,
    inspect_policy,
    load_policy,
    load_reward_model,
    save_policy,
    save_reward_model,
)
from bridle.models.scorer import scorer_from
from tests.models.tiny import CPU, FOREIGN, one_sentence, policy, random_ids, template, write_foreign, write_safetensors

Change = Callable[[dict[str, torch.Tensor]], Any]
EMBEDDINGS = {"gemma": "model.embed_tokens.weight", "gpt2": "transformer.wte.weight"}
FIRST = {"gemma": "model.layers.0.mlp.up_proj.weight", "gpt2": "transformer.h.0.mlp.c_fc.weight"}


def write(folder: Path, shape: str, change: Change | None = None, **settings: Any) -> Path:
    """A tiny model's folder with its tensors changed, and settings of its config.json."""
    if shape in FOREIGN:
        write_foreign(folder, shape)
    else:
        save_policy(folder, policy(shape))
    if change is not None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        write_safetensors(folder / "model.safetensors", tensors)
    raw = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value != "gone"}))
    return folder


def logits(folder: Path, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of bridle, and of transformers."""
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        return load_policy(folder, CPU).module(ids), theirs(ids).logits


def refused(load: Callable[[], Any], *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        load()
    told = str(caught.value)
    assert all(word in told for word in words) and one_sentence(told), told


def embeddings(shape: str) -> str:
    return EMBEDDINGS.get(shape, "model.embed_tokens.weight")


# --------------------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize("shape", ["llama-tied", "qwen3", "gemma", "gpt2"])
def test_a_tied_config_with_another_head_keeps_the_head(shape: str, tmp_path: Path) -> None:
    """As transformers does; saved again it is untied for every reader."""

    def add_head(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors[embeddings(shape)].flip(0)

    write(tmp_path / "model", shape, add_head)
    ids = torch.tensor(random_ids(2, 40, 40))
    ours, theirs = logits(tmp_path / "model", ids)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    inspect_policy(tmp_path / "model")
    save_policy(tmp_path / "again", load_policy(tmp_path / "model", CPU))
    assert json.loads((tmp_path / "again/config.json").read_text())["tie_word_embeddings"] is False
    for found in logits(tmp_path / "again", ids):
        torch.testing.assert_close(found, ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", ["llama-tied", "gemma"])
def test_a_head_of_another_shape_is_refused(shape: str, tmp_path: Path) -> None:
    write(tmp_path, shape, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(200, 32)}))
    refused(lambda: load_policy(tmp_path, CPU), "lm_head.weight", "has shape [200, 32]")


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "extra",
    ["lm_head.bias", "v_head.summary.weight", "score.weight", "model.layers.7.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias"],
)  # fmt: skip
def test_what_the_network_does_not_have_is_refused(shape: str, extra: str, tmp_path: Path) -> None:
    """Other heads, other layers, biases that the settings switch off."""
    write(tmp_path, shape, lambda tensors: tensors.update({extra: torch.zeros(32)}))
    refused(lambda: load_policy(tmp_path, CPU), f"1 unknown (such as ['{extra}'])")


@pytest.mark.parametrize("shape", ["llama", "qwen2", "gemma", "gpt2", "mixtral"])
def test_what_would_be_random_is_refused(shape: str, tmp_path: Path) -> None:
    names = list[str]()

    def drop_last_norm(tensors: dict[str, torch.Tensor]) -> None:
        names.append(next(n for n in tensors if n.endswith(("model.norm.weight", "transformer.ln_f.weight"))))
        del tensors[names[0]]

    write(tmp_path, shape, drop_last_norm)
    refused(lambda: load_policy(tmp_path, CPU), f"1 missing (such as ['{names[0]}'])")


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_a_matrix_that_was_transposed_is_refused(shape: str, tmp_path: Path) -> None:
    name = "transformer.h.0.attn.c_attn.weight" if shape == "gpt2" else "model.layers.0.mlp.up_proj.weight"
    write(tmp_path, shape, lambda tensors: tensors.update({name: tensors[name].T.contiguous()}))
    refused(lambda: load_policy(tmp_path, CPU), name, "has shape")


# ------------------------------------------------------------------------------------------------------- numbers


def filled(value: float, dtype: torch.dtype) -> Change:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = next(n for n in FIRST.values() if n in tensors)
        tensors[name] = tensors[name].to(dtype)
        tensors[name].view(-1)[3] = value

    return change


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (float("nan"), torch.float32), (float("inf"), torch.bfloat16), (-float("inf"), torch.float16),
        (1e300, torch.float64), (7e4, torch.float16),
    ],
)  # fmt: skip
def test_numbers_that_are_none_are_refused(shape: str, value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    """Of float64 too large for float32, of float16 too large already as they were saved."""
    write(tmp_path, shape, filled(value, dtype))
    refused(
        lambda: load_policy(tmp_path, CPU),
        f"{FIRST.get(shape, FIRST['gemma'])} in {tmp_path}",
        "1 of",
        "NaN or infinite",
    )


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_a_reward_head_of_nan_is_refused(shape: str, tmp_path: Path) -> None:
    """Its probes would not say so: nothing differs from NaN."""
    scorer = scorer_from(policy(shape).module, torch.Generator().manual_seed(0))
    save_reward_model(tmp_path, RewardModel(scorer, template(), "made", probes=[{"ids": [5, 6], "scores": [0.1]}]))
    tensors = load_file(tmp_path / "model.safetensors")
    write_safetensors(tmp_path / "model.safetensors", {**tensors, "score.weight": torch.full((1, 32), torch.nan)})
    refused(lambda: load_reward_model(tmp_path, CPU), "score.weight", "NaN or infinite")


@pytest.mark.parametrize("shape", ["llama", "mixtral"])  # whose experts lie apart in its files
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_full_weights_of_every_type_are_read(shape: str, dtype: torch.dtype, tmp_path: Path) -> None:
    write(tmp_path, shape, lambda tensors: tensors.update({name: t.to(dtype) for name, t in tensors.items()}))
    ours, theirs = logits(tmp_path, torch.tensor(random_ids(1, 20, 20)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


# ----------------------------------------------------------------------------------------------------- quantised


def quantised(dtype: torch.dtype, *scales: str) -> Change:
    """A matrix as raw numbers, with or without what gives them a meaning."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = next(n for n in [*FIRST.values(), "model.layers.0.block_sparse_moe.experts.0.w1.weight"] if n in tensors)
        tensors[name] = (tensors[name] * 20).to(dtype)
        for scale in scales:
            tensors[name.removesuffix("weight") + scale] = torch.ones(1)

    return change


@pytest.mark.parametrize("shape", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize(
    ("dtype", "scales"),
    [
        (torch.int8, ()), (torch.uint8, ("weight.absmax",)), (torch.float8_e4m3fn, ()),
        (torch.float8_e5m2, ("weight_scale_inv",)),
    ],
)  # fmt: skip
def test_quantised_numbers_are_refused_by_name(
    shape: str, dtype: torch.dtype, scales: tuple[str, ...], tmp_path: Path
) -> None:
    write(tmp_path, shape, quantised(dtype, *scales))
    refused(lambda: load_policy(tmp_path, CPU), ".weight in", "is stored as", "fetch the full weights")


@pytest.mark.parametrize("shape", ["llama", "gemma"])
def test_a_scale_that_nobody_reads_is_refused(shape: str, tmp_path: Path) -> None:
    write(tmp_path, shape, quantised(torch.bfloat16, "weight_scale"))
    refused(lambda: load_policy(tmp_path, CPU), "1 unknown (such as ['model.layers.0.mlp.up_proj.weight_scale'])")


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "'bitsandbytes'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "'gptq'"),
        ({"quantization_config": {"quant_method": "awq"}}, "'awq'"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "'fp8'"),
        ({"quantization_config": {"load_in_8bit": True}}, "load_in_8bit"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "'compressed-tensors'"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "'bits': 4"),
    ],
)
def test_a_quantised_model_is_refused_by_its_method(
    shape: str, settings: dict[str, Any], told: str, tmp_path: Path
) -> None:
    """Whatever its tensors look like, and before they are read."""
    write(tmp_path, shape, lambda tensors: tensors.pop(next(iter(tensors))), **settings)
    for load in (inspect_policy, lambda folder: load_policy(folder, CPU)):
        refused(lambda load=load: load(tmp_path), "are quantised", told)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_beside_the_model_is_refused(name: str, tmp_path: Path) -> None:
    (write(tmp_path, "llama") / name).write_text("{}")
    refused(lambda: load_policy(tmp_path, CPU), f"an adapter beside it ({name})", "merge")


# ------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("final_logit_softcapping", 5.0), ("embedding_multiplier", 12.0), ("attn_logit_soft_cap", 20), ("logit_scale", 0.25),
        ("scale_embedding", True),
    ],
)  # fmt: skip
def test_a_scaling_that_the_network_does_not_have_is_refused(
    shape: str, name: str, value: object, tmp_path: Path
) -> None:
    write(tmp_path, shape, **{name: value})
    refused(lambda: load_policy(tmp_path, CPU), f"{name} = {value!r}", "does not apply")


def test_a_scaling_that_changes_nothing_is_none(tmp_path: Path) -> None:
    write(tmp_path, "llama", final_logit_softcapping=None, logit_scale=1.0, scale_embedding=False)
    load_policy(tmp_path, CPU)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ("mistral", {"attention_bias": True}),  # switches that these two do not have
        ("qwen2", {"attention_bias": True, "mlp_bias": True}),
        ("qwen3", {"mlp_bias": True}),
        ("mistral", {"sliding_window": 12}),
        ("mistral", {"sliding_window": "gone", "max_position_embeddings": "gone"}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 12, "max_window_layers": 0}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 12, "layer_types": ["sliding_attention"] * 2}),
        ("llama", {"sliding_window": 12, "use_sliding_window": True}),  # it knows none
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": 1e4}),
        ("llama", {"rope_parameters": None, "rope_theta": 5e5}),
        ("llama", {"rope_scaling": {"type": "default"}, "rope_theta": 5e5}),
        ("llama", {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 32}}),  # beside the parameters
        ("llama", {"rope_parameters": {"rope_type": "llama3", **LLAMA3}}),
        ("llama", {"rope_parameters": {"rope_type": "llama3", **LLAMA3}, "original_max_position_embeddings": 16}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 32}}),
        ("llama", {"partial_rotary_factor": 0.5}),
        ("qwen3", {"num_key_value_heads": 2, "hidden_act": "gelu"}),
        ("llama", {"tie_word_embeddings": "gone"}),
        ("llama", {"rms_norm_eps": "gone", "hidden_act": "gone", "attention_bias": "gone"}),
    ],
)  # fmt: skip
def test_settings_of_native_families_mean_what_transformers_takes_them_for(
    shape: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """By the native decoder or by transformers, over the whole context."""
    write(tmp_path, shape, **settings)
    ours, theirs = logits(tmp_path, torch.tensor(random_ids(1, 96, 96)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


def test_qwen3_without_a_head_size_has_heads_of_128(tmp_path: Path) -> None:
    write(tmp_path, "qwen3", head_dim="gone")
    refused(lambda: load_policy(tmp_path, CPU), "q_proj.weight", "where config.json asks for [512, 32]")
