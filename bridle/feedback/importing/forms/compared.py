"""Rows of a chosen and a rejected answer to one prompt, under all the names that these have."""

from __future__ import annotations

import re
from typing import Any

from bridle.core.records import Message, Prompt
from bridle.feedback.importing.forms.asked import (
    DIALOGUES,
    QUESTIONS,
    asked,
    dialogue,
    dialogue_field,
    question,
)
from bridle.feedback.importing.forms.fields import Row, by_names, is_empty, number_in, parsed, text_of
from bridle.feedback.importing.forms.imported import ImportedRow, ImportedVerdict, Ranking
from bridle.feedback.importing.forms.plain import ANSWERS
from bridle.feedback.importing.forms.slots import answer_slots
from bridle.feedback.importing.forms.turns import (
    OPENS_TRANSCRIPT,
    SPEAKER_INSIDE,
    Turns,
    demonstrated,
    require_trained,
    side,
    transcript,
    transcript_prompt,
)
from bridle.feedback.importing.forms.verdicts import (
    flagged_tie,
    said_of_comparison,
    tie_of,
)
from bridle.feedback.importing.reasons import Reason, Skip

CHOSEN = tuple(
    """
    chosen chosen_response chosen_messages chosen_answer chosen_output preferred_output preferred_response preferred_answer preferred
    response_j accepted accept pos_resp better better_response better_answer winning_response winner_response win response_w y_w
    good_response chosen_completion
    """.split()
)
REJECTED = tuple(
    """
    rejected rejected_response rejected_messages rejected_answer rejected_output non_preferred_output dispreferred_output
    non_preferred_response dispreferred_response non_preferred dispreferred response_k reject neg_resp worse worse_response
    worse_answer losing_response loser_response lose response_l y_l bad_response rejected_completion
    """.split()
)
OPPOSED = (
    ("winner", "loser"),
    ("good", "bad"),
    ("positive", "negative"),
    ("correct_answer", "incorrect_answer"),
    ("best", "worst"),
    ("best_response", "worst_response"),
    ("best_answer", "worst_answer"),
)
TIE_NAMES = tuple(
    """
    preference winner outcome verdict result status label judgement judgment choice vote
    """.split()
)
FINE = frozenset(
    """
    chosen chosen_wins unchanged swapped preferred submitted completed validated done ok pending
    """.split()
)


# ------------------------------------------------------------------------------------------- chosen and rejected


@by_names
def is_compared(row: Row) -> bool:
    """Whether a field stands for a rejected answer, or for a chosen one (but where it only names one of several)."""
    named, rejected = sides_named(row)
    return (rejected is not None and (named is not None or not isinstance(row.look(rejected), bool))) or (
        named is not None and not isinstance(row.look(named), bool | int | float) and not answer_slots(row)
    )


@by_names
def sides_named(row: Row) -> tuple[str | None, str | None]:
    """The fields of the better and the worse answer; some names are only plain beside one another."""
    better, worse = row.first(CHOSEN), row.first(REJECTED)
    if better is None or worse is None:
        paired = next((names for names in OPPOSED if names[1] in row and names[0] in row), (None, None))
        better, worse = better or paired[0], worse or paired[1]
    return better, worse


def preference(row: Row) -> ImportedRow:
    return _preference("preference", row, prompt_apart(row, plain=True))


def compare_sharegpt(row: Row) -> ImportedRow:
    name = next((name for name in DIALOGUES[1:] if name in row), None)
    if name is None:
        raise Skip(Reason.MISSING_FIELD)
    return _preference("sharegpt", row, dialogue(row, name))


def compare_alpaca(row: Row) -> ImportedRow:
    if "instruction" not in row:
        raise Skip(Reason.MISSING_FIELD)
    return _preference("alpaca", row, question(row, ("instruction",), plain=True))


