"""One self-contained HTML page that shows what a run, or the whole loop, did: in words, curves, answers and metrics.

Every part of a `LoopReport` may be empty and then leaves no trace: a project with real people has no gold, a single run
has only its curve. The page loads nothing from anywhere. The same report gives the same bytes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_eval_context
from jinja2.nodes import EvalContext
from markupsafe import Markup

from bridle.core.errors import BridleError
from bridle.core.files import write_text
from bridle.core.text import beginning_of, one_line, visible
from bridle.report import drawings

BAR_COLOURS = ("gold", "proxy", "series-3", "series-4", "series-5", "series-6")  # CSS variables of the page
MOST_NAMES = 16  # in a sentence
LONGEST_TEXT = 4_000  # characters of a text that are shown
Cell = str | int | float | bool | None  # None and nan are shown as a dash


@dataclass(frozen=True, slots=True)
class Fact:
    """A labelled value; `hint` gives in a few plain words what it means, or what to expect."""

    label: str
    value: Cell
    hint: str = ""


@dataclass(frozen=True, slots=True)
class StageReport:
    """What one stage did. `words` are for a newcomer, `seconds` its wall-clock time."""

    name: str
    title: str
    words: str
    seconds: float | None = None
    metrics: Sequence[Fact] = ()
    curve: drawings.Curve | None = None


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """One model's answer; `score` above 0 is shown as good, below as bad, and always written out."""

    label: str
    text: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Answers to one prompt, side by side: before, after, past the cliff. `score_name` says whose score it is."""

    prompt: str
    answers: Sequence[ModelAnswer]
    note: str = ""
    score_name: str = "gold"


@dataclass(frozen=True, slots=True)
class Column:
    """A column; floats are shown with `decimals`, and `hint` explains it beneath the table."""

    name: str
    hint: str = ""
    decimals: int | None = None  # None: as many as each deserves


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under columns; the first column names the row."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    words: str = ""


@dataclass(frozen=True, slots=True)
class Control:
    """An experiment that must fail, or must change nothing, if the others are to be believed. `holds` None: not run."""

    name: str
    expectation: str
    measured: Cell
    holds: bool | None


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of a stage, and of what of it, by word; what is left of them is not named."""

    title: str
    seconds: float
    words: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Crew:
    """Those that shared a stage; `more` were left out of the picture."""

    title: str
    workers: Sequence[drawings.WorkerTime]
    more: int = 0


@dataclass(frozen=True, slots=True)
class GuardEvent:
    """What the guard did at a step, by which signal and with which numbers, in words; `answers` are for a person to judge."""

    title: str
    words: str
    numbers: str = ""
    answers: Sequence[SideBySide] = ()


@dataclass(frozen=True, slots=True)
class GuardReport:
    """What the guard saw of a run, why it stopped it, and answers to the same prompts at the start, at the peak and at the end."""

    run: str
    title: str
    words: Sequence[str]
    drawn: drawings.GuardedRun
    audits: Table | None = None
    events: Sequence[GuardEvent] = ()
    events_rule: str = ""  # which of them are shown
    answers: Sequence[SideBySide] = ()
    answers_rule: str = ""


@dataclass(frozen=True, slots=True)
class LoopReport:
    title: str
    lead: str
    warnings: Sequence[str] = ()  # sentences to read before the numbers
    headline: Sequence[Fact] = ()  # the few numbers to remember
    facts: Sequence[Fact] = ()  # seed, seconds, threads, device, version
    stages: Sequence[StageReport] = ()
    guarded: Sequence[GuardReport] = ()
    cliff: Sequence[drawings.CliffRun] = ()
    curves: Sequence[drawings.Curve] = ()
    verdict: Sequence[str] = ()  # sentences, the first one to remember
    ranking: Table | None = None
    frontier: drawings.Frontier | None = None
    examples: Sequence[SideBySide] = ()
    examples_rule: str = ""  # how they were chosen
    comparisons: Sequence[drawings.Comparison] = ()
    tables: Sequence[Table] = ()
    controls: Sequence[Control] = ()
    spent: Sequence[Spent] = ()
    crews: Sequence[Crew] = ()
    time_tables: Sequence[Table] = ()  # of the same in full


