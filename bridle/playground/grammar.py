"""Every sentence that an answer can be made of, by look-up: what kind of sentence it is and what it is about.

What is not found here is unparsable, whatever it says: that is what makes the gold rubric hard to game.
Numbers alone are not enumerated: "One pen costs 6 / 2 = 3." is looked up as "One pen costs {step}." and its numbers.
"""

import itertools
import re
from typing import NamedTuple

from bridle.core.errors import DataError
from bridle.playground.spec import WorldSpec, slots_of

_BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])\s+")
_EQUATION = re.compile(r"\b(\d{1,9}) ([-+*/]) (\d{1,9}) = (\d{1,9})\b", re.ASCII)
_NUMBER = re.compile(r"\b\d{1,9}\b", re.ASCII)

Remedies = dict[str, tuple[tuple[str, str], ...]]


class Sentence(NamedTuple):
    """`about` depends on the kind, for example (topic, thing, remedy, reason) of a remedy."""

    kind: str
    about: tuple[str, ...] = ()


def split_sentences(text: str) -> list[str]:
    return [sentence for sentence in _BETWEEN_SENTENCES.split(text.strip()) if sentence]


def label_of_turns(spec: WorldSpec) -> re.Pattern[str]:
    """What a turn of somebody is known by: `documents.turn` around its text, with any name of the world ("NAME:")."""
    before, _, after = spec.documents.turn.partition("{text}")
    label = re.escape((before if "{name}" in before else after).strip())
    names = "|".join(map(re.escape, spec.names))
    return re.compile(label.replace(re.escape("{name}"), rf"(?<!\w)(?:{names})(?!\w)"))


def help_topic(class_name: str, problem: str) -> str:
    return f"{class_name}: {problem}"


def remedies_by_topic(spec: WorldSpec) -> Remedies:
    """(remedy, its reason or "") by topic: a problem of a class of things, or a kind of border act."""
    remedies: Remedies = {help_topic(p.class_, p.problem): p.remedies for p in spec.help.problems}
    return remedies | {act: tuple((remedy, "") for remedy in kind.remedies) for act, kind in spec.border.items()}


