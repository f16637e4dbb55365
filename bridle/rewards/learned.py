"""Trained reward models as a reward: (prompts, completions) → scores in standard deviations of the reference's answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from bridle.compute.device import Device
from bridle.core.records import Completion, Prompt, Scores
from bridle.models.batches import by_length, make_batch
from bridle.models.policy import RewardModel

Combine = Literal["mean", "min", "uwo"]


@torch.no_grad()
def task_scores(
    model: RewardModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], device: Device
) -> Tensor:
    """Raw scores [B, C] by every task of answers given as ids, batched by length.

    Equal answers to a prompt are scored once: in another batch, or another row of it, the last digits may be others, and answers
    that are equal would differ in reward."""
    numbers: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    number_B = [numbers.setdefault((tuple(p), tuple(a)), len(numbers)) for p, a in zip(prompts, answers, strict=True)]
    distinct = list(numbers)
    out = torch.zeros(len(distinct), len(model.tasks))
    for rows in by_length([len(p) + len(a) for p, a in distinct], 128):
        read = [distinct[i] for i in rows]
        batch = make_batch([p for p, _ in read], [a for _, a in read], model.template.pad_id, device.torch)
        with device.autocast():
            out[rows] = model.module.task_scores(batch.ids_BW, batch.lengths_B).float().cpu()
    return out[number_B]


class LearnedReward:
    """Scores by one task of a reward model. Ids are read as they are where its tokenizer wrote them, else made from text: a prompt's
    once, and kept by its id."""

    def __init__(self, model: RewardModel, device: Device, same_tokens: bool, task: str = "") -> None:
        self.model, self.device, self.same_tokens = model, device, same_tokens
        self.row = model.row(task)
        self.known: dict[str, Prompt] = {}  # prompts that come without this template's ids, with them

    def by(self, task: str) -> LearnedReward:
        """The same model by another of its tasks."""
        return LearnedReward(self.model, self.device, self.same_tokens, task)

    def ids(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> tuple[list[list[int]], list[list[int]]]:
        template, read = self.model.template, self.encode_once(prompts)
        if self.same_tokens and all(c.token_ids for c in completions):
            return template.prompt_ids(read), [list(c.token_ids) for c in completions]
        read = [template.before_answers(prompt, [c.text]) for prompt, c in zip(read, completions, strict=True)]
        return template.prompt_ids(read), template.completion_ids(read, [c.text for c in completions])

    def fits(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[bool]:
        """Whether the context holds each dialogue."""
        limit, both = self.model.module.config.max_positions, zip(*self.ids(prompts, completions), strict=True)
        return [len(prompt) + len(answer) <= limit for prompt, answer in both]

    def encode_once(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts with their text and ids by this model's template: as they travel, where it wrote them, else written once."""
        template = self.model.template
        other = {prompt.id: prompt for prompt in prompts if template.encoded(prompt) is None}
        new = [prompt for name, prompt in other.items() if name not in self.known]
        written = template.encode(new, [template.prompt_text(prompt) for prompt in new])
        self.known |= {prompt.id: prompt for prompt in written}
        return [self.known[prompt.id] if prompt.id in other else prompt for prompt in prompts]

    def raw(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Tensor:
        """The head's own numbers, [B]; of a binary task the logits."""
        return task_scores(self.model, *self.ids(prompts, completions), self.device)[:, self.row]

    def probabilities(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        """P(the answer beats the reference's typical one), or of a binary task P(class 1)."""
        found: list[float] = self.model.tasks[self.row].probability(self.raw(prompts, completions)).tolist()
        return found

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        return list(self.model.tasks[self.row].reward(self.raw(prompts, completions)).tolist())


class Ensemble:
    """Several reward models that learnt the same, as one: where they disagree nobody knows, and a policy would go there.

    `mean`; `min`: worst-case optimisation; `uwo`: mean - λ variance over the members (Coste 2023, §3, arxiv.org/abs/2310.02743).
    With the scores comes the members' `disagreement`, the standard deviation over them, mean over answers.
    """

    def __init__(self, members: Sequence[LearnedReward], combine: Combine, uncertainty: float) -> None:
        self.members, self.combine, self.uncertainty = members, combine, uncertainty

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Scores:
        scores_MB = torch.tensor([member(prompts, completions) for member in self.members], dtype=torch.float64)
        disagreement = float(scores_MB.std(0, correction=0).mean())
        return Scores(combined(scores_MB, self.combine, self.uncertainty).tolist(), {"disagreement": disagreement})


def combined(scores_MB: Tensor, combine: Combine, uncertainty: float) -> Tensor:
    """One score for each answer, [B], from those of M members; see `Ensemble`."""
    if combine == "min":
        return scores_MB.amin(0)
    spread_B = scores_MB.var(0, correction=0) if combine == "uwo" else 0.0
    return scores_MB.mean(0) - uncertainty * spread_B