def compare_transcripts(row: Row) -> ImportedRow:
    """Both sides hold the whole dialogue as a transcript, or `prompt` does up to the cue."""
    if "prompt" not in row:
        return _preference("hh", row, None)
    text = text_of(row.take("prompt"))
    turns = transcript_prompt(text, row.notes) or transcript(text, row.notes)
    for name in (*CHOSEN, *REJECTED):
        if isinstance(row.look(name), str):
            row.fields[name] = row.look(name).removeprefix(text).strip()
    return _preference("hh", row, turns)


def prompt_apart(row: Row, plain: bool) -> Turns | None:
    """The prompt that stands apart; None where the sides hold it. Messages that end with an answer are the whole chosen dialogue."""
    if row.first(("prompt",)) is None and row.first(QUESTIONS) is None and dialogue_field(row) is None:
        return None
    return asked(row, plain)


def _preference(form: str, row: Row, prompt: Turns | None) -> ImportedRow:
    chosen_name, rejected_name = sides_named(row)
    for name in (chosen_name, rejected_name):
        if name and isinstance(row.look(name), list | dict) and is_empty(row.look(name)):
            raise Skip(Reason.ONE_SIDE)
    if chosen_name is None and rejected_name is None:
        raise Skip(Reason.MISSING_FIELD)
    if chosen_name is None and (found := chosen_elsewhere(row, prompt)) is not None:
        before, chosen = found
    elif chosen_name is None or rejected_name is None:
        raise Skip(Reason.ONE_SIDE)
    else:
        return _of_values(form, row, prompt, row.take(chosen_name), row.take(rejected_name))
    assert rejected_name is not None
    return _of_values(form, row, before, chosen, row.take(rejected_name))


def chosen_elsewhere(row: Row, prompt: Turns | None) -> tuple[Turns, str] | None:
    """The chosen answer where only the rejected one is named so: the row's answer, or the last of its dialogue."""
    name = next((name for name in ANSWERS if name in row and name not in QUESTIONS), None)
    if name is not None and prompt is not None:
        return side(row.take(name), prompt, row)
    if prompt and prompt[-1].role == "assistant":
        return prompt[:-1], prompt[-1].content
    return None


def _of_values(form: str, row: Row, prompt: Turns | None, chosen: object, rejected: object) -> ImportedRow:
    sides = [_several(value, row) for value in (chosen, rejected)]
    if (
        prompt and prompt[-1].role == "assistant" and "prompt" not in row
    ):  # the whole chosen dialogue, told again beside both sides
        prompt = _told_again(prompt, sides, row)
    if prompt is None and form != "hh" and all(isinstance(part, str) for part in (*sides[0], *sides[1])):
        form, prompt, sides = implicit(row, sides)
    read = [[side(value, prompt, row) for value in sides[0]]]
    require_trained(row)
    read.append([side(value, prompt, row) for value in sides[1]])
    before = read[0][0][0]
    if any(other != before for values in read for other, _ in values):
        raise Skip(Reason.DIVERGES)
    better, worse = ([text for _, text in values] for values in read)
    places = tuple(range(len(better))), tuple(range(len(better), len(better) + len(worse)))
    scores = scores_of_sides(row) or scores_inside(chosen, rejected)
    tie = tie_in(row, scores)
    ranking: Ranking = ((*places[0], *places[1]),) if tie else places
    stated = said_of_comparison(row, ("strength", "preference_strength", "margin"))
    if not tie and stated.get("margin") is None and scores is not None:
        stated["margin"] = scores[0] - scores[1]
    if not tie and (stated.get("margin") or 0) < 0:
        raise Skip(Reason.CONTRADICTED)
    outcome: Any = tie if tie in ("both_good", "both_bad") else ""
    return ImportedRow(form, Prompt(before), (*better, *worse), (ImportedVerdict(ranking, outcome, **stated),))


def _several(value: object, row: Row) -> list[Any]:
    """The answers of one side: several where it is a list of texts, each as good or as bad as the others."""
    value = parsed(value, row)
    return value if isinstance(value, list) and value and all(isinstance(part, str) for part in value) else [value]


