"""What a judge is asked: two answers side by side, one by itself, or a whole group in one call; the answers fenced.

What an answer says is never an instruction, and can never be read as the verdict: it stands between lines that carry a mark, which is
drawn for each call and occurs in nothing that others wrote; control tokens of chat templates and verdict words in it are made harmless; a
verdict that is read from text carries the mark, and where it is read from probabilities no text is read at all. What is not kept out: a
judge that *obeys* what it reads. How often it does is measured (`judge.injections`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from bridle.core.errors import DataError, brief_repr
from bridle.core.files import read_toml
from bridle.core.records import Message, Prompt, content_hash
from bridle.core.text import visible

Form = Literal["pairwise", "rating", "ranking"]
Language = Literal["en", "zh"]
MOST_ANSWERS_RANKED = len(ascii_uppercase)
MARK_DIGITS = 8
# What chat templates write between turns, as a server's tokenizer may read it in content too.
CONTROL = re.compile(
    r"<(?=\|)|(?<=\|)>|<(?=/?s>)|<(?=/?(?:start|end)_of_turn)|<(?=/?think)|<(?=</?SYS)|\[(?=/?(?:INST|SYSTEM))",
    re.IGNORECASE,
)
SAFE = {"<": "‹", ">": "›", "[": "⟦"}
# A verdict's word right before what would name its winner, spaced or in full width too.
VERDICT_WORD = re.compile(
    r"(v\s*e\s*r\s*d\s*i\s*c\s*t|ｖｅｒｄｉｃｔ|ranking|rating|winner|结论|评分|排序|结果)([\s\"'”’*_]*)([:：=])",
    re.IGNORECASE,
)
DOUBLE_BRACKETS = re.compile(r"\[\[\s*(\w+)\s*\]\]")


@cache
def question_texts() -> dict[str, Any]:
    return read_toml(Path(__file__).with_name("questions.toml"))


@cache
def attacks() -> tuple[str, ...]:
    """Strings that answers try on their judge."""
    return tuple(read_toml(Path(__file__).with_name("attacks.toml"))["attacks"])


@dataclass(frozen=True)
class Question:
    """One call. `words` are the verdicts that can be given in one word, whose probabilities can be read; a ranking has none, and
    `reasons` stand before one that is read from text. `answers` is how many are shown."""

    form: Form
    messages: tuple[Message, ...]
    mark: str
    words: tuple[str, ...]
    answers: int
    grades: tuple[float, ...] = ()  # of a rating, what each word is worth
    language: Language = "en"
    reasons: bool = False


@dataclass(frozen=True)
class Rubric:
    """How a judge is to judge: the owner's words, never an answer's. `principles`: of several, one is drawn for each comparison."""

    language: Language = "en"
    text: str = ""
    principles: tuple[str, ...] = ()
    scale: int = 5
    reasons: bool = False
    seed: int = 0
    asks: str = ""  # of a rating, in place of ours: the whole question, with {request} and {answer}, or the turn after the answer
    verdicts: tuple[tuple[str, float], ...] = ()  # what can be said to it, each with its grade

    @property
    def phrases(self) -> Mapping[str, str]:
        found: Mapping[str, str] = question_texts()[self.language]
        return found

    @property
    def hash(self) -> str:
        """Of everything that a judge is asked besides the material."""
        own = [self.text, self.principles, self.scale, self.reasons, self.asks, self.verdicts]
        return content_hash([question_texts()["version"], self.phrases, *own])

    @property
    def grades(self) -> dict[str, float]:
        """What a rating can be: each word with its grade."""
        return dict(self.verdicts) or {str(grade + 1): float(grade + 1) for grade in range(self.scale)}

    def criteria(self, prompt: Prompt, answers: Sequence[str]) -> str:
        """The prompt's own rubric, where it has one; else a principle by the material's hash, the recipe's text, or ours."""
        own = rubric_of(prompt)
        if not own and self.principles:
            number = int(content_hash([self.seed, prompt.id, *sorted(answers)])[:12], 16)
            own = self.principles[number % len(self.principles)]
        return CONTROL.sub(safe, own or self.text or self.phrases["rubric"])

    def question(self, form: Form, prompt: Prompt, answers: Sequence[str]) -> Question:
        """Ask of answers in this order of display."""
        if form == "ranking" and len(answers) > MOST_ANSWERS_RANKED:
            raise DataError(
                f"{len(answers)} answers cannot be ranked in one call, which has {MOST_ANSWERS_RANKED} letters; give fewer, or set "
                "judge.form = 'rating'"
            )
        phrases, letters = self.phrases, ascii_uppercase[: len(answers)]
        material = [harmless(text) for text in (dialogue_of(prompt), *answers)]
        criteria = self.criteria(prompt, answers)
        mark = draw_mark([self.seed, form, *material], [*material, criteria])
        names = [phrases["answer"]] if form == "rating" else [f"{phrases['answer']} {letter}" for letter in letters]
        pieces = zip([phrases["request"], *names], material, strict=True)
        fenced = "\n\n".join(f"--- {mark} {name} ---\n{text}\n--- {mark} ---" for name, text in pieces)
        ranked = " > ".join(reversed(letters))
        grades = self.grades if form == "rating" else {}
        words = tuple(grades) or (("A", "B") if form == "pairwise" else ())
        how = "reasons" if self.reasons else "word" if words else "ranked"
        text = phrases["fenced"].format(mark=mark, rubric=criteria, material=fenced)
        text += phrases[form].format(letters=", ".join(letters), example=ranked, scale=self.scale) + "\n"
        text += phrases[how].format(
            mark=mark, example=words[0] if words else ranked, words=f" {phrases['or']} ".join(words)
        )
        taught = form == "rating" and self.asks
        asked = self.taught_question(prompt, answers[0]) if taught else (Message("user", text),)
        return Question(form, asked, mark, words, len(answers), tuple(grades.values()), self.language, self.reasons)

    def taught_question(self, prompt: Prompt, answer: str) -> tuple[Message, ...]:
        """Of a model that knows one question: its places filled in or, where it has none, asked as the turn that follows the answer."""
        if "{answer}" in self.asks:
            given = {"request": harmless(dialogue_of(prompt)), "answer": harmless(answer)}
            return (Message("user", re.sub(r"\{(request|answer)\}", lambda found: given[found[1]], self.asks)),)
        turns = (*prompt.messages, Message("assistant", answer))
        return (*(Message(turn.role, harmless(turn.content)) for turn in turns), Message("user", self.asks))


