"""The pages themselves: for everybody (WCAG AA), light in weight, still under the pointer, and inert whatever a model wrote."""

import re
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from bridle.feedback.store.studies import publish_guideline
from tests.labelling.browser.conftest import DESKTOP, PHONE, Site

LONG = "\n".join(f"Line {n} of what somebody asks." for n in range(400)) + "\nthe needle"


def ready(page: Page) -> Page:
    page.locator("form.task[data-ready]").wait_for()
    return page


def width_of_page(page: Page) -> tuple[int, int]:
    found: list[int] = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    return found[0], found[1]


def violations(page: Page) -> list[str]:
    """What axe says, and what is as good as said: the page is wider than its window."""
    found = [
        f"{one['id']}: {one['nodes'][0]['html'][:120]}"
        for one in Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    ]
    wide, window = width_of_page(page)
    return found + ([f"{wide} pixels wide in a window of {window}"] if wide > window else [])


@pytest.mark.parametrize(
    ("language", "look"),
    [("en", {"color_scheme": "light", "viewport": DESKTOP}), ("zh", {"color_scheme": "dark", "viewport": PHONE})],
)
def test_every_page_is_for_everybody(site: Site, language: str, look: dict[str, Any]) -> None:
    pairs, rated = [("A question?", ["One.", "Another."])], [("Rate?", ["One."])]
    studies = {
        "comparison": site.study(pairs, criteria=("helpful", "in our house style")),
        "ranking": site.study([("Which?", ["One.", "Two.", "Three."])]),
        "rating": site.study(rated, kind="rating"),
        "demonstration": site.study([("Write.", [])], kind="demonstration"),
        "one comparison": site.study([(LONG, [LONG, "short"])]),
    }
    page = site.page(studies["comparison"], language=language, **look)
    expect(page.locator("html")).to_have_attribute("lang", language)
    found = {}
    for name, study in studies.items():
        page.goto(f"/label/{study}")
        ready(page)
        for details in page.locator("details summary").all():
            details.click()
        found[name] = violations(page)
    if look["viewport"] == DESKTOP:
        for key, dialog in (("?", "keys"), ("g", "guideline")):
            page.keyboard.press(key)
            page.locator(f"#{dialog}[open]").wait_for()
            found[dialog] = violations(page)
            page.keyboard.press("Escape")
    page.goto(f"/label/{studies['one comparison']}/answers")
    found["no answers"] = violations(page)
    page.goto(f"/label/{studies['one comparison']}")
    ready(page)
    page.keyboard.press("4")
    page.locator(".finished").wait_for()
    found["done"] = violations(page)
    for name, path in (
        ("answers", f"/label/{studies['one comparison']}/answers"),
        ("start", "/"),
        ("guideline", "/guidelines/"),
    ):
        page.goto(path + (site.guideline(studies["ranking"]) if name == "guideline" else ""))
        found[name] = violations(page)
    page.goto(f"/label/{studies['one comparison']}/answers")
    page.locator(".given a").click()
    found["an answer of before"] = violations(ready(page))
    page.context.clear_cookies()
    page.goto("/sign-in")
    found["sign in"] = violations(page)
    assert {name: what for name, what in found.items() if what} == {}


HOSTILE = [
    "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">",
    "![a picture](https://example.com/track.png) [a link](javascript:document.title='owned')",
    "safe \u202e desrever \u2066 zero\u200bwidth \x1b[31m red \x00 </div></form><form action=https://example.com>",
    "x" * 1_000_000,
]


def test_what_a_model_writes_does_nothing(site: Site) -> None:
    study = site.study([(HOSTILE[0], HOSTILE[:2]), (HOSTILE[1], HOSTILE[2:])])
    publish_guideline(
        site.store, study, {"en": "# G\n" + "\n\n".join(HOSTILE[:3]) + "\n\n<b onclick=alert(1)>bold</b>"}
    )
    page = site.page(study)
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.reload()
    for n in range(2):
        ready(page)
        shown = page.locator(".answer > .text").all_inner_texts()
        assert any(
            len(text) == 1_000_000 or "<script>" in text or "javascript:" in text or "\\u202e" in text for text in shown
        )
        assert page.locator("form").count() == 6  # the task, its undo, and those of the bar and the dialogs
        assert len(set(width_of_page(page))) == 1
        page.keyboard.press("d")
        page.keyboard.press("d")
        if n == 0:
            page.keyboard.press("g")
            expect(page.get_by_role("dialog")).to_contain_text("a picture")
            expect(page.get_by_role("dialog").get_by_role("link", name="a link")).to_have_count(0)
            page.keyboard.press("Escape")
        old = page.locator("form.task").get_attribute("data-item")
        page.keyboard.press("1")
        page.locator(f"form.task:not([data-item='{old}']), .finished").wait_for()
    assert page.title() != "owned" and said == []
    assert {url for url in asked if not url.startswith(site.address)} == set()


