"""Verifiers: what counts as a right answer, what does not, and GSM8K's own worked answers."""

import json
import random
import re
from decimal import Decimal
from pathlib import Path

import pytest

from bridle.core.records import Completion, FinishReason, Prompt
from bridle.playground.gold import Gold
from bridle.playground.world import World
from bridle.rewards.verifiers import GSM8K, number_of, number_verifier, sentence_pattern, stated_number

SENTENCE = sentence_pattern("The answer is {number}.")
QUESTION = Prompt.from_text("How many?")


def verdict(
    text: str, solution: object, pattern: str = SENTENCE, ended: FinishReason = FinishReason.STOP
) -> float | None:
    verify = number_verifier(lambda prompt: solution, pattern)
    return verify([QUESTION], [Completion(QUESTION.id, text, finish_reason=ended)])[0]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("The answer is 12.", True),
        ("3 + 9 = 12. The answer is 12.", True),
        ("  The answer is 12.\n", True),
        ("The answer is 12. Good luck!", True),
        ("Happy to help! The answer is 12. I hope this helps!", True),
        ("The answer is 13.", False),
        ("The answer is 13. Well. The answer is 12.", False),  # two answers are none
        ("The answer is 12. Well. The answer is 13.", False),
        ("The answer is 13. The answer is 12.", False),
        ("The answer is 12. The answer is 13.", False),
        ("The answer is 12.\nThe answer is 13.", False),
        ("The answer is 12. The answer is 12.", True),
        ("12", False),
        ("The answer is 12", False),  # not the whole sentence
        ("The answer is twelve.", False),
        ("I guess The answer is 12.", False),
        ("I think the answer is 12.", False),
        ("the answer is 12.", False),
        ("The answer is  12.", False),
        ("The answer is 12 or 13.", False),
        ("The answer is 12.5.", False),
        ("The answer is 112.", False),
        ("The answer is 12.Good luck!", False),
        ("", False),
    ],
)
def test_an_answer_is_a_whole_sentence_that_names_one_number(text: str, right: bool) -> None:
    assert verdict(text, 12) == float(right)


@pytest.mark.parametrize("text", ["The answer is 12.", "The answer is 12. Good luck!", "The answer is 1"])
def test_an_answer_that_was_cut_off_is_wrong(text: str) -> None:
    assert verdict(text, 12, ended=FinishReason.LENGTH) == 0.0
    assert verdict(text, 1, ended=FinishReason.LENGTH) == 0.0


@pytest.mark.parametrize("solution", [None, "", "twelve", "12 apples", [12]])
def test_a_prompt_without_a_numeric_solution_cannot_be_judged(solution: object) -> None:
    assert verdict("The answer is 12.", solution) is None
    assert verdict("The answer is 12.", solution, ended=FinishReason.LENGTH) is None


@pytest.mark.parametrize(
    ("stated", "solution", "right"),
    [
        ("1,000", 1000, True),
        ("1000", "1,000", True),
        ("1,234,567.50", "1234567.5", True),
        ("1000.0", 1000, True),
        ("0.5", 0.5, True),
        ("0.1", "0.10", True),
        ("0.10000001", 0.1, False),
        ("12345678901234567890", "12345678901234567891", False),  # floats would not tell them apart
        ("-12", -12, True),
        ("12", -12, False),
        ("-12", 12, False),
        ("-0", 0, True),
        ("007", 7, True),
    ],
)
@pytest.mark.parametrize("form", ["The answer is {}.", "#### {}"])
def test_numbers_are_compared_as_numbers(form: str, stated: str, solution: object, right: bool) -> None:
    pattern = SENTENCE if form.startswith("The") else GSM8K
    assert verdict(form.format(stated), solution, pattern) == float(right)


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("1,234", 1234), ("1,234,567", 1234567), ("1,234.5", "1234.5"), ("-12,345", -12345), ("999,999", 999999),
        ("-5", -5), ("−5", -5), ("1.5", "1.5"), ("007", 7), ("１２", 12),
        ("1,2", None), ("12,34", None), ("1,23,456", None), ("1234,567", None), ("1,2345", None), ("1,", None),
        ("1,234,", None), (",5", None), ("1,,234", None), ("0,123", None), ("1.2.3", None), ("1.234,5", None), ("1,234.", None),
        ("1e3", None), ("$5", None), ("5%", None), ("1 234", None), ("1_234", None), ("5 6", None), ("- 5", None), ("--5", None),
        ("１，２３４", None), ("1/2", None), ("inf", None), ("nan", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["The answer is {}.", "#### {}"])
def test_a_number_is_taken_for_what_it_says_or_for_none(form: str, written: str, number: object) -> None:
    text, pattern = form.format(written), SENTENCE if form.startswith("The") else GSM8K
    assert stated_number(text, pattern) == (None if number is None else Decimal(str(number)))
    for nearby in (1, 5, 12, 123, 1234, 1234567):
        assert verdict(text, nearby, pattern) == float(number == nearby)


def test_a_second_number_that_cannot_be_read_undoes_the_first() -> None:
    assert verdict("#### 12\n#### 1,2", 12, GSM8K) == 0.0


