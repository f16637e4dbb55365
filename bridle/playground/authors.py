"""Authors of three qualities: what they write in answer to a prompt of the playground.

A plan of the world file is a list of moves ("refusal why offer"); each move is a method of `_Draft` that gives one or
more sentences, or "" when it has nothing left to say.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bridle.core.errors import DataError
from bridle.playground.arithmetic import work
from bridle.playground.grammar import Remedies, help_topic, remedies_by_topic
from bridle.playground.spec import Author, Category, Family, Quality, WorldSpec

Slots = Mapping[str, Any]

COMES_FIRST = 2 / 3  # how often a rude or flattering sentence stands before the rest rather than after it


class Authors:
    def __init__(self, spec: WorldSpec) -> None:
        self._spec = spec
        self._remedies = remedies_by_topic(spec)
        self._plans = {
            (quality, family): _resolve(plans, quality, family)
            for quality, author in spec.authors.items()
            for family, plans in author.plans.items()
        }

    def answer(self, rng: random.Random, slots: Slots, quality: Quality) -> str:
        """An answer to the prompt with these slots (its `meta`)."""
        spec, family = self._spec, slots["family"]
        author, phrases = spec.authors[quality], spec.phrases
        plans = self._plans[quality, family]
        draft = _Draft(spec, self._remedies, rng, slots, author)
        moves = rng.choices(plans.moves, plans.weights)[0]
        sentences = [sentence for move in moves if (sentence := move(draft))]
        if rng.random() < author.rude:
            _place(rng, sentences, rng.choice(phrases.rude))
            return " ".join(sentences)
        if not sentences:
            sentences.append(draft.vague())
        courtesy = spec.families[family].courtesy
        if rng.random() < courtesy * author.opener:
            sympathy = phrases.sympathy if family == "help" else ()
            sentences.insert(0, rng.choice(phrases.openers + sympathy))
        if rng.random() < courtesy * author.closer:
            sentences.append(rng.choice(phrases.closers))
        if rng.random() < author.flattery:
            _place(rng, sentences, rng.choice(phrases.flattery))
        return " ".join(sentences)

    def truth(self, rng: random.Random, slots: Slots) -> str:
        """The right answer to a prompt of the honest family, with its source."""
        draft = _Draft(self._spec, self._remedies, rng, slots, self._spec.authors["good"])
        return f"{draft.truth()} {draft.source()}"


def _place(rng: random.Random, sentences: list[str], sentence: str) -> None:
    sentences.insert(0 if rng.random() < COMES_FIRST else len(sentences), sentence)


def other(rng: random.Random, words: tuple[str, ...], word: str) -> str:
    """One of `words` that is not `word`."""
    return rng.choice([w for w in words if w != word])


@dataclass(slots=True)
class _Draft:
    """One answer in the making, and what its sentences have to agree on."""

    spec: WorldSpec
    remedies: Remedies
    rng: random.Random
    slots: Slots
    author: Author
    unused: list[tuple[str, str]] | None = field(default=None, init=False)  # remedies not given yet
    object: str = field(default="", init=False)  # of the joke's setup
    number: int = field(default=0, init=False)  # that the work arrived at

    def vague(self) -> str:
        return self.rng.choice((*self.spec.phrases.vague, self.spec.honest.unknown))

    # help and border
    def remedy(self) -> str:
        if self.unused is None:
            self.unused = list(self.remedies[self.slots["topic"]])
            self.rng.shuffle(self.unused)
        return self._remedy(*self.unused.pop(), self.slots["thing"]) if self.unused else ""

    def stray_remedy(self) -> str:
        """A remedy for another problem, of this thing if it is one that has problems."""
        while True:
            problem = self.rng.choice(self.spec.help.problems)
            if help_topic(problem.class_, problem.problem) != self.slots["topic"]:
                break
        of_help = self.slots["family"] == "help"
        thing = self.slots["thing"] if of_help else self.rng.choice(self.spec.help.classes[problem.class_])
        return self._remedy(self.rng.choice(problem.remedies)[0], "", thing)

    def _remedy(self, remedy: str, reason: str, thing: str) -> str:
        phrases, text = self.spec.phrases, remedy.format(thing=thing)
        if reason and self.rng.random() < self.author.reason:
            text = phrases.reasoned.format(remedy=text, reason=reason)
        return self.rng.choice(phrases.remedy).format(remedy=text)

    # harm and, needlessly, border
    def refusal(self) -> str:
        return self.rng.choice(self.spec.harm.refusals).format(gerund=self.slots["gerund"])

    def why(self) -> str:
        return self.rng.choice(self._category().reasons)

    def offer(self) -> str:
        return self.rng.choice(self._category().offers)

    def _category(self) -> Category:
        """That of the harm asked for; any where none was."""
        categories = self.spec.harm.categories
        return categories[self.slots.get("category") or self.rng.choice(tuple(categories))]

    def curt(self) -> str:
        return self.rng.choice(self.spec.harm.curt)

    def agree(self) -> str:
        return self.rng.choice(self.spec.harm.agreeing)

    def instruct(self) -> str:
        """The complying sentences in order, one time in three without the first."""
        steps = list(self.spec.harm.complying.items())
        if len(steps) > 1 and self.rng.random() < 1 / 3:
            steps = steps[1:]
        return " ".join(sentence.format(word=self.rng.choice(words)) for sentence, words in steps)

    # joke
    def setup(self, stray: bool = False) -> str:
        joke, animal = self.spec.joke, self.slots["animal"]
        if stray:
            animal = other(self.rng, joke.animals, animal)
        self.object = self.rng.choice(tuple(joke.wishes))
        place = self.slots["place"] or self.rng.choice(joke.places)
        return joke.setup.format(animal=animal, object=self.object, place=place)

    def punchline(self, stray: bool = False) -> str:
        joke, wishes = self.spec.joke, tuple(self.spec.joke.wishes)
        wished = other(self.rng, wishes, self.object) if stray else self.object or self.rng.choice(wishes)
        return joke.punchline.format(wish=joke.wishes[wished])

    # poem
    def poem(self, stray: bool = False, rhymed: bool = True) -> str:
        rng, poem, topic = self.rng, self.spec.poem, self.slots["topic"]
        if stray:
            topic = other(rng, tuple(poem.topics), topic)
        group, other_group = rng.sample(poem.rhymes, 2)
        first, second = rng.choice(group[0]), rng.choice((group if rhymed else other_group)[1])
        return poem.line.format(image=rng.choice(poem.topics[topic]), first=first, second=second)

    # math
    def work(self) -> str:
        wordy = self.rng.random() < self.author.wordy
        sentences, self.number = work(self.rng, self.spec.math, self.slots, self.author.slip, wordy)
        return " ".join(sentences)

    def answer(self) -> str:
        return self.spec.math.answer.format(number=self.number)

    def guess(self) -> str:
        right: int = self.slots["answer"]
        if self.rng.random() < self.author.lucky:
            self.number = right
        else:
            near = [right + offset for offset in (-3, -2, -1, 1, 2, 3) if right + offset >= 0]
            self.number = self.rng.choice(near)
        return self.answer()

    # honest
    def truth(self) -> str:
        return self._statement(self.slots["attribute"]) if self.slots["attribute"] else self.spec.honest.unknown

    def source(self) -> str:
        return self.spec.honest.said if self.slots["attribute"] else self.spec.honest.unsaid

    def untruth(self) -> str:
        """What the text does not say; or half the time, where it does, not knowing."""
        if self.slots["attribute"] and self.rng.random() < 0.5:
            return self.spec.honest.unknown
        return self._statement(other(self.rng, self.spec.honest.attributes, self.slots["attribute"]))

    def _statement(self, attribute: str) -> str:
        return self.spec.honest.statement.format(thing=self.slots["thing"], attribute=attribute)


Move = Callable[[_Draft], str]

# fmt: off
ANYWHERE: dict[str, Move] = {"vague": _Draft.vague}
REMEDIES: dict[str, Move] = {"remedy": _Draft.remedy, "stray_remedy": _Draft.stray_remedy, "curt": _Draft.curt}
REFUSALS: dict[str, Move] = {"refusal": _Draft.refusal, "why": _Draft.why, "offer": _Draft.offer, "curt": _Draft.curt}
MOVES: dict[Family, dict[str, Move]] = {
    "help": REMEDIES,
    "border": REMEDIES | REFUSALS,
    "harm": REFUSALS | {"agree": _Draft.agree, "instruct": _Draft.instruct},
    "joke": {"setup": _Draft.setup, "stray_setup": lambda draft: draft.setup(stray=True),
             "punchline": _Draft.punchline, "stray_punchline": lambda draft: draft.punchline(stray=True)},
    "poem": {"poem": _Draft.poem, "unrhymed_poem": lambda draft: draft.poem(rhymed=False),
             "stray_poem": lambda draft: draft.poem(stray=True),
             "unrhymed_stray_poem": lambda draft: draft.poem(stray=True, rhymed=False)},
    "math": {"work": _Draft.work, "answer": _Draft.answer, "guess": _Draft.guess},
    "honest": {"truth": _Draft.truth, "source": _Draft.source, "untruth": _Draft.untruth},
}
# fmt: on


class _Plans(NamedTuple):
    moves: list[list[Move]]
    weights: list[float]


def _resolve(plans: Mapping[str, float], quality: Quality, family: Family) -> _Plans:
    known = MOVES[family] | ANYWHERE
    for plan in plans:
        if unknown := [name for name in plan.split() if name not in known]:
            raise DataError(
                f"The {quality} author's plan {plan!r} for family {family} has an unknown move {unknown[0]!r}; "
                f"use some of {', '.join(sorted(known))}."
            )
    return _Plans([[known[name] for name in plan.split()] for plan in plans], list(plans.values()))
