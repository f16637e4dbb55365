"""One native module for Llama, Mistral, Qwen2 and Qwen3 shapes, for training and decoding.

Parameters carry Hugging Face's names (`model.layers.0.self_attn.q_proj.weight`, …): a saved folder is a standard one.
Shapes: B sequences, T and S tokens, D hidden size, H query heads, K key/value heads, E head size.

Left out on purpose: sliding windows, attention sinks, mixture of experts, rope types other than `default` and `llama3`.
A configuration that asks for one of them is refused by name (`UnsupportedModel`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridle.core.errors import DataError, UnsupportedModel
from bridle.maths.logprobs import linear_logprobs

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


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
    rope_llama3: tuple[float, float, float, float] | None = None  # factor, low, high frequency factor, original context
    max_positions: int = 512
    tie_embeddings: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False

    @classmethod
    def from_huggingface(cls, raw: Mapping[str, Any]) -> DecoderConfig:
        family = raw.get("model_type", "")
        if family not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise UnsupportedModel(f"the native decoder does not know model_type {family!r}; it knows {known}")
        if raw.get("hidden_act", "silu") != "silu":
            raise UnsupportedModel(f"the native decoder needs hidden_act 'silu', got {raw['hidden_act']!r}")
        max_positions = int(raw.get("max_position_embeddings", 2048))
        window = raw.get("sliding_window", 4096 if family == "mistral" else None)
        asked = family == "mistral" or raw.get("use_sliding_window", False)  # Mistral has no switch: the number decides
        if asked and window is not None and window < max_positions:
            raise UnsupportedModel(f"the native decoder has no sliding window, got sliding_window = {window}")
        rope = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "llama3"):
            raise UnsupportedModel(f"the native decoder knows rope types 'default' and 'llama3', got {kind!r}")
        llama3 = None
        if kind == "llama3":
            llama3 = (
                float(rope["factor"]),
                float(rope["low_freq_factor"]),
                float(rope["high_freq_factor"]),
                float(rope["original_max_position_embeddings"]),
            )
        heads = int(raw["num_attention_heads"])
        bias = bool(raw.get("attention_bias", False))
        return cls(
            family=family,
            vocab_size=int(raw["vocab_size"]),
            hidden_size=int(raw["hidden_size"]),
            intermediate_size=int(raw["intermediate_size"]),
            layers=int(raw["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(raw.get("num_key_value_heads") or heads),
            head_size=int(raw.get("head_dim") or raw["hidden_size"] // heads),
            norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10000.0))),
            rope_llama3=llama3,
            max_positions=max_positions,
            tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
            qkv_bias=bias or family == "qwen2",
            output_bias=bias,
            mlp_bias=bool(raw.get("mlp_bias", False)),
        )

    def to_huggingface(self) -> dict[str, Any]:
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.rope_theta}
        if self.rope_llama3 is not None:
            keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
            rope |= {"rope_type": "llama3", **dict(zip(keys, self.rope_llama3, strict=True))}
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
        if self.family in ("llama", "qwen3"):
            raw["attention_bias"] = self.output_bias
        if self.family == "llama":
            raw["mlp_bias"] = self.mlp_bias
        if self.family == "mistral":
            raw["sliding_window"] = None
        return raw


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


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate-half rotary embedding: x [..., E] with cos and sin [..., E/2] that broadcast over x's leading axes."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def attend(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q kᵀ / √E + bias) v, [B, H, T, E]; bias [T, S] or [B, T, S], None means causal with T = S.

    Query heads that share a key head are folded into rows, so keys are never repeated. On a CPU three plain products
    beat the fused kernel at these lengths (its backward is several times slower); elsewhere the fused kernel runs.
    """
    B, H, T, E = q_BHTE.shape
    K, S = k_BKSE.shape[1], k_BKSE.shape[2]
    if q_BHTE.device.type != "cpu":
        mask = bias[:, None] if bias is not None and bias.dim() == 3 else bias
        return F.scaled_dot_product_attention(
            q_BHTE, k_BKSE, v_BKSE, attn_mask=mask, is_causal=bias is None, enable_gqa=H != K
        )
    if bias is None:
        bias = causal_bias(T, q_BHTE)
    bias = bias.repeat_interleave(K, 0).repeat(1, H // K, 1) if bias.dim() == 3 else bias.repeat(H // K, 1)
    q = q_BHTE.reshape(B * K, H // K * T, E)
    scores = torch.baddbmm(bias, q, k_BKSE.reshape(B * K, S, E).transpose(1, 2), alpha=E**-0.5)
    return torch.bmm(scores.softmax(-1), v_BKSE.reshape(B * K, S, E)).view(B, H, T, E)


def causal_bias(T: int, like: Tensor) -> Tensor:
    return torch.full((T, T), float("-inf"), dtype=like.dtype, device=like.device).triu(1)


class _Normalise(torch.autograd.Function):
    """x / rms(x) · w with its gradient in closed form: a third of the passes over memory of the composed one on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        normed = x * inverse
        ctx.save_for_backward(normed, inverse, weight)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, inverse, weight = ctx.saved_tensors
        grad_weight = (grad * normed).flatten(0, -2).sum(0)
        grad_normed = grad * weight
        return inverse * (grad_normed - normed * (grad_normed * normed).mean(-1, keepdim=True)), grad_weight, None


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        if x.device.type == "cpu":
            normed: Tensor = _Normalise.apply(x, weight, self.eps)
            return normed
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        width, kv_width = config.heads * config.head_size, config.kv_heads * config.head_size
        self.q_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=config.output_bias)
        if config.family == "qwen3":
            self.q_norm = RMSNorm(config.head_size, config.norm_eps)
            self.k_norm = RMSNorm(config.head_size, config.norm_eps)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, bias: Tensor | None) -> Tensor:
        B, T, _ = x_BTD.shape
        E = self.config.head_size
        q = self.q_proj(x_BTD).view(B, T, self.config.heads, E)
        k = self.k_proj(x_BTD).view(B, T, self.config.kv_heads, E)
        v = self.v_proj(x_BTD).view(B, T, self.config.kv_heads, E)
        if self.config.family == "qwen3":
            q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        q, k = rotate(q.transpose(1, 2), cos, sin), rotate(k.transpose(1, 2), cos, sin)
        mixed = attend(q, k, v.transpose(1, 2), None if bias is None else bias.to(q.dtype))
        return self.o_proj(mixed.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, bias)
        return x + self.mlp(self.post_attention_layernorm(x))


def check_width(width: int, max_positions: int) -> None:
    if width > max_positions:
        raise DataError(f"a sequence of {width} tokens does not fit the model's context of {max_positions}; shorten it")


class Trunk(nn.Module):
    """Embeddings, layers and the last norm: everything below a head."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.tables: tuple[Tensor, Tensor] | None = None

    def rope(self) -> tuple[Tensor, Tensor]:
        weight = self.embed_tokens.weight
        if self.tables is None or self.tables[0].device != weight.device or self.tables[0].dtype != weight.dtype:
            self.tables = rope_tables(self.config, weight.dtype, weight.device)
        return self.tables

    def forward(self, ids_BT: Tensor, positions_BT: Tensor | None = None, visible_BTT: Tensor | None = None) -> Tensor:
        """ids [B, T], padded on the right → hidden states [B, T, D]. Causality alone hides padding that comes last.

        With `positions` and `visible` (which tokens a token may look at) rows may be laid out in another way.
        """
        T = ids_BT.shape[1]
        cos, sin = self.rope()
        x = self.embed_tokens(ids_BT)
        if positions_BT is None or visible_BTT is None:
            check_width(T, self.config.max_positions)
            cos, sin = cos[:T], sin[:T]
            bias = causal_bias(T, x) if x.device.type == "cpu" else None
        else:
            check_width(int(positions_BT.max()) + 1, self.config.max_positions)
            cos, sin = cos[positions_BT][:, None], sin[positions_BT][:, None]  # [B, 1, T, E/2]
            bias = torch.zeros(visible_BTT.shape, dtype=x.dtype, device=x.device)
            bias = bias.masked_fill(~visible_BTT, float("-inf"))
        for layer in self.layers:
            x = layer(x, cos, sin, bias)
        return self.norm(x)


class Decoder(nn.Module):
    """A causal language model: `hidden` [B, T, D] and `logits` over the vocabulary."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def hidden(self, ids_BT: Tensor) -> Tensor:
        return self.model(ids_BT)

    def output_weight(self) -> Tensor:
        return self.model.embed_tokens.weight if self.config.tie_embeddings else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.output_weight())

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
