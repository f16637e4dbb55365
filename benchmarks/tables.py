"""Write the tables of README.md from results/*.json: python benchmarks/tables.py"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from growth import DECODE, SFT
from harness import FOLDER, RESULTS, Figure, disturbed, figures, held_up, median_of, names_of, rows_of
from roofline import SIZES, operations

BEGIN, END = "<!-- written by tables.py -->", "<!-- to here -->"
Results = Mapping[str, Mapping[str, Any]]

# How many times faster than the peer at its best: at least, and the aim.
BARS = {"sft": (3, 5), "reward": (3, 5), "dpo": (3.5, 6), "grpo": (2.5, 4), "rloo": (2.5, 4), "ppo": (2.5, 4)}
DECODE_BARS = {"batch 1": (3, 4), "batch 16": (3.7, 6), "batch 64": (3.5, 6)}
SERVING_BARS = {"16 clients": (2, 3.5), "50 clients": (2, 3.5)}
FIRST_STEP, MEMORY, RAGGED = (4, 3), (0.7, 0.5), (1.5, 1.6)
LABELS = {"sft": "SFT", "reward": "reward model", "dpo": "DPO", "grpo": "GRPO", "rloo": "RLOO", "ppo": "PPO"}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return [*lines, ""] if rows else []


def spread(figure: Figure, unit: float = 1000, digits: int = 0) -> str:
    """Median (least–most)."""
    return f"{unit * figure.median:,.{digits}f} ({unit * figure.least:,.{digits}f}–{unit * figure.most:,.{digits}f})"


def verdict(value: float, bar: float, aim: float) -> str:
    """Whether a ratio reaches the bar and the aim; a bar above its aim means that less is better."""
    reached = (lambda limit: value <= limit) if bar > aim else (lambda limit: value >= limit)
    return "aim" if reached(aim) else "bar" if reached(bar) else "**no**"


def only(result: Mapping[str, Any], contestant: str, case: str = "") -> Figure | None:
    return figures(result, contestant).get(case)


def times(result: Mapping[str, Any], peer: str, case: str = "") -> str:
    """How many times faster than this peer."""
    ours, theirs = only(result, "bridle", case), only(result, peer, case)
    return f"{theirs.median / ours.median:.2f}" if ours and theirs else "–"


# ------------------------------------------------------------------------------------------------------------- sections


def training(results: Results) -> list[str]:
    rows = []
    for stage, (bar, aim) in BARS.items():
        result = results.get(stage)
        ours = result and only(result, "bridle")
        if not result or not ours:
            continue
        theirs = [only(result, name) for name in ("trl", "trl float32", "trl best", "trl tuned")]
        best, tuned = (f.median / ours.median if f else math.nan for f in theirs[2:])
        reached = ["held up"] * 2 if held_up(result) else [verdict(ratio, bar, aim) for ratio in (best, tuned)]
        rows.append([
            LABELS[stage], spread(ours), *(spread(f) if f else "–" for f in theirs), times(result, "trl"),
            times(result, "trl float32"), f"**{best:.2f}**", f"{bar} / {aim}", reached[0], f"**{tuned:.2f}**", reached[1],
        ])  # fmt: skip
    head = ["one step, ms", "bridle", "TRL as shipped", "TRL float32", "TRL at its best", "TRL tuned"]
    head += ["× shipped", "× float32", "× best", "bar / aim", "reached", "× tuned", "reached by that"]
    shapes = [f"- {LABELS[stage]}: {results[stage]['shape']}" for stage in BARS if stage in results]
    return ["## Training", "", *table(head, rows), *shapes, ""]


def memory(results: Results) -> list[str]:
    rows = []
    for stage in BARS:
        result = results.get(stage)
        if not result or not {"bridle", "trl", "trl best"} <= set(names_of(result)):
            continue
        first = [median_of(result, name, "first_step_s") for name in ("bridle", "trl", "trl best")]
        peak = [median_of(result, name, "peak_mb") for name in ("bridle", "trl", "trl best")]
        rows.append([
            LABELS[stage], *(f"{s:.1f}" for s in first), verdict(first[0], *FIRST_STEP), *(f"{mb:,.0f}" for mb in peak),
            f"{peak[0] / peak[1]:.2f}", f"**{peak[0] / peak[2]:.2f}**", verdict(peak[0] / peak[2], *MEMORY),
        ])  # fmt: skip
    head = ["", "bridle, s", "TRL, s", "TRL at its best, s", "4 / 3 s"]
    head += ["bridle, MB", "TRL, MB", "TRL at its best, MB", "of TRL's", "of its best's", ".7 / .5"]
    return ["## From the start to the first step's end, and peak memory", "", *table(head, rows)]


def decode(results: Results) -> list[str]:
    if "decode" not in results:
        return []
    result = results["decode"]
    peers = [name for name in names_of(result) if name.startswith("generate")]
    ours = figures(result, "bridle")
    rows = []
    for case, figure in ours.items():
        rates = [rate(result, name, case) for name in names_of(result)]
        fastest = min((f.median for name in peers if (f := only(result, name, case))), default=math.nan)
        ratio = fastest / figure.median
        bar, aim = DECODE_BARS.get(case, (math.nan, math.nan))
        reached = "held up" if held_up(result) else verdict(ratio, bar, aim)
        told = [f"{bar} / {aim}", reached] if case in DECODE_BARS else ["", ""]
        rows.append([case, *rates, times(result, "generate", case), f"**{ratio:.2f}**", *told])
    head = ["tokens/s", *names_of(result), "× generate", "× its fastest", "bar / aim", "reached"]
    return ["## Decoding", "", f"{result['shape']}. `generate` is transformers' as shipped.", "", *table(head, rows)]


def rate(result: Mapping[str, Any], contestant: str, case: str) -> str:
    figure = only(result, contestant, case)
    return f"{result['tokens'][case] / figure.median:,.0f}" if figure else "–"


def serving(results: Results) -> list[str]:
    if "serving" not in results:
        return []
    result = results["serving"]
    names = names_of(result)
    peers = [name for name in names if not name.startswith("bridle")]
    rows, first, shares = [], [], []
    for case, ours in figures(result, "bridle").items():
        found = {name: f for name in names if (f := only(result, name, case))}
        ratio = min((found[name].median for name in peers if name in found), default=math.nan) / ours.median
        if case.endswith("first token"):
            first.append([case.partition(",")[0], *(spread(found[name]) if name in found else "–" for name in names),
                          f"{ratio:.1f}"])  # fmt: skip
        elif case.endswith("processor"):
            told = [f"{1000 / found[name].median:,.0f}" if name in found else "–" for name in names]
            shares.append([case.partition(",")[0], *told, f"**{ratio:.2f}**"])
        else:
            bars = SERVING_BARS.get(case)
            told = [f"{bars[0]} / {bars[1]}", verdict(ratio, *bars)] if bars else ["", ""]
            rows.append(
                [case, *(rates(found[name]) if name in found else "–" for name in names), f"**{ratio:.2f}**", *told]
            )
    memory = [f"{name} {max(row['notes']['server_mb'] for row in rows_of(result, name)):,} MB" for name in names]
    loads = [
        row["notes"][case] for row in result["rows"] for case in row["notes"] if case.endswith(("client", "clients"))
    ]
    note = (
        f"Peak memory of each server: {', '.join(memory)}. The load took {min(one['load'] for one in loads):.2f} to "
        f"{max(one['load'] for one in loads):.2f} of a core, a server {min(one['server'] for one in loads):.2f} to "
        f"{max(one['server'] for one in loads):.2f}."
    )
    peer = "× its best"
    return [
        "## Serving", "", f"{result['shape']}. `batched` and `one by one` are `transformers serve`.", "",
        *table(["tokens/s", *names, peer, "bar / aim", "reached"], rows),
        *table(["tokens for each second of the server's processor", *names, peer], shares),
        *table(["ms to the first token", *names, peer], first), note, "",
    ]  # fmt: skip


def rates(figure: Figure) -> str:
    """Tokens/s of the median (least–most), where the figure is the seconds of 1,000."""
    return f"{1000 / figure.median:,.0f} ({1000 / figure.most:,.0f}–{1000 / figure.least:,.0f})"


def pretraining(results: Results) -> list[str]:
    if "pretrain" not in results:
        return []
    result = results["pretrain"]
    rows = [
        [case, *(rate(result, name, case) for name in names_of(result)), times(result, "transformers", case),
         f"**{times(result, 'transformers best', case)}**"]
        for case in figures(result, "bridle")
    ]  # fmt: skip
    head = ["tokens/s", *names_of(result), "× transformers", "× its best"]
    return ["## Pretraining", "", f"{result['shape']}.", "", *table(head, rows)]


def uneven(results: Results) -> list[str]:
    if "ragged" not in results:
        return []
    result, rows = results["ragged"], []
    ours = only(result, "bridle", "sorted")
    for name in names_of(result):
        ordered, random = only(result, name, "sorted"), only(result, name, "random")
        if ours and ordered and random:
            gain, over = random.median / ordered.median, random.median / ours.median
            held = [f"**{over:.2f}**", verdict(over, *RAGGED)] if name != "bridle" else ["", ""]
            rows.append([name, rate(result, name, "sorted"), rate(result, name, "random"), f"{gain:.2f}", *held])
    head = ["tokens/s without padding", "sorted", "random", "sorted over random", "bridle over its random", "1.5 / 1.6"]
    return ["## Uneven lengths", "", f"{result['shape']}.", "", *table(head, rows)]


def starting(results: Results) -> list[str]:
    if "start" not in results:
        return []
    result = results["start"]
    cases = list(figures(result, "bridle"))
    rows = [
        [case, *(spread(f, 1, 2) if (f := only(result, name, case)) else "–" for name in names_of(result))]
        for case in cases
    ]
    return ["## Starting", "", *table(["seconds", *names_of(result)], rows)]


def growing(results: Results) -> list[str]:
    if "growth" not in results:
        return []
    result, rows = results["growth"], []
    for cases in (SFT, DECODE):
        for what in ("batch", "length"):
            found = [(c, f) for c in cases if f" {what} " in c and (f := only(result, "bridle", c))]
            if len(found) < 2:
                continue
            sizes = [float(case.rsplit(" ", 1)[1]) for case, _ in found]
            power = exponent(sizes, [figure.median for _, figure in found])
            rates = [
                f"{size:.0f}: {rate(result, 'bridle', case)}" for size, (case, _) in zip(sizes, found, strict=True)
            ]
            rows.append([found[0][0].rsplit(" ", 1)[0], *rates, f"{power:.2f}"])
    note = (
        "Tokens/s at each size; a step's seconds grow with the size to the power in the last column (1: in proportion)."
    )
    return ["## Growth", "", note, "", *table(["", "1×", "2×", "4×", "8×", "exponent"], rows)]


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log seconds over log size, by least squares."""
    x, y = [math.log(s) for s in sizes], [math.log(s) for s in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def long_runs(results: Results) -> list[str]:
    if "flat" not in results:
        return []
    result = results["flat"]
    held = {case: mb for row in rows_of(result, "bridle") for case, mb in row["notes"].items() if "step" in case}
    rows = [[case, spread(f, digits=1), f"{held[case]:,}"] for case, f in figures(result, "bridle").items()]
    return ["## Long runs", "", f"{result['shape']}.", "", *table(["", "ms a step", "MB held"], rows)]


def roofline(results: Results) -> list[str]:
    if "roofline" not in results:
        return []
    speeds = figures(results["roofline"], "bridle")
    peak = {
        precision: max(2 * size**3 / speeds[f"{precision} {size}"].median for size in SIZES)
        for precision in ("bfloat16", "float32")
    }
    rows = []
    for stage, case, formula in [
        *((s, "", s) for s in BARS), ("pretrain", "m5", "pretrain"), *(("decode", c, c) for c in DECODE_BARS)
    ]:  # fmt: skip
        if stage not in results or not (figure := only(results[stage], "bridle", case)):
            continue
        if formula.startswith("batch"):
            formula = f"decode {formula}"
        speed = operations(formula) / figure.median
        rows.append([LABELS.get(stage, formula), f"{operations(formula) / 1e9:,.1f}", f"{speed / 1e9:,.0f}",
                     f"{speed / peak['bfloat16']:.0%}"])  # fmt: skip
    measured = ", ".join(f"{speed / 1e9:,.0f} GFLOP/s in {precision}" for precision, speed in peak.items())
    note = f"The fastest square product here: {measured}. The operations that a step cannot do without, over its time:"
    return ["## Share of the roofline", "", note, "", *table(["", "GFLOP", "GFLOP/s", "share"], rows)]


def provenance(results: Results) -> list[str]:
    rows = []
    for stage, result in results.items():
        versions: dict[str, set[str]] = {}
        for row in result["rows"]:
            for package, found in row["versions"].items():
                versions.setdefault(package, set()).add(found)
        named = ", ".join(f"{package} {'/'.join(sorted(found))}" for package, found in versions.items())
        rounds = 1 + max((row["round"] for row in result["rows"]), default=-1)
        size = f"{rounds} × {result['steps']}" + (", quick" if result["quick"] else "")
        others = [row["others"] for row in result["rows"]] or [0.0]
        failed = ", ".join(f"{name}: {error}" for name, error in result["failed"].items())
        busy = f"{min(others)}–{max(others)}"
        slow = f"{sum(disturbed(result, row) for row in result['rows'])} of {len(result['rows'])}"
        rows.append(
            [stage, result["date"], f"`{result['commit']}`", size, str(result["threads"]), busy, slow, named, failed]
        )
    head = [
        "",
        "date",
        "commit",
        "rounds × steps",
        "threads",
        "cores used by others",
        "trials held up",
        "versions",
        "left out",
    ]
    machines = sorted({f"{result['cpu']}, {result['cores']} cores" for result in results.values()})
    return ["## What was measured where", "", f"Machine: {'; '.join(machines)}.", "", *table(head, rows)]


SECTIONS: tuple[Callable[[Results], list[str]], ...] = (
    training, memory, decode, serving, pretraining, uneven, starting, growing, long_runs, roofline, provenance,
)  # fmt: skip


def write(results: Results) -> str:
    return "\n".join(line for section in SECTIONS for line in section(results)).strip() + "\n"


def read(folder: Path) -> Results:
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--page", type=Path, default=FOLDER / "README.md", metavar="FILE")
    asked = parser.parse_args()
    before, _, rest = asked.page.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    asked.page.write_text(f"{before}{BEGIN}\n\n{write(read(asked.results))}\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
