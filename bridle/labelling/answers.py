"""What a person answers, by the positions that they see, and what it says of the canonical slots. Pure functions: nothing here is stored.

A worked example: slots are shown in the order (1, 0), and the person says -2, "A is better". A is slot 1, so the ranking is ((1,), (0,)),
and the strength 2. Of -3 … 3 the sign tells which of the two is better, and the amount is the strength: 1 slightly, 2 clearly, 3 much
better; 0 is a tie. (A strength of 0, "hardly better", is one that imported data may have.)
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bridle.core.errors import DataError
from bridle.core.records import UNDECIDED, Completion, Judgement, LabelerKind, Rating, content_hash
from bridle.feedback.store.assignment import Asked
from bridle.site.languages import translate

FLAGS = ("harmful", "untrue", "personal", "broken", "names_model", "other")
OVERALL = "overall"  # what a rating on the whole is called in forms; of its record the criterion is None
LONGEST_TEXT, LONGEST_NOTE = 1_000_000, 10_000  # characters
UNSTORABLE = re.compile("[\0\ud800-\udfff]")

Form = Mapping[str, str | Sequence[str]]
Order = Sequence[int]
Meaning = tuple[tuple[tuple[int, ...], ...], str, int | None]  # ranking, outcome, strength


class Unfinished(DataError):
    """Something is missing of an answer: a key of the catalogue, and the criterion by which it is."""

    def __init__(self, key: str, name: str = "") -> None:
        super().__init__(translate("en", key, {"name": name}))
        self.key, self.name = key, name


def plain(text: Any) -> Any:
    """Line ends as people's own, and no character that a database refuses."""
    return UNSTORABLE.sub("\ufffd", text.replace("\r\n", "\n")) if isinstance(text, str) else text


Verdict = Annotated[int, Field(strict=True, ge=-3, le=3)] | Literal["both_good", "both_bad", "cannot_judge", "skip"]
Places = Annotated[list[Annotated[int, Field(ge=1, le=9)] | None], Field(max_length=9)]
Position = Annotated[int, Field(ge=0, le=8)]
Name = Annotated[str, BeforeValidator(plain), Field(min_length=1, max_length=100)]
Note = Annotated[str, BeforeValidator(plain), Field(max_length=LONGEST_NOTE)]
Text = Annotated[str, BeforeValidator(plain), Field(max_length=LONGEST_TEXT)]


class Answer(BaseModel):
    """One answer to one task. Positions are those of display, 0 the first; `places` gives each its place, 1 the best, equal for a tie."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    item: str = Field(pattern="^[0-9a-f]{64}$", description="the task's item")
    key: str = Field(min_length=1, max_length=80, pattern=r"^[\w.~:-]+$", description="sent again, it adds nothing")
    verdict: Verdict | None = Field(
        default=None, description="-3: the first shown is much better; 0: equal; 3: the second"
    )
    places: Places | None = None
    criteria: dict[Name, Verdict | Places] = Field(default={}, max_length=20)
    ratings: dict[Name, dict[Position, Annotated[int, Field(ge=1, le=5)]]] = Field(default={}, max_length=21)
    flags: dict[Position, list[Literal[FLAGS]]] = {}  # type: ignore[valid-type]
    flag_notes: dict[Position, Note] = {}
    edits: dict[Position, Text] = {}
    written: Text = ""
    rationale: Note = ""
    checked_at: Annotated[str, BeforeValidator(plain)] = Field(
        default="", max_length=2000, description="an address, kept as text and never fetched"
    )
    active_seconds: float | None = Field(default=None, ge=0)
    guideline: str | None = Field(default=None, pattern="^[0-9a-f]{64}$", description="the guideline that was shown")

    @property
    def digest(self) -> str:
        """What was said, without how long it took: tells an answer sent again from another one with its key."""
        return content_hash(self.model_dump(mode="json", exclude={"active_seconds", "guideline"}))[:16]


def stored_key(labeler: str, key: str, criterion: str | None = None) -> str:
    """What a judgement carries of a form's key: nobody's answers get in the way of another's that has the same one."""
    return content_hash([labeler, key, criterion])


