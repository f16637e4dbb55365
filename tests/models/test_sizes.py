"""What a model's folder says in numbers is looked at before anything is built from it."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bridle.compute import shapes
from bridle.core.errors import ModelError
from bridle.models import policy as module
from bridle.models import sizes
from bridle.models.decoder import DecoderConfig
from bridle.models.policy import (
    RewardModel,
    Task,
    inspect_policy,
    load_policy,
    load_reward_model,
    save_policy,
    save_reward_model,
)
from bridle.models.scorer import scorer_from
from bridle.models.sizes import read_object, require_numbers, stored_shapes
from tests.models.tiny import CPU, one_sentence, policy, template, write_foreign

Damage = Callable[[Path], None]


def text(file: str, written: str) -> Damage:
    return lambda folder: (folder / file).write_text(written) and None


def settings(file: str = "config.json", **values: Any) -> Damage:
    def change(folder: Path) -> None:
        raw = json.loads((folder / file).read_text()) | values
        (folder / file).write_text(json.dumps(raw))

    return change


def refused(load: Callable[[Path], object], folder: Path, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert words in str(caught.value) and one_sentence(str(caught.value)) and len(str(caught.value)) < 600, str(
        caught.value
    )


NATIVE = [
    (text("config.json", "[" * 100_000), "nest too deep"),
    (text("config.json", '{"a": ' * 60 + "1" + "}" * 60), "more than 50 levels deep"),
    (text("config.json", '{"hidden_size": ' + "9" * 5000 + "}"), "a number of too many digits"),
    (text("config.json", '{"rms_norm_eps": NaN}'), "it holds NaN"),
    (text("config.json", '{"a": 1, "a": 2}'), "says 'a' twice"),
    (text("generation_config.json", '{"temperature": NaN}'), "it holds NaN"),
    (text("tokenizer_config.json", '{"a": ' * 100_000), "nest too deep"),
    (text("tokenizer.json", "[" * 100_000), "cannot be read as a tokenizer"),
    (settings(hidden_size=10**12), "hidden_size = 1000000000000, where the weights have"),
    (settings(hidden_size=32.5), "hidden_size = 32.5, where a whole number of at least 1"),
    (settings(hidden_size="32"), "hidden_size = '32'"),
    (settings(hidden_size=True), "hidden_size = True"),
    (settings(hidden_size=-32), "hidden_size = -32"),
    (settings(vocab_size=0), "vocab_size = 0"),
    (settings(vocab_size=10**5), "has shape [300, 32] where config.json asks for [100000, 32]"),
    (settings(num_hidden_layers=10**9), "num_hidden_layers = 1000000000, where the weights are 21 tensors"),
    (settings(head_dim=10**9), "head_dim = 1000000000, where the weights have"),
    (settings(head_dim=7), "heads of an even size, got 7"),
    (settings(num_key_value_heads=3), "query heads must be a multiple of key and value heads, got 4 and 3"),
    (settings(num_attention_heads=10**18), "num_attention_heads = 1000000000000000000"),
    (settings(num_attention_heads=5, num_key_value_heads=5, head_dim=None), "must be a multiple of num_attention_heads, got 32 and 5"),
    (settings(max_position_embeddings=10**12), "max_position_embeddings = 1000000000000, where 1000000000 at most"),
    (settings(max_position_embeddings=10**9), "GiB of memory, and this machine has"),
    (settings(rms_norm_eps=-1e-6), "rms_norm_eps = -1e-06, where a number from 0 up to 1"),
    (settings(rms_norm_eps="small"), "rms_norm_eps = 'small'"),
    (settings(rms_norm_eps=math.inf), "rms_norm_eps = inf"),
    (settings(rope_theta=0, rope_parameters=None), "rope_theta = 0, where a finite number above 0"),
    (settings(rope_parameters={"rope_type": "default", "rope_theta": -5.0}), "rope_theta = -5.0"),
    (settings(rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, "factor": 0.0, "low_freq_factor": 1.0,
                               "high_freq_factor": 4.0, "original_max_position_embeddings": 32}), "must be finite and above 0"),
    (settings(rope_parameters=[1]), "wrong type or size"),
    (settings(rope_parameters={"rope_type": "default", "rope_theta": 10**400}), "where a finite number above 0"),
    (settings(head_dim=[]), "head_dim = [], where a whole number of at least 1"),
    (settings(pad_token_id=[0]), "pad_token_id = [0], where the number of a token"),
    (settings(bos_token_id={"a": 0}), "bos_token_id = {'a': 0}, where the number of a token"),
    (settings(pad_token_id=10**6), "names token 1000000 as its pad_token_id, where vocab_size is 300"),
    (settings(bos_token_id="<s>"), "bos_token_id = '<s>', where the number of a token"),
    (settings("generation_config.json", eos_token_id=300), "names the stop token 300, where the model has embeddings for 300"),
    (settings(num_labels=10**9), "num_labels = 1000000000"),
    (settings(architectures={"a": 1}, intermediate_size=47), "has shape [48, 32] where config.json asks for [47, 32]"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "words"), NATIVE)
def test_a_number_that_no_network_has_is_refused_before_one_is_built(
    damage: Damage, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_policy(tmp_path / "model", policy())
    damage(tmp_path / "model")
    monkeypatch.setattr(module, "read_tensors", lambda folder: pytest.fail("the weights were read"))
    refused(lambda folder: load_policy(folder, CPU), tmp_path / "model", words)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (settings(n_layer=10**9), "n_layer = 1000000000, where the weights are"),
        (settings(n_embd=10**12), "n_embd = 1000000000000"),
        (settings(n_positions=10**9), "has shape [96, 32] where config.json asks for [1000000000, 32]"),
        (settings(vocab_size=10**6), "has shape [300, 32] where config.json asks for [1000000, 32]"),
        (settings(layer_norm_epsilon=-1.0), "layer_norm_epsilon = -1.0"),
        (settings(num_labels=10**9), "num_labels = 1000000000"),
        (settings(model_type=["gpt2"]), "wrong type or size"),
    ],
)
def test_so_is_one_of_a_model_that_transformers_runs(
    damage: Damage, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_foreign(tmp_path, "gpt2")
    damage(tmp_path)
    monkeypatch.setattr(
        "transformers.AutoModelForCausalLM.from_pretrained", lambda *a, **b: pytest.fail("it was built")
    )
    refused(lambda folder: load_policy(folder, CPU), tmp_path, words)


def test_what_a_family_calls_otherwise_in_its_files_is_compared_in_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixtral's files hold its experts apart, so none of their shapes is found under the network's names."""
    write_foreign(tmp_path, "mixtral")
    settings(num_local_experts=8, num_experts_per_tok=2)(tmp_path)
    settings(intermediate_size=10**4)(tmp_path)
    monkeypatch.setattr(
        "transformers.AutoModelForCausalLM.from_pretrained", lambda *a, **b: pytest.fail("it was built")
    )
    refused(lambda folder: load_policy(folder, CPU), tmp_path, "numbers, where the weights have")


