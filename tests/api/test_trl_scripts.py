"""TRL's quick-start scripts on bridle: their lines of data and of rewards as they stand, the trainer replaced by a call.

`datasets` is not installed for tests: `load_dataset` gives a stand-in with the columns that the data set has.
"""

import sys
import types
from typing import Any

import pytest

import bridle
from tests.api.dataset import Dataset
from tests.models.tiny import policy as tiny_policy
from tests.training.runs import DEVICE, same, weights

NUMBERS = range(16)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


DATA: dict[str, list[dict[str, Any]]] = {  # by name, with the columns of each as the hub shows them
    "trl-lib/Capybara": [
        {
            "source": "Dove",
            "messages": [user("Hi!"), assistant("Hello."), user(f"What is {i}?"), assistant(f"It is {i}.")],
            "num_turns": 2,
        }
        for i in NUMBERS
    ],
    "trl-lib/DeepMath-103K": [{"prompt": [user(f"What is {i} + 0?")], "solution": f"${i}$"} for i in NUMBERS],
    "trl-lib/tldr": [{"prompt": f"POST: the cat was bored {i} days.\n\nTL;DR:", "completion": " Bored."} for i in NUMBERS],
    "trl-lib/ultrafeedback-prompt": [{"prompt": [user(f"Tell me of {i} cats.")]} for i in NUMBERS],
    "trl-lib/ultrafeedback_binarized": [
        {
            "chosen": [user(f"What is {i}?"), assistant(f"It is {i}.")],
            "rejected": [user(f"What is {i}?"), assistant("No.")],
            "score_chosen": 8.5,
            "score_rejected": 4.0,
        }
        for i in NUMBERS
    ],
}  # fmt: skip

SCRIPTS = {
    "SFT": """
from datasets import load_dataset

dataset = load_dataset("trl-lib/Capybara", split="train")

bridle.sft(model, dataset)
""",
    "GRPO": """
from datasets import load_dataset

dataset = load_dataset("trl-lib/DeepMath-103K", split="train")

bridle.grpo(model, dataset, accuracy_reward, **few)
""",
    "GRPO, of texts": """
from datasets import load_dataset

# Define a simple reward function (count unique chars as example)
def reward_function(completions, **kwargs):
    return [len(set(completion.lower())) for completion in completions]

bridle.grpo(model, load_dataset("trl-lib/tldr", split="train"), reward_function, **few)
""",
    "GRPO, of messages": """
from datasets import load_dataset

dataset = load_dataset("trl-lib/ultrafeedback-prompt", split="train")

# Dummy reward function for demonstration purposes
def reward_num_unique_letters(completions, **kwargs):
    completion_contents = [completion[0]["content"] for completion in completions]
    return [float(len(set(content))) for content in completion_contents]

bridle.grpo(model, dataset, reward_num_unique_letters, **few)
""",
    "DPO": """
from datasets import load_dataset

dataset = load_dataset("trl-lib/ultrafeedback_binarized", split="train")

bridle.dpo(model, dataset)
""",
    "reward": """
from datasets import load_dataset

dataset = load_dataset("trl-lib/ultrafeedback_binarized", split="train")

judge = bridle.reward_model(model, dataset, epochs=8, learning_rate=3e-3, max_new_tokens=4)
better, worse = (judge([row[side][:1] for row in dataset], [row[side][1]["content"] for row in dataset]) for side in ("chosen", "rejected"))
""",
}


def accuracy_reward(completions: list[list[dict[str, str]]], solution: list[str], **kwargs: Any) -> list[float | None]:
    """By the parameters of `trl.rewards.accuracy_reward`, which checks by math-verify."""
    contents = [completion[0]["content"] for completion in completions]
    return [float(right.strip("$") in content) for content, right in zip(contents, solution, strict=True)]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_quick_start_runs(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def load_dataset(path: str, split: str) -> Dataset:
        assert split == "train"
        return Dataset(DATA[path])

    stand_in = types.ModuleType("datasets")
    monkeypatch.setitem(stand_in.__dict__, "load_dataset", load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    model = bridle.Model(tiny_policy(), DEVICE)
    few = {"steps": 1, "prompts_per_step": 4, "group_size": 4, "max_new_tokens": 4}
    space: dict[str, Any] = {"bridle": bridle, "model": model, "accuracy_reward": accuracy_reward, "few": few}
    exec(compile(SCRIPTS[name], name, "exec"), space)
    assert "all 16 can be used as they are" in capsys.readouterr().err
    moved = not same(weights(tiny_policy().module), model.policy.module)
    if name == "reward":
        assert not moved and all(a > b for a, b in zip(space["better"], space["worse"], strict=True))
    elif name != "GRPO":  # a random model is right about nothing, and learns nothing of it
        assert moved
