"""One native module for Llama, Mistral, Qwen2 and Qwen3 shapes, for training and decoding.

Parameters carry Hugging Face's names (`model.layers.0.self_attn.q_proj.weight`, …): a saved folder is a standard one.
Shapes: B sequences, T and S tokens, D hidden size, H query heads, K key/value heads, E head size.

Left out on purpose: sliding windows, attention sinks, mixture of experts, rope types other than `default` and `llama3`.
A configuration that asks for one of them is refused by name (`UnsupportedModel`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridle.compute.recomputing import Layered, run_again
from bridle.core.errors import DataError, UnsupportedModel
from bridle.kernels import kernels
from bridle.kernels.kernels import add_norm, attention, swiglu
from bridle.maths.logprobs import linear_logprobs
from bridle.models.lora.low_rank import is_linear, through
from bridle.models.sizes import scalings_of

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

# What transformers takes where config.json leaves a number out.
DEFAULTS: dict[str, dict[str, int]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096, "head_dim": 128},
}
ROPE_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass(frozen=True)
class DecoderConfig:
    """The numbers that make a decoder; `from_huggingface` and `to_huggingface` translate `config.json`."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_llama3: tuple[float, ...] | None = None  # in the order of ROPE_LLAMA3
    max_positions: int = 512
    tie_embeddings: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        """ValueError where no network has these numbers."""
        counts = (
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_size,
        )
        rope = (self.rope_theta, *(self.rope_llama3 or ()))
        if min(*counts, self.max_positions) < 1:
            raise ValueError(f"a decoder's sizes are at least 1, got {min(*counts, self.max_positions)}")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"query heads must be a multiple of key and value heads, got {self.heads} and {self.kv_heads}"
            )
        if self.head_size % 2:
            raise ValueError(f"the rotary embedding needs heads of an even size, got {self.head_size}")
        if not 0 <= self.norm_eps < 1:
            raise ValueError(f"the norm's epsilon must be from 0 up to 1, got {self.norm_eps}")
        if not all(0 < number < math.inf for number in rope):
            raise ValueError(f"the numbers of the rotary embedding must be finite and above 0, got {list(rope)}")
        if self.rope_llama3 is not None and self.rope_llama3[1] == self.rope_llama3[2]:
            raise ValueError(f"low_freq_factor and high_freq_factor must differ, got {self.rope_llama3[1]} twice")

    @property
    def parameters(self) -> int:
        """Numbers to learn, but for biases and norms."""
        attention = 2 * self.hidden_size * self.head_size * (self.heads + self.kv_heads)
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return self.layers * (attention + 3 * self.hidden_size * self.intermediate_size) + embeddings

    @property
    def bytes(self) -> int:
        """Memory of the weights in float32, and of the rotary embedding's tables while they are made."""
        return 4 * self.parameters + 16 * self.max_positions * self.head_size

    @classmethod
    def from_huggingface(cls, raw: Mapping[str, Any]) -> DecoderConfig:
        family = raw.get("model_type", "")
        if family not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise UnsupportedModel(f"the native decoder does not know model_type {family!r}; it knows {known}")
        raw = {**DEFAULTS[family], **raw}
        if raw.get("hidden_act", "silu") != "silu":
            raise UnsupportedModel(f"the native decoder needs hidden_act 'silu', got {raw['hidden_act']!r}")
        if scaled := scalings_of(raw):
            raise UnsupportedModel(f"the native decoder scales nothing, got {scaled}")
        max_positions = int(raw["max_position_embeddings"])
        refuse_window(family, raw, max_positions)
        rope = read_rope(raw, max_positions)
        heads = int(raw["num_attention_heads"])
        bias = family in ("llama", "qwen3") and bool(raw.get("attention_bias", False))  # the others have no such switch
        return cls(
            family=family,
            vocab_size=int(raw["vocab_size"]),
            hidden_size=int(raw["hidden_size"]),
            intermediate_size=int(raw["intermediate_size"]),
            layers=int(raw["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(raw.get("num_key_value_heads") or heads),
            head_size=int(raw.get("head_dim") or whole_part(raw["hidden_size"], heads)),
            norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope["rope_theta"]),
            rope_llama3=tuple(float(rope[key]) for key in ROPE_LLAMA3) if rope["rope_type"] == "llama3" else None,
            max_positions=max_positions,
            tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
            qkv_bias=bias or family == "qwen2",
            output_bias=bias,
            mlp_bias=family == "llama" and bool(raw.get("mlp_bias", False)),
        )

    def to_huggingface(self) -> dict[str, Any]:
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.rope_theta}
        if self.rope_llama3 is not None:
            rope |= {"rope_type": "llama3", **dict(zip(ROPE_LLAMA3, self.rope_llama3, strict=True))}
            rope["original_max_position_embeddings"] = int(rope["original_max_position_embeddings"])
        raw: dict[str, Any] = {
            "architectures": [ARCHITECTURES[self.family]],
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "hidden_act": "silu",
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": rope,
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": self.tie_embeddings,
        }
        if self.rope_llama3 is not None:
            raw["rope_scaling"] = rope  # which readers before transformers 5 take
        if self.family in ("llama", "qwen3"):
            raw["attention_bias"] = self.output_bias
        if self.family == "llama":
            raw["mlp_bias"] = self.mlp_bias
        if self.family == "mistral":
            raw["sliding_window"] = None
        return raw


