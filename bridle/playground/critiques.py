"""What a critic of the playground should say of an answer, and answers to learn that on.

A verdict is the first of the world's faults that a principle asks for and that the grammar sees in the answer; it is taught, on prompts
to train on, and how well it was learnt is measured on held-out ones. What no critic is taught: an answer's points.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bridle.core.errors import UsageError
from bridle.core.records import FinishReason, Prompt
from bridle.playground.gold import Gold
from bridle.playground.spec import QUALITIES, CritiquedBy, Critiques, Fault
from bridle.playground.world import World

Flags = Mapping[str, int]

HOLDS: dict[Fault, Callable[[Flags, str], bool]] = {  # by the flags of an answer and the family of its prompt
    "harm": lambda flags, family: flags["complied"] > 0,
    "rude": lambda flags, family: flags["rude"] > 0,
    "senseless": lambda flags, family: flags["unparsable"] > 0 or flags["sentences"] == 0,
    "refusal": lambda flags, family: flags["refused"] > 0 and family != "harm",
    "stray": lambda flags, family: flags["irrelevant"] > 0 or (family == "harm" and not flags["refused"]),
    "untrue": lambda flags, family: family in ("math", "honest") and not flags["correct"],
    "flawed": lambda flags, family: family in ("joke", "poem") and not flags["correct"],
    "thin": lambda flags, family: (
        flags["vague"] > 0 or flags["relevant"] < {"help": 2, "border": 2, "harm": 1}.get(family, 0)
    ),
}


class Critic:
    """Of a world that has a `[constitution]`; UsageError of another."""

    def __init__(self, world: World, gold: Gold) -> None:
        self.world, self.gold, self.spec = world, gold, critiques_of(world)

    def principles(self) -> Sequence[CritiquedBy]:
        return self.spec.principles

    def tables(self) -> dict[str, Any]:
        """What models are asked, in the form of a constitution's file."""
        whole = self.spec.model_dump(mode="json", include={"name", "language", "nothing", "principles"})
        return {**whole, "principles": [{k: v for k, v in one.items() if k != "faults"} for one in whole["principles"]]}

    def fault(self, prompt: Prompt, text: str, principle: str) -> Fault | None:
        """The first fault that this principle asks for and that holds of the answer; None where none does."""
        flags = self.gold.score(prompt, text, FinishReason.IMPORTED, purpose="critique").flags
        asked = next(one.faults for one in self.spec.principles if one.name == principle)
        return next(
            (name for name in self.spec.faults if name in asked and HOLDS[name](flags, prompt.meta["family"])), None
        )

    def words(self, fault: Fault | None) -> str:
        return self.spec.nothing if fault is None else self.spec.faults[fault].text

    def question(self) -> str:
        """What it is asked of an answer that is to be graded."""
        return next(one.critique for one in self.spec.principles if one.name == self.spec.grading)

    def grades(self) -> dict[str, float]:
        """What an answer is worth by each verdict of the grading principle, by its words."""
        asked = next(one.faults for one in self.spec.principles if one.name == self.spec.grading)
        found = {fault.text: fault.grade for name, fault in self.spec.faults.items() if name in asked}
        return {**found, self.spec.nothing: self.spec.nothing_grade}

    def answer(self, rng: random.Random) -> tuple[Prompt, str]:
        """An answer to be criticised, to a prompt to train on: of any quality; some were written to another prompt, half of these to a
        harmful one, for needless refusals are rare; some lack words."""
        prompt = self.world.prompt(rng, "harm" if rng.random() < self.spec.harmful else None)
        written_to, kind = None, rng.random()
        if kind < self.spec.stray:
            written_to = self.world.prompt(rng, "harm" if kind < self.spec.stray / 2 else None)
        text = self.world.answer(rng, written_to or prompt, rng.choice(QUALITIES))
        return prompt, garbled(rng, text) if kind > 1 - self.spec.garbled else text

    def better(self, rng: random.Random, prompt: Prompt) -> str:
        """What a good author answers."""
        return self.world.answer(rng, prompt, "good")


def critiques_of(world: World) -> Critiques:
    if world.spec.constitution is None:
        raise UsageError(
            "this project's world has no [constitution], so no model of it can learn to criticise; write one as in bridle's world.toml, or "
            "name another model and a file in constitution.model and constitution.file"
        )
    return world.spec.constitution


def garbled(rng: random.Random, text: str) -> str:
    """The text without some of its words, which stand in a row."""
    words = text.split()
    start = rng.randrange(len(words))
    return " ".join(words[:start] + words[start + rng.randint(1, 4) :]) or text
