"""The page of one run: its metrics and every curve."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridle.project.kept import read_data, read_parents, read_result
from bridle.report.drawings import Curve, Series
from bridle.report.guard import guard_reports, save_guard_pictures
from bridle.report.metrics import held_out, of_runs
from bridle.report.page import Cell, Column, Fact, LoopReport, Table, write
from bridle.report.project import stale_parts
from bridle.report.runs import damage_of, measured_steps
from bridle.report.stages import BEST_OF, title_of
from bridle.report.timing import shared_times, times
from bridle.stages.workspace import Work


def write_run_report(work: Work, named: Path) -> Path:
    """`report.html` of one run of the project: its metrics and every curve; where a guard watched it, its picture as a file too."""
    project = work.project
    path = project.run(named)
    stage, result = read_parents(path)["stage"], read_result(path)
    lead = f"Run {path.name} of project {project.folder.name}" + ("" if result else ", not finished yet") + "."
    meanings = {
        **of_runs(),
        **(held_out() if stage.startswith(("evaluate-", "verify-")) or BEST_OF.fullmatch(stage) else {}),
    }
    facts = [
        Fact(meanings[n].label, v, meanings[n].meaning) if n in meanings else Fact(n, v)
        for n, v in result.items()
        if isinstance(v, int | float | str) and not is_hash(v)
    ]
    warnings = [*damage_of(path), *stale_parts(work, {stage: path})]
    tables = [data_table(counted)] if (counted := read_data(path)) else []
    spent, time_tables = times({stage: path}, path, warnings)
    crews, of_each = shared_times({stage: path})
    curves = every_curve(measured_steps(path))
    guarded = guard_reports({stage: path}, warnings)
    work.warn(warnings)
    page = LoopReport(
        title_of(stage, path),
        lead,
        warnings,
        facts=facts,
        guarded=guarded,
        curves=curves,
        tables=tables,
        spent=spent,
        crews=crews,
        time_tables=[*of_each, *time_tables],
    )
    write(page, path / "report.html")
    save_guard_pictures(guarded, path)
    return path / "report.html"


def every_curve(metrics: list[dict[str, Any]]) -> list[Curve]:
    names = [n for n in (metrics[-1] if metrics else {}) if n not in ("step", "seconds")]
    steps = [m["step"] for m in metrics]
    labels = {n: of_runs()[n].label if n in of_runs() else n for n in names}
    return [Curve("step", labels[n], [Series(labels[n], steps, [m.get(n) for m in metrics])]) for n in names]


def data_table(counted: Mapping[str, Any]) -> Table:
    """What of a run's data was used, from its data.json."""
    rows: list[list[Cell]] = []
    for what, report in counted.items():
        rows += [[what, note, None, ""] for note in report.get("notes", [])]
        rows.append([what, "kept", report["kept"], ""])
        for done in ("cut", "dropped", "noted"):
            rows += [
                [what, f"{done}: {why}", n, report.get("examples", {}).get(why, "")]
                for why, n in report.get(done, {}).items()
            ]
    columns = [Column("data"), Column("what became of it"), Column("rows"), Column("the first one")]
    words = "What is cut has lost the beginning of its prompt, and is among those kept."
    return Table("The data", columns, rows, words)


def is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64
