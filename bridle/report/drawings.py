"""The report's drawings: what is to be drawn, drawn by matplotlib, and handed out as SVG text to stand inside a page.

An SVG names its colours as CSS variables with a fallback (`var(--proxy, #d55e00)`), so the same figure is light or dark
with its page, and right by itself. Text stays text. The same data gives the same bytes.
Colours are Okabe and Ito's, told apart with any kind of colour blindness; line style and labels give the same again.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from bridle.core.files import write_text
from bridle.core.text import beginning_of, one_line, visible
from bridle.guard.overoptimisation import GainCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Value = float | None  # None and nan: not measured, a gap in the line
Measured = tuple[Value, Value, Value]  # a value, and its 95% interval from low to high

INK, QUIET, GRID, GOLD, PROXY, AUDITED = "#1f2328", "#59636e", "#d9dee3", "#0072b2", "#d55e00", "#009e73"
COLOURS = (GOLD, PROXY, AUDITED, "#cc79a7", "#e69f00", "#56b4e9")
VARIABLES = {INK: "ink", QUIET: "quiet", GRID: "grid", GOLD: "gold", PROXY: "proxy"} | {
    colour: f"series-{number}" for number, colour in enumerate(COLOURS[2:], start=3)
}
STYLES = ("-", "--", "-.", ":")
MARKERS = ("s", "o", "^", "D", "v", "P", "X", "<", ">", "*")
SIZE = (4.7, 3.3)  # inches: small enough to be read on a phone without shrinking its letters away
CLEARLY = 1.0  # points of gold: a mean over three steps of some hundred answers errs by about .2
SMOOTH = 3  # rollout steps in a running mean
SMOOTHED_FROM = 8  # points: a shorter line is drawn as it is
LONGEST_NAME, LONGEST_LABEL = 60, 4_000  # characters: of a text in a drawing, of the drawing's words
MOST_POINTS = 400  # a longer series is drawn as means of equal blocks
NATS = (0.1, 0.25, 1, 2, 4, 9, 16, 25, 49, 100, 225, 400, 900)  # marks of an axis of √KL


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a curve; a single point is drawn as a dot."""

    name: str
    x: Sequence[Value]
    y: Sequence[Value]


@dataclass(frozen=True, slots=True)
class Curve:
    """Lines over one x axis: a loss over steps, gold over KL. `words` are how to read it."""

    x_label: str
    y_label: str
    series: Sequence[Series]
    title: str = ""
    words: str = ""


