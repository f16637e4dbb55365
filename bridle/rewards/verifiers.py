"""Rewards for answers that can be checked: 1 for a right answer, 0 for any other.

A verifier reads the answer strictly, in one form; one that names several numbers in that form has not decided, and is wrong.
An answer that was cut off is wrong and is not read at all: it never said that it was done.
The table KINDS holds every kind of check by the name that a recipe or a prompt's own column gives it. What is expected is read when the
check is made: what no answer could be checked against is refused then, and not in the middle of a run.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from bridle.core.errors import DataError, brief_repr
from bridle.core.records import Completion, FinishReason, Prompt
from bridle.rewards.constraints import constraints_of
from bridle.rewards.final_answers import MOST_DIGITS, answers_differ, final_answer, quantity_of
from bridle.rewards.sandbox.kinds import SANDBOXED, Sandbox

Check = Callable[[str], float | None]
"""What an answer's text is worth, 0 to 1; None where it states nothing that could be read, which is worth nothing (`unparsed`)."""

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
    if not number.is_finite() or len(number.as_tuple().digits) > MOST_DIGITS or abs(number.adjusted()) > MOST_DIGITS:
        return None
    return number


def stated_numbers(text: str, pattern: str) -> set[Decimal | None]:
    """The numbers in the pattern's group, each once; None of a match that has none."""
    return {number_of(number) for number in re.findall(pattern, text.strip())}


def stated_number(text: str, pattern: str) -> Decimal | None:
    """The number in the pattern's group; None where there is none, where a match has none, or where matches disagree."""
    found = stated_numbers(text, pattern)
    return found.pop() if len(found) == 1 else None


def solution_number(text: str) -> Decimal | None:
    """The number that a solution is, that it ends in ("#### 12"), or that is in its last box ("\\boxed{12}"); None where there is none."""
    boxed = re.findall(r"\\boxed\{([^{}]*)\}", text)
    found = (number_of(text), stated_number(text, GSM8K), number_of(boxed[-1]) if boxed else None)
    return next((number for number in found if number is not None), None)


def number_is(expected: Decimal, pattern: str) -> Check:
    """The number in the pattern's group is this one."""

    def check(text: str) -> float | None:
        found = stated_numbers(text, pattern)
        return None if not found - {None} else found == {expected}

    return check


def number_verifier(solution: Callable[[Prompt], object], pattern: str) -> "Verifier":
    """1 where the number that the answer states equals the prompt's solution as a number ("1,000" = "1000.0"), else 0.

    None where the prompt has no numeric solution: that answer cannot be judged.
    """

    def check(prompt: Prompt) -> Check | None:
        expected = number_of(str(solution(prompt)))
        return None if expected is None else number_is(expected, pattern)

    return Verifier(check, lambda prompt: str(solution(prompt)))


@dataclass(frozen=True)
class CheckedAnswer:
    """What a check makes of an answer, 0 to 1; None: there is nothing to check against. `unread`: why it is worth nothing unread: it was
    cut off, or states nothing that could be read."""

    value: float | None
    unread: Literal["", "cut_off", "unparsed"] = ""


@dataclass(frozen=True)
class Verifier:
    """A reward from the check of each prompt; None where a prompt has none: that answer cannot be judged. An answer without a word is
    worth nothing, however little is asked of it."""

    check: Callable[[Prompt], Check | None]
    solution: Callable[[Prompt], str] = lambda prompt: ""  # in words, for a judge who reads what the check could not

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        return [self.score(*each) for each in zip(prompts, completions, strict=True)]

    def score(self, prompt: Prompt, completion: Completion) -> float | None:
        return self.examine(prompt, completion).value

    def examine(self, prompt: Prompt, completion: Completion) -> CheckedAnswer:
        check = self.check(prompt)
        if check is None:
            return CheckedAnswer(None)
        if completion.finish_reason is FinishReason.LENGTH:
            return CheckedAnswer(0.0, "cut_off")
        value = check(completion.text) if completion.stripped else None
        return CheckedAnswer(0.0, "unparsed") if value is None else CheckedAnswer(float(value))


def same_check(check: Check, expected: object = "") -> Verifier:
    """One check for every prompt."""
    return Verifier(lambda prompt: check, lambda prompt: str(expected))


def check_of(kind: str, expected: Any, sandbox: Sandbox | None = None) -> Check:
    """The check of a kind (`KINDS`, `SANDBOXED`) against what is expected. Raises DataError where there is no such kind, or no answer could
    meet it, and RecipeError where programs would have to be run and may not."""
    if kind in SANDBOXED:
        return SANDBOXED[kind](expected, Sandbox() if sandbox is None else sandbox)
    if kind not in KINDS:
        raise DataError(f"{brief_repr(kind)} is not a kind of check; the kinds are {', '.join([*KINDS, *SANDBOXED])}")
    return KINDS[kind](expected)


def weighed(checks: Sequence[tuple[float, Check]]) -> Check:
    """Several checks of one answer as one: the weighted mean of what each gives."""
    total = sum(weight for weight, _ in checks)
    if not total > 0 or any(weight < 0 for weight, _ in checks):
        raise DataError(
            f"checks have the weights {[weight for weight, _ in checks]}; none may be below 0, and one must be above"
        )
    return lambda text: sum(weight * (check(text) or 0.0) for weight, check in checks) / total


