"""What a metric is called on the page, and means: metrics.toml, read."""

import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Metric(NamedTuple):
    """`worse`: 1 where more of it is worse, -1 where less is. `share_of`: of how many it is a share, by the name in the result."""

    label: str
    meaning: str
    worse: int = 0
    share_of: str = ""


def of_runs() -> dict[str, Metric]:
    """By their names in results and logs of stages: counts, and what training saw of its own prompts."""
    return _tables()["runs"]


def held_out() -> dict[str, Metric]:
    """By their names in results of evaluations and of best-of-n."""
    return _tables()["held_out"]


@cache
def _tables() -> dict[str, dict[str, Metric]]:
    tables = tomllib.loads((Path(__file__).parent / "metrics.toml").read_text("utf-8"))
    return {part: {name: Metric(*row) for name, row in rows.items()} for part, rows in tables.items()}
