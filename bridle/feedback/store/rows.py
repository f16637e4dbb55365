"""Records to rows and back: what a prompt, an answer and a judgement look like in the store's tables."""

import math
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Row

from bridle.core.errors import DataError
from bridle.core.records import (
    UNDECIDED,
    Completion,
    FinishReason,
    Judgement,
    LabelerKind,
    Message,
    Prompt,
    Rating,
    content_hash,
)
from bridle.feedback.store.nearness import nearness

Values = dict[str, Any]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"


def prompt_values(prompt: Prompt, split: str, source: str) -> Values:
    lang = prompt.meta.get("lang")
    return {
        "sha256": prompt.id,
        "messages": [{"role": message.role, "content": message.content} for message in prompt.messages],
        "meta": dict(prompt.meta),
        "split": split,
        "source": source,
        "lang": lang if isinstance(lang, str) else None,
        "nearness": nearness(message.content for message in prompt.messages),
    }


def completion_values(completion: Completion, source: str, author: str) -> Values:
    logprobs = [float(logprob) for logprob in completion.sampled_logprobs]
    total = math.fsum(logprobs) if logprobs else None
    if total is not None and (not math.isfinite(total) or len(logprobs) != len(completion.token_ids)):
        raise DataError(
            f"the answer {shortened(completion.text)!r} has {len(logprobs)} log-probs for {len(completion.token_ids)} "
            f"tokens, their sum being {total}; each token needs one, and each must be finite"
        )
    return {
        "content_sha256": completion.id,
        "prompt_sha256": completion.prompt_id,
        "weight_stamp": completion.weight_stamp,
        "author": author,
        "source": source,
        "text": completion.text,
        "token_ids": list(completion.token_ids),
        "sampled_logprobs": logprobs,
        "sum_logprob": total,
        "sampling": dict(completion.sampling),
        "finish_reason": completion.finish_reason.value,
    }


def judgement_values(judgement: Judgement, supersedes: str | None) -> Values:
    best, order = judgement.ranking[0] if judgement.ranking else (), judgement.display_order
    implied = ("", pair_key(judgement.item_id, best[0]) if best else "")
    return {
        "sha256": judgement.id,
        "submission_key": None if judgement.submission_key in implied else judgement.submission_key,
        "item_sha256": judgement.item_id,
        "labeler": judgement.labeler,
        "ranking": [list(group) for group in judgement.ranking] or None,
        "outcome": str(best[0]) if len(best) == 1 else judgement.outcome or ("tie" if best else "unranked"),
        "display_order": None if order is None else list(order),
        "source": judgement.source,
        "seconds": judgement.seconds,
        "supersedes": supersedes,
        "criterion": judgement.criterion,
        "strength": judgement.strength,
        "margin": judgement.margin,
        "weight": None if judgement.weight == 1 else judgement.weight,
        "confidence": judgement.confidence,
        "lang": judgement.lang,
        "rationale": content_hash(judgement.rationale) if judgement.rationale else None,
        "guideline": judgement.guideline,
        "marks": list(judgement.marks) or None,
        "wall_seconds": judgement.wall_seconds,
        "client": dict(judgement.client) or None,
    }


@lru_cache(10_000)  # asked again where it is stored
def pair_key(item: str, winner: int) -> str:
    """The submission key of an imported pair: the item, and which won."""
    return content_hash([item, winner])


def rating_values(rating: Rating, completion: int) -> Values:
    """`completion` is the number of the answer's row. The same words of the same person on the same answer are one row."""
    given = [number for number in (rating.value, rating.weight) if number is not None]
    if any(type(number) is bool or not math.isfinite(number) for number in given):
        raise DataError(
            f"the rating by {rating.labeler!r} has the value {rating.value!r} and the weight {rating.weight!r}, but each must be a finite "
            "number (of a vote 1 or 0)"
        )
    return {
        "sha256": rating.id,
        "completion_id": completion,
        "labeler": rating.labeler,
        "kind": rating.kind,
        "criterion": rating.criterion,
        "value": rating.value,
        "steps": [list(step) for step in rating.steps] or None,
        "weight": None if rating.weight == 1 else rating.weight,
        "source": rating.source,
        "lang": rating.lang,
        "judgement_sha256": rating.judgement_id,
        "note": content_hash(rating.note) if rating.note else None,
    }


def prompt_of(row: Row[Any]) -> Prompt:
    return Prompt(tuple(Message(m["role"], m["content"]) for m in row.messages), row.meta)


def completion_of(row: Row[Any]) -> Completion:
    return Completion(
        prompt_id=row.prompt_sha256,
        text=row.text,
        token_ids=tuple(row.token_ids),
        sampled_logprobs=tuple(row.sampled_logprobs),
        finish_reason=FinishReason(row.finish_reason),
        weight_stamp=row.weight_stamp,
        sampling=row.sampling,
    )


def judgement_of(row: Row[Any]) -> Judgement:
    found = Judgement(
        item_id=row.item_sha256,
        labeler=row.labeler,
        labeler_kind=LabelerKind(row.labeler_kind),
        ranking=tuple(tuple(group) for group in row.ranking or ()),
        display_order=None if row.display_order is None else tuple(row.display_order),
        source=row.source,
        submission_key="" if row.submission_key in (None, row.sha256) else row.submission_key,
        seconds=row.seconds,
        outcome=row.outcome if row.outcome in ("both_good", "both_bad", *UNDECIDED) else "",
        criterion=row.criterion,
        strength=row.strength,
        margin=row.margin,
        weight=1.0 if row.weight is None else row.weight,
        confidence=row.confidence,
        rationale=row.words or "",
        lang=row.lang,
        guideline=row.guideline,
        marks=tuple(row.marks or ()),
        wall_seconds=row.wall_seconds,
        client=row.client or {},
    )
    if found.id == row.sha256 or not found.ranking:
        return found
    return replace(found, submission_key=pair_key(found.item_id, found.ranking[0][0]))


def rating_of(row: Row[Any]) -> Rating:
    return Rating(
        completion=completion_of(row),
        labeler=row.labeler,
        labeler_kind=LabelerKind(row.labeler_kind),
        kind=row.kind,
        value=row.value,
        steps=tuple((text, label) for text, label in row.steps or ()),
        criterion=row.criterion,
        weight=1.0 if row.weight is None else row.weight,
        source=row.rating_source,
        lang=row.rating_lang,
        note=row.words or "",
        judgement_id=row.judgement_sha256,
    )
