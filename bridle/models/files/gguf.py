"""GGUF files, llama.cpp's, of Llama shapes: unpacked into a Hugging Face folder, every number in float32.

Weights may be quantised in any way that the `gguf` package reads; quantised numbers are taken for what they stand for. The metadata hold
the configuration, the tokenizer (`gguf_tokenizer.py`) and the chat template. What of them changes an answer is honoured, or refused by
its key; a key that bridle does not know is refused, for nobody can tell what it changes.
Sources: ggml's docs/gguf.md for the keys; llama.cpp's convert_hf_to_gguf.py for the order of rows in Q and K, and for rope_freqs.
Left out on purpose: other architectures, experts, several files, adapters, vocabularies but for byte-level BPE and SentencePiece's BPE.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bridle.compute.checkpoint import save_tensors
from bridle.core.errors import ModelError, UnsupportedModel, UsageError, brief_repr
from bridle.core.files import saving
from bridle.models.files.gguf_tokenizer import tokenizer_files
from bridle.models.files.kinds import is_gguf
from bridle.models.sizes import require_memory

ARCHITECTURE = "llama"
NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
TENSOR = re.compile(r"(blk\.(?P<layer>\d+)\.)?(?P<part>\w+)\.(?P<ending>weight|bias)")
DESCRIBING = re.compile(r"(GGUF|general|quantize|split|tokenizer)\.")  # keys that are read elsewhere, or change nothing
NEUTRAL = {  # settings of others that come with llama.cpp's graph, and the values by which they change nothing
    "expert_count": (0,), "expert_used_count": (0,), "attention.causal": (True,), "use_parallel_residual": (False,),
    "attention.max_alibi_bias": (0,), "attention.clamp_kqv": (0,), "attention.sliding_window": (0,), "pooling_type": (0,),
    "logit_scale": (0, 1), "embedding_scale": (0, 1), "residual_scale": (0, 1), "attention.scale": (0,),
    "rope.scaling.attn_factor": (0, 1), "rope.scaling.yarn_log_multiplier": (0,), "rope.scale_linear": (0, 1),
    "tensor_data_layout": ("",),
}  # fmt: skip
FRACTIONS = ("attention.layer_norm_rms_epsilon", "rope.freq_base")
# Of Llama 3.1 to 3.3.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@contextmanager
def unpacked(place: Path) -> Iterator[Path]:
    """A model's folder as it is; what a GGUF file holds in a folder that goes when the block ends."""
    if not is_gguf(place):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="bridle-gguf-") as folder:
        try:
            unpack(place, Path(folder))
            yield Path(folder)
        except ModelError as error:  # the folder is gone when it is read
            raise type(error)(str(error).replace(folder, str(place))) from error


