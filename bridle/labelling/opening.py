"""What a study has before anybody is asked: settings, and a guideline to go by."""

from functools import cache
from pathlib import Path

from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import find_study, publish_guideline, set_study, studies
from bridle.site.languages import LANGUAGES

GUIDELINES = Path(__file__).parent / "guidelines"


@cache
def default_guideline() -> dict[str, str]:
    return {lang: (GUIDELINES / f"{lang}.md").read_text(encoding="utf-8") for lang in LANGUAGES}


def ensure_guideline(store: Store, study: str) -> None:
    """Publish our guideline for a study that has none."""
    found = find_study(store, study)
    if found is not None and found.guideline is None:
        publish_guideline(store, study, default_guideline())


def ensure_studies(store: Store) -> list[str]:
    """Open a study, with the usual settings, for items that have none; returns the names of these. What was judged before counts."""
    known = {study.name for study in studies(store)}
    new = [name for name in store.counts()["items"] if name not in known]
    for name in new:
        set_study(store, name, {})
    return new
