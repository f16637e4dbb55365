"""An experiment: what must come out is written as data before it is run; every seed is kept; and with them the hash of the code.

    measure(seed) → the figures of one seed          the same seed gives the same figures, whatever other seeds run
    Claim           what must hold of one figure over all seeds: of the mean, of the mean's whole interval, or of every seed
    result          {threshold, seeds: [{seed, value, …}], value, low, high, claims, controls, verdict, machine, seconds, code_hash}

`value` is the figure of the first claim. Intervals are of 95%, over seeds: Student's for a mean, Wilson's where a claim says that each seed
has 0 or 1. Where all seeds have the same figure, they tell nothing of how it spreads, and no interval is shown.
`code_hash` is of the text of all modules of this repository that the experiment imports, at once or later, and of the data files
that lie beside them; comments, docstrings and blank lines do not count, and neither does this file.
"""

from __future__ import annotations

import ast
import hashlib
import io
import math
import platform
import time
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from bridle.compute.device import CPU_INFO, processor_words
from bridle.core.files import read_json, write_json, write_text
from bridle.maths.statistics import mean_and_se, mean_interval, proportion

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments/results"
DATA = {".toml", ".json", ".c", ".h"}  # settings, worlds and kernels that lie beside the module that reads them

Row = Mapping[str, float]
Result = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """What must hold of a figure. `of`: the "mean" over seeds meets the bound; its whole "interval" does; "every" seed does; or the
    interval reaches the bound, so that nothing is shown against it ("unrefuted": for controls, and where theory gives a number).
    `yes_no`: each seed has 1 where it happened and 0 where not."""

    figure: str
    meaning: str
    of: Literal["mean", "interval", "every", "unrefuted"] = "interval"
    at_least: float = -math.inf
    at_most: float = math.inf
    yes_no: bool = False

    def holds(self, mean: float, low: float, high: float, values: Sequence[float]) -> bool:
        least, most = {
            "mean": (mean, mean),
            "interval": (low, high),
            "every": (min(values), max(values)),
            "unrefuted": (high, low),
        }[self.of]
        return self.at_least <= least and most <= self.at_most

    @property
    def bound(self) -> str:
        if self.of == "unrefuted" and self.at_least == self.at_most:
            return f"not unlike {self.at_least:g}"
        if (self.at_least, self.at_most) == (-math.inf, math.inf):
            return "told, not bounded"
        sides = [f"≥ {self.at_least:g}"] * (self.at_least > -math.inf) + [f"≤ {self.at_most:g}"] * (
            self.at_most < math.inf
        )
        words = {"mean": "mean", "interval": "whole interval", "every": "every seed", "unrefuted": "not shown to miss"}
        return f"{words[self.of]} {' and '.join(sides)}"


@dataclass(frozen=True)
class Experiment:
    """`title` says what it shows, `setting` in what world and how. A seed whose row lacks a figure does not count for it."""

    name: str
    title: str
    setting: str
    measure: Callable[[int], Row]
    seeds: Sequence[int]
    claims: Sequence[Claim]
    controls: Sequence[Claim] = ()


def run(experiment: Experiment, module: str, report: Callable[[int, Row], None] = lambda seed, row: None) -> Result:
    """Every seed, and the verdict. `module`: where the experiment is defined, by which its code is hashed, before it runs."""
    code, started, rows = code_hash(module), time.monotonic(), []
    for seed in experiment.seeds:
        rows.append(experiment.measure(seed))
        report(seed, rows[-1])
    made = {"machine": machine(), "seconds": round(time.monotonic() - started, 1), "code_hash": code}
    return judged(experiment, rows) | made


def judged(experiment: Experiment, rows: Sequence[Row]) -> Result:
    """What the rows of the experiment's seeds say of its claims."""
    claims, controls = ([judge(claim, rows) for claim in group] for group in (experiment.claims, experiment.controls))
    first = experiment.claims[0].figure
    return {
        "name": experiment.name,
        "title": experiment.title,
        "setting": experiment.setting,
        "threshold": threshold(experiment),
        "seeds": [
            {"seed": seed, "value": row.get(first), **row} for seed, row in zip(experiment.seeds, rows, strict=True)
        ],
        **{name: claims[0][name] for name in ("value", "low", "high")},
        "claims": claims,
        "controls": controls,
        "verdict": "holds" if all(one["holds"] for one in (*claims, *controls)) else "fails",
    }


def judged_again(experiment: Experiment, result: Result) -> Result:
    """A saved result by this harness: its intervals and tables may be another's, its figures are what they were."""
    rows = [{name: value for name, value in row.items() if name not in ("seed", "value")} for row in result["seeds"]]
    return result | judged(experiment, rows)


def threshold(experiment: Experiment) -> list[dict[str, Any]]:
    """The claims and controls as JSON, which has no infinity."""
    return [
        {
            name: value
            for name, value in asdict(claim).items()
            if value is not False and value not in (math.inf, -math.inf)
        }
        for claim in (*experiment.claims, *experiment.controls)
    ]


def judge(claim: Claim, rows: Sequence[Row]) -> dict[str, Any]:
    values = [row[claim.figure] for row in rows if claim.figure in row]
    if not values:  # of no seed: nothing holds that was bounded
        none = dict.fromkeys(("value", "low", "high", "least", "most"))
        holds = claim.bound.startswith("told")
        return {"figure": claim.figure, "meaning": claim.meaning, "bound": claim.bound, **none, "n": 0, "holds": holds}
    mean, low, high = estimate(values, claim.yes_no)
    return {
        "figure": claim.figure,
        "meaning": claim.meaning,
        "bound": claim.bound,
        "value": mean,
        "low": low,
        "high": high,
        "least": min(values),
        "most": max(values),
        "n": len(values),
        "holds": claim.holds(mean, low, high, values),
    }


