"""An answer to a task, kept whole: judgements, ratings, what was written, and the next task, in one transaction."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bridle.core.errors import DataError
from bridle.core.records import Judgement, LabelerKind
from bridle.feedback.people.at_work import given_task
from bridle.feedback.people.items import is_taken_down, keep_written
from bridle.feedback.store.assignment import Asked, submit_and_ask
from bridle.feedback.store.ratings import add_ratings
from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import Study, find_guideline
from bridle.labelling.answers import Answer, stated


class NotAsked(DataError):
    """Somebody answers what they were never given."""


@dataclass(frozen=True)
class AnswerKept:
    """What was stored, and what is asked next. `late`: it came after its lease; `kept_whole`: False where a text that was written was not
    kept, because it, or what it answers, was taken down."""

    judgements: list[Judgement]
    task: Asked | None
    late: bool
    kept_whole: bool


def check_page(store: Store, study: Study, asked: Asked, answer: Answer) -> dict[str, Any]:
    """What the page meaning, as far as it can be: no more active seconds than have passed, and a guideline of this study."""
    passed = (datetime.now(UTC) - datetime.fromisoformat(asked.since)).total_seconds()
    seconds = None if answer.active_seconds is None else min(answer.active_seconds, max(0.0, passed))
    displayed = answer.guideline if answer.guideline != asked.guideline else None
    named = displayed and find_guideline(store, displayed)
    return {"active_seconds": seconds, "guideline": displayed if named and named.study == study.name else None}


def answer_task(
    store: Store, study: Study, labeler: str, answer: Answer, *, lang: str, kind: LabelerKind = LabelerKind.PERSON
) -> AnswerKept:
    """Sent again it adds nothing, and returns what was stored. Raises NotAsked, Unfinished and DataError; then nothing is stored."""
    with store.transaction() as one:
        asked = given_task(one, study, labeler, answer.item)
        if asked is None:
            raise NotAsked(
                f"{labeler!r} was never given item {answer.item[:12]} of study {study.name!r}, so nothing was stored"
            )
        answer = answer.model_copy(update=check_page(one, study, asked, answer))
        meaning = stated(answer, asked, criteria=study.settings.criteria, lang=lang, kind=kind)
        stored, task = submit_and_ask(one, study.name, meaning.judgements, lang=lang)
        if stored[0].client.get("answer") != answer.digest:
            raise DataError(
                f"submission {answer.key!r} came before with another answer, which is stored; to change that, send this one with a key "
                "of its own"
            )
        kept = not (meaning.ratings or meaning.written) or not is_taken_down(one, asked.item)
        if kept:
            if meaning.ratings:
                add_ratings(one, meaning.ratings)
            if meaning.written or asked.state not in ("open", "ended"):  # else nothing was written before
                kept = keep_written(one, study.name, asked.item, stored[0], meaning.written)
        late = "late" in stored[0].marks and asked.state in ("open", "ended")
        return AnswerKept(stored, task, late, kept)
