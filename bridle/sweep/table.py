"""The table of a sweep: each setting's mean over the seeds and, on the same seeds, its difference from the first setting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from bridle.maths.statistics import mean_interval
from bridle.report.page import listing, show
from bridle.sweep.grid import Setting, setting_name


def table_of(
    settings: Sequence[Setting], seeds: Sequence[int], rows: Sequence[Sequence[float | None]], metric: str
) -> dict[str, Any]:
    """rows [settings, seeds]; None: not measured. Means are over the seeds that are, differences over those where both are."""
    found = [
        {"setting": dict(setting), "mean": mean_of(row), "values": list(row), "difference": paired(row, rows[0])}
        for setting, row in zip(settings, rows, strict=True)
    ]
    found[0]["difference"] = None
    return {"metric": metric, "seeds": list(seeds), "settings": found}


def mean_of(row: Sequence[float | None]) -> float | None:
    values = [value for value in row if value is not None]
    return fmean(values) if values else None


def paired(row: Sequence[float | None], first: Sequence[float | None]) -> dict[str, Any] | None:
    """Mean of a setting's values less the first setting's on the same seeds, with Student's 95% interval; of one seed there is none."""
    pairs = [(a, b) for a, b in zip(row, first, strict=True) if a is not None and b is not None]
    apart = [a - b for a, b in pairs]
    if not apart:
        return None
    low, high = mean_interval(apart) if len(apart) > 1 else (None, None)
    return {"value": fmean(apart), "low": low, "high": high, "n": len(apart)}


def sweep_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """For the terminal."""
    seeds, settings = found["seeds"], found["settings"]
    yield f"{found['metric']} after {found['method']}; differences from the first setting, on the same seeds, with 95% intervals"
    header = ["", "mean", "difference", *(f"seed {seed}" for seed in seeds)]
    rows = [
        [
            setting_name(one["setting"]) or "as it is",
            show(one["mean"]),
            difference_text(one["difference"]),
            *map(show, one["values"]),
        ]
        for one in settings
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for first, *others in (header, *rows):
        cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()
    if len(seeds) == 1:
        yield "One seed: what its differences are worth nobody can tell; --seeds 3 or more gives them intervals."
    if same := [setting_name(one["setting"]) for one in settings if one["difference"] and unchanged(one, settings[0])]:
        yield f"{listing(same)}: to the bit the first setting's, so nothing that was done reads what is swept."
    for one in found["failed"]:
        yield f"Left out: {setting_name(one['setting']) or 'as it is'}, seed {one['seed']}: {one['why']}"
    yield f"Table: {found['out']}/sweep.json"


def difference_text(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    value, low, high = (
        "–" if number is None else f"{'+' if number > 0 else ''}{show(number)}"
        for number in (found["value"], found["low"], found["high"])
    )
    return value if found["low"] is None else f"{value} ({low} to {high})"


def unchanged(one: Mapping[str, Any], first: Mapping[str, Any]) -> bool:
    return bool(one["values"] == first["values"])
