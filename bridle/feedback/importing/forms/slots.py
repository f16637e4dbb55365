"""Rows of several answers to one prompt: side by side with a verdict, or in a list with ranks or scores."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from bridle.core.records import Prompt
from bridle.feedback.importing.forms.asked import (
    QUESTIONS,
    asked,
    dialogue_field,
    holds_messages,
    question,
)
from bridle.feedback.importing.forms.fields import Row, answer_text, by_names, is_empty, number_in, parsed
from bridle.feedback.importing.forms.imported import ImportedRow, ImportedVerdict, Opinion
from bridle.feedback.importing.forms.turns import (
    Turns,
    side,
)
from bridle.feedback.importing.forms.verdicts import (
    BY_CRITERION,
    FIRST,
    SECOND,
    SIGNED,
    VERDICTS,
    VOTES_LISTED,
    Outcome,
    annotator_in,
    flagged_tie,
    is_judging,
    ranking_by,
    said_of_comparison,
    strength_in,
    tie_of,
    verdict_on,
    vote_of,
    weight_in,
    winner_of,
    word,
)
from bridle.feedback.importing.reasons import Reason, Skip

SLOT_STEMS = (
    "response|output|answer|completion|text|generation|generations|candidate|summary|continuation|reply|human_ref|conversation|sample|"
    "model_output|model_response|assistant|assistant_response|message|messages|result"
)
SLOT = re.compile(rf"({SLOT_STEMS})_?(\d)|({SLOT_STEMS})_([a-h])")
LISTS = ("completions", "responses", "answers", "generations", "outputs", "candidates", "replies")
INNER_TEXT = ("text", "response", "answer", "completion", "content", "output", "generation")
INNER_RANK, INNER_SCORE = (
    ("rank", "ranking"),
    ("overall_score", "pm_score", "score", "rating", "reward", "preference_score", "overall_rating", "votes"),
)
INNER_FLAGS = (
    *(
        "preferred",
        "is_preferred",
        "chosen",
        "is_chosen",
        "selected",
        "accepted",
        "is_accepted",
        "is_best",
        "label",
        "vote",
    ),
    *("is_correct", "correct"),
)
RANKS, LIST_SCORES = ("ranks", "rank"), ("scores", "ratings", "rating", "score", "rewards", "overall_scores")


# ---------------------------------------------------------------------------------------------- answers in slots


@by_names
def answer_slots(row: Row) -> dict[str, str]:
    """Fields that hold answers side by side, such as response_a and response_b: tag to name, where there are at least two of a stem."""
    found: dict[str, dict[str, str]] = {}
    for name in row:
        if match := SLOT.fullmatch(name):
            found.setdefault(match[1] or match[3], {})[match[2] or match[4]] = name
    return next((dict(sorted(tags.items())) for tags in found.values() if len(tags) > 1), {})


def in_slots(row: Row) -> ImportedRow:
    slots = answer_slots(row)
    if not slots:
        raise Skip(Reason.MISSING_FIELD)
    tags = list(slots)
    prompt, answers = answers_in_slots(row, slots)
    stated = said_of_comparison(row)
    verdicts = verdicts_on(row, tags, answers, stated)
    opinions = [
        Opinion("vote", vote_of(row.take(name)), place, stated["annotator"], "harmless")
        for place, tag in enumerate(tags)
        for name in (f"is_response_{tag}_safe", f"response_{tag}_safe", f"is_safe_{tag}")
        if name in row
    ]
    if not verdicts:
        require_to_judge(row, len(answers))
    return ImportedRow("two-answers", Prompt(prompt), tuple(answers), tuple(verdicts), tuple(opinions))


def require_to_judge(row: Row, answers: int) -> None:
    """Raise Skip for answers without an order, unless nobody gave one and they are there to be judged: it may stand in a field whose way to
    say it is not known."""
    known = {*VERDICTS, "winner", "better", "best"} - {"answer"}
    free = {name: name.split("_") for name in row if name not in row.read}
    names = [
        n
        for n, words in free.items()
        if n in known or not known.isdisjoint(words) or is_judging(n, row.look(n)) or "rank" in n
    ]
    if names:
        raise Skip(Reason.UNCLEAR_VERDICT, row.names[names[0]])
    if not row.to_judge or answers < 2:
        raise Skip(Reason.NO_VERDICT)


def answers_in_slots(row: Row, slots: dict[str, str]) -> tuple[Turns, list[str]]:
    values = [parsed(row.take(name), row) for name in slots.values()]
    whole = all(holds_messages(value, row) for value in values)
    apart = asked(row) if row.first(QUESTIONS) or dialogue_field(row) else None
    if apart is None and not whole:
        raise Skip(Reason.UNKNOWN_FIELDS)
    if whole and (turn := number_in(row.look("turn"))) is not None:
        row.take("turn")
        values = [up_to_turn(value, int(turn)) for value in values]
    read = [side(value, apart, row) for value in values]
    if any(before != read[0][0] for before, _ in read):
        raise Skip(Reason.DIVERGES)
    return read[0][0], [answer for _, answer in read]


def up_to_turn(value: Any, turn: int) -> Any:
    """A dialogue up to the answer of its n-th turn: MT-bench's votes are on one of two."""
    return value[: 2 * turn] if isinstance(value, list) and 0 < 2 * turn < len(value) else value