@dataclass(frozen=True)
class Stated:
    """The judgement on the whole first, then those by criterion; `written` are new answers, each with the slot that it edits or None."""

    judgements: list[Judgement]
    ratings: list[Rating]
    written: list[tuple[int | None, Completion]]


# ---------------------------------------------------------------------------------------------------------- forms


def answer_of_form(form: Form) -> Answer:
    """The answer that a form's fields give. Raises DataError. Fields that are none of its own are left alone."""
    fields: dict[str, Any] = {}
    for name, value in form.items():
        values = [value] if isinstance(value, str) else list(value)
        if values and values[-1] != "":
            put_field(fields, name, values)
    try:
        return Answer.model_validate(fields)
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        given = str(wrong["input"])[:60]
        raise DataError(f"{where!r} of the answer is invalid: {wrong['msg']}, but got {given!r}") from error


def put_field(fields: dict[str, Any], name: str, values: list[str]) -> None:
    head, _, rest = name.partition(".")
    value = values[-1]
    if name in ("item", "key", "written", "rationale", "checked_at", "guideline"):
        fields[name] = value
    elif name == "active_seconds":
        fields[name] = seconds_in(value)
    elif name == "verdict":
        fields[name] = verdict_in(value)
    elif found := re.fullmatch(r"(?:criterion\.(.+)\.)?place_([0-8])", name, re.DOTALL):
        within, key = (fields, "places") if found[1] is None else (fields.setdefault("criteria", {}), found[1])
        places = within.setdefault(key, [])
        if isinstance(places, list):
            places.extend([None] * (int(found[2]) + 1 - len(places)))
            places[int(found[2])] = digits_in(value)
    elif head == "criterion":
        fields.setdefault("criteria", {})[rest] = verdict_in(value)
    elif head == "rating":
        criterion, _, position = rest.rpartition(".")
        fields.setdefault("ratings", {}).setdefault(criterion, {})[position] = digits_in(value)
    elif head in ("flag", "flag_note", "edit"):
        fields.setdefault(f"{head}s", {})[rest] = [one for one in values if one] if head == "flag" else value


def digits_in(value: str) -> int | str:
    return int(value) if re.fullmatch("-?[0-9]{1,3}", value) else value


verdict_in: Callable[[str], int | str] = digits_in


def seconds_in(value: str) -> float | None:
    """Counted by a script; what it could not count is not known."""
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if 0 <= seconds < 1e7 else None


# ------------------------------------------------------------------------------------------------ canonical slots


def said_by_verdict(verdict: int | str, order: Order) -> Meaning:
    """What a verdict says of the slots that are shown in this order."""
    if isinstance(verdict, str) and verdict in UNDECIDED:
        return (), verdict, None
    if not isinstance(verdict, int) or verdict == 0:
        return (tuple(sorted(order)),), verdict if isinstance(verdict, str) else "", None
    if len(order) != 2:
        raise DataError(f"the verdict {verdict} compares two answers, but there are {len(order)}; give each a place")
    better, worse = order if verdict < 0 else (order[1], order[0])
    return ((better,), (worse,)), "", abs(verdict)


def said_by_places(places: Sequence[int | None] | None, order: Order) -> Meaning:
    """What places, each of the answer shown there, say of the slots: the best group first."""
    if not places or len(places) < len(order) or None in places:
        raise Unfinished("label.needs_places")
    if len(places) > len(order):
        raise DataError(f"{len(places)} places were given to {len(order)} answers")
    groups: dict[int, list[int]] = {}
    for slot, place in zip(order, places, strict=True):
        groups.setdefault(place or 0, []).append(slot)
    return tuple(tuple(sorted(groups[place])) for place in sorted(groups)), "", None


