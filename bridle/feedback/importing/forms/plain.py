"""Rows of one answer or none: prompts, demonstrations, votes, scores, solutions to check against, labelled steps, plain texts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from bridle.core.records import CANONICAL, Prompt
from bridle.feedback.importing.forms import ifeval
from bridle.feedback.importing.forms.asked import DIALOGUES, QUESTIONS, asked, dialogue, dialogue_field, question
from bridle.feedback.importing.forms.fields import Row, answer_text, by_names, is_empty, number_in, parsed, text_of
from bridle.feedback.importing.forms.ifeval import instructions_in
from bridle.feedback.importing.forms.imported import ImportedRow, Opinion
from bridle.feedback.importing.forms.turns import (
    Turns,
    demonstrated,
    require_trained,
    side,
    transcript,
    transcript_prompt,
)
from bridle.feedback.importing.forms.verdicts import SCORES, scores_in, vote_of, votes_in, votes_named, weight_in
from bridle.feedback.importing.reasons import Note, Reason, Skip

ANSWERS = ("completion", "response", "answer", "output", "target", "reply", "generation", "model_response", "assistant",
           "targets", "gpt", "chatgpt", "bot", "human_response", "assistant_response", "model_output", "expected_response")  # fmt: skip
SOLUTIONS = (
    "ground_truth",
    "solution",
    "final_answer",
    "expected_answer",
    "gold_answer",
    "reference_answer",
    "gold",
    "expected_output",
    "correct_answer",
    "ideal",
    "reward_model",
)
PROBLEM_KINDS, LONGEST_KIND = ("topic", "category", "subject", "problem_type", "level"), 60
BARE_NUMBER = re.compile(r"\s*\$?[-−+]?\d[\d,]*(?:\.\d+)?%?\s*")
WORKED = re.compile(r"####\s*\S[^\n]*\s*\Z")
STEP_MARK = "ки"  # Math-Shepherd's, after each step; its label stands there instead: + or -
TURN_MARKS = re.compile(r"\s*(?:###\s?)?(?:Human|User|System):.*Assistant:", re.DOTALL)


@by_names
def answer_field(row: Row) -> str | None:
    """The field of the one answer; the question's own is none."""
    asks = row.first(QUESTIONS)
    labelled = (
        "label" if isinstance(row.look("label"), str) and len(row.look("label").split()) > 3 else None
    )  # as TL;DR has summaries
    return next((name for name in ANSWERS if name in row and name != asks), labelled)


def answered(row: Row, plain: bool = False) -> tuple[Turns, str]:
    """The prompt and its one answer: in a field of its own, or the last of a dialogue."""
    name = answer_field(row)
    if name is not None and (row.first(QUESTIONS) or dialogue_field(row)):
        return side(row.take(name), asked(row, plain), row)
    if (dialogue_name := dialogue_field(row)) is None:
        raise Skip(Reason.MISSING_FIELD)
    return of_dialogue(row, dialogue_name)


def of_dialogue(row: Row, name: str) -> tuple[Turns, str]:
    turns = dialogue(row, name)
    if turns and turns[-1].role == "user" and any(turn.role == "assistant" for turn in turns):
        last = max(place for place, turn in enumerate(turns) if turn.role == "assistant")
        turns = turns[: last + 1]
        row.notes.add(Note.TRAILING_USER)
    return demonstrated(turns)


def demonstration(form: str, row: Row, prompt: Turns, answer: str) -> ImportedRow:
    """An answer to imitate; one that ends in "#### n" can be checked too, and one that is a bare number only that."""
    require_trained(row)
    if weight_in(row) != 1:
        raise Skip(Reason.UNREAD_WEIGHT)
    return ImportedRow(form, Prompt(prompt), (answer,), imitate=True, solutions=solutions_in(row))


def with_one_answer(row: Row) -> ImportedRow:
    return demonstration("completion", row, *answered(row))


def completion(row: Row) -> ImportedRow:
    prompt = question(row)
    name = answer_field(row)
    if name is None:
        raise Skip(Reason.MISSING_FIELD)
    return demonstration("completion", row, *side(row.take(name), prompt, row))


def last_of_messages(row: Row) -> ImportedRow:
    return _of_field("messages", row, "messages")


def demonstrate_sharegpt(row: Row) -> ImportedRow:
    return _of_field(
        "sharegpt", row, next((name for name in DIALOGUES[1:] if name in row), dialogue_field(row) or "conversations")
    )


