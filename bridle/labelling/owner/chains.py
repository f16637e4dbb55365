"""Chains of critique and revision: read whole, and their last answer corrected."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import Response

from bridle.core.errors import DataError
from bridle.feedback.people.chains import (
    LONGEST_CORRECTION,
    PAGE_CHAINS,
    ChainRecord,
    NothingNew,
    chain_record,
    correct_chain,
    find_chains,
)
from bridle.labelling.owner.dashboard import Owner, Sent, noted
from bridle.site.viewer import Viewer

router = APIRouter(include_in_schema=False)


@router.get("/chains")
def chains_page(viewer: Owner, before: Annotated[int | None, Query(ge=1, lt=2**31)] = None) -> Response:
    rows = find_chains(viewer.store, before=before, limit=PAGE_CHAINS + 1)
    return viewer.page("owner/chains.html", rows=rows[:PAGE_CHAINS], more=len(rows) > PAGE_CHAINS, before=before)


def named_chain(viewer: Viewer, number: str) -> ChainRecord:
    found = chain_record(viewer.store, int(number)) if number.isdecimal() and len(number) < 10 else None
    if found is None:
        raise HTTPException(404, viewer.words("owner.no_chain"))
    return found


@router.get("/chains/{number}")
def chain_page(viewer: Owner, number: str) -> Response:
    return one_chain(viewer, named_chain(viewer, number))


def one_chain(viewer: Viewer, record: ChainRecord, problem: str | None = None, typed: str | None = None) -> Response:
    values = {"typed": record.stands if typed is None else typed, "longest": LONGEST_CORRECTION, "note": noted(viewer)}
    return viewer.page("owner/chain.html", 422 if problem else 200, record=record, problem=problem, **values)


@router.post("/chains/{number}")
def correct(viewer: Owner, number: str, form: Sent) -> Response:
    """Store what the person would have had; sent twice it is refused the second time, and one."""
    record, text = named_chain(viewer, number), str(form.get("text") or "")
    try:
        correct_chain(viewer.store, record.number, text, by=viewer.handle)
    except NothingNew:
        return one_chain(viewer, record, viewer.words("owner.nothing_new"), text)
    except DataError as error:
        words = viewer.sentence(error) if text.strip() else viewer.words("owner.needs_text")
        return one_chain(viewer, record, words, text)
    return viewer.go(f"/chains/{record.number}?note=corrected")
