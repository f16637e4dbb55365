"""What scores answers in a call: functions of the user's own, reward models, verifiers, and weighted sums of these.

A function is called as it asks to be, which its parameters tell:

    reward(prompts, answers)                  lists of the prompts as they were given and of the answers' texts
    reward(prompts, answers, solution)        and those columns of the rows that it names, or all of them where it has **columns
    reward(completions, **kwargs)             TRL's way, told by the name `completions`: by keyword, with `prompts`, `completion_ids` and
                                              columns; an answer to messages comes as messages
"""

import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from bridle.api.inputs import Score
from bridle.api.models import ScoreModel
from bridle.api.objects import class_names, refuse_scorer
from bridle.api.rows import described_value
from bridle.core.errors import DataError, UsageError
from bridle.core.records import Completion, Prompt, Reward, content_hash
from bridle.models.policy import Policy
from bridle.rewards.learned import LearnedReward
from bridle.rewards.verifiers import Verifier
from bridle.rewards.weighted import Source, WeightedSum

One = Score | ScoreModel | Verifier
Judge = One | list[One] | tuple[One, ...]
TRL = ("prompts", "completions", "completion_ids")  # what its functions are called with, columns apart
BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


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
        return LearnedReward(reward.model, reward.device, reward.model.template.hash == policy.template.hash)
    if "PreTrainedModel" in class_names(reward):
        refuse_scorer(reward, None)
    if not callable(reward):
        raise UsageError(
            f"a reward is a function reward(prompts, answers), a model from bridle.load_reward or a verifier, got {described_value(reward)}"
        )
    ask = asking(reward, asked)

    def scored(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        found = ask(prompts, completions)
        try:
            return [None if score is None else float(score) for score in found]
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"the reward function gave {described_value(found)} for {len(completions)} answers, where a list of one number "
                "for each is needed (None where it cannot judge)"
            ) from error

    return scored


# ------------------------------------------------------------------------------------- how a function asks to be called


def asking(reward: Score, asked: Sequence[Prompt]) -> Callable[[Sequence[Prompt], Sequence[Completion]], Any]:
    """How a function of the user's own is called; UsageError where it needs what the rows do not have."""
    parameters, has = parameters_of(reward), column_names(asked)
    named = [name for name, one in parameters.items() if one.kind in BY_NAME]
    of_trl = "completions" in named
    taken = TRL if of_trl else tuple(parameters)[:2]
    others = [name for name in named if name not in taken]
    every = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    if missing := [name for name in others if name not in has and parameters[name].default is inspect.Parameter.empty]:
        there = f"have {', '.join(has)}" if has else "have nothing"
        raise UsageError(
            f"the reward {name_of(reward)} takes {' and '.join(missing)}, and the rows {there} beside the prompt; give rows with such a "
            "column, or the parameter a default"
        )
    wanted = [name for name in has if every or name in others]
    if clash := [name for name in wanted if name in taken]:
        raise UsageError(
            f"the rows have a column {clash[0]}, and by that name the reward {name_of(reward)} gets what is asked and answered; rename the "
            "column"
        )

    def ask(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Any:
        given = [prompt.meta["given"] for prompt in prompts]
        columns = {name: [prompt.meta.get("columns", {}).get(name) for prompt in prompts] for name in wanted}
        if not of_trl:
            return reward(given, [c.text for c in completions], **columns)
        values = (given, list(map(as_given, given, completions)), [list(c.token_ids) for c in completions])
        keywords = {name: value for name, value in zip(TRL, values, strict=True) if every or name in named}
        return reward(**keywords, **columns)

    return ask


def as_given(prompt: Any, completion: Completion) -> Any:
    """An answer as TRL gives it: text to a text, a message to messages."""
    return completion.text if isinstance(prompt, str) else [{"role": "assistant", "content": completion.text}]


def parameters_of(reward: Score) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(reward).parameters
    except (TypeError, ValueError):  # one in C, which says nothing of itself
        return {}


def column_names(asked: Iterable[Prompt]) -> list[str]:
    return list(dict.fromkeys(name for prompt in asked for name in prompt.meta.get("columns", {})))


# ------------------------------------------------------------------------------------------------- names, identity


def reward_names(rewards: Sequence[One]) -> list[str]:
    """A name for each in the log: its function's, told apart by a number where two are the same or one has none."""
    plain = [re.sub(r"\W", "_", name_of(one)).strip("_") for one in rewards]
    return [
        name if plain.count(name) == 1 and name != "lambda" else f"{name}_{number}"
        for number, name in enumerate(plain, 1)
    ]


def name_of(reward: One) -> str:
    """A function's name, also of one that was partly called; of another object its class's."""
    inner: Any = reward.func if isinstance(reward, partial) else reward
    return str(inner.__name__ if inspect.isroutine(inner) else type(inner).__name__)


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
