"""What scores answers in a call: functions of the user's own (rewards/functions.py says how they are called), reward models, verifiers, and
weighted sums of these.
"""

import json
import math
import re
from collections.abc import Sequence

from bridle.api.inputs import Score
from bridle.api.models import ScoreModel
from bridle.api.objects import class_names
from bridle.core.errors import UsageError, described_value
from bridle.core.records import Prompt, Reward, content_hash
from bridle.models.policy import Policy
from bridle.rewards.classifier import Classifier
from bridle.rewards.functions import PromptRows, function_name, function_reward
from bridle.rewards.verifiers import Verifier
from bridle.rewards.weighted import Source, WeightedSum

One = Score | ScoreModel | Verifier
Judge = One | list[One] | tuple[One, ...]


def reward_source(reward: Judge, weights: Sequence[float] | None, policy: Policy, asked: Sequence[Prompt]) -> Reward:
    """What trainers call: one reward, or the sum of several by their weights, each logged under its name too."""
    if not isinstance(reward, list | tuple):
        if weights is not None:
            raise UsageError(
                "reward_weights weigh several rewards, and one was given; give reward=[…], or leave them out"
            )
        return one_source(reward, policy, asked)
    shares = [1.0] * len(reward) if weights is None else [*weights]
    if not reward or len(shares) != len(reward) or not all(map(math.isfinite, shares)):
        raise UsageError(
            f"{len(reward)} rewards need as many weights, finite numbers, got reward_weights={described_value(weights)}"
        )
    named = zip(reward_names(reward), shares, reward, strict=True)
    return WeightedSum([Source(name, weight, one_source(one, policy, asked)) for name, weight, one in named])


def one_source(reward: One, policy: Policy, asked: Sequence[Prompt]) -> Reward:
    """A reward model reads token ids where it can, a verifier why an answer ended, a function of the user's own gets texts."""
    if isinstance(reward, Verifier):
        return reward
    if isinstance(reward, ScoreModel):
        tokens = None if isinstance(reward.model, Classifier) else reward.model.template.hash
        return reward.reader(same_tokens=tokens == policy.template.hash)
    if "PreTrainedModel" in class_names(reward):
        raise UsageError(
            f"a {type(reward).__name__} of transformers came as a reward without its tokenizer; give bridle.load_reward(model, tokenizer)"
        )
    if not callable(reward):
        raise UsageError(
            f"a reward is a function reward(prompts, answers), a model from bridle.load_reward or a verifier, got {described_value(reward)}"
        )
    names = list(dict.fromkeys(name for prompt in asked for name in prompt.meta.get("columns", {})))
    return function_reward(
        reward, PromptRows(lambda prompt: prompt.meta["given"], lambda prompt: prompt.meta.get("columns", {}), names)
    )


def reward_names(rewards: Sequence[One]) -> list[str]:
    """A name for each in the log: its function's, told apart by a number where two are the same or one has none."""
    plain = [re.sub(r"\W", "_", function_name(one)).strip("_") for one in rewards]
    return [
        name if plain.count(name) == 1 and name != "lambda" else f"{name}_{number}"
        for number, name in enumerate(plain, 1)
    ]


def identity(reward: Judge, weights: Sequence[float] | None) -> object:
    """What of a reward can be compared when a call is resumed: its reward models, by their key or their folder's hash, and weights."""
    if isinstance(reward, list | tuple):
        return [[identity(one, None) for one in reward], None if weights is None else [*weights]]
    return reward.model.origin if isinstance(reward, ScoreModel) else None


def prompt_keys(asked: Sequence[Prompt]) -> list[object]:
    """What of prompts can be compared: their ids, and what else their rows hold; of a value that JSON cannot hold its type."""
    return [
        prompt.id
        if not prompt.meta.get("columns")
        else [prompt.id, content_hash(json.dumps(prompt.meta["columns"], default=lambda value: type(value).__name__))]
        for prompt in asked
    ]
