"""Records to rows and back: what a prompt, an answer and a judgement look like in the store's tables."""

import math
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row

from bridle.core.errors import DataError
from bridle.core.records import Completion, FinishReason, Judgement, LabelerKind, Message, Prompt, content_hash

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
        "created_at": now(),
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
        "sha256": content_hash([completion.id, completion.weight_stamp, author, source]),
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
        "created_at": now(),
    }


def judgement_values(judgement: Judgement, supersedes: str | None) -> Values:
    best = judgement.ranking[0]
    order = judgement.display_order
    return {
        "sha256": judgement.id,
        "submission_key": judgement.submission_key or judgement.id,  # without a key, the content is the key
        "item_sha256": judgement.item_id,
        "labeler": judgement.labeler,
        "ranking": [list(group) for group in judgement.ranking],
        "outcome": str(best[0]) if len(best) == 1 else "tie",
        "display_order": None if order is None else list(order),
        "source": judgement.source,
        "seconds": judgement.seconds,
        "supersedes": supersedes,
        "created_at": now(),
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
    return Judgement(
        item_id=row.item_sha256,
        labeler=row.labeler,
        labeler_kind=LabelerKind(row.labeler_kind),
        ranking=tuple(tuple(group) for group in row.ranking),
        display_order=None if row.display_order is None else tuple(row.display_order),
        source=row.source,
        submission_key="" if row.submission_key == row.sha256 else row.submission_key,
        seconds=row.seconds,
    )