def estimate(values: Sequence[float], yes_no: bool = False) -> tuple[float, float, float]:
    """Mean, and its interval; one seed alone has none, and its interval is the mean."""
    if yes_no and len(values) > 1:
        assert set(values) <= {0.0, 1.0}, f"a seed has {values}, and yes or no is 1 or 0"
        share = proportion(values)
        return share.rate, share.low, share.high
    mean = mean_and_se(values)[0]
    low, high = mean_interval(values) if len(values) > 1 else (mean, mean)
    return mean, low, high


def machine() -> str:
    """The processor's model, and whether it multiplies bfloat16; never the machine's name."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found = sorted(processor_words() & {"amx_bf16", "avx512_bf16", "bf16"})
    return ", ".join([models[0] if models else platform.machine(), " ".join(found) or "no bfloat16"])


# ------------------------------------------------------------------------------------------------- the code's hash


def code_hash(module: str, root: Path = ROOT) -> str:
    """Hash of what `module` is made of: the modules under `root` that it reaches by imports, and the data beside them."""
    here = root / "experiments/harness.py"  # it measures nothing: saved figures are judged again by it, not made again
    reached, waiting = set[Path](), [file_of(module, root)]
    while waiting:
        file = waiting.pop()
        if file is not None and file != here and file not in reached:
            reached.add(file)
            waiting += [file_of(name, root) for name in imported(file)]
    data = {
        near for file in reached for near in file.parent.iterdir() if near.suffix in DATA and near.parent != RESULTS
    }
    digest = hashlib.sha256()
    for file in sorted(reached | data):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode())
        digest.update(essence(file).encode() if file.suffix == ".py" else file.read_bytes())
    return digest.hexdigest()[:16]


def file_of(name: str, root: Path) -> Path | None:
    """The file of a dotted name, or of the module that defines it. `bridle` itself is no module: it offers the Python API to users."""
    parts = name.split(".")
    for end in range(len(parts), 1, -1):
        stem = root.joinpath(*parts[:end])
        for file in (stem.with_suffix(".py"), stem / "__init__.py"):
            if file.is_file():
                return file
    return None


@cache
def imported(file: Path) -> tuple[str, ...]:
    """What a file imports, wherever the import stands."""

    def names() -> Iterator[str]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    return tuple(names())


def essence(file: Path) -> str:
    """A file's text without comments, docstrings and blank lines, which change nothing that it does."""
    text = file.read_text("utf-8")
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)  # type: ignore[operator]
    return "\n".join(line.rstrip() for line in lines if line.strip())


# ------------------------------------------------------------------------------------------------------ what is kept


def saved(name: str, folder: Path = RESULTS) -> Result | None:
    path = folder / f"{name.lower()}.json"
    return read_json(path) if path.exists() else None


def save(result: Result, folder: Path = RESULTS) -> None:
    """`eN.json`, and what a reader sees of it as `eN.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{result['name'].lower()}.json", result)
    write_text(folder / f"{result['name'].lower()}.md", page(result))


def page(result: Result) -> str:
    return "\n".join(
        [
            f"# {result['name']}: {result['title']}",
            "",
            *summary(result),
            "",
            "## Every seed",
            "",
            *by_seed(result["seeds"]),
            "",
        ]
    )


def summary(result: Result) -> list[str]:
    """The verdict with its claims and controls, as `docs/experiments.md` has it too."""
    rows = [(one, "") for one in result["claims"]] + [(one, "control: ") for one in result["controls"]]
    table = [
        f"| {kind}{one['meaning']} | {number(one['value'])} | {span(one, 'low', 'high', 2)} | {span(one, 'least', 'most', 1)} "
        f"| {one['n']} | {one['bound']} | {'yes' if one['holds'] else '**no**'} |"
        for one, kind in rows
    ]
    return [
        f"**{result['verdict'].capitalize()}.** {result['setting']}",
        "",
        f'`make experiments ARGS="{result["name"]}"` · {result["seconds"]:.0f} s on {result["machine"]} · code `{result["code_hash"]}`',
        "",
        "| what | mean | 95% interval | least and most of a seed | seeds | must be | holds |",
        "|---|---|---|---|---|---|---|",
        *table,
    ]


def span(row: Mapping[str, Any], low: str, high: str, fewest: int) -> str:
    """Empty where fewer than so many seeds have the figure, of one alone there is no interval, and where it has no width."""
    shown = row["n"] >= fewest and (fewest == 1 or row[low] < row[high])
    return f"{number(row[low])} to {number(row[high])}" if shown else ""


def by_seed(seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(name for row in seeds for name in row if name not in ("seed", "value")))
    return [
        f"| figure | {' | '.join(str(row['seed']) for row in seeds)} |",
        "|---" * (len(seeds) + 1) + "|",
        *(f"| {name} | {' | '.join(number(row.get(name)) for row in seeds)} |" for name in names),
    ]


def number(value: float | None) -> str:
    """Four digits, whole numbers as they are, and nothing where there is none."""
    if value is None:
        return ""
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e9 else f"{value:.4g}"
