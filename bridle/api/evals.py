"""An evaluation while a call trains: the same functions as for training on rows that are not learnt from, under `torch.no_grad`, and the
reward of fresh answers to prompts that are not practised on. It steers nothing: with it and without it the weights are the same.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from bridle.compute.randomness import derived_seed
from bridle.core.errors import UsageError
from bridle.core.records import FinishReason, Prompt, Reward, Scores
from bridle.generation.engine import answer_prompts
from bridle.generation.rollout import RolloutSession, fault_of, one_each
from bridle.generation.sampling import Sampling
from bridle.models.policy import Policy
from bridle.recipe.base import TrainerSection

S = TypeVar("S", bound=TrainerSection)
PARTS = 10  # of a run: how often it is measured where nothing is said


@dataclass(frozen=True)
class Evaluation:
    """Measured after every so many steps and after the last; 0: about ten times. Each metric is logged with `eval_` before its name."""

    every: int
    measure: Callable[[], Mapping[str, float]]

    def __post_init__(self) -> None:
        if self.every < 0:
            raise UsageError(
                f"eval_every = {self.every} is invalid: must be a number of steps, or 0 for about ten times"
            )

    def __call__(self, done: int, total: int) -> dict[str, float]:
        if done % (self.every or max(1, total // PARTS)) and done != total:
            return {}
        with torch.no_grad(), random_numbers_kept():
            return {f"eval_{name}": value for name, value in self.measure().items()}


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """What is drawn inside from the random numbers that a process shares is drawn again after it: by a reward of the user's, say."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):  # ours are counted, and none is drawn on a GPU
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


def loss_and_accuracy(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: metrics[name] for name in ("loss", "accuracy") if name in metrics}


def whole_in_parts(config: S) -> S:
    """The settings with which all rows are measured as one batch, as many at once as a training step has."""
    return config.model_copy(update={"micro_batch": config.batch_size})


def mean_reward(
    policy: Policy, prompts: Sequence[Prompt], reward: Reward, config: TrainerSection, session: RolloutSession
) -> dict[str, float]:
    """Of a fresh answer to each prompt, drawn by the same random numbers each time, as training has it: less the penalty of an answer that
    was cut off. Answers that could not be judged are left out and counted."""
    settings = dict(config)
    session.engine.load(policy)
    sampling = Sampling(session.max_new_tokens, settings.get("temperature", 1.0))
    answers = answer_prompts(session.engine, policy, prompts, sampling, seed=derived_seed(session.seed, "eval", 0))
    found = reward(prompts, answers)
    penalty = settings.get("missing_stop_penalty", 0.0)
    judged = [
        float(score) - penalty * (answer.finish_reason is FinishReason.LENGTH)
        for score, answer in zip(one_each(found, len(answers)), answers, strict=True)
        if fault_of(score) is None
    ]
    mean = {"reward": sum(judged) / len(judged)} if judged else {}
    parts = found.metrics if isinstance(found, Scores) else {}
    return {**parts, **mean, "unscored": len(answers) - len(judged)}
