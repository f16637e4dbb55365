"""How often a reward model is right on comparisons: of a file in RewardBench's form or any other, or those that the project holds out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridle.core.errors import DataError
from bridle.evaluation.benchmark import Compared, benchmark_metrics, compared_in
from bridle.feedback.importing.files.source import RowSource
from bridle.feedback.importing.reasons import Skip
from bridle.feedback.quality.votes import topic_in
from bridle.rewards.classifier import Classifier
from bridle.rewards.learned import LearnedReward
from bridle.stages.reward import heldout_pairs
from bridle.stages.rewards import is_own, load_scores, others_reward, require_reward_at
from bridle.stages.workspace import Work, require_model


def benchmark_reward(work: Work, named: str, file: Path | None) -> dict[str, Any]:
    """By a reward model of the project, by its name, or by the path of one, of somebody else's too."""
    folder = Path(named)
    if folder.name == named:
        folder = work.project.model(named)
        require_model(work, named, scores=True)
    else:
        require_reward_at(folder, f"--model {named}")
    rows = heldout_comparisons(work) if file is None else comparisons_in(file)
    if is_own(folder):
        require_model(work, "sft")
        reader: LearnedReward | Classifier = load_scores(work, folder, work.read_policy(work.project.model("sft")))
    else:
        reader = others_reward(work, folder)
    return {"model": named, **benchmark_metrics(reader, rows)}


def heldout_comparisons(work: Work) -> list[Compared]:
    return [Compared(p, (better, worse), 1, topic_in(p.meta) or "") for p, better, worse in heldout_pairs(work)[0]]


def comparisons_in(file: Path) -> list[Compared]:
    """DataError, with the row, where one says nothing of which answer is better."""
    found = list[Compared]()
    for row in RowSource(file):
        try:
            made = compared_in(row.value) if isinstance(row.value, dict) else []
        except Skip as skip:
            raise unusable_row(file, row.number, f"{skip.reason}") from skip
        if row.value is not None and not made:
            raise unusable_row(
                file, row.number, f"{row.value}" if isinstance(row.value, str) else "it compares no answers"
            )
        found += made
    return found


def unusable_row(file: Path, number: int, why: str) -> DataError:
    return DataError(
        f"row {number} of {file} is no comparison ({why}); a row is a prompt with what is better and worse, such as "
        '{"prompt": "…", "chosen": "…", "rejected": "…", "subset": "…"}'
    )


def benchmark_lines(found: Mapping[str, Any]) -> list[str]:
    """For the terminal."""

    def line(name: str, one: Mapping[str, Any]) -> str:
        return f"{name}: {one['accuracy']:.3f} ({one['accuracy_low']:.3f} to {one['accuracy_high']:.3f}) of {one['scored']:,}"

    lines = [line("right", found), f"longest {found['longest']:.3f}, shortest {found['shortest']:.3f}"]
    lines += [f"left out, for they cannot be scored: {found['unscored']:,}"] if found["unscored"] else []
    lines += [f"  {line(name, one)}" for name, one in found.get("subsets", {}).items()]
    if found["temperature"] is None:
        return [*lines, "too few comparisons to say what its scores mean"]
    return [
        *lines,
        f"temperature {found['temperature']:.3g}: an answer that scores so much more is better at odds of e to 1; calibration error "
        f"{found['ece_before']:.3f} -> {found['ece_after']:.3f}",
    ]
