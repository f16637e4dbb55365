"""Tiny random models for tests: two layers, 32 wide, lively logits, every family that the native decoder knows, and some
that transformers runs."""

import tempfile
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bridle.models.decoder import Decoder, DecoderConfig, initialise
from bridle.models.files.new_tokenizer import train_tokenizer
from bridle.models.foreign import LanguageModel
from bridle.models.policy import Policy, load_policy
from bridle.models.template import Template

VOCABULARY = 300
CPU = torch.device("cpu")
TEXTS = [
    "Human: My cat is bored. Any advice?\nAssistant: You can play with the cat every day.",
    "Human: Tell me a joke about rain.\nAssistant: The rain had a bad day, so it fell.",
    "System: Answer briefly.\nHuman: What is 2 + 3?\nAssistant: 5.",
] * 3

SHAPES = {
    "llama": DecoderConfig("llama", VOCABULARY, 32, 48, 2, 4, 2, 8, max_positions=96, tie_embeddings=False),
    "llama-tied": DecoderConfig("llama", VOCABULARY, 32, 48, 2, 4, 4, 8, max_positions=96),
    "llama-scaled": DecoderConfig(
        "llama", VOCABULARY, 32, 48, 2, 4, 1, 16, rope_llama3=(8.0, 1.0, 4.0, 32.0), max_positions=96
    ),
    "llama-biased": DecoderConfig(
        "llama", VOCABULARY, 32, 48, 2, 4, 2, 8, max_positions=96, qkv_bias=True, output_bias=True, mlp_bias=True
    ),
    "mistral": DecoderConfig("mistral", VOCABULARY, 32, 48, 2, 4, 2, 8, max_positions=96, tie_embeddings=False),
    "qwen2": DecoderConfig("qwen2", VOCABULARY, 32, 48, 2, 4, 2, 8, max_positions=96, qkv_bias=True),
    "qwen3": DecoderConfig("qwen3", VOCABULARY, 32, 48, 2, 4, 2, 16, max_positions=96),
}
FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]

LIVELY: dict[str, Any] = {"vocab_size": VOCABULARY, "initializer_range": 0.3, "bos_token_id": 2, "eos_token_id": 1}
SMALL: dict[str, Any] = {
    **LIVELY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 96, "pad_token_id": 0,
}  # fmt: skip
SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
FOREIGN: dict[str, dict[str, Any]] = {  # the settings of transformers' configurations
    "gpt2": {**LIVELY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96},
    "gemma": {**SMALL, "head_dim": 8},
    "gemma2": {**SMALL, **SLIDING, "head_dim": 8, "final_logit_softcapping": 4.0, "attn_logit_softcapping": 2.0},
    "granite": {**SMALL, "logits_scaling": 0.5},  # logits are divided by it; at .2 float32 rounds past 1e-4
    "phi": {**SMALL, "num_key_value_heads": 4},  # its head has a bias
    "bloom": {**LIVELY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0},  # takes no positions
    "mixtral": {**SMALL, "num_local_experts": 4},  # its files hold the experts apart, its module in one tensor
    "mistral-window": {**SMALL, "sliding_window": 16},  # a native family, but for its window
}
FALLBACK = ["gpt2", "gemma", "gemma2"]


@cache
def template() -> Template:
    return train_tokenizer(TEXTS, VOCABULARY)


def policy(shape: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32) -> Policy:
    """A random policy whose distributions are neither flat nor certain; norms and biases are random too."""
    module = deepcopy(foreign(shape, seed)) if shape in FOREIGN else native(shape, seed)
    return Policy(module.to(dtype), template(), f"tiny-{shape}-{seed}".ljust(20, "."))


@cache  # a copy is quicker than a folder
def foreign(shape: str, seed: int) -> LanguageModel:
    with tempfile.TemporaryDirectory() as folder:
        write_foreign(Path(folder), shape, seed)
        return load_policy(Path(folder), CPU).module


def write_foreign(folder: Path, shape: str, seed: int = 0, **changes: object) -> Any:
    """A model as transformers saves it, with the tiny tokenizer beside it; transformers' network. `changes` of settings."""
    from transformers import AutoConfig, AutoModelForCausalLM  # not at import: most tests do without it

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AutoConfig.for_model(shape.removesuffix("-window"), **{**FOREIGN[shape], **changes})
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.2)
    network.save_pretrained(folder)
    template().save(folder, 96)
    return network


def native(shape: str, seed: int) -> Decoder:
    config = SHAPES[shape]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():  # PyTorch draws biases
        torch.manual_seed(seed)
        module = Decoder(config)
    initialise(module, config.layers, generator)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "embed_tokens" in name or "lm_head" in name:
                parameter.mul_(15)
            elif parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return module


def random_ids(count: int, shortest: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Rows of ids of uneven length, special tokens left out."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def one_sentence(text: str) -> bool:
    """A message for the command line: one line, one sentence, no traceback in it."""
    return bool(text) and "\n" not in text and "Traceback" not in text and len(text) < 600


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})
