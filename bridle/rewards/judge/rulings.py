"""What a judge's reply comes to: exactly one ruling for each question. A failure is a ruling of its own kind, counted, and never a tie.

A verdict is read strictly: a word of the question alone, or the last line `VERDICT mark: …` with the mark of this call, which no answer
can know. Where the probabilities of the words are known, they are the verdict (a soft label; of a rating the expected grade), and no text
is read.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from bridle.rewards.judge.questions import Question

JUDGED = "judged"
# Why a call, or an answer, has no verdict. The last ones come of a call that never was: what was asked waits.
ABSTENTIONS = (
    "unparsable",
    "refusal",
    "empty",
    "wrong_language",
    "cut_off",
    "too_long",
    "unreadable",
    "inconsistent",
    "endpoint_error",
    "over_budget",
)
UNASKED = ("endpoint_error", "over_budget")
WRAPPED = "*_`\"'“”‘’().。:： \t\n"
THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
REFUSAL = re.compile(
    r"\b(?:i|we) (?:can(?:no|')t|am (?:unable|not able)|won't|will not|must decline)|\bi'm (?:sorry|unable|not able)|\bi apologi[sz]e"
    r"|\bas an ai\b|抱歉|对不起|无法|不能(?:评判|比较|回答|协助)",
    re.IGNORECASE,
)
HAN, LATIN = re.compile(r"[\u3400-\u9fff]"), re.compile(r"[A-Za-zÀ-ɏ]")
LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Reply:
    """What came back of one call. `fault`: why nothing did. `probabilities` of the question's words, where they are known; `tokens` are
    those read and written; `paid`: False where a cache knew it."""

    text: str = ""
    fault: str = ""
    probabilities: Mapping[str, float] = field(default_factory=dict)
    finish_reason: str = ""
    tokens: tuple[int, int] = (0, 0)
    paid: bool = True


@dataclass(frozen=True)
class Ruling:
    """`scores` has a number for each answer in the order of display, higher is better: of two the probabilities that each is the better
    one, of a rating the grade, of a ranking the number of others that it is not worse than, ties one half. Empty where `kind` is an
    abstention. `soft`: read from probabilities."""

    kind: str
    scores: tuple[float, ...] = ()
    soft: bool = False


def read_ruling(question: Question, reply: Reply) -> Ruling:
    """Exactly one for every question, whatever came back."""
    if reply.fault:
        return Ruling(reply.fault)
    total = sum(reply.probabilities.values())
    if question.words and total > 0 and math.isfinite(total):
        return Ruling(
            JUDGED, scores_of_words(question, {w: p / total for w, p in reply.probabilities.items()}), soft=True
        )
    text = THOUGHT.sub("", reply.text).strip()
    word = stated_verdict(question, text)
    scores = None if word is None else scores_of_ranking(word, question.answers) if not question.words else (
        scores_of_words(question, {word: 1.0}) if word in question.words else None
    )  # fmt: skip
    return Ruling(JUDGED, scores) if scores is not None else Ruling(why_none(question, reply, text))


def stated_verdict(question: Question, text: str) -> str | None:
    """What the last verdict line with this call's mark names, or all of a reply that is one word."""
    lines = re.findall(
        rf"^[ \t*_`#>]*VERDICT[ \t]+{question.mark}[ \t*_`]*[:：](.*)$", text, re.IGNORECASE | re.MULTILINE
    )
    named = {word.strip(WRAPPED): word for word in question.words}
    if lines:
        last = str(lines[-1]).strip(WRAPPED)
        return named.get(last, last)
    return None if question.reasons else named.get(text.strip(WRAPPED))


def scores_of_words(question: Question, probabilities: Mapping[str, float]) -> tuple[float, ...]:
    if question.form == "pairwise":
        return tuple(probabilities.get(word, 0.0) for word in question.words)
    return (
        sum(grade * probabilities.get(word, 0.0) for word, grade in zip(question.words, question.grades, strict=True)),
    )


