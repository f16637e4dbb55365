"""Rewards for answers that can be checked: 1 for a right answer, 0 for any other.

A verifier reads the answer strictly, in one form; one that names several numbers in that form has not decided, and is wrong.
An answer that was cut off is wrong and is not read at all: it never said that it was done.
"""

import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation

from bridle.core.records import Completion, FinishReason, Prompt, Reward

NUMBER = r"[-−]?\d[\d,]*(?:\.\d+)?"
GROUPED = re.compile(r"[-−+]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")  # a comma groups three digits, or it is none of ours
# How the worked answers of GSM8K end: "#### 12", on a line of its own or not. Every such mark counts; where something else ends the answer
# its last sign is a match too, with no number in it, which undoes them all. Nothing is read twice, however many marks there are.
GSM8K = rf"(?<!#)#### *({NUMBER})(?!\S)|\S\Z"


def sentence_pattern(template: str) -> str:
    """A pattern for a whole sentence such as "The answer is {number}."; a wish of good luck may follow it."""
    before, _, after = template.partition("{number}")
    return rf"(?:\A|(?<=[.!?])\s+){re.escape(before)}({NUMBER}){re.escape(after)}(?=\s|\Z)"


def number_of(text: str) -> Decimal | None:
    """The finite number that a text is, its commas between groups of three digits ("1,234.5"); None where it is none ("1,2")."""
    text = text.strip()
    plain = text.replace(",", "") if GROUPED.fullmatch(text) else text
    try:
        number = Decimal("" if "_" in plain else plain.replace("−", "-"))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def stated_number(text: str, pattern: str) -> Decimal | None:
    """The number in the pattern's group; None where there is none, where a match has none, or where matches disagree."""
    found = {number_of(number) for number in re.findall(pattern, text.strip())}
    return found.pop() if len(found) == 1 else None


def solution_number(text: str) -> Decimal | None:
    """The number that a solution is, that it ends in ("#### 12"), or that is in its last box ("\\boxed{12}"); None where there is none."""
    boxed = re.findall(r"\\boxed\{([^{}]*)\}", text)
    found = (number_of(text), stated_number(text, GSM8K), number_of(boxed[-1]) if boxed else None)
    return next((number for number in found if number is not None), None)


def number_verifier(solution: Callable[[Prompt], object], pattern: str) -> Reward:
    """1 where the number that the answer states equals the prompt's solution as a number ("1,000" = "1000.0"), else 0.

    None where the prompt has no numeric solution: that answer cannot be judged.
    """

    def judge(prompt: Prompt, completion: Completion) -> float | None:
        expected = number_of(str(solution(prompt)))
        if expected is None:
            return None
        if completion.finish_reason is FinishReason.LENGTH:
            return 0.0
        return float(stated_number(completion.text, pattern) == expected)

    def reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        return [judge(p, c) for p, c in zip(prompts, completions, strict=True)]

    return reward