@dataclass(frozen=True, slots=True)
class CliffRun:
    """A run of reinforcement learning, measured as it went on training prompts; the first entry is the model it set out from.

    `proxy` in sd of SFT's answers, `gold` in points (empty where nobody knows it), `kl` in nats per answer.
    """

    name: str
    bridled: bool
    steps: Sequence[int]
    proxy: Sequence[Value]
    gold: Sequence[Value]
    kl: Sequence[Value]


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured on held-out prompts: a mean score and the KL in nats an answer, each with the half-width of its 95% interval."""

    name: str
    kl: float
    score: float
    kl_half: float = 0.0
    score_half: float = 0.0


@dataclass(frozen=True, slots=True)
class Frontier:
    """What each way to use the comparisons gains, and how far it goes: `lines` of points that all set out from `origin`."""

    y_label: str
    origin: Point
    lines: Sequence[Sequence[Point]]
    more: int = 0  # that were evaluated, and are not drawn


@dataclass(frozen=True, slots=True)
class Comparison:
    """`name` wins against `against` at `rate`, between `low` and `high`, on `n` prompts, judged by `by`."""

    name: str
    against: str
    rate: Value
    low: Value
    high: Value
    n: int
    by: str


@dataclass(frozen=True, slots=True)
class Share:
    """A share between `low` and `high` (None: nobody knows)."""

    name: str
    rate: Value
    low: Value
    high: Value


@dataclass(frozen=True, slots=True)
class WorkerTime:
    """Seconds of one of those that shared a stage, and what of them, by word; what is left of them is all else."""

    name: str
    seconds: float
    words: Mapping[str, float]
    reported: str  # at the bar's end


@dataclass(frozen=True, slots=True)
class Audit:
    """A checkpoint against the reference, in log-odds of the better answer: what the reward model `stated`, what audits `left` of that, and
    what the comparisons with it came to by themselves (`observed`); `kl` in nats."""

    step: int
    kl: Value
    stated: Value
    left: Measured
    observed: Measured


@dataclass(frozen=True, slots=True)
class GuardedRun:
    """A run that was watched: the reward of that name and unit, and `gold` in points (empty where nobody knows it), at the KL of each
    logged step; the audits, and the curve through them; (step, KL) of the checkpoint that was `kept`, and of where it was `stopped`;
    `unguarded`: the same run as it went on where no guard stopped it."""

    name: str
    kl: Sequence[Value]
    reward: Sequence[Value]
    gold: Sequence[Value]
    reward_name: str
    audits: Sequence[Audit]
    curve: GainCurve | None = None
    kept: tuple[int, Value] | None = None
    stopped: tuple[int, Value] | None = None
    unguarded: GuardedRun | None = None

    @property
    def marks(self) -> list[tuple[str, float]]:
        """Checkpoints that are marked, in words, and their √KL; nan where it was not measured."""
        named = {"stopped": self.stopped, "kept" if self.stopped else "best so far": self.kept}
        return [(f"{words}: step {at[0]}", float(root([at[1]])[0])) for words, at in named.items() if at is not None]


def gold_peak(run: CliffRun) -> int | None:
    """Index of the run's highest gold, smoothed; None where gold is unknown."""
    gold = smoothed(run.gold)
    return int(np.nanargmax(gold)) if np.isfinite(gold).any() else None


def fell(run: CliffRun) -> bool:
    """Whether the run went over the cliff: its gold, smoothed, rose first and ends clearly below its peak."""
    gold = smoothed(run.gold)
    known = gold[np.isfinite(gold)]
    return known.size > 2 and bool(known[0] < known.max() and known[-1] < known.max() - CLEARLY)


def smoothed(values: Sequence[Value], width: int = SMOOTH) -> NDArray[np.float64]:
    """Running means over `width` values around each, of those that are there at the ends: the last one alone is noise too."""
    numbers, r = _numbers(values), width // 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a mean of nothing measured stays nan
        return np.array([np.nanmean(numbers[max(0, i - r) : i + r + 1]) for i in range(numbers.size)])


