"""A learned reward by workers, processes of their own that hold the models whole: each scores the answers to a part of the prompts.

Answers to a prompt stay together, as a model reads them. A lost worker costs only its part, which another scores. They start with the
first answers, and on the rank alone that scores. A judge is scaled by `judge.concurrency`, for it is asked over the network.
Left out on purpose: new workers in place of lost ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridle.compute.device import choose_as
from bridle.compute.workers import Start, Worker
from bridle.core.errors import ProjectError, TrainingStopped, WorkerLost
from bridle.core.records import Completion, Prompt, Reward, Scores
from bridle.models.files.chat_template import TemplateSettings
from bridle.models.policy import load_reward_model
from bridle.rewards.learned import Combine, Ensemble, LearnedReward


@dataclass(frozen=True)
class StoredReward:
    """Reward models by their folders, with the content hash of each, and how a worker reads them: as the trainer would."""

    models: Mapping[Path, str]
    settings: TemplateSettings | None
    held: Any  # the precision of what nothing trains
    template: str  # hash of the policy's: whose ids are read as they are
    arithmetic: Mapping[str, str]
    threads: int
    task: str = ""
    combine: Combine = "mean"
    uncertainty: float = 0.0

    def __call__(self) -> ScoreKeeper:
        device, members = choose_as(self.arithmetic, self.threads), list[LearnedReward]()
        for folder, expected in self.models.items():
            model = load_reward_model(folder, device.torch, settings=self.settings, held=self.held)
            if model.origin != expected:
                raise ProjectError(
                    f"the reward model that a worker reads from {folder} is {model.origin[:12]}, where {expected[:12]} was "
                    "expected; give all nodes one folder"
                )
            members.append(LearnedReward(model, device, model.template.hash == self.template, self.task))
        return ScoreKeeper(members[0] if len(members) == 1 else Ensemble(members, self.combine, self.uncertainty))


@dataclass(frozen=True)
class ScoreKeeper:
    """What a worker holds."""

    reward: Reward

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> tuple[list[Any], dict[str, float]]:
        found = self.reward(prompts, completions)
        return list(found), dict(found.metrics) if isinstance(found, Scores) else {}


class ScoredByWorkers:
    """(prompts, completions) → scores, as the reward itself gives them; what it reports is the mean over answers."""

    def __init__(self, start: Start, make: Callable[[], Any], count: int, say: Callable[[str], object]) -> None:
        self.start, self.make, self.count, self.say = start, make, count, say
        self.workers: list[Worker] | None = None

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Scores:
        if self.workers is None:
            self.workers = self.start(self.make, self.count)
        numbers: dict[str, int] = {}
        for prompt in prompts:
            numbers.setdefault(prompt.id, len(numbers))
        parts = [
            [i for i, prompt in enumerate(prompts) if numbers[prompt.id] % len(self.workers) == part]
            for part in range(len(self.workers))
        ]
        scores, metrics = list[Any]([None] * len(prompts)), dict[str, float]()
        left = [part for part in parts if part]
        while left:
            asked = [
                (part, worker, self.ask(worker, part, prompts, completions))
                for part, worker in zip(left, self.workers, strict=False)
            ]
            left = left[len(asked) :]
            for part, worker, future in asked:
                try:
                    found, reported = future.result()
                except WorkerLost as lost:
                    left.append(part)
                    self.lose(worker, lost)
                    continue
                for i, score in zip(part, found, strict=True):
                    scores[i] = score
                for name, value in reported.items():
                    metrics[name] = metrics.get(name, 0.0) + value * len(part) / len(prompts)
        return Scores(scores, metrics)

    def ask(
        self, worker: Worker, part: Sequence[int], prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> Future[Any]:
        return worker.submit("score", [prompts[i] for i in part], [completions[i] for i in part])

    def lose(self, worker: Worker, lost: WorkerLost) -> None:
        """Do without a worker. TrainingStopped where it was the last."""
        assert self.workers is not None
        self.workers = [other for other in self.workers if other is not worker]
        worker.end()
        if not self.workers:
            raise TrainingStopped(
                f"none of {self.count} reward workers is left, all having ended in the middle of their work, as where memory is short; the "
                "steps before are saved, and the same command resumes with new ones"
            )
        self.say(f"{lost}; its share is scored by the {len(self.workers)} of {self.count} workers that are left")

    def close(self) -> None:
        for worker in self.workers or []:
            worker.end()
