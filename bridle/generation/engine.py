"""The engine: answers prompts in batches with a key/value cache, for rollouts, collection and evaluation.

Weights are packed for decoding (`native.py`, or `fallback.py` for what transformers runs) and carry the stamp of the
policy they came from; an answer is asked for with the expected stamp, stale weights are refused.
Finished rows leave the batch when a quarter of it is done. Random numbers are counted by (seed, sample, position, try).

Shapes: B rows, T new positions, V vocabulary.
Left out for now: continuous batching (finished rows are not replaced), a prompt cache shared between samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bridle.core.errors import DataError, ModelError, StaleWeights
from bridle.core.records import Completion, FinishReason, Prompt
from bridle.generation.fallback import Fallback, pack_foreign
from bridle.generation.native import Packed, pack_decoder
from bridle.generation.sampling import Sampling, draw
from bridle.models.batches import by_length
from bridle.models.decoder import Decoder
from bridle.models.policy import Policy

LEAST_ROWS = 4  # below this a CPU takes other product kernels, and a row's last digits would depend on its company
KEEP_SHARE = 0.75  # rows are dropped from the batch once fewer than this share is still going


@dataclass(frozen=True)
class Answer:
    """Token ids (stop token included), their log-probs under the sampling distribution, and why the answer ended."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason


def pack(policy: Policy, dtype: torch.dtype) -> Packed | Fallback:
    """A copy of the policy's weights in `dtype`, ready to decode: what changes the policy later leaves it alone."""
    module = policy.module
    if isinstance(module, Decoder):
        return pack_decoder(module, policy.stamp, dtype)
    return pack_foreign(module, policy.stamp, dtype)


class Engine:
    """Holds packed weights; `load` after every change of the policy, `generate` with the stamp that is expected."""

    def __init__(self, dtype: torch.dtype, batch_size: int = 128) -> None:
        self.dtype = dtype
        self.batch_size = batch_size
        self.packed: Packed | Fallback | None = None
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
        if longest + settings.max_new_tokens > self.packed.max_positions:
            raise DataError(
                f"a prompt of {longest} tokens and {settings.max_new_tokens} new ones do not fit the model's context "
                f"of {self.packed.max_positions}; shorten the prompt or lower max_new_tokens"
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
        decoding = packed.begin([len(p) for p in prompts], width, width + settings.max_new_tokens)
        device = packed.device
        ids_BT = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
        samples_B = torch.tensor(numbers, device=device)
        answers = [Answer([], [], FinishReason.LENGTH) for _ in prompts]
        live = list(range(len(prompts)))
        logits_BV = decoding.forward(ids_BT)
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
                decoding.keep(keep)
                samples_B, tokens_B = samples_B[keep], tokens_B[keep]
                live = [live[row] for row in going]
            logits_BV = decoding.forward(tokens_B[:, None])
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
