"""Measures of a model's answers."""

import pytest
import torch

from bridle.core.records import Completion, Prompt
from bridle.evaluation.answers import Answered, kl_of, text_metrics
from tests.models.tiny import policy, template
from tests.training.runs import DEVICE


def test_the_standard_error_of_the_kl_is_by_prompt() -> None:
    """The same answers given four times are no more evidence than once."""
    prompts = [Prompt.from_text(f"What is {i} + 1?") for i in range(4)]
    texts = ["It is two.", "I do not know that.", "A cat.", "Play every day with the cat."]
    ids = template().completion_ids(prompts, texts)
    answers = [Completion(p.id, t, tuple(row)) for p, t, row in zip(prompts, texts, ids, strict=True)]
    ours, reference = policy(), policy(seed=5)
    with torch.no_grad():
        (kl, error), (again, by_prompt) = (
            kl_of(Answered(prompts * times, answers * times), ours, reference, DEVICE) for times in (1, 4)
        )
    once, four = (text_metrics(Answered(prompts * times, answers * times)) for times in (1, 4))
    assert once["length_se"] == pytest.approx(four["length_se"]) and once["length_se"] > 1
    assert abs(kl) > 0.1 and (again, by_prompt) == pytest.approx((kl, error), rel=1e-4)