def test_the_first_page_is_light(site: Site) -> None:
    study = site.study(
        [("A question " * 50, ["An answer " * 150, "Another answer " * 150])], criteria=("helpful", "honest")
    )
    page = site.page(study)
    replies = []
    page.on("response", lambda reply: replies.append(reply))
    page.context.new_cdp_session(page).send("Network.setCacheDisabled", {"cacheDisabled": True})
    page.reload()
    ready(page)
    got = {reply.url.removeprefix(site.address): reply for reply in replies if reply.request.method == "GET"}
    sizes = {path: len(reply.body()) for path, reply in got.items()}
    assert len(sizes) >= 9 and sum(sizes.values()) < 100_000, sizes
    kept = {path: reply.headers["cache-control"] for path, reply in got.items() if path.startswith("/static/")}
    assert all(("immutable" in how) == ("?v=" in path) for path, how in kept.items()), (
        kept
    )  # a module may change with the next version


def test_answers_are_seen_whole_and_alike(site: Site) -> None:
    study = site.study([(LONG, [LONG, LONG + LONG]), ("Short?", ["a", "b"])])
    page = site.page(study)
    ready(page)
    if not page.locator(".fold").is_visible():
        page.keyboard.press("4")
        page.get_by_text("Line 1 of").first.wait_for()
        ready(page)
    first, second = (box.bounding_box() or {} for box in page.locator(".answer").all())
    assert first["width"] == second["width"] and first["y"] == second["y"] and first["height"] == second["height"]
    one, other = page.locator(".answer > .text").all()
    one.evaluate("box => box.scrollTo(0, box.scrollHeight)")
    page.wait_for_function(
        "box => box.scrollTop >= box.scrollHeight - box.clientHeight - 2", arg=other.element_handle()
    )
    page.wait_for_timeout(150)  # until either may lead
    page.keyboard.press("l")
    one.evaluate("box => box.scrollTo(0, 0)")
    page.wait_for_timeout(100)
    assert other.evaluate("box => box.scrollTop") > 0
    for box in (page.locator("#turns"), page.locator(".verdict")):
        expect(box).to_be_in_viewport(ratio=1)


def test_a_long_prompt_is_folded_searched_and_keeps_its_place(site: Site) -> None:
    page = site.page(site.study([(LONG, ["a", "b"])]))
    ready(page)
    turns = page.locator("#turns")
    assert (turns.bounding_box() or {})["height"] < 200
    assert page.evaluate("window.find('the needle')")  # folded, and not hidden: the browser's own search finds it
    page.keyboard.press("p")
    assert (turns.bounding_box() or {})["height"] > 250
    page.keyboard.press("p")
    turns.evaluate("box => box.scrollTo(0, 1234)")
    page.wait_for_function("() => history.state?.top === 1234")
    page.reload()
    ready(page)
    assert turns.evaluate("box => box.scrollTop") == pytest.approx(1234, abs=1)


def test_differences_are_marked_and_stay_on(site: Site) -> None:
    answers = ["The cat sat on the mat.", "The cat lay on the mat today."]
    page = site.page(site.study([(f"What {n}?", [f"{text} {n}" for text in answers]) for n in range(2)]))
    ready(page)
    assert page.locator("mark").count() == 0
    page.keyboard.press("d")
    marked = {"".join(box.locator("mark").all_inner_texts()).strip() for box in page.locator(".answer > .text").all()}
    assert marked == {"sat", "lay today"} or marked == {"sat", "laytoday"} or marked == {"sat", "lay today"}
    old = page.locator("form.task").get_attribute("data-item")
    page.keyboard.press("4")
    page.locator(f"form.task:not([data-item='{old}'])").wait_for()
    expect(page.locator("mark").first).to_be_visible()
    assert page.evaluate("document.activeElement.tagName") == "H1"
    expect(page.locator("#said")).to_have_text(re.compile("Saved. 1 of 2"))
    page.keyboard.press("d")
    assert page.locator("mark").count() == 0
    shown = page.locator(".answer > .text").all_inner_texts()
    assert {text[:-2] for text in shown} == set(answers)
