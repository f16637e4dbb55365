"""Where the time went: each stage's parts, and the operators of a profiled step."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bridle.core.errors import DataError
from bridle.core.files import read_record
from bridle.core.forms import SECONDS
from bridle.core.timeline import Parts, own_seconds
from bridle.project.kept import read_result, read_session
from bridle.project.profile import FILE as PROFILE
from bridle.project.profile import OPERATORS_SHOWN
from bridle.report.drawings import WorkerTime
from bridle.report.page import Cell, Column, Crew, Spent, Table, show
from bridle.report.stages import title_of

OPERATOR = {"stage": str, "operator": str, "on": str, "part": str, "seconds": SECONDS, "calls": int}
PROFILED = {"title": str, "operators": [OPERATOR]}
MOST_STAGES = 40  # that are shown by themselves: those that took longest
MOST_WORKERS = 24  # in a picture
# What those that share a stage do, and the parts that are that.
DOING = {
    "generate": ("answer",),
    "score": ("score",),
    "reference": ("reference",),
    "update": ("batch", "advantages", "choose", "rank", "improve", "forward", "backward", "optimizer"),
    "sync": ("pack", "sync"),
    "wait": ("wait",),
}
LEARNING = ("improve", "forward", "backward", "optimizer")


@contextmanager
def left_out(warnings: list[str]) -> Iterator[None]:
    """Where a file inside is damaged: warn, and show the rest."""
    try:
        yield
    except DataError as error:
        warnings.append(f"{error}; the report leaves it out")


def times(
    folders: Mapping[str, Path], profiled: Path, warnings: list[str] | None = None
) -> tuple[list[Spent], list[Table]]:
    """Each run's seconds and what took them, as a bar and in a table; where `profiled` holds a profile, its operators."""
    spent, rows = [], list[list[Cell]]()
    found = {stage: time_of(folder) for stage, folder in folders.items()}
    work = sum(seconds for seconds, _ in found.values())
    longest = sorted(found, key=lambda stage: -found[stage][0])[:MOST_STAGES]
    for stage, (seconds, parts) in ((stage, found[stage]) for stage in found if stage in longest):
        title = title_of(stage, folders[stage])
        spent.append(Spent(title, seconds, own_seconds(parts)))
        rows.append([title, seconds, share(seconds, work), None])
        rows += [[indented(path), p["seconds"], share(p["seconds"], seconds), p["calls"]] for path, p in parts.items()]
        rest = max(0.0, seconds - sum(p["seconds"] for path, p in parts.items() if "/" not in path))
        rows += [[indented("the rest"), rest, share(rest, seconds), None]] if parts else []
    if len(found) > len(longest):
        seconds = work - sum(found[stage][0] for stage in longest)
        spent.append(Spent(f"{len(found) - len(longest)} shorter ones", seconds))
        rows.append([spent[-1].title, seconds, share(seconds, work), None])
    words = "A part's share is of its stage, what is indented under a part is in it too; a stage's share is of all the work."
    columns = [Column("stage and part"), Column("seconds"), Column("share"), Column("times")]
    tables = [Table("Share of time: every part of every stage", columns, rows, words)] if rows else []
    with left_out([] if warnings is None else warnings):
        if (path := profiled / PROFILE).exists():
            tables.append(operator_table(read_record(path, bridle=PROFILED)["bridle"]))
    return spent, tables


def time_of(folder: Path) -> tuple[float, Parts]:
    """A run's seconds, and what of them; a run that noted no parts has none."""
    noted = read_session(folder)
    result = read_result(folder) or noted
    return float(result.get("seconds", 0.0)), noted.get("parts", {})


def shared_times(folders: Mapping[str, Path]) -> tuple[list[Crew], list[Table]]:
    """Of each stage that several processes shared, what took each one's time, how much of it was work, and how many tokens a second it
    answered and learnt; as a picture, and in a table."""
    crews, rows = [], list[list[Cell]]()
    for stage, folder in folders.items():
        title, shared = title_of(stage, folder), read_session(folder).get("workers", {})
        found = [time_of_worker(name, worker["seconds"], worker["parts"]) for name, worker in shared.items()]
        if found:
            crews.append(Crew(title, [one for one, _ in found][:MOST_WORKERS], len(found[MOST_WORKERS:])))
        rows += [[f"{title}, {one.name}", one.seconds, *paces, *one.words.values()] for one, paces in found]
    names = ["seconds", "used", "tokens/s answered", "tokens/s learnt", *DOING]
    columns = [Column("stage and process"), *map(Column, names)]
    note = "Seconds of each process, and what of them, up to the last checkpoint; used is the share in which it did not wait for others."
    return crews, [Table("Share of time: every process that shared a stage", columns, rows, note)] if rows else []


def time_of_worker(name: str, seconds: float, parts: Parts) -> tuple[WorkerTime, list[Cell]]:
    """Its bar, and of what it says the numbers: used, tokens a second answered and learnt."""
    own = own_seconds(parts)
    words = {word: sum(own.get(part, 0.0) for part in meant) for word, meant in DOING.items()}
    used, answered = share(seconds - words["wait"], seconds), pace(parts, "answer", own, ("answer",))
    learnt = pace(parts, "forward", own, LEARNING)
    paces = [f"{show(each)} {what}/s" for each, what in ((answered, "answered"), (learnt, "learnt")) if each]
    return WorkerTime(name, seconds, words, ", ".join([f"{used} used", *paces])), [used, answered, learnt]


def pace(parts: Parts, word: str, own: Mapping[str, float], words: Sequence[str]) -> float | None:
    """Tokens of the parts of this word, by the second of the parts of these words."""
    tokens = sum(spent.get("tokens", 0) for path, spent in parts.items() if path.rpartition("/")[2] == word)
    seconds = sum(own.get(part, 0.0) for part in words)
    return tokens / seconds if tokens and seconds else None


def share(seconds: float, whole: float) -> str:
    return f"{seconds / whole:.1%}" if whole else "–"


def indented(path: str) -> str:
    """The last word of a path, pushed in by its depth."""
    return "\u2003" * (1 + path.count("/")) + path.rpartition("/")[2]


def operator_table(profile: Mapping[str, Any]) -> Table:
    """The operators that took longest of the one step of each stage that torch's profiler looked at."""
    rows: list[list[Cell]] = []
    for stage in dict.fromkeys(row["stage"] for row in profile["operators"]):
        own = [row for row in profile["operators"] if row["stage"] == stage]
        whole = sum(row["seconds"] for row in own if row["on"] == "operator")
        rows.append([title_of(stage), None, 1000 * whole, None, None])
        for row in own[:OPERATORS_SHOWN]:
            seconds = row["seconds"]
            rows.append(["\u2003" + row["operator"], row["part"], 1000 * seconds, share(seconds, whole), row["calls"]])
    columns = [Column("stage and operator"), Column("in"), Column("ms"), Column("share"), Column("calls")]
    words = f"By {profile['title']} --profile: of one step of each stage, the time that operators took by themselves."
    return Table("Share of time: one step of each stage by operator", columns, rows, words)
