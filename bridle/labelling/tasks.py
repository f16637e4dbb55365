"""The annotator's pages: the next task, its answer, what was answered before."""

import json
import re
import secrets
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from markupsafe import Markup
from starlette.datastructures import FormData

from bridle.core.errors import DataError
from bridle.core.records import Judgement
from bridle.core.text import beginning_of
from bridle.feedback.people.at_work import given_task, is_excluded, note_first_seen, own_done, own_progress, save_draft
from bridle.feedback.people.history import answer_given, last_items, own_answers, recent_moments, was_sent
from bridle.feedback.people.items import texts_of
from bridle.feedback.people.overview import suggestions
from bridle.feedback.people.qualification import qualification
from bridle.feedback.quality.tiredness import is_tired
from bridle.feedback.rankings import Item
from bridle.feedback.store.assignment import Asked, next_task
from bridle.feedback.store.studies import Study, find_guideline, find_study, studies
from bridle.labelling.answering import AnswerKept, NotAsked, answer_task
from bridle.labelling.answers import (
    FLAGS,
    Form,
    Unfinished,
    answer_of_form,
    fields_of,
    plain,
    stored_key,
    verdict_field,
)
from bridle.labelling.opening import ensure_guideline
from bridle.site.rendering import markdown, templates
from bridle.site.viewer import Viewer, labelers

PAGE = 20  # answers
LOOK_EVERY = 10  # answers, for whether a person should pause
COUNT_STANDS = 10.0  # seconds
LONGEST_BODY = 4 * 2**20  # bytes of a form or a draft
MOST_FIELDS = 500
USUAL_CRITERIA = ("overall", "helpful", "harmless", "honest")  # which the catalogue has words for
NOTES = ("saved", "late", "not_whole", "pause")
LANG = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}")

router = APIRouter(include_in_schema=False)
Labeler = Annotated[Viewer, Depends(labelers)]


def study_for(viewer: Labeler, study: str) -> Study:
    """The study that a path names."""
    found = find_study(viewer.store, study, viewer.language)
    if found is None:
        raise HTTPException(404, viewer.words("label.no_study", name=study[:100]))
    return found


Named = Annotated[Study, Depends(study_for)]


async def body_of(request: Request) -> bytes:
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > LONGEST_BODY:
            raise HTTPException(
                413, f"this is larger than an answer may be, {LONGEST_BODY:,} bytes, so nothing was stored; shorten it"
            )
    return bytes(received)


async def form_of(request: Request) -> Form:
    """A form's fields, each with all its values."""
    body = await body_of(request)

    async def again() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    data: FormData = await Request(request.scope, again).form(
        max_fields=MOST_FIELDS, max_files=0, max_part_size=LONGEST_BODY
    )
    return {name: [str(value) for value in data.getlist(name)] for name in data}


async def json_of(request: Request) -> Form:
    """The same of a JSON object."""
    try:
        read = json.loads(await body_of(request))
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, "the body is not JSON; send the form's fields as one object") from error
    if not isinstance(read, dict) or len(read) > MOST_FIELDS:
        raise HTTPException(
            422, f"the body is not an object of at most {MOST_FIELDS} fields; send the form's fields as one"
        )
    return {str(plain(name)): field_of(value) for name, value in read.items()}


def field_of(value: Any) -> str | list[str]:
    return [str(plain(one)) for one in value] if isinstance(value, list) else str(plain(value))


FormFields = Annotated[Form, Depends(form_of)]
JsonFields = Annotated[Form, Depends(json_of)]


def field(form: Form, name: str) -> str:
    value = form.get(name, "")
    return value if isinstance(value, str) else (value[-1] if value else "")


# ------------------------------------------------------------------------------------------------------- showing


def path_of(study: Study, rest: str = "") -> str:
    return f"/label/{quote(study.name, safe='')}{rest}"


