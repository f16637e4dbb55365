"""GGUF files of Llama shapes: tiny ones, written by the gguf package from transformers' networks, and what is refused by its key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import dequantize, quantize
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from bridle.api.models import load
from bridle.core.errors import BridleError, ModelError, UsageError
from bridle.models.files import gguf as module
from bridle.models.files.gguf import NAMES, unpacked
from bridle.models.files.gguf_tokenizer import sentence_piece
from bridle.models.policy import Policy, load_policy
from tests.models.families import CHATML, HEADERS, LLAMA3, byte_level, spaced
from tests.models.tiny import CPU, SMALL, one_sentence, random_ids
from tests.tiny_project import bridle as command
from tests.tiny_project import complaint, done, settings

Change = Callable[[GGUFWriter], object]
OURS = {theirs: ours for ours, theirs in NAMES.items()}
PLAIN = GGMLQuantizationType.F32
FREQUENCIES = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def network(**changes: Any) -> Any:
    settings = {
        **SMALL,
        "hidden_size": 64,
        "head_dim": 16,
        "vocab_size": 420,
        "eos_token_id": 2,
        "bos_token_id": 1,
        **changes,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **settings), dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in found.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return found


def llama_cpp_name(name: str) -> str:
    *outer, ending = name.removeprefix("model.layers.").split(".") if "layers" in name else name.split(".")
    if "layers" in name:
        return f"blk.{outer[0]}.{OURS['.'.join(outer[1:])]}.{ending}"
    return f"{OURS['.'.join(outer)]}.{ending}"


def llama_cpp_rows(name: str, numbers: np.ndarray, config: Any) -> np.ndarray:
    """Q and K as llama.cpp's converter orders them."""
    heads = (
        config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads if ".k_proj." in name else 0
    )
    if not heads:
        return numbers
    return (
        numbers.reshape(heads, 2, len(numbers) // heads // 2, *numbers.shape[1:]).swapaxes(1, 2).reshape(numbers.shape)
    )


def write_gguf(
    path: Path,
    theirs: Any,
    tokenizer: Tokenizer,
    kind: GGMLQuantizationType = PLAIN,
    change: Change = lambda writer: None,
    pre: str = "llama-bpe",
    template: str = CHATML,
    architecture: str = "llama",
) -> dict[str, np.ndarray]:
    """A file as llama.cpp's converter writes one; the numbers that stand in it, by Hugging Face's names."""
    config, writer, expected = theirs.config, GGUFWriter(path, architecture), {}
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    parts = json.loads(tokenizer.to_str())
    added = {
        token["content"]: TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
        for token in parts["added_tokens"]
    }
    tokens = [str(tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size())]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([added.get(token, TokenType.NORMAL) for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in parts["model"]["merges"]])
    writer.add_chat_template(template)
    for name, tensor in theirs.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        numbers = tensor.numpy()
        type_ = kind if numbers.ndim > 1 and numbers.shape[-1] % 32 == 0 else PLAIN
        stored = quantize(llama_cpp_rows(name, numbers, config), type_)
        writer.add_tensor(llama_cpp_name(name), stored, raw_dtype=type_)
        expected[name] = dequantize(quantize(numbers, type_), type_)
    change(writer)
    if "llama.context_length" not in writer.kv_data[0]:
        writer.add_context_length(config.max_position_embeddings)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def ended(tokenizer: Tokenizer, end: str) -> Change:
    return lambda writer: writer.add_eos_token_id(int(tokenizer.token_to_id(end)))


def chatml() -> Tokenizer:
    return byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], [])


def read(path: Path) -> Policy:
    with unpacked(path) as folder:
        return load_policy(folder, CPU)


# ------------------------------------------------------------------------------------------------- what is honoured


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_number_is_the_one_that_the_file_stands_for(kind: str, tied: bool, tmp_path: Path) -> None:
    theirs, tokenizer = network(tie_word_embeddings=tied), chatml()
    expected = write_gguf(
        tmp_path / "m.gguf", theirs, tokenizer, GGMLQuantizationType[kind], ended(tokenizer, "<|im_end|>")
    )
    ours = read(tmp_path / "m.gguf")
    assert {name: tensor.shape for name, tensor in ours.module.state_dict().items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    for name, tensor in ours.module.state_dict().items():
        assert np.array_equal(tensor.numpy(), expected[name]), name


@pytest.mark.parametrize(
    ("changes", "change"),
    [
        ({}, None),
        ({"attention_bias": True, "mlp_bias": True}, None),
        ({"rms_norm_eps": 1e-5, "num_key_value_heads": 1}, None),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e4, "factor": 2.0}},
            lambda w: (w.add_rope_scaling_type(ScalingType("linear")), w.add_rope_scaling_factor(2.0)),
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
            lambda w: w.add_rope_scaling_factor(4.0),
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 24}},
            lambda w: (w.add_rope_scaling_type(ScalingType("yarn")), w.add_rope_scaling_factor(4.0), w.add_rope_scaling_orig_ctx_len(24)),
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **FREQUENCIES}},
            lambda w: w.add_tensor("rope_freqs.weight", llama3_factors(5e5, 16)),
        ),
    ],
    ids=["plain", "biases", "epsilon", "linear", "of no kind", "yarn", "llama3"],
)  # fmt: skip
def test_logits_equal_those_of_the_model_that_it_was_made_from(
    changes: dict[str, Any], change: Change | None, tmp_path: Path
) -> None:
    theirs, tokenizer = network(**changes), chatml()
    write_gguf(
        tmp_path / "m.gguf",
        theirs,
        tokenizer,
        change=lambda w: (ended(tokenizer, "<|im_end|>")(w), change and change(w)),
    )
    ours, ids = read(tmp_path / "m.gguf").module, torch.tensor(random_ids(1, 90, 90))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=2e-4)
        assert float(ours(ids).std()) > 0.5


