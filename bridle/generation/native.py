"""The native decoder as the engine runs it: query, key and value in one product, gate and up in one, norms' weights folded
into the product that follows, weights laid out for oneDNN where a CPU has it, and a key/value cache.

Every row ends at the same slot, so a step writes one slot of all rows; what lies before a row's first token is hidden.
Shapes: B rows, T new positions, S cache slots, D hidden size, H query heads, K key heads, E head size, N = B·T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridle.maths.kernels import compiled, swiglu
from bridle.models.decoder import Decoder, DecoderConfig, Layer, rope_tables

AHEAD = 32  # slots that a new cache has to spare: attention reads them all, and a full cache must be copied
FEW_HEADS = 8  # up to so many B·K, products in attention are quicker in float32 than oneDNN begins one in bfloat16


@cache
def onednn_packs(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies by weights in oneDNN's own layout: in bfloat16 only with instructions for it."""
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        weight, x = torch.ones(4, 4, dtype=dtype), torch.ones(1, 4, dtype=dtype)
        return bool((Matrix(onednn_layout(weight), None, True)(x) == 4).all())
    except (AttributeError, RuntimeError):  # a build of torch without it, or a precision it has not
        return False


def onednn_layout(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


@dataclass(frozen=True)
class Matrix:
    """x ↦ x Wᵀ + b. In oneDNN's layout a product takes .4 to .9 of the time, and a row's digits do not depend on its company."""

    weight: Tensor
    bias: Tensor | None
    packed: bool

    def __call__(self, x_ND: Tensor) -> Tensor:
        if self.packed:
            found: Tensor = torch.ops.mkldnn._linear_pointwise.default(x_ND, self.weight, self.bias, "none", [], "")
            return found
        return F.linear(x_ND, self.weight, self.bias)


@dataclass(frozen=True)
class PackedLayer:
    qkv: Matrix
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Matrix
    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True)
class Packed:
    """A policy's weights as the engine reads them, and the stamp that says whose they are."""

    config: DecoderConfig
    stamp: str
    embedding: Tensor
    layers: list[PackedLayer]
    head: Matrix
    rotations: Tensor  # [max_positions, 1, E/2], complex: cos + i sin of the rotary embedding's angles
    hidden_floor: Tensor  # √(D·eps), √(E·eps): see `to_unit`
    head_floor: Tensor
    joins = True  # rows may join others that are under way

    @property
    def max_positions(self) -> int:
        return self.config.max_positions

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def least_rows(self) -> int:
        """Below four rows a CPU's own products take other ways, and a row's last digits would depend on its company."""
        return 1 if self.head.packed else 4

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Decoding, Tensor]:
        """Run prompts through the model: the rows under way and their logits, [B, V]."""
        lengths_B = torch.tensor([len(p) for p in prompts], device=self.device)
        T = max(map(len, prompts))
        ids_BT = torch.tensor([[0] * (T - len(p)) + list(p) for p in prompts], device=self.device)
        decoding = Decoding(self, lengths_B, T, T)
        return decoding, decoding.forward(ids_BT)

    def gather(self, parts: Sequence[tuple[Decoding, Tensor]]) -> Decoding:
        """Rows of several decodings, in a new one with a few slots to spare. A row may be taken more than once: the answers
        to one prompt."""
        lengths_B = torch.cat([part.lengths_B[rows] for part, rows in parts])
        longest = int(lengths_B.max())
        decoding = Decoding(self, lengths_B, longest, longest + AHEAD)
        first = 0
        for part, rows in parts:
            decoding.copy(part, rows, torch.arange(first, first + len(rows), device=self.device), longest)
            first += len(rows)
        decoding.end = longest
        return decoding


