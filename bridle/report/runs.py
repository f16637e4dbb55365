"""What the runs of a project left on disk, read once."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bridle.core.files import read_record
from bridle.project.metrics import read_metrics
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe
from bridle.report.stages import place_of, run_recipe

Results = Mapping[str, Mapping[str, Any]]  # of finished stages, or of evaluations, by name
MOST_MODELS = 16  # in one picture or sentence: those of the loop first


@dataclass(frozen=True)
class Runs:
    """`folders`: of every stage the last run that finished, in the order of the loop. `unfinished`: newer ones, by their names."""

    project: Project
    folders: Mapping[str, Path]
    unfinished: tuple[str, ...]

    @classmethod
    def of(cls, project: Project) -> "Runs":
        finished, unfinished = dict[str, Path](), dict[str, str]()
        for folder in sorted((project.folder / "runs").glob("*-[0-9][0-9][0-9][0-9]")):
            stage = folder.name.rpartition("-")[0]
            if (folder / "result.json").is_file():
                finished[stage] = folder
                unfinished.pop(stage, None)
            else:
                unfinished[stage] = folder.name
        ordered = {stage: finished[stage] for stage in sorted(finished, key=place_of)}
        return cls(project, ordered, tuple(unfinished.values()))

    @cached_property
    def results(self) -> Results:
        return {stage: read_record(folder / "result.json") for stage, folder in self.folders.items()}

    @cached_property
    def evaluated(self) -> Results:
        """Results of evaluations, by the model's name."""
        return {
            stage.removeprefix("evaluate-"): result for stage, result in self.results.items() if "evaluate-" in stage
        }

    @property
    def answered(self) -> list[str]:
        """The models whose answers were kept; an earlier version may have kept none."""
        return [name for name in self.evaluated if (self.folders[f"evaluate-{name}"] / "answers.jsonl").is_file()]

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        return read_metrics(self.folders[stage]) if stage in self.folders else []

    def parents(self, stage: str) -> Mapping[str, Any]:
        return read_record(self.folders[stage] / "parents.json")

    def recipe(self, stage: str) -> Recipe | None:
        """The recipe that a stage ran with; None where it is lost."""
        return run_recipe(self.folders[stage])
