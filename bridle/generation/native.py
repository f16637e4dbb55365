"""The native decoder as the engine runs it: query, key and value in one product, gate and up in one, norms' weights folded
into the product that follows, and a key/value cache. On a CPU with compiled kernels a layer's step is one of them.

Every row ends at the same slot, so a step writes one slot of all rows; what lies before a row's first token is hidden.
Shapes: B rows, T new positions, S cache slots, D hidden size, H query heads, K key heads, E head size, N = B·T.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridle.kernels.kernels import Compiled, attend, attention, compiled, swiglu, turn
from bridle.models.decoder import Decoder, DecoderConfig, Layer, RMSNorm, rope_tables
from bridle.models.lora.low_rank import merged_weight

AHEAD = 96  # slots that a new cache has to spare: a full cache must be copied
# The compiled kernels' matrices have rows, caches slots, by the block; values' heads lie in so many lanes.
BLOCK, LANES = 64, 16


@dataclass(frozen=True)
class Matrix:
    """x ↦ x Wᵀ + b. `run`: compiled kernels, whose layout the weight has; then a row's digits do not depend on its company."""

    weight: Tensor
    bias: Tensor | None
    outputs: int
    run: Compiled | None

    def __call__(self, x_ND: Tensor, wide: bool = False, add_to: Tensor | None = None) -> Tensor:
        """In x's type, or `wide`: in float32 at least. `add_to`, which is, gets the product added to it, and is given back."""
        if self.run is None:
            y = F.linear(x_ND, self.weight, self.bias)
            if add_to is not None:
                return add_to.add_(y)
            return y.to(at_least_float32(y.dtype)) if wide else y
        x_ND, wide = x_ND.contiguous(), wide or add_to is not None
        N, D = x_ND.shape
        y = torch.empty(N, self.outputs, dtype=torch.float32 if wide else x_ND.dtype) if add_to is None else add_to
        to = (y, None) if wide else (None, y)
        self.run("linear", N, self.outputs, D, x_ND, self.weight, self.bias, add_to, *to)
        return y


