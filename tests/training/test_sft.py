"""Supervised fine-tuning: the answers are learnt, the stop token with them, and nothing of the prompts."""

from pathlib import Path

import pytest
import torch

from bridle.core.errors import NoUsableRows
from bridle.models.imitation import Example
from bridle.models.policy import Policy
from bridle.project.metrics import read_metrics
from bridle.recipe.offline import SFTSection
from bridle.training import sft
from tests.models.tiny import policy, random_ids, template
from tests.training.runs import dying_at, run_in, same, saved_state, session, weights

CONFIG = SFTSection(batch_size=8, learning_rate=3e-3, optimizer="adamw", epochs=1)
STOP = template().eos_id


def examples(count: int, seed: int = 0) -> list[Example]:
    prompts, answers = random_ids(count, 2, 12, seed), random_ids(count, 1, 9, seed + 1)
    return [(prompt, [*answer, STOP]) for prompt, answer in zip(prompts, answers, strict=True)]


def answer_logprobs(ours: Policy, shown: list[Example]) -> list[torch.Tensor]:
    """By the plainest way: one example at a time, the whole distribution at every place."""
    found = []
    for prompt, answer in shown:
        with torch.no_grad():
            logp = ours.module(torch.tensor([prompt + answer])).log_softmax(-1)[0]
        places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        found.append(torch.stack([logp[place, token] for place, token in zip(places, answer, strict=True)]))
    return found


def test_the_loss_is_the_mean_over_the_answers_tokens_and_their_stops_alone(tmp_path: Path) -> None:
    shown, ours = examples(8), policy()
    expected = -torch.cat(answer_logprobs(ours, shown)).mean()
    sft.train(ours, shown, CONFIG, session(run_in(tmp_path)))
    assert read_metrics(tmp_path)[0]["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_what_a_prompts_tokens_are_called_is_not_learnt(tmp_path: Path) -> None:
    """The output row of a token that stands in prompts alone is only pushed down, exactly as one that stands nowhere:
    were it a label, it would be pulled up."""
    only_prompts, nowhere = 250, 251
    shown = [([only_prompts] * 6, [40, 41, STOP]) for _ in range(8)]
    ours = policy("llama")
    with torch.no_grad():
        ours.module.output_weight()[nowhere] = ours.module.output_weight()[only_prompts]
    sft.train(ours, shown, CONFIG, session(run_in(tmp_path)))
    after = ours.module.output_weight().detach()
    torch.testing.assert_close(after[only_prompts], after[nowhere], rtol=0, atol=1e-7)


def test_answers_and_their_stop_become_likelier(tmp_path: Path) -> None:
    shown = [(prompt, [40, 41, STOP]) for prompt in random_ids(32, 2, 12)]
    ours = policy()
    before = torch.stack(answer_logprobs(ours, shown)).mean(0)
    result = sft.train(ours, shown, SFTSection(**{**CONFIG.model_dump(), "epochs": 4}), session(run_in(tmp_path)))
    after = torch.stack(answer_logprobs(ours, shown)).mean(0)
    assert (after > before + 0.5).all() and after[-1] > -0.5
    assert result["steps"] == ours.step == 16 and result["answer_tokens"] == 4 * 32 * 3
    logged = read_metrics(tmp_path)
    assert result["loss"] == logged[-1]["loss"] < result["loss_average"] < logged[0]["loss"]  # a name means one thing


def test_what_follows_an_answer_in_its_batch_changes_nothing(tmp_path: Path) -> None:
    """A long neighbour pads the others; their log-probs, and so the loss, stay what they were."""
    short, long = examples(3), [(random_ids(1, 40, 40)[0], [*random_ids(1, 30, 30)[0], STOP])]
    expected = torch.cat(answer_logprobs(policy(), short + long))
    sft.train(policy(), short + long, CONFIG, session(run_in(tmp_path)))
    assert read_metrics(tmp_path)[0]["loss"] == pytest.approx(-float(expected.mean()), rel=1e-5)


def test_nothing_to_imitate_is_said(tmp_path: Path) -> None:
    ours = policy()
    before = weights(ours.module)
    with pytest.raises(NoUsableRows, match="needs demonstrations, got none"):
        sft.train(ours, [], CONFIG, session(run_in(tmp_path)))
    assert same(before, ours.module)


def test_a_run_that_died_remembers_its_losses(tmp_path: Path) -> None:
    """Ten steps, logged at 0, 5 and 9, saved after each third and the last."""
    config = SFTSection.model_validate({**CONFIG.model_dump(), "batch_size": 2, "epochs": 2, "checkpoint_every": 3})
    whole, resumed, shown = policy(), policy(), examples(10)
    expected = sft.train(whole, shown, config, session(run_in(tmp_path / "whole")))
    with dying_at(2):
        sft.train(policy(), shown, config, session(run_in(tmp_path / "cut")))
    assert sft.train(resumed, shown, config, session(run_in(tmp_path / "cut"))) == expected
    assert same(weights(whole.module), resumed.module)
    assert saved_state(tmp_path / "cut") == saved_state(tmp_path / "whole")
    assert saved_state(tmp_path / "cut")["selection_score"] == -expected["loss_average"]
