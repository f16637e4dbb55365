"""The playground's world: prompts of seven families, answers by authors of three qualities, documents to pretrain on.

    world = World.load()
    prompt = world.prompt(rng)                      # family by weight; prompt.meta holds the slots, JSON-able
    world.answer(rng, prompt, "good")               # what a good author writes

Held out: a prompt whose identifying combination (say problem and thing) hashes to 0 of 10 never occurs in training
prompts or documents. The hash is CRC-32, the same in every process.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bridle.core.errors import DataError
from bridle.core.records import Prompt
from bridle.playground.arithmetic import compute, draw_values, solve, work
from bridle.playground.authors import Authors
from bridle.playground.grammar import help_topic
from bridle.playground.spec import FAMILIES, QUALITIES, Family, Joke, Poem, Quality, Requests, WorldSpec, load_spec

MOST_DRAWS = 100_000  # before a world is said to hold no such prompt


class _Draft(NamedTuple):
    key: tuple[object, ...]  # the identifying combination
    text: str
    slots: dict[str, Any]


class World:
    def __init__(self, spec: WorldSpec) -> None:
        self.spec = spec
        self.families: tuple[Family, ...] = tuple(family for family in FAMILIES if spec.families[family].weight > 0)
        self._weights = [spec.families[family].weight for family in self.families]
        self._authors = Authors(spec)
        self._drafts: dict[Family, Callable[[random.Random], _Draft]] = {
            "help": self._help, "harm": self._harm, "border": self._border, "joke": self._joke, "poem": self._poem,
            "math": self._math, "honest": self._honest,
        }  # fmt: skip
        self._documents: dict[str, Callable[[random.Random], str]] = {
            "thread": self._thread, "advice": self._advice, "table": self._table, "schoolbook": self._schoolbook,
            "reading": self._reading, "sermon": self._sermon,
        }  # fmt: skip
        self._document_kinds, self._document_weights = list(spec.documents.kinds), list(spec.documents.kinds.values())

    @classmethod
    def load(cls, path: Path | None = None) -> World:
        """The default world, or that of a file of the same form. Errors as `load_spec`."""
        return cls(load_spec(path))

    def prompt(self, rng: random.Random, family: Family | None = None, held_out: bool = False) -> Prompt:
        """A prompt to train on, or a held-out one. DataError when the family has none."""
        family = family or self._some_family(rng)
        for _ in range(MOST_DRAWS):
            draft = self._drafts[family](rng)
            if _is_held_out(family, *draft.key) == held_out:
                return Prompt.from_text(draft.text, meta={"family": family, **draft.slots})
        kind = "held-out prompt" if held_out else "prompt to train on"
        raise DataError(f"The world has no {kind} of family {family} in {MOST_DRAWS} draws; give it more words there.")

    def held_out_prompts(self, count: int, seed: int, family: Family | None = None) -> list[Prompt]:
        """`count` held-out prompts of distinct texts, the same for a seed; families by weight unless one is named."""
        rng, found = random.Random(seed), dict[str, Prompt]()
        for _ in range(100 * count):
            if len(found) == count:
                break
            prompt = self.prompt(rng, family, held_out=True)
            found.setdefault(prompt.text, prompt)
        if len(found) < count:
            raise DataError(
                f"The world has only {len(found)} distinct held-out prompts of {family or 'its families'}, "
                f"and {count} were asked for; ask for fewer or give it more words."
            )
        return list(found.values())

    def answer(self, rng: random.Random, prompt: Prompt, quality: Quality) -> str:
        return self._authors.answer(rng, prompt.meta, quality)

    def demonstration(
        self, rng: random.Random, family: Family | None = None, held_out: bool = False
    ) -> tuple[Prompt, str]:
        """A prompt and an answer by a labeller of uneven skill: were all good, RL would have nothing left to do."""
        prompt = self.prompt(rng, family, held_out)
        skills = self.spec.families[prompt.meta["family"]].demonstrations
        return prompt, self.answer(rng, prompt, rng.choices(QUALITIES, skills)[0])

    def worked_solution(self, rng: random.Random, prompt: Prompt, form: Literal["short", "wordy"] | None = None) -> str:
        """A right solution of an arithmetic prompt, step by step; either form, as authors do, unless one is named."""
        if prompt.meta.get("family") != "math":
            raise DataError(f"Only arithmetic has worked solutions; {prompt.text[:40]!r} is of another family.")
        wordy = rng.random() < self.spec.authors["good"].wordy if form is None else form == "wordy"
        sentences, number = work(rng, self.spec.math, prompt.meta, slip=0.0, wordy=wordy)
        return " ".join([*sentences, self.spec.math.answer.format(number=number)])

    def document(self, rng: random.Random) -> str:
        """A text to pretrain on: mostly forum threads with answers of every quality."""
        return self._documents[rng.choices(self._document_kinds, self._document_weights)[0]](rng)

    def _some_family(self, rng: random.Random) -> Family:
        return rng.choices(self.families, self._weights)[0]

    # ------------------------------------------------------------ prompts
    def _help(self, rng: random.Random) -> _Draft:
        help_ = self.spec.help
        problem = rng.choice(help_.problems)
        thing = rng.choice(help_.classes[problem.class_])
        text = rng.choice(help_.texts).format(
            owner=rng.choice(help_.owners), thing=thing, problem=problem.problem, ask=rng.choice(help_.asks)
        )
        slots = {"topic": help_topic(problem.class_, problem.problem), "thing": thing, "problem": problem.problem}
        return _Draft((problem.class_, problem.problem, thing), text, slots)

    def _harm(self, rng: random.Random) -> _Draft:
        requests, categories = self.spec.requests, self.spec.harm.categories
        category = rng.choice(tuple(categories))
        act = rng.choice(categories[category].acts)
        thing, ask = rng.choice(act.objects), rng.choice(requests.asks)
        _, text = _with_context(rng, ask.format(act=f"{act.verb} {thing}"), requests)
        return _Draft((act.verb, thing, ask), text, {"category": category, "gerund": f"{act.gerund} {thing}"})

    def _border(self, rng: random.Random) -> _Draft:
        requests = self.spec.requests
        topic, kind = rng.choice(tuple(self.spec.border.items()))
        thing, ask = rng.choice(kind.things), rng.choice(requests.asks)
        act = topic.format(thing=thing)
        context, text = _with_context(rng, ask.format(act=act), requests)
        slots = {"topic": topic, "thing": thing, "gerund": kind.gerund.format(thing=thing)}
        return _Draft((act, ask, context), text, slots)

    def _joke(self, rng: random.Random) -> _Draft:
        joke = self.spec.joke
        animal, ask, place = rng.choice(joke.animals), rng.choice(joke.asks), ""
        text = ask.format(animal=animal)
        if rng.random() < joke.place:
            place = rng.choice(joke.places)
            text = f"{text} {joke.place_ask.format(place=place)}"
        _, text = _with_context(rng, text, joke)
        return _Draft((animal, ask), text, {"animal": animal, "place": place})

    def _poem(self, rng: random.Random) -> _Draft:
        poem = self.spec.poem
        topic, ask = rng.choice(tuple(poem.topics)), rng.choice(poem.asks)
        context, text = _with_context(rng, ask.format(topic=topic), poem)
        return _Draft((topic, ask, context), text, {"topic": topic})

    def _math(self, rng: random.Random) -> _Draft:
        math = self.spec.math
        problem, name = rng.choice(tuple(math.problems)), rng.choice(self.spec.names)
        first, second = rng.sample(math.things, 2)
        arithmetic = math.problems[problem]
        values = draw_values(rng, arithmetic)
        answer = solve(values, arithmetic.steps)[arithmetic.steps[-1].result]
        text = arithmetic.text.format(name=name, first=first, second=second, **values)
        slots = {"problem": problem, "first": first, "second": second, "values": values, "answer": answer}
        return _Draft((name, problem, *values.values()), text, slots)

    def _honest(self, rng: random.Random) -> _Draft:
        """`attribute` is that of the thing asked about, or "" when the text does not say."""
        honest = self.spec.honest
        count = min(rng.choice(honest.facts), len(self.spec.names))
        names, things = rng.sample(self.spec.names, count), rng.sample(honest.things, count + 1)
        attributes = [rng.choice(honest.attributes) for _ in names]
        asked = count if rng.random() < honest.unanswerable else rng.randrange(count)
        triples = zip(names, attributes, things[:count], strict=True)
        facts = [honest.fact.format(name=name, attribute=attribute, thing=thing) for name, attribute, thing in triples]
        text = " ".join([*facts, rng.choice(honest.asks).format(thing=things[asked])])
        slots = {"thing": things[asked], "attribute": attributes[asked] if asked < count else ""}
        return _Draft((*names, *attributes, *things[:count], things[asked]), text, slots)

    # ------------------------------------------------------------ documents
    def _thread(self, rng: random.Random) -> str:
        """A forum thread: a question, sometimes quoted (which teaches copying), and answers of uneven quality."""
        documents, names, prompt = self.spec.documents, self.spec.names, self.prompt(rng)
        asker = rng.choice(names)
        lines = [documents.turn.format(name=asker, text=prompt.text)]
        if rng.random() < documents.quoted:
            lines.append(documents.quote.format(name=rng.choice(names), asker=asker, text=prompt.text))
        skills = self.spec.families[prompt.meta["family"]].threads
        for quality in rng.choices(QUALITIES, skills, k=rng.choice(documents.answers)):
            lines.append(documents.turn.format(name=rng.choice(names), text=self.answer(rng, prompt, quality)))
        return "\n".join(lines)

    def _advice(self, rng: random.Random) -> str:
        slots, phrases = self.prompt(rng, "help").meta, self.spec.phrases
        problem = next(p for p in self.spec.help.problems if help_topic(p.class_, p.problem) == slots["topic"])
        sentences = [self.spec.documents.advice.format(thing=slots["thing"], problem=slots["problem"])]
        for remedy, reason in rng.sample(problem.remedies, min(2, len(problem.remedies))):
            reasoned = phrases.reasoned.format(remedy=remedy.format(thing=slots["thing"]), reason=reason)
            sentences.append(rng.choice(phrases.remedy).format(remedy=reasoned))
        return " ".join(sentences)

    def _table(self, rng: random.Random) -> str:
        table = self.spec.documents.table
        equations = []
        for _ in range(self.spec.documents.equations):
            operator = rng.choice(tuple(table))
            first, right = (rng.randint(low, high) for low, high in table[operator])
            if operator in "+*":
                left, result = first, compute(first, operator, right)
            else:  # the range is that of the result, so that no number is negative or broken
                left, result = compute(first, "+" if operator == "-" else "*", right), first
            equations.append(f"{left} {operator} {right} = {result}.")
        return " ".join(equations)

    def _schoolbook(self, rng: random.Random) -> str:
        prompt = self.prompt(rng, "math")
        return f"{prompt.text} {self.worked_solution(rng, prompt)}"

    def _reading(self, rng: random.Random) -> str:
        prompt = self.prompt(rng, "honest")
        return f"{prompt.text} {self._authors.truth(rng, prompt.meta)}"

    def _sermon(self, rng: random.Random) -> str:
        harm = self.spec.harm
        category = rng.choice(tuple(harm.categories.values()))
        act = rng.choice(category.acts)
        thought = self.spec.documents.sermon.format(gerund=f"{act.gerund} {rng.choice(act.objects)}")
        return f"{thought} {rng.choice(category.reasons)} {rng.choice(category.offers)}"


def _is_held_out(*key: object) -> bool:
    return zlib.crc32("|".join(map(str, key)).encode()) % 10 == 0


def _with_context(rng: random.Random, text: str, section: Requests | Joke | Poem) -> tuple[str, str]:
    """(context, text), the context before or after the request, or "" for none."""
    if rng.random() >= section.context:
        return "", text
    context = rng.choice(section.contexts)
    return context, f"{text} {context}" if rng.random() < 0.5 else f"{context} {text}"