def unpack(path: Path, folder: Path) -> None:
    """Write what a GGUF file holds into a folder, as transformers would save it. ModelError: it cannot be read, or not be honoured."""
    metadata, stored = read_gguf(path)
    require_llama(path, metadata)
    require_memory(4 * sum(math.prod(tensor.shape) for tensor in stored.values()), f"the model in {path}")
    config = configuration(path, metadata, stored)
    texts = tokenizer_files(path, metadata)
    ends = json.loads(texts["generation_config.json"])
    texts["config.json"] = json.dumps({**config, **ends}, indent=2)
    heads = (config["num_attention_heads"], config["num_key_value_heads"])
    with saving(folder):
        for name, text in texts.items():
            (folder / name).write_text(text, "utf-8")
        tensors = (huggingface_tensor(path, name, tensor, heads) for name, tensor in stored.items())
        save_tensors(dict(found for found in tensors if found), folder / "model.safetensors")


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata by key, and gguf's tensors by name, which lie in the file still."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UsageError(
            f"{path} is a GGUF file, and gguf, which reads them, is not installed; `pip install 'bridle[gguf]'`"
        ) from error

    class Reader(GGUFReader):
        """That ends where the file does: gguf's own takes a count of any size for what follows."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            if (found := super()._get(offset, dtype, count, override_order)).size < int(count):
                raise ValueError("it ends before what it announces")
            return found

    try:
        reader = Reader(path)
        metadata = {key: as_written(field.contents()) for key, field in reader.fields.items()}
        return metadata, {tensor.name: tensor for tensor in reader.tensors}
    except Exception as error:  # the library raises all kinds
        raise ModelError(f"{path} cannot be read as a GGUF file (truncated or corrupted?): {error}") from error


def as_written(value: Any) -> Any:
    """A number of 32 bits as somebody wrote it: 1e-05, which Python would read as 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def require_llama(path: Path, metadata: Mapping[str, Any]) -> None:
    architecture, kind = metadata.get("general.architecture"), metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedModel(
            f"{path} is a GGUF file of the type {brief_repr(kind)} and not a whole model; name the model"
        )
    if architecture != ARCHITECTURE:
        raise UnsupportedModel(
            f"{path} is a GGUF file of the architecture {brief_repr(architecture)}, and of those bridle reads {ARCHITECTURE!r} alone; name "
            "the folder with config.json and safetensors that it was made from"
        )
    if metadata.get("split.count", 1) not in (0, 1):
        raise UnsupportedModel(
            f"{path} is one of {metadata['split.count']} files; join them with llama.cpp's `llama-gguf-split --merge` and name the whole"
        )
    if count := metadata.get(f"{ARCHITECTURE}.expert_count"):
        raise UnsupportedModel(
            f"{path} is a GGUF file of a mixture of {count} experts, as Mixtral's, which bridle reads from safetensors alone; name the "
            "folder that it was made from"
        )


