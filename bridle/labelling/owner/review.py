"""What people call differently: who decides sees each one's judgement without their name, and no model's.

What is decided counts in place of the others, which stay. The order in which a decider sees the answers is their own, as a task's would be.
"""

import secrets
from collections.abc import Callable, Sequence

from fastapi import APIRouter, HTTPException
from fastapi.responses import Response

from bridle.core.errors import DataError
from bridle.core.records import Judgement, LabelerKind
from bridle.feedback.people.overview import PAGE_ITEMS, ItemRecord, JudgementRow, item_record
from bridle.feedback.store.assignment import display_order
from bridle.feedback.store.studies import Study, adjudicate, uniform
from bridle.labelling.answers import Unfinished, answer_of_form, said_on_the_whole
from bridle.labelling.owner.dashboard import Decider, Sent, counts_of, named_study, study_page, study_path
from bridle.site.viewer import Viewer

LETTERS = "ABCDEFGHI"

router = APIRouter(include_in_schema=False)


@router.get("/studies/{study}/disagreements")
def disagreements_page(viewer: Decider, study: str) -> Response:
    found = named_study(viewer, study)
    return study_page(viewer, "disagreements", found, rows=counts_of(viewer, found.name).queue, most=PAGE_ITEMS)


@router.get("/studies/{study}/disagreements/{item}")
def disagreement_page(viewer: Decider, study: str, item: str) -> Response:
    return disagreement_form(viewer, named_study(viewer, study), item)


def disagreement_form(
    viewer: Viewer, study: Study, item: str, problem: str | None = None, rationale: str = ""
) -> Response:
    record = judged_item(viewer, study, item)
    order = display_order(study.name, item, viewer.handle, len(record.answers))
    judged = [one for one in record.judgements if one.stands and one.criterion is None]
    people = sorted({one.labeler for one in judged}, key=lambda name: uniform("person", study.name, item, name))
    number = {name: place for place, name in enumerate(people, 1)}
    values = {
        "record": record,
        "order": order,
        "letters": LETTERS,
        "said": [
            (number[one.labeler], one, said_in_words(viewer.words, one, order))
            for one in sorted(judged, key=lambda one: number[one.labeler])
        ],
        "decided": any(one.decides for one in judged),
        "own": viewer.handle in number,
        "next": next_item(viewer, study, item),
        "key": secrets.token_urlsafe(16),
        "rationale": rationale,
        "problem": problem,
    }
    return study_page(viewer, "disagreement", study, 422 if problem else 200, **values)


def judged_item(viewer: Viewer, study: Study, item: str) -> ItemRecord:
    """An item that several people judged; an answer of 404 where it is none."""
    record = item_record(viewer.store, study.name, item)
    people = {one.labeler for one in record.judgements if one.stands} if record else set()
    if record is None or len(people) < 2 or record.row.gold:
        raise HTTPException(404, viewer.words("owner.no_disagreement"))
    return record


def next_item(viewer: Viewer, study: Study, item: str) -> str | None:
    """The disagreement after this one in the list, after the last one the first. All are looked for anew only where none is left of those
    that were found before."""
    for earlier in (True, False):
        queue = [row.id for row in counts_of(viewer, study.name, earlier=earlier).queue]
        place = queue.index(item) + 1 if item in queue else 0
        for name in queue[place:] + queue[:place]:
            if name != item and is_split(item_record(viewer.store, study.name, name)):
                return name
    return None


def is_split(record: ItemRecord | None) -> bool:
    """Whether people call different answers of an item the best, and nobody has decided."""
    judged = [one for one in record.judgements if one.stands and one.criterion is None] if record else []
    return len({one.outcome for one in judged}) > 1 and not any(one.decides for one in judged)


def said_in_words(words: Callable[..., str], judged: JudgementRow, order: Sequence[int]) -> str:
    """What a judgement says of the answers, by the letters under which they are shown."""
    letter = {slot: LETTERS[place] for place, slot in enumerate(order)}
    if judged.outcome in ("both_good", "both_bad") or len(judged.ranking) == 1:
        return words(f"owner.said_{judged.outcome if judged.outcome in ('both_good', 'both_bad') else 'tie'}")
    if len(order) > 2:
        return " > ".join(" = ".join(sorted(letter[slot] for slot in group)) for group in judged.ranking)
    return words(f"owner.said_better_{judged.strength or 0}", answer=letter[judged.ranking[0][0]])


@router.post("/studies/{study}/disagreements/{item}")
def decide(viewer: Decider, study: str, item: str, form: Sent) -> Response:
    """Store the decision, and on to the next one. Sent twice, it is one."""
    found = named_study(viewer, study)
    record = judged_item(viewer, found, item)
    order = display_order(found.name, item, viewer.handle, len(record.answers))
    try:
        given = answer_of_form({name: [str(value) for value in form.getlist(name)] for name in form})
        compared = "pairwise" if len(order) == 2 else "ranking"
        ranking, outcome, strength = said_on_the_whole(given, compared, order, ())
        if not ranking:
            raise DataError(viewer.words("owner.needs_decision"))
    except DataError as error:
        words = viewer.words("owner.needs_decision") if isinstance(error, Unfinished) else viewer.sentence(error)
        return disagreement_form(viewer, found, item, words, str(form.get("rationale") or ""))
    decision = Judgement(
        item_id=item,
        labeler=viewer.handle,
        labeler_kind=LabelerKind.PERSON,
        ranking=ranking,
        display_order=order,
        submission_key=given.key,
        seconds=given.active_seconds,
        outcome=outcome,  # type: ignore[arg-type]
        strength=strength,
        rationale=given.rationale,
        lang=viewer.language,
        guideline=found.guideline,
    )
    if decision.id not in {one.id for one in record.judgements}:
        adjudicate(viewer.store, decision)
    following = next_item(viewer, found, item)
    return viewer.go(study_path(found.name, f"/disagreements{f'/{following}' if following else ''}?note=decided"))
