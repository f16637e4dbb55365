"""Votes, scores and verdicts as rows spell them, and the names of the fields that they stand in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from bridle.feedback.importing.forms.fields import Row, by_names, is_empty, number_in
from bridle.feedback.importing.forms.imported import ImportedVerdict, Opinion, Ranking
from bridle.feedback.importing.reasons import Reason, Skip

VOTES = tuple(
    """
    label kto_tag is_good good desirable is_desirable thumbs_up thumbs thumb vote liked like upvoted is_correct correct acceptable
    is_acceptable is_preferred is_chosen is_helpful feedback is_safe safe is_harmless thumb_up user_feedback approved is_positive
    passed verified is_verified
    """.split()
)
FLIPPED = tuple(  # what speaks against an answer where it is true
    """
    is_bad bad is_harmful harmful unsafe is_unsafe toxic is_toxic incorrect is_incorrect wrong is_wrong is_rejected undesirable
    is_undesirable thumbs_down thumb_down disliked downvoted hallucination is_hallucination hallucinated flagged is_flagged
    """.split()
)
WARNINGS = {"toxic", "is_toxic", "flagged", "is_flagged", "hallucination"}  # of these only what is true says something
JUDGING = frozenset(  # words in the names of fields that judge
    """
    score scores rating ratings vote votes upvotes downvotes likes dislikes label labels reward rewards grade grades rank ranks
    toxicity jailbreak jailbroken refusal refused quality safety feedback thumbs judgement judgments preference preferences valid
    invalid correct incorrect annotations outcome result evaluation assessment acceptability reaction useful helpful liked
    """.split()
)
ASKING = frozenset(("input", "prompt", "question", "query", "instruction", "instruct"))
ABOUT = frozenset(  # the last words of names that tell of a field of this name and hold none
    """
    source model models generator id ids type name url date time at count lang language length tokens format version reason rationale
    explanation comment by index style number len size difficulty
    """.split()
)
SCORES = tuple(
    """
    score rating reward overall_score overall_rating human_rating human_score stars quality overall helpfulness correctness coherence
    complexity verbosity harmlessness honesty truthfulness accuracy relevance fluency instruction_following coverage safety
    quality_score reward_score rm_score likert
    """.split()
)
ON_THE_WHOLE = {"score", "rating", "reward", "overall_score", "overall_rating", "overall", "human_rating", "human_score", "stars",
                "quality_score", "reward_score", "rm_score", "likert"}  # fmt: skip
SCORES_NAMED = set(SCORES) - {"complexity", "verbosity"}  # which are often the question's
WORDED = (*sorted(ON_THE_WHOLE), "quality")
HARMLESS = frozenset(
    """
    is_safe safe is_harmless is_harmful harmful unsafe is_unsafe toxic is_toxic flagged is_flagged
    """.split()
)
CRITERIA = ("criterion", "aspect", "dimension", "attribute")
VERDICTS = tuple(
    """
    preference winner better_response_id better better_id better_response better_answer preferred choice best best_response
    best_answer chosen chosen_id chosen_index chosen_response selected vote verdict human_preference preferred_response
    preferred_answer judgement judgment outcome result label labels overall_preference preference_strength user_preference human_label
    answer annotation choose pick
    """.split()
)
SIGNED = {
    "overall_preference",
    "preference_strength",
}  # below 0 for the first, above for the second; how far is how strongly
BY_CRITERION = {"safer_response_id": "harmless", "safer_response": "harmless", "safer": "harmless", "safer_id": "harmless",
                "more_helpful": "helpful", "more_helpful_id": "helpful", "more_honest": "honest"}  # fmt: skip
TIE_FLAGS = tuple(
    """
    tie is_tie tied winner_tie draw is_draw equal is_equal both_bad is_both_bad both_good is_both_good
    """.split()
)
ANNOTATORS = tuple(
    """
    annotator annotator_id worker worker_id labeler labeler_id labeller rater rater_id judge judge_id evaluator assessor reviewer
    completed_by user_id username created_by annotated_by labeled_by labelled_by reviewed_by annotator_name labeller_id
    annotators
    """.split()
)
HEAVIEST = 1e20  # a sum of such weights stays within float32
WEIGHTS = ("weight", "sample_weight", "loss_weight", "example_weight")
STRENGTHS = {
    **dict.fromkeys(("negligibly_better", "unsure", "negligibly_better_unsure", "about_the_same", "barely"), 0),
    **dict.fromkeys(("slightly_better", "slightly", "slight", "weak", "a_bit_better"), 1),
    **dict.fromkeys(("better", "moderately_better", "moderate", "medium", "clearly_better"), 2),
    **dict.fromkeys(
        ("significantly_better", "much_better", "far_better", "significant", "strong", "strongly", "a_lot_better"), 3
    ),
}
FOR = {"1", "true", "t", "good", "yes", "y", "up", "thumbs_up", "thumbsup", "thumb_up", "positive", "pos", "like", "liked", "desirable",
       "+", "chosen", "preferred", "correct", "right", "accept", "accepted", "acceptable", "approved", "upvote", "+1", "👍", "safe",
       "helpful", "pass"}  # fmt: skip
AGAINST = {"0", "-1", "-", "false", "f", "bad", "no", "n", "down", "thumbs_down", "thumbsdown", "thumb_down", "negative", "neg", "dislike",
           "disliked", "undesirable", "rejected", "dispreferred", "incorrect", "wrong", "reject", "unacceptable", "downvote", "👎",
           "unsafe", "unhelpful", "fail", "not_good"}  # fmt: skip
TIE_WORDS = frozenset(
    """
    tie tied draw equal same even about_the_same no_preference equally_good similar
    """.split()
)
BOTH_BAD = frozenset(
    """
    equally_bad both_bad bothbad tie_bothbad tie_both_bad neither both_are_bad none both_wrong neither_is_good
    """.split()
)
BOTH_GOOD = {"both_good", "bothgood", "both", "tie_bothgood", "tie_both_good", "both_are_good"}
FIRST, SECOND = {"left", "first"}, {"right", "second"}

NAMED = re.compile(
    r"(?:the_)?(?:model|response|assistant|answer|output|completion|text|candidate|generation|option|summary|conversation|system|"
    r"sample|reply)?_?([a-z]|\d+)(?:_(?:is_)?(?:(?:slightly|moderately|clearly|significantly|much|far|a_lot|a_bit)_)?"
    r"(?:better|wins|won)(?:_than_\w+)?)?"
)
HOW_STRONGLY = re.compile(r"(slightly|moderately|clearly|significantly|much|far|a_lot|a_bit)_better")
COMPARED = re.compile(
    r"(?:response|model|assistant|answer)?([a-z]|\d+)(>+|<+|=+|~)(?:response|model|assistant|answer)?([a-z]|\d+)"
)
VOTES_LISTED = ("votes", "annotations", "preferences", "judgements", "judgments", "winners", "labels")
FLAGS = ("chosen", "accepted", "preferred", "selected")  # votes where they are true or false

Outcome = tuple[int | None, str]  # the winner's place; or None, and what kind of tie it is


def word(value: object) -> str:
    """A value as one plain word: "tie (bothbad)" is tie_bothbad."""
    stated = str(value).strip().lower() if isinstance(value, str | int | float) else ""
    return re.sub(r"[^\w+👍👎-]+|(?<=\w)-", "_", stated).strip("_")


def vote_of(value: object) -> float:
    """1 for, 0 against, however that is spelt. Raises Skip where it is neither."""
    number = number_in(value)
    if isinstance(value, bool) or number in (0, 1, -1):
        return float(value is True or number == 1)
    if isinstance(value, str) and word(value) in FOR | AGAINST:
        return float(word(value) in FOR)
    raise Skip(Reason.UNCLEAR_VOTE)


def criterion_of(name: str) -> str | None:
    """What a vote or a score by this field's name is about; None where it is the answer as a whole."""
    if name in HARMLESS:
        return "harmless"
    return None if name in (*ON_THE_WHOLE, *VOTES, *FLIPPED, *FLAGS, "rejected") else name


