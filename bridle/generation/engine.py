"""The engine: answers prompts in batches with a key/value cache, for rollouts, collection and evaluation.

Weights are packed for decoding (`native.py`, or `fallback.py` for what transformers runs) and carry the stamp of the
policy they came from; an answer is asked for with the expected stamp, stale weights are refused.
Batching is continuous: once a quarter of the rows is done they leave, and waiting prompts take their place. A prompt that
is asked several times is run through the model once. Random numbers are counted by (seed, sample, position, try).

Shapes: B rows, T new tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bridle.core.errors import DataError, ModelError, StaleWeights
from bridle.core.records import Completion, FinishReason, Prompt
from bridle.generation.fallback import Fallback, pack_foreign
from bridle.generation.native import PackedDecoder, pack_decoder
from bridle.generation.sampling import Sampling, draw, uniforms
from bridle.models.decoder import Decoder
from bridle.models.policy import Policy

KEEP_SHARE = 0.75  # finished rows leave once fewer than this share is still going: each time the cache is copied


@dataclass(frozen=True)
class Answer:
    """Token ids (stop token included), their log-probs under the sampling distribution, and why the answer ended."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason


def pack_policy(policy: Policy, dtype: torch.dtype) -> PackedDecoder | Fallback:
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
        self.packed: PackedDecoder | Fallback | None = None
        self.template_stops: frozenset[int] = frozenset()

    def load(self, policy: Policy) -> None:
        if self.packed is None or self.packed.stamp != policy.stamp:
            self.packed = pack_policy(policy, self.dtype)
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
        call = Call(self.packed, self.template_stops, settings, seed, prompts, numbers)
        waiting = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), list(prompts[i])))  # equal ones in a row
        rows: Rows | None = None
        while call.unfinished:
            left = len(call.unfinished)
            live = [] if rows is None else call.live(rows)
            if rows is not None and live:
                if waiting and self.packed.joins and len(live) < KEEP_SHARE * self.batch_size:
                    fresh = call.begin(take_first(waiting, self.batch_size - len(live)))
                    if not call.join(rows, fresh):
                        rows = call.gather([rows, fresh])
                elif len(live) < KEEP_SHARE * len(rows.prompts):
                    rows = call.gather([rows])
                if rows is not None and rows.decoding.full(call.live(rows)):
                    rows = call.gather([rows])
            else:
                rows = call.gather([call.begin(take_first(waiting, self.batch_size))])
            if rows is not None:
                call.draw(rows, rows.decoding.step(rows.tokens_B))
            if progress is not None and len(call.unfinished) < left:
                progress(left - len(call.unfinished))
        return call.answers


def take_first(waiting: list[int], count: int) -> list[int]:
    """The first ones, which wait no longer."""
    taken = waiting[:count]
    del waiting[:count]
    return taken


@dataclass
class Rows:
    """Rows under way: which prompt each answers, where its cache lies in the decoding, its random numbers, how many of
    them were used, and the token drawn last.

    There may be more rows than prompts: they keep the others company (`least_rows`), and nobody asks for their answers.
    """

    decoding: Any  # a Decoding or FallbackDecoding, as the packed weights make it
    prompts: list[int]
    place_B: Tensor
    uniforms_BT: Tensor
    used_B: Tensor
    tokens_B: Tensor