def _of_field(form: str, row: Row, name: str) -> ImportedRow:
    """A dialogue: its last answer is a demonstration; one of the user alone is a prompt."""
    value = parsed(row.need(name), row)
    if isinstance(value, list) and len(value) > 0:
        turns = dialogue(row, name)
        if all(turn.role != "assistant" for turn in turns) and turns and turns[-1].role == "user":
            return ImportedRow(form, Prompt(turns))
    return demonstration(form, row, *of_dialogue(row, name))


def demonstrate_alpaca(row: Row) -> ImportedRow:
    if "instruction" not in row or "output" not in row:
        raise Skip(Reason.MISSING_FIELD)
    prompt = question(row, ("instruction",), plain=True)
    return demonstration("alpaca", row, prompt, answer_text(parsed(row.take("output"), row)))


def transcribed(row: Row) -> ImportedRow:
    """A transcript of one dialogue in `prompt` (up to the cue), in `prompt` and an answer, or in `text`."""
    name = row.first(("prompt", "text"))
    if name is None:
        raise Skip(Reason.MISSING_FIELD)
    if name == "text":
        return demonstration("hh", row, *demonstrated(transcript(text_of(row.take(name)), row.notes)))
    text = text_of(row.take(name))
    turns = transcript_prompt(text, row.notes) or transcript(text, row.notes)
    if (answers := answer_field(row)) is not None:
        given = row.take(answers)
        given = given.removeprefix(text).strip() if isinstance(given, str) else given
        return demonstration("hh", row, *side(given, turns, row))
    return ImportedRow("hh", Prompt(turns))


def voted(row: Row) -> ImportedRow:
    prompt, answer = answered(row)
    votes = votes_in(row)
    if not votes:
        raise Skip(Reason.MISSING_FIELD)
    return ImportedRow(
        "vote", Prompt(prompt), (answer,), opinions=tuple(votes + scores_in(row)), solutions=solutions_in(row)
    )


def rated(row: Row) -> ImportedRow:
    prompt, answer = answered(row)
    scores = scores_in(row)
    if not scores:
        raise Skip(Reason.MISSING_FIELD)
    return ImportedRow("rating", Prompt(prompt), (answer,), opinions=tuple(scores), solutions=solutions_in(row))


def has_vote(row: Row) -> bool:
    return any(name != answer_field(row) for name in votes_named(row))


@by_names
def has_score(row: Row) -> bool:
    return any(number_in(row.look(name)) is not None for name in row.among(SCORES))


# ------------------------------------------------------------------------------------------------- to be checked


def is_list_of(value: object, *kinds: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, kinds) for one in value)


# Columns that say how answers are checked: the verifier's kind, and whether a value is of its form. Another is left unread.
CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "constraints": ("constraints", lambda value: is_list_of(value, str, dict)),
    "json_schema": ("schema", lambda value: isinstance(value, dict) and bool(value)),
    "answer_pattern": ("pattern", lambda value: isinstance(value, str) and bool(value.strip())),
    "tests": ("tests", lambda value: is_list_of(value, dict)),
    "verse": ("verse", lambda value: isinstance(value, dict) and "lines" in value),
}


def checks_in(row: Row) -> dict[str, str]:
    """By column what it asks of an answer, as a solution's text: {"check": kind, "expected": value}."""
    found = {}
    for name in row.among(CHECKS):
        (kind, fits), value = CHECKS[name], row.look(name)
        if isinstance(value, str) and kind != "pattern":  # as a table's column has it
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                continue
        if fits(value):
            found[name] = CANONICAL.encode({"check": kind, "expected": value})
    if constraints := instructions_in(row):
        found[ifeval.IDS] = CANONICAL.encode({"check": "constraints", "expected": constraints})
    return found


@by_names
def solutions_in(row: Row) -> tuple[str, ...]:
    """What answers are checked against, in the order of how surely it is that and nothing else."""
    checks = checks_in(row)
    found = list(checks.values())
    for name in checks:
        row.take(name)
    if ifeval.IDS in checks:
        row.take(ifeval.ARGUMENTS)
    for name in SOLUTIONS:
        value = ground_truth(row.look(name)) if name == "reward_model" else row.look(name)
        values = value if isinstance(value, list) else [value]
        if all(isinstance(one, str | int | float) and not isinstance(one, bool) and str(one).strip() for one in values):
            row.take(name)
            found += [str(one).strip() for one in values]
    return tuple(dict.fromkeys(found))