def rubric_of(prompt: Prompt) -> str:
    """The rubric that stands in a prompt's own column: a text, or criteria with weights. DataError where it is neither."""
    found = prompt.meta.get("rubric")
    if found is None or isinstance(found, str):
        return found or ""
    rows = found if isinstance(found, list) else [found]
    lines = []
    for row in rows:
        criterion = row if isinstance(row, str) else row.get("criterion") if isinstance(row, Mapping) else None
        weight = row.get("weight", 1) if isinstance(row, Mapping) else 1
        if not isinstance(criterion, str) or not isinstance(weight, int | float) or isinstance(weight, bool):
            raise DataError(
                f"the rubric of the prompt {brief_repr(prompt.text, 60)} holds {brief_repr(row)}; each of its rows needs a criterion, a "
                "text, and may have a weight, a number"
            )
        lines.append(f"- {criterion}" + (f" (weight {weight:g})" if weight != 1 else ""))
    return "\n".join(lines)


def dialogue_of(prompt: Prompt) -> str:
    """What was asked; of several turns each with its speaker."""
    if len(prompt.messages) == 1:
        return prompt.text
    return "\n\n".join(f"{message.role}: {message.content}" for message in prompt.messages)


def safe(found: re.Match[str]) -> str:
    return SAFE[found[0]]


@lru_cache(4096)  # every answer is shown in two orders
def harmless(text: str) -> str:
    """Material as a judge may see it: no control token of a chat template, no verdict in the form of one, nothing that is not seen."""
    text = CONTROL.sub(safe, visible(text.strip()))
    text = VERDICT_WORD.sub(lambda found: f"{found[1]}{found[2]} ", text)
    return DOUBLE_BRACKETS.sub(r"⟦\1⟧", text)


def draw_mark(parts: Sequence[Any], material: Sequence[str]) -> str:
    """Eight digits, the same for the same call, which nobody who wrote the material can have put into it."""
    number = 0
    while (mark := content_hash([number, *parts])[:MARK_DIGITS]) in "\n".join(material):
        number += 1
    return mark