def said_on_the_whole(answer: Answer, kind: str, order: Order, needed: Sequence[str]) -> Meaning:
    """`needed`: what each answer of a rating must be rated by."""
    if answer.verdict in UNDECIDED:
        return said_by_verdict(str(answer.verdict), order)
    if kind == "demonstration":
        if not answer.written.strip():
            raise Unfinished("label.needs_text")
        return (), "", None
    if kind == "rating":
        for name in needed:
            if set(answer.ratings.get(name, {})) != set(range(len(order))):
                raise Unfinished("label.needs_rating", name=name)
        if len(order) == 1:
            return (), "", None  # there is nothing to compare it with
        return said_by_places([6 - answer.ratings[OVERALL][place] for place in range(len(order))], order)
    if answer.verdict is not None and (kind == "pairwise" or isinstance(answer.verdict, str)):
        return said_by_verdict(answer.verdict, order)
    if kind == "pairwise":
        raise Unfinished("label.needs_verdict")
    return said_by_places(answer.places, order)


def said_by_criterion(answer: Answer, kind: str, order: Order, criteria: Sequence[str]) -> dict[str, Meaning]:
    if unknown := set(answer.criteria) - set(criteria):
        raise DataError(
            f"nobody is asked by {sorted(unknown)[0]!r} here; the criteria are {', '.join(criteria) or 'none'}"
        )
    if kind not in ("pairwise", "ranking") or answer.verdict == "skip":
        return {}
    meanings = {}
    for name in criteria:
        given = answer.criteria.get(name)
        if given is None and answer.verdict != "cannot_judge":
            raise Unfinished("label.needs_criterion", name=name)
        if given is not None:
            meanings[name] = said_by_places(given, order) if isinstance(given, list) else said_by_verdict(given, order)
    return meanings


def stated(
    answer: Answer,
    asked: Asked,
    *,
    criteria: Sequence[str] = (),
    lang: str | None,
    kind: LabelerKind = LabelerKind.PERSON,
) -> Stated:
    """What an answer to this task says. Raises Unfinished where something is missing, DataError where something cannot be."""
    item, order = asked.item, asked.display_order
    far = [*answer.flags, *answer.flag_notes, *answer.edits, *(p for given in answer.ratings.values() for p in given)]
    if far and max(far) >= len(order):
        raise DataError(
            f"the answer speaks of position {max(far)}, but {len(order)} answers are shown, from position 0 on"
        )
    needed = (OVERALL, *criteria)
    if unknown := set(answer.ratings) - set(needed):
        raise DataError(f"nobody is asked to rate {sorted(unknown)[0]!r} here; what is rated is {', '.join(needed)}")
    whole = said_on_the_whole(answer, item.kind, order, needed)
    written = written_in(answer, asked)
    client: dict[str, Any] = {"answer": answer.digest}
    client |= {"checked_at": answer.checked_at} if answer.checked_at else {}
    client |= {"written": [[slot, completion.id] for slot, completion in written]} if written else {}

    def judgement(meaning: Meaning, criterion: str | None = None) -> Judgement:
        return Judgement(
            item_id=item.id,
            labeler=asked.labeler,
            labeler_kind=kind,
            ranking=meaning[0],
            display_order=tuple(order),
            submission_key=stored_key(asked.labeler, answer.key, criterion),
            seconds=answer.active_seconds,
            outcome=meaning[1],  # type: ignore[arg-type]
            criterion=criterion,
            strength=meaning[2],
            rationale=answer.rationale if criterion is None else "",
            lang=lang,
            guideline=answer.guideline or asked.guideline,
            client=client if criterion is None else {},
        )

    first = judgement(whole)
    by_criterion = said_by_criterion(answer, item.kind, order, criteria)
    judgements = [first, *(judgement(meaning, name) for name, meaning in by_criterion.items())]
    return Stated(judgements, opinions_in(answer, asked, first, lang), written)


