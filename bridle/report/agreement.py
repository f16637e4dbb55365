"""The page of a study's labels, and the same in lines."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from bridle.core.files import write_text
from bridle.core.text import visible
from bridle.feedback.quality.agreement import Estimate
from bridle.feedback.quality.conditions import Condition
from bridle.feedback.quality.people import Person
from bridle.feedback.quality.summary import Quality
from bridle.maths.statistics import Proportion
from bridle.report.drawings import Share, draw_shares, to_svg
from bridle.report.page import Cell, Column, Fact, Table, environment, show

MOST_DRAWN = 40  # people
LEVELS = {
    "raw": ("raw agreement", "how often another judgement of the same two answers says the same"),
    "nominal": ("alpha, nominal", "what is left of it when chance is taken off; every difference is a whole one"),
    "ordinal": ("alpha, ordinal", "the same, a tie lying between the two sides by how often each is said"),
    "interval": ("alpha, interval", "the same, a tie being half a difference"),
}
COLUMNS = (
    Column("name"),
    Column("judgements"),
    Column("skill", "chance of the right answer where there is a better one, ties left out, sides evened out.", 2),
    Column("from", "and to: the 95% interval of the skill.", 2),
    Column("to", "", 2),
    Column("weight", "of this person's judgements in training; the mean is 1, a coin's is 0.", 2),
    Column("left", "share of comparisons without a tie in which the left, or first, was chosen.", 2),
    Column("ties", "share of comparisons called equal.", 2),
    Column("seconds", "median for a judgement.", 1),
    Column("gold", "right on items whose answer is known.", 2),
    Column("others", "right by what all others say; where these are few it is too low.", 2),
    Column("cannot judge"),
    Column("skipped"),
)


def write_agreement_page(quality: Quality, study: str | None, path: Path) -> None:
    """Renders to `path`, all or nothing."""
    most = sorted(quality.people, key=lambda one: -one.judgements)[:MOST_DRAWN]
    drawn = [one for one in quality.people if one in most]  # in the order of their names
    skills = [as_share(one.labeler, one.skill) for one in drawn]
    sides = [as_share(one.labeler, one.left) for one in drawn if one.left is not None]
    known = {
        "quality": quality,
        "title": "The labels" if study is None else f"The labels of study {study}",
        "lead": opening(quality),
        "headline": main_facts(quality),
        "people": people_table(drawn),
        "more": len(quality.people) - len(drawn),
        "agreement": agreement_table(quality),
        "levels": LEVELS.values(),
        "skill_svg": shares_svg("Skill", skills, "share of right answers"),
        "side_svg": shares_svg("Side", sides, "share of what was shown first"),
        "topic_svg": conditions_svg("Right by topic", quality.topics),
        "position_svg": conditions_svg("Right by position in a sitting", quality.positions),
    }
    write_text(path, visible(environment().get_template("agreement.html").render(known)))


def quality_lines(quality: Quality) -> list[str]:
    """For a terminal: the numbers, the people, whom to look at."""
    lines = [opening(quality), *quality.notes, ""]
    lines += [f"{fact.label:<24} {show(fact.value):>6}  {fact.hint}" for fact in main_facts(quality)]
    rows = people_table(quality.people).rows
    cells = [[show(cell, column.decimals) for cell, column in zip(row, COLUMNS, strict=True)] for row in rows]
    cells = [[column.name for column in COLUMNS], *cells]
    widths = [max(len(row[n]) for row in cells) for n in range(len(COLUMNS))]
    lines.append("")
    for name, *numbers in cells:
        padded = (f"{number:>{width}}" for number, width in zip(numbers, widths[1:], strict=True))
        lines.append("  ".join([f"{name:<{widths[0]}}", *padded]))
    lines += ["", *(f"{one.labeler}, {one.what}: {one.evidence}" for one in quality.remarks)]
    return lines + [f"left out: {one['labeler']} ({one['reason']}, by {one['by']})" for one in quality.left_out]


def opening(quality: Quality) -> str:
    several = (
        f"{show(quality.several)} of them judged by several" if quality.several else "none of which two people judged"
    )
    return f"{show(len(quality.people))} people gave {show(quality.judgements)} judgements of {show(quality.items)} items, {several}."


def limits(one: Estimate | Proportion | None) -> str:
    """Its 95% interval, or why there is none."""
    if one is None or one.low is None or one.high is None:
        return one.why if isinstance(one, Estimate) else "nothing to measure it by"
    return f"between {show(one.low, 2)} and {show(one.high, 2)}"


def value_of(one: Estimate | Proportion | None) -> float | None:
    return one.rate if isinstance(one, Proportion) else None if one is None else one.value


def main_facts(quality: Quality) -> list[Fact]:
    measured: dict[str, Estimate | Proportion | None] = {
        LEVELS[name][0]: quality.agreement[name] for name in ("raw", "nominal")
    }
    measured |= {"ties": quality.ties, "chose the left or first": quality.left}
    measured |= {} if quality.gold is None else {"right on gold items": quality.gold}
    facts = [Fact(label, value_of(one), limits(one)) for label, one in measured.items()]
    if (speed := quality.speed) is not None:
        middle = f"half of them between {show(speed.lower, 1)} and {show(speed.upper, 1)} s"
        facts.append(Fact("seconds a judgement", speed.median, middle))
    return facts


def people_table(people: Sequence[Person]) -> Table:
    rows: list[list[Cell]] = [
        [
            *(one.labeler, one.judgements, one.skill.value, one.skill.low, one.skill.high, one.weight),
            *(value_of(one.left), value_of(one.ties), None if one.speed is None else one.speed.median),
            *(value_of(one.gold), value_of(one.against), one.cannot_judge, one.skip),
        ]
        for one in people
    ]
    reasons = sorted({one.skill.why for one in people if one.skill.why})
    words = "A dash is what nobody can know." + "".join(f" No skill, or no interval: {why}." for why in reasons)
    return Table("Everybody", COLUMNS, rows, words)


def agreement_table(quality: Quality) -> Table:
    columns = [Column("measure"), *(Column(name, "", 3) for name in ("value", "from", "to"))]
    found = [(label, quality.agreement[name]) for name, (label, _) in LEVELS.items()]
    rows: list[list[Cell]] = [[label, one.value, one.low, one.high] for label, one in found]
    reasons = sorted({one.why for _, one in found if one.why})
    words = "1 is perfect agreement; alpha is 0 where people agree as often as chance would have it. Intervals: 95%, over items."
    return Table("How far people agree", columns, rows, words + "".join(f" A dash: {why}." for why in reasons))


def as_share(name: str, one: Estimate | Proportion | None) -> Share:
    return Share(name, value_of(one), *((None, None) if one is None else (one.low, one.high)))


def shares_svg(
    title: str, shares: Sequence[Share], x_label: str, middle: float = 0.5, zoomed: bool = False
) -> Markup | None:
    """None of no shares."""
    words = "; ".join(f"{one.name} {show(one.rate)}, {show(one.low)} to {show(one.high)}" for one in shares)
    label = f"{title}, with 95% intervals: {words}"
    return Markup(to_svg(draw_shares(shares, x_label, middle, zoomed), label)) if shares else None


def conditions_svg(title: str, conditions: Sequence[Condition]) -> Markup | None:
    """Beside their mean, on a scale of its own: what differs between conditions is small beside what differs between people."""
    shares = [as_share(one.name, one.right) for one in conditions]
    mean = sum(one.right.rate * one.right.n for one in conditions) / max(1, sum(one.right.n for one in conditions))
    return shares_svg(title, shares, "share of judgements that are right", mean, zoomed=True)