def pack_matrix(run: Compiled | None, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Matrix:
    if run is None:
        return Matrix(weight.to(dtype, copy=True), None if bias is None else bias.to(dtype), len(weight), None)
    outputs, inputs = weight.shape
    packed = torch.empty(-(-outputs // BLOCK) * BLOCK, inputs, dtype=dtype)
    run("pack_matrix", outputs, inputs, weight.float().contiguous(), packed)
    return Matrix(packed, None if bias is None else bias.float(), outputs, run)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class PackedLayer:
    qkv: Matrix
    norms: tuple[Tensor, Tensor] | None  # of queries and keys within a head
    out: Matrix
    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True)
class PackedDecoder:
    """A policy's weights as the engine reads them, and the stamp that says whose they are."""

    config: DecoderConfig
    stamp: str
    embedding: Tensor
    layers: list[PackedLayer]
    head: Matrix
    tables: tuple[Tensor, Tensor]  # cos and sin of the rotary embedding's angles, [max_positions, E/2]
    joins = True  # rows may join others that are under way

    @property
    def max_positions(self) -> int:
        return self.config.max_positions

    @property
    def vocabulary(self) -> int:
        return self.config.vocab_size

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def least_rows(self) -> int:
        """Below four rows a CPU's own products take other ways, and a row's last digits would depend on its company."""
        return 4 if self.head.run is None else 1

    def to_unit(self, x: Tensor) -> Tensor:
        """x / √(Σx² + D eps) in the weights' type: what RMSNorm gives but for its weight · √D, which the matrix that follows holds."""
        if self.head.run is None:
            squares = x.square().sum(-1, keepdim=True)
            return (x * torch.rsqrt(squares + x.shape[-1] * self.config.norm_eps)).to(self.embedding.dtype)
        y = torch.empty(x.shape, dtype=self.embedding.dtype)
        self.head.run("unit", len(x), x.shape[1], x.shape[1] * self.config.norm_eps, x.contiguous(), y)
        return y

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Decoding, Tensor]:
        """Run prompts through the model: the rows under way and their logits, [B, V]."""
        lengths_B = torch.tensor([len(p) for p in prompts], device=self.device)
        T = max(map(len, prompts))
        ids_BT = torch.tensor([[0] * (T - len(p)) + list(p) for p in prompts], device=self.device)
        decoding = Decoding(self, lengths_B, T, T)
        return decoding, decoding.read(ids_BT)

    def begin(self, length: int) -> Decoding:
        """One prompt of so many tokens, for `Decoding.read` to run through the model part by part."""
        return Decoding(self, torch.tensor([length], device=self.device), length, length)

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
def pack_decoder(module: Decoder, stamp: str, dtype: torch.dtype) -> PackedDecoder:
    config, embedding = module.config, module.model.embed_tokens.weight
    even = config.hidden_size % 2 == 0 == config.intermediate_size % 2  # compiled products take bfloat16 by pairs
    run = compiled(dtype, embedding) if even else None

    def with_norm(weight: Tensor, norm: RMSNorm) -> Tensor:
        return weight * (norm.weight * norm.weight.numel() ** 0.5)

    def matrix(*linears: nn.Linear, norm: RMSNorm | None = None) -> Matrix:
        weights: list[Tensor] = [merged_weight(linear) for linear in linears]
        biases: list[Tensor | None] = [linear.bias for linear in linears]
        weight, present = torch.cat(weights), [bias for bias in biases if bias is not None]
        weight = weight if norm is None else with_norm(weight, norm)
        return pack_matrix(run, weight, torch.cat(present) if present else None, dtype)

    def within_head(norm: RMSNorm) -> Tensor:
        return norm.weight.to(at_least_float32(dtype), copy=True)

    def pack_layer(layer: nn.Module) -> PackedLayer:
        assert isinstance(layer, Layer)
        attention, mlp = layer.self_attn, layer.mlp
        return PackedLayer(
            qkv=matrix(attention.q_proj, attention.k_proj, attention.v_proj, norm=layer.input_layernorm),
            norms=(within_head(attention.q_norm), within_head(attention.k_norm)) if attention.normed else None,
            out=matrix(attention.o_proj),
            gate_up=matrix(mlp.gate_proj, mlp.up_proj, norm=layer.post_attention_layernorm),
            down=matrix(mlp.down_proj),
        )

    return PackedDecoder(
        config=config,
        stamp=stamp,
        embedding=embedding.to(dtype, copy=True),
        layers=[pack_layer(layer) for layer in module.model.layers],
        head=pack_matrix(run, with_norm(module.output_weight(), module.model.norm), None, dtype),
        tables=rope_tables(config, at_least_float32(dtype), embedding.device),
    )


class Decoding:
    """Rows under way: keys and values of every layer, in rings of S slots; `end` were written, `room` may be before one is full.

    `hidden` [B, S]: slots in which a row has no token; `lengths_B` are the tokens that it has. The caches are [B, K, S, E], with
    compiled kernels in another order: see `maths/decoding.c`.
    """

    def __init__(self, packed: PackedDecoder, lengths_B: Tensor, width: int, slots: int) -> None:
        """Rows of such lengths in the first `width` of so many slots, nothing written yet."""
        config, dtype, device = packed.config, packed.embedding.dtype, packed.device
        B, K, E = len(lengths_B), config.kv_heads, config.head_size
        self.run = packed.head.run
        if self.run is not None:
            slots, E = -(-slots // BLOCK) * BLOCK, -(-E // LANES) * LANES
        self.packed, self.lengths_B, self.end, self.slots, self.room = packed, lengths_B, 0, slots, slots - width
        self.keys = [torch.zeros(B, K, slots, config.head_size, dtype=dtype, device=device) for _ in packed.layers]
        self.values = [torch.zeros(B, K, slots, E, dtype=dtype, device=device) for _ in packed.layers]
        self.width = width
        self.earlier: dict[
            int, Tensor
        ] = {}  # a layer's keys and values as they were projected, while a prompt is read in parts
        slot_S = torch.arange(slots, device=device)
        self.hidden_BS = (slot_S < width - lengths_B[:, None]) | (slot_S >= width)

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
        self.hidden_BS[places] = age_S >= lengths_B[:, None]
        self.lengths_B[places] = lengths_B
        self.room = min(self.room, self.slots - longest)
        return True

    def copy(self, other: Decoding, rows: Tensor, places: Tensor, end: int) -> None:
        """The tokens of another decoding's rows, which fit, into the slots before `end` at some places of this."""
        caches = zip(self.keys, self.values, other.keys, other.values, strict=True)
        if self.run is not None:
            config, lengths_B = self.packed.config, other.lengths_B[rows]
            for keys, values, old_keys, old_values in caches:
                self.run(
                    "copy_tokens", len(rows), config.kv_heads, config.head_size, rows, places, lengths_B, other.slots, other.end,
                    old_keys, old_values, self.slots, end, keys, values,
                )  # fmt: skip
            return
        width = min(self.slots, other.slots)
        back_W = torch.arange(-width, 0, device=rows.device)
        here_W, there_W = (end + back_W) % self.slots, (other.end + back_W) % other.slots
        places, rows = places[:, None], rows[:, None]
        for keys, values, old_keys, old_values in caches:
            # What the row before left is hidden, yet multiplied by nought: it must be a number.
            keys[places[:, 0]], values[places[:, 0]] = 0, 0
            keys[places, :, here_W] = old_keys[rows, :, there_W]
            values[places, :, here_W] = old_values[rows, :, there_W]

    def step(self, tokens_B: Tensor) -> Tensor:
        """The next token of every row; logits [B, V], float32 at least."""
        packed, config, slot = self.packed, self.packed.config, self.end % self.slots
        self.hidden_BS[:, slot] = False
        self.lengths_B += 1
        self.room -= 1
        if self.run is None:
            return self.step_by_operations(tokens_B, slot)
        B, D, H, K, E = len(tokens_B), config.hidden_size, config.heads, config.kv_heads, config.head_size
        positions_B = (self.lengths_B - 1).clamp_(0, packed.max_positions - 1)
        x = F.embedding(tokens_B, packed.embedding).float()
        scratch = torch.empty(B * (D + 2 * (H + K) * E + 3 * config.intermediate_size), dtype=packed.embedding.dtype)
        for layer, keys, values in zip(packed.layers, self.keys, self.values, strict=True):
            self.run(
                "decode_layer", B, D, H, K, E, config.intermediate_size, config.norm_eps, layer.qkv.weight, layer.qkv.bias,
                *(layer.norms or (None, None)), layer.out.weight, layer.out.bias, layer.gate_up.weight, layer.gate_up.bias,
                layer.down.weight, layer.down.bias, self.slots, slot, *packed.tables, positions_B, self.hidden_BS, keys, values, x, scratch,
            )  # fmt: skip
        self.end += 1
        return packed.head(packed.to_unit(x), wide=True)

    def step_by_operations(self, tokens_B: Tensor, slot: int) -> Tensor:
        """`step` in PyTorch's own operations."""
        packed, config = self.packed, self.packed.config
        positions_B1 = (self.lengths_B[:, None] - 1).clamp_(0, packed.max_positions - 1)

        def mix(at: int, q: Tensor, kv: Tensor) -> Tensor:
            self.store(at, kv, positions_B1, slot)
            q_norm, _ = packed.layers[at].norms or (None, None)
            q = turn(q, config.heads, packed.tables, positions_B1, q_norm, config.norm_eps)
            return attend(q, self.keys[at], self.values[at], ~self.hidden_BS[:, None]).transpose(1, 2)

        return self.forward(tokens_B[:, None], mix)

    def read(self, ids_BT: Tensor) -> Tensor:
        """The prompts' next tokens, which are all that they have, or some of a single prompt; logits of the last one, [B, V]."""
        packed, config, first = self.packed, self.packed.config, self.end
        upto = first + ids_BT.shape[1]
        place_S = torch.arange(upto, device=ids_BT.device)
        place_T, padding_B1 = place_S[first:], (self.width - self.lengths_B)[:, None]
        positions_BS = (place_S - padding_B1).clamp_(0, packed.max_positions - 1)
        # Nobody reads what padding sees, but it must see something.
        start_BT = torch.where(place_T < padding_B1, 0, padding_B1)
        sees_BT3 = torch.stack((torch.zeros_like(start_BT), start_BT, (place_T + 1).expand_as(start_BT)), -1)

        def mix(at: int, q: Tensor, kv: Tensor) -> Tensor:
            kv = torch.cat((self.earlier[at], kv), 1) if first else kv.contiguous()
            if upto < self.width:
                self.earlier[at] = kv
            self.store(at, kv, positions_BS, 0)
            norms, heads = packed.layers[at].norms, (config.heads, config.kv_heads, config.head_size)
            normed = None if norms is None else (*norms, config.norm_eps)
            return attention(q, kv, heads, packed.tables, positions_BS[:, first:], positions_BS, sees_BT3, normed)

        logits_BV = self.forward(ids_BT, mix)
        if upto == self.width:
            self.earlier = {}
        return logits_BV

    def store(self, at: int, kv: Tensor, positions_BT: Tensor, slot: int) -> None:
        """Keys, normed and turned, and values of some tokens, [B, T, 2 K · E], into a layer's slots from `slot` on; compiled kernels
        know the first alone."""
        packed, config, (keys, values) = self.packed, self.packed.config, (self.keys[at], self.values[at])
        (B, T, _), (K, E) = kv.shape, (config.kv_heads, config.head_size)
        _, k_norm = packed.layers[at].norms or (None, None)
        if self.run is not None:
            self.run(
                "store_tokens", B, T, K, E, self.slots, kv, k_norm, config.norm_eps, *packed.tables, positions_BT, keys, values
            )  # fmt: skip
            return
        keys[:, :, slot : slot + T] = turn(kv[..., : K * E], K, packed.tables, positions_BT, k_norm, config.norm_eps)
        values[:, :, slot : slot + T] = kv[..., K * E :].view(B, T, K, E).transpose(1, 2)

    def forward(self, ids_BT: Tensor, mix: Callable[[int, Tensor, Tensor], Tensor]) -> Tensor:
        """Run new tokens through the model; logits of the last one, [B, V]. `mix` is attention: from the layer's number, queries
        [B, T, H · E], keys and values [B, T, 2 K · E], neither turned yet, to [B, T, H · E]."""
        packed, config, (B, T) = self.packed, self.packed.config, ids_BT.shape
        queries, shared = config.heads * config.head_size, 2 * config.kv_heads * config.head_size
        x = F.embedding(ids_BT.flatten(), packed.embedding)
        x = x.to(at_least_float32(x.dtype))
        for at, layer in enumerate(packed.layers):
            q, kv = layer.qkv(packed.to_unit(x)).view(B, T, -1).split((queries, shared), -1)
            mixed = mix(at, q, kv)
            if layer is packed.layers[-1]:  # of what follows, the last token's alone is asked for
                mixed, x = mixed[:, -1:], x.view(B, T, -1)[:, -1].contiguous()
            x = layer.out(mixed.reshape(-1, queries), add_to=x)
            x = layer.down(swiglu(layer.gate_up(packed.to_unit(x))), add_to=x)
        self.end += T
        return packed.head(packed.to_unit(x), wide=True)