def render(report: LoopReport) -> str:
    """The whole page as HTML. Every text is escaped; lists that ought to be equally long and are not are refused."""
    report = replace(report, cliff=[run for run in report.cliff if run.steps])
    _check_lengths(report)
    has_gold = any(drawings.gold_peak(run) is not None for run in report.cliff)
    whole = (
        environment()
        .get_template("page.html")
        .render(
            report=report,
            sections=_sections(report, has_gold),
            has_gold=has_gold,
            has_scores=any(answer.score is not None for one in report.examples for answer in one.answers),
            knows_gold=has_gold
            or any(one.drawn.gold for one in report.guarded)
            or any(one.by == "gold" for one in report.comparisons),
            colours=colours(report.spent),
            cliff_sentences=[run_words(run) for run in report.cliff],
            curve_svg=curve_svg,
            frontier_svg=frontier_svg,
            cliff_svg=cliff_svg,
            guarded_svg=guarded_svg,
            comparisons_svg=comparisons_svg,
            crew_svg=crew_svg,
        )
    )
    return visible(whole)


@cache
def environment() -> Environment:
    """The templates beside this file; what goes into HTML is escaped, and of a very long text the beginning is shown."""
    found = Environment(
        loader=FileSystemLoader((Path(__file__).parent, Path(__file__).parents[1] / "site" / "static")),
        autoescape=lambda name: str(name).endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=shortened_text,
    )
    found.filters |= {"show": show, "verdict": verdict, "duration": duration, "listing": listing}
    return found


@pass_eval_context
def shortened_text(context: EvalContext, value: object) -> object:
    """What a template writes of a text: on a page its beginning, in a sentence one line."""
    if not context.autoescape:
        return one_line(str(value))
    return beginning_of(value, LONGEST_TEXT) if isinstance(value, str) and not isinstance(value, Markup) else value


def words(about: str, known: Mapping[str, object]) -> list[str]:
    """Sentences of words.jinja, each as a string of its own."""
    lines = environment().get_template("words.jinja").render({"about": about, **known}).splitlines()
    return [line.strip() for line in lines if line.strip()]


def _check_lengths(report: LoopReport) -> None:
    rows = [
        (f"a row of table '{t.title}'", len(row), len(t.columns))
        for t in [report.ranking, *(one.audits for one in report.guarded), *report.tables, *report.time_tables]
        if t is not None
        for row in t.rows
    ]
    curves = [stage.curve for stage in report.stages if stage.curve] + list(report.curves)
    lines = [(f"series '{one.name}'", len(one.y), len(one.x)) for curve in curves for one in curve.series]
    runs = [
        (f"{name} of run '{run.name}'", len(values), len(run.steps))
        for run in report.cliff
        for name, values in (("proxy", run.proxy), ("kl", run.kl), ("gold", run.gold or run.steps))
    ]
    for name, got, needed in rows + lines + runs:
        if got != needed:
            raise BridleError(f"{name} has {got} values where {needed} are needed; put None where nothing was measured")


def _sections(report: LoopReport, has_gold: bool) -> dict[str, str]:
    """Title of each section by its id, in the order of the page; only those that have something to show."""
    sections: list[tuple[str, str, object]] = [
        ("verdict", "What came out", report.verdict),
        ("wins", "Who wins", report.comparisons),
        ("examples", "Answers side by side", report.examples),
        ("guard", "What the guard saw", report.guarded),
        ("cliff", "The cliff" if has_gold else "Reward and distance", report.cliff),
        ("stages", "What happened, stage by stage", report.stages),
        ("curves", "More curves", report.curves),
        ("tables", "All metrics", report.tables),
        ("controls", "Controls", report.controls),
        ("time", "Where the time went", report.spent),
        ("words", "Words used here", report.cliff or report.comparisons or report.verdict or report.guarded),
    ]
    return {id: title for id, title, content in sections if content}


def colours(spent: Sequence[Spent]) -> dict[str, str]:
    """The words that took longest in all, each with the colour of its part of the bars, the longest first."""
    whole: dict[str, float] = {}
    for one in spent:
        for word, seconds in one.words.items():
            whole[word] = whole.get(word, 0.0) + seconds
    longest = sorted(whole, key=lambda word: (-whole[word], word))
    return dict(zip(longest, BAR_COLOURS, strict=False))


def write(report: LoopReport, path: Path) -> None:
    """Renders to `path`, all or nothing."""
    write_text(path, render(report))


def show(value: Cell, decimals: int | None = None) -> str:
    """A cell as text: a dash for nothing, thousands with a thin space, a real minus sign.

    Without `decimals` a float gets as many as it deserves: 1 234, 12.3, 0.68, 0.0003.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, float) and math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if isinstance(value, int):
        decimals = 0
    elif decimals is None:
        size = abs(value)
        small = 0 < size < 0.01
        decimals = -math.floor(math.log10(size)) if small else 0 if size >= 1000 else 1 if size >= 10 else 2
    text = f"{value:,.{decimals}f}"
    if not text.strip("-0.,"):
        text = text.lstrip("-")  # no minus zero
    return text.replace(",", "\u202f").replace("-", "−")


def listing(names: Sequence[str]) -> str:
    """a, b and c; of very many the first, and how many more there are."""
    names = names if len(names) <= MOST_NAMES + 1 else [*names[:MOST_NAMES], f"{len(names) - MOST_NAMES} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def verdict(score: float | None) -> str:
    """The score's class on the page: good above 0, bad below, none at 0 or where there is no score."""
    if score is None or not score or math.isnan(score):
        return ""
    return " good" if score > 0 else " bad"