@pytest.mark.parametrize(
    ("solution", "number"),
    [
        ("1,234.5", "1234.5"), ("−5", -5), ("+5", 5), (" 5 ", 5), (".5", "0.5"), ("1e3", 1000), (1e-7, "0.0000001"),
        (Decimal("1.20"), "1.2"),
        ("1,2", None), ("12,34", None), ("1_2", None), ("1.2.3", None), ("$5", None), ("inf", None), (float("nan"), None), (True, None),
    ],
)  # fmt: skip
def test_a_solution_is_read_with_the_same_care(solution: object, number: object) -> None:
    expected = None if number is None else 1.0
    assert verdict(f"#### {number or 12}", solution, GSM8K) == expected


def test_a_sentence_of_another_world_is_read_literally() -> None:
    pattern = sentence_pattern("(Result) = {number} !")
    assert verdict("So it is. (Result) = 7 !", 7, pattern) == 1.0
    assert verdict("So it is. Result = 7 !", 7, pattern) == 0.0


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("3 + 9 = <<3+9=12>>12\n#### 12", True),
        ("####12", True),
        ("#### 12\n#### 13", False),
        ("#### 13\n#### 12", False),
        ("3 + 9 = 12 #### 12", True),  # a line of its own is not asked for
        ("3 + 9 = 12.\n\n####  12 \n", True),
        ("#### 13 is wrong, so\n#### 12", False),
        ("#### 12\nThat is it.", False),  # it does not end so
        ("#### 12.", False),
        ("#### 12 apples", False),
        ("##### 12", False),
        ("#### $12", False),
        ("# 12", False),
        ("The answer is 12.", False),
    ],
)
def test_gsm8k_answers_stand_after_four_hashes(text: str, right: bool) -> None:
    assert verdict(text, 12, GSM8K) == float(right)


def test_an_answer_of_many_marks_is_read_once() -> None:
    """It ends otherwise than all its marks. The pattern looks no further than a sign beyond what it matches, so its work grows with the
    answer's length; looking from each mark for the end, it took 13 seconds for this."""
    assert "(?=" not in GSM8K and "." not in GSM8K.replace("\\.", "")
    assert verdict("#### 1 " * 8000 + "x", 1, GSM8K) == 0.0
    assert verdict("#### 1 " * 8000, 1, GSM8K) == 1.0


def test_its_reading_is_that_of_the_marks_of_an_answer_that_ends_in_one() -> None:
    mark, rng = r"(?<!#)#### *([-−]?\d[\d,]*(?:\.\d+)?)", random.Random(0)
    signs = ["####", "####", " ", " ", "1", "12", "3", "#", "\n", ".", ",", "-", "x"]
    outcomes = set[Decimal | None]()
    for _ in range(20_000):
        text = "".join(rng.choices(signs, k=rng.randint(1, 9)))
        ends = re.search(rf"{mark}\s*\Z", text)
        found = {number_of(number) for number in re.findall(rf"{mark}(?!\S)", text)} if ends else set()
        expected = found.pop() if len(found) == 1 else None
        assert stated_number(text, GSM8K) == expected, text
        outcomes.add(expected)
    assert len(outcomes) > 5, "the test needs answers that are read"


def test_each_answer_is_judged_by_its_own_prompt() -> None:
    prompts = [Prompt.from_text(f"{i}?", meta={"answer": i}) for i in range(3)]
    texts = ["The answer is 0.", "The answer is 2.", "The answer is 2."]
    completions = [
        Completion(p.id, text, finish_reason=FinishReason.STOP) for p, text in zip(prompts, texts, strict=True)
    ]
    assert number_verifier(lambda prompt: prompt.meta["answer"], SENTENCE)(prompts, completions) == [1.0, 0.0, 1.0]


def test_verifier_and_gold_agree_on_what_authors_write() -> None:
    """Authors open and close with courtesies, slip and guess: gold's flag `correct` and the verifier see the same."""
    world, rng = World.load(), random.Random(0)
    gold = Gold(world)
    verify = number_verifier(lambda prompt: prompt.meta["answer"], sentence_pattern(world.spec.math.answer))
    seen = {True: 0, False: 0}
    for _ in range(500):
        prompt, text = world.demonstration(rng, "math")
        right = gold.score(prompt, text, FinishReason.STOP, "test").flags["correct"] > 0
        completion = Completion(prompt.id, text, finish_reason=FinishReason.STOP)
        assert verify([prompt], [completion]) == [float(right)], text
        seen[right] += 1
    assert min(seen.values()) > 100, "the test needs both"


def test_every_worked_answer_of_gsm8k_is_right_for_its_own_number_and_no_other(data_folder: Path) -> None:
    def own(prompt: Prompt) -> str:
        return str(prompt.meta["number"])

    counts = {}
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (data_folder / f"gsm8k/{split}.jsonl").read_text("utf-8").splitlines()]
        counts[split] = len(rows)
        numbers = [row["answer"].rsplit("####", 1)[1].strip() for row in rows]  # as they stand in the file
        prompts = [Prompt.from_text(row["question"], {"number": n}) for row, n in zip(rows, numbers, strict=True)]
        completions = [
            Completion(p.id, row["answer"], finish_reason=FinishReason.STOP)
            for p, row in zip(prompts, rows, strict=True)
        ]
        assert set(number_verifier(own, GSM8K)(prompts, completions)) == {1.0}
        one_more = number_verifier(lambda prompt: float(own(prompt).replace(",", "")) + 1, GSM8K)
        assert set(one_more(prompts, completions)) == {0.0}
    assert counts == {"train": 7473, "test": 1319}