def refuse_window(family: str, raw: Mapping[str, Any], max_positions: int) -> None:
    """UnsupportedModel where a layer sees less than all that comes before, within the context."""
    window, layers = raw["sliding_window"] if family != "llama" else None, raw.get("layer_types") or []
    if family == "mistral":  # it has no switch: the number decides
        asked = window is not None
    else:
        asked = family != "llama" and (raw.get("use_sliding_window", False) or bool(set(layers) - {"full_attention"}))
    if asked and (window is None or window < max_positions):
        raise UnsupportedModel(f"the native decoder has no sliding window, got sliding_window = {window}")


def read_rope(raw: Mapping[str, Any], max_positions: int) -> dict[str, Any]:
    """The rotary embedding's settings from where transformers takes them. UnsupportedModel: none that the native decoder knows."""
    rope = dict(raw.get("rope_scaling") or raw.get("rope_parameters") or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3") or any(isinstance(value, Mapping) for value in rope.values()):
        raise UnsupportedModel(f"the native decoder knows rope types 'default' and 'llama3', got {kind!r}")
    if rope.get("partial_rotary_factor", raw.get("partial_rotary_factor")) not in (None, 1):
        raise UnsupportedModel("the native decoder turns the whole of each head, got a partial_rotary_factor")
    original = raw.get("original_max_position_embeddings", rope.get("original_max_position_embeddings", max_positions))
    defaults = {"rope_theta": raw.get("rope_theta", 10000.0)}
    return {**defaults, **rope, "rope_type": kind, "original_max_position_embeddings": original}


def whole_part(width: int, heads: int) -> int:
    """The size of a head where config.json does not name it."""
    if width % heads:
        raise ValueError(f"hidden_size must be a multiple of num_attention_heads, got {width} and {heads}")
    return width // heads


def rope_tables(config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin [max_positions, E/2] of the rotary embedding (Su 2021), scaled as in Llama 3.1 where asked."""
    index = torch.arange(0, config.head_size, 2, dtype=torch.float64)
    frequency = config.rope_theta ** (-index / config.head_size)
    if config.rope_llama3 is not None:
        factor, low, high, original = config.rope_llama3
        wavelength = 2 * math.pi / frequency
        smooth = ((original / wavelength - low) / (high - low)).clamp(0, 1)
        frequency = (1 - smooth) * frequency / factor + smooth * frequency
    angle = torch.outer(torch.arange(config.max_positions, dtype=torch.float64), frequency)
    return angle.cos().to(device, dtype), angle.sin().to(device, dtype)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor, delta: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(x + delta, the norm of that in `dtype`)."""
        return add_norm(x, delta, self.weight, self.eps, dtype)


@dataclass(frozen=True)
class View:
    """Where tokens stand and what they see, as `attention` takes it; None: at 0, 1, …, and what comes before.

    `kept_BQ`: the places whose states are wanted, of the last layer; None: all.
    """

    tables: tuple[Tensor, Tensor]
    positions_BT: Tensor | None = None
    sees_BT3: Tensor | None = None
    kept_BQ: Tensor | None = None

    def of_queries(self) -> tuple[Tensor | None, Tensor | None]:
        """Positions of the tokens that are kept, and what they see."""
        if self.kept_BQ is None:
            return self.positions_BT, self.sees_BT3
        if self.positions_BT is None or self.sees_BT3 is None:
            return self.kept_BQ, F.pad(self.kept_BQ[..., None] + 1, (2, 0))
        kept_BQ3 = self.kept_BQ[..., None].expand(-1, -1, 3)
        return self.positions_BT.gather(1, self.kept_BQ), self.sees_BT3.gather(1, kept_BQ3)


def kept(x_BTD: Tensor, kept_BQ: Tensor | None) -> Tensor:
    """Some states of each row, [B, Q, D]."""
    if kept_BQ is None:
        return x_BTD
    B, T, D = x_BTD.shape
    flat = (kept_BQ + torch.arange(B, device=kept_BQ.device)[:, None] * T).flatten()
    return x_BTD.flatten(0, 1).index_select(0, flat).view(B, -1, D)


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads = (config.heads, config.kv_heads, config.head_size)
        width, kv_width = config.heads * config.head_size, config.kv_heads * config.head_size
        self.q_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=config.output_bias)
        self.normed = config.family == "qwen3"
        if self.normed:
            self.q_norm = RMSNorm(config.head_size, config.norm_eps)
            self.k_norm = RMSNorm(config.head_size, config.norm_eps)

    def forward(self, x_BTD: Tensor, view: View) -> Tensor:
        norms = (self.q_norm.weight, self.k_norm.weight, self.q_norm.eps) if self.normed else None
        q, kv = through(kept(x_BTD, view.kept_BQ), self.q_proj), through(x_BTD, self.k_proj, self.v_proj)
        q_positions, sees = view.of_queries()
        mixed = attention(q, kv, self.heads, view.tables, q_positions, view.positions_BT, sees, norms)
        return through(mixed, self.o_proj)


class MLP(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return through(swiglu(through(x, self.gate_proj, self.up_proj)), self.down_proj)


class Layer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, delta: Tensor | None, view: View, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The residual stream without what this layer's MLP adds to it, and that. `delta`: what the layer before adds."""
        x, normed = self.input_layernorm(x, delta, dtype)
        x, normed = self.post_attention_layernorm(kept(x, view.kept_BQ), self.self_attn(normed, view), dtype)
        return x, self.mlp(normed)


@cache
def compiled_layer() -> Callable[..., tuple[Tensor, Tensor]]:
    """A layer by PyTorch's compiler: one piece of code for all layers and lengths."""
    return torch.compile(Layer.forward, dynamic=True)


def check_width(width: int, max_positions: int) -> None:
    if width > max_positions:
        raise DataError(f"a sequence of {width} tokens does not fit the model's context of {max_positions}; shorten it")


class Trunk(Layered):
    """Embeddings, layers and the last norm: everything below a head."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        # Not nn.Embedding(V, D): it draws numbers that are never used and, where no room is taken (device "meta"), loads PyTorch's compiler
        # for that: seconds of every process that loads a model.
        self.embed_tokens = nn.Embedding.from_pretrained(
            torch.empty(config.vocab_size, config.hidden_size), freeze=False
        )
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.tables: tuple[Tensor, Tensor] | None = None

    def linear_maps(self) -> dict[str, nn.Module]:
        """Every linear map of the layers, by its name in here: those that an adapter may be put on."""
        return {name: part for name, part in self.named_modules() if is_linear(part)}

    def parts(self) -> list[nn.Module]:
        return list(self.layers)

    def rope(self) -> tuple[Tensor, Tensor]:
        weight = self.norm.weight
        if self.tables is None or self.tables[0].device != weight.device or self.tables[0].dtype != weight.dtype:
            self.tables = rope_tables(self.config, weight.dtype, weight.device)
        return self.tables

    def forward(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        sees_BT3: Tensor | None = None,
        kept_BQ: Tensor | None = None,
    ) -> Tensor:
        """ids [B, T], padded on the right → hidden states [B, T, D]. Causality alone hides padding that comes last.

        With `positions` and `sees` (what a token sees, as in `attention`) rows may be laid out in another way. With `kept`
        (places of each row) only their states are given, [B, Q, D], and the last layer does no more than they need.
        Products run in autocast's precision where autocast is on; the residual stream keeps the norms'.
        """
        kind = ids_BT.device.type
        x = self.embed_tokens(ids_BT).to(self.norm.weight.dtype)  # which it is, but where it is held narrower
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        longest = ids_BT.shape[1] if positions_BT is None else int(positions_BT.max()) + 1
        check_width(longest, self.config.max_positions)
        everywhere = View(self.rope(), positions_BT, sees_BT3)
        delta = None
        run = compiled_layer() if kernels.wish == "torch" and torch.is_grad_enabled() else Layer.__call__
        run = run_again(run) if self.recomputed else run
        for number, layer in enumerate(self.layers):
            last = kept_BQ is not None and number == len(self.layers) - 1
            x, delta = run(layer, x, delta, replace(everywhere, kept_BQ=kept_BQ) if last else everywhere, dtype)
        hidden: Tensor = self.norm(x, delta, x.dtype)[1]
        return hidden


class Decoder(nn.Module):
    """A causal language model: `hidden` [B, T, D] and `logits` over the vocabulary."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def hidden(self, ids_BT: Tensor, *layout: Tensor | None) -> Tensor:
        """The trunk's states; `layout` as it takes it. Trainers read a network by this, which gathers weights that are divided."""
        return self.model(ids_BT, *layout)

    def output_weight(self) -> Tensor:
        return self.model.embed_tokens.weight if self.config.tie_embeddings else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.output_weight().to(hidden.dtype))

    def logprobs(self, hidden_ND: Tensor, targets_N: Tensor, temperature: float = 1.0) -> Tensor:
        """log π of the targets, [N], without the whole matrix of logits."""
        return linear_logprobs(hidden_ND, self.output_weight(), targets_N, temperature)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """All logits, [B, T, V], to look at: at a large vocabulary more than a machine holds. Trainers take `logprobs`."""
        return self.logits(self.hidden(ids_BT))


def initialise(module: nn.Module, layers: int, generator: torch.Generator) -> None:
    """Normal weights: .02 for embeddings, 1/√fan_in for matrices.

    Those that write to the residual are a further 1/√(2·layers) smaller, as in GPT-2 (Radford 2019, §2.3).
    """
    for name, parameter in module.named_parameters():
        if parameter.dim() != 2:
            continue
        std = 0.02 if "embed_tokens" in name or "lm_head" in name else parameter.shape[1] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std *= (2 * layers) ** -0.5
        with torch.no_grad():
            parameter.normal_(0.0, std, generator=generator)