def scores_of_ranking(text: str, answers: int) -> tuple[float, ...] | None:
    """Of "B > A = C"; None unless each letter stands there exactly once."""
    groups = [[letter.strip(WRAPPED) for letter in group.split("=")] for group in text.split(">")]
    if sorted(letter for group in groups for letter in group) != list(ascii_uppercase[:answers]):
        return None
    below, scores = answers, dict[str, float]()
    for group in groups:
        below -= len(group)
        scores |= dict.fromkeys(group, below + (len(group) - 1) / 2)
    return tuple(scores[letter] for letter in ascii_uppercase[:answers])


def why_none(question: Question, reply: Reply, text: str) -> str:
    if not text:
        return "cut_off" if reply.finish_reason == "length" else "empty"
    if reply.finish_reason == "content_filter" or REFUSAL.search(text):
        return "refusal"
    if reply.finish_reason == "length":
        return "cut_off"
    letters = len(LETTER.findall(text))
    expected = len((HAN if question.language == "zh" else LATIN).findall(text))
    return "wrong_language" if letters >= 4 and expected < letters / 2 else "unparsable"


# ------------------------------------------------------------------------------------------------------- both orders


@dataclass(frozen=True)
class JudgeCall:
    """One call about an item: the places of its answers in the order in which they were displayed, and what came of it."""

    order: tuple[int, ...]
    ruling: Ruling

    def by_answer(self) -> tuple[float, ...]:
        """The scores in the item's own order."""
        scores = dict(zip(self.order, self.ruling.scores, strict=True))
        return tuple(scores[place] for place in sorted(self.order))

    def as_dict(self) -> dict[str, Any]:
        scores = [round(score, 6) for score in self.ruling.scores]
        return {"order": list(self.order), "kind": self.ruling.kind, "scores": scores, "soft": self.ruling.soft}


@dataclass(frozen=True)
class Assessment:
    """What a judge makes of one item: a score for each answer, None where it has none, and the calls that it comes from."""

    kind: str
    scores: tuple[float | None, ...]
    calls: tuple[JudgeCall, ...] = ()

    @property
    def ranking(self) -> tuple[tuple[int, ...], ...]:
        """The answers' places in groups, the best first; empty where not all have a score."""
        if self.kind != JUDGED:
            return ()
        groups: dict[float, list[int]] = {}
        for place, score in enumerate(self.scores):
            assert score is not None
            groups.setdefault(round(score, 9), []).append(place)
        return tuple(tuple(groups[score]) for score in sorted(groups, reverse=True))

    @property
    def probability(self) -> float | None:
        """Of a soft comparison of two: that the one that is preferred is the better one."""
        soft = self.kind == JUDGED and len(self.scores) == 2 and all(call.ruling.soft for call in self.calls)
        return (
            max(score for score in self.scores if score is not None) if soft and len(self.calls[0].order) == 2 else None
        )


def combine_orders(calls: Sequence[JudgeCall]) -> Assessment:
    """Calls about the same answers in several orders as one opinion: probabilities are averaged; of verdicts alone, those that disagree
    are an abstention, `inconsistent`."""
    answers = len(calls[0].order)
    kinds = [call.ruling.kind for call in calls if call.ruling.kind != JUDGED]
    if kinds:
        return Assessment(min(kinds, key=lambda kind: kind not in UNASKED), (None,) * answers, tuple(calls))
    rows = [call.by_answer() for call in calls]
    if not all(call.ruling.soft for call in calls) and len({order_of(row) for row in rows}) > 1:
        return Assessment("inconsistent", (None,) * answers, tuple(calls))
    return Assessment(JUDGED, tuple(sum(column) / len(rows) for column in zip(*rows, strict=True)), tuple(calls))


def order_of(scores: Sequence[float]) -> tuple[int, ...]:
    """What scores say of each two answers: 1, 0 or -1."""
    return tuple((a > b) - (a < b) for i, a in enumerate(scores) for b in scores[i + 1 :])


def abstention_counts(kinds: Iterable[str]) -> dict[str, int]:
    """How many of each kind, in the order of ABSTENTIONS."""
    counted = Counter(kinds)
    return {kind: counted[kind] for kind in ABSTENTIONS if counted[kind]}