def winner_of(value: object, tags: Sequence[str], signed: bool = False) -> Outcome | None:
    """What a verdict on answers with these tags ("0", "1"; "a", "b") says; None where that cannot be told."""
    number, stated = number_in(value), word(value)
    if signed and number is not None and abs(number) > 3:
        return None  # HelpSteer's -100: nobody judged
    if signed and number is not None:
        return (None, "tie") if number == 0 else (int(number > 0), "")
    if tie := tie_of(value):
        return None, tie
    if number is not None and all(tag.isdigit() for tag in tags) and not isinstance(value, bool):
        numbers = [int(tag) for tag in tags]
        low, high = numbers[0], numbers[-1]
        if number in numbers:
            return numbers.index(int(number)), ""
        if number == 0 and low == 1:
            return None, "tie"
        if len(tags) == 2 and low < number < high:  # AlpacaEval: a share of the way
            return (None, "tie") if number == low + 0.5 else (int(number > low + 0.5), "")
        return None
    if stated in FIRST or stated in SECOND:
        return int(stated in SECOND), ""
    if isinstance(value, str) and (found := COMPARED.fullmatch(re.sub(r"[\s\[\]]", "", value.lower()))):  # "A>>B"
        return _compared(found[1], found[2], found[3], tags)
    named = NAMED.fullmatch(stated)
    if (
        named and tags[0].isdigit() and named[1] in tuple("abcdefgh"[: len(tags)])
    ):  # model_a, where the answers have numbers
        return "abcdefgh".index(named[1]), ""
    return (list(tags).index(named[1]), "") if named and named[1] in tags and number is None else None