def draw_curve(curve: Curve) -> Figure:
    with _style():
        figure, axes = _axes(curve.x_label, curve.y_label)
        for number, series in enumerate(curve.series):
            block = -(-len(series.x) // MOST_POINTS)
            x, y = _block_means(series.x, block), _block_means(series.y, block)
            colour = COLOURS[number % len(COLOURS)]
            style = STYLES[number // len(COLOURS) % len(STYLES)] if y.size > 1 else "none"
            width = smoothing(y.size)
            name = series.name if block <= 1 else f"{series.name} (means of {block})"
            if width > 1:  # the line itself stays behind, pale
                axes.plot(x, y, linestyle=style, color=colour, alpha=0.3, linewidth=1)
            mark = "o" if y.size < SMOOTHED_FROM else ""
            axes.plot(x, smoothed(list(y), width), linestyle=style, color=colour, label=name, marker=mark, markersize=5)
        if len(curve.series) > 1 or any(len(series.x) > MOST_POINTS for series in curve.series):
            _legend(axes)
        return figure


def smoothing(points: int) -> int:
    """How many points a running mean of a line takes: an odd number, about a tenth of them; 1 for a short line."""
    return 1 if points < SMOOTHED_FROM else max(SMOOTH, points // 10 | 1)


def draw_frontier(frontier: Frontier) -> Figure:
    """Mean score over √KL (Gao 2022, arxiv.org/abs/2210.10760), marked in nats, with 95% intervals."""
    with _style():
        figure, axes = _axes("KL from SFT, nats per answer (√ scale)", frontier.y_label)
        origin = frontier.origin
        axes.axhline(origin.score, color=QUIET, linewidth=0.8, linestyle=":", zorder=1)
        for number, line in enumerate([[origin], *frontier.lines]):
            colour = COLOURS[(number - 1) % len(COLOURS)] if number else INK
            x, y = root([point.kl for point in line]), [point.score for point in line]
            axes.plot([0.0, *x], [origin.score, *y], color=colour, linewidth=1, alpha=0.45)
            for point, across in zip(line, x, strict=True):
                low, high = root([point.kl - point.kl_half, point.kl + point.kl_half])
                axes.plot([low, high], [point.score, point.score], color=colour)
                axes.plot([across] * 2, [point.score - point.score_half, point.score + point.score_half], color=colour)
            name = ", ".join([line[0].name, *(point.name.rpartition("-")[2] for point in line[1:])])  # best-of-2, 4
            axes.plot(x, y, MARKERS[number % len(MARKERS)], color=colour, markersize=7, label=name)
        _mark_nats(axes)
        _legend(axes)
        return figure


def draw_cliff(runs: Sequence[CliffRun], against: Literal["steps", "kl"]) -> Figure:
    """Proxy and gold of every run, each as its change since the run set out: they start together, then part.

    Thick lines are runs without the bridle, thin ones runs with it; dashes are the proxy, whole lines gold.
    """
    with _style():
        across = "rollout step, training prompts" if against == "steps" else "training KL, nats per answer (√ scale)"
        figure, axes = _axes(across, "change since the first steps")
        figure.set_size_inches(SIZE[0], 3.9)
        axes.axhline(0, color=QUIET, linewidth=0.8, zorder=1)
        for run in sorted(runs, key=lambda run: run.bridled):
            _draw_run(axes, run, against)
        if against == "kl":
            _mark_nats(axes)
        _legend(axes)
        return figure


def draw_guarded(run: GuardedRun) -> Figure:
    """Over √KL what rises in training, and below it, where there are any, what the audits found of the reward model's promise."""
    from matplotlib.figure import Figure

    panels = (2, 3)[: 2 if run.audits else 1]
    with _style():
        figure = Figure(figsize=(SIZE[0], 0.7 + sum(panels)), layout="constrained")
        drawn: list[Axes] = list(figure.subplots(len(panels), sharex=True, height_ratios=panels, squeeze=False)[:, 0])
        _dress(drawn[0], "", "change, sd and points" if len(run.gold) else run.reward_name)
        if run.unguarded is not None:
            _draw_training(drawn[0], run.unguarded, guarded=False)
        _draw_training(drawn[0], run)
        if run.audits:
            _dress(drawn[1], "", "log-odds of winning")
            _draw_audits(drawn[1], run)
        for axes in drawn:
            for words, x in run.marks:
                if np.isfinite(x):
                    style = "-." if "stopped" in words else ":"
                    axes.axvline(x, color=INK, linewidth=1.2, linestyle=style, label=words, zorder=1)
        drawn[-1].set_xlabel("KL from the reference, nats per answer (√ scale)")
        _mark_nats(*reversed(drawn))
        _legend(*drawn)
        return figure


def draw_comparisons(comparisons: Sequence[Comparison]) -> Figure:
    """Win rates as dots with their intervals, one to a row, beside the line at one half."""
    shares = [Share(f"{one.name} against {one.against}", one.rate, one.low, one.high) for one in comparisons]
    return draw_shares(shares, "share of prompts won")


def draw_shares(shares: Sequence[Share], x_label: str, middle: float = 0.5, zoomed: bool = False) -> Figure:
    """Shares as dots with their intervals, one to a row, each named, beside a line in the middle; its colour says on which side it is.
    `zoomed`: from the tenth below the lowest to the tenth above the highest."""
    left, right = (min(one.low or 0.0 for one in shares), max(one.high or 1.0 for one in shares)) if zoomed else (0, 1)
    left, right = np.floor(10 * left) / 10, np.ceil(10 * right) / 10
    span = right - left
    with _style():
        figure, axes = _axes(x_label, "")
        figure.set_size_inches(SIZE[0], 0.8 + 0.58 * len(shares))
        axes.axvline(middle, color=QUIET, linewidth=1, linestyle="--", zorder=1)
        for row, one in enumerate(shares):
            rate, low, high = _numbers([one.rate, one.low, one.high])
            colour = GOLD if low > middle else PROXY if high < middle else QUIET
            axes.plot([low, high], [row, row], color=colour, linewidth=3, solid_capstyle="round", clip_on=False)
            axes.plot([rate], [row], "o", color=colour, markersize=8, clip_on=False)
            axes.text(left + 0.01 * span, row - 0.3, one.name, va="center", fontsize=10, color=INK)
            number = f"{rate:.2f}" if np.isfinite(rate) else "–"
            axes.text(left + 0.99 * span, row - 0.3, number, va="center", ha="right", color=INK)
        marks = np.linspace(left, right, 5 if span == 1 else round(10 * span) + 1)
        axes.set(xlim=(left, right), ylim=(len(shares) - 0.4, -0.7), yticks=[], xticks=marks)
        axes.spines["left"].set_visible(False)
        axes.grid(False)
        return figure


def draw_workers(workers: Sequence[WorkerTime]) -> Figure:
    """A bar for each, as long as its time, cut up by what took it; where it waited it is faint."""
    words = list(dict.fromkeys(word for one in workers for word in one.words))
    colours = {"wait": GRID, "all else": QUIET} | dict(zip([w for w in words if w != "wait"], COLOURS, strict=False))
    with _style():
        figure, axes = _axes("seconds", "")
        figure.set_size_inches(SIZE[0], 1.3 + 0.58 * len(workers))
        for row, one in enumerate(workers):
            begin, rest = 0.0, max(0.0, one.seconds - sum(one.words.values()))
            for word, seconds in {**one.words, "all else": rest}.items():
                axes.barh(row, seconds, 0.36, begin, color=colours[word])
                begin += seconds
            axes.text(0, row - 0.36, one.name, va="center", fontsize=10, color=INK)
            axes.text(
                1,
                row - 0.36,
                one.reported,
                transform=axes.get_yaxis_transform(),
                va="center",
                ha="right",
                fontsize=9,
                color=INK,
            )
        for word in [*words, "all else"]:
            axes.plot([], [], "s", color=colours[word], label=word)
        axes.set(ylim=(len(workers) - 0.6, -0.7), yticks=[])
        axes.grid(False, axis="y")
        _legend(axes, columns=4)
        return figure


def to_svg(figure: Figure, label: str) -> str:
    """The figure as an `<svg>` element to stand inside HTML5; `label` says in words what it shows."""
    from matplotlib.text import Text

    for drawn in figure.findobj(Text):
        if (name := drawn_name(drawn.get_text())) != drawn.get_text():
            drawn.set_text(name)
    label = beginning_of(label, LONGEST_LABEL)
    with _style(hashsalt=visible(label)):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    written = re.search(r'<svg[^>]*viewBox="([^"]*)"[^>]*>(.*)</svg>', buffer.getvalue(), flags=re.DOTALL)
    assert written is not None, "matplotlib wrote no <svg> element"
    viewbox, body = written.groups()
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # they repeat from figure to figure; nothing refers to them
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var(--{variable}, {colour})")
    return f'<svg role="img" aria-label="{html.escape(label)}" viewBox="{viewbox}">{body.strip()}</svg>'


def save_svg(figure: Figure, label: str, path: Path) -> None:
    """The same as a file by itself, whole or not at all: on white, with plain colours, for programs that know no CSS variables."""
    drawn = to_svg(figure, label)
    for colour, variable in VARIABLES.items():
        drawn = drawn.replace(f"var(--{variable}, {colour})", colour)
    opening, inside = drawn.split(">", 1)
    opening += ' xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" stroke-linejoin="round"'
    write_text(path, visible(f'{opening}><rect width="100%" height="100%" fill="white"/>{inside}\n'))


def drawn_name(text: str) -> str:
    """As it stands in a drawing: on one line, not too long for it, and no half of a character, which matplotlib does not take."""
    line = one_line(text)
    return line if len(line) <= LONGEST_NAME else f"{line[: LONGEST_NAME - 1]}…"


def save_png(figure: Figure, path: Path, dpi: int = 200) -> None:
    with _style():
        figure.savefig(path, format="png", dpi=dpi, facecolor="white")


def _draw_run(axes: Axes, run: CliffRun, against: Literal["steps", "kl"]) -> None:
    x = _numbers(run.steps) if against == "steps" else root(run.kl)
    width, mark, size = (1.4, "D", 7) if run.bridled else (2.6, "o", 6.6)
    proxy, gold = (_since_start(smoothed(values)) for values in (run.proxy, run.gold))
    for name, values, line, style, colour in (
        ("proxy", run.proxy, proxy, "--", PROXY),
        ("gold", run.gold, gold, "-", GOLD),
    ):
        if np.isfinite(line).any():
            axes.plot(x, _numbers(values) - (smoothed(values) - line), style, color=colour, linewidth=1, alpha=0.3)
            axes.plot(x, line, style, color=colour, linewidth=width, label=f"training {name}, {run.name}")
            axes.plot(x[-1:], line[-1:], mark, color=colour, markersize=size)
    if run.bridled:
        axes.axvline(x[-1], color=INK, linewidth=0.8, linestyle="-.", label="where the bridled run ends")
    peak = gold_peak(run)
    if peak is not None and not run.bridled and fell(run) and np.isfinite(x[peak]):
        axes.fill_between(x, gold, proxy, where=np.arange(x.size) >= peak, color=PROXY, alpha=0.13, linewidth=0)
        axes.axvline(x[peak], color=QUIET, linewidth=1.2, linestyle=":", label="where gold turns")
        foot, transform = (x[peak], 0.05), axes.get_xaxis_transform()
        side, gap = ("right", -6) if x[peak] > 0.3 * np.nanmax(x) else ("left", 6)  # lines fall to the right of it
        axes.annotate("the cliff", foot, (gap, 0), transform, "offset points", ha=side, fontweight="bold", color=INK)


def _draw_training(axes: Axes, run: GuardedRun, guarded: bool = True) -> None:
    block = -(-len(run.kl) // MOST_POINTS)
    x = root(_block_means(run.kl, block).tolist())
    for values, name, style, colour in (
        (run.reward, f"training {run.reward_name}" if guarded else "proxy, unguarded", "--" if guarded else ":", PROXY),
        (run.gold, "training gold, points" if guarded else "gold, unguarded", "-" if guarded else ":", GOLD),
    ):
        if len(values):
            raw = _block_means(values, block)
            line = smoothed(raw.tolist(), smoothing(raw.size))
            start = line - _since_start(line) if len(run.gold) else np.zeros_like(line)
            axes.plot(x, raw - start, style, color=colour, linewidth=1, alpha=0.3)
            axes.plot(x, line - start, style, color=colour, linewidth=2, label=name)


def _draw_audits(axes: Axes, run: GuardedRun) -> None:
    axes.axhline(0, color=QUIET, linewidth=0.8, linestyle=":", zorder=1)
    x = root([one.kl for one in run.audits])
    aside = 0.015 * np.nanmax(x, initial=0.5)  # what one audit found by itself stands beside what all leave
    for measured, across, mark, colour, width, name in (
        ([one.observed for one in run.audits], x + aside, "x", QUIET, 1, "comparisons of one audit"),
        ([one.left for one in run.audits], x, "o", AUDITED, 2.5, "left of it after all audits"),
    ):
        for place, (_, low, high) in zip(across, measured, strict=True):
            axes.plot([place] * 2, _numbers([low, high]), color=colour, linewidth=width)
        middle = _numbers([one for one, _, _ in measured])
        axes.plot(across, middle, mark, color=colour, markersize=7, label=name)
    stated = _numbers([one.stated for one in run.audits])
    axes.plot(x, stated, "--^", color=PROXY, markersize=5, linewidth=1.2, label="stated by the reward model")
    if run.curve is not None:
        along = np.linspace(0, np.nanmax(x), 200)
        axes.plot(along, run.curve.gain(along), color=AUDITED, linewidth=1.4, label="d (a − b log d), d = √KL")
    if run.kept is not None:
        best = [one.left[0] for one in run.audits if one.step == run.kept[0]][:1]
        axes.plot(root([run.kept[1]] * len(best)), _numbers(best), "o", color=INK, markersize=14, fillstyle="none")


@contextmanager
def _style(hashsalt: str = "") -> Iterator[None]:
    import matplotlib

    with (
        warnings.catch_warnings(),
        matplotlib.rc_context(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": f"bridle {hashsalt}",
                "text.parse_math": False,  # a dollar sign in a name is a dollar sign
                "font.family": "DejaVu Sans",  # comes with matplotlib: the same layout everywhere
                "font.size": 10.5,
            }
        ),
    ):
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing from font"
        )  # the reader's browser has its own fonts
        warnings.filterwarnings(
            "ignore", message="constrained_layout not applied"
        )  # very many names: drawn as they fit
        yield


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    _dress(axes, x_label, y_label)
    return figure, axes


def _dress(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, color=QUIET)
    axes.set_ylabel(y_label, color=QUIET)
    axes.tick_params(colors=QUIET, length=0)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def _legend(*panels: Axes, columns: int = 0) -> None:
    figure = panels[0].get_figure()
    assert figure is not None
    named = {str(line.get_label()): line for axes in panels for line in axes.lines}  # each name once
    names = [name for name in named if not name.startswith("_child")]  # matplotlib's own, of what needs no name
    lines = [named[name] for name in names]
    columns = columns or (2 if max(map(len, names), default=0) <= 30 else 1)
    figure.legend(lines, names, loc="outside upper left", ncols=columns, frameon=False, labelcolor=INK, fontsize=9)


def _mark_nats(axes: Axes, *shared: Axes) -> None:
    """Marks an axis of √KL in nats, where they do not crowd; `shared`: other panels that have the same axis."""
    farthest = max(0.5, *(float(panel.dataLim.x1) for panel in (axes, *shared)))
    marks = [0.0]
    for nats in NATS:
        if marks[-1] ** 0.5 + 0.11 * farthest < nats**0.5 <= 1.02 * farthest:
            marks.append(nats)
    axes.set_xticks(root(marks), [f"{nats:g}" for nats in marks])
    axes.set_xlim(-0.03 * farthest, 1.06 * farthest)


def root(nats: Sequence[Value]) -> NDArray[np.float64]:
    """√KL; an estimate below 0 is 0."""
    return np.sqrt(np.maximum(_numbers(nats), 0.0))


def _numbers(values: Sequence[Value]) -> NDArray[np.float64]:
    """Values [n] with nan for what is None or infinite."""
    numbers = np.array(values, dtype=np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _since_start(values: Sequence[Value] | NDArray[np.float64]) -> NDArray[np.float64]:
    numbers = _numbers(list(values))
    known = numbers[np.isfinite(numbers)]
    return numbers - known[0] if known.size else numbers


def _block_means(values: Sequence[Value], block: int) -> NDArray[np.float64]:
    """Means of blocks of `block` values, the last one shorter; a block that holds nothing measured stays nan."""
    numbers = _numbers(values)
    if block <= 1:
        return numbers
    starts = np.arange(0, numbers.size, block)
    count = np.add.reduceat(np.isfinite(numbers).astype(float), starts)
    total = np.add.reduceat(np.nan_to_num(numbers), starts)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
