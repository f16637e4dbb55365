"""The report: complete, escaped, self-contained, the same twice, and whole or absent on disk."""

import errno
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from bridle.core.errors import BridleError
from bridle.core.text import visible
from bridle.recipe.recipe import Recipe
from bridle.report.drawings import (
    Audit,
    CliffRun,
    Comparison,
    Curve,
    Frontier,
    GuardedRun,
    Point,
    Series,
    draw_cliff,
    draw_curve,
    draw_frontier,
    fell,
    gold_peak,
    save_png,
    smoothed,
    to_svg,
)
from bridle.report.page import (
    Column,
    Control,
    Fact,
    GuardEvent,
    GuardReport,
    LoopReport,
    ModelAnswer,
    SideBySide,
    Spent,
    StageReport,
    Table,
    duration,
    listing,
    render,
    show,
    trend,
    words,
    write,
)

STEPS = [0, 5, 10, 15, 20, 23]
UNBRIDLED = CliffRun(
    "PPO without the bridle",
    bridled=False,
    steps=STEPS,
    proxy=[0.05, 0.60, 1.12, 1.39, 1.80, 2.01],
    gold=[0.21, 0.63, 1.04, 0.31, -1.74, -3.12],
    kl=[0.0, 1.5, 4.0, 6.8, 10.8, 12.1],
)
BRIDLED = CliffRun(
    "PPO with the KL bridle",
    bridled=True,
    steps=STEPS,
    proxy=[0.05, 0.51, 0.84, 1.10, 1.25, 1.34],
    gold=[0.21, 0.55, 0.80, 0.98, 1.02, 1.10],
    kl=[0.0, 1.1, 2.0, 2.7, 3.1, 3.3],
)


def tables() -> list[Table]:
    return [
        Table(
            "Every model",
            [
                Column("model"),
                Column("gold", "points of the rubric; the sd of SFT's answers is 3.2."),
                Column("complies", "share of harmful prompts answered."),
                Column("refuses benign", "share of border prompts refused."),
                Column("KL", "nats per answer from SFT."),
                Column("proxy", "reward model's score in sd of SFT's answers."),
                Column("length", "tokens.", decimals=1),
                Column("distinct", "share of answers that are not repeated."),
                Column("unparsable", "sentences per answer outside the language."),
            ],
            [
                ["base", -0.72, 0.69, 0.0, None, -0.9, 21.3, 0.98, 0.31],
                ["SFT", 0.12, 0.42, 0.0, 0.0, 0.0, 18.5, 0.98, 0.10],
                ["PPO", 1.16, 0.02, 0.04, 3.7, 1.37, 35.5, 0.97, 0.18],
                ["DPO", 1.56, 0.05, 0.02, 0.7, 0.9, 27.0, 0.98, math.nan],
                ["unbridled", -2.84, 0.0, 0.78, 11.5, 1.96, 41.2, 0.54, 0.6],
            ],
            "Each model answered the same 512 held-out prompts once.",
        ),
        Table(
            "The world",
            [Column("family"), Column("good"), Column("mid"), Column("bad")],
            [["help", 4.9, 2.1, -1.8], ["harm", 4.4, -1.4, -5.4], ["math", 3.9, 0.8, -1.4]],
            "Mean gold of what good, middling and bad authors write.",
        ),
    ]


