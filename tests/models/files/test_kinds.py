"""Other kinds of models are refused by their family and kind, at `init`, before a weight is read; the project is not made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bridle.core.errors import ModelError
from bridle.models.policy import load_policy
from tests.models.tiny import CPU, one_sentence, template, write_foreign
from tests.tiny_project import bridle, complaint

Write = Callable[[Path], object]


def config(**raw: Any) -> Write:
    """A folder that says what it is, and has neither weights nor a tokenizer."""

    def write(place: Path) -> None:
        place.mkdir()
        (place / "config.json").write_text(json.dumps(raw))

    return write


def embedding(place: Path) -> None:
    config(model_type="qwen3", architectures=["Qwen3ForCausalLM"])(place)
    (place / "modules.json").write_text("[]")


def reward_model(place: Path) -> None:
    """Of a family without a class for scores: config.json names the trunk, and its head was tied."""
    config(model_type="cohere", architectures=["CohereModel"], tie_word_embeddings=True)(place)
    (place / "bridle_reward.json").write_text("{}")


def only(*names: str, content: bytes = b"?") -> Write:
    def write(place: Path) -> None:
        place.mkdir()
        for name in names:
            (place / name).write_bytes(content)

    return write


def file(content: bytes) -> Write:
    return lambda place: place.write_bytes(content)


def pickles(place: Path) -> None:
    network = write_foreign(place, "gpt2")
    (place / "model.safetensors").unlink()
    torch.save(network.state_dict(), place / "pytorch_model.bin")


def quantised(place: Path) -> None:
    write_foreign(place, "gpt2")
    (place / "model.safetensors").rename(place / "gpt2.gguf")


KINDS: dict[str, tuple[str, Write, str]] = {  # what it is called there, what it is, and words of the sentence
    "T5": (
        "mine",
        config(model_type="t5", is_encoder_decoder=True, architectures=["T5ForConditionalGeneration"]),
        "T5ForConditionalGeneration of model_type 't5', an encoder with a decoder",
    ),
    "BART": (
        "mine",
        config(model_type="bart", is_encoder_decoder=True),
        "a model of model_type 'bart', an encoder with a decoder",
    ),
    "Whisper": (
        "mine",
        config(model_type="whisper", is_encoder_decoder=True, architectures=["WhisperForConditionalGeneration"]),
        "'whisper', an encoder with a decoder",
    ),
    "speech": (
        "mine",
        config(model_type="wav2vec2", architectures=["Wav2Vec2ForCTC"]),
        "'wav2vec2', which reads sound",
    ),
    "speech beside text": (
        "mine",
        config(model_type="qwen2_audio", audio_config={}, text_config={}),
        "'qwen2_audio', which reads sound beside text",
    ),
    "images beside text": (
        "mine",
        config(model_type="qwen2_5_vl", vision_config={}, architectures=["Qwen2_5_VLForConditionalGeneration"]),
        "'qwen2_5_vl', which reads images beside text; save its text part alone",
    ),
    "sequence classification": (
        "mine",
        config(model_type="llama", architectures=["LlamaForSequenceClassification"]),
        "LlamaForSequenceClassification of model_type 'llama', which scores text and writes none",
    ),
    "token classification": (
        "mine",
        config(model_type="bert", architectures=["BertForTokenClassification"]),
        "'bert', which labels tokens and writes no text",
    ),
    "question answering": (
        "mine",
        config(model_type="bert", architectures=["BertForQuestionAnswering"]),
        "'bert', which marks answers within a text",
    ),
    "encoder": (
        "mine",
        config(model_type="bert", architectures=["BertForMaskedLM"]),
        "'bert', which fills gaps in a text and continues none",
    ),
    "embedding": ("mine", embedding, "'qwen3' for sentence-transformers, an embedding model"),
    "reward model": ("mine", reward_model, "a reward model of bridle's, which scores text and writes none"),
    "trunk": (
        "mine",
        config(model_type="bert", architectures=["BertModel"]),
        "a trunk without a language model's head",
    ),
    "adapter": (
        "mine",
        only("adapter_config.json", "adapter_model.safetensors", content=b'{"base_model_name_or_path": "some/base"}'),
        "is a LoRA adapter and not a whole model, and its base 'some/base' is not a folder here",
    ),
    "pickles": ("mine", pickles, "has pytorch_model.bin: pickles, which may run code as they are read"),
    "pickles, no config": ("mine", only("consolidated.00.pth"), "has consolidated.00.pth: pickles"),
    "Meta's own form": ("mine", only("params.json", "consolidated.00.pth"), "params.json and no config.json"),
    "GGUF in a folder": ("mine", quantised, "has gpt2.gguf: GGUF; name the file itself"),
    "TensorFlow": ("mine", only("tf_model.h5"), "has tf_model.h5: weights for TensorFlow"),
    "ONNX": ("mine", only("model.onnx"), "ONNX"),
    "a pickle": ("model.pt", file(b"PK.."), "model.pt holds pickles, which may run code"),
    "a safetensors file": ("model.safetensors", file(b"...."), "holds weights alone; name the folder"),
    "a Git LFS pointer": (
        "model.gguf",
        file(b"version https://git-lfs.github.com/spec/v1\noid sha256:"),
        "is a pointer of Git LFS",
    ),
    "no GGUF": ("model.gguf", file(b"<!DOCTYPE html>"), "does not begin as a GGUF file does"),
    "another file": ("model.txt", file(b"hello"), "no model at"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_is_refused_by_name_at_init(kind: str, tmp_path: Path) -> None:
    name, write, words = KINDS[kind]
    write(tmp_path / name)
    told = complaint(bridle("init", tmp_path / "p", "--model", tmp_path / name))
    assert words in told and one_sentence(told), told
    assert not (tmp_path / "p").exists()


def test_what_is_no_other_kind_is_read(tmp_path: Path) -> None:
    """Settings that look like another kind's and are none: null, and encoders that are no part."""
    write_foreign(tmp_path / "mine", "gpt2")
    raw = json.loads((tmp_path / "mine/config.json").read_text())
    (tmp_path / "mine/config.json").write_text(json.dumps(raw | {"is_encoder_decoder": False, "vision_config": None}))
    assert load_policy(tmp_path / "mine", CPU).template.source == template().source


def test_a_model_put_there_by_hand_is_refused_too(tmp_path: Path) -> None:
    KINDS["T5"][1](tmp_path / "mine")
    with pytest.raises(ModelError, match="'t5', an encoder with a decoder"):
        load_policy(tmp_path / "mine", CPU)
