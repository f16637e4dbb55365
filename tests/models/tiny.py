"""Tiny random models for tests: two layers, 32 wide, lively logits, every family that the native decoder knows."""

from functools import cache
from pathlib import Path

import torch

from bridle.models.decoder import Decoder, DecoderConfig, initialise
from bridle.models.policy import Policy
from bridle.models.template import Template, train_tokenizer

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


@cache
def template() -> Template:
    return train_tokenizer(TEXTS, VOCABULARY)


def policy(shape: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32) -> Policy:
    """A random policy whose distributions are neither flat nor certain; norms and biases are random too."""
    config = SHAPES[shape]
    generator = torch.Generator().manual_seed(seed)
    module = Decoder(config)
    initialise(module, config.layers, generator)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "embed_tokens" in name or "lm_head" in name:
                parameter.mul_(15)
            elif parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return Policy(module.to(dtype), template(), f"tiny-{shape}-{seed}".ljust(20, "."))


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
