"""The engine: answers prompts in batches with a key/value cache, for rollouts, collection and evaluation.

Weights are packed for decoding (`native.py`, or `fallback.py` for what transformers runs) and carry the stamp of the
policy they came from; an answer is asked for with the expected stamp, stale weights are refused.
`generate` answers prompts that are all there at once, `batch` gives what rows are admitted to one by one (`batch.py`): the
first is a loop over the second. There once a quarter of the rows is done they leave, and waiting prompts take their place.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from bridle.compute.parallel import all_shares, my_share
from bridle.compute.sharding import in_plain_form
from bridle.core.errors import StaleWeights
from bridle.core.records import Completion, FinishReason, Prompt
from bridle.core.timeline import note_tokens
from bridle.generation.batch import KEEP_SHARE, AnswerRow, BatchLimits, RowBatch
from bridle.generation.fallback import Fallback, pack_foreign
from bridle.generation.native import PackedDecoder, pack_decoder
from bridle.generation.sampling import Sampling
from bridle.models.decoder import Decoder
from bridle.models.foreign import LanguageModel
from bridle.models.policy import Policy
from bridle.models.template import Template

# All prompts are there and nobody waits for the next token: rows come in many at a time, and as many prompts are read as there is room.
EAGER = BatchLimits(prefill_tokens=sys.maxsize, cache_tokens=sys.maxsize, refill_below=KEEP_SHARE, groups=1)


@dataclass(frozen=True)
class Answer:
    """Token ids (stop token included), their log-probs under the sampling distribution, and why the answer ended."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason


class AnswerSource(Protocol):
    """What answers prompts by a policy's present weights: `Engine`, or a server (endpoint.py)."""

    def load(self, policy: Policy) -> None: ...

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: Sampling, *, stamp: str, seed: int,
        samples: Sequence[int] | None = None, progress: Callable[[int], None] | None = None,
    ) -> list[Answer]: ...  # fmt: skip


def pack_policy(policy: Policy, dtype: torch.dtype) -> PackedDecoder | Fallback:
    """A copy of the policy's weights in `dtype`, ready to decode: what changes the policy later leaves it alone."""
    return pack_module(policy.module, policy.stamp, dtype)


def pack_module(module: LanguageModel, stamp: str, dtype: torch.dtype) -> PackedDecoder | Fallback:
    if isinstance(module, Decoder):
        return pack_decoder(module, stamp, dtype)
    return pack_foreign(module, stamp, dtype)


class Engine:
    """Holds packed weights; `load` after every change of the policy, `generate` with the stamp that is expected."""

    def __init__(self, dtype: torch.dtype, batch_size: int = 128) -> None:
        self.dtype = dtype
        self.batch_size = batch_size
        self.packed: PackedDecoder | Fallback | None = None
        self.template_stops: frozenset[int] = frozenset()

    def load(self, policy: Policy) -> None:
        with in_plain_form(policy.module):  # on every rank, whatever an audit of the first one's has loaded here
            if self.packed is None or self.packed.stamp != policy.stamp:
                self.take(policy.module, policy.stamp, policy.template.stop_ids)

    def take(self, module: LanguageModel, stamp: str, stops: frozenset[int]) -> None:
        """Pack weights of this stamp; an answer ends with one of `stops`."""
        self.packed = None  # let go of before there is another
        self.packed, self.template_stops = pack_module(module, stamp, self.dtype), stops

    def batch(self, limits: BatchLimits | None = None) -> RowBatch:
        """Rows that are admitted one by one, answered by the weights that are loaded now: later ones leave them alone."""
        if self.packed is None:
            raise StaleWeights("the engine holds no weights yet; load a policy before rows are admitted")
        return RowBatch(self.packed, self.template_stops, limits or BatchLimits())

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
        batch = self.batch(replace(EAGER, rows=self.batch_size))
        numbers = range(len(prompts)) if samples is None else samples
        rows = [
            AnswerRow(tuple(prompt), settings, seed, number) for prompt, number in zip(prompts, numbers, strict=True)
        ]
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i].prompt), rows[i].prompt))  # equal ones in a row
        if order:
            batch.require_answerable(rows[order[-1]])  # of those that are too long the longest
        answers = {batch.admit(rows[i]): Answer([], [], FinishReason.LENGTH) for i in order}
        left = len(order)
        while left:
            before = left
            for drawn in batch.step():
                answer = answers[drawn.id]
                answer.token_ids.append(drawn.token)
                answer.logprobs.append(drawn.logprob)
                if drawn.finish_reason is not None:
                    left -= 1
                    answers[drawn.id] = replace(answer, finish_reason=drawn.finish_reason)
            if progress is not None and left < before:
                progress(before - left)
        by_place = dict(zip(order, answers.values(), strict=True))
        return [by_place[i] for i in range(len(rows))]


def answer_prompts(
    engine: AnswerSource,
    policy: Policy,
    prompts: Sequence[Prompt],
    settings: Sampling,
    *,
    seed: int,
    samples: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Completion]:
    """One completion a prompt by the policy's present weights. Load the engine after each optimiser step: it checks. Ranks answer a share
    each, and have all answers; what an answer is does not depend on who gives it."""
    ids, numbers = policy.template.prompt_ids(prompts), range(len(prompts)) if samples is None else samples
    mine = my_share(list(range(len(prompts))))
    own = engine.generate(
        [ids[i] for i in mine],
        settings,
        stamp=policy.stamp,
        seed=seed,
        samples=[numbers[i] for i in mine],
        progress=progress,
    )
    note_tokens(sum(len(answer.token_ids) for answer in own))
    return as_completions(all_shares(own), prompts, policy.template, policy.stamp, settings, seed)


def as_completions(
    answers: Sequence[Answer], prompts: Sequence[Prompt], template: Template, stamp: str, settings: Sampling, seed: int
) -> list[Completion]:
    """Answers as records: what was asked, the text, and which weights answered."""
    texts = template.decode_batch([a.token_ids for a in answers])
    notes = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k, "seed": seed}
    return [
        Completion(p.id, text, tuple(a.token_ids), tuple(a.logprobs), a.finish_reason, stamp, notes)
        for p, text, a in zip(prompts, texts, answers, strict=True)
    ]