def test_a_model_larger_than_the_machine_is_refused_with_both_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_policy(tmp_path / "native", policy())
    write_foreign(tmp_path / "foreign", "gpt2")
    monkeypatch.setattr(shapes.os, "sysconf", lambda name: 100)  # 10,000 bytes
    for name in ("native", "foreign"):
        refused(
            lambda folder: load_policy(folder, CPU),
            tmp_path / name,
            f"{name} needs 0.0 GiB of memory, and this machine has",
        )


TASK = {
    "name": "reward",
    "kind": "score",
    "centre": 0.0,
    "scale": 1.0,
    "temperature": 1.0,
    "rating_mean": 0.0,
    "rating_sd": 1.0,
}


@pytest.mark.parametrize(
    ("notes", "words"),
    [
        ({"tasks": [{**TASK, "scale": 0.0}]}, "scale = 0.0 of the task 'reward', where a finite number above 0"),
        ({"tasks": [{**TASK, "temperature": -1.0}]}, "temperature = -1.0"),
        ({"tasks": [{**TASK, "centre": "0"}]}, "centre = '0'"),
        ({"tasks": [{**TASK, "centre": math.inf}]}, "centre = inf"),
        ({"tasks": [{**TASK, "kind": "odd"}]}, "of kind 'odd'"),
        ({"tasks": [{**TASK, "name": 3}]}, "names a task 3"),
        ({"probes": [{"ids": [10**9], "scores": [0.0]}]}, "a probe that the model cannot score"),
        ({"probes": [{"ids": [], "scores": [0.0]}]}, "a probe that the model cannot score"),
        ({"probes": [{"ids": [1] * 97, "scores": [0.0]}]}, "a probe that the model cannot score"),
        ({"probes": [{"ids": [1], "scores": [math.inf]}]}, "a probe that the model cannot score"),
        ({"probes": [{"ids": [1], "scores": ["0"]}]}, "a probe that the model cannot score"),
    ],
)
def test_a_reward_models_numbers_are_looked_at_too(notes: dict[str, Any], words: str, tmp_path: Path) -> None:
    scorer = scorer_from(policy().module, torch.Generator().manual_seed(0))
    save_reward_model(tmp_path / "model", RewardModel(scorer, template(), "new", [Task()], []))
    settings("bridle_reward.json", **notes)(tmp_path / "model")
    refused(lambda folder: load_reward_model(folder, CPU), tmp_path / "model", words)


