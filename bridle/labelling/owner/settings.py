"""How a study asks, and the guideline that its people go by: forms whose faults are said where they are."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.datastructures import FormData

from bridle.core.errors import DataError
from bridle.feedback.people.overview import guideline_versions
from bridle.feedback.store.studies import STATES, Study, StudySettings, publish_guideline, set_study
from bridle.feedback.upkeep.audit import append_audit
from bridle.labelling.owner.dashboard import Owner, Sent, line_in, named_study, parts_of, study_page, study_path
from bridle.site.languages import LANGUAGES
from bridle.site.rendering import markdown
from bridle.site.viewer import Viewer

# What a form has of each setting that is one number: how many of its units one of the setting's is.
NUMBERS = {"overlap": 1.0, "lease_seconds": 1 / 60, "gold_rate": 100.0, "random_share": 100.0, "qualification": 1.0}
PRICES = ("piece_price", "hour_price")
LONGEST_GUIDELINE = 200_000  # characters
BOUNDS = {"greater_than_equal": "ge", "greater_than": "gt", "less_than_equal": "le", "less_than": "lt"}

router = APIRouter(include_in_schema=False)


# ------------------------------------------------------------------------------------------------------ settings


@router.get("/studies/{study}/settings")
def settings_page(viewer: Owner, study: str) -> Response:
    found = named_study(viewer, study)
    return study_page(viewer, "settings", found, fields=fields_of_settings(found), faults={}, states=STATES)


@router.post("/studies/{study}/settings")
def change_settings(viewer: Owner, study: str, form: Sent) -> Response:
    """All of them at once, or none; what was typed comes back with its faults."""
    found = named_study(viewer, study)
    values, faults = settings_in(viewer, form)
    state = line_in(form, "state")
    if state not in STATES:
        faults["state"] = viewer.words("owner.choose_one")
    if faults:
        typed = {name: str(value) for name, value in form.items()}
        fields = {name: typed.get(name, "") for name in fields_of_settings(found)}
        problem = viewer.words("owner.not_saved", count=len(faults))
        return study_page(viewer, "settings", found, 422, fields=fields, faults=faults, states=STATES, problem=problem)
    with viewer.store.transaction() as one, one.writing() as connection:
        set_study(one, found.name, values, state=state)
        append_audit(connection, viewer.handle, "settings", found.name, {"state": state, **values})
    return viewer.go(study_path(found.name, "/settings?note=saved"))


def fields_of_settings(study: Study) -> dict[str, str]:
    """A study's settings as its form has them."""
    settings, values = study.settings, study.settings.model_dump()
    fields = {name: f"{values[name] * times:.10g}" for name, times in NUMBERS.items()}
    fields |= {name: "" if values[name] is None else f"{values[name]:.10g}" for name in PRICES}
    fields["criteria"] = ", ".join(settings.criteria)
    fields["topics"] = "\n".join(f"{topic}: {', '.join(people)}" for topic, people in settings.topics.items())
    return fields | {"show_suggestions": "on" if settings.show_suggestions else "", "state": study.state}


def settings_in(viewer: Viewer, form: FormData) -> tuple[dict[str, Any], dict[str, str]]:
    """What a form says of the settings, and by field what is wrong with it, in the viewer's words."""
    values: dict[str, Any] = {"show_suggestions": form.get("show_suggestions") == "on"}
    faults: dict[str, str] = {}
    for name in (*NUMBERS, *PRICES):
        text = line_in(form, name).replace(",", ".")
        if not text and name in PRICES:
            values[name] = None
            continue
        try:
            number = float(text) / NUMBERS.get(name, 1.0)
        except ValueError:
            faults[name] = viewer.words("owner.needs_number")
            continue
        values[name] = int(number) if number.is_integer() else number
    values["criteria"] = list(dict.fromkeys(parts_of(line_in(form, "criteria").replace("，", ",").split(","))))
    values["topics"] = {}
    for line in parts_of(line_in(form, "topics", 20_000).replace("：", ":").splitlines()):
        topic, colon, people = line.partition(":")
        if not (topic.strip() and colon):
            faults["topics"] = viewer.words("owner.topic_invalid", line=line[:60])
        values["topics"][topic.strip()] = parts_of(people.replace("，", ",").split(","))
    return values, faults | faults_of(viewer, {name: value for name, value in values.items() if name not in faults})


def faults_of(viewer: Viewer, values: Mapping[str, Any]) -> dict[str, str]:
    try:
        StudySettings.model_validate(values)
    except ValidationError as error:
        return {str(wrong["loc"][0]): fault_in_words(viewer, wrong) for wrong in reversed(error.errors())}
    return {}


def fault_in_words(viewer: Viewer, wrong: Any) -> str:
    """A fault that pydantic found, its bounds in the units of the form."""
    if wrong["type"] in BOUNDS:
        bound = wrong["ctx"][BOUNDS[wrong["type"]]] * NUMBERS.get(str(wrong["loc"][0]), 1.0)
        return viewer.words(f"owner.bound_{BOUNDS[wrong['type']]}", bound=f"{bound:g}")
    return viewer.words(
        "owner.needs_whole" if wrong["type"] == "int_type" or "int" in wrong["type"] else "owner.needs_number"
    )


# ----------------------------------------------------------------------------------------------------- guideline


@router.get("/studies/{study}/guideline")
def guideline_editor(viewer: Owner, study: str) -> Response:
    found = named_study(viewer, study)
    versions = guideline_versions(viewer.store, found.name)
    texts = {lang: text for lang, (_, text) in versions[0]["texts"].items()} if versions else {}
    return study_page(viewer, "guideline", found, versions=versions, texts=texts, previews={})


@router.post("/studies/{study}/guideline")
def change_guideline(viewer: Owner, study: str, form: Sent) -> Response:
    """Publish the next version; or, asked for a preview, show what it would look like and keep nothing."""
    found = named_study(viewer, study)
    try:
        typed = {lang: line_in(form, lang, LONGEST_GUIDELINE).replace("\r\n", "\n") for lang in LANGUAGES}
        texts = {lang: text for lang, text in typed.items() if text}
        if not texts:
            raise DataError(viewer.words("owner.guideline_empty"))
        if form.get("action") == "publish":
            version = publish_guideline(viewer.store, found.name, texts)
            return viewer.go(study_path(found.name, f"/guideline?note=published&n={version}"))
        previews, problem = {lang: markdown(text) for lang, text in texts.items()}, None
    except DataError as error:
        texts, previews, problem = {lang: str(form.get(lang) or "") for lang in LANGUAGES}, {}, viewer.sentence(error)
    versions, status = guideline_versions(viewer.store, found.name), 422 if problem else 200
    values = {"versions": versions, "texts": texts, "previews": previews, "problem": problem}
    return study_page(viewer, "guideline", found, status, **values)