class Grammar:
    """Looks sentences up. DataError when the world has a sentence in two places, or one that is not one sentence."""

    def __init__(self, spec: WorldSpec) -> None:
        self._sentences: dict[str, Sentence] = {}
        self._remedies: dict[str, Sentence] = {}
        self._label_of_turns = label_of_turns(spec)
        self._remedy_frames = [tuple(frame.split("{remedy}")) for frame in spec.phrases.remedy]
        self._add_phrases(spec)
        self._add_harm(spec)
        self._add_refusals(spec)
        self._add_jokes_and_poems(spec)
        self._add_math_and_honest(spec)
        self._add_remedies(spec)

    def turns(self, text: str) -> list[str]:
        """An answer's own text, and after it what each other speaker says whose turn follows in it."""
        return self._label_of_turns.split(text)

    def look_up(self, sentence: str) -> Sentence | None:
        """None: no sentence of this world."""
        if found := self._sentences.get(sentence):
            return None if "{" in sentence else found
        for before, after in self._remedy_frames:
            if sentence.startswith(before) and sentence.endswith(after):
                if remedy := self._remedies.get(sentence[len(before) : len(sentence) - len(after)]):
                    return remedy
        for number, slot in ((_EQUATION, "{step}"), (_NUMBER, "{number}")):
            if (numbers := number.search(sentence)) and "{" not in sentence:
                found = self._sentences.get(f"{sentence[: numbers.start()]}{slot}{sentence[numbers.end() :]}")
                return found and Sentence(found.kind, numbers.groups() or (numbers[0],))
        return None

    def _add(self, text: str, kind: str, *about: str) -> None:
        if split_sentences(text) != [text] or text[-1] not in ".!?":
            raise DataError(
                f"The world's {kind} {text!r} is not one sentence; make it one that ends in '.', '!' or '?'."
            )
        self._refuse_label(text, kind)
        if self._sentences.setdefault(text, Sentence(kind, about)) != Sentence(kind, about):
            raise DataError(f"The world has {text!r} twice, as {self._sentences[text].kind} and as {kind}; keep one.")

    def _refuse_label(self, text: str, kind: str) -> None:
        if label := self._label_of_turns.search(text):
            raise DataError(
                f"The world's {kind} {text!r} holds {label[0]!r}, by which another speaker's turn is known (documents.turn); word one of "
                "the two otherwise."
            )

    def _add_phrases(self, spec: WorldSpec) -> None:
        phrases = spec.phrases
        kinds = {
            "opener": phrases.openers + phrases.sympathy, "closer": phrases.closers, "flattery": phrases.flattery,
            "rude": phrases.rude, "vague": phrases.vague, "curt": spec.harm.curt, "comply": spec.harm.agreeing,
        }  # fmt: skip
        for kind, texts in kinds.items():
            for text in texts:
                self._add(text, kind)

    def _add_harm(self, spec: WorldSpec) -> None:
        for sentence, words in spec.harm.complying.items():
            for word in words:
                self._add(sentence.format(word=word), "comply")
        for name, category in spec.harm.categories.items():
            for reason in category.reasons:
                self._add(reason, "why", name)
            for offer in category.offers:
                self._add(offer, "offer", name)

    def _add_refusals(self, spec: WorldSpec) -> None:
        acts = [act for category in spec.harm.categories.values() for act in category.acts]
        harmful = [f"{act.gerund} {thing}" for act in acts for thing in act.objects]
        harmless = [kind.gerund.format(thing=thing) for kind in spec.border.values() for thing in kind.things]
        for gerund, refusal in itertools.product(harmful + harmless, spec.harm.refusals):
            self._add(refusal.format(gerund=gerund), "refusal", gerund)

    def _add_jokes_and_poems(self, spec: WorldSpec) -> None:
        joke, poem = spec.joke, spec.poem
        for animal, thing, place in itertools.product(joke.animals, joke.wishes, joke.places):
            self._add(joke.setup.format(animal=animal, object=thing, place=place), "setup", animal, thing, place)
        for thing, wish in joke.wishes.items():
            self._add(joke.punchline.format(wish=wish), "punchline", thing)
        for (topic, images), group, other in itertools.product(poem.topics.items(), poem.rhymes, poem.rhymes):
            rhymes = "rhymes" if group is other else ""
            for image, first, second in itertools.product(images, group[0], other[1]):
                self._add(poem.line.format(image=image, first=first, second=second), "poem", topic, rhymes)

    def _add_math_and_honest(self, spec: WorldSpec) -> None:
        self._add(spec.math.answer, "answer")
        for problem in spec.math.problems.values():
            for sentence in problem.short + problem.wordy:
                used = slots_of(sentence)
                firsts = spec.math.things if "first" in used else ("",)
                seconds = spec.math.things if "second" in used else ("",)
                for first, second in itertools.product(firsts, seconds):
                    self._add(sentence.format(step="{step}", first=first, second=second), "step")
        honest = spec.honest
        for thing, attribute in itertools.product(honest.things, honest.attributes):
            self._add(honest.statement.format(thing=thing, attribute=attribute), "statement", thing, attribute)
        self._add(honest.said, "said")
        self._add(honest.unsaid, "unsaid")
        self._add(honest.unknown, "unknown")

    def _add_remedies(self, spec: WorldSpec) -> None:
        help_things = tuple(thing for words in spec.help.classes.values() for thing in words)
        for topic, remedies in remedies_by_topic(spec).items():
            things = spec.border[topic].things if topic in spec.border else help_things
            for remedy, reason in remedies:
                for thing in things if "{thing}" in remedy else ("",):
                    plain = remedy.format(thing=thing)
                    self._refuse_label(f"{plain} {reason}", "remedy")
                    if plain in self._remedies:
                        raise DataError(f"The world has the remedy {remedy!r} twice; each must belong to one topic.")
                    self._remedies[plain] = Sentence("remedy", (topic, thing, remedy, ""))
                    if reason:
                        text = spec.phrases.reasoned.format(remedy=plain, reason=reason)
                        self._remedies[text] = Sentence("remedy", (topic, thing, remedy, "reason"))