def configuration(path: Path, metadata: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json would say of a Llama."""
    settings = {
        key.removeprefix(f"{ARCHITECTURE}."): value for key, value in metadata.items() if not DESCRIBING.match(key)
    }

    def taken(key: str, usual: Any = None) -> Any:
        found = settings.pop(key, usual)
        if type(found) not in ((int, float) if key in FRACTIONS else (int,)):
            raise ModelError(
                f"{path} says {ARCHITECTURE}.{key} = {brief_repr(found)}, where one number for all layers is needed"
            )
        return found

    heads, width = taken("attention.head_count"), taken("embedding_length")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "num_hidden_layers": taken("block_count"),
        "hidden_size": width,
        "intermediate_size": taken("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": taken("attention.head_count_kv", heads),
        "head_dim": taken("attention.key_length", width // heads if heads else 0),
        "rope_theta": taken("rope.freq_base", 10000.0),
        "rms_norm_eps": taken("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": taken("context_length"),
        "vocab_size": int(tensor_shape(path, stored, "token_embd.weight")[0]),
        "tie_word_embeddings": "output.weight" not in stored,  # llama.cpp writes a head where it is another matrix
        "attention_bias": "blk.0.attn_q.bias" in stored,
        "mlp_bias": "blk.0.ffn_up.bias" in stored,
        "dtype": "float32",
    }
    settings.pop("vocab_size", None)  # the embeddings' rows are it
    for key in ("attention.value_length", "rope.dimension_count"):
        if (size := taken(key, config["head_dim"])) != config["head_dim"]:
            raise cannot_honour(path, f"{ARCHITECTURE}.{key}", size)
    config["rope_parameters"] = rope_parameters(path, settings, config, stored)
    for key, value in settings.items():
        if value not in NEUTRAL.get(key, ()):
            raise cannot_honour(path, key if key in metadata else f"{ARCHITECTURE}.{key}", value)
    return config


def cannot_honour(path: Path, key: str, value: object) -> UnsupportedModel:
    return UnsupportedModel(
        f"{path} says {key} = {brief_repr(value)}, which bridle cannot honour; name the folder that the file was made from"
    )


def rope_parameters(
    path: Path, settings: dict[str, Any], config: Mapping[str, Any], stored: Mapping[str, Any]
) -> dict[str, Any]:
    """The rotary embedding's numbers, taken out of the settings: plain, linear, yarn, or Llama 3's by the factors that are stored."""
    rope: dict[str, Any] = {"rope_theta": config["rope_theta"], "rope_type": "default"}
    kind = settings.pop("rope.scaling.type", "linear")  # llama.cpp's default
    settings.pop("rope.scaling.finetuned", None)
    factor, context = settings.pop("rope.scaling.factor", 0), config["max_position_embeddings"]
    original = settings.pop("rope.scaling.original_context_length", context)
    if type(factor) not in (int, float) or factor < 0:
        raise cannot_honour(path, f"{ARCHITECTURE}.rope.scaling.factor", factor)
    if kind == "yarn" and factor:
        rope |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    elif kind == "linear" and factor:
        rope |= {"rope_type": "linear", "factor": factor}
    elif kind not in ("linear", "none"):
        raise cannot_honour(path, f"{ARCHITECTURE}.rope.scaling.type", kind)
    if "rope_freqs.weight" in stored:
        rope |= llama3_scaling(path, config["head_dim"], rope, dequantized(path, stored["rope_freqs.weight"]))
    return rope


def llama3_scaling(path: Path, head_size: int, rope: Mapping[str, Any], factors: Any) -> dict[str, Any]:
    """The settings by which the stored factors, one for each frequency, come about."""
    low, high, original = (
        LLAMA3["low_freq_factor"],
        LLAMA3["high_freq_factor"],
        LLAMA3["original_max_position_embeddings"],
    )
    if rope["rope_type"] == "default" and factors.shape == (head_size // 2,) and rope["rope_theta"] > 0:
        factor = float(factors.max())
        turns = original * float(rope["rope_theta"]) ** (-np.arange(0, head_size, 2) / head_size) / (2 * np.pi)
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        if factor > 0 and np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
            return {"rope_type": "llama3", "factor": factor, **LLAMA3}
    raise UnsupportedModel(
        f"{path} scales its rotary frequencies by rope_freqs.weight in a way that is not Llama 3's; name the folder that the file was made "
        "from"
    )


def tensor_shape(path: Path, stored: Mapping[str, Any], name: str) -> list[int]:
    if name not in stored:
        raise ModelError(f"{path} has no tensor {name}, which every Llama has; fetch or convert it again")
    return [int(size) for size in reversed(stored[name].shape)]


def huggingface_tensor(path: Path, name: str, tensor: Any, heads: tuple[int, int]) -> tuple[str, Tensor] | None:
    """A tensor under Hugging Face's name; None for the factors of the rotary embedding, which config.json has."""
    if name == "rope_freqs.weight":
        return None
    found = TENSOR.fullmatch(name)
    if found is None or found["part"] not in NAMES:
        raise UnsupportedModel(
            f"{path} holds a tensor {brief_repr(name)}, which no Llama of bridle's has; name the folder that the file was made from"
        )
    numbers = dequantized(path, tensor)
    if found["part"] in ("attn_q", "attn_k"):
        numbers = halves_first(path, numbers, heads[found["part"] == "attn_k"])
    outer = "" if found["layer"] is None else f"model.layers.{found['layer']}."
    return f"{outer}{NAMES[found['part']]}.{found['ending']}", torch.from_numpy(numbers)


def halves_first(path: Path, numbers: Any, heads: int) -> Any:
    """Rows of Q or K in Hugging Face's order. Of each head llama.cpp has the two numbers that are turned together side by side, and
    Hugging Face the first of all pairs before the second."""
    if heads < 1 or len(numbers) % (2 * heads):
        raise ModelError(f"{path} has {len(numbers)} rows in a projection of {heads} heads; fetch or convert it again")
    pairs = numbers.reshape(heads, len(numbers) // heads // 2, 2, *numbers.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(numbers.shape)


def dequantized(path: Path, tensor: Any) -> Any:
    """A tensor in float32, whatever it is quantised to."""
    from gguf.quants import dequantize

    try:
        return np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)  # a copy: the file is read only
    except Exception as error:  # the library raises all kinds
        raise ModelError(
            f"{path} holds {tensor.name} as {tensor.tensor_type.name}, which gguf cannot turn into numbers ({error}); take another "
            "quantisation of the model"
        ) from error