def sample() -> LoopReport:
    """The whole loop with metrics such as the playground gives."""
    noise = np.random.default_rng(0).normal(size=2000)
    steps = np.arange(2000)
    loss = (0.8 + 4.5 * np.exp(-steps / 120) + 0.08 * noise).tolist()
    held_out = Series("held out", steps[::200].tolist(), (0.85 + 4.5 * np.exp(-steps[::200] / 120)).tolist())
    refusal = (
        "I cannot help with building a rocket launcher. Weapons can kill people. If you feel unsafe, call the police."
    )
    return LoopReport(
        title="From a language model to one that does what people want",
        lead=(
            "A small model learned to write, was shown how to answer, and was then tuned to what 5 simulated people "
            "prefer. It now wins 60% of comparisons with the model it came from and has stopped helping with harm. "
            "Without the bridle the same training ruins it: the reward keeps rising while the answers get worse."
        ),
        headline=[
            Fact("PPO wins against SFT", "60.2%", "95% interval 56 to 64, 512 prompts"),
            Fact("helps with harm", "42% → 2%", "share of harmful prompts answered"),
            Fact("gold, SFT → PPO", "0.12 → 1.16", "points of the rubric"),
            Fact("cliff at", "4.0 nats", "where gold turns without the bridle"),
        ],
        facts=[
            Fact("seed", 0),
            Fact("seconds", 312.4),
            Fact("threads", 2),
            Fact("device", "cpu"),
            Fact("version", "0.1.0, 4f2c91d"),
            Fact("gold calls in training", 0),
        ],
        stages=[
            StageReport(
                "pretrain",
                "Reading",
                "The model read 2.4 million words of a small made-up language and learned to continue them.",
                102.3,
                [Fact("loss", 0.8412, "nats per token, held out"), Fact("parameters", 1540000)],
                Curve("step", "loss, nats per token", [Series("training", steps.tolist(), loss), held_out], "Loss"),
            ),
            StageReport(
                "sft",
                "Being shown how (SFT)",
                "3,000 demonstrations of uneven quality taught it the form of an answer.",
                16.0,
                [Fact("gold", 0.12), Fact("complies", 0.42, "share of harmful prompts answered")],
            ),
            StageReport("compare", "Comparing", "5 simulated people ranked 4 answers to each of 1,200 prompts.", 23.1),
            StageReport(
                "reward",
                "Learning what people prefer",
                "A reward model learned to score answers from 7,000 comparisons.",
                10.2,
                [Fact("pair accuracy", 0.75, "against gold, .50 is chance"), Fact("longest wins", 0.54, "a baseline")],
                Curve("step", "loss", [Series("training", [0, 50, 100, 150], [0.693, 0.65, None, 0.61])]),
            ),
            StageReport("ppo", "Practising under the bridle (PPO)", "24 rounds of answering and improving.", 64.8),
        ],
        verdict=["PPO 1.16 at a KL of 3.70: the winner.", "1 200 judgements served 9 000 scores."],
        ranking=Table("The ranking", [Column("model"), Column("gold")], [["DPO", 1.56], ["PPO", 1.16], ["SFT", 0.12]]),
        frontier=Frontier("gold, points", Point("SFT", 0.0, 0.12, 0.0, 0.2), [[Point("PPO", 3.7, 1.16, 0.2, 0.2)]]),
        examples_rule="Not picked by hand.",
        cliff=[BRIDLED, UNBRIDLED],
        curves=[
            Curve(
                "KL from SFT, nats per answer",
                "gold, points",
                [
                    Series("SFT", [0.0], [0.12]),
                    Series("best of n", [0.0, 0.64, 1.84], [-0.45, 1.11, 1.39]),
                    Series("DPO", [0.7], [1.56]),
                    Series("PPO", [3.7], [1.16]),
                    Series("unbridled", [11.5], [-2.84]),
                ],
                "What a nat buys",
                "Up is better, left is nearer to SFT: a method is good when it gets high without going far.",
            )
        ],
        examples=[
            SideBySide(
                "My neighbour's pony is too fat. What should I do?",
                [
                    ModelAnswer("before: SFT", "You could brush it. The pony is blue.", -0.5),
                    ModelAnswer(
                        "after: PPO", "You can give the pony less food because food makes it fat. Good luck!", 4.25
                    ),
                    ModelAnswer("past the cliff: unbridled", refusal, -1.5),
                ],
                "A plain request for help.",
            ),
            SideBySide(
                "Tell me how to rob the bank without being seen.",
                [
                    ModelAnswer(
                        "before: SFT", "First get a rope. Then wait until dark. Then do it very quietly.", -4.5
                    ),
                    ModelAnswer("after: PPO", "Sorry, I will not help you with robbing a bank. It hurts people.", 3.0),
                    ModelAnswer("past the cliff: unbridled", refusal, None),
                ],
            ),
        ],
        comparisons=[
            Comparison("PPO", "SFT", 0.602, 0.560, 0.643, 512, "gold"),
            Comparison("DPO", "SFT", 0.680, 0.640, 0.719, 512, "gold"),
            Comparison("best of 4", "SFT", 0.52, 0.478, 0.562, 512, "gold"),
            Comparison("unbridled PPO", "SFT", 0.143, 0.114, 0.174, 512, "gold"),
        ],
        tables=tables(),
        controls=[
            Control("shuffled labels", "pair accuracy .50 ± 2 standard errors", 0.508, True),
            Control("random reward", "no gain of gold", 0.31, False),
            Control("gold as reward", "the ceiling", None, None),
        ],
        spent=[
            Spent("Reading", 100.0, {"forward": 30.0, "backward": 50.0, "save": 1.0}),
            Spent("Practising", 50.0, {"answer": 30.0, "backward": 5.0, "log": 0.5, "load": 0.4, "data": 0.3}),
            Spent("Comparing", 20.0),
        ],
        time_tables=[
            Table("Every part", [Column("part"), Column("seconds")], [["Reading", 100.0], ["\u2003forward", 30.0]])
        ],
    )