def verdicts_on(row: Row, tags: Sequence[str], answers: Sequence[str], stated: dict[str, Any]) -> list[ImportedVerdict]:
    """Every verdict of the row: of several annotators, by several criteria, else by the answers' scores or ranks."""
    names = [name for name in row if re.fullmatch(r"annotator_?\d+", name)]
    found = [
        verdict_on(_outcome(row, name, tags, answers), len(answers), {**stated, "annotator": name}) for name in names
    ]
    flags = {tag: name for tag in tags for name in (f"winner_model_{tag}", f"winner_{tag}") if name in row}
    free = [name for name in VERDICTS if name not in row.read and not isinstance(row.look(name), list)]
    chosen = next((name for name in free if not is_empty(row.look(name))), None)
    if tie := flagged_tie(row):
        tie = tie_of(row.take(chosen)) or tie if chosen else tie
        found.append(verdict_on((None, tie), len(answers), stated))
    elif len(flags) == len(tags):
        won = [place for place, tag in enumerate(tags) if vote_of(row.take(flags[tag]))]
        if len(won) != 1:
            raise Skip(Reason.UNCLEAR_VERDICT)
        found.append(verdict_on((won[0], ""), len(answers), stated))
    elif not found and chosen:
        strong = abs(number_in(row.look(chosen)) or 0) if chosen in SIGNED else strength_in(row.look(chosen))
        stated = {**stated, "strength": int(strong)} if strong in (1, 2, 3) else stated
        found.append(verdict_on(_outcome(row, chosen, tags, answers), len(answers), stated))
    for name, criterion in BY_CRITERION.items():
        if name in row:
            outcome = _outcome(row, name, tags, answers)
            found.append(verdict_on(outcome, len(answers), {**stated, "criterion": criterion, "margin": None}))
    return found or _by_list(row, tags, answers, stated) or _by_side(row, tags, stated) or _by_scores(row, tags, stated)


def _by_list(row: Row, tags: Sequence[str], answers: Sequence[str], stated: dict[str, Any]) -> list[ImportedVerdict]:
    """Verdicts of several annotators in one list: words or numbers, or objects that say who."""
    name = next((name for name in VOTES_LISTED if isinstance(row.look(name), list) and row.look(name)), None)
    if name is None:
        return []
    found, people = [], row.take("annotators")
    for n, part in enumerate(row.take(name)):
        inner = Row(part if isinstance(part, dict) else {"winner": part})
        chosen = inner.first(VERDICTS)
        if chosen is None:
            raise Skip(Reason.UNCLEAR_VERDICT, name)
        listed = isinstance(people, list) and n < len(people)
        who = (
            annotator_in(inner)
            or str(inner.look("user") or "")[:200]
            or (str(people[n])[:200] if listed else f"annotator{n + 1}")
        )
        found.append(verdict_on(_outcome(inner, chosen, tags, answers), len(answers), {**stated, "annotator": who}))
    return found


def _by_side(row: Row, tags: Sequence[str], stated: dict[str, Any]) -> list[ImportedVerdict]:
    """A field of any name that says left or right."""
    free = {name: row.look(name) for name in row if name not in row.read}
    stated_by = {
        name: word(value.get("selected") if isinstance(value, dict) else value) for name, value in free.items()
    }
    sides = [name for name in stated_by if stated_by[name] in FIRST | SECOND]
    if len(sides) != 1 or len(tags) != 2:
        return []
    row.take(sides[0])
    return [verdict_on((int(stated_by[sides[0]] in SECOND), ""), 2, stated)]


def _outcome(row: Row, name: str, tags: Sequence[str], answers: Sequence[str]) -> Outcome:
    value = row.take(name)
    if (found := winner_of(value, tags, name in SIGNED)) is not None:
        return found
    models = [row.look(f"model_{tag}") or row.look(f"generator_{tag}") for tag in tags]
    if models.count(value) == 1:
        return models.index(value), ""
    same = [place for place, answer in enumerate(answers) if isinstance(value, str) and value.strip() == answer.strip()]
    if len(same) == 1:
        return same[0], ""
    raise Skip(Reason.UNCLEAR_VERDICT, name)


def _by_scores(row: Row, tags: Sequence[str], stated: dict[str, Any]) -> list[ImportedVerdict]:
    for stem in ("score", "rating", "reward", "rank"):
        names = [f"{stem}_{tag}" for tag in tags]
        values = [number_in(row.look(name)) for name in names]
        if all(value is not None for value in values):
            row.read.update(names)
            return [scored_verdict([value for value in values if value is not None], stated, stem == "rank")]
    return []


def scored_verdict(values: Sequence[float], stated: dict[str, Any], ranks: bool = False) -> ImportedVerdict:
    """The order that scores make; of two answers their difference is the margin."""
    ranking = ranking_by(values, lowest_first=ranks)
    apart = abs(values[0] - values[1]) if len(values) == 2 and len(ranking) == 2 and not ranks else None
    return ImportedVerdict(ranking, **{**stated, "margin": stated.get("margin", apart)})


