"""The HTTP API: what the pages do, for programs. They show a token (`Authorization: Bearer …`), of which /me and owners make new ones.

    POST /api/studies/first/next                                   {"task": {"item": "3f…", "answers": ["…", "…"], …}}
    POST /api/studies/first/answers {"item": "3f…", "verdict": -2}  {"judgements": ["9a…"], "task": {…}}
    GET  /api/judgements?after=0                                   what people said, in the order in which it came

Answers come and go in the order of their display, as on the pages, but for what owners and adjudicators see: that is by slots.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Security
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.security import HTTPBearer
from starlette.background import BackgroundTask

from bridle.core.errors import DataError
from bridle.core.records import Completion, Judgement, Message, Prompt
from bridle.feedback.people.accounts import (
    DAY,
    Account,
    accounts,
    change_account,
    create_account,
    credentials,
    find_account,
    issue,
    moment,
    revoke,
)
from bridle.feedback.people.at_work import own_judgements, return_task, save_draft
from bridle.feedback.people.following import arrivals
from bridle.feedback.people.listing import item_kind, listed_items, set_item_priorities
from bridle.feedback.people.overview import suggestions
from bridle.feedback.rankings import Item
from bridle.feedback.store.assignment import Asked, next_tasks
from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import (
    Study,
    adjudicate,
    describe_items,
    disagreements,
    find_study,
    guideline_text,
    mark_items,
    publish_guideline,
    recount,
    set_gold,
    set_study,
    studies,
)
from bridle.labelling import schemas
from bridle.labelling.answering import NotAsked, answer_task
from bridle.labelling.answers import Answer
from bridle.labelling.schemas import LARGEST, Name
from bridle.site.viewer import Viewer, deciders, followers, labelers, members, owners

bearer = HTTPBearer(
    auto_error=False, description="An API token: made on the page /me, or given with a new service account."
)
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.ErrorSentence, "description": what}
    for status, what in (
        (401, "no token, or one that is not good any more"),
        (403, "not for this role"),
        (404, "not there, or not theirs"),
        (422, "not usable, and nothing was changed"),
        (503, "the store refused, and nothing was changed"),
    )
}
router = APIRouter(prefix="/api", dependencies=[Security(bearer)], responses=PROBLEMS)

Owner = Annotated[Viewer, Depends(owners)]
Decider = Annotated[Viewer, Depends(deciders)]
Labeler = Annotated[Viewer, Depends(labelers)]
Member = Annotated[Viewer, Depends(members)]
Follower = Annotated[Viewer, Depends(followers)]
After = Annotated[int, Query(ge=0, le=LARGEST, description="the number of the last one that is known")]
Limit = Annotated[int, Query(ge=1, le=10_000)]


# ---------------------------------------------------------------------------------------------- what is there


def require_study(viewer: Viewer, name: str) -> Study:
    if (found := find_study(viewer.store, name, viewer.language)) is None:
        raise HTTPException(404, f"there is no study {name!r}")
    return found


def require_item(viewer: Viewer, study: str, item: str) -> str:
    kind = item_kind(viewer.store, study, item)
    if kind is None:
        raise HTTPException(404, f"study {study!r} has no item {item[:64]!r}")
    return kind


def turns(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in prompt.messages]


def shown_answers(item: Item, order: tuple[int, ...] | None) -> list[str]:
    return [item.completions[slot].text for slot in (order or range(len(item.completions)))]


# ------------------------------------------------------------------------------------------------------- studies


def study_description(study: Study, viewer: Viewer) -> dict[str, Any]:
    """What decides which tasks are gold is shown to nobody."""
    settings = study.settings.model_dump(mode="json", exclude={"seed"}) if viewer.signed_in.role == "owner" else None
    known = {"name": study.name, "state": study.state, "guideline": study.guideline, "settings": settings}
    return known | {"criteria": study.settings.criteria}


@router.get("/studies", tags=["studies"], summary="All studies", response_model=list[schemas.StudyDescription])
def list_studies(viewer: Member) -> list[dict[str, Any]]:
    return [study_description(study, viewer) for study in studies(viewer.store)]


@router.put(
    "/studies/{study}",
    tags=["studies"],
    summary="Open a study, or change its state or settings",
    response_model=schemas.StudyDescription,
)
def put_study(viewer: Owner, study: Name, body: schemas.NewStudy) -> dict[str, Any]:
    set_study(viewer.store, study, body.settings, state=body.state)
    return study_description(require_study(viewer, study), viewer)


@router.put(
    "/studies/{study}/guideline",
    tags=["studies"],
    summary="Publish a guideline, where it differs from the newest as its next version",
)
def put_guideline(viewer: Owner, study: Name, body: schemas.Guideline) -> schemas.GuidelineVersion:
    require_study(viewer, study)
    return schemas.GuidelineVersion(
        version=publish_guideline(viewer.store, study, {str(lang): text for lang, text in body.texts.items()})
    )


@router.get("/guidelines/{guideline}", tags=["studies"], summary="A guideline's text, by its hash")
def get_guideline(viewer: Member, guideline: Name) -> schemas.GuidelineMarkdown:
    try:
        return schemas.GuidelineMarkdown(guideline=guideline, markdown=guideline_text(viewer.store, guideline))
    except DataError as error:
        raise HTTPException(404, str(error)) from error


# ---------------------------------------------------------------------------------------------------------- work


def task_of(store: Store, asked: Asked | None, study: Study) -> dict[str, Any] | None:
    if asked is None:
        return None
    answers = shown_answers(asked.item, asked.display_order)
    known = {
        "item": asked.item.id,
        "kind": asked.item.kind,
        "criteria": study.settings.criteria,
        "prompt": turns(asked.item.prompt),
        "answers": answers,
        "suggestions": suggestions(store, study, asked.item, asked.display_order),
    }
    return known | {"lease_until": asked.lease_until, "guideline": asked.guideline, "draft": asked.draft}


@router.post(
    "/studies/{study}/next",
    tags=["work"],
    summary="The task that one holds, else the next",
    response_model=schemas.NextTask,
)
def post_next(viewer: Labeler, study: Name) -> dict[str, Any]:
    found = require_study(viewer, study)
    asked = next_tasks(viewer.store, study, viewer.handle, kind=viewer.signed_in.kind, lang=viewer.language)
    return {"task": task_of(viewer.store, asked[0] if asked else None, found)}


@router.post(
    "/studies/{study}/answers",
    tags=["work"],
    summary="Answer a task, and be given the next",
    responses={200: {"model": schemas.AnswerStored}},
)
def post_answer(viewer: Labeler, study: Name, body: Answer) -> JSONResponse:
    """Both are one transaction, which has ended well when the reply comes. Sent again, under the same key, an answer adds nothing; to
    change one, send it under another key."""
    found, kind = require_study(viewer, study), viewer.signed_in.kind
    try:
        answered = answer_task(viewer.store, found, viewer.handle, body, lang=viewer.language, kind=kind)
    except NotAsked as error:
        raise HTTPException(404, str(error)) from error
    # As it is: to check it by its model would take a thread's turn more.
    return JSONResponse(
        {"judgements": [one.id for one in answered.judgements], "task": task_of(viewer.store, answered.task, found)}
    )


@router.get(
    "/studies/{study}/answers",
    tags=["work"],
    summary="One's own last answers, the newest first",
    response_model=list[schemas.OwnAnswer],
)
def list_own_answers(
    viewer: Labeler, study: Name, limit: Annotated[int, Query(ge=1, le=200)] = 20
) -> list[dict[str, Any]]:
    """To change one, answer its item again under a new key."""
    require_study(viewer, study)
    found = []
    for item, judgement in own_judgements(viewer.store, study, viewer.handle, limit):
        order = judgement.display_order or tuple(range(len(item.completions)))
        ranking = [sorted(order.index(slot) for slot in group) for group in judgement.ranking]
        known: dict[str, Any] = {"judgement": judgement.id, "item": item.id, "ranking": ranking}
        known |= {
            "answers": shown_answers(item, order),
            "outcome": judgement.outcome,
            "criterion": judgement.criterion,
            "strength": judgement.strength,
        }
        found.append(known | {"rationale": judgement.rationale})
    return found


@contextmanager
def given_to(viewer: Viewer, study: str, item: str) -> Iterator[None]:
    require_item(viewer, study, item)
    try:
        yield
    except DataError as error:
        raise HTTPException(404, str(error)) from error


@router.put(
    "/studies/{study}/items/{item}/draft", tags=["work"], summary="Keep an answer that is not finished", status_code=204
)
def put_draft(viewer: Labeler, study: Name, item: Name, body: schemas.Draft) -> None:
    """It comes back with the task, and goes when the task is answered."""
    with given_to(viewer, study, item):
        save_draft(viewer.store, viewer.handle, item, body.draft)


@router.post(
    "/studies/{study}/items/{item}/return", tags=["work"], summary="Give a task back unanswered", status_code=204
)
def post_return(viewer: Labeler, study: Name, item: Name) -> None:
    """Somebody else is asked it. To skip a task, and say so, answer "skip"."""
    with given_to(viewer, study, item):
        return_task(viewer.store, viewer.handle, item)


# --------------------------------------------------------------------------------------------------------- items


def prompt_from(new: schemas.NewItem) -> Prompt:
    if isinstance(new.prompt, str):
        return Prompt.from_text(new.prompt)
    if new.prompt[-1].role != "user":
        raise DataError(f"a dialogue ends with a turn of the user, and this one with one of the {new.prompt[-1].role}")
    return Prompt(tuple(Message(turn.role, turn.content) for turn in new.prompt))


@router.post(
    "/studies/{study}/items",
    tags=["items"],
    summary="Add prompts with answers to compare",
    response_model=schemas.ItemIds,
    status_code=201,
)
def post_items(viewer: Follower, study: Name, body: schemas.NewItems) -> dict[str, list[str]]:
    """What is there already stays as it is; the ids come in the order of the request."""
    require_study(viewer, study)
    prompts = [prompt_from(new) for new in body.items]
    groups = [[Completion(p.id, text) for text in new.answers] for p, new in zip(prompts, body.items, strict=True)]
    with viewer.store.transaction() as store:
        store.add_prompts(prompts, split=body.split, source="api")
        store.add_completions([answer for group in groups for answer in group], source="import")
        ids = store.add_items(groups, study=study)
        mark_items(store, study, ids)
        for item, new in zip(ids, body.items, strict=True):
            if new.need is not None or new.topic is not None:
                describe_items(store, [item], need=new.need, topic=new.topic)
        set_item_priorities(
            store, study, [(item, new.priority) for item, new in zip(ids, body.items, strict=True) if new.priority]
        )
    return {"items": ids}


@router.get(
    "/studies/{study}/items",
    tags=["items"],
    summary="Items in the order in which they came",
    response_model=list[schemas.ListedItem],
)
def list_items(
    viewer: Follower, study: Name, after: After = 0, limit: Limit = 100, state: Literal["open", "done"] | None = None
) -> list[dict[str, Any]]:
    require_study(viewer, study)
    return listed_items(viewer.store, study, after=after, limit=limit, state=state)


@router.patch(
    "/studies/{study}/items/{item}",
    tags=["items"],
    summary="An item's priority, topic, people, or right ranking",
    status_code=204,
)
def patch_item(viewer: Owner, study: Name, item: Name, body: schemas.ItemChange) -> None:
    require_item(viewer, study, item)
    with viewer.store.transaction() as store:
        if body.need is not None or body.topic is not None:
            describe_items(store, [item], need=body.need, topic=body.topic)
        if body.priority is not None:
            set_item_priorities(store, study, [(item, body.priority)])
        if body.gold is not None:
            set_gold(store, item, body.gold, by=viewer.handle)
        if body.need is not None:
            recount(store, study)


@router.post(
    "/exclusions",
    tags=["items"],
    summary="Leave a person, a judgement, an item, a prompt or an answer out from now on",
    status_code=204,
)
def post_exclusion(viewer: Owner, body: schemas.Exclusion) -> None:
    with viewer.store.transaction() as store:
        store.exclude(body.target, body.target_id, reason=body.reason, by=viewer.handle)
        for study in studies(store):
            recount(store, study.name)


# -------------------------------------------------------------------------------------------------- disagreements


@router.get(
    "/studies/{study}/disagreements",
    tags=["adjudication"],
    summary="Items of which people call different answers the best",
    response_model=list[schemas.Disagreement],
)
def list_disagreements(viewer: Decider, study: Name, limit: Limit = 100) -> list[dict[str, Any]]:
    require_study(viewer, study)
    return [
        {
            "item": item.id,
            "prompt": turns(item.prompt),
            "answers": shown_answers(item, None),
            "judgements": judged,
        }
        for item, judged in disagreements(viewer.store, study, limit)
    ]


@router.post(
    "/studies/{study}/disagreements/{item}",
    tags=["adjudication"],
    summary="Decide what counts of an item",
    status_code=201,
)
def post_decision(viewer: Decider, study: Name, item: Name, body: schemas.Decision) -> schemas.JudgementId:
    require_item(viewer, study, item)
    ranking = tuple(tuple(group) for group in body.ranking)
    decided = Judgement(item, viewer.handle, viewer.signed_in.kind, ranking, None, rationale=body.rationale)
    adjudicate(viewer.store, decided)
    return schemas.JudgementId(judgement=decided.id)


# ---------------------------------------------------------------------------------------------------- what came


@router.get(
    "/judgements",
    tags=["following"],
    summary="What people said, in the order in which it came",
    response_model=schemas.Arrivals,
)
def list_judgements(
    viewer: Follower, after: After = 0, limit: Limit = 1000, study: Annotated[Name | None, Query()] = None
) -> dict[str, Any]:
    """Numbers rise, and none comes after a higher one: whoever asks again after the last one that they have misses nothing. What was taken
    back later comes too; what counts now is in an export."""
    found = arrivals(viewer.store, after, limit, study)
    rows = [
        {
            "number": one.number,
            "judgement": one.judgement.id,
            "item": one.judgement.item_id,
            "study": one.study,
            "supersedes": one.supersedes,
            "created_at": one.created_at,
        }
        | {
            name: value
            for name, value in asdict(one.judgement).items()
            if name in schemas.FollowedJudgement.model_fields
        }
        for one in found
    ]
    return {"judgements": rows, "last": found[-1].number if found else after}


@router.get(
    "/studies/{study}/quality",
    tags=["following"],
    summary="Agreement, reliability and bias, as `bridle agreement --json`",
)
def get_quality(viewer: Follower, study: Name) -> dict[str, Any]:
    from bridle.feedback.quality.summary import quality_of
    from bridle.feedback.quality.votes import read_votes

    require_study(viewer, study)
    return quality_of(read_votes(viewer.store, study)).as_json()


@router.get(
    "/export",
    tags=["following"],
    summary="Data as JSON lines, as `bridle export` writes it",
    response_class=FileResponse,
)
def get_export(
    viewer: Follower,
    format: Annotated[
        Literal["preference", "unpaired", "prompts", "rankings", "ratings", "full"], Query()
    ] = "preference",
    study: Annotated[Name | None, Query()] = None,
    split: Annotated[Literal["train", "heldout"] | None, Query()] = None,
) -> Response:
    from bridle.feedback.exporting.exporter import export_file
    from bridle.feedback.exporting.formats import Wanted

    folder = tempfile.TemporaryDirectory(prefix="bridle-export-")
    try:
        place = Path(folder.name) / f"{format}.jsonl"
        export_file(viewer.store, place, format, Wanted(study=study, split=split), by=viewer.handle)
    except BaseException:
        folder.cleanup()
        raise
    return FileResponse(
        place, media_type="application/jsonl", filename=place.name, background=BackgroundTask(folder.cleanup)
    )


# -------------------------------------------------------------------------------------------------------- people


@router.get("/me", tags=["people"], summary="Whose token this is", response_model=schemas.PersonAccount)
def get_me(viewer: Member) -> Account:
    return viewer.signed_in


@router.get("/people", tags=["people"], summary="All accounts", response_model=list[schemas.PersonAccount])
def list_people(viewer: Owner) -> list[Account]:
    return accounts(viewer.store)


@router.patch(
    "/people/{handle}", tags=["people"], summary="Change somebody's role, or close their account", status_code=204
)
def patch_person(viewer: Owner, handle: Name, body: schemas.PersonChange) -> None:
    if find_account(viewer.store, handle) is None:
        raise HTTPException(404, f"there is no account {handle[:64]!r}")
    values: dict[str, Any] = {} if body.role is None else {"role": body.role}
    values |= {} if body.closed is None else {"disabled_at": moment(0) if body.closed else None}
    if values:
        change_account(viewer.store, handle, by=viewer.handle, **values)


@router.post("/services", tags=["people"], summary="An account for a program, with its token", status_code=201)
def post_service(viewer: Owner, body: schemas.NewService) -> schemas.Token:
    with viewer.store.transaction() as store:
        create_account(store, body.handle, "service")
        return schemas.Token(handle=body.handle, token=issue(store, "token", labeler=body.handle, seconds=None))


@router.get(
    "/invitations",
    tags=["people"],
    summary="Invitations that nobody has taken up",
    response_model=list[schemas.Invitation],
)
def list_invitations(viewer: Owner) -> list[dict[str, Any]]:
    return [asdict(one) | {"role": one.scopes["role"]} for one in credentials(viewer.store, "invitation")]


@router.post(
    "/invitations",
    tags=["people"],
    summary="Invite somebody to a role",
    response_model=schemas.NewLink,
    status_code=201,
)
def post_invitation(viewer: Owner, body: schemas.NewInvitation) -> dict[str, str]:
    secret = issue(viewer.store, "invitation", scopes={"role": body.role}, seconds=body.days * DAY)
    return {"path": viewer.path(f"/join/{secret}")}


@router.delete("/invitations/{number}", tags=["people"], summary="Take an invitation back", status_code=204)
def delete_invitation(viewer: Owner, number: schemas.Number) -> None:
    if number not in {one.id for one in credentials(viewer.store, "invitation")}:
        raise HTTPException(404, f"there is no invitation {number}, or it was taken up")
    revoke(viewer.store, credential=number)