def problem_kind(row: Row) -> str:
    """What a row calls its kind of problem; "" where it says nothing of one."""
    found = (row.look(name) for name in PROBLEM_KINDS)
    return next((one.strip() for one in found if isinstance(one, str) and 0 < len(one.strip()) <= LONGEST_KIND), "")


def ground_truth(reward_model: object) -> object:
    """What verl's `reward_model` holds, be it an object or, after a table, its JSON; one solution or several that do as well."""
    try:
        value = json.loads(reward_model) if isinstance(reward_model, str) else reward_model
    except (ValueError, RecursionError):
        return None
    return value.get("ground_truth") if isinstance(value, dict) else None


def is_checkable(row: Row) -> bool:
    """A solution and no answer, or an answer that is a bare number."""
    name = answer_field(row)
    # {query, response} is ms-swift's form of demonstrations, be the response a number.
    stated = name is not None and (name == "answer" or (name == "response" and row.first(QUESTIONS) != "query"))
    bare = stated and name is not None and BARE_NUMBER.fullmatch(str(row.look(name)))
    dialogue_name = dialogue_field(row)
    if not row.first(QUESTIONS) and (dialogue_name is None or is_answered_dialogue(row.look(dialogue_name))):
        return False
    solved = (
        any(not is_empty(row.look(n)) and n != "reward_model" for n in SOLUTIONS)
        or ground_truth(row.look("reward_model")) is not None
        or bool(checks_in(row))
    )
    return bool(bare) or (solved and name in (None, "answer"))


def is_answered_dialogue(value: object) -> bool:
    last = value[-1] if isinstance(value, list) and value else None
    return isinstance(last, dict) and str(last.get("role", last.get("from"))).lower() in ("assistant", "gpt", "model")


def checkable(row: Row) -> ImportedRow:
    prompt = asked(row)
    if (
        prompt and prompt[-1].role == "assistant" and row.first(QUESTIONS)
    ):  # NuminaMath's: the solution is told again as a dialogue
        prompt = question(row)
    name = answer_field(row)
    given = (
        () if name is None or isinstance(row.look(name), bool | list | dict) else (answer_text(row.take(name)).strip(),)
    )
    solutions = tuple(dict.fromkeys(text for text in (*solutions_in(row), *given) if text))
    if not solutions:
        raise Skip(Reason.WRONG_TYPE)
    return ImportedRow("checkable", Prompt(prompt), solutions=solutions)


# ------------------------------------------------------------------------------------------- steps, texts, prompts


def stepwise(row: Row) -> ImportedRow:
    """TRL's: {prompt, completions: [step, …], labels: [true, …]}."""
    steps, labels = row.need("completions"), row.need("labels")
    if not isinstance(steps, list) or not isinstance(labels, list) or len(steps) != len(labels) or not steps:
        raise Skip(Reason.WRONG_TYPE)
    labelled = tuple((text_of(step), vote_of(label)) for step, label in zip(steps, labels, strict=True))
    return _stepwise("stepwise", question(row), labelled)


def math_shepherd(row: Row) -> ImportedRow:
    """The question and the solution's steps in one text, a mark after each step, which the labelled copy replaces by + or -."""
    row.take("task")
    marked, labelled = text_of(row.need("input")), text_of(row.need("label"))
    pieces = marked.split(STEP_MARK)
    signs, at = [], 0
    for piece in pieces[:-1]:
        at += len(piece)
        signs.append(labelled[at : at + 1])
        at += 1
    if set(signs) - {"+", "-"} or not signs:
        raise Skip(Reason.UNCLEAR_VOTE)
    first = re.search(r"\s*Step 1", pieces[0])
    if first is None:
        raise Skip(Reason.WRONG_TYPE)
    steps = [pieces[0][first.start() :], *pieces[1:-1]]
    prompt = Prompt.from_text(pieces[0][: first.start()])
    return _stepwise(
        "math-shepherd",
        prompt.messages,
        tuple((step.strip(), float(sign == "+")) for step, sign in zip(steps, signs, strict=True)),
    )


def _stepwise(form: str, prompt: Turns, steps: tuple[tuple[str, float], ...]) -> ImportedRow:
    answer = "\n".join(text.strip("\n") for text, _ in steps)
    return ImportedRow(form, Prompt(prompt), (answer,), opinions=(Opinion("steps", None, steps=steps),))


def document(row: Row) -> ImportedRow:
    return ImportedRow("text", Prompt(()), document=text_of(row.need("text")))


def prompt_alone(row: Row) -> ImportedRow:
    return ImportedRow("prompt", Prompt(asked(row, plain=True)))