def _told_again(prompt: Turns, sides: list[list[Any]], row: Row) -> Turns:
    before, answer = demonstrated(prompt)
    repeated, stated = side(sides[0][0], before, row)
    if stated.strip() != answer.strip():
        raise Skip(Reason.NO_USER_TURN)
    return repeated


def implicit(row: Row, sides: list[list[Any]]) -> tuple[str, Turns | None, list[list[Any]]]:
    """Two texts that hold the prompt: transcripts, or texts that begin alike (TRL's implicit prompt), the shared words being the prompt."""
    texts = [text for values in sides for text in values]
    if any(OPENS_TRANSCRIPT.match(text) or SPEAKER_INSIDE.search(text) for text in texts) or len(texts) != 2:
        return "hh", None, sides
    sides_read = {*CHOSEN, *REJECTED, *TIE_NAMES}
    asks = next(
        (
            n
            for n in row
            if n not in sides_read | row.read and len(str(row.look(n)).split()) > 2 and isinstance(row.look(n), str)
        ),
        None,
    )
    if asks is not None:  # it may hold the question, and what the answers begin with is none
        raise Skip(Reason.UNREAD_TURN, row.names[asks])
    shared = shared_beginning(*texts)
    if not shared.strip():
        raise Skip(Reason.NOT_TRANSCRIPT)
    return "preference", (Message("user", shared),), [[text[len(shared) :]] for text in texts]


def shared_beginning(first: str, second: str) -> str:
    """The whole words that both texts begin with; the blank that follows belongs to the answers."""
    length = next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    blanks = [n for n in range(length) if first[n].isspace()]
    return first[: blanks[-1]] if blanks else ""


SCORED = re.compile(r"(?:(.*)_)?(chosen|rejected)(?:_(.*))?")


@by_names
def scores_of_sides(row: Row) -> tuple[float, float] | None:
    """What the chosen and the rejected answer were scored, by whichever names; or both in a list, the higher one being the chosen's."""
    for name in row:
        found = SCORED.fullmatch(name) if "chosen" in name and name != "chosen" else None
        if (
            found
            and found[2] == "chosen"
            and {"score", "rating", "reward"} & set(re.split("_", f"{found[1]}_{found[3]}"))
        ):
            names = (name, "rejected".join(name.rsplit("chosen", 1)))
            values = [number_in(row.look(name)) for name in names]
            if values[0] is not None and values[1] is not None:
                row.read.update(names)
                return values[0], values[1]
    for name in ("rating", "ratings", "scores"):
        listed = row.look(name)
        if isinstance(listed, dict):
            values = [number_in(listed.get("chosen")), number_in(listed.get("rejected"))]
            if values[0] is not None and values[1] is not None:
                row.take(name)
                return values[0], values[1]
        if isinstance(listed, list) and len(listed) == 2 and all(number_in(value) is not None for value in listed):
            row.take(name)
            return max(map(float, listed)), min(map(float, listed))
    return None


def scores_inside(chosen: object, rejected: object) -> tuple[float, float] | None:
    """What the two sides were scored, where they are objects that say it."""
    if not isinstance(chosen, dict) or not isinstance(rejected, dict):
        return None
    for name in ("score", "rating", "reward"):
        better, worse = number_in(chosen.get(name)), number_in(rejected.get(name))
        if better is not None and worse is not None:
            return better, worse
    return None


def tie_in(row: Row, scores: tuple[float, float] | None) -> str:
    """Which tie the row's own fields call it: a flag, a word, or equal scores; "" for none. A word that is neither is not passed over."""
    stated, sides = flagged_tie(row), sides_named(row)
    for name in TIE_NAMES:
        if name not in row or name in sides:
            continue
        value = row.look(name)
        if tie := tie_of(value):
            row.take(name)
            stated = stated or tie
        elif (isinstance(value, str) and value.strip().lower() in FINE) or (number_in(value) == 1 or value is True):
            row.take(name)
        elif not is_empty(value):
            raise Skip(Reason.UNCLEAR_VERDICT, name)
    return stated or ("tie" if (scores is not None and scores[0] == scores[1]) else "")
