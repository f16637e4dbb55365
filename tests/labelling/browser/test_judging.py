"""People judge in a real browser: by keys, by pointer, without a script; and what they say is kept when the connection is not."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

import pytest
from playwright.sync_api import Page, Route, expect

from bridle.feedback.store.ratings import ratings
from tests.labelling.browser.conftest import PHONE, Site

STARTED = 300  # milliseconds in which a new task takes no key yet
SHOWN = """old => new Promise((done) => {
  const look = () => {
    const task = document.querySelector("form.task");
    if (task?.dataset.ready !== undefined && task.dataset.item !== old) {
      done([task.dataset.item, ...[...document.querySelectorAll(".answer > .text")].map((box) => box.innerText)]);
    } else if (document.querySelector(".finished")) done(["", "", ""]);
    else requestAnimationFrame(look);
  };
  look();
})"""
VISIBILITY = """state => {
  Object.defineProperty(document, "visibilityState", {value: state, configurable: true});
  document.dispatchEvent(new Event("visibilitychange"));
}"""
AT_ONCE = "{ const later = setTimeout; window.setTimeout = (act, wait) => later(act, wait === 250 ? 0 : wait); }"


def begin(page: Page) -> None:
    """Until a task takes keys."""
    page.clock.run_for(STARTED)
    page.locator("form.task[data-ready], .finished").wait_for()


def answers(page: Page) -> list[str]:
    return page.locator(".answer > .text").all_inner_texts()


@contextmanager
def another_task(page: Page) -> Iterator[None]:
    """What is done within brings another task: until that one takes keys.

    The answer's arrival would not do: the old task stands a while after it, and the new one's first moments begin later.
    """
    old = page.locator("form.task").get_attribute("data-item")
    yield
    page.locator(f"form.task:not([data-item='{old}']), .finished").wait_for()
    begin(page)


def press(page: Page, key: str) -> None:
    with another_task(page):
        page.keyboard.press(key)


@pytest.mark.parametrize("count", [14, pytest.param(200, marks=pytest.mark.slow)])
def test_task_after_task_by_one_key_each(site: Site, count: int) -> None:
    """Keys are as alive at the last as at the first, and each judges what was seen."""
    study = site.pairs(count)
    page = site.page(study, script=AT_ONCE)
    said, (item, first, second) = [], page.evaluate(SHOWN, "")
    for n in range(count):
        said.append((item, first, second, n % 7 - 3))
        page.keyboard.press(str(n % 7 + 1))
        item, first, second = page.evaluate(SHOWN, item)
    expect(page.get_by_role("heading", level=1)).to_contain_text("Nothing is left")
    stored = {item.id: (item, one) for item, one in site.store.judgements(study=study)}
    assert len(stored) == count
    for item_id, first, second, verdict in said:
        item, one = stored[item_id]
        assert [item.completions[slot].text for slot in one.display_order or ()] == [first, second]
        best = item.completions[one.ranking[0][0]].text
        assert (one.strength or 0) == abs(verdict)
        assert len(one.ranking) == 1 if verdict == 0 else best == (first if verdict < 0 else second)


def test_what_else_one_key_says(site: Site) -> None:
    study = site.pairs(5)
    page = site.page(study, clock=True)
    begin(page)
    for key in "809s":
        press(page, key)
    assert sorted(one.outcome for one in site.judged(study)) == ["both_bad", "both_good", "cannot_judge", "skip"]


def test_keys_that_judge_nothing(site: Site) -> None:
    study = site.pairs(3)
    page = site.page(study, clock=True)
    page.keyboard.press("1")  # nobody has seen the task yet
    begin(page)
    for chord in ("Control+1", "Alt+2", "Meta+3"):
        page.keyboard.press(chord)
    page.keyboard.press("n")
    page.keyboard.type("12 of 7")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("both are bad")
    page.keyboard.press("1")
    page.keyboard.press("Escape")
    assert site.judged(study) == []
    page.evaluate("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '2', repeat: true, bubbles: true}))")
    old = page.locator("form.task").get_attribute("data-item")
    page.keyboard.press("7")
    page.locator(f"form.task:not([data-item='{old}'])").wait_for()
    page.keyboard.press("7")  # the second of a double press: it was not meant for the task that came
    begin(page)
    assert [(one.strength, one.rationale) for one in site.judged(study)] == [(3, "12 of 7")]


def test_by_the_keys_of_every_form(site: Site) -> None:
    """Tab, space, arrows and Enter choose first, and send when the person says so: as screen readers need it."""
    study = site.pairs(2)
    page = site.page(study, clock=True)
    begin(page)
    page.get_by_role("radio", name="A better", exact=True).focus()
    for key in (" ", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert site.judged(study) == []
    press(page, "Enter")
    assert [(one.outcome, len(one.ranking)) for one in site.judged(study)] == [("", 1)]


def test_with_a_criterion_two_keys(site: Site) -> None:
    study = site.pairs(2, criteria=("helpful",))
    page = site.page(study, clock=True)
    begin(page)
    first, second = answers(page)
    page.keyboard.press("2")
    assert site.judged(study) == []
    page.keyboard.press("Enter")
    expect(page.locator(".problem")).to_contain_text("Helpful")
    press(page, "6")
    assert [one.strength for one in (*site.judged(study), *site.judged(study, "helpful"))] == [2, 2]
    assert site.as_seen(study) == [(first, second)]


def test_undo_brings_the_last_one_back_to_be_answered_again(site: Site) -> None:
    study = site.pairs(3)
    page = site.page(study, clock=True)
    begin(page)
    seen = answers(page)
    press(page, "1")
    begin(page)
    press(page, "u")
    begin(page)
    assert answers(page) == seen
    expect(page.locator("input[name=verdict]:checked")).to_have_value("-3")
    press(page, "7")
    assert [one.strength for one in site.judged(study)] == [3]
    assert site.as_seen(study) == [tuple(reversed(seen))]
    expect(page).to_have_url(re.compile(r"/label/[^/]*$"))


RANKED = [("Which is best?", ["one", "two", "three", "four"])]


def by_keys(page: Page) -> None:
    for key in ("2", "1", "2", "4"):
        page.keyboard.press(key)


def by_buttons(page: Page) -> None:
    cards = page.locator(".answer")
    cards.nth(0).get_by_role("combobox").select_option("2")
    cards.nth(1).get_by_role("button", name="one place better").click()  # from below the last: the fourth
    for _ in range(3):
        cards.nth(1).get_by_role("button", name="one place better").click()
    cards.nth(2).get_by_role("combobox").select_option("1")
    cards.nth(1).get_by_role("combobox").select_option("2")
    cards.nth(1).get_by_role("button", name="same place as A").click()
    cards.nth(2).get_by_role("combobox").select_option("2")
    cards.nth(1).get_by_role("combobox").select_option("1")
    cards.nth(3).click(position={"x": 30, "y": 70})
    page.get_by_role("button", name="place 4").click()


def by_drag(page: Page) -> None:
    for card, place in enumerate((2, 1, 2, 4)):
        page.locator(".answer header").nth(card).drag_to(page.locator(f"[data-place='{place}']"))


def test_rankings_by_keys_by_buttons_and_by_dragging(site: Site) -> None:
    """None can be sent untouched, and each says what the other two would."""
    study = site.study([(f"Which is best, {n}?", RANKED[0][1]) for n in range(3)])
    page = site.page(study, clock=True)
    begin(page)
    for give in (by_keys, by_buttons, by_drag):
        page.keyboard.press("Enter")
        expect(page.locator(".problem")).to_contain_text("4")
        give(page)
        assert page.locator(".digit").all_inner_texts() == ["2", "1", "2", "4"]
        shown, item = answers(page), page.locator("form.task").get_attribute("data-item")
        page.keyboard.press("Enter") if give is by_keys else page.get_by_role("button", name="Send").click()
        page.locator(f"form.task:not([data-item='{item}']), .finished").wait_for()
        [judged] = [one for one in site.judged(study) if one.item_id == item]
        order = judged.display_order or ()
        assert [{order.index(slot) for slot in group} for group in judged.ranking] == [{1}, {0, 2}, {3}]
        assert {text for texts in site.as_seen(study) for text in texts} == set(shown)
        begin(page)


def test_ratings_by_keys_and_an_answer_written(site: Site) -> None:
    study = site.study([("Rate this?", ["An answer."])], kind="rating", criteria=("helpful",))
    page = site.page(study, clock=True)
    begin(page)
    page.keyboard.press("4")
    press(page, "2")
    rated = {one.criterion: one.value for _, one in ratings(site.store, kind="score") if one.labeler == site.person}
    assert rated == {None: 4.0, "helpful": 2.0}
    study = site.study([("Write this.", [])], kind="demonstration")
    page = site.page(study, clock=True)
    begin(page)
    page.get_by_label("Your answer").fill("Mine, 1 of 2")
    with page.expect_response("**/label/*"):
        page.get_by_role("button", name="Send").click()
    assert "Mine, 1 of 2" in [answer.text for _, answer in site.store.completions(source="demonstration")]


def test_pointer_and_phone(site: Site) -> None:
    """One press judges; what the person presses stays at its place from task to task."""
    study = site.pairs(3)
    page = site.page(study, viewport=PHONE, has_touch=True, is_mobile=True, clock=True)
    begin(page)
    places = []
    for _ in range(2):
        choice = page.locator(".choice", has=page.get_by_role("radio", name="B better", exact=True))
        places.append(choice.bounding_box())
        with another_task(page):
            choice.tap()
    assert [one.strength for one in site.judged(study)] == [2, 2]
    assert places[0] == places[1] and places[0] is not None and min(places[0]["width"], places[0]["height"]) >= 44


def test_without_a_script(site: Site) -> None:
    study = site.study(RANKED)
    page = site.page(study, java_script_enabled=False)
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_contain_text("every answer a place")
    for card in range(4):
        page.get_by_role("combobox").nth(card).select_option(str(card + 1))
    shown = answers(page)
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Nothing is left")
    assert site.as_seen(study) == [tuple(shown)]


# ------------------------------------------------------------------------------------------------ nothing is lost


def is_answer(route: Route) -> bool:
    return route.request.method == "POST" and re.search(r"/label/[^/]*$", route.request.url) is not None


@pytest.mark.parametrize("arrived", [False, True])
def test_a_lost_connection_loses_nothing(site: Site, arrived: bool) -> None:
    """Whether the answer arrived or not, the page says only what is so, and it is stored once."""
    study = site.pairs(2)
    page = site.page(study, clock=True)

    def lose(route: Route) -> None:
        if is_answer(route) and arrived:
            route.fetch()
        return route.abort() if is_answer(route) else route.continue_()

    page.route("**/label/*", lose)  # before a task takes keys, or an answer may slip past it
    begin(page)
    page.keyboard.press("1")
    expect(page.locator(".problem")).to_contain_text("Not saved yet")
    page.keyboard.press("7")  # it is not changed while it is on its way
    page.unroute("**/label/*")
    with page.expect_response("**/label/*"):
        page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.locator("#said")).to_contain_text("Saved")
    expect(page.locator(".problem")).to_be_hidden()
    assert [one.strength for one in site.judged(study)] == [3]


def test_an_answer_that_waits_is_sent_when_the_page_is_opened_again(site: Site) -> None:
    study = site.pairs(2)
    page = site.page(study, clock=True)
    page.route("**/label/*", lambda route: route.abort() if is_answer(route) else route.continue_())
    begin(page)
    seen = answers(page)
    page.keyboard.press("2")
    expect(page.locator(".problem")).to_contain_text("Not saved yet")
    page.unroute("**/label/*")
    page.reload()
    expect(page.locator("#said")).to_contain_text("Saved")
    assert site.as_seen(study) == [tuple(seen)]


REFUSALS = {
    422: "so it is said",
    500: "so it is said",
    429: "asks to wait 7 s",
    401: "session has ended",
    503: "Not saved yet",
}


def test_a_refusal_is_said_and_what_was_written_stays(site: Site) -> None:
    study, refusal = site.pairs(len(REFUSALS)), dict[str, Any]()
    page = site.page(study, clock=True)
    # One route for all of them: an answer that is sent as soon as a route is laid may slip past it.
    page.route("**/label/*", lambda route, _: route.fulfill(**refusal) if refusal else route.continue_())
    for status, says in REFUSALS.items():
        begin(page)
        page.keyboard.press("n")
        expect(page.get_by_label("Why")).to_be_focused()
        page.keyboard.type(f"because of {status}")
        page.keyboard.press("Escape")
        headers = {"retry-after": "7"} if status == 429 else {}
        refusal |= {"status": status, "headers": headers, "json": {"error": "so it is said"}}
        page.keyboard.press("1")
        expect(page.locator(".problem")).to_contain_text(says)
        expect(page.get_by_label("Why")).to_have_value(f"because of {status}")
        expect(page.locator(".problem a")).to_have_count(int(status == 401))
        refusal.clear()
        if status in (422, 500):
            press(page, "1")
        else:
            with another_task(page):
                page.clock.run_for(7500)
    assert {one.rationale for one in site.judged(study)} == {f"because of {status}" for status in REFUSALS}
    assert {one.strength for one in site.judged(study)} == {3}


def test_a_session_that_ended(site: Site) -> None:
    study = site.pairs(2)
    page = site.page(study, clock=True)
    begin(page)
    cookies = page.context.cookies()
    page.context.clear_cookies()
    page.keyboard.press("1")
    expect(page.locator(".problem").get_by_role("link", name="Sign in")).to_have_attribute(
        "href", re.compile("^/sign-in.next=")
    )
    assert site.judged(study) == []
    page.context.add_cookies([{"name": one["name"], "value": one["value"], "url": site.address} for one in cookies])
    with page.expect_response("**/label/*"):
        page.clock.run_for(2000)
    assert len(site.judged(study)) == 1


def test_a_draft_is_there_within_two_seconds_and_after_the_page_is_closed(site: Site) -> None:
    study = site.pairs(2)
    page = site.page(study, clock=True)
    begin(page)
    page.keyboard.press("n")
    page.keyboard.type("half a thou")
    with page.expect_response("**/draft"):
        page.clock.run_for(2000)
    page.evaluate("localStorage.clear()")
    page.reload()
    expect(page.get_by_label("Why")).to_have_value("half a thou")
    begin(page)
    page.get_by_label("Why").focus()
    page.keyboard.press("End")
    page.keyboard.type("ght")
    page.reload()  # at once: the page says its last word as it goes
    expect(page.get_by_label("Why")).to_have_value("half a thought")


def test_a_draft_that_never_arrived_is_in_the_browser(site: Site) -> None:
    study = site.pairs(2)
    page = site.page(study, clock=True)
    page.route("**/draft", lambda route: route.abort())
    begin(page)
    page.keyboard.press("a")
    page.get_by_label("not true").first.check()
    page.reload()
    expect(page.get_by_label("not true").first).to_be_checked()
    expect(page.get_by_label("not true").nth(1)).not_to_be_checked()


def test_time_counts_only_while_somebody_looks(site: Site) -> None:
    study = site.pairs(2)
    page = site.page(study, clock=True)
    begin(page)
    page.clock.run_for(10_000)
    page.keyboard.press("Shift")
    page.clock.run_for(600_000)  # away: a minute of it counts
    page.keyboard.press("Shift")
    page.evaluate(VISIBILITY, "hidden")
    page.clock.run_for(30_000)
    page.evaluate(VISIBILITY, "visible")
    with page.expect_request(lambda request: "verdict=0" in (request.post_data or "")) as sent:
        page.keyboard.press("4")
    [seconds] = parse_qs(sent.value.post_data)["active_seconds"]
    assert float(seconds) == pytest.approx(70, abs=3)
