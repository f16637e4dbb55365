"""An owner's studies: all of them, and one with its numbers, its people, its price, and its labels to take away."""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import FileResponse, Response
from starlette.background import BackgroundTask
from starlette.datastructures import FormData

from bridle.core.errors import DataError
from bridle.feedback.people.overview import unopened_studies
from bridle.feedback.quality.summary import Quality
from bridle.feedback.store.studies import Study, ask_new_items, find_study, recount, set_study, studies
from bridle.labelling.owner.measures import Counts, Kept, Measures, cost_of
from bridle.project.kept import read_label_plan
from bridle.project.names import is_name
from bridle.project.project import Project
from bridle.site.app import LONGEST_FORM
from bridle.site.viewer import Viewer, deciders, owners

MOST_FIELDS = 2_000
LONGEST_LINE = 500  # characters of what is typed on one line
EXPORTED = ("preference", "rankings", "unpaired", "full")
CRITERIA = ("helpful", "honest", "harmless")
FEW = 5  # disagreements that a study's page shows
TALKS = {  # what is remarked of a person, by the key of its words
    "answers against the others": "against",
    "answers like a coin": "coin",
    "nearly always left": "left",
    "nearly always right": "right",
    "much faster than the others": "fast",
}

router = APIRouter(include_in_schema=False)
Owner = Annotated[Viewer, Depends(owners)]
Decider = Annotated[Viewer, Depends(deciders)]


async def sent_form(request: Request) -> FormData:
    """What a form sent, without files."""
    return await request.form(max_files=0, max_fields=MOST_FIELDS, max_part_size=LONGEST_FORM)


Sent = Annotated[FormData, Depends(sent_form)]


def line_in(form: FormData, name: str, longest: int = LONGEST_LINE) -> str:
    """One value of a form without white space around it. Raises DataError where it is too long."""
    text = str(form.get(name) or "").strip().replace("\0", "")
    if len(text) > longest:
        raise DataError(f"{name!r} has {len(text):,} characters, but at most {longest:,} are taken; shorten it")
    return text


def named_study(viewer: Viewer, name: str) -> Study:
    """The study of a path; an answer of 404 where there is none."""
    found = find_study(viewer.store, name, viewer.language)
    if found is None:
        raise HTTPException(404, viewer.words("owner.no_study", name=name[:80]))
    return found


def counts_of(viewer: Viewer, study: str, *, earlier: bool = False) -> Counts:
    kept: Kept[Counts] = viewer.request.app.state.counts
    return kept.of(viewer.store, study, earlier=earlier)


def study_path(name: str, rest: str = "") -> str:
    return f"/studies/{quote(name, safe='')}{rest}"


def study_page(viewer: Viewer, template: str, study: Study, status: int = 200, **values: Any) -> Response:
    """A page within a study, with what its frame needs; `note` in the address is a sentence of the catalogue, `n` its count."""
    tab = {"study": "overview", "item": "items", "disagreement": "disagreements"}.get(template, template)
    known = {
        "study": study,
        "base": viewer.path(study_path(study.name)),
        "tab": tab,
        "note": noted(viewer),
        "problem": None,
    }
    return viewer.page(f"owner/{template}.html", status, **(known | values))


def noted(viewer: Viewer) -> str | None:
    query, notes = (
        viewer.request.query_params,
        ("saved", "opened", "published", "decided", "excluded", "gold", "changed", "corrected"),
    )
    if query.get("note") not in notes:
        return None
    count = query.get("n", "")
    return viewer.words(f"owner.note_{query['note']}", count=int(count) if count.isdecimal() and len(count) < 9 else 0)


# --------------------------------------------------------------------------------------------------------- all of them


@router.get("/studies")
def studies_page(viewer: Decider) -> Response:
    return all_studies(viewer)


def all_studies(viewer: Viewer, problem: str | None = None, name: str = "") -> Response:
    found = studies(viewer.store)
    if viewer.account is not None and viewer.account.role != "owner":
        return viewer.page("owner/queues.html", studies=found, study_path=study_path)
    rows = [(study, counts_of(viewer, study.name).progress) for study in found]
    values = {"rows": rows, "unopened": unopened_studies(viewer.store), "study_path": study_path, "typed": name}
    return viewer.page("owner/studies.html", 422 if problem else 200, problem=problem, criteria=CRITERIA, **values)


