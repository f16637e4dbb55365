"""Answers from a server that runs the same model with the adapter that is trained, as vLLM does: on the trainer's own card, in turns.

Each time: 1. save the adapter  2. wake the server, hand it the adapter  3. ask: token ids in, token ids and log-probs out  4. take the
adapter back, let the server sleep  5. read the answers' log-probs by the trainer's own pass. What does not agree ends the run.
Left out on purpose: a key, and another machine, for the adapter is handed over by its place on the disk; trying again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bridle.compute.device import Device
from bridle.compute.parallel import world_size
from bridle.compute.randomness import derived_seed
from bridle.core.errors import StaleWeights, StoreError, TrainingStopped, UsageError
from bridle.core.forms import form_fault
from bridle.core.outbound import Posted, posting
from bridle.core.records import FinishReason
from bridle.generation.engine import Answer
from bridle.generation.sampling import Sampling
from bridle.models.batches import by_length, make_batch, sequence_logprobs
from bridle.models.lora.policies import save_adapter
from bridle.models.policy import Policy
from bridle.recipe.online import RolloutSection

CHOICE = {
    "text": str, "token_ids": [int], "prompt_token_ids?": ([int], None), "finish_reason": str,
    "logprobs": {"token_logprobs": [float]},
}  # fmt: skip
READ = 16  # answers at once, of those that are read again


@dataclass
class EndpointEngine:
    """What a trainer asks in place of its own engine. The server sleeps from the start, where it is to sleep at all."""

    section: RolloutSection
    device: Device
    policy: Policy | None = None

    def __post_init__(self) -> None:
        if world_size() > 1:
            raise UsageError(
                f"rollout.endpoint is handed one adapter and let sleep by one process, and {world_size()} share this training; set "
                "scale.workers to 1, or leave the endpoint out"
            )
        if self.section.sleeps:
            self.call("/sleep?level=1")

    def load(self, policy: Policy) -> None:
        """The policy that is to answer, which must learn by an adapter."""
        self.policy = policy

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: Sampling, *, stamp: str, seed: int,
        samples: Sequence[int] | None = None, progress: Callable[[int], None] | None = None,
    ) -> list[Answer]:  # fmt: skip
        """As `Engine.generate`. StoreError where the server does not answer so, TrainingStopped where its answers are not the policy's."""
        policy = self.policy
        if policy is None or policy.stamp != stamp:
            raise StaleWeights(f"the endpoint was not handed the weights {stamp}; load the policy again")
        numbers = range(len(prompts)) if samples is None else samples
        asked = [
            completion_body(p, settings, policy, draw_seed(seed, n)) for p, n in zip(prompts, numbers, strict=True)
        ]
        pool = ThreadPoolExecutor(self.section.concurrency)
        with self.awake(policy) as name, self.posts("/v1/completions") as post, pool:
            replies = list(pool.map(lambda body: post({"model": name, **body}, {}), asked))
        answers = [self.read(reply, body, policy) for reply, body in zip(replies, asked, strict=True)]
        if progress is not None:
            progress(len(answers))
        self.require_alike(policy, prompts, answers, settings.temperature)
        return answers

    @contextmanager
    def awake(self, policy: Policy) -> Iterator[str]:
        """The server with the policy's adapter, while the block runs, and what the two are called there."""
        try:
            if self.section.sleeps:
                self.call("/wake_up")
            with tempfile.TemporaryDirectory(prefix="bridle-adapter-") as passing:
                folder, name = Path(passing) / "adapter", Path(passing).name  # called as no other that was left there
                save_adapter(folder, policy)
                self.call("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
                try:
                    yield name
                finally:
                    self.call("/v1/unload_lora_adapter", {"lora_name": name})
        finally:
            if self.section.sleeps:
                self.call("/sleep?level=1")

    def posts(self, path: str) -> Any:
        root = self.section.endpoint.rstrip("/").removesuffix("/v1")
        return posting(f"{root}{path}", {}, self.section.timeout, self.section.concurrency)

    def call(self, path: str, body: object = None) -> None:
        with self.posts(path) as post:
            self.require_success(path, post(body, {}))

    def require_success(self, path: str, posted: Posted) -> bytes:
        status, _, content, fault = posted
        if fault or not 200 <= status < 300:
            why = fault or f"status {status}: {content[:200].decode('utf-8', 'replace')}"
            raise StoreError(
                f"rollout.endpoint {self.section.endpoint} did not take POST {path} ({why}); see that it runs with adapters and sleep "
                "mode as docs/scaling.md says"
            )
        return content

    def read(self, posted: Posted, body: Any, policy: Policy) -> Answer:
        """One answer; StoreError where it is not in the form that was asked for, TrainingStopped where its parts do not belong together."""
        content = self.require_success("/v1/completions", posted)
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if fault := form_fault(found, {"choices": [CHOICE]}) or ("" if found["choices"] else "it needs a choice"):
            raise StoreError(f"rollout.endpoint {self.section.endpoint} answers in another form: {fault}")
        choice = found["choices"][0]
        ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        stopped = choice["finish_reason"] == "stop"
        ends = (
            bool(ids)
            and stopped == (ids[-1] in policy.template.stop_ids)
            and (stopped or len(ids) == body["max_tokens"])
        )
        faults = {
            "the prompt is not the tokens that were sent": choice.get("prompt_token_ids") not in (None, body["prompt"]),
            f"{len(ids)} tokens have {len(logprobs)} log-probs": len(ids) != len(logprobs),
            "it ends otherwise than it says": not ends,
        }
        if not any(faults.values()):
            own = policy.template.tokenizer.decode(ids[:-1] if stopped else ids)
            faults["its text is not that of its tokens"] = bare(choice["text"]) != bare(own)
        for fault, wrong in faults.items():
            if wrong:
                raise TrainingStopped(
                    f"an answer of rollout.endpoint {self.section.endpoint} is not what was asked for: {fault}; see that it serves the "
                    "model that is trained, with its own tokenizer"
                )
        return Answer(ids, logprobs, FinishReason.STOP if stopped else FinishReason.LENGTH)

    @torch.no_grad()
    def require_alike(
        self, policy: Policy, prompts: Sequence[Sequence[int]], answers: Sequence[Answer], temperature: float
    ) -> None:
        """TrainingStopped where the server's log-probs are further from the trainer's than precision can explain."""
        apart, tokens = 0.0, sum(len(answer.token_ids) for answer in answers)
        for rows in by_length([len(p) + len(a.token_ids) for p, a in zip(prompts, answers, strict=True)], READ):
            both = [prompts[i] for i in rows], [answers[i].token_ids for i in rows]
            batch = make_batch(*both, policy.template.pad_id, self.device.torch)
            with self.device.autocast():
                own_BT = sequence_logprobs(policy.module, batch, temperature)
            sampled = [logprob for i in rows for logprob in answers[i].logprobs]
            apart += float((own_BT[batch.mask_BT].cpu() - torch.tensor(sampled)).abs().sum())
        if not apart <= self.section.max_logprob_gap * tokens:  # NaN is within nothing
            raise TrainingStopped(
                f"the endpoint's log-probs are not those of the weights: {apart / tokens:.3g} nats a token apart on the average, where "
                f"rollout.max_logprob_gap allows {self.section.max_logprob_gap:g}; see that it serves the model that is trained, its "
                "matrices held alike, and gives the log-probs of what it samples from (docs/scaling.md)"
            )


def bare(text: str) -> str:
    """A text without what decoders do each in their own way: spaces at its ends, halves of characters."""
    return text.replace("\ufffd", "").strip()


def completion_body(prompt: Sequence[int], settings: Sampling, policy: Policy, seed: int) -> dict[str, Any]:
    """A request for one answer: what the server's own settings would change is said."""
    return {
        "prompt": list(prompt), "max_tokens": settings.max_new_tokens, "seed": seed, "temperature": settings.temperature,
        "top_p": settings.top_p, "top_k": settings.top_k, "min_p": 0.0, "repetition_penalty": 1.0,
        "stop_token_ids": sorted(policy.template.stop_ids), "ignore_eos": True, "logprobs": 1, "return_token_ids": True,
    }  # fmt: skip


def draw_seed(seed: int, number: int) -> int:
    return derived_seed(seed, "endpoint", number)
