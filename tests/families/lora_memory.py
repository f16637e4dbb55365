"""What adapters and the settings of memory save, for docs/models.md: counted on networks of the right shapes without numbers.

Four bytes a weight, a gradient and two moments of AdamW, all in float32, as bridle trains; not counted are activations and the engine's
copy, which both ways have.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from bridle.models.decoder import Decoder, DecoderConfig
from bridle.models.lora.adapter import learning_tensors, with_adapter
from bridle.models.scorer import Scorer
from bridle.recipe.data import LoRASection

SHAPES = {
    "135M (SmolLM2)": DecoderConfig("llama", 49_152, 576, 1_536, 30, 9, 3, 64, max_positions=8_192),
    "8B (Llama 3.1)": DecoderConfig(
        "llama", 128_256, 4_096, 14_336, 32, 32, 8, 128, max_positions=131_072, tie_embeddings=False
    ),
}
HELD, TRAINED = 4, 4 + 4 + 8  # bytes of a number that is read, and of one that learns


def numbers(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def held_narrow(module: nn.Module) -> int:
    """Bytes of a network with its matrices in bfloat16."""
    maps = {id(part.weight): part.weight for part in module.modules() if isinstance(part, nn.Linear | nn.Embedding)}
    return HELD * numbers(module) - 2 * sum(weight.numel() for weight in maps.values())


def held_in_four_bits(module: Decoder) -> int:
    """Bytes of a network with its layers' matrices in four bits and their constants, embeddings and head in bfloat16."""
    layers = sum(part.weight.numel() for part in module.model.modules() if isinstance(part, nn.Linear))
    return held_narrow(module) - round((2 - 0.5 - 1 / 64 - 4 / (64 * 256)) * layers)


def counts(config: DecoderConfig, r: int = 16) -> tuple[int, int, int]:
    """Numbers of the whole model, of a scorer on its trunk, and of its adapter."""
    with torch.device("meta"):  # shapes without numbers
        module = Decoder(config)
        scorer = Scorer(module.model)
    adapter = learning_tensors(with_adapter(module, LoRASection(r=r)))
    return numbers(module), numbers(scorer), sum(weight.numel() for weight in adapter.values())


def lora_memory() -> Iterator[str]:
    pairs = ["SFT: all weights | adapter", "DPO: all weights | adapter", "PPO: all weights | adapters, one trunk"]
    yield f"| model | adapter, r = 16 | {' | '.join(pairs)} | a checkpoint of SFT: all weights | adapter |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for name, config in SHAPES.items():
        whole, scorer, adapter = counts(config)
        head = config.hidden_size
        row = [
            TRAINED * whole, HELD * whole + TRAINED * adapter,  # SFT
            (TRAINED + HELD) * whole, HELD * whole + TRAINED * adapter,  # DPO: the reference is the base
            (TRAINED + HELD) * whole + (TRAINED + HELD) * scorer, HELD * whole + (2 * TRAINED + HELD) * (adapter + head),
            12 * whole, 12 * adapter,
        ]  # fmt: skip
        yield f"| {name} | {adapter / 1e6:.1f}M of {whole / 1e6:,.0f}M ({adapter / whole:.1%}) | {' | '.join(map(gibibytes, row))} |"


def waiting(config: DecoderConfig, tokens: int, low: int = 2) -> int:
    """Bytes that a layer keeps for its backward pass, of products in `low` bytes a number: the residual stream twice, in float32; what
    goes into each product of matrices, queries, keys and values, gate and up."""
    heads, width, inner = (
        config.head_size * (config.heads + config.kv_heads),
        config.hidden_size,
        config.intermediate_size,
    )
    return tokens * (2 * 4 * width + low * (2 * width + 2 * heads + 3 * inner))


def memory() -> Iterator[str]:
    """A row for each way to hold a model: what it takes, by the model's size."""
    table: dict[str, list[int]] = {}
    for config in SHAPES.values():
        whole, _, adapter = counts(config)
        with torch.device("meta"):
            narrow, four = held_narrow(Decoder(config)), held_in_four_bits(Decoder(config))
        rows = {
            "weights that nothing trains, float32": HELD * whole,
            '`model.frozen_precision = "bfloat16"`': narrow,
            '`model.frozen_precision = "nf4"`, under an adapter': four,
            "DPO of all weights: weights, gradients, moments and the reference": (TRAINED + HELD) * whole,
            "its reference in bfloat16": TRAINED * whole + narrow,
            "its reference let go, as it is between two measurements of the KL": TRAINED * whole,
            "`model.offload_optimizer = true`: its moments in the processor's memory too": (TRAINED - 8) * whole,
            "DPO by an adapter, r = 16: the base, which is the reference, and the adapter": HELD * whole
            + TRAINED * adapter,
            "its base in bfloat16": narrow + TRAINED * adapter,
            "its base in four bits": four + TRAINED * adapter,
            "what layers keep of 1,024 tokens for the backward pass, with products in bfloat16": config.layers
            * waiting(config, 1024),
            "`model.checkpoint_activations = true`: their inputs, and one layer": 1024
            * config.layers
            * 6
            * config.hidden_size
            + waiting(config, 1024),
        }
        for name, count in rows.items():
            table.setdefault(name, []).append(count)
    yield f"| | {' | '.join(SHAPES)} |"
    yield "|---|---|---|"
    for name, found in table.items():
        yield f"| {name} | {' | '.join(map(gibibytes, found))} |"


def gibibytes(count: int) -> str:
    return f"{count / 2**30:.2g} GiB" if count < 2**30 else f"{count / 2**30:,.1f} GiB"
