"""An item and what everybody said of it as labelling tools have them: an Argilla record, a Label Studio task with its annotations.

`bridle import` reads both back to the same verdicts. A prompt of one turn is its text, another one is its messages (a chat field, a
`Paragraphs` tag). How sure or how strong a verdict was, and its weight, have no place in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bridle.core.records import Judgement, Prompt
from bridle.feedback.rankings import Item
from bridle.feedback.store.rows import Values

Judged = tuple[Item, Sequence[Judgement]]


def argilla_record(judged: Judged) -> Values:
    """With a label question `preference` (of two answers) or a ranking question `ranking` (of more), as `Dataset.to_json` writes them."""
    item, judgements = judged
    question = "preference" if len(item.completions) == 2 else "ranking"
    responses = [{"value": response(one), "user_id": one.labeler, "status": "submitted"} for one in judgements]
    names = response_names(len(item.completions))
    fields = dict(zip(names, [answer.text for answer in item.completions], strict=True))
    record = {"id": item.id, "status": "completed", "fields": {"prompt": asked_text(item.prompt), **fields}}
    return {**record, "metadata": {}, "vectors": {}, "suggestions": {}, "responses": {question: responses}}


def response(judgement: Judgement) -> Any:
    names = response_names(sum(map(len, judgement.ranking)))
    if len(names) > 2:
        return [
            {"value": names[slot], "rank": place} for place, group in enumerate(judgement.ranking, 1) for slot in group
        ]
    return tie_name(judgement) if len(judgement.ranking) == 1 else names[judgement.ranking[0][0]]


def response_names(count: int) -> list[str]:
    return [f"response{number + 1}" for number in range(count)]


def label_studio_task(judged: Judged) -> Values:
    """Of two answers: the choice of a `Pairwise` tag, or for a tie that of a `Choices` tag of the same name."""
    item, judgements = judged
    data = {"prompt": asked_text(item.prompt), "text1": item.completions[0].text, "text2": item.completions[1].text}
    return {"data": {**data, "item": item.id}, "annotations": [annotation(one) for one in judgements]}


def annotation(judgement: Judgement) -> Values:
    if len(judgement.ranking) == 1:
        verdict = {"type": "choices", "value": {"choices": [tie_name(judgement)]}}
    else:
        verdict = {"type": "pairwise", "value": {"selected": ("left", "right")[judgement.ranking[0][0]]}}
    result = {"from_name": "preference", "to_name": "text1,text2", **verdict}
    who = {"completed_by": {"email": judgement.labeler}, "lead_time": judgement.seconds}
    return {**who, "was_cancelled": False, "result": [result]}


def tie_name(judgement: Judgement) -> str:
    return judgement.outcome or "tie"


def asked_text(prompt: Prompt) -> Any:
    if len(prompt.messages) == 1:
        return prompt.text
    return [{"role": turn.role, "content": turn.content} for turn in prompt.messages]
