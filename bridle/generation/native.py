"""The native decoder's weights as the engine reads them: query, key and value in one product, gate and up in one, in the
engine's precision, with a key/value cache that is allocated once.

Shapes: B rows, T new positions, S cache slots, D hidden size, H query heads, K key heads, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridle.models.decoder import Decoder, DecoderConfig, Layer, rope_tables, rotate


@dataclass(frozen=True)
class PackedLayer:
    norm1: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    norm2: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


@dataclass(frozen=True)
class Packed:
    """A policy's weights as the engine reads them, and the stamp that says whose they are."""

    config: DecoderConfig
    stamp: str
    embedding: Tensor
    layers: list[PackedLayer]
    norm: Tensor
    head: Tensor
    cos: Tensor
    sin: Tensor

    @property
    def max_positions(self) -> int:
        return self.config.max_positions

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def begin(self, lengths: Sequence[int], width: int, slots: int) -> Decoding:
        """Rows of such lengths, padded on the left to `width`, to be answered within `slots`."""
        return Decoding(self, lengths, width, slots)


def pack_decoder(module: Decoder, stamp: str, dtype: torch.dtype) -> Packed:
    config = module.config

    def cast(*tensors: Tensor) -> Tensor:
        return torch.cat([t.detach() for t in tensors]).to(dtype)

    def cast_bias(*biases: Tensor | None) -> Tensor | None:
        present = [b for b in biases if b is not None]
        return cast(*present) if present else None

    def pack_layer(layer: nn.Module) -> PackedLayer:
        assert isinstance(layer, Layer)
        attention, mlp = layer.self_attn, layer.mlp
        normed = config.family == "qwen3"
        return PackedLayer(
            norm1=cast(layer.input_layernorm.weight),
            qkv=cast(attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight),
            qkv_bias=cast_bias(attention.q_proj.bias, attention.k_proj.bias, attention.v_proj.bias),
            q_norm=cast(attention.q_norm.weight) if normed else None,
            k_norm=cast(attention.k_norm.weight) if normed else None,
            out=cast(attention.o_proj.weight),
            out_bias=cast_bias(attention.o_proj.bias),
            norm2=cast(layer.post_attention_layernorm.weight),
            gate_up=cast(mlp.gate_proj.weight, mlp.up_proj.weight),
            gate_up_bias=cast_bias(mlp.gate_proj.bias, mlp.up_proj.bias),
            down=cast(mlp.down_proj.weight),
            down_bias=cast_bias(mlp.down_proj.bias),
        )

    device = module.output_weight().device
    cos, sin = rope_tables(config, dtype, device)
    embedding = cast(module.model.embed_tokens.weight)
    return Packed(
        config=config,
        stamp=stamp,
        embedding=embedding,
        layers=[pack_layer(layer) for layer in module.model.layers],
        norm=cast(module.model.norm.weight),
        head=embedding if config.tie_embeddings else cast(module.output_weight()),
        cos=cos,
        sin=sin,
    )


class Decoding:
    """Rows under way: keys and values of every layer, [B, K, S, E]; `bias` [B·K, 1, S] hides a row's left padding."""

    def __init__(self, packed: Packed, lengths: Sequence[int], width: int, slots: int) -> None:
        config, like = packed.config, packed.embedding
        self.packed, self.end = packed, 0
        shape = (len(lengths), config.kv_heads, slots, config.head_size)
        self.keys = [torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in packed.layers]
        self.values = [torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in packed.layers]
        self.padding_B = torch.tensor([width - n for n in lengths], device=like.device)
        self.bias = self._bias(slots)

    def _bias(self, slots: int) -> Tensor:
        hidden_BS = torch.arange(slots, device=self.padding_B.device) < self.padding_B[:, None]
        bias_BS = torch.zeros(hidden_BS.shape, dtype=self.keys[0].dtype, device=self.padding_B.device)
        bias_BS.masked_fill_(hidden_BS, torch.finfo(bias_BS.dtype).min)
        return bias_BS.repeat_interleave(self.keys[0].shape[1], 0)[:, None]

    def keep(self, rows: Tensor) -> None:
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]
        self.padding_B = self.padding_B[rows]
        self.bias = self._bias(self.keys[0].shape[2])

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Run T new tokens through the model, writing the next T cache slots; logits of the last one, [B, V]."""
        packed, config = self.packed, self.packed.config
        B, T = ids_BT.shape
        H, K, E = config.heads, config.kv_heads, config.head_size
        start, end = self.end, self.end + T
        self.end = end
        positions_BT = (torch.arange(start, end, device=ids_BT.device) - self.padding_B[:, None]).clamp_(min=0)
        cos, sin = packed.cos[positions_BT][:, :, None], packed.sin[positions_BT][:, :, None]  # [B, T, 1, E/2]
        bias = self.bias[:, :, :end]
        if T > 1:
            future_TS = torch.ones(T, end, dtype=torch.bool, device=ids_BT.device).triu(start + 1)
            bias = bias.expand(-1, T, -1).masked_fill(future_TS, torch.finfo(bias.dtype).min).repeat(1, H // K, 1)
        x = F.embedding(ids_BT, packed.embedding)
        for index, layer in enumerate(packed.layers):
            h = F.linear(F.rms_norm(x, x.shape[-1:], layer.norm1, config.norm_eps), layer.qkv, layer.qkv_bias)
            q, k, v = h.view(B, T, H + 2 * K, E).split((H, K, K), 2)
            if layer.q_norm is not None:
                q = F.rms_norm(q, (E,), layer.q_norm, config.norm_eps)
                k = F.rms_norm(k, (E,), layer.k_norm, config.norm_eps)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            keys, values = self.keys[index], self.values[index]
            keys[:, :, start:end] = k.transpose(1, 2)
            values[:, :, start:end] = v.transpose(1, 2)
            rows = q.transpose(1, 2).reshape(B * K, H // K * T, E)
            scores = torch.baddbmm(bias, rows, keys[:, :, :end].flatten(0, 1).transpose(1, 2), alpha=E**-0.5)
            mixed = torch.bmm(scores.softmax(-1), values[:, :, :end].flatten(0, 1))
            mixed = mixed.view(B, H, T, E).transpose(1, 2).reshape(B, T, H * E)
            x = x + F.linear(mixed, layer.out, layer.out_bias)
            h = F.linear(F.rms_norm(x, x.shape[-1:], layer.norm2, config.norm_eps), layer.gate_up, layer.gate_up_bias)
            gate, up = h.chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, layer.down, layer.down_bias)
        return F.linear(F.rms_norm(x[:, -1], x.shape[-1:], packed.norm, config.norm_eps), packed.head)