def task_values(
    viewer: Viewer,
    study: Study,
    asked: Asked,
    draft: Mapping[str, Any] | None,
    earlier: str | None = None,
    progress: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """What a page shows of a task: nothing of who wrote an answer, of its slot, or of what others said."""
    item = asked.item
    lang = item.prompt.meta.get("lang")
    done, left = progress or progress_now(viewer, study)
    texts = [item.completions[slot].text for slot in asked.display_order]
    return {
        "study": study.name,
        "action": viewer.path(path_of(study)),
        "item": item.id,
        "key": secrets.token_urlsafe(16),
        "kind": item.kind,
        "lang": lang if isinstance(lang, str) and LANG.fullmatch(lang) else None,
        "prompt": [{"role": message.role, "text": message.content} for message in item.prompt.messages],
        "answers": [{"position": n, "letter": letter(n), "text": text} for n, text in enumerate(texts)],
        "criteria": list(study.settings.criteria),
        "rating_scale": [1, 2, 3, 4, 5],
        "flags": list(FLAGS),
        "guideline": guideline_values(viewer, asked.guideline),
        "progress": {"done": done, "total": done + left, "left": left},
        "draft": draft,
        "earlier": earlier,
        "qualification": qualification_values(viewer, study, asked),
        "history": asked.state not in ("open", "ended"),
        "suggestions": suggested(viewer, study, asked),
    }


def progress_now(viewer: Viewer, study: Study, anew: bool = False) -> tuple[int, int]:
    """How many a person has done and may still be asked. Counting what is open takes longer than an answer does, so for some seconds only
    their own answers are counted, unless it is asked for `anew`."""
    counted, who = viewer.request.app.state.counted, (study.name, viewer.handle)
    until, taken_before, left_before = counted.get(who, (0.0, 0, 0))
    done, taken = own_done(viewer.store, *who)
    if not anew and time.monotonic() < until:
        return done, max(0, left_before - (taken - taken_before))
    done, left = own_progress(viewer.store, *who)
    counted[who] = time.monotonic() + COUNT_STANDS, taken, left
    return done, left


def suggested(viewer: Viewer, study: Study, asked: Asked) -> str | None:
    """What reward models make of the answers, in words, by the letters that the person sees; never chosen beforehand."""
    found = suggestions(viewer.store, study, asked.item, asked.display_order)
    if found is None:
        return None
    parts = [f"{letter(n)} {value:.0%}" for n, value in enumerate(found) if value is not None]
    return viewer.words("label.suggestions", shares=", ".join(parts))


def criterion_words(viewer: Viewer, name: str) -> str:
    return viewer.words(f"label.criterion_{name}") if name in USUAL_CRITERIA else name


def letter(position: int) -> str:
    return chr(ord("A") + position)


def guideline_values(viewer: Viewer, sha256: str | None) -> dict[str, Any] | None:
    found = None if sha256 is None else find_guideline(viewer.store, sha256)
    if found is None:
        return None
    named = {"sha": sha256, "study": found.study, "version": found.version, "lang": found.lang}
    return named | {"html": guideline_html(found.markdown)}


@lru_cache(32)
def guideline_html(text: str) -> Markup:
    return markdown(text)


def now_values(
    viewer: Viewer, study: Study, asked: Asked | None, progress: tuple[int, int]
) -> tuple[str, dict[str, Any]]:
    """The template of what is to be seen now, and its values."""
    if asked is not None:
        return "task_form.html", {"task": task_values(viewer, study, asked, asked.draft, progress=progress)}
    done, left = progress
    return "task_done.html", {
        "study": study.name,
        "done": done,
        "left": left,
        "reason": why_nothing(viewer, study, left),
    }


def why_nothing(viewer: Viewer, study: Study, left: int) -> str:
    """Why nothing is asked."""
    if study.state != "open":
        return study.state
    if is_excluded(viewer.store, viewer.handle):
        return "excluded"
    return (
        "nothing_left" if not left else "held" if qualification(viewer.store, study, viewer.handle)[1] else "not_passed"
    )


def qualification_values(viewer: Viewer, study: Study, asked: Asked) -> dict[str, int] | None:
    """How far somebody is in the round before real work, while they are at it."""
    if not study.settings.qualification or asked.state not in ("open", "ended"):
        return None
    found, _ = qualification(viewer.store, study, viewer.handle)
    return {"done": len(found.right), "of": study.settings.qualification} if asked.item.id in found.items else None


def fragment(viewer: Viewer, study: Study, name: str, values: Mapping[str, Any]) -> str:
    known = {"viewer": viewer, "language": viewer.language, "t": viewer.words, "path": viewer.path}
    known |= {"problem": None, "note": None, "here": path_of(study), **values}
    return templates().get_template(name).render(known)


def task_response(
    viewer: Viewer, study: Study, name: str, values: Mapping[str, Any], status: int = 200
) -> HTMLResponse:
    whole = {"task": None, "problem": None, "note": None, "study": study.name} | dict(values)
    return viewer.page("task.html", status, fragment=name, here=path_of(study), **whole)


@router.get("/")
def start(viewer: Labeler) -> Response:
    """Where somebody goes on: their only study, or a list of several."""
    found = [study for study in studies(viewer.store) if study.state == "open"]
    if viewer.account is not None and viewer.account.role == "owner":
        return viewer.go("/studies")
    if len(found) == 1:
        return viewer.go(path_of(found[0]))
    rows = [(study, *own_progress(viewer.store, study.name, viewer.handle)) for study in found]
    listed = [{"name": study.name, "path": path_of(study), "done": done, "left": left} for study, done, left in rows]
    return viewer.page("start.html", studies=listed)


@router.get("/label/{study}")
def task_page(viewer: Labeler, study: Named, note: str = "") -> Response:
    if study.guideline is None:
        ensure_guideline(viewer.store, study.name)
    asked = next_task(viewer.store, study.name, viewer.handle, lang=viewer.language)
    name, values = now_values(viewer, study, asked, progress_now(viewer, study, asked is None))
    words = viewer.words(f"label.note_{note}") if note in NOTES else None
    return task_response(viewer, study, name, values | {"note": words})


# ----------------------------------------------------------------------------------------------------- answering


@router.post("/label/{study}")
def answer(viewer: Labeler, study: Named, form: FormFields) -> Response:
    wants_json = "application/json" in viewer.request.headers.get("accept", "")
    try:
        given = answer_of_form(form)
        answered = answer_task(viewer.store, study, viewer.handle, given, lang=viewer.language)
    except NotAsked as error:
        raise HTTPException(404, viewer.words("label.never_asked")) from error
    except DataError as error:
        return not_stored(viewer, study, form, error, wants_json)
    progress = progress_now(viewer, study, answered.task is None)
    note = note_of(viewer, study, answered, progress[0])
    if not wants_json:
        return viewer.go(path_of(study, f"?note={note}"))
    name, values = now_values(viewer, study, answered.task, progress)
    words = viewer.words(f"label.note_{note}")
    body = {"stored": True, "judgements": [one.id for one in answered.judgements], "note": words}
    body |= {"html": fragment(viewer, study, name, values), "item": answered.task.item.id if answered.task else None}
    return JSONResponse(body)


def note_of(viewer: Viewer, study: Study, answered: AnswerKept, done: int) -> str:
    if not answered.kept_whole or answered.late:
        return "late" if answered.kept_whole else "not_whole"
    looks = done % LOOK_EVERY == 0 and answered.task is not None
    return "pause" if looks and is_tired(recent_moments(viewer.store, study.name, viewer.handle)) else "saved"


def not_stored(viewer: Viewer, study: Study, form: Form, error: DataError, wants_json: bool) -> Response:
    """Why, and the task again with all that was filled in, which is kept as its draft."""
    words = (
        viewer.words(error.key, name=criterion_words(viewer, error.name))
        if isinstance(error, Unfinished)
        else viewer.sentence(error)
    )
    item = field(form, "item")
    asked = given_task(viewer.store, study, viewer.handle, item)
    if asked is None:
        raise HTTPException(404, viewer.words("label.never_asked"))
    fields = draft_of(form)
    save_draft(viewer.store, viewer.handle, item, fields)
    if wants_json:
        return JSONResponse({"error": words}, 422)
    values = {"task": task_values(viewer, study, asked, fields), "problem": words}
    return task_response(viewer, study, "task_form.html", values, 422)


def draft_of(form: Form) -> dict[str, str | list[str]]:
    """The fields that a person filled in."""
    kept = {name: field_of(value if isinstance(value, str) else list(value)) for name, value in form.items()}
    single = {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in kept.items()}
    return {name: value for name, value in single.items() if name not in ("item", "key", "guideline")}


@router.post("/label/{study}/draft", status_code=204)
def draft(viewer: Labeler, study: Named, form: JsonFields) -> None:
    """Keep what is not finished; of a form that was sent already there is nothing to keep."""
    require_given(viewer, study, field(form, "item"))
    if not was_sent(viewer.store, stored_key(viewer.handle, field(form, "key"))):
        save_draft(viewer.store, viewer.handle, field(form, "item"), draft_of(form))


@router.post("/label/{study}/seen", status_code=204)
def seen(viewer: Labeler, study: Named, form: JsonFields) -> None:
    require_given(viewer, study, field(form, "item"))
    note_first_seen(viewer.store, viewer.handle, field(form, "item"))


def require_given(viewer: Viewer, study: Study, item: str) -> Asked:
    found = given_task(viewer.store, study, viewer.handle, item)
    if found is None:
        raise HTTPException(404, viewer.words("label.never_asked"))
    return found


# ------------------------------------------------------------------------------------------------ what was before


@router.post("/label/{study}/undo")
def undo(viewer: Labeler, study: Named, form: FormFields) -> Response:
    """The last own answer comes back, and from there the one before."""
    items = last_items(viewer.store, study.name, viewer.handle)
    now = field(form, "item")
    place = items.index(now) + 1 if now in items else 0
    if place >= len(items):
        raise HTTPException(404, viewer.words("label.nothing_to_undo"))
    rest = f"/answers/{items[place]}"
    if "application/json" not in viewer.request.headers.get("accept", ""):
        return viewer.go(path_of(study, rest))
    task = past_values(viewer, study, items[place])
    return JSONResponse({"html": fragment(viewer, study, "task_form.html", {"task": task}), "item": items[place]})


def past_values(viewer: Viewer, study: Study, item: str) -> dict[str, Any]:
    asked = require_given(viewer, study, item)
    given, ratings = answer_given(viewer.store, viewer.handle, item)
    written = [key for one in given for _, key in one.client.get("written", ())]
    fields = fields_of(given, ratings, texts_of(viewer.store, written), asked)
    words = next((answer_words(viewer, asked.item, one) for one in given if one.criterion is None), None)
    return task_values(viewer, study, asked, asked.draft or fields, words)


def answer_words(viewer: Viewer, item: Item, given: Judgement) -> str:
    """An answer in words, by the letters that the person saw."""
    order, kind = given.display_order or (), item.kind
    if given.outcome:
        return viewer.words(f"label.said_{given.outcome}")
    if kind == "pairwise":
        return viewer.words(f"label.said_{verdict_field(given, order)}")
    if kind == "ranking":
        return " > ".join(" = ".join(letter(order.index(slot)) for slot in group) for group in given.ranking)
    return viewer.words(f"label.said_{kind}")


@router.get("/label/{study}/answers")
def answers_page(viewer: Labeler, study: Named, page: Annotated[int, Query(ge=1, le=100_000)] = 1) -> Response:
    found = own_answers(viewer.store, study.name, viewer.handle, limit=PAGE + 1, offset=(page - 1) * PAGE)
    rows = [
        {
            "path": path_of(study, f"/answers/{item.id}"),
            "prompt": beginning_of(item.prompt.text, 200),
            "words": answer_words(viewer, item, given),
            "rationale": given.rationale,
        }
        for item, given in found[:PAGE]
    ]
    older = path_of(study, f"/answers?page={page + 1}") if len(found) > PAGE else None
    return viewer.page("answers.html", study=study.name, path_of_task=path_of(study), answers=rows, older=older)


@router.get("/label/{study}/answers/{item}")
def past_answer_page(viewer: Labeler, study: Named, item: str) -> Response:
    return task_response(viewer, study, "task_form.html", {"task": past_values(viewer, study, item)})


@router.get("/guidelines/{sha256}")
def guideline_page(viewer: Labeler, sha256: str) -> Response:
    found = guideline_values(viewer, sha256)
    if found is None:
        raise HTTPException(404, viewer.words("label.no_guideline"))
    return viewer.page("guideline.html", guideline=found)
