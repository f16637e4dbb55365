"""A learned reward by workers: the scores that it gives itself, whoever is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from bridle.core.errors import ProjectError, RecipeError, TrainingStopped, WorkerLost
from bridle.core.records import Completion, Prompt, Scores
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.rewards.workers import ScoredByWorkers, ScoreKeeper, StoredReward
from bridle.stages.rewards import practised_reward
from bridle.stages.workspace import Work
from tests.tiny_project import done, metrics


@dataclass
class Here:
    """A worker in this process, which is gone after so many calls."""

    held: ScoreKeeper
    place: str
    calls_left: int = 1000
    asked: list[int] = field(default_factory=list)

    def submit(self, method: str, *arguments: Any) -> Future[Any]:
        assert method == "score"
        answer: Future[Any] = Future()
        self.asked.append(len(arguments[0]))
        self.calls_left -= 1
        if self.calls_left < 0:
            answer.set_exception(WorkerLost(f"{self.place} is gone"))
        else:
            answer.set_result(self.held.score(*arguments))
        return answer

    def end(self) -> None:
        self.calls_left = 0


def by_words(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Scores:
    numbers = [float(len(prompt.text) + len(c.text)) for prompt, c in zip(prompts, completions, strict=True)]
    return Scores(numbers, {"disagreement": sum(numbers) / len(numbers)})


ASKED = [Prompt.from_text("a" * (1 + number // 2)) for number in range(10)]  # two answers to each
ANSWERS = [Completion(prompt.id, "b" * number) for number, prompt in enumerate(ASKED)]


def scored_by(*calls: int) -> tuple[ScoredByWorkers, list[Here], list[str]]:
    there, said = [Here(ScoreKeeper(by_words), f"process {n}", left) for n, left in enumerate(calls)], list[str]()
    return ScoredByWorkers(lambda make, count: [*there], lambda: None, len(calls), said.append), there, said


@pytest.mark.parametrize("calls", [(1000,), (1000, 1000, 1000), (0, 1000, 1000), (0, 0, 1)])
def test_scores_are_those_of_the_reward(calls: tuple[int, ...]) -> None:
    expected = by_words(ASKED, ANSWERS)
    scored, there, said = scored_by(*calls)
    if calls == (0, 0, 1):  # and the last one goes too, with parts still to be scored
        with pytest.raises(TrainingStopped, match="none of 3 reward workers is left"):
            scored(ASKED, ANSWERS)
        return
    found = scored(ASKED, ANSWERS)
    assert list(found) == list(expected) and found.metrics == pytest.approx(expected.metrics)
    assert all(size % 2 == 0 for worker in there for size in worker.asked), "answers to a prompt stay together"
    assert [line.split(";")[0] for line in said] == ["process 0 is gone"] * (calls[0] == 0)
    assert list(scored(ASKED, ANSWERS)) == list(expected)


@pytest.fixture
def scoring_project(finished_demo: Path, tmp_path: Path) -> Project:
    return Project.find(Path(shutil.copytree(finished_demo, tmp_path / "project")))


def starting_here(there: list[Here]) -> Callable[[Callable[[], Any], int], list[Any]]:
    def start(make: Callable[[], Any], count: int) -> list[Any]:
        there.extend(Here(make(), f"process {number}") for number in range(count))
        return [*there]

    return start


def test_a_stored_reward_model_is_read_as_the_trainer_reads_it(scoring_project: Project) -> None:
    there = list[Here]()
    recipe = scoring_project.recipe.with_settings({"scale.reward_workers": 2})
    here = Work(scoring_project, Progress(len), threads=1)
    work = Work(Project(scoring_project.folder, recipe), Progress(len), threads=1, start_workers=starting_here(there))
    policy = here.load_policy("sft")
    prompts = here.data.train_prompts()[:6]
    completions = [Completion(prompt.id, f"Answer {number}.") for number, prompt in enumerate(prompts)]
    scored = practised_reward(work, policy)
    assert isinstance(scored, ScoredByWorkers) and not there
    assert list(scored(prompts, completions)) == pytest.approx(
        list(practised_reward(here, policy)(prompts, completions)), abs=1e-5
    )
    assert [sum(worker.asked) for worker in there] == [3, 3]
    made = scored.make
    assert isinstance(made, StoredReward)
    with pytest.raises(ProjectError, match="give all nodes one folder"):
        replace(made, models=dict.fromkeys(made.models, "another"))()


def test_one_base_cannot_be_shared_with_workers(scoring_project: Project) -> None:
    settings = {"scale.reward_workers": 2, "lora.r": 2, "lora.shared_trunk": True}
    work = Work(
        Project(scoring_project.folder, scoring_project.recipe.with_settings(settings)), Progress(len),
        start_workers=starting_here([]),
    )  # fmt: skip
    with pytest.raises(RecipeError, match="set one of the two"):
        practised_reward(work, work.load_policy("sft"))


@pytest.mark.slow
def test_a_run_scored_by_processes_is_the_run(finished_demo: Path, tmp_path: Path) -> None:
    both = [Path(shutil.copytree(finished_demo, tmp_path / name)) for name in ("workers", "one")]
    for folder, words in zip(both, (["--set", "scale.reward_workers=2"], []), strict=True):
        done("train", "ppo", "--set", "ppo.steps=3", *words, "--project", folder)
    found, expected = (metrics(folder / "runs/ppo-0002") for folder in both)
    for line, other in zip(found, expected, strict=True):
        assert line == pytest.approx(other, rel=1e-4, abs=1e-5)
    keys = [json.loads((folder / "runs/ppo-0002/parents.json").read_text())["key"] for folder in both]
    assert keys[0] == keys[1], "who scores is not what is learnt"
