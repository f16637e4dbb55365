"""What a world file says (world.toml): word lists, templates, authors, rubric and labelers, validated and frozen.

The code of the playground names no word of any world; whatever it says comes from here. `load_spec` reads such a file.
Not checked: that templates make good English, and that a model can learn them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bridle.core.errors import DataError, RecipeError, brief_repr
from bridle.core.files import read_toml

DEFAULT_WORLD = Path(__file__).with_name("world.toml")

LARGEST = 10**6  # number of a world
LARGEST_RESULT = 10**12  # of its arithmetic

Family = Literal["help", "harm", "border", "joke", "poem", "math", "honest"]
Quality = Literal["good", "mid", "bad"]
DocumentKind = Literal["thread", "advice", "table", "schoolbook", "reading", "sermon"]
Operator = Literal["+", "-", "*", "/"]
Fault = Literal["harm", "rude", "senseless", "refusal", "stray", "untrue", "flawed", "thin"]
FAMILIES: tuple[Family, ...] = get_args(Family)
QUALITIES: tuple[Quality, ...] = get_args(Quality)


def slots_of(template: str) -> set[str]:
    """The names in braces of a template. ValueError where one stands with a width or another conversion: `{thing:>99999999}`."""
    found = [(name, form, conversion) for _, name, form, conversion in Formatter().parse(template) if name is not None]
    if odd := [name for name, form, conversion in found if form or conversion]:
        raise ValueError(
            f"the slot {brief_repr(odd[0])} of {brief_repr(template)} must stand in its braces alone, without ':' or '!'"
        )
    return {name for name, _, _ in found}


def slots(*names: str, optional: bool = False) -> AfterValidator:
    """A template, or each of several, must hold exactly these slots, or with `optional` none but these."""

    def check(templates: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for template in (templates,) if isinstance(templates, str) else templates:
            found = slots_of(template)
            if not found <= set(names) or (not optional and found != set(names)):
                needed = " ".join(f"{{{name}}}" for name in names) or "none"
                raise ValueError(f"the slots in braces of {brief_repr(template)} must be {needed}")
        return templates

    return AfterValidator(check)


def having(what: str, names: tuple[str, ...]) -> AfterValidator:
    """A table must have all these keys."""

    def check(table: dict[str, object]) -> dict[str, object]:
        if missing := [name for name in names if name not in table]:
            raise ValueError(f"{what} {missing[0]!r} is missing; add it")
        return table

    return AfterValidator(check)


def _in_order(range_: tuple[int, int]) -> tuple[int, int]:
    if range_[0] > range_[1]:
        raise ValueError(f"the range {list(range_)} ends before it starts")
    return range_


def _some_above_zero(weights: tuple[float, ...] | dict[str, float]) -> tuple[float, ...] | dict[str, float]:
    if not any(weights.values() if isinstance(weights, dict) else weights):
        raise ValueError("at least one weight must be above 0")
    return weights


def _whole_rubric(points: Mapping[str, float]) -> Mapping[str, float]:
    if wrong := set(points) ^ set(RUBRIC):
        raise ValueError(f"it needs exactly the default world's names, and {sorted(wrong)[0]!r} is missing or unknown")
    return points


# Names of the gold rubric's points and limits; world.toml says beside each what it is for.
RUBRIC = """
least most empty not_ended sentences surplus_sentence unparsable repeated irrelevant flattery rude vague
courtesy surplus_courtesy courtesy_to_harm
first_remedy second_remedy third_remedy surplus_remedy same_remedy irrelevant_remedy reason
refusal refusal_of_another curt_refusal second_refusal needless_refusal complying
why offer wrong_category surplus_why_or_offer
setup setup_of_another wrong_place punchline surplus_joke topic off_topic rhyme no_rhyme second_poem
steps right_step wrong_step surplus_step right_answer wrong_answer second_answer no_answer
truth invented needless_unknown source wrong_source
""".split()

Word = Annotated[str, Field(min_length=1)]
Words = Annotated[tuple[Word, ...], Field(min_length=1)]
Remedy = Annotated[Word, slots("thing", optional=True)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=LARGEST)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Whole = Annotated[int, Field(strict=True, ge=-LARGEST, le=LARGEST)]
Few = Annotated[int, Field(strict=True, ge=0, le=100)]  # in one document
Range = Annotated[tuple[Whole, Whole], AfterValidator(_in_order)]  # inclusive
Skills = Annotated[tuple[Weight, Weight, Weight], AfterValidator(_some_above_zero)]  # of good, mid and bad authors
Plans = Annotated[dict[str, Weight], AfterValidator(_some_above_zero)]  # moves, with weights


class SpecPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=10_000)


class FamilySpec(SpecPart):
    weight: Weight
    courtesy: Share
    demonstrations: Skills
    threads: Skills


class Documents(SpecPart):
    kinds: Annotated[dict[DocumentKind, Weight], AfterValidator(_some_above_zero)]
    quoted: Share
    answers: Annotated[tuple[Few, ...], Field(min_length=1)]
    turn: Annotated[Word, slots("name", "text")]
    quote: Annotated[Word, slots("name", "asker", "text")]
    advice: Annotated[Word, slots("thing", "problem")]
    sermon: Annotated[Word, slots("gerund")]
    equations: Few
    table: dict[Operator, tuple[Range, Range]]


class Phrases(SpecPart):
    openers: Words
    sympathy: Words
    closers: Words
    flattery: Words
    rude: Words
    vague: Words
    remedy: Annotated[Words, slots("remedy")]
    reasoned: Annotated[Word, slots("remedy", "reason")]


class Problem(SpecPart):
    class_: Word = Field(alias="class")
    problem: Word
    remedies: Annotated[tuple[tuple[Remedy, Word], ...], Field(min_length=1)]  # each with its reason


class Help(SpecPart):
    owners: Words
    asks: Words
    texts: Annotated[Words, slots("owner", "thing", "problem", "ask")]
    classes: Annotated[dict[str, Words], Field(min_length=1)]
    problems: Annotated[tuple[Problem, ...], Field(min_length=2)]  # a stray remedy needs another problem

    @model_validator(mode="after")
    def _classes_exist(self) -> Help:
        for problem in self.problems:
            if problem.class_ not in self.classes:
                raise ValueError(f"problem {problem.problem!r} is of an unknown class {problem.class_!r}")
        return self


class Requests(SpecPart):
    asks: Annotated[Words, slots("act")]
    context: Share
    contexts: Words


class Act(SpecPart):
    verb: Word
    gerund: Word
    objects: Words


class Category(SpecPart):
    acts: Annotated[tuple[Act, ...], Field(min_length=1)]
    reasons: Words
    offers: Words


class Harm(SpecPart):
    refusals: Annotated[Words, slots("gerund")]
    curt: Words
    agreeing: Words
    complying: Annotated[dict[Annotated[Word, slots("word")], Words], Field(min_length=1)]
    categories: Annotated[dict[str, Category], Field(min_length=1)]


class BorderKind(SpecPart):
    """Harmless acts that sound harmful, one for each thing; those remedies that name the thing are for it alone."""

    gerund: Annotated[Word, slots("thing")]
    things: Words
    remedies: Annotated[tuple[Remedy, ...], Field(min_length=1)]


class Joke(SpecPart):
    animals: Annotated[Words, Field(min_length=2)]
    places: Words
    asks: Annotated[Words, slots("animal")]
    place: Share
    place_ask: Annotated[Word, slots("place")]
    context: Share
    contexts: Words
    setup: Annotated[Word, slots("animal", "object", "place")]
    punchline: Annotated[Word, slots("wish")]
    wishes: Annotated[dict[str, Word], Field(min_length=2)]


class Poem(SpecPart):
    asks: Annotated[Words, slots("topic")]
    context: Share
    contexts: Words
    line: Annotated[Word, slots("image", "first", "second")]
    rhymes: Annotated[tuple[tuple[Words, Words], ...], Field(min_length=2)]  # first and second half-lines
    topics: Annotated[dict[str, Words], Field(min_length=2)]


class Equation(SpecPart):
    """`result = left operator right`, its operands names or whole numbers."""

    result: str
    left: str
    operator: Operator
    right: str

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, text: object) -> object:
        found = re.fullmatch(r"(\w+) = (\w+) ([-+*/]) (\w+)", text) if isinstance(text, str) else None
        if not found:
            raise ValueError(f"an equation looks like 'rest = total - cost', and {text!r} does not")
        return dict(zip(("result", "left", "operator", "right"), found.groups(), strict=True))


class Arithmetic(SpecPart):
    text: Word
    draw: Annotated[dict[str, Range], Field(min_length=1)]
    given: tuple[Equation, ...]
    steps: Annotated[tuple[Equation, ...], Field(min_length=1)]
    short: Words
    wordy: Words

    @model_validator(mode="after")
    def _complete(self) -> Arithmetic:
        if not len(self.short) == len(self.wordy) == len(self.steps):
            raise ValueError(f"{len(self.steps)} steps need as many short and as many wordy sentences")
        for sentence in self.short + self.wordy:
            if sentence.count("{step}") != 1 or not slots_of(sentence) <= {"step", "first", "second"}:
                raise ValueError(f"{sentence!r} needs {{step}} once, and else only {{first}} {{second}}")
        known = {name: max(abs(low), abs(high)) for name, (low, high) in self.draw.items()}  # how large each may become
        allowed = set(known) | {equation.result for equation in self.given} | {"name", "first", "second"}
        if unknown := slots_of(self.text) - allowed:
            raise ValueError(f"the text has an unknown slot {sorted(unknown)[0]!r}")
        for equation in self.given + self.steps:
            for operand in (equation.left, equation.right):
                if operand not in known and not (operand.isdecimal() and len(operand) < 10):
                    raise ValueError(f"{operand!r} is used before it is known; known are {sorted(known)}")
            left, right = (known[o] if o in known else int(o) for o in (equation.left, equation.right))
            known[equation.result] = left * right if equation.operator == "*" else left + right
            if known[equation.result] > LARGEST_RESULT:
                raise ValueError(f"{equation.result!r} may become larger than {LARGEST_RESULT}; draw smaller numbers")
        return self


class Math(SpecPart):
    things: Annotated[Words, Field(min_length=2)]
    answer: Annotated[Word, slots("number")]
    problems: Annotated[dict[str, Arithmetic], Field(min_length=1)]


class Honest(SpecPart):
    things: Words
    attributes: Annotated[Words, Field(min_length=2)]
    facts: Annotated[tuple[Annotated[int, Field(strict=True, ge=1)], ...], Field(min_length=1)]
    fact: Annotated[Word, slots("name", "attribute", "thing")]
    asks: Annotated[Words, slots("thing")]
    unanswerable: Share
    statement: Annotated[Word, slots("thing", "attribute")]
    said: Word
    unknown: Word
    unsaid: Word

    @model_validator(mode="after")
    def _something_left_to_ask(self) -> Honest:
        if len(self.things) <= max(self.facts):
            raise ValueError(f"{max(self.facts)} facts need at least one thing more, got {len(self.things)}")
        return self


class Author(SpecPart):
    rude: Share
    flattery: Share
    opener: Share
    closer: Share
    reason: Share
    slip: Share
    wordy: Share
    lucky: Share
    plans: Annotated[dict[Family, Plans], having("family", FAMILIES)]


class Labeler(SpecPart):
    """One simulated person; labelers.py says how these numbers make a judgement."""

    name: Word
    skill: Number
    noise: Weight
    side_bias: Number
    flattery_bias: Number
    length_bias: Number
    fatigue: Weight
    tired_after: Annotated[float, Field(gt=0)]
    topics: Mapping[Family, Number]


class SpokenFault(SpecPart):
    text: Word
    grade: Number


class CritiquedBy(SpecPart):
    name: Word
    about: Word
    critique: Word
    revision: Word
    faults: Annotated[tuple[Fault, ...], Field(min_length=1)]


class Critiques(SpecPart):
    """What a critic says of answers, and what it is asked; critiques.py says when a fault holds."""

    name: Word
    language: Word
    grading: Word
    nothing: Word
    nothing_grade: Number
    harmful: Share
    stray: Share
    garbled: Share
    faults: Annotated[dict[Fault, SpokenFault], Field(min_length=1)]
    principles: Annotated[tuple[CritiquedBy, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _can_be_asked_and_read(self) -> Critiques:
        spoken = [self.nothing, *(fault.text for fault in self.faults.values())]
        names = [principle.name for principle in self.principles]
        if len(set(spoken)) < len(spoken) or len(set(names)) < len(names):
            raise ValueError("two of its verdicts, or two of its principles, are called the same")
        if self.grading not in names:
            raise ValueError(f"grading names {self.grading!r}, and the principles are {', '.join(names)}")
        if unknown := {fault for principle in self.principles for fault in principle.faults} - set(self.faults):
            raise ValueError(f"a principle asks for {sorted(unknown)[0]!r}, which is not among its faults")
        return self


class WorldSpec(SpecPart):
    names: Annotated[Words, Field(min_length=2)]
    families: Annotated[dict[Family, FamilySpec], having("family", FAMILIES)]
    documents: Documents
    phrases: Phrases
    help: Help
    requests: Requests
    harm: Harm
    border: Annotated[dict[Annotated[Word, slots("thing")], BorderKind], Field(min_length=1)]  # by act
    joke: Joke
    poem: Poem
    math: Math
    honest: Honest
    authors: Annotated[dict[Quality, Author], having("author", QUALITIES)]
    rubric: Annotated[Mapping[str, Number], AfterValidator(_whole_rubric)]
    labelers: Annotated[tuple[Labeler, ...], Field(min_length=1)]
    constitution: Critiques | None = Field(
        default=None, exclude=True
    )  # changes nothing else that the world makes, nor its hash

    @field_validator("families")
    @classmethod
    def _some_family_occurs(cls, families: dict[Family, FamilySpec]) -> dict[Family, FamilySpec]:
        if not any(family.weight for family in families.values()):
            raise ValueError("every weight is 0, and at least one family must occur")
        return families


def load_spec(path: Path | None = None) -> WorldSpec:
    """The world of a TOML file, or the default one. RecipeError: no such file. DataError: not a world."""
    path = path or DEFAULT_WORLD
    try:
        data = read_toml(path)
    except OSError as error:
        raise RecipeError(
            f"The world file {path} cannot be read ({error.strerror}); give a TOML file like {DEFAULT_WORLD.name}."
        ) from error
    except ValueError as error:
        raise DataError(f"The world file {path} is not valid TOML ({error}); mend it there.") from error
    try:
        return WorldSpec.model_validate(data)
    except ValidationError as error:
        raise DataError(f"The world file {path} is not a world: {_first_fault(error)}") from error


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    where, key = ".".join(map(str, fault["loc"])), str(fault["loc"][-1])
    if fault["type"] == "missing":
        return f"it lacks {where}; add it as in {DEFAULT_WORLD.name}."
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key[:100], _known_keys(), n=1)
        return f"it has an unknown key {brief_repr(where)[1:-1]}; " + (
            f"did you mean {near[0]!r}?" if near else "remove it."
        )
    return f"{brief_repr(where)[1:-1]} is wrong ({fault['msg']}), got {brief_repr(fault['input'], 57)}."


def _known_keys() -> list[str]:
    return sorted({key for section in SpecPart.__subclasses__() for key in section.model_fields})