def ScalingType(value: str) -> Any:
    from gguf import RopeScalingType

    return RopeScalingType(value)


def llama3_factors(theta: float, size: int) -> np.ndarray:
    """What llama.cpp's converter writes for Llama 3.1, frequency by frequency."""
    found = []
    for i in range(0, size, 2):
        wavelength = 2 * np.pi * theta ** (i / size)
        smooth = (8192 / wavelength - 1) / 3
        found.append(1.0 if wavelength < 2048 else 8.0 if wavelength > 8192 else 1 / ((1 - smooth) / 8 + smooth))
    return np.array(found, dtype=np.float32)


def test_the_tokenizer_the_template_and_the_stops_are_the_files(tmp_path: Path) -> None:
    tokenizer = byte_level([*HEADERS, "<|end_of_text|>", "<|eom_id|>"], ["<think>"])

    def stops(writer: GGUFWriter) -> None:
        writer.add_bos_token_id(int(tokenizer.token_to_id("<|begin_of_text|>")))
        writer.add_eos_token_id(int(tokenizer.token_to_id("<|end_of_text|>")))
        writer.add_eot_token_id(int(tokenizer.token_to_id("<|eot_id|>")))
        writer.add_eom_token_id(int(tokenizer.token_to_id("<|eom_id|>")))

    write_gguf(tmp_path / "m.gguf", network(), tokenizer, change=stops, template=LLAMA3)
    ours = read(tmp_path / "m.gguf").template
    assert ours.source == LLAMA3 and ours.bos_token == "<|begin_of_text|>"
    named = ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>")
    assert ours.stop_ids == {tokenizer.token_to_id(token) for token in named}
    for text in ("Hello, you're 12345 years old.\n\n\tYes  indeed <|eot_id|><think>é", " a", "", "x\r\n\r\ny"):
        assert ours.tokenizer.encode(text).tokens == tokenizer.encode(text).tokens
    special = (
        {i: token.special for i, token in t.get_added_tokens_decoder().items()} for t in (ours.tokenizer, tokenizer)
    )
    assert next(special) == next(special)


def test_digits_are_cut_as_the_file_says(tmp_path: Path) -> None:
    tokenizer = chatml()
    write_gguf(tmp_path / "m.gguf", network(), tokenizer, change=ended(tokenizer, "<|im_end|>"), pre="smollm")
    assert read(tmp_path / "m.gguf").template.tokenizer.encode("in 2024").tokens[-4:] == ["2", "0", "2", "4"]


@pytest.mark.parametrize("text", ["Hello  the cat", " the first line\n\n", "été 012 </s> day", "<s>the rain"])
def test_sentence_piece_as_llama_2s(text: str) -> None:
    """A vocabulary by its scores, which are the order of merges."""
    theirs = spaced("legacy", [], [])
    parts = json.loads(theirs.to_str())
    tokens = sorted(parts["model"]["vocab"], key=parts["model"]["vocab"].get)
    order = {left + right: -float(n) for n, (left, right) in reversed(list(enumerate(parts["model"]["merges"])))}
    types = [
        2 if token == "<unk>" else 3 if token in ("<s>", "</s>") else 6 if token.startswith("<0x") else 1
        for token in tokens
    ]
    said = {"ggml.scores": [order.get(token, -1e9) for token in tokens], "ggml.token_type": types}
    ours = sentence_piece(said, tokens)
    ours.add_special_tokens(["<unk>", "<s>", "</s>"])
    assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False).ids
    assert ours.decode(ours.encode(text).ids) == theirs.decode(theirs.encode(text).ids)


