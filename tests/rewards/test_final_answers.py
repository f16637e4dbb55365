"""The final answer of a text: what counts as a statement of one, which quantity it is, and how one would cheat."""

import json
from fractions import Fraction
from pathlib import Path

import pytest

from bridle.rewards.final_answers import Quantity, final_answer, quantity_of


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 + 9 = 12\n#### 12", "12"),
        ("####12", "12"),
        ("#### 12 apples", "12 apples"),
        ("#### $1,200", "$1,200"),
        ("So it is \\boxed{12}, as was to be shown.", "12"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("The answer is \\boxed{12}.", "12"),
        ("<think>3 + 9</think><answer>12</answer>", "12"),
        ("3 + 9 = 12. The answer is 12. Good luck!", "12"),
        ("**Answer: 3/4**", "3/4"),
        ("Thus, the final answer is 12 cm.", "12 cm"),
        ("三加九。答案是12。", "12"),
        ("最终答案：十二", "十二"),
        ("The answer is easy to see.\n#### 12", "12"),  # words are no second answer
        ("\\boxed{12.0}\n#### 12", "12.0"),
    ],
)
def test_an_answer_is_stated(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "It is 12.", "12", "", "I do not think the answer is 12.", "####", "#### ", "##### 12", "# 12",
        "#### 12\nOr is it?",  # it does not end in it
        "\\boxed{12", "\\boxed12", "\\boxed{}", "<answer>12", "<answer></answer>", "\\boxed{\\boxed{12}",
        "#### 12 \\boxed{", "\\boxed{12} <answer>",
    ],
)  # fmt: skip
def test_what_states_no_answer(text: str) -> None:
    assert final_answer(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "#### 71\n#### 72", "\\boxed{71} \\boxed{72}", "<answer>71</answer><answer>72</answer>", "The answer is 71. The answer is 72.",
        "The answer is 71.\n#### 72", "\\boxed{71}\n#### 72", "<answer>71</answer> \\boxed{72}", "\\boxed{72} \\boxed{x}",
        "\\boxed{72} \\boxed{}",
    ],
)  # fmt: skip
def test_two_answers_are_none(text: str) -> None:
    """A policy that may guess twice is right twice as often."""
    assert final_answer(text) is None


def test_a_hedge_is_no_quantity() -> None:
    for hedge in (
        "71 or 72",
        "71, 72",
        "71/72/73",
        "71-72",
        "72 or so",
        "72 (or 71)",
        "not 72",
        "71 and 72",
        "72 to 73",
    ):
        for text in (f"#### {hedge}", f"\\boxed{{{hedge}}}", f"The answer is {hedge}.", f"<answer>{hedge}</answer>"):
            assert quantity_of(final_answer(text) or "") is None, text


@pytest.mark.parametrize(
    ("text", "number", "unit"),
    [
        ("12", 12, ""), ("-3.50", "-7/2", ""), ("−3", -3, ""), ("+3", 3, ""), (".5", "1/2", ""), ("5.", 5, ""), ("1e3", 1000, ""),
        ("1,234,567.5", "2469135/2", ""), ("1{,}234", 1234, ""), ("１２", 12, ""),
        ("3/4", "3/4", ""), ("-6/8", "-3/4", ""), ("1 1/2", "3/2", ""), ("\\frac{1}{2}", "1/2", ""), ("-\\dfrac{1}{2}", "-1/2", ""),
        ("1\\frac{1}{2}", "3/2", ""),
        ("50%", "1/2", ""), ("50 percent", "1/2", ""), ("12.5\\%", "1/8", ""),
        ("$5", 5, "dollar"), ("\\$1,000", 1000, "dollar"), ("-$5", -5, "dollar"), ("5 dollars", 5, "dollar"), ("$5 dollars", 5, "dollar"),
        ("12 apples", 12, "apple"), ("12 km/h", 12, "km/h"), ("3 m^2", 3, "m^2"), ("3 m²", 3, "m^2"), ("45^\\circ", 45, "°"),
        ("12\\text{ cm}", 12, "cm"), ("$12$", 12, ""), ("\\(12\\)", 12, ""), ("12个苹果", 12, "个苹果"), ("5元", 5, "元"),
    ],
)  # fmt: skip
def test_quantities(text: str, number: str | int, unit: str) -> None:
    assert quantity_of(text) == Quantity(Fraction(number), unit)


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "twelve", "1,2", "12,34", "1234,567", "1.2.3", "1_000", "0x10", "--5", "1/0", "2+1", "2*6", "√2", "3!", "about 5", "5?",
        "2 thousand", "2 million people", "3 dozen", "5k", "5万", "5百元", "5 and a half", "$5 euros", "$-5", "½", "3½", "5²", "٣", "5 6",
        "1 2 3", "(5)", "inf", "nan", "\\int_0^1 x dx", "\\sqrt{4}", "5 a b c d e",
    ],
)  # fmt: skip
def test_what_is_no_quantity(text: str) -> None:
    assert quantity_of(text) is None


def test_digits_and_exponents_are_capped() -> None:
    assert quantity_of("9" * 400) is not None and quantity_of("1e400") is not None
    assert quantity_of("9" * 401) is None and quantity_of("1e401") is None and quantity_of("1e-401") is None
    assert quantity_of("1e999999999") is None


def test_units_must_agree_where_both_name_one() -> None:
    five = Quantity(Fraction(5))
    assert five.same(Quantity(Fraction(5), "dollar")) and Quantity(Fraction(5), "km").same(five)
    assert not Quantity(Fraction(5), "km").same(Quantity(Fraction(5), "m"))
    assert not five.same(Quantity(Fraction(6)))


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "piece", ["#### 1 ", "\\boxed{", "<answer>", "The answer is ", "The answer is 1. ", "{", "1 ", "答案是"]
)
def test_a_long_text_is_read_once(piece: str) -> None:
    """Work that grew with the square of the length would take minutes."""
    for text in (piece * 20_000, "\\boxed{" + piece * 20_000, "#### " + piece * 20_000):
        assert quantity_of(final_answer(text) or "") is None or piece == "The answer is 1. "


def test_every_worked_answer_of_gsm8k_is_read_for_its_own_number(data_folder: Path) -> None:
    read = 0
    for split in ("train", "test"):
        for line in (data_folder / f"gsm8k/{split}.jsonl").read_text("utf-8").splitlines():
            answer = json.loads(line)["answer"]
            number = Fraction(answer.rsplit("####", 1)[1].strip().replace(",", ""))
            assert quantity_of(final_answer(answer) or "") == Quantity(number), answer
            read += 1
    assert read == 7473 + 1319