def test_a_folder_is_inspected_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_tensors", lambda folder: pytest.fail("the weights were read"))
    save_policy(tmp_path / "native", policy())
    write_foreign(tmp_path / "foreign", "gpt2")
    for name in ("native", "foreign"):
        inspect_policy(tmp_path / name)
        settings(vocab_size=10**12)(tmp_path / name)
        refused(inspect_policy, tmp_path / name, "vocab_size = 1000000000000")


def test_shapes_come_from_headers_of_any_type(tmp_path: Path) -> None:
    tensors = {
        "a": torch.zeros(2, 3, dtype=torch.bfloat16),
        "b": torch.zeros(4, dtype=torch.float8_e4m3fn),
        "c": torch.zeros(()),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    assert stored_shapes([tmp_path / "x.safetensors"]) == {"a": [2, 3], "b": [4], "c": []}


@pytest.mark.parametrize(
    "data",
    [
        (2**62).to_bytes(8, "little"),
        (200 * 2**20).to_bytes(8, "little") + b"{}",
        b"\x02" + bytes(7) + b"[]",
        *(
            len(header).to_bytes(8, "little") + header + bytes(4)
            for header in (
                b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,400]}}',
                b'{"a":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,4]}}',
                b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
                b'{"a":' + b"[" * 100_000,
            )
        ),
    ],
)
def test_a_header_that_lies_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    refused(
        lambda folder: stored_shapes([folder / "x.safetensors"]), tmp_path, "cannot be read (truncated or corrupted?)"
    )


def test_infinity_stands_in_the_files_of_some_families(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    assert read_object(tmp_path / "config.json") == {"time_step_limit": [0.0, math.inf]}


@pytest.mark.parametrize(
    "numbers", [{"layers": 0}, {"kv_heads": 3}, {"head_size": 7}, {"norm_eps": math.nan}, {"rope_theta": math.inf}]
)
def test_no_decoder_has_these_numbers(numbers: dict[str, Any]) -> None:
    shape = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_size": 8,
    }
    assert DecoderConfig("llama", **shape).bytes == 4 * (2 * (2 * 32 * 8 * 6 + 3 * 32 * 48) + 300 * 32) + 16 * 512 * 8
    with pytest.raises(ValueError, match="must be|at least 1|even size"):
        DecoderConfig("llama", **{**shape, **numbers})


@pytest.mark.parametrize(
    ("raw", "shape"),
    [
        (
            {"vocab_size": 9, "n_embd": 8, "n_layer": 2, "n_head": 4, "n_inner": None},  # GPT-2
            {"vocab_size": 9, "hidden_size": 8, "layers": 2, "heads": 4, "kv_heads": 4, "intermediate_size": 32},
        ),
        (
            {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "num_kv_heads": 2, "ffn_dim": 5},
            {"hidden_size": 8, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate_size": 5},
        ),
        ({"num_attention_heads": 4, "multi_query": True}, {"heads": 4, "kv_heads": 1}),
        ({"text": {"hidden_size": 8, "n_inner": 3}, "other": {"hidden_size": 7}}, {"hidden_size": 8, "intermediate_size": 3}),
    ],
)  # fmt: skip
def test_the_shape_is_read_by_any_familys_names(raw: dict[str, Any], shape: dict[str, int]) -> None:
    assert sizes.shape_of(raw) == shape


def test_what_families_say_of_nothing_is_no_fault() -> None:
    """Cohere 2's experts have no RMS norm and say so; Qwen2-MoE's window is 0 where it is switched off."""
    require_numbers({"rms_norm_eps": None, "use_sliding_window": False, "sliding_window": 0}, Path("config.json"))
    with pytest.raises(ModelError, match="sliding_window = 0"):
        require_numbers({"sliding_window": 0}, Path("config.json"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("tie_word_embeddings", "x"),
            ("tie_word_embeddings", {"a": 1}),
            ("attention_bias", "false"),
            ("mlp_bias", 1),
        ),
        *(
            ("use_sliding_window", "no"),
            ("hidden_act", 3),
            ("rope_scaling", "linear"),
            ("rope_parameters", {"factor": "2"}),
        ),
        *(("sliding_window", "64"), ("architectures", "LlamaForCausalLM"), ("final_logit_softcapping", "30")),
    ],
)
def test_a_setting_of_another_type_is_named_and_never_taken_for_true(name: str, value: object) -> None:
    with pytest.raises(ModelError, match="config.json holds a value of the wrong type or size: it needs ") as error:
        require_numbers({"model_type": "llama", name: value}, Path("m/config.json"))
    assert f"got {name}" in str(error.value)
