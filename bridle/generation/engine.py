"""The engine: answers prompts in batches with a static key/value cache, for rollouts, collection and evaluation.

Weights are packed for decoding (query, key and value in one product, gate and up in one, in the engine's precision) and
carry the stamp of the policy they came from; an answer is asked for with the expected stamp, stale weights are refused.
Finished rows leave the batch when a quarter of it is done. Random numbers are counted by (seed, sample, position, try).

Shapes: B rows, T new positions, S cache slots, D hidden size, H query heads, K key heads, E head size.
Left out for now: continuous batching (finished rows are not replaced), a prompt cache shared between samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridle.core.errors import DataError, ModelError, StaleWeights
from bridle.core.records import Completion, FinishReason, Prompt
from bridle.generation.sampling import Sampling, draw
from bridle.models.batches import by_length
from bridle.models.decoder import DecoderConfig, Layer, rope_tables, rotate
from bridle.models.policy import Policy

LEAST_ROWS = 4  # below this a CPU takes other product kernels, and a row's last digits would depend on its company
KEEP_SHARE = 0.75  # rows are dropped from the batch once fewer than this share is still going


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


@dataclass(frozen=True)
class Answer:
    """Token ids (stop token included), their log-probs under the sampling distribution, and why the answer ended."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason


def pack(policy: Policy, dtype: torch.dtype) -> Packed:
    module, config = policy.module, policy.module.config

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
        stamp=policy.stamp,
        embedding=embedding,
        layers=[pack_layer(layer) for layer in module.model.layers],
        norm=cast(module.model.norm.weight),
        head=embedding if config.tie_embeddings else cast(module.output_weight()),
        cos=cos,
        sin=sin,
    )


class Cache:
    """Keys and values of every layer, [B, K, S, E], allocated once; `bias` [B·K, 1, S] hides a row's left padding."""

    def __init__(self, packed: Packed, lengths: Sequence[int], width: int, slots: int) -> None:
        config, like = packed.config, packed.embedding
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


def forward(packed: Packed, ids_BT: Tensor, cache: Cache, start: int) -> Tensor:
    """Run T new tokens through the model, writing cache slots start … start+T-1; logits of the last one, [B, V]."""
    config = packed.config
    B, T = ids_BT.shape
    H, K, E = config.heads, config.kv_heads, config.head_size
    end = start + T
    positions_BT = (torch.arange(start, end, device=ids_BT.device) - cache.padding_B[:, None]).clamp_(min=0)
    cos, sin = packed.cos[positions_BT][:, :, None], packed.sin[positions_BT][:, :, None]  # [B, T, 1, E/2]
    bias = cache.bias[:, :, :end]
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
        keys, values = cache.keys[index], cache.values[index]
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


class Engine:
    """Holds packed weights; `load` after every change of the policy, `generate` with the stamp that is expected."""

    def __init__(self, dtype: torch.dtype, batch_size: int = 128) -> None:
        self.dtype = dtype
        self.batch_size = batch_size
        self.packed: Packed | None = None
        self.template_stops: frozenset[int] = frozenset()

    def load(self, policy: Policy) -> None:
        if self.packed is None or self.packed.stamp != policy.stamp:
            self.packed = pack(policy, self.dtype)
            self.template_stops = policy.template.stop_ids

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: Sampling,
        *,
        stamp: str,
        seed: int,
        samples: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """An answer to each prompt (token ids). `samples` numbers the draws: by default a prompt's place in the list.

        In float32 equal prompt, seed and sample give the equal answer, alone or among others, in any order.
        """
        if self.packed is None or self.packed.stamp != stamp:
            held = "none" if self.packed is None else self.packed.stamp
            raise StaleWeights(f"the engine holds weights {held} where {stamp} was expected; load the policy again")
        longest = max((len(p) for p in prompts), default=0)
        if longest + settings.max_new_tokens > self.packed.config.max_positions:
            raise DataError(
                f"a prompt of {longest} tokens and {settings.max_new_tokens} new ones do not fit the model's context "
                f"of {self.packed.config.max_positions}; shorten the prompt or lower max_new_tokens"
            )
        if any(not p for p in prompts):
            raise DataError("a prompt without a single token cannot be answered")
        numbers = list(range(len(prompts))) if samples is None else list(samples)
        answers: list[Answer | None] = [None] * len(prompts)
        for rows in by_length([len(p) for p in prompts], self.batch_size):
            found = self._batch([prompts[i] for i in rows], settings, seed, [numbers[i] for i in rows])
            for i, answer in zip(rows, found, strict=True):
                answers[i] = answer
            if progress is not None:
                progress(len(rows))
        return [a for a in answers if a is not None]

    def _batch(self, prompts: list[Sequence[int]], settings: Sampling, seed: int, numbers: list[int]) -> list[Answer]:
        packed = self.packed
        assert packed is not None
        asked = len(prompts)
        while len(prompts) < LEAST_ROWS:
            prompts, numbers = [*prompts, prompts[-1]], [*numbers, numbers[-1]]
        width = max(map(len, prompts))
        slots = width + settings.max_new_tokens
        cache = Cache(packed, [len(p) for p in prompts], width, slots)
        device = packed.embedding.device
        ids_BT = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
        samples_B = torch.tensor(numbers, device=device)
        answers = [Answer([], [], FinishReason.LENGTH) for _ in prompts]
        live = list(range(len(prompts)))
        logits_BV = forward(packed, ids_BT, cache, 0)
        if not bool(torch.isfinite(logits_BV).all()):
            raise ModelError(
                f"weights {packed.stamp} give logits that are not finite; go back to a checkpoint before they broke"
            )
        for position in range(settings.max_new_tokens):
            tokens_B, logprobs_B = draw(logits_BV, settings, seed, samples_B, torch.full_like(samples_B, position))
            going = []
            for row, (index, token, logp) in enumerate(zip(live, tokens_B.tolist(), logprobs_B.tolist(), strict=True)):
                if answers[index].finish_reason is FinishReason.STOP:
                    continue
                answers[index].token_ids.append(token)
                answers[index].logprobs.append(logp)
                if token in self.template_stops:
                    answers[index] = Answer(answers[index].token_ids, answers[index].logprobs, FinishReason.STOP)
                else:
                    going.append(row)
            if not going or position == settings.max_new_tokens - 1:
                break
            if LEAST_ROWS <= len(going) < KEEP_SHARE * len(live):
                keep = torch.tensor(going, device=device)
                cache.keep(keep)
                samples_B, tokens_B = samples_B[keep], tokens_B[keep]
                live = [live[row] for row in going]
            logits_BV = forward(packed, tokens_B[:, None], cache, width + position)
        return answers[:asked]


def answer_prompts(
    engine: Engine,
    policy: Policy,
    prompts: Sequence[Prompt],
    settings: Sampling,
    *,
    seed: int,
    samples: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Completion]:
    """One completion a prompt by the policy's present weights. Load the engine after each optimiser step: it checks."""
    answers = engine.generate(
        policy.template.prompt_ids(prompts), settings, stamp=policy.stamp, seed=seed, samples=samples, progress=progress
    )
    texts = policy.template.decode_batch([a.token_ids for a in answers])
    notes = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k, "seed": seed}
    return [
        Completion(p.id, text, tuple(a.token_ids), tuple(a.logprobs), a.finish_reason, policy.stamp, notes)
        for p, text, a in zip(prompts, texts, answers, strict=True)
    ]