def _compared(first: str, sign: str, second: str, tags: Sequence[str]) -> Outcome | None:
    if {first, second} - set(tags) or first == second:
        return None
    return (None, "tie") if sign[0] in "=~" else (list(tags).index(first if sign[0] == ">" else second), "")


def tie_of(value: object) -> str:
    """Which tie a value names: "tie", "both_good", "both_bad"; "" where it names none."""
    stated = word(value) if isinstance(value, str) else ""
    if stated in BOTH_BAD or stated in BOTH_GOOD:
        return "both_bad" if stated in BOTH_BAD else "both_good"
    return "tie" if stated in TIE_WORDS else ""


def strength_in(value: object) -> int:
    """How strongly a verdict in words puts it ("A is slightly better"), 0 where it does not say."""
    found = HOW_STRONGLY.search(word(value))
    return STRENGTHS.get(f"{found[1]}_better", 0) if found else 0


@by_names
def flagged_tie(row: Row) -> str:
    """Which tie a flag of the row calls it, "" for none."""
    flags = [name for name in TIE_FLAGS if name in row and vote_of(row.take(name))]
    return (tie_of(flags[0].removeprefix("is_")) or "tie") if flags else ""


def is_judging(name: str, value: object) -> bool:
    """Whether a field by its name and its kind of value judges the row's answer."""
    if name in WARNINGS and word(value) in AGAINST:
        return False
    words = name.split("_")
    if not ASKING.isdisjoint(words):  # of the question
        return False
    judges = name in FLIPPED or (
        not (JUDGING.isdisjoint(words) and SCORES_NAMED.isdisjoint(words)) and words[-1] not in ABOUT
    )
    return judges and not is_empty(value) and not (isinstance(value, str) and len(value.split()) > 3)


def ranking_of_winner(place: int | None, answers: int) -> Ranking:
    rest = tuple(slot for slot in range(answers) if slot != place)
    return (rest,) if place is None else ((place,), rest)


def ranking_by(values: Sequence[float], lowest_first: bool = False) -> Ranking:
    """The answers by their scores (the highest first) or ranks; equal ones tie."""
    order = sorted(set(values), reverse=not lowest_first)
    return tuple(tuple(slot for slot, value in enumerate(values) if value == wanted) for wanted in order)


def verdict_on(outcome: Outcome, answers: int, stated: Mapping[str, Any]) -> ImportedVerdict:
    """`stated`: who says it, how strongly and so on, by the names of a verdict's fields."""
    place, tie = outcome
    return replace(ImportedVerdict(ranking_of_winner(place, answers), tie_kind(tie)), **stated)


def tie_kind(tie: str) -> Literal["", "both_good", "both_bad"]:
    return "both_good" if tie == "both_good" else "both_bad" if tie == "both_bad" else ""