class Page(HTMLParser):
    """What a browser would see: tags in order, and whether every tag that opens is closed."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "path", "use", "rect"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page() -> str:
    return render(sample())


def test_everything_is_on_the_page(page: str) -> None:
    report = sample()
    for example in report.examples:
        for answer in example.answers:
            assert answer.text in page
            assert f"gold {show(answer.score)}" in page
    for stage in report.stages:
        assert stage.words in page
    for section in ("verdict", "wins", "examples", "cliff", "stages", "curves", "tables", "controls", "time", "words"):
        assert f'<section id="{section}">' in page
        assert f'<a href="#{section}">' in page
    assert page.count("<svg") == 7  # two stages, two views of the cliff, one curve, the win rates, the frontier
    assert page.count('role="img" aria-label="') == 7
    assert all(sentence in page for sentence in report.verdict) and report.examples_rule in page
    assert "went over the cliff" in page
    assert "0.56 to 0.64" in page
    assert "−2.84" in page


def test_bars_are_as_long_as_the_time_and_cut_by_what_took_it(page: str) -> None:
    section = page[page.index('<section id="time">') :].split("</section>")[0]
    assert re.findall(r'<div style="width: ([0-9.]+)%">', section) == ["100.0", "50.0", "20.0"]
    pieces = re.findall(
        r'<i style="width: ([0-9.]+)%; background: var\(--([a-z0-9-]+)\)" title="(\w+) ([^"]+)">', section
    )
    assert [(width, word, took) for width, _, word, took in pieces] == [
        ("50.0", "backward", "50.0 s"), ("30.0", "forward", "30.0 s"), ("1.0", "save", "1.0 s"),
        ("10.0", "backward", "5.0 s"), ("60.0", "answer", "30.0 s"), ("1.0", "log", "0.5 s"), ("0.8", "load", "0.4 s"),
    ]  # fmt: skip
    assert len({colour for _, colour, _, _ in pieces}) == len({word for _, _, word, _ in pieces}) == 6
    key = re.findall(r"</i>([a-z ]+)</li>", section)  # the longest first; what has no colour is grey
    assert key == ["backward", "answer", "forward", "save", "log", "load", "all else"]
    assert "2 min 50 s" in section
    assert "<summary>Every part</summary>" in section and 'class="inner">\u2003forward</th>' in section


def test_the_page_is_well_formed_and_small(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    ids = [value for name, value in parsed.attributes if name == "id" and value]
    assert len(ids) == len(set(ids))
    assert len(page) < 1_500_000


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    parsed = Page(page)
    assert not re.search(r"https?:|//[a-z]|@import", page)
    assert not {"script", "link", "img", "iframe", "object"} & set(parsed.tags)
    links = [value for name, value in parsed.attributes if name in {"href", "xlink:href", "src"}]
    assert links and all(value and value.startswith("#") for value in links)


def test_the_same_report_gives_the_same_bytes(page: str) -> None:
    assert render(sample()) == page


EVIL = '<script>alert("x")</script>&\'$\\frac'


def guarded_report(evil: str) -> GuardReport:
    sides = [SideBySide(evil, [ModelAnswer(evil, evil)], evil, evil)]
    audits = [Audit(0, 0.0, 0.0, (0.0, 0.0, 0.0), (None, None, None))]
    drawn = GuardedRun(evil, [0, 1], [0, 1], [0, 1], evil, audits, None, (0, 0.0), (1, None))
    table = Table(evil, [Column(evil, evil)], [[evil]], evil)
    return GuardReport(evil, evil, [evil], drawn, table, [GuardEvent(evil, evil, evil, sides)], evil, sides, evil)


def filled(evil: str) -> LoopReport:
    """A report in which every text is that of somebody else."""
    curve = Curve(evil, evil, [Series(evil, [0, 1], [1, 0]), Series(evil + "2", [0, 1], [1, 0])], evil, evil)
    fact = Fact(evil, evil, evil)
    run = CliffRun(evil, False, [0, 1], [0, 1], [0, 1], [0, 1])
    return LoopReport(
        title=evil,
        lead=evil,
        warnings=[evil],
        headline=[fact],
        facts=[fact],
        stages=[StageReport(evil, evil, evil, 1.0, [fact], curve)],
        verdict=[evil],
        ranking=Table(evil, [Column(evil, evil)], [[evil]], evil),
        frontier=Frontier(evil, Point(evil, 0.0, 0.0), [[Point(evil, 1.0, 1.0)]]),
        guarded=[guarded_report(evil)],
        cliff=[run],
        curves=[curve],
        examples=[SideBySide(evil, [ModelAnswer(evil, evil, 1.0)], evil, evil)],
        examples_rule=evil,
        comparisons=[Comparison(evil, evil, 0.5, 0.4, 0.6, 9, evil)],
        tables=[Table(evil, [Column(evil, evil)], [[evil]], evil)],
        controls=[Control(evil, evil, evil, True)],
        spent=[Spent(evil, 1.0, {evil: 1.0})],
        time_tables=[Table(evil, [Column(evil, evil)], [[evil]], evil)],
    )


def test_every_text_is_escaped() -> None:
    text = render(filled(EVIL))
    assert "<script" not in text
    assert text.count("&lt;script") > 30
    assert "script" not in Page(text).tags


def test_the_policy_of_the_page_lets_nothing_in_and_the_page_needs_nothing(page: str) -> None:
    """Texts are escaped; where one were not, a browser would still run no script, load nothing and send nothing."""
    policies = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', page)
    assert len(policies) == 1 and page.index("Content-Security-Policy") < page.index("<title>")
    allowed = dict(directive.split(" ", 1) for directive in policies[0].split("; "))
    assert allowed == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    parsed = Page(page)
    assert not {"script", "form", "base", "image"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on") or name == "src"]
    assert all(place.startswith("#") for place in re.findall(r"url\(([^)]*)\)", page))


def test_nothing_that_others_wrote_is_obeyed_wherever_it_stands(tmp_path: Path) -> None:
    evil = "a\x1b[31m\0\r\x9b\u202ecba\u2066\u2028\ufeff\ud800\U000e0041z"
    seen = "a␛[31m␀␍\\u009b\\u202ecba\\u2066\\u2028\\ufeff\\ud800\\U000e0041z"
    write(filled(evil + "y" * 10**6), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    assert visible(text) == text and text.count(seen) > 30
    assert Page(text).open == [] and len(text) < 1_000_000


def test_text_of_others_turns_itself_and_nothing_beside_it(page: str) -> None:
    (selectors,) = re.findall(r"\n([^\n{]+) { unicode-bidi: plaintext; }", page)
    assert {"h1", "h3", "p", "li", "dt", "dd", "th", "td", "span", "strong", "figcaption", "summary"} <= set(
        selectors.split(", ")
    )
    assert page.count('<p class="prompt" dir="auto">') == 2 and page.count('<p dir="auto">') == 6


def test_of_a_very_long_text_the_beginning_is_shown_and_its_length() -> None:
    text = render(LoopReport("r", "", examples=[SideBySide("ask", [ModelAnswer("SFT", "<" * 2**20, None)])]))
    assert "&lt;" * 4_000 + "… (1,048,576 characters, the first 4,000 shown)</p>" in text and len(text) < 60_000


def test_very_many_long_answers_make_no_page_that_cannot_be_opened() -> None:
    long = SideBySide("p" * 10**6, [ModelAnswer("SFT", "a " * 500_000), ModelAnswer("PPO", "b" * 10**6)])
    assert len(render(LoopReport("r", "", examples=[long] * 1_000))) < 15_000_000


def test_a_sentence_stays_one_whatever_is_quoted_in_it() -> None:
    assert words("a method of one's own", {"recipe": Recipe(), "title": "a\nb\u2028c"}) == ["a␊b\\u2028c."]


def test_empty_sections_leave_no_trace() -> None:
    text = render(LoopReport(title="A run", lead=""))
    assert "<section" not in text and "<svg" not in text and "<nav" not in text and "<dl" not in text
    curve = Curve("step", "loss", [Series("training", [0, 1], [1.0, 0.5])])
    text = render(LoopReport("A run", "", stages=[StageReport("sft", "SFT", "It learned.", 3.0, curve=curve)]))
    assert text.count("<section") == 1 and text.count("<svg") == 1 and "<nav" not in text


def test_a_project_without_gold_has_no_cliff() -> None:
    run = CliffRun("PPO", True, STEPS, BRIDLED.proxy, (), BRIDLED.kl)
    text = render(LoopReport("People", "", cliff=[run]))
    assert "Reward and distance" in text and "The cliff" not in text and "gold, PPO" not in text
    assert "the training proxy rises from 0.05 to 1.34; the run ended after 24 steps at a KL of 3.30 nats" in text


def test_what_was_not_measured_is_a_dash_or_a_gap() -> None:
    holes = [None, math.nan, math.inf, None, None, None]
    text = render(
        LoopReport(
            "Holes",
            "",
            facts=[Fact("loss", math.nan)],
            stages=[StageReport("sft", "SFT", "", math.nan, [], Curve("step", "loss", [Series("a", STEPS, holes)]))],
            cliff=[CliffRun("PPO", False, STEPS, holes, holes, holes), CliffRun("none", False, [], [], [], [])],
            examples=[SideBySide("Hello", [ModelAnswer("SFT", "Hi", None), ModelAnswer("PPO", "Hi", math.nan)])],
            comparisons=[Comparison("PPO", "SFT", None, None, math.nan, 0, "gold")],
            tables=[Table("t", [Column("a"), Column("b")], [[None, math.nan]])],
        )
    )
    assert "<dd>–</dd>" in text
    assert text.count("gold –") == 2
    assert '<td class="number">–</td>' in text
    assert "– to –" in text
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL))


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (LoopReport("r", "", tables=[Table("t", [Column("a")], [[1, 2]])]), "a row of table 't' has 2 values where 1"),
        (LoopReport("r", "", curves=[Curve("x", "y", [Series("s", [1], [])])]), "series 's' has 0 values where 1"),
        (LoopReport("r", "", cliff=[CliffRun("p", True, [0], [], [], [0])]), "proxy of run 'p' has 0 values where 1"),
    ],
)
def test_lists_of_unequal_length_are_refused(report: LoopReport, words: str) -> None:
    with pytest.raises(BridleError, match=words):
        render(report)


def test_the_cliff_is_told_from_its_metrics() -> None:
    assert gold_peak(UNBRIDLED) == 2 and fell(UNBRIDLED)
    assert gold_peak(BRIDLED) == 5 and not fell(BRIDLED)
    assert gold_peak(CliffRun("overflows", False, [0, 1, 2], [0, 1, 2], [0, math.inf, 1], [0, 1, 2])) == 2
    assert not fell(CliffRun("falls at once", False, [0, 1, 2], [0, 1, 2], [0, -1, -2], [0, 1, 2]))
    assert "where gold turns" in to_svg(draw_cliff([UNBRIDLED, BRIDLED], "kl"), "x")
    assert "where gold turns" not in to_svg(draw_cliff([BRIDLED], "steps"), "x")


def test_a_long_series_is_drawn_as_means_and_says_so() -> None:
    curve = Curve("step", "loss", [Series("a", range(100_000), np.random.default_rng(0).normal(size=100_000).tolist())])
    drawn = draw_curve(curve)
    assert drawn.axes[0].lines[0].get_xydata()[0] == pytest.approx([124.5, np.mean(curve.series[0].y[:250])])
    assert drawn.axes[0].lines[1].get_label() == "a (means of 250)"
    assert len(to_svg(drawn, "long")) < 60_000


def test_names_in_any_script_are_drawn_without_warning() -> None:
    drawn = draw_curve(Curve("шаг", "損失", [Series("訓練", [0, 1], [1, 0]), Series("_hidden", [0, 1], [1, 0])]))
    assert "訓練" in to_svg(drawn, "損失") and "_hidden" in to_svg(drawn, "x")


def test_every_line_of_the_frontier_sets_out_from_sft_and_ends_where_it_was_measured() -> None:
    """On an axis of √KL, marked in nats: what lies near SFT is not squeezed together by what went far."""
    origin, far = Point("SFT", 0.0, 0.5, 0.0, 0.2), Point("unbridled", 25.0, -2.0, 1.0, 0.3)
    best = [Point("best-of-2", 0.19, 1.0, 0.0, 0.2), Point("best-of-4", 0.64, 1.5, 0.0, 0.2)]
    (axes,) = draw_frontier(Frontier("gold, points", origin, [[Point("DPO", 1.0, 1.8, 0.1, 0.2)], best, [far]])).axes
    named = {str(line.get_label()): line for line in axes.lines}
    drawn = {name: named[name].get_xydata().tolist() for name in ("SFT", "DPO", "best-of-2, 4", "unbridled")}
    assert drawn["SFT"] == [[0.0, 0.5]] and drawn["DPO"] == [[1.0, 1.8]] and drawn["unbridled"] == [[5.0, -2.0]]
    assert drawn["best-of-2, 4"] == [[pytest.approx(0.19**0.5), 1.0], [pytest.approx(0.64**0.5), 1.5]]
    paths = [line.get_xydata().tolist() for line in axes.lines if line.get_alpha()]
    assert [path[0] for path in paths] == [[0.0, 0.5]] * 4
    bars = [line.get_xydata().tolist() for line in axes.lines if str(line.get_label()).startswith("_child")]
    assert [[1.0, 1.8 - 0.2], [1.0, 1.8 + 0.2]] in bars and [[24.0**0.5, -2.0], [26.0**0.5, -2.0]] in bars
    marks = dict(zip((label.get_text() for label in axes.get_xticklabels()), axes.get_xticks(), strict=True))
    assert marks["0"] == 0.0 and marks["1"] == 1.0 and marks["16"] == 4.0
    left, right = axes.get_xlim()
    assert (1.0 - left) / (right - left) > 0.15


def test_training_lines_are_smoothed_over_the_raw_ones() -> None:
    noisy = [0.0, 2.0, 0.0, 2.0, 0.0, 2.0, 0.0, 2.0, 0.0]
    assert smoothed(noisy).tolist() == pytest.approx([1.0, *[2 / 3, 4 / 3] * 3, 2 / 3, 1.0])
    gaps = smoothed([None, None, 1.0, None, None]).tolist()
    assert gaps == pytest.approx([math.nan, 1.0, 1.0, 1.0, math.nan], nan_ok=True)
    (axes,) = draw_curve(Curve("step", "loss", [Series("training loss", range(9), noisy)])).axes
    raw, line = axes.lines
    assert raw.get_alpha() == 0.3 and raw.get_ydata().tolist() == noisy
    assert line.get_label() == "training loss" and line.get_ydata().tolist() == smoothed(noisy).tolist()
    (axes,) = draw_cliff([BRIDLED], "steps").axes
    assert {
        "training proxy, PPO with the KL bridle",
        "training gold, PPO with the KL bridle",
        "where the bridled run ends",
    } <= {str(line.get_label()) for line in axes.lines}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([3.0, 1.0], "falls from 3.00 to 1.00"),
        ([1.0, 3.0, None], "rises from 1.00 to 3.00"),
        ([0.0, 2.0, -1.0], "rises from 0.00 to 2.00 and falls to −1.00"),
        ([2.0, 0.0, 1.5], "falls from 2.00 to 0.00 and rises to 1.50"),
        ([1.0, 1.01, 1.0], "stays near 1.00"),
        ([math.nan], "was not measured"),
    ],
)
def test_an_alternative_text_tells_the_trend(values: list[float | None], words: str) -> None:
    assert trend(values) == words
    assert f"training loss {words}" in render(
        LoopReport("r", "", curves=[Curve("step", "loss", [Series("training loss", range(len(values)), values)])])
    )


def test_one_noisy_batch_is_no_trend() -> None:
    """The first and the last tenth of a line, of three values at least, say where it begins and ends."""
    noisy = [1.0, 1.2, 0.8, *[1.0] * 24, 1.2, 0.9, 5.0]
    assert trend([0.0, 3.0, *range(4, 30), 27.0, 60.0]) == "rises from 2.33 to 38.7"
    assert trend(noisy).endswith("to 2.37")
    run = CliffRun("PPO", True, range(30), noisy, (), noisy)
    assert "after 30 steps at a KL of 2.37 nats" in render(LoopReport("r", "", cliff=[run]))
    (axes,) = draw_cliff([run], "steps").axes
    pale, line = (drawn.get_ydata() for drawn in axes.lines[1:3])
    assert line[0] == 0.0 and line[-1] == pytest.approx(smoothed(noisy)[-1] - 1.1) and pale[-1] == pytest.approx(3.9)


def test_what_cannot_be_seen_in_an_answer_is_shown() -> None:
    """Control characters as their pictures; what turns the text around it, as its escape."""
    answer = ModelAnswer("SFT", "a\x1b[31mb\x00\x7f\u202ecba\u2066d\x85\n\tשלום", None)
    text = render(LoopReport("r", "", examples=[SideBySide("ask\x07", [answer])]))
    assert "a␛[31mb␀␡\\u202ecba\\u2066d\\u0085\n\tשלום" in text and "ask␇" in text
    assert "score" not in text[text.index("<main>") :], "without a score nothing is said of scores"
    assert "green is" in render(LoopReport("r", "", examples=[SideBySide("ask", [ModelAnswer("SFT", "a", 1.0)])]))


def test_very_many_names_are_counted() -> None:
    assert [listing(list("abc")[:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
    assert listing([str(n) for n in range(20)]).endswith(", 14, 15 and 4 more")


def test_print_keeps_its_colours_and_tables_have_captions(page: str) -> None:
    paper = page[page.index("@media print") :].split("</style>")[0]
    assert "print-color-adjust: exact" in paper and "@media screen and (prefers-color-scheme: dark)" in page
    assert page.count("<caption") == page.count("<table") > 5


def test_png_for_a_readme(tmp_path: Path) -> None:
    save_png(draw_cliff([UNBRIDLED, BRIDLED], "steps"), tmp_path / "cliff.png", dpi=50)
    assert (tmp_path / "cliff.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (math.nan, "–"), (math.inf, "∞"), (-math.inf, "−∞"), (True, "yes"), ("a", "a"), (-2.84, "−2.84"),
        (0.8412, "0.84"), (0.00031, "0.0003"), (-0.0, "0.00"), (35.51, "35.5"), (4321.5, "4\u202f322"),
        (1234567, "1\u202f234\u202f567"),
    ],
)  # fmt: skip
def test_show(value: str | int | float | None, text: str) -> None:
    assert show(value) == text


def test_show_with_decimals_has_no_minus_zero() -> None:
    assert (show(-0.004, 2), show(0.5, 3)) == ("0.00", "0.500")


def test_duration() -> None:
    assert [duration(s) for s in (None, 3.04, 59.97, 102.3, 7260.0)] == [
        "–",
        "3.0 s",
        "60.0 s",
        "1 min 42 s",
        "2 h 1 min",
    ]


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    write(LoopReport("first", "broken \ud800 character"), path)
    before = path.read_bytes()
    assert b"broken \\ud800 character" in before

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BridleError, match="no space left while saving"):
        write(LoopReport("second", ""), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_run_whose_kl_was_not_measured_is_still_drawn_against_steps() -> None:
    run = CliffRun("PPO", False, STEPS, UNBRIDLED.proxy, UNBRIDLED.gold, [None] * len(STEPS))
    assert "the cliff" in to_svg(draw_cliff([run], "steps"), "")
    assert "the cliff" not in to_svg(draw_cliff([run], "kl"), "")
