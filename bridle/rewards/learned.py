"""A trained reward model as a reward: (prompts, completions) → scores in deviations of the reference's answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bridle.core.records import Completion, Prompt
from bridle.models.batches import by_length, make_batch
from bridle.models.device import Device
from bridle.models.policy import RewardModel


@torch.no_grad()
def raw_scores(
    model: RewardModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], device: Device
) -> torch.Tensor:
    """Raw scores [B] of answers given as ids, batched by length."""
    out = torch.zeros(len(prompts))
    lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
    for rows in by_length(lengths, 128):
        batch = make_batch([prompts[i] for i in rows], [answers[i] for i in rows], model.template.pad_id, device.torch)
        with device.autocast():
            out[rows] = model.module.scores(batch.ids_BW, batch.lengths_B).float().cpu()
    return out


class LearnedReward:
    """Scores by one reward model. Ids are read as they are where its tokenizer wrote them, else made from text."""

    def __init__(self, model: RewardModel, device: Device, same_tokens: bool) -> None:
        self.model, self.device, self.same_tokens = model, device, same_tokens

    def ids(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> tuple[list[list[int]], list[list[int]]]:
        template = self.model.template
        prompt_ids = template.prompt_ids(prompts)
        if self.same_tokens and all(c.token_ids for c in completions):
            return prompt_ids, [list(c.token_ids) for c in completions]
        return prompt_ids, template.completion_ids(prompts, [c.text for c in completions])

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        raw = raw_scores(self.model, *self.ids(prompts, completions), self.device)
        return [float(score) for score in (raw - self.model.centre) / self.model.scale]
