"""A reward model as a reward: centred, scaled, and the same in any batch."""

import pytest
import torch

from bridle.core.records import Completion, Prompt
from bridle.models.device import Device
from bridle.models.policy import RewardModel, Task
from bridle.models.scorer import scorer_from
from bridle.rewards.learned import LearnedReward, raw_scores
from tests.models.tiny import CPU, policy, random_ids, template

DEVICE = Device(CPU, torch.float32, 1, "test")


def model(centre: float = 0.0, scale: float = 1.0) -> RewardModel:
    scorer = scorer_from(policy().module, torch.Generator().manual_seed(0))
    return RewardModel(scorer, template(), "made", [Task(centre=centre, scale=scale)])


def test_scores_come_back_in_order_and_do_not_depend_on_company() -> None:
    ours = model()
    prompts, answers = random_ids(150, 1, 30, seed=1), random_ids(150, 1, 30, seed=2)
    found = raw_scores(ours, prompts, answers, DEVICE)
    for i in range(0, 150, 13):
        alone = raw_scores(ours, prompts[i : i + 1], answers[i : i + 1], DEVICE)
        assert float(found[i]) == pytest.approx(float(alone[0]), abs=1e-5)


def test_a_reward_is_in_deviations_of_the_references_answers() -> None:
    prompts = [Prompt.from_text("Hi"), Prompt.from_text("My cat is bored.")]
    completions = [Completion(p.id, "Play with it.") for p in prompts]
    raw = LearnedReward(model(), DEVICE, same_tokens=False)(prompts, completions)
    scaled = LearnedReward(model(0.5, 2.0), DEVICE, same_tokens=False)(prompts, completions)
    assert scaled == pytest.approx([(float(r or 0) - 0.5) / 2 for r in raw])


def test_ids_are_read_as_they_are_where_they_are_of_this_tokenizer() -> None:
    prompt = Prompt.from_text("Hi")
    reward = LearnedReward(model(), DEVICE, same_tokens=True)
    cut = Completion(prompt.id, "Play", token_ids=(50, 60))  # cut off: no stop, and none is added
    assert reward.ids([prompt], [cut])[1] == [[50, 60]]
    written = Completion(prompt.id, "Play")
    assert reward.ids([prompt], [written])[1] == template().completion_ids([prompt], ["Play"])
    assert reward.ids([prompt, prompt], [cut, written])[1] == template().completion_ids([prompt] * 2, ["Play"] * 2)
    other = LearnedReward(model(), DEVICE, same_tokens=False)
    assert other.ids([prompt], [cut])[1] == template().completion_ids([prompt], ["Play"])
