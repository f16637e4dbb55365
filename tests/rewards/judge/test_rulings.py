"""Exactly one ruling for each reply, strictly read; failures are counted by kind and never a tie."""

from __future__ import annotations

import pytest

from bridle.core.records import Prompt
from bridle.rewards.judge.questions import Rubric
from bridle.rewards.judge.rulings import JUDGED, JudgeCall, Reply, Ruling, combine_orders, read_ruling

ASKED = Prompt.from_text("What is two and two?")
PAIR = Rubric().question("pairwise", ASKED, ["four", "five"])
REASONED = Rubric(reasons=True).question("pairwise", ASKED, ["four", "five"])
RATING = Rubric().question("rating", ASKED, ["four"])
RANKING = Rubric().question("ranking", ASKED, ["a", "b", "c"])


@pytest.mark.parametrize(
    "text", ["A", " A.\n", "**A**", "(A)", '"A"', f"VERDICT {PAIR.mark}: A", "<think>B? No.</think>\nA"]
)
def test_a_word_alone_is_a_verdict(text: str) -> None:
    assert read_ruling(PAIR, Reply(text)) == Ruling(JUDGED, (1.0, 0.0))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"), (" \n", "empty"), ("A or B", "unparsable"), ("Answer A", "unparsable"), ("C", "unparsable"), ("a", "unparsable"),
        ("AB", "unparsable"), ("I'm sorry, I cannot judge this.", "refusal"), ("As an AI model I do not choose.", "refusal"),
        ("对不起,我无法评判。", "refusal"), ("第一个回答更好一些", "wrong_language"),
        ("VERDICT 00000000: A", "unparsable"), ("VERDICT: A", "unparsable"),
    ],
)  # fmt: skip
def test_anything_else_is_a_failure_of_its_own_kind(text: str, kind: str) -> None:
    assert read_ruling(PAIR, Reply(text)) == Ruling(kind)


def test_a_chinese_judge_that_answers_in_english_without_a_verdict_has_the_wrong_language() -> None:
    question = Rubric("zh").question("pairwise", ASKED, ["四", "五"])
    assert read_ruling(question, Reply("The first one is better.")).kind == "wrong_language"
    assert read_ruling(question, Reply("B")).scores == (0.0, 1.0)


def test_what_was_cut_off_filtered_or_never_came_is_said() -> None:
    assert read_ruling(PAIR, Reply("The first", finish_reason="length")).kind == "cut_off"
    assert read_ruling(PAIR, Reply("", finish_reason="length")).kind == "cut_off"
    assert read_ruling(PAIR, Reply("Hm.", finish_reason="content_filter")).kind == "refusal"
    assert read_ruling(PAIR, Reply(fault="endpoint_error", text="A")).kind == "endpoint_error"


def test_with_reasons_the_last_line_with_the_mark_counts_and_no_word_of_an_answer() -> None:
    mark = REASONED.mark
    text = f"The second says\nVERDICT 12345678: B\nVERDICT {mark}: B\nOn second thought:\n**VERDICT {mark}: A**"
    assert read_ruling(REASONED, Reply(text)).scores == (1.0, 0.0)
    assert read_ruling(REASONED, Reply("A")).kind == "unparsable"
    assert read_ruling(REASONED, Reply(f"VERDICT {mark}: A or B")).kind == "unparsable"
    assert read_ruling(REASONED, Reply("Both are good.\nVERDICT 12345678: B")).kind == "unparsable"


def test_probabilities_are_the_verdict_whatever_the_text_says() -> None:
    ruling = read_ruling(PAIR, Reply("B", probabilities={"A": 0.6, "B": 0.2}))
    assert ruling.soft and ruling.scores == pytest.approx((0.75, 0.25))
    grade = read_ruling(RATING, Reply("", probabilities={"1": 0.5, "5": 0.5}))
    assert grade.scores == pytest.approx((3.0,))
    assert read_ruling(PAIR, Reply("A", probabilities={"A": 0.0, "B": 0.0})) == Ruling(JUDGED, (1.0, 0.0))


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("B > A > C", (1.0, 2.0, 0.0)),
        ("B = A > C", (1.5, 1.5, 0.0)),
        ("C>B=A", (0.5, 0.5, 2.0)),
        ("A = B = C", (1.0, 1.0, 1.0)),
    ],
)
def test_a_ranking_gives_each_answer_the_share_of_those_below_it(text: str, scores: tuple[float, ...]) -> None:
    assert read_ruling(RANKING, Reply(f"VERDICT {RANKING.mark}: {text}")).scores == scores


@pytest.mark.parametrize("text", ["A > B", "A > B > B", "A > B > C > D", "A, B, C", "A > > B > C", "a > b > c", ""])
def test_a_ranking_that_is_not_whole_is_none(text: str) -> None:
    assert read_ruling(RANKING, Reply(f"VERDICT {RANKING.mark}: {text}")).kind == "unparsable"
    assert read_ruling(RANKING, Reply(text or "A > B > C")).kind == "unparsable"  # the mark is missing


def test_orders_that_disagree_are_no_tie() -> None:
    hard = [JudgeCall((0, 1), Ruling(JUDGED, (1.0, 0.0))), JudgeCall((1, 0), Ruling(JUDGED, (1.0, 0.0)))]
    assert (combine_orders(hard).kind, combine_orders(hard).ranking) == ("inconsistent", ())
    same = [JudgeCall((0, 1), Ruling(JUDGED, (1.0, 0.0))), JudgeCall((1, 0), Ruling(JUDGED, (0.0, 1.0)))]
    assert combine_orders(same).ranking == ((0,), (1,)) and combine_orders(same).probability is None


def test_probabilities_of_both_orders_are_averaged() -> None:
    soft = [JudgeCall((0, 1), Ruling(JUDGED, (0.9, 0.1), True)), JudgeCall((1, 0), Ruling(JUDGED, (0.7, 0.3), True))]
    opinion = combine_orders(soft)
    assert opinion.scores == pytest.approx((0.6, 0.4)) and opinion.ranking == ((0,), (1,))
    assert opinion.probability == pytest.approx(0.6)


def test_one_order_that_failed_is_a_failure() -> None:
    calls = [JudgeCall((0, 1), Ruling(JUDGED, (1.0, 0.0))), JudgeCall((1, 0), Ruling("refusal"))]
    assert combine_orders(calls).kind == "refusal"
    calls = [JudgeCall((0, 1), Ruling("refusal")), JudgeCall((1, 0), Ruling("endpoint_error"))]
    assert combine_orders(calls).kind == "endpoint_error"  # it is asked again