def all_of(checks: Sequence[Check]) -> Check:
    """1 where every check is met in full; None where those that could read it are."""

    def check(text: str) -> float | None:
        unread = False
        for one in checks:
            value = one(text)
            if value is not None and value < 1:
                return 0.0
            unread = unread or value is None
        return None if unread else 1.0

    return check


# -------------------------------------------------------------------------------------------------------- kinds of checks


def answer_is(expected: Any) -> Check:
    """The final answer is this quantity, or one of these (`rewards/final_answers.py`)."""
    wanted = []
    for one in alternatives(expected, "the answer"):
        text = str(one)
        quantity = quantity_of(final_answer(text) or text)
        if quantity is None:
            raise DataError(
                f"the answer {brief_repr(one)} is not a number, fraction or quantity to compare with; check it as 'exact', or as 'symbolic'"
            )
        wanted.append(quantity)

    def check(text: str) -> float | None:
        found = quantity_of(final_answer(text) or "")
        if found is None:
            return unread(text)
        return any(found.same(one) for one in wanted)

    return check


def unread(text: str) -> float | None:
    """What a text is worth whose final answer cannot be read: nothing, and None where it might be read otherwise; one that names several
    answers has not decided, however it is read."""
    return 0.0 if answers_differ(text) else None


def exactly(expected: Any) -> Check:
    """The final answer, where one is stated, or else the whole text is one of these, white space at the ends apart."""
    wanted = {str(one).strip() for one in alternatives(expected, "the exact answer")}
    return lambda text: (final_answer(text) or text.strip()) in wanted


LETTER = re.compile(r"[(\[（【]?([A-Z])[)\]）】]?[.。:：]?")


def choice_is(expected: Any) -> Check:
    """The final answer, or the whole text, is one letter and the right one: "B", "(B)". Two letters do not choose."""
    found = LETTER.fullmatch(str(expected).strip())
    if found is None:
        raise DataError(f"the right choice is {brief_repr(expected)}; it must be one letter, A to Z")

    def check(text: str) -> float | None:
        letter = LETTER.fullmatch((final_answer(text) or text).strip())
        return unread(text) if letter is None else letter[1] == found[1]

    return check


HAN = re.compile(r"[〇㐀-䶿一-鿿豈-﫿\U00020000-\U0003ffff]+")
VERSE_ENDS = re.compile(r"[，。！？；、：,.!?;:\s]+")


def verse(expected: Any) -> Check:
    """A poem of so many lines of so many Chinese characters, and nothing else; a line twice, or of one character, does not count."""
    counts = expected if isinstance(expected, Mapping) and set(expected) == {"lines", "characters"} else {}
    lines, characters = counts.get("lines"), counts.get("characters")
    if type(lines) is not int or type(characters) is not int or lines < 1 or characters < 1:
        raise DataError(
            f"a verse form is {brief_repr(expected)}; it must be {{lines, characters}}, two numbers of at least 1"
        )

    def check(text: str) -> float:
        rows = [row for row in VERSE_ENDS.split(text) if row]
        whole = len(rows) == lines == len(set(rows)) and all(len(row) == characters for row in rows)
        return whole and all(HAN.fullmatch(row) and (characters == 1 or len(set(row)) > 1) for row in rows)

    return check


def tags(expected: Any) -> Check:
    """The format <think>…</think><answer>…</answer>: these tags, each once, in this order, with words inside, and nothing outside."""
    names = expected if isinstance(expected, list) and expected else []
    if not names or not all(isinstance(name, str) and re.fullmatch(r"[A-Za-z][\w-]*", name) for name in names):
        raise DataError(
            f"the tags of a format are {brief_repr(expected)}; they must be a list of names, such as ['think', 'answer']"
        )

    def check(text: str) -> float:
        rest = text.strip()
        for name in names:
            inside, closed, after = rest.removeprefix(f"<{name}>").partition(f"</{name}>")
            if not rest.startswith(f"<{name}>") or not closed or not inside.strip():
                return 0.0
            if any(f"<{mark}{other}>" in inside for other in names for mark in ("", "/")):
                return 0.0
            rest = after.lstrip()
        return not rest

    return check


def alternatives(expected: Any, what: str) -> list[str | int | float]:
    """What is expected as a list, one of which is enough."""
    found = expected if isinstance(expected, list) else [expected]
    if not found or any(
        isinstance(one, bool) or not isinstance(one, str | int | float) or not str(one).strip() for one in found
    ):
        raise DataError(
            f"{what} is {brief_repr(expected)}; it must be a text or a number, or a list of some that do as well"
        )
    return found


def meets(expected: Any) -> Check:
    """Every constraint of the list (`rewards/constraints.py`)."""
    constraints = constraints_of(expected)
    return lambda text: all(met(text) for met in constraints)


def share_met(expected: Any) -> Check:
    """The share of the constraints that is met: something to climb where all at once are rarely met."""
    constraints = constraints_of(expected)
    return lambda text: sum(met(text) for met in constraints) / len(constraints)


KINDS: Mapping[str, Callable[[Any], Check]] = {
    "answer": answer_is,
    "exact": exactly,
    "choice": choice_is,
    "verse": verse,
    "tags": tags,
    "constraints": meets,
    "constraint_share": share_met,
}