def opinions_in(answer: Answer, asked: Asked, first: Judgement, lang: str | None) -> list[Rating]:
    """Scores, but of a task that is skipped, and flags."""

    def rating(
        position: int, kind: Literal["score", "flag"], value: float | None, criterion: str | None, note: str
    ) -> Rating:
        answered = asked.item.completions[asked.display_order[position]]
        named = (first.labeler, first.labeler_kind, kind, value)
        return Rating(
            answered, *named, criterion=criterion, source="study", lang=lang, note=note, judgement_id=first.id
        )

    scores = [] if answer.verdict == "skip" else [*answer.ratings.items()]
    found = [
        rating(position, "score", float(score), None if name == OVERALL else name, "")
        for name, by_position in scores
        for position, score in by_position.items()
    ]
    noted = [position for position, note in answer.flag_notes.items() if note.strip()]
    flags = {position: ["other"] for position in noted} | {p: kinds for p, kinds in answer.flags.items() if kinds}
    return found + [
        rating(position, "flag", None, what, answer.flag_notes.get(position, ""))
        for position, kinds in flags.items()
        for what in dict.fromkeys(kinds)
    ]


def written_in(answer: Answer, asked: Asked) -> list[tuple[int | None, Completion]]:
    """Edits that change anything, and the answer that was written."""
    item, found = asked.item, list[tuple[int | None, Completion]]()
    for position, text in sorted(answer.edits.items()):
        slot = asked.display_order[position]
        if text.strip() and text.strip() != plain(item.completions[slot].stripped):
            found.append((slot, Completion(item.prompt.id, text.strip())))
    if item.kind == "demonstration" and answer.written.strip() and answer.verdict not in UNDECIDED:
        found.append((None, Completion(item.prompt.id, answer.written.strip())))
    return found


# ------------------------------------------------------------------------------------------------------ and back


def fields_of(
    given: Sequence[Judgement], ratings: Sequence[Rating], texts: Mapping[str, str], asked: Asked
) -> dict[str, str | list[str]]:
    """The fields of the form that gave these judgements, ratings and texts (by the ids of the answers that were written): the same person
    sees again what they said, as they said it."""
    order, fields = asked.display_order, dict[str, str | list[str]]()
    position = {asked.item.completions[slot].id: str(place) for place, slot in reversed([*enumerate(order)])}
    for one in given:
        prefix = "" if one.criterion is None else f"criterion.{one.criterion}"
        if one.outcome or asked.item.kind == "pairwise":
            fields[prefix or "verdict"] = verdict_field(one, order)
        elif asked.item.kind == "ranking":
            place = {slot: number for number, group in enumerate(one.ranking, 1) for slot in group}
            dot = "." if prefix else ""
            fields |= {f"{prefix}{dot}place_{at}": str(place[slot]) for at, slot in enumerate(order)}
        if one.criterion is None:
            words = {"rationale": one.rationale, "checked_at": str(one.client.get("checked_at", ""))}
            fields |= {name: text for name, text in words.items() if text}
            for slot, key in one.client.get("written", ()):
                fields["written" if slot is None else f"edit.{order.index(slot)}"] = texts.get(key, "")
    for rating in ratings:
        where = position[rating.completion.id]
        if rating.kind == "score":
            fields[f"rating.{rating.criterion or OVERALL}.{where}"] = str(int(rating.value or 0))
        elif rating.kind == "flag":
            flags = fields.setdefault(f"flag.{where}", [])
            assert isinstance(flags, list)
            flags.append(str(rating.criterion))
            fields |= {f"flag_note.{where}": rating.note} if rating.note else {}
    return fields


def verdict_field(judgement: Judgement, order: Order) -> str:
    if judgement.outcome or len(judgement.ranking) == 1:
        return judgement.outcome or "0"
    strength = 1 if judgement.strength is None else max(1, judgement.strength)
    return str(-strength if judgement.ranking[0] == (order[0],) else strength)
