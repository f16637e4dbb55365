"""Rewards for answers that can be checked: 1 for a right answer, 0 for any other.

A verifier reads the answer strictly, in one form; one that names several numbers in that form has not decided, and is wrong.
An answer that was cut off is wrong and is not read at all: it never said that it was done.
"""

import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation

from bridle.core.records import Completion, FinishReason, Prompt, Reward

NUMBER = r"-?\d[\d,]*(?:\.\d+)?"
GSM8K = rf"(?m)^#### *({NUMBER}) *$"  # how the worked answers of GSM8K end: a line of its own


def sentence_pattern(template: str) -> str:
    """A pattern for a whole sentence such as "The answer is {number}."; a wish of good luck may follow it."""
    before, _, after = template.partition("{number}")
    return rf"(?:\A|(?<=[.!?])\s+){re.escape(before)}({NUMBER}){re.escape(after)}(?=\s|\Z)"


def stated_number(text: str, pattern: str) -> Decimal | None:
    """The number in the pattern's group; None where there is none, or where its matches disagree."""
    found = {Decimal(number.replace(",", "")) for number in re.findall(pattern, text.strip())}
    return found.pop() if len(found) == 1 else None


def number_verifier(solution: Callable[[Prompt], object], pattern: str) -> Reward:
    """1 where the number that the answer states equals the prompt's solution as a number ("1,000" = "1000.0"), else 0.

    None where the prompt has no numeric solution: that answer cannot be judged.
    """

    def judge(prompt: Prompt, completion: Completion) -> float | None:
        try:
            expected = Decimal(str(solution(prompt)).replace(",", ""))
        except InvalidOperation:
            return None
        if not expected.is_finite():
            return None
        if completion.finish_reason is FinishReason.LENGTH:
            return 0.0
        return float(stated_number(completion.text, pattern) == expected)

    def reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        return [judge(p, c) for p, c in zip(prompts, completions, strict=True)]

    return reward