# ---------------------------------------------------------------------------------------------- answers in a list


@by_names
def listed_field(row: Row) -> str | None:
    """A field that is a list of answers, texts or objects; messages are none."""
    for name in LISTS:
        value = row.look(name)
        if (
            isinstance(value, list)
            and value
            and not all(isinstance(part, dict) and ("role" in part or "from" in part) for part in value)
        ):
            return name
    return None


def in_list(row: Row) -> ImportedRow:
    """Answers with ranks or scores, inside them or in lists beside them."""
    name = listed_field(row)
    if name is None:
        raise Skip(Reason.MISSING_FIELD)
    prompt, listed = question_apart(row, name), row.take(name)
    inner = [part for part in listed if isinstance(part, dict)]
    texts = [_inner_text(part, row) for part in listed]
    read = [side(text, prompt, row) for text in texts]
    if any(before != read[0][0] for before, _ in read):
        raise Skip(Reason.DIVERGES)
    values, ranks = _order_inside(inner) if len(inner) == len(listed) else _order_apart(row, len(listed))
    if values is None:
        require_to_judge(row, len(listed))
        return ImportedRow("list", Prompt(read[0][0]), tuple(answer for _, answer in read), ranked=True)
    stated: dict[str, Any] = {"annotator": annotator_in(row), "weight": weight_in(row)}
    if len(listed) == 1:
        opinions = () if ranks else (Opinion("score", values[0], **stated),)
        return ImportedRow("list", Prompt(read[0][0]), (read[0][1],), opinions=opinions, imitate=ranks)
    aspects = [opinion for place, part in enumerate(inner) for opinion in _aspects(part, place)]
    verdicts = (scored_verdict(values, stated, ranks),)
    return ImportedRow(
        "list", Prompt(read[0][0]), tuple(answer for _, answer in read), verdicts, tuple(aspects), ranked=True
    )


def question_apart(row: Row, name: str) -> Turns:
    if row.first([question for question in QUESTIONS if question != name]) or dialogue_field(row):
        return asked(row)
    raise Skip(Reason.UNKNOWN_FIELDS)


def _inner_text(part: object, row: Row) -> object:
    if isinstance(part, list):
        return part
    if not isinstance(part, dict):
        return answer_text(part)
    name = next((name for name in INNER_TEXT if part.get(name) is not None), None)
    if name is None:
        raise Skip(Reason.WRONG_TYPE)
    if number_in(part.get("weight", 1)) != 1:
        raise Skip(Reason.UNREAD_WEIGHT, "weight")
    known = {name, *INNER_RANK, *INNER_SCORE, *INNER_FLAGS, "annotations", "weight"}
    row.inside += [key for key, value in part.items() if key not in known and not is_empty(value)]
    return part[name]


def _order_inside(inner: Sequence[dict[str, Any]]) -> tuple[list[float] | None, bool]:
    for names, ranks in ((INNER_RANK, True), (INNER_SCORE, False)):
        for name in names:
            values = [number_in(part.get(name)) for part in inner]
            if all(value is not None for value in values):
                return [value for value in values if value is not None], ranks
    for name in INNER_FLAGS:  # places, and no scores that have a margin
        if inner and all(name in part for part in inner):
            return [1 - vote_of(part[name]) for part in inner], True
    return None, False


def _order_apart(row: Row, count: int) -> tuple[list[float] | None, bool]:
    for names, ranks in ((RANKS, True), (LIST_SCORES, False)):
        for name in names:
            listed = row.look(name)
            if isinstance(listed, list) and len(listed) == count:
                values = [number_in(value) for value in listed]
                if all(value is not None for value in values):
                    row.take(name)
                    return [value for value in values if value is not None], ranks
    return None, False


def _aspects(part: dict[str, Any], place: int) -> list[Opinion]:
    """UltraFeedback's: what an answer was scored by each criterion."""
    annotations = part.get("annotations")
    found = annotations.items() if isinstance(annotations, dict) else ()
    scores = [(str(name)[:100], number_in(stated.get("Rating"))) for name, stated in found if isinstance(stated, dict)]
    return [Opinion("score", value, place, criterion=name) for name, value in scores if value is not None]


def ranked_output(row: Row) -> ImportedRow:
    """An output that is a list of texts, the best first, as LLaMA-Factory once had rankings."""
    texts = row.need("output")
    if not isinstance(texts, list) or not texts:
        raise Skip(Reason.WRONG_TYPE)
    answers = tuple(answer_text(text) for text in texts)
    prompt = Prompt(question(row, [name for name in QUESTIONS if name != "output"], plain=True))
    if len(answers) == 1:
        return ImportedRow("ranked-output", prompt, answers, imitate=True)
    stated: dict[str, Any] = {"annotator": annotator_in(row), "weight": weight_in(row)}
    order = ImportedVerdict(tuple((slot,) for slot in range(len(answers))), **stated)
    return ImportedRow("ranked-output", prompt, answers, (order,), ranked=True)