def test_a_project_begins_with_a_file(tmp_path: Path) -> None:
    tokenizer = chatml()
    write_gguf(tmp_path / "m.gguf", network(), tokenizer, change=ended(tokenizer, "<|im_end|>"))
    said = done("init", tmp_path / "p", "--model", tmp_path / "m.gguf")
    assert f"your model is taken as the base: {tmp_path / 'm.gguf'}" in said and "so it is sft too" in said
    ours, ids = load_policy(tmp_path / "p/models/sft", CPU), torch.tensor(random_ids(1, 20, 20))
    with torch.no_grad():
        assert torch.equal(ours.module(ids), load(tmp_path / "m.gguf").policy.module(ids))
    done("init", tmp_path / "q", *settings({"model.path": "../m.gguf"}))
    assert "taken as the base" in command("train", "pretrain", "--project", tmp_path / "q").stdout


# -------------------------------------------------------------------------------------------------- what is refused


def key(name: str, value: Any) -> Change:
    adders = {
        bool: GGUFWriter.add_bool,
        int: GGUFWriter.add_uint32,
        float: GGUFWriter.add_float32,
        str: GGUFWriter.add_string,
    }
    return lambda writer: adders.get(type(value), GGUFWriter.add_array)(writer, name, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (key("llama.rope.scaling.type", "longrope"), "llama.rope.scaling.type = 'longrope', which bridle cannot honour"),
        (key("llama.rope.dimension_count", 8), "llama.rope.dimension_count = 8"),
        (key("llama.logit_scale", 0.5), "llama.logit_scale = 0.5"),
        (key("llama.attention.sliding_window", 16), "llama.attention.sliding_window = 16"),
        (key("llama.expert_count", 4), "a mixture of 4 experts"),
        (key("llama.attention.causal", False), "llama.attention.causal = False"),
        (key("llama.something.new", 3), "llama.something.new = 3"),
        (key("llama.rope.scaling.factor", "many"), "llama.rope.scaling.factor = 'many'"),
        (key("llama.context_length", 0), "m.gguf/config.json"),
        (key("split.count", 3), "is one of 3 files"),
        (key("tokenizer.ggml.remove_extra_whitespaces", True), "tokenizer.ggml.remove_extra_whitespaces = True"),
        (key("tokenizer.ggml.eot_token_id", 4000), "names token 4000 as tokenizer.ggml.eot_token_id"),
        (lambda w: w.add_tensor("rope_freqs.weight", np.full(8, 3.0, np.float32)), "not Llama 3's"),
        (lambda w: w.add_tensor("blk.0.attn_q_norm.weight", np.ones(16, np.float32)), "'blk.0.attn_q_norm.weight', which no Llama"),
        (lambda w: w.add_tensor("blk.7.attn_norm.weight", np.ones(64, np.float32)), "1 unknown (such as ['model.layers.7."),
    ],
)  # fmt: skip
def test_a_key_or_a_tensor_that_changes_answers_is_refused_by_name(change: Change, words: str, tmp_path: Path) -> None:
    tokenizer = chatml()
    write_gguf(
        tmp_path / "m.gguf", network(), tokenizer, change=lambda w: (ended(tokenizer, "<|im_end|>")(w), change(w))
    )
    with pytest.raises(ModelError) as caught:
        read(tmp_path / "m.gguf")
    assert words in str(caught.value) and one_sentence(str(caught.value)), str(caught.value)


def test_other_families_and_rules_are_refused(tmp_path: Path) -> None:
    tokenizer = chatml()
    write_gguf(tmp_path / "qwen.gguf", network(), tokenizer, architecture="qwen2")
    write_gguf(tmp_path / "pre.gguf", network(), tokenizer, pre="default")
    for name, words in (
        ("qwen", "of the architecture 'qwen2', and of those bridle reads 'llama'"),
        ("pre", "by the rule 'default'"),
    ):
        told = complaint(command("init", tmp_path / "p", "--model", tmp_path / f"{name}.gguf"))
        assert words in told and one_sentence(told) and not (tmp_path / "p").exists()


@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 0.9])
def test_a_file_that_is_cut_short_is_refused(share: float, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", network(), chatml())
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ModelError, match="cannot be read as a GGUF file") as caught:
        read(tmp_path / "m.gguf")
    assert one_sentence(str(caught.value))


def test_a_count_beyond_the_file_ends_at_once(tmp_path: Path) -> None:
    """A list that claims 2⁶⁰ entries."""
    head = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    listed = (
        (1).to_bytes(8, "little")
        + b"x"
        + (9).to_bytes(4, "little")
        + (4).to_bytes(4, "little")
        + (2**60).to_bytes(8, "little")
    )
    (tmp_path / "m.gguf").write_bytes(head + listed + b"\0" * 64)
    with pytest.raises(ModelError, match="cannot be read as a GGUF file"):
        read(tmp_path / "m.gguf")


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(UsageError, match=r"pip install 'bridle\[gguf\]'") as caught:
        module.read_gguf(tmp_path / "m.gguf")
    assert isinstance(caught.value, BridleError) and one_sentence(str(caught.value))
