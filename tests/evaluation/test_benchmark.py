"""Reward models on others' comparisons: what counts as right, by subset, and what the scores mean."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from bridle.core.errors import NoUsableRows
from bridle.core.records import Completion, Prompt
from bridle.evaluation.benchmark import benchmark_metrics, compared_in


class Reader:
    """An answer scores the number that it is; one that is no number cannot be scored."""

    def fits(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[bool]:
        return ["x" not in one.text for one in completions]

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        return [float(one.text) for one in completions]


def measured(*rows: dict[str, Any]) -> dict[str, Any]:
    reader: Any = Reader()
    return benchmark_metrics(reader, [one for row in rows for one in compared_in(row)])


def row(chosen: Any, rejected: Any, subset: str = "", prompt: str = "How many?") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **({"subset": subset} if subset else {})}


def test_rows_of_rewardbench_count_as_it_counts_them() -> None:
    """Of two answers that score the same one half, of four that do a fourth; of several right ones the worst counts."""
    found = measured(
        row("2", "1", "chat"),
        row("1", "2", "chat"),
        row("+1", "1", "chat"),
        row(["5"], ["1", "2", "3"], "math", "A?"),
        row(["5"], ["1", "+5", "5.0"], "math", "B?"),
        row(["5", "7", "6"], ["4", "1"], "ties", "C?"),
        row(["5", "7", "3"], ["4", "1"], "ties", "D?"),
        row("9", "x", "chat", "E?"),
    )
    assert found["rows"] == 8 and found["unscored"] == 1 and found["scored"] == 7
    assert {name: one["accuracy"] for name, one in found["subsets"].items()} == {
        "chat": pytest.approx(0.5),
        "math": pytest.approx((1 + 1 / 3) / 2),
        "ties": pytest.approx(0.5),
    }
    assert found["accuracy"] == pytest.approx((1.5 + 4 / 3 + 1) / 7)
    assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]
    assert 0 < found["shortest"] != found["longest"] and found["temperature"] is None


def test_the_temperature_says_what_a_difference_of_scores_means() -> None:
    rng = np.random.default_rng(0)
    gaps = rng.normal(0, 8, 400)
    won = rng.random(400) < 1 / (1 + np.exp(-gaps / 4))
    rows = [
        row(str(max(g, 0) if w else max(-g, 0)), str(max(-g, 0) if w else max(g, 0)), prompt=f"{i}?")
        for i, (g, w) in enumerate(zip(gaps, won, strict=True))
    ]
    found = measured(*rows)
    assert "subsets" not in found and found["temperature"] == pytest.approx(4, rel=0.3)
    assert found["ece_after"] < found["ece_before"]


def test_rows_of_which_none_can_be_scored_are_refused() -> None:
    with pytest.raises(NoUsableRows, match="none of 1 comparisons can be scored"):
        measured(row("x", "1"))
