"""A reward model on comparisons that it was not trained on, as RewardBench has them: a prompt with better answers and worse ones.

    found = benchmark_metrics(reader, comparisons_in(Path("rewardbench.jsonl")))

A row is right where the worst of its better answers scores above the best of the others; where those score the same it counts as a draw
among them would, one half of two answers, a fourth of four (RewardBench, Lambert 2024, arxiv.org/abs/2403.13787; RewardBench 2, Malik
2025, arxiv.org/abs/2506.01937). Rows may have any form that `bridle import` knows; `chosen` and `rejected` may be lists.
Left out: RewardBench's weights of sections, and what RewardBench 2 makes of the margins between right answers in its subset Ties.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bridle.core.errors import DataError, NoUsableRows
from bridle.core.records import Completion, Prompt
from bridle.feedback.importing.files.source import RowSource
from bridle.feedback.importing.formats import read_row
from bridle.feedback.importing.reasons import Skip
from bridle.maths.statistics import ece, fit_temperature, proportion
from bridle.rewards.classifier import Classifier
from bridle.rewards.learned import LearnedReward

FEW = 20  # pairs: fewer than this in a half fit no temperature


@dataclass(frozen=True)
class ComparedRow:
    """Answers to a prompt, the `better` first."""

    prompt: Prompt
    answers: tuple[Completion, ...]
    better: int
    subset: str = ""


def compared_in(values: Mapping[str, Any]) -> list[ComparedRow]:
    """What a row says of which answers are better; nothing where it says no such thing. Raises Skip, with the reason."""
    found = list[ComparedRow]()
    for row in read_row(values)[0]:
        for verdict in row.verdicts:
            best, *others = verdict.ranking
            if others and verdict.criterion is None:
                places = [*best, *(place for group in others for place in group)]
                answers = tuple(Completion(row.prompt.id, row.answers[place]) for place in places)
                found.append(ComparedRow(row.prompt, answers, len(best), str(values.get("subset") or "")))
    return found


def comparisons_in(file: Path) -> list[ComparedRow]:
    """DataError, with the row, where one says nothing of which answer is better."""
    found = list[ComparedRow]()
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
        f"row {number} of {file} is not a comparison ({why}); a row is a prompt with what is better and worse, such as "
        '{"prompt": "…", "chosen": "…", "rejected": "…", "subset": "…"}'
    )


def benchmark_metrics(reader: LearnedReward | Classifier, rows: Sequence[ComparedRow]) -> dict[str, Any]:
    """Share of rows that are right with its interval by prompt, on the whole and by subset, beside two rules that read nothing; and the
    temperature T for which σ(difference of two scores / T) says best how often the better one is ahead, fitted on every other row, with
    the calibration error of the rest before and after (None of few). A row with an answer that cannot be scored is left out and counted."""
    fits = by_row(rows, reader.fits(*all_answers(rows)))
    kept = [row for row, fit in zip(rows, fits, strict=True) if all(fit)]
    if not kept:
        raise NoUsableRows(
            f"none of {len(rows)} comparisons can be scored; give rows with a better and a worse answer that its context holds"
        )
    scores = by_row(kept, reader(*all_answers(kept)))
    lengths = by_row(kept, [len(one.stripped) for one in all_answers(kept)[1]])
    right = [right_share(row, values) for row, values in zip(kept, scores, strict=True)]
    longer = [right_share(row, values) for row, values in zip(kept, lengths, strict=True)]
    shorter = [right_share(row, [-one for one in values]) for row, values in zip(kept, lengths, strict=True)]
    subsets = dict[str, list[int]]()
    for number, row in enumerate(kept):
        subsets.setdefault(row.subset, []).append(number)
    found = {"rows": len(rows), "unscored": len(rows) - len(kept), **accuracy_of(kept, right, range(len(kept)))}
    found |= {"longest": float(np.mean(longer)), "shortest": float(np.mean(shorter))}
    if list(subsets) != [""]:
        found["subsets"] = {name or "none": accuracy_of(kept, right, places) for name, places in subsets.items()}
    gaps = [[values[0] - one for one in values[row.better :]] for row, values in zip(kept, scores, strict=True)]
    return found | calibration(sum(gaps[::2], []), sum(gaps[1::2], []))


def all_answers(rows: Sequence[ComparedRow]) -> tuple[list[Prompt], list[Completion]]:
    return [row.prompt for row in rows for _ in row.answers], [answer for row in rows for answer in row.answers]


def by_row(rows: Sequence[ComparedRow], values: Iterable[Any]) -> list[list[Any]]:
    each = iter(values)
    return [list(islice(each, len(row.answers))) for row in rows]


def right_share(row: ComparedRow, values: Sequence[float]) -> float:
    """1 where the worst of the better answers is ahead of the best of the others, 0 where it is behind."""
    worst, best = min(values[: row.better]), max(values[row.better :])
    return float(worst > best) if worst != best else 1 / (1 + sum(one == best for one in values[row.better :]))


def accuracy_of(rows: Sequence[ComparedRow], right: Sequence[float], places: Sequence[int]) -> dict[str, Any]:
    share = proportion([right[i] for i in places], [rows[i].prompt.id for i in places])
    return {"accuracy": share.rate, "accuracy_low": share.low, "accuracy_high": share.high, "scored": len(places)}


def calibration(fitted: Sequence[float], kept: Sequence[float]) -> dict[str, float | None]:
    if min(len(fitted), len(kept)) < FEW:
        return dict.fromkeys(("temperature", "ece_before", "ece_after"))
    temperature, size, ahead = fit_temperature(fitted), np.abs(kept), np.sign(kept) / 2 + 0.5
    before, after = (ece(1 / (1 + np.exp(-size / one)), ahead) for one in (1.0, temperature))
    return {"temperature": temperature, "ece_before": before, "ece_after": after}