@by_names
def annotator_in(row: Row) -> str:
    """Who judged, where the row says so."""
    if (name := row.first(ANNOTATORS)) is None:
        return ""
    value = row.look(name)
    if isinstance(value, dict):
        value = next(
            (value[key] for key in ("id", "user_id", "email", "username", "name") if not is_empty(value.get(key))), None
        )
    if isinstance(value, float) and value.is_integer():  # as tables with gaps have whole numbers
        value = int(value)
    if isinstance(value, str) and re.fullmatch(r"\d+\.0", value):
        value = value[:-2]
    parts = [str(part) for part in (value if isinstance(value, list) else [value])]
    if (
        isinstance(value, dict | float | bool)
        or (name == "annotators" and not isinstance(value, list))  # how many there were
        or any(len(part) > 200 for part in parts)
        or is_empty(value)
    ):
        return ""
    row.take(name)
    return "/".join(parts)[:200]


@by_names
def weight_in(row: Row) -> float:
    name = row.first(WEIGHTS)
    if name is None:
        return 1.0
    weight = number_in(row.take(name))
    if weight is None or weight < 0 or weight > HEAVIEST or 0 < weight < 1 / HEAVIEST:
        raise Skip(Reason.UNREAD_WEIGHT)
    if weight == 0:
        raise Skip(Reason.NOT_TRAINED)
    return weight


@by_names
def criterion_in(row: Row) -> str | None:
    """By which criterion the row's verdict or score is, where a field says so; None for the whole."""
    name = row.first(CRITERIA)
    value = row.look(name) if name else None
    if name is None or not isinstance(value, str) or not 0 < len(value.strip()) <= 100:
        return None
    row.take(name)
    return None if word(value) in ON_THE_WHOLE else value.strip()


def said_of_comparison(row: Row, strengths: Sequence[str] = ("strength", "margin")) -> dict[str, Any]:
    """Who said it, by which criterion, how strongly, how surely, and what it counts."""
    stated: dict[str, Any] = {"annotator": annotator_in(row), "weight": weight_in(row), "criterion": criterion_in(row)}
    for source in (source for source in strengths if source in row):
        number, name = number_in(row.look(source)), word(row.look(source))
        strength = STRENGTHS.get(name, int(number) if number in (0, 1, 2, 3) and source != "margin" else None)
        if strength is not None:
            row.take(source)
            stated["strength"] = strength
    for name in ("margin", "confidence"):
        if (number := number_in(row.look(name))) is not None:
            row.take(name)
            stated[name] = number
    return stated


def votes_in(row: Row) -> list[Opinion]:
    who, weight, stated = annotator_in(row), weight_in(row), criterion_in(row)
    return [
        Opinion(
            "vote",
            abs(vote_of(row.take(name)) - flips(name)),
            annotator=who,
            criterion=criterion_of(name) or stated,
            weight=weight,
        )
        for name in votes_named(row)
    ]


def flips(name: str) -> bool:
    return name in FLIPPED or name == "rejected"


@by_names
def votes_named(row: Row) -> list[str]:
    """The fields that vote on the one answer; a score may be a word too, such as "bad"."""
    flags = [name for name in row.among((*FLAGS, "rejected", *SCORES)) if isinstance(row.look(name), bool)]
    words = [
        name for name in row.among(WORDED) if isinstance(row.look(name), str) and number_in(row.look(name)) is None
    ]
    quiet = [name for name in row.among(WARNINGS) if word(row.look(name)) in AGAINST]
    votes = row.among((*VOTES, *FLIPPED, *flags, *words))
    return [name for name in votes if not is_empty(row.look(name)) and name not in quiet]


@by_names
def scores_in(row: Row) -> list[Opinion]:
    found = {name: number_in(row.look(name)) for name in row.among(SCORES)}
    scores = {name: value for name, value in found.items() if value is not None}
    if not scores:
        return []
    who, weight, stated = annotator_in(row), weight_in(row), criterion_in(row)
    return [
        Opinion(
            "score", number_in(row.take(name)), annotator=who, criterion=criterion_of(name) or stated, weight=weight
        )
        for name in scores
    ]