class Call:
    """One call of `generate`: what its rows have in common, and their answers so far."""

    def __init__(
        self,
        packed: PackedDecoder | Fallback,
        stops: frozenset[int],
        settings: Sampling,
        seed: int,
        prompts: Sequence[Sequence[int]],
        numbers: Sequence[int],
    ) -> None:
        self.packed, self.stops, self.settings, self.seed = packed, stops, settings, seed
        self.prompts, self.numbers = prompts, numbers
        self.answers = [Answer([], [], FinishReason.LENGTH) for _ in prompts]
        self.unfinished = set(range(len(prompts)))

    def live(self, rows: Rows) -> list[int]:
        return [row for row, index in enumerate(rows.prompts) if index in self.unfinished]

    def begin(self, indices: list[int]) -> Rows:
        """Run the prompts through the model, equal ones once, and draw the first token of each answer."""
        distinct: dict[tuple[int, ...], int] = {}
        places = [distinct.setdefault(tuple(self.prompts[i]), len(distinct)) for i in indices]
        company = [self.prompts[indices[-1]]] * (self.packed.least_rows - len(distinct))
        decoding, logits_UV = self.packed.prefill([*distinct, *company])
        if not bool(torch.isfinite(logits_UV).all()):
            raise ModelError(
                f"weights {self.packed.stamp} give logits that are not finite; go back to a checkpoint before they broke"
            )
        place_B = torch.tensor(places, device=self.packed.device)
        samples_B1 = torch.tensor([[self.numbers[i]] for i in indices], device=place_B.device)
        positions_T = torch.arange(self.settings.max_new_tokens, device=place_B.device)
        uniforms_BT = uniforms(self.seed, samples_B1, positions_T)
        rows = Rows(decoding, indices, place_B, uniforms_BT, torch.zeros_like(place_B), place_B)
        self.draw(rows, logits_UV[place_B])
        return rows

    def join(self, rows: Rows, fresh: Rows) -> bool:
        """Put fresh rows in the place of finished ones. False if the cache cannot take them."""
        live, free = self.live(fresh), [row for row, i in enumerate(rows.prompts) if i not in self.unfinished]
        if not live:
            return True
        taken = torch.tensor(live, device=rows.place_B.device)
        places = torch.tensor(free[: len(live)], device=taken.device)
        if len(live) > len(free) or not rows.decoding.join(fresh.decoding, fresh.place_B[taken], places):
            return False
        for row, place in zip(live, free, strict=False):
            rows.prompts[place] = fresh.prompts[row]
        rows.uniforms_BT[places] = fresh.uniforms_BT[taken]
        rows.used_B[places] = fresh.used_B[taken]
        rows.tokens_B[places] = fresh.tokens_B[taken]
        return True

    def gather(self, parts: Sequence[Rows]) -> Rows | None:
        """What is unfinished of all parts, side by side; None if nothing is."""
        chosen = [(part, live) for part in parts if (live := self.live(part))]
        if not chosen:
            return None
        prompts = [part.prompts[row] for part, live in chosen for row in live]
        last = chosen[-1][1]
        last += last[-1:] * (self.packed.least_rows - len(prompts))
        taken = [(part, torch.tensor(live, device=part.place_B.device)) for part, live in chosen]
        tokens_B = torch.cat([part.tokens_B[rows] for part, rows in taken])
        return Rows(
            self.packed.gather([(part.decoding, part.place_B[rows]) for part, rows in taken]),
            prompts,
            torch.arange(len(tokens_B), device=tokens_B.device),
            torch.cat([part.uniforms_BT[rows] for part, rows in taken]),
            torch.cat([part.used_B[rows] for part, rows in taken]),
            tokens_B,
        )

    def draw(self, rows: Rows, logits_BV: Tensor) -> None:
        """Draw every row's next token, and add it to the answer where that is not finished."""
        u_B = rows.uniforms_BT.gather(1, rows.used_B[:, None])[:, 0]
        rows.tokens_B, logprobs_B = draw(logits_BV, self.settings, u_B)
        rows.used_B = (rows.used_B + 1).clamp_(max=self.settings.max_new_tokens - 1)  # rows that are finished go on
        for index, token, logp in zip(rows.prompts, rows.tokens_B.tolist(), logprobs_B.tolist(), strict=False):
            if index not in self.unfinished:
                continue
            answer = self.answers[index]
            answer.token_ids.append(token)
            answer.logprobs.append(logp)
            if token in self.stops:
                self.answers[index] = Answer(answer.token_ids, answer.logprobs, FinishReason.STOP)
            if token in self.stops or len(answer.token_ids) == self.settings.max_new_tokens:
                self.unfinished.remove(index)


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
