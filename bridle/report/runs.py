"""What the runs of a project left on disk, read once."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bridle.core.errors import DataError
from bridle.core.forms import NUMBER, form_fault
from bridle.project.kept import read_parents, read_result, require_whole
from bridle.project.metrics import logged_lines, read_metrics
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe
from bridle.report.metrics import held_out, of_runs
from bridle.report.stages import place_of, run_recipe

Results = Mapping[str, Mapping[str, Any]]  # of finished stages, or of evaluations, by name
MOST_MODELS = 16  # in one picture or sentence: those of the loop first


@dataclass(frozen=True)
class Runs:
    """`folders`: of every stage the last run that finished, in the order of the loop. `unfinished`: newer ones, by their names. `damaged`:
    a sentence for each whose files are not what a run leaves, and which is left out, or of whose log lines are."""

    project: Project
    folders: Mapping[str, Path]
    unfinished: tuple[str, ...]
    damaged: tuple[str, ...] = ()

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
        ordered, damaged = dict[str, Path](), list[str]()
        for stage in sorted(finished, key=place_of):
            try:
                damaged += damage_of(finished[stage])
                ordered[stage] = finished[stage]
            except DataError as error:
                damaged.append(f"{error}; until then the report leaves {finished[stage].name} out")
        return cls(project, ordered, tuple(unfinished.values()), tuple(damaged))

    @cached_property
    def results(self) -> Results:
        return {stage: read_result(folder) for stage, folder in self.folders.items()}

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
        return measured_steps(self.folders[stage]) if stage in self.folders else []

    def parents(self, stage: str) -> Mapping[str, Any]:
        return read_parents(self.folders[stage])

    def recipe(self, stage: str) -> Recipe | None:
        """The recipe that a stage ran with; None where it is lost."""
        return run_recipe(self.folders[stage])


def damage_of(folder: Path) -> list[str]:
    """DataError where a file of a finished run is not of its form. In a sentence how many lines of its log are not: they are left out."""
    require_whole(folder)
    names = [f"{name}{end}?" for name in {**of_runs(), **held_out()} for end in ("", "_se", "_low", "_high")]
    if fault := form_fault(read_result(folder), dict.fromkeys(names, NUMBER)):
        raise DataError(
            f"{folder / 'result.json'} is damaged: {fault}; put the file back, or remove {folder} and make that run again"
        )
    lines, there = len(logged_lines(folder)), len(read_metrics(folder))
    lost = f"{folder / 'metrics.jsonl'} has {lines - there} damaged lines of {lines}, which are left out"
    return [lost] if there < lines else []


def measured_steps(folder: Path) -> list[dict[str, Any]]:
    """The logged steps of a run with what is a number in them."""
    return [{name: x for name, x in line.items() if not isinstance(x, str)} for line in read_metrics(folder)]
