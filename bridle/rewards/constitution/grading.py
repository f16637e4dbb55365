"""Grading one answer at a time: the probabilities of a critic's verdicts, and what they make an answer worth.

A small model that cannot say which of two answers is better can say what is wrong with one; the difference of two expected grades is its
preference.
"""

from collections.abc import Mapping, Sequence

import torch

from bridle.compute.device import Device
from bridle.core.errors import ModelError
from bridle.core.records import Prompt
from bridle.models.batches import by_length, make_batch, sequence_logprobs
from bridle.models.policy import Policy

ROWS = 64  # in a batch


@torch.no_grad()
def verdict_probabilities(
    policy: Policy, prompts: Sequence[Prompt], verdicts: Sequence[str], device: Device
) -> list[list[float]]:
    """Of each prompt the probability of each verdict as the whole reply, among them all: softmax over verdicts of Σ log π(its tokens)."""
    template = policy.template
    replies = template.completion_ids([prompts[0]] * len(verdicts), verdicts) if prompts else []
    rows = [(ids, reply) for ids in template.prompt_ids(prompts) for reply in replies]
    logp_N = torch.zeros(len(rows))
    for chosen in by_length([len(ids) + len(reply) for ids, reply in rows], ROWS):
        batch = make_batch([rows[i][0] for i in chosen], [rows[i][1] for i in chosen], template.pad_id, device.torch)
        with device.autocast():
            logp_N[chosen] = sequence_logprobs(policy.module, batch).sum(1).float().cpu()
    if not bool(torch.isfinite(logp_N).all()):
        raise ModelError("the critic's log-probs are not finite; take another model, or model.precision = 'float32'")
    found: list[list[float]] = logp_N.view(len(prompts), -1).softmax(1).tolist()
    return found


def expected_grades(probabilities: Sequence[Sequence[float]], grades: Mapping[str, float]) -> list[float]:
    """Σ p(verdict) · its grade, for each answer; the verdicts in the order of the grades."""
    return [sum(p * grade for p, grade in zip(row, grades.values(), strict=True)) for row in probabilities]
