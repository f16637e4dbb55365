"""A study's items: found, looked at, changed, and brought in by a file."""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from urllib.parse import urlencode

from fastapi import APIRouter, File, HTTPException, Query, UploadFile
from fastapi.responses import Response

from bridle.core.errors import DataError
from bridle.core.text import one_line
from bridle.feedback.people.overview import PAGE_ITEMS, ItemRecord, filters, find_items, item_record, set_priority
from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import describe_items, recount, set_gold
from bridle.feedback.upkeep.audit import append_audit
from bridle.labelling.owner.dashboard import Owner, Sent, line_in, named_study, study_page, study_path
from bridle.project.project import Project
from bridle.site.app import LONGEST_IMPORT
from bridle.site.viewer import Viewer

LONGEST_SEARCH = 200  # characters
ENDING = re.compile(r"(\.[a-z0-9]{1,8}){1,2}$")
HELD_OUT = 0.1  # share of new prompts, where no recipe says

router = APIRouter(include_in_schema=False)


@router.get("/studies/{study}/items")
def items_page(
    viewer: Owner, study: str, only: str = "", q: str = "", before: Annotated[int | None, Query(ge=1, lt=2**31)] = None
) -> Response:
    found = named_study(viewer, study)
    only, q = only if only in filters() else "", q.strip()[:LONGEST_SEARCH].replace("\0", "")
    rows = find_items(viewer.store, found.name, only=only, words=q, before=before, limit=PAGE_ITEMS + 1)
    query = urlencode({name: value for name, value in (("only", only), ("q", q)) if value})
    values: dict[str, Any] = {"rows": rows[:PAGE_ITEMS], "more": len(rows) > PAGE_ITEMS, "only": only, "q": q}
    return study_page(viewer, "items", found, filters=list(filters()), before=before, query=query, **values)


@router.post("/studies/{study}/items")
def change_items(viewer: Owner, study: str, form: Sent) -> Response:
    """What is typed of priority, need and topic, for the items that were chosen."""
    found, chosen = named_study(viewer, study), [str(one) for one in form.getlist("item")]
    count = change_chosen(viewer, found.name, chosen, form)
    return viewer.go(study_path(found.name, f"/items?note=changed&n={count}"))


def change_chosen(viewer: Viewer, study: str, chosen: list[str], form: Any) -> int:
    priority, need, topic = (line_in(form, name) for name in ("priority", "need", "topic"))
    try:
        wanted = float(priority.replace(",", ".")) if priority else None
        people = int(need) if need else None
    except ValueError as error:
        raise DataError(viewer.words("owner.needs_number")) from error
    if people is not None and people > 100:
        raise DataError(viewer.words("owner.bound_le", bound=100))
    with viewer.store.transaction() as one:
        chosen = [item for item in chosen if item_record(one, study, item)]
        count = len(chosen)
        if wanted is not None:
            count = set_priority(one, study, chosen, wanted, by=viewer.handle)
        if chosen and (people is not None or topic):
            describe_items(one, chosen, need=people, topic=topic[:100] or None)
            recount(one, study)
            with one.writing() as connection:
                append_audit(
                    connection, viewer.handle, "items", study, {"need": people, "topic": topic, "items": count}
                )
    return count


# ------------------------------------------------------------------------------------------------------- one item


def named_item(viewer: Viewer, study: str, item: str) -> ItemRecord:
    record = item_record(viewer.store, study, item)
    if record is None:
        raise HTTPException(404, viewer.words("owner.no_item"))
    return record


@router.get("/studies/{study}/items/{item}")
def item_page(viewer: Owner, study: str, item: str) -> Response:
    found = named_study(viewer, study)
    return study_page(viewer, "item", found, record=named_item(viewer, found.name, item))


@router.post("/studies/{study}/items/{item}")
def change_item(viewer: Owner, study: str, item: str, form: Sent) -> Response:
    """One of three: what it needs, its gold, or that it is excluded. What is refused is said on its page."""
    found = named_study(viewer, study)
    record, store, action = named_item(viewer, found.name, item), viewer.store, form.get("action")
    try:
        if action == "gold":
            set_gold(store, item, ranking_in(viewer, form, len(record.answers)), by=viewer.handle)
        elif action == "exclude":
            if not (reason := line_in(form, "reason")):
                raise DataError(viewer.words("owner.needs_reason"))
            store.exclude("item", item, reason=reason, by=viewer.handle)
        else:
            change_chosen(viewer, found.name, [item], form)
    except DataError as error:
        return study_page(viewer, "item", found, 422, record=record, problem=viewer.sentence(error))
    note = {"gold": "gold", "exclude": "excluded"}.get(str(action), "saved")
    return viewer.go(study_path(found.name, f"/items/{item}?note={note}"))


def ranking_in(viewer: Viewer, form: Any, slots: int) -> list[list[int]]:
    """The ranking of a form that gives each slot a place, 1 the best; equal places tie."""
    places = [line_in(form, f"place_{slot}") for slot in range(slots)]
    if not all(place.isdecimal() and 1 <= int(place[:3]) <= slots for place in places):
        raise DataError(viewer.words("owner.needs_places", most=slots))
    return [
        [slot for slot, place in enumerate(places) if int(place) == each] for each in sorted({int(p) for p in places})
    ]


# ---------------------------------------------------------------------------------------------------------- a file


@router.get("/studies/{study}/import")
def import_page(viewer: Owner, study: str) -> Response:
    return study_page(viewer, "import", named_study(viewer, study), report=None, most=LONGEST_IMPORT // 2**20)


@router.post("/studies/{study}/import")
def import_upload(viewer: Owner, study: str, file: Annotated[UploadFile, File()]) -> Response:
    """The file's rows into this study, all that can be used or none, and what became of each."""
    from bridle.feedback.importing.report import NothingImported

    found, project = named_study(viewer, study), viewer.request.app.state.project
    name, report, problem = one_line(file.filename or "", 120), None, None
    try:
        if not name:
            raise DataError(viewer.words("owner.needs_file"))
        report = imported(viewer.store, found.name, file.file, name, project)
    except NothingImported as error:
        report, problem = error.report, viewer.words("owner.nothing_imported")
    except DataError as error:
        problem = viewer.sentence(error)
    values = {"report": report, "problem": problem, "called": name, "most": LONGEST_IMPORT // 2**20}
    return study_page(viewer, "import", found, 422 if problem else 200, **values)


def imported(store: Store, study: str, sent: BinaryIO, name: str, project: Project | None) -> Any:
    """Import what was sent, from a file whose name is ours but for its ending, which may tell what it holds."""
    from bridle.feedback.importing.importer import import_to_judge
    from bridle.feedback.importing.report import NothingImported

    ending = ENDING.search(name.lower())
    share = project.recipe.data.heldout_share if project else HELD_OUT
    with tempfile.TemporaryDirectory(prefix="bridle-import-") as folder:
        path = Path(folder) / f"upload{ending[0] if ending else ''}"
        with path.open("wb") as file:
            shutil.copyfileobj(sent, file)
        try:
            report = import_to_judge(store, path, study, held_out_share=share)
        except NothingImported:
            raise
        except DataError as error:
            raise DataError(str(error).replace(str(path), name)) from error
    return report