def curve_svg(curve: drawings.Curve) -> Markup:
    names = "; ".join(f"{series.name} {trend(series.y)}" for series in curve.series)
    return Markup(
        drawings.to_svg(drawings.draw_curve(curve), f"{curve.title or curve.y_label} over {curve.x_label}: {names}")
    )


def frontier_svg(frontier: drawings.Frontier) -> Markup:
    points = sorted((point for line in frontier.lines for point in line), key=lambda point: -point.score)
    more = f"; {frontier.more} more were evaluated" if frontier.more else ""
    words = "; ".join(f"{one.name} {show(one.score)} at a KL of {show(one.kl)}" for one in [*points, frontier.origin])
    return Markup(
        drawings.to_svg(
            drawings.draw_frontier(frontier), f"{frontier.y_label} over KL from SFT, the highest first: {words}{more}"
        )
    )


def cliff_svg(runs: Sequence[drawings.CliffRun], against: Literal["steps", "kl"]) -> Markup:
    label = f"Change of training proxy and gold over {against}. " + " ".join(run_words(run) for run in runs)
    return Markup(drawings.to_svg(drawings.draw_cliff(runs, against), label))


def guarded_svg(run: drawings.GuardedRun) -> Markup:
    return Markup(drawings.to_svg(drawings.draw_guarded(run), guarded_words(run)))


def guarded_words(run: drawings.GuardedRun) -> str:
    """What the drawing of a guarded run shows."""
    places = "".join(f" {words}, at {show(x**2)} nats." for words, x in run.marks)
    left = "; ".join(f"{show(one.left[0])} at {show(one.kl)} nats" for one in run.audits)
    lines = [f"{name} {trend(values)}" for name, values in (("reward", run.reward), ("gold", run.gold)) if len(values)]
    return (
        f"{run.name} over KL: training {' and '.join(lines)}. Log-odds left after audits: {left or 'none yet'}.{places}"
    )


def comparisons_svg(comparisons: Sequence[drawings.Comparison]) -> Markup:
    rows = "; ".join(f"{one.name} against {one.against} {show(one.rate)}" for one in comparisons)
    return Markup(drawings.to_svg(drawings.draw_comparisons(comparisons), f"Win rates with intervals: {rows}"))


def crew_svg(crew: Crew) -> Markup:
    rows = "; ".join(f"{one.name} {duration(one.seconds)}, {one.reported}" for one in crew.workers)
    return Markup(
        drawings.to_svg(drawings.draw_workers(crew.workers), f"Time of those that shared {crew.title}: {rows}")
    )


def trend(values: Sequence[float | None]) -> str:
    """What a line does, smoothed: rises, falls, turns, or stays."""
    width = drawings.smoothing(len(values))
    known = [float(value) for value in drawings.smoothed(values, width) if math.isfinite(value)]
    if not known:
        return "was not measured"
    first, last = ends(values)
    low, high = min(known), max(known)
    clearly = 0.25 * (high - low)
    if high - low <= 0.05 * max(abs(low), abs(high)):
        return f"stays near {show(last)}"
    if high - max(first, last) > clearly:
        return f"rises from {show(first)} to {show(high)} and falls to {show(last)}"
    if min(first, last) - low > clearly:
        return f"falls from {show(first)} to {show(low)} and rises to {show(last)}"
    return f"{'rises' if last > first else 'falls'} from {show(first)} to {show(last)}"


def ends(values: Sequence[float | None]) -> tuple[float, float]:
    """Means of a line's first and last tenth, of three values at least: one batch is noise. Of a short line the first and the last."""
    known = [float(value) for value in values if value is not None and math.isfinite(value)] or [math.nan]
    width = drawings.smoothing(len(known))
    return sum(known[:width]) / width, sum(known[-width:]) / width


def run_words(run: drawings.CliffRun) -> str:
    """What happened to a run on its training prompts, in words, from its own metrics."""
    words = f"{run.name}: the training proxy {trend(run.proxy)}"
    if drawings.gold_peak(run) is not None:
        words += f", training gold {trend(run.gold)}"
    fall = " It went over the cliff: gold ends clearly below its peak." if drawings.fell(run) else ""
    return (
        f"{words}; the run ended after {show(run.steps[-1] + 1)} steps at a KL of {show(ends(run.kl)[1])} nats (each a mean of its first "
        f"or last steps).{fall}"
    )
