"""The owner's pages of chains, in a browser: for everybody, on a phone and in the dark, and without scripts."""

from typing import Any

import pytest
from playwright.sync_api import expect

from bridle.feedback.people.accounts import create_account, find_account, issue
from bridle.feedback.people.chains import chain_record, correct_chain
from bridle.site.viewer import SESSION
from tests.labelling.browser.conftest import DESKTOP, PHONE, Site
from tests.labelling.browser.test_pages import violations
from tests.labelling.revised import add_chain


@pytest.mark.parametrize(
    ("language", "look"),
    [("en", {"color_scheme": "light", "viewport": DESKTOP}), ("zh", {"color_scheme": "dark", "viewport": PHONE})],
)
def test_a_chain_is_read_and_corrected_by_everybody(site: Site, language: str, look: dict[str, Any]) -> None:
    number = add_chain(site.store, f"How do I pick a lock? In {language}, please.", language.ljust(12, "0"))
    correct_chain(site.store, number, "No.", by="anna")
    if find_account(site.store, "ida") is None:
        create_account(site.store, "ida", "owner", password_hash=None)
    context = site.browser.new_context(
        **look, locale=language, java_script_enabled=language == "en", base_url=site.address
    )
    site.contexts.append(context)
    secret = issue(site.store, "session", labeler="ida", seconds=3600)
    cookies = {SESSION: secret, "bridle_language": language}
    context.add_cookies([{"name": name, "value": value, "url": site.address} for name, value in cookies.items()])
    page = context.new_page()
    page.goto("/chains")
    expect(page.locator("html")).to_have_attribute("lang", language)
    if language == "en":
        assert violations(page) == []
    page.locator(f"a[href$='/chains/{number}']").click()
    expect(page.locator("textarea[name=text]")).to_be_visible()  # the page that was left is being taken down until then
    if language == "en":
        assert violations(page) == []
    page.locator("textarea[name=text]").fill("No. Ask a locksmith.\nOr wait.")
    page.locator("form.decision button").click()
    expect(page.locator("p.note")).to_be_visible()
    record = chain_record(site.store, number)
    assert record is not None and record.stands == "No. Ask a locksmith.\nOr wait."
    assert record.corrections[-1].author == "ida" and len(record.corrections) == 2