@router.post("/studies")
def new_study(viewer: Owner, form: Sent) -> Response:
    """Open a study: a new one, or of items that are there already."""
    name = line_in(form, "name")
    known = name in unopened_studies(viewer.store)
    if any(study.name == name for study in studies(viewer.store)):
        return all_studies(viewer, viewer.words("owner.name_taken", name=name), name)
    if not known and not is_name(name):
        return all_studies(viewer, viewer.words("owner.name_invalid"), name)
    overlap = line_in(form, "overlap") or "1"
    criteria = [one for one in form.getlist("criteria") if one in CRITERIA]
    if not overlap.isdecimal() or not 1 <= int(overlap[:4]) <= 100:
        return all_studies(viewer, viewer.words("owner.overlap_invalid"), name)
    with viewer.store.transaction() as one:
        set_study(one, name, {"overlap": int(overlap), "criteria": criteria})
        ask_new_items(one, name, after=0)
    return viewer.go(study_path(name, "?note=opened"))


# --------------------------------------------------------------------------------------------------------- one of them


@router.get("/studies/{study}")
def study_overview(viewer: Owner, study: str) -> Response:
    return overview(viewer, named_study(viewer, study))


def overview(viewer: Viewer, study: Study, problem: str | None = None) -> Response:
    state = viewer.request.app.state
    kept: Kept[Measures] = state.measures
    project: Project | None = state.project
    found, counts = kept.of(viewer.store, study.name), counts_of(viewer, study.name)
    progress = counts.progress
    recipe = project.recipe.label if project else None
    values = {
        "problem": problem,
        "progress": progress,
        "measures": found,
        "quality": found.quality,
        "talks": talks_of(found.quality, viewer.words),
        "queue": counts.queue[:FEW],
        "cost": cost_of(study.settings, recipe, found, progress.to_go),
        "plan": last_plan(project, study.name),
        "exported": EXPORTED,
    }
    return study_page(viewer, "study", study, 422 if problem else 200, **values)


def talks_of(quality: Quality | None, words: Callable[..., str]) -> dict[str, list[str]]:
    """What to speak about with whom."""
    found: dict[str, list[str]] = {}
    for remark in quality.remarks if quality else ():
        found.setdefault(remark.labeler, []).append(words(f"owner.talk_{TALKS[remark.what]}"))
    return found


def last_plan(project: Project | None, study: str) -> dict[str, Any] | None:
    """The learning curve of the project's reward model, where it is of this study's judgements."""
    found = read_label_plan(project.folder) if project else None
    return found if found and found["study"] in (None, study) else None


@router.post("/studies/{study}/people")
def leave_out(viewer: Owner, study: str, form: Sent) -> Response:
    """From now on a person's judgements count nowhere; none is deleted, and others are asked their items."""
    found = named_study(viewer, study)
    handle, reason = line_in(form, "handle"), line_in(form, "reason")
    if not reason:
        return overview(viewer, found, viewer.words("owner.needs_reason"))
    with viewer.store.transaction() as one:
        one.exclude("labeler", handle, reason=reason, by=viewer.handle)
        for each in studies(one):
            recount(one, each.name)
    return viewer.go(study_path(study, "?note=excluded"))


@router.get("/studies/{study}/export/{form}")
def export_labels(viewer: Owner, study: str, form: str) -> Response:
    """The labels as JSON lines, whole before the first byte goes out. The form "full" is the whole store."""
    from bridle.feedback.exporting.exporter import export_file
    from bridle.feedback.exporting.formats import Wanted

    found = named_study(viewer, study)
    if form not in EXPORTED:
        raise HTTPException(404, viewer.words("owner.no_export", names=", ".join(EXPORTED)))
    folder = tempfile.TemporaryDirectory(prefix="bridle-export-")
    try:
        place = Path(folder.name) / "labels.jsonl"
        wanted = Wanted() if form == "full" else Wanted(study=found.name)
        export_file(viewer.store, place, form, wanted, by=viewer.handle)
    except BaseException as error:
        folder.cleanup()
        if isinstance(error, DataError):
            return overview(viewer, found, viewer.words("owner.nothing_to_export"))
        raise
    name = f"{'store' if form == 'full' else found.name}-{form}.jsonl"
    return FileResponse(place, filename=name, media_type="application/jsonl", background=BackgroundTask(folder.cleanup))


def parts_of(words: Iterable[str]) -> list[str]:
    return [word for word in (part.strip() for part in words) if word]
