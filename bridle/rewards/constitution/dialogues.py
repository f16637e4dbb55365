"""Critique and revision as turns of a dialogue: what is asked, what was replied, and one round of it.

    user: the request   assistant: the answer   user: the principle's critique request   assistant: a critique
    user: its revision request   assistant: the answer, revised

A prompt is a list of turns, so the model's own chat template writes it, and whatever engine runs the model answers it: a round takes a
function (prompts → texts). The next round begins from the revised answer, without the critique (Bai 2022, §3.1).
Not kept out: an answer that talks its critic round. It stands in the assistant's own turn, and the critique is read, never the answer.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from bridle.core.records import Message, Prompt
from bridle.rewards.constitution.constitution import Constitution, Principle

Ask = Callable[[Sequence[Prompt]], Sequence[str | None]]  # None: it cannot be asked, as where it is too long
Verdict = Literal["fault", "nothing", "unreadable", "not_asked"]
VERDICTS: tuple[Verdict, ...] = ("fault", "nothing", "unreadable", "not_asked")


@dataclass(frozen=True)
class Step:
    """One round of one answer: `critique` and `revision` are what was replied, None where nothing was; `answer` is the answer after it."""

    principle: str
    verdict: Verdict
    answer: str
    critique: str | None = None
    revision: str | None = None


def draw_principle(constitution: Constitution, prompt: Prompt, number: int, seed: int) -> Principle:
    """The principle of a prompt's round, at random by the seed, the same whatever else is revised."""
    return random.Random(f"{seed}/{prompt.id}/{number}").choice(constitution.principles)


def critique_prompt(prompt: Prompt, answer: str, principle: Principle) -> Prompt:
    """The critic is asked of an answer; the prompt's system message, the principle's examples, then the dialogue itself."""
    head = 1 if prompt.messages[0].role == "system" else 0
    turns = [*prompt.messages[:head]]
    for one in principle.examples:
        spoken = (one.request, one.answer, principle.critique, one.critique, principle.revision, one.revision)
        turns += [Message("assistant" if place % 2 else "user", text) for place, text in enumerate(spoken)]
    turns += [*prompt.messages[head:], Message("assistant", answer), Message("user", principle.critique)]
    return Prompt(tuple(turns), prompt.meta)


def revision_prompt(asked: Prompt, critique: str, principle: Principle) -> Prompt:
    """What follows when the critic has replied to `asked`."""
    turns = (*asked.messages, Message("assistant", critique), Message("user", principle.revision))
    return Prompt(turns, asked.meta)


def read_verdict(constitution: Constitution, critique: str | None) -> Verdict:
    """Whether a critique finds a fault. It finds none where it begins with the constitution's words for that, case and the marks at their
    end apart; an empty one is unreadable."""
    if critique is None:
        return "not_asked"
    text, nothing = (" ".join(one.casefold().split()) for one in (critique, constitution.nothing))
    if not any(letter.isalnum() for letter in text):
        return "unreadable"
    return "nothing" if text.lstrip("\"'“”*_ ").startswith(nothing.rstrip(".!。！ ")) else "fault"


def revise_once(
    constitution: Constitution,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    principles: Sequence[Principle],
    criticise: Ask,
    rewrite: Ask,
) -> list[Step]:
    """A round: each answer is criticised by its principle, and revised where that finds a fault. An answer stays as it was where nothing
    was found, where the critique or the revision is empty, and where one of them could not be asked."""
    asked = [critique_prompt(*row) for row in zip(prompts, answers, principles, strict=True)]
    critiques = criticise(asked)
    verdicts = [read_verdict(constitution, critique) for critique in critiques]
    faulty = [number for number, verdict in enumerate(verdicts) if verdict == "fault"]
    wanted = [revision_prompt(asked[i], critiques[i] or "", principles[i]) for i in faulty]
    revised = dict(zip(faulty, rewrite(wanted) if wanted else (), strict=True))
    return [
        Step(principle.name, verdict, (revised.get(i) or "").strip() or answers[i], critiques[i], revised.get(i))
        for i, (principle, verdict) in enumerate(zip(principles, verdicts, strict=True))
    ]
