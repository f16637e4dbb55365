"""What a row's content must hash to, and what is left of a row whose text was taken down.

Rows are as `exporting/whole.py` has them: by the names of their columns, with keys in place of the numbers of other rows.
"""

from collections.abc import Callable, Collection, Mapping
from types import SimpleNamespace
from typing import Any

from bridle.core.records import Judgement, LabelerKind, content_hash
from bridle.feedback.rankings import NAMED_BY_KIND
from bridle.feedback.store.rows import Values, judgement_of

Line = Mapping[str, Any]


def judgement_in(row: Line) -> Judgement:
    """Its giver's kind and words, which are not part of its identity, left out."""
    return judgement_of(SimpleNamespace(**row, labeler_kind=LabelerKind.IMPORTED, words=None))  # type: ignore[arg-type]


def _rating(row: Line) -> list[Any]:
    given_with = [row["judgement_sha256"]] if row["judgement_sha256"] else []
    stated = [row["labeler"], row["kind"], row["criterion"], row["value"], row["steps"] or [], *given_with]
    return [*row["completion"][:2], *stated]


# Of each table that names its rows by content: what its column of hashes is the hash of.
CONTENTS: Mapping[str, Callable[[Line], Any]] = {
    "prompt": lambda row: [[message["role"], message["content"]] for message in row["messages"]],
    "completion": lambda row: [row["prompt_sha256"], row["text"], row["token_ids"], row["finish_reason"]],
    "item": lambda row: [
        row["study"],
        row["prompt_sha256"],
        [key[0] for key in row["completions"]],
        *([row["kind"]] if row["kind"] in NAMED_BY_KIND else []),
    ],
    "rating": _rating,
    "solution": lambda row: [row["prompt_sha256"], row["text"]],
    "document": lambda row: row["text"],
    "free_text": lambda row: row["body"],
    "guideline": lambda row: [row["study"], row["version"], row["lang"], row["markdown"]],
}
BLANK: Mapping[str, Values] = {  # what a takedown leaves of a text
    "completion": {"text": "", "token_ids": [], "sampled_logprobs": [], "sum_logprob": None},
    "solution": {"text": ""},
    "document": {"text": ""},
    "free_text": {"body": None},
}


def hash_column(kind: str) -> str:
    return "content_sha256" if kind == "completion" else "sha256"


def blank_values(kind: str, row: Line) -> Values:
    """What a takedown puts in the place of a row's texts; of a prompt who spoke when is left."""
    if kind == "prompt":
        return {"messages": [{"role": one["role"], "content": ""} for one in row["messages"]], "meta": {}}
    return BLANK.get(kind, {})


def is_gone(kind: str, row: Line, gone: Collection[str]) -> bool:
    """Whether it, or the prompt that it answers, is among what was taken down."""
    return row.get(hash_column(kind)) in gone or (kind in BLANK and row.get("prompt_sha256") in gone)


def hash_fault(kind: str, row: Line, gone: Collection[str]) -> str:
    """What is wrong between a row's content and its hash; "" where nothing is. Texts that were taken down have left their hash alone."""
    try:
        if is_gone(kind, row, gone) and row == {**row, **blank_values(kind, row)}:
            return ""
        if kind == "judgement":
            found = {judgement_in(row).id}
        elif kind in CONTENTS:
            rows = [row] if kind != "rating" else [row, {**row, "value": whole_number(row["value"])}]
            found = {content_hash(CONTENTS[kind](one)) for one in rows}
        else:
            return ""
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return f"its content cannot be read ({type(error).__name__})"
    return "" if row[hash_column(kind)] in found else "its content is not that of its hash"


def whole_number(value: float | None) -> float | None:
    """A rating may have been named before the database made 3 to 3.0."""
    return value if value is None or value != int(value) else int(value)
