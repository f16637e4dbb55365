"""What the guard of a run saw and did, from the watch.json in the run's folder, as a part of a page; and its picture as a file."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bridle.core.errors import DataError
from bridle.core.forms import NUMBER, Fields, float_of_at_least_0, is_of_kind
from bridle.guard.overoptimisation import GainCurve, fit_gain_curve
from bridle.maths.statistics import wilson_interval
from bridle.project.kept import read_kept, read_result
from bridle.report.drawings import Audit, GuardedRun, Measured, draw_guarded, save_svg
from bridle.report.metrics import of_runs
from bridle.report.page import (
    Cell,
    Column,
    GuardEvent,
    GuardReport,
    ModelAnswer,
    SideBySide,
    Table,
    guarded_words,
    show,
    words,
)
from bridle.report.runs import measured_steps
from bridle.report.stages import title_of
from bridle.report.timing import left_out

FILE = "watch.json"
WITHOUT = {"guarded": "unbridled"}  # runs of `bridle cliff`: which is the same without the guard
NOTHING_SEEN: Mapping[str, Any] = {"audits": [], "events": [], "ended": None, "best_step": None, "rolled_back_to": None}
ENDING = ("stop", "roll back")  # actions that a run does not survive
MOST_EVENTS, MOST_PROMPTS, MOST_RUNS = 40, 8, 8
SMALLEST_HALF = 0.01  # log-odds: of an interval that a curve is fitted by
PARTS = {"start": "at the start", "best": "at the peak", "end": "at the end"}


def number_within_a_million(value: Any) -> bool:
    return is_of_kind(value, float) and bool(abs(value) <= 1e6)


MEASURED, STEP, COUNT = (number_within_a_million, None), range(10**12), range(10**9)
ANSWER = {"prompt": str, "answer": str}
AUDITED: Fields = {
    "step": STEP, "kl": number_within_a_million, "kl_se?": NUMBER, "stated": MEASURED,
    **dict.fromkeys(("left", "left_low", "left_high"), MEASURED), "compared": COUNT, "wins": float_of_at_least_0,
}  # fmt: skip
EVENT: Fields = {
    "step": STEP, "signal": str, "action": str, "words": str, "numbers?": {...: NUMBER}, "answers?": [ANSWER],
}  # fmt: skip
ANSWERED: Fields = {"step": STEP, "rows": [ANSWER]}
WATCH: Fields = {
    "audits": [AUDITED], "cost": NUMBER, "past": NUMBER, "best_step": (STEP, None), "rolled_back_to": (STEP, None),
    "ended": (str, None), "events": [EVENT], "answers": {f"{part}?": ANSWERED for part in PARTS},
}  # fmt: skip


def read_watch(run: Path) -> dict[str, Any]:
    """What the guard left of a run; nothing where none watched it."""
    path = run / FILE
    if not path.exists():
        return {}
    found = read_kept(path, WATCH)
    for number, audit in enumerate(found["audits"]):
        if not audit["wins"] <= audit["compared"]:
            raise DataError(
                f"{path} is damaged: audits[{number}] has won {audit['wins']:g} of {audit['compared']} comparisons; put the file back, or "
                f"remove {run} and make that run again"
            )
    return found


def guard_reports(folders: Mapping[str, Path], warnings: list[str]) -> list[GuardReport]:
    """Of those runs, by their stages, that a guard watched: the first few. Where a file is damaged: a warning."""
    watched = [(stage, folder) for stage, folder in folders.items() if (folder / FILE).exists()]
    found = []
    for stage, folder in watched[:MOST_RUNS]:
        with left_out(warnings):
            found.append(guard_report(stage, folder, folders.get(WITHOUT.get(stage, ""))))
    if len(watched) > MOST_RUNS:
        more = len(watched) - MOST_RUNS
        warnings.append(f"{more} more runs were guarded than are shown; `bridle report RUN` shows any of them")
    return found


def guard_report(stage: str, folder: Path, without: Path | None = None) -> GuardReport:
    """`without`: the same run where no guard stopped it."""
    watch, result, metrics = read_watch(folder), read_result(folder), measured_steps(folder)
    title = "PPO without its bridle, held by the guard" if stage in WITHOUT else title_of(stage, folder)
    drawn = guarded_run(title, watch, metrics)
    if without is not None:
        drawn = replace(drawn, unguarded=guarded_run("", NOTHING_SEEN, measured_steps(without)))
    peak = drawn.curve.peak if drawn.curve is not None else None
    known = {
        "watch": watch, "result": result, "drawn": drawn, "peak_kl": None if peak is None else min(peak, 1e100) ** 2,
        "farthest": max((audit["kl"] for audit in watch["audits"]), default=0.0),
    }  # fmt: skip
    more, events = len(watch["events"]) - MOST_EVENTS, watch["events"][-MOST_EVENTS:]
    sides = answers_as_it_went(watch["answers"])
    return GuardReport(
        folder.name,
        drawn.name,
        words("guard", known),
        drawn,
        audit_table(watch["audits"], metrics) if watch["audits"] else None,
        [guard_event(event) for event in events],
        f"{more} earlier ones stand in {FILE}." if more > 0 else "",
        sides[:MOST_PROMPTS],
        f"Not picked by hand: the first {len(sides[:MOST_PROMPTS])} of {len(sides)} prompts that every checkpoint answered.",
    )


def guarded_run(name: str, watch: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> GuardedRun:
    proxy = any("proxy" in line for line in metrics)
    kl, reward, gold = ([m.get(key) for m in metrics] for key in ("kl", "proxy" if proxy else "reward", "gold"))
    audits = [
        Audit(one["step"], one["kl"], one["stated"], (one["left"], one["left_low"], one["left_high"]), observed(one))
        for one in watch["audits"]
    ]
    distances = {m["step"]: m.get("kl") for m in metrics} | {one.step: one.kl for one in audits}
    kept, end = watch["best_step"] if watch["rolled_back_to"] is None else watch["rolled_back_to"], ending_step(watch)
    return GuardedRun(
        name,
        kl,
        reward,
        gold if any(value is not None for value in gold) else [],
        "proxy, sd" if proxy else "reward",
        audits,
        curve_through(audits),
        None if kept is None else (kept, distances.get(kept)),
        None if end is None else (end, distances.get(end)),
    )


def ending_step(watch: Mapping[str, Any]) -> int | None:
    """Where the guard ended the run: at its last event that ends one, else at the last audit."""
    steps = [one["step"] for one in watch["audits"][-1:]]
    steps += [event["step"] for event in watch["events"] if event["action"] in ENDING]
    return steps[-1] if steps and watch["ended"] is not None else None


def observed(audit: Mapping[str, Any]) -> Measured:
    """An audit's comparisons by themselves, in log-odds, with Wilson's interval; all or none won counts as half a comparison less."""
    n, wins = audit["compared"], audit["wins"]
    if not n:
        return None, None, None
    shares = np.clip([wins / n, *wilson_interval(wins, n)], 0.5 / n, 1 - 0.5 / n)
    rate, low, high = (float(x) for x in np.log(shares / (1 - shares)))
    return rate, low, high


def curve_through(audits: Sequence[Audit]) -> GainCurve | None:
    """Through what is left, each point by half of its interval; None where there are too few."""
    known = [(one.kl, *one.left) for one in audits if None not in (one.kl, *one.left)]
    if not known:
        return None
    kl, left, low, high = np.array(known, dtype=np.float64).T
    return fit_gain_curve(kl, left, np.maximum(np.abs(high - low) / 2, SMALLEST_HALF))


def audit_table(audits: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]]) -> Table:
    """The numbers behind the picture, an audit a row, with what was logged at its step."""
    logged = {line["step"]: line for line in metrics}
    reward = "proxy" if any("proxy" in line for line in metrics) else "reward"
    seen = {name: of_runs()[name] for name in (reward, "gold") if any(name in line for line in metrics)}
    rows: list[list[Cell]] = []
    for one in audits:
        at_step = logged.get(one["step"], {})
        row = [one["step"], one["kl"], one.get("kl_se"), *(at_step.get(name) for name in seen)]
        rows.append([*row, *(one[name] for name in ("stated", "left", "left_low", "left_high", "wins", "compared"))])
    columns = [
        Column("step"), Column("KL", "nats per answer from the reference."), Column("±", "its standard error."),
        *(Column(one.label, f"{one.meaning.removesuffix(', at the last step')}.") for one in seen.values()),
        Column("stated", "log-odds of beating the reference's answer, as the calibrated reward model states them."),
        Column("left", "what the audits leave of that; from and to: its 95% interval."), Column("from"), Column("to"),
        Column("won", "of the comparisons of this audit, ties one half.", 1), Column("of"),
    ]  # fmt: skip
    return Table("The audits", columns, rows, "The numbers of the picture; those of every step stand in metrics.jsonl.")


def guard_event(event: Mapping[str, Any]) -> GuardEvent:
    numbers = ", ".join(f"{name} {show(value)}" for name, value in event.get("numbers", {}).items())
    label = f"step {event['step']}"
    answers = [SideBySide(one["prompt"], [ModelAnswer(label, one["answer"])]) for one in event.get("answers", [])]
    title = f"Step {event['step']}, {event['signal']}: {event['action']}."
    return GuardEvent(title, event["words"], numbers, answers[:MOST_PROMPTS])


def answers_as_it_went(parts: Mapping[str, Mapping[str, Any]]) -> list[SideBySide]:
    """Answers to those prompts that every checkpoint answered. One that is both the peak and the end stands once."""
    named, texts = dict[int, list[str]](), dict[int, dict[str, str]]()
    for part in (part for part in PARTS if part in parts):
        step = parts[part]["step"]
        past = part == "end" and "best" in parts and step > parts["best"]["step"]
        named.setdefault(step, []).append("past the peak" if past else PARTS[part])
        texts.setdefault(step, {one["prompt"]: one["answer"] for one in parts[part]["rows"]})
    labels = {step: f"{', '.join(words)}: step {step}" for step, words in named.items()}
    prompts = [prompt for prompt in next(iter(texts.values()), {}) if all(prompt in rows for rows in texts.values())]
    return [
        SideBySide(prompt, [ModelAnswer(labels[step], rows[prompt]) for step, rows in texts.items()])
        for prompt in prompts
    ]


def save_guard_pictures(reports: Sequence[GuardReport], folder: Path) -> None:
    """Each run's picture as guard-RUN.svg in the folder, beside the page that shows it."""
    for one in reports:
        save_svg(draw_guarded(one.drawn), guarded_words(one.drawn), folder / f"guard-{one.run}.svg")