@torch.no_grad()
def pack_decoder(module: Decoder, stamp: str, dtype: torch.dtype) -> Packed:
    config, device = module.config, module.output_weight().device
    packs = device.type == "cpu" and onednn_packs(dtype)

    def paired(x: Tensor) -> Tensor:
        """The outputs of queries or keys in the order in which rotary's pairs, half a head apart, lie side by side."""
        return x.unflatten(0, (-1, 2, config.head_size // 2)).transpose(1, 2).flatten(0, 2)

    def matrix(weights: list[Tensor], biases: Sequence[Tensor | None], norm: Tensor | None = None) -> Matrix:
        weight = torch.cat(weights)
        if norm is not None:
            weight = weight * (norm * norm.numel() ** 0.5)
        weight = weight.to(dtype, copy=True)
        present = [b for b in biases if b is not None]
        bias = torch.cat(present).to(dtype) if present else None
        return Matrix(onednn_layout(weight) if packs else weight, bias, packs)

    def pack_layer(layer: nn.Module) -> PackedLayer:
        assert isinstance(layer, Layer)
        attention, mlp = layer.self_attn, layer.mlp
        q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
        normed, root = config.family == "qwen3", config.head_size**0.5
        scale = 1.0 if normed else 1 / root  # of scores: in the query's norm where there is one
        biases = [paired(q.bias) * scale, paired(k.bias), v.bias] if config.qkv_bias else []
        return PackedLayer(
            qkv=matrix([paired(q.weight) * scale, paired(k.weight), v.weight], biases, layer.input_layernorm.weight),
            q_norm=paired(attention.q_norm.weight).to(dtype) if normed else None,
            k_norm=(paired(attention.k_norm.weight) * root).to(dtype) if normed else None,
            out=matrix([attention.o_proj.weight], [attention.o_proj.bias]),
            gate_up=matrix(
                [mlp.gate_proj.weight, mlp.up_proj.weight],
                [mlp.gate_proj.bias, mlp.up_proj.bias],
                layer.post_attention_layernorm.weight,
            ),
            down=matrix([mlp.down_proj.weight], [mlp.down_proj.bias]),
        )

    def floor(size: int) -> Tensor:
        return torch.tensor((size * config.norm_eps) ** 0.5, dtype=dtype, device=device)

    cos, sin = rope_tables(config, torch.float64 if dtype == torch.float64 else torch.float32, device)
    return Packed(
        config=config,
        stamp=stamp,
        embedding=module.model.embed_tokens.weight.to(dtype, copy=True),
        layers=[pack_layer(layer) for layer in module.model.layers],
        head=matrix([module.output_weight()], [], module.model.norm.weight),
        rotations=torch.complex(cos, sin)[:, None],
        hidden_floor=floor(config.hidden_size),
        head_floor=floor(config.head_size),
    )


def to_unit(x: Tensor, floor: Tensor) -> Tensor:
    """x / √(Σx² + floor²): what RMSNorm gives but for its weight · √D, which the matrix that follows holds."""
    if (run := compiled(x.dtype, x)) is not None and x.is_contiguous():
        out = torch.empty_like(x)
        run("unit", x.numel() // x.shape[-1], x.shape[-1], float(floor) ** 2, x, out)
        return out
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(floor)


class Decoding:
    """Rows under way: keys [B, K, S, E] and values [B, K, E, S] of every layer; of the S slots `end` are written. Products
    read them as they lie: in bfloat16 a slice of them, or values the other way round, takes twice to five times as long.

    `bias` [B·K, 1, S] hides slots in which a row has no token; `lengths_B` are the tokens that it has.
    """

    def __init__(self, packed: Packed, lengths_B: Tensor, width: int, slots: int) -> None:
        """Rows of such lengths in the first `width` of so many slots, nothing written yet."""
        config, dtype, device = packed.config, packed.embedding.dtype, packed.device
        B, K, E = len(lengths_B), config.kv_heads, config.head_size
        self.run = compiled(dtype, packed.embedding)
        if self.run is None and device.type == "cpu" and dtype == torch.bfloat16 and B * K <= FEW_HEADS:
            dtype = torch.float32
        self.packed, self.lengths_B, self.end, self.slots, self.room = packed, lengths_B, 0, slots, slots - width
        shapes = [(B, K, slots, E), (B, K, E, slots)]
        if self.run is not None:  # the compiled kernel reads both the other way round
            shapes.reverse()
        self.key_store, self.value_store = (
            [torch.zeros(shape, dtype=dtype, device=device) for _ in packed.layers] for shape in shapes
        )
        self.keys, self.values = self.key_store, self.value_store
        if self.run is not None:
            self.keys, self.values = (
                [t.transpose(2, 3) for t in store] for store in (self.key_store, self.value_store)
            )
        self.flat_keys = [keys.flatten(0, 1).transpose(1, 2) for keys in self.keys]
        self.flat_values = [values.flatten(0, 1).transpose(1, 2) for values in self.values]
        slot_S = torch.arange(slots, device=device)
        seen_BS = (slot_S >= width - lengths_B[:, None]) & (slot_S < width)
        bias_BS = torch.zeros(B, slots, dtype=dtype, device=device).masked_fill_(~seen_BS, torch.finfo(dtype).min)
        self.bias = bias_BS.repeat_interleave(K, 0)[:, None]

    def full(self, live: list[int]) -> bool:
        """Whether the next slot still holds a token of a live row."""
        if self.room == 0:
            self.room = self.slots - int(self.lengths_B[live].max())
        return self.room == 0

    def join(self, other: Decoding, rows: Tensor, places: Tensor) -> bool:
        """Put rows of another decoding in the place of rows that are finished. False if they are too long for the slots."""
        lengths_B = other.lengths_B[rows]
        longest = int(lengths_B.max())
        if longest > self.slots:
            return False
        self.copy(other, rows, places, self.end)
        age_S = (self.end - 1 - torch.arange(self.slots, device=rows.device)) % self.slots  # 0: the slot written last
        hidden_BS = (age_S >= lengths_B[:, None]).repeat_interleave(len(self.bias) // len(self.lengths_B), 0)
        bias_BS = torch.zeros(hidden_BS.shape, dtype=self.bias.dtype, device=rows.device)
        self.bias.view(len(self.lengths_B), -1, self.slots)[places] = bias_BS.masked_fill_(
            hidden_BS, torch.finfo(bias_BS.dtype).min
        ).view(len(rows), -1, self.slots)
        self.lengths_B[places] = lengths_B
        self.room = min(self.room, self.slots - longest)
        return True

    def copy(self, other: Decoding, rows: Tensor, places: Tensor, end: int) -> None:
        """The last slots of another decoding's rows, as far as they fit, into those before `end` at some places of this."""
        width = min(self.slots, other.slots)
        back_W = torch.arange(-width, 0, device=rows.device)
        here_W, there_W = (end + back_W) % self.slots, (other.end + back_W) % other.slots
        for new, old in zip(self.keys, other.keys, strict=True):
            new[places[:, None], :, here_W] = old[rows[:, None], :, there_W].to(new.dtype)
        for new, old in zip(self.values, other.values, strict=True):
            new[places[:, None], :, :, here_W] = old[rows[:, None], :, :, there_W].to(new.dtype)

    def step(self, tokens_B: Tensor) -> Tensor:
        """The next token of every row; logits [B, V]."""
        self.bias[:, :, self.end % self.slots] = 0
        self.lengths_B += 1
        self.room -= 1
        return self.forward(tokens_B[:, None])

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Run T new tokens through the model, writing the next T slots; logits of the last one, [B, V]."""
        packed, config = self.packed, self.packed.config
        B, T = ids_BT.shape
        H, K, E = config.heads, config.kv_heads, config.head_size
        first = self.end % self.slots
        here = slice(first, first + T)
        back_T = torch.arange(1 - T, 1, device=ids_BT.device)
        positions_BT = (self.lengths_B[:, None] - 1 + back_T).clamp_(0, packed.max_positions - 1)
        rotations = packed.rotations[positions_BT.flatten()]  # [N, 1, E/2]
        angles = torch.view_as_real(rotations)
        bias, dtype = self.bias, self.keys[0].dtype
        if T > 1:
            future_TS = torch.ones(T, self.slots, dtype=torch.bool, device=ids_BT.device).triu(1)
            bias = bias.expand(-1, T, -1).masked_fill(future_TS, torch.finfo(dtype).min).repeat(1, H // K, 1)
        x = F.embedding(ids_BT.flatten(), packed.embedding)
        for index, layer in enumerate(packed.layers):
            heads = layer.qkv(to_unit(x, packed.hidden_floor)).view(B * T, H + 2 * K, E)
            if self.run is not None and T == 1:
                mixed = torch.empty(B, H * E, dtype=x.dtype)
                self.run(
                    "attend_step", B, H, K, E, self.slots, first, heads, layer.q_norm, layer.k_norm, float(packed.head_floor) ** 2,
                    angles, bias, self.key_store[index], self.value_store[index], mixed,
                )  # fmt: skip
                x += layer.out(mixed)
                x += layer.down(swiglu(layer.gate_up(to_unit(x, packed.hidden_floor))))
                continue
            if layer.q_norm is not None and layer.k_norm is not None:
                heads[:, :H] = to_unit(heads[:, :H], packed.head_floor) * layer.q_norm
                heads[:, H : H + K] = to_unit(heads[:, H : H + K], packed.head_floor) * layer.k_norm
            turned = heads[:, : H + K].to(angles.dtype, copy=True)
            torch.view_as_complex(turned.view(B * T, H + K, E // 2, 2)).mul_(rotations)
            q, k = turned.view(B, T, H + K, E).split((H, K), 2)
            self.keys[index][:, :, here] = k.transpose(1, 2)
            v = heads[:, H + K :].view(B, T, K, E)
            self.values[index][..., here] = v.permute(0, 2, 3, 1)
            q = q.transpose(1, 2).to(dtype).reshape(B * K, H // K * T, E)
            scores = torch.bmm(q, self.flat_keys[index]).add_(bias)
            mixed = torch.bmm(scores.softmax(-1), self.flat_values[index]).to(x.dtype).view(B, H, T, E).transpose(1, 2)
            if layer is packed.layers[-1]:  # of what follows, the last token's alone is asked for
                mixed, x = mixed[:, -1:], x.view(B, T, -1)[:, -1]
            x += layer.out(mixed.reshape(-1, H * E))
            x += layer.down(swiglu(layer.gate_up(to_unit(x, packed.hidden_floor))))
        self.end += T
        return packed.head(to_unit(x, packed.hidden_floor))
