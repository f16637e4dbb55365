"""The chat page in Chromium, on a server that answers by a script (tests/chat_server.py)."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.chat_server import ANSWERS, Script, scripted
from tests.labelling.browser.conftest import DESKTOP, PHONE, chromium
from tests.labelling.browser.test_pages import violations

__all__ = ["chromium"]  # a fixture of this file's tests too
HOSTILE = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"


@dataclass
class Chat:
    """Each test has a browser's profile of its own, and what the server heard of it in `script`."""

    browser: Browser
    url: str
    script: Script
    contexts: list[BrowserContext] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def page(self, consent: str | None = "agreed", **options: Any) -> Page:
        """`consent`: what the user answered before."""
        self.script.consent = consent
        self.contexts.append(self.browser.new_context(**{"viewport": DESKTOP, "base_url": self.url} | options))
        page = self.contexts[-1].new_page()
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto("/chat")
        page.locator("body[data-ready]").wait_for()
        return page


@pytest.fixture(scope="module")
def running(chromium: Browser) -> Iterator[Chat]:
    script = Script()
    with scripted(script) as url:
        yield Chat(chromium, url, script)


@pytest.fixture
def chat(running: Chat) -> Iterator[Chat]:
    for name, value in vars(Script()).items():
        setattr(running.script, name, value)
    yield running
    for context in running.contexts:
        context.close()
    running.contexts.clear()
    errors, running.errors = running.errors, []
    assert not errors


def ask(page: Page, text: str, ended: bool = True) -> None:
    page.locator("#message").fill(text)
    page.keyboard.press("Enter")
    expect(page.locator(".question").last).to_contain_text(text.strip())
    if ended:
        expect(page.locator(".live")).to_have_count(0)


def last(page: Page, what: str = "") -> Any:
    return page.locator(f".answer >> nth=-1 >> {what}" if what else ".answer >> nth=-1")


def test_talking_and_coming_back(chat: Chat) -> None:
    page = chat.page()
    page.locator("#message").press_sequentially("My cat")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type(HOSTILE)
    page.locator("#message").dispatch_event("keydown", {"key": "Enter", "isComposing": True})  # ends a word
    assert chat.script.asked == []
    page.keyboard.press("Enter")
    expect(last(page, "strong")).to_have_text("boxes")  # Markdown, when it has ended
    expect(last(page, "a")).to_have_attribute("rel", "noopener noreferrer nofollow")
    expect(page.locator("#announcement")).to_contain_text("A cat likes")
    assert page.title() != "owned" and chat.script.asked[0]["messages"] == [
        {"role": "user", "content": f"My cat\n{HOSTILE}"}
    ]
    ask(page, "And at night?")
    second = chat.script.asked[1]
    assert [one["role"] for one in second["messages"]] == ["user", "assistant", "user"]
    assert second["conversation"] == chat.script.asked[0]["conversation"] and not second["regenerate"]
    page.reload()
    expect(page.locator(".turn")).to_have_count(4)
    expect(page.locator(".title")).to_have_text("My cat")
    page.locator("#new").click()
    ask(page, "Something else")
    expect(page.locator(".title")).to_have_count(2)
    page.get_by_role("button", name="Rename").click()
    page.keyboard.type("Another name")
    page.keyboard.press("Enter")
    expect(page.locator(".title").first).to_have_text("Another name")
    page.get_by_role("button", name="Delete").click()
    expect(page.locator(".title")).to_have_count(1)
    expect(page.locator(".turn")).to_have_count(0)
    page.keyboard.press("Enter")  # Undo has the focus
    expect(page.locator(".title")).to_have_count(2)
    expect(page.locator(".turn")).to_have_count(2)


def test_stopping_again_and_editing(chat: Chat) -> None:
    page = chat.page()
    ask(page, "slow one", ended=False)
    expect(last(page, ".text")).to_contain_text("on and on")
    stop = page.locator("#stop").bounding_box()
    page.locator("#stop").click()
    expect(last(page, ".stopped")).to_be_visible()
    expect(page.locator("#message")).to_be_focused()
    send = page.locator("#send").bounding_box()
    assert stop and send and (stop["x"], stop["y"]) == (send["x"], send["y"])
    partly = last(page, ".text").inner_text()
    assert partly.startswith("Slowly: on") and len(partly) < 2000
    last(page, ".again").click()
    expect(page.locator(".live .text")).to_contain_text("on and on")
    page.keyboard.press("Escape")
    expect(page.locator(".live")).to_have_count(0)
    assert chat.script.asked[1]["regenerate"] and len(chat.script.asked[1]["messages"]) == 1
    deadline = time.monotonic() + 30  # it hears of it when it next writes
    while chat.script.left < 2 and time.monotonic() < deadline:
        page.wait_for_timeout(20)
    assert chat.script.left == 2, "the server heard of both"
    last(page, ".earlier").click()
    assert last(page, ".text").inner_text() == partly
    ask(page, "More of it")
    page.locator(".question").first.hover()
    page.locator(".question .edit").first.click()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("a quick one")
    page.keyboard.press("Enter")
    expect(page.locator(".live")).to_have_count(0)
    expect(page.locator(".turn")).to_have_count(2)
    assert chat.script.asked[-1]["messages"] == [{"role": "user", "content": "a quick one"}]
    page.locator(".undo").click()
    expect(page.locator(".turn")).to_have_count(4)


@pytest.mark.parametrize(
    ("wish", "sentence", "kept"),
    [
        ("break", "The server failed at this; its owner finds why in its log. What came until then is kept", "A cat"),
        ("cut", "The connection broke off. What came", "A cat"),
        ("refuse", "messages[0] holds half a character (a lone surrogate); send whole ones. No answer came", ""),
    ],
)
def test_an_error_is_explained_and_the_page_goes_on(chat: Chat, wish: str, sentence: str, kept: str) -> None:
    page = chat.page()
    ask(page, f"please {wish}")
    expect(last(page, ".problem")).to_contain_text(sentence)
    expect(last(page, ".text")).to_contain_text(kept)
    ask(page, "And now?")
    expect(last(page, "strong")).to_have_text("boxes")
    roles = [one["role"] for one in chat.script.asked[-1]["messages"]]
    assert roles == (["user", "assistant", "user"] if kept else ["user"])


def test_an_error_is_explained_in_the_pages_own_language(chat: Chat) -> None:
    """By its code, else by its type, else by its sentence, which the server has in that language."""
    page = chat.page(locale="zh-CN")
    for wish, sentence in (
        ("long", "这个对话太长，模型读不下了"),
        ("break", "服务器处理时出错"),
        ("refuse", "messages[0] 含有半个字符（单独的代理码位）；请发送完整的字符。"),
    ):
        ask(page, f"please {wish}")
        expect(last(page, ".problem")).to_contain_text(sentence)


def test_offline_and_a_server_that_cannot_be_reached(chat: Chat) -> None:
    page = chat.page()
    page.context.set_offline(True)
    expect(page.locator("#offline")).to_be_visible()
    ask(page, "Are you there?")
    expect(last(page, ".problem")).to_contain_text("The server cannot be reached. No answer came; your message is kept")
    page.context.set_offline(False)
    expect(page.locator("#offline")).to_be_hidden()
    last(page, ".again").click()
    expect(last(page, "strong")).to_have_text("boxes")
    chat.script.down = True
    page.reload()
    expect(page.locator("#notice")).to_contain_text("The store cannot be used just now. You can read what is here")
    expect(page.locator(".turn")).to_have_count(2)


def test_thumbs_why_and_a_flag(chat: Chat) -> None:
    page = chat.page()
    ask(page, "My cat is bored.")
    page.get_by_role("button", name="Bad answer").click()
    page.get_by_role("button", name="length").click()
    page.get_by_label("In your own words").fill("Too short.")
    page.keyboard.press("Enter")
    expect(last(page, ".reply")).to_have_text("Thank you; it is kept.")
    votes = chat.script.feedback("vote")
    assert [one["value"] for one in votes] == [0, 0] and votes[0]["completion_id"] == "chatcmpl-1-0"
    assert (votes[1]["reason"], votes[1]["text"]) == ("length", "Too short.")
    assert votes[0]["idempotency_key"] != votes[1]["idempotency_key"]
    page.get_by_role("button", name="Flag").click()
    page.get_by_role("button", name="untrue").click()
    expect(last(page, ".reply")).to_have_text("Flagged; thank you.")
    assert chat.script.feedback("flag")[0]["reason"] == "untrue"
    page.reload()
    expect(page.get_by_role("button", name="Bad answer")).to_have_attribute("aria-pressed", "true")


def test_two_answers_and_a_vote_by_key(chat: Chat) -> None:
    page = chat.page()
    ask(page, "two, please")
    cards = page.locator(".comparison .card")
    widths = [box["width"] for box in (cards.nth(place).bounding_box() for place in (0, 1)) if box]
    assert len(widths) == 2 and widths[0] == widths[1]
    expect(page.locator(".vote")).to_be_focused()
    assert "sft" not in page.locator("#turns").inner_text()
    assert not violations(page)
    page.keyboard.press("2")
    expect(last(page)).to_contain_text("This one is by sft, the other by ppo.")
    expect(page.locator("#message")).to_be_focused()
    (vote,) = chat.script.feedback("preference")
    assert (vote["comparison_id"], vote["value"], vote["early"]) == ("cmp-1", "second", False)
    ask(page, "Go on")
    assert chat.script.asked[-1]["messages"][1] == {"role": "assistant", "content": ANSWERS[1]}
    chat.script.hold = True
    ask(page, "two again", ended=False)
    page.locator(".vote button[value=both_bad]").click()
    expect(page.locator(".live .text")).to_have_count(1)  # chosen at once
    chat.script.hold = False
    expect(page.locator(".live")).to_have_count(0)
    assert chat.script.feedback("preference")[1]["early"]
    expect(last(page, ".text")).to_have_text(ANSWERS[0])  # the first stays, whole
    ask(page, "two")
    ask(page, "I would not say")  # and go on
    assert [one["value"] for one in chat.script.feedback("preference")][2:] == ["skip"]


def test_consent_is_asked_once_and_ended_at_any_time(chat: Chat) -> None:
    page = chat.page(consent=None)
    expect(page.locator("#consent .asked")).to_contain_text("You may end that")
    assert not violations(page)
    page.get_by_role("button", name="Not now").click()
    expect(page.locator("#consent")).to_be_hidden()
    ask(page, "Not kept")
    expect(page.locator(".feedback")).to_be_hidden()
    page.reload()
    page.locator("body[data-ready]").wait_for()
    expect(page.locator("#consent")).to_be_hidden()
    page.locator("#open-settings").click()
    page.get_by_role("switch").check()
    expect(page.locator("#notice")).to_contain_text("from your next message on")
    assert [body for path, body in chat.script.sent if path == "/v1/consent"] == [
        {"answer": "refused", "text": "hash-en"},
        {"answer": "agreed", "text": "hash-en"},
    ]
    assert not violations(page)
    page.get_by_role("button", name="Forget me").click()
    expect(page.get_by_role("button", name="Keep it")).to_be_focused()
    assert chat.script.sent[-1][0] != "/v1/forget"
    page.get_by_role("button", name="Delete all").click()
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.locator(".title")).to_have_count(0)
    assert chat.script.sent[-1][0] == "/v1/forget"


def test_a_phone_in_the_dark_in_chinese(chat: Chat) -> None:
    look = {"viewport": PHONE, "color_scheme": "dark", "locale": "zh-CN", "is_mobile": True, "has_touch": True}
    page = chat.page(reduced_motion="reduce", **look)
    expect(page.locator("html")).to_have_attribute("lang", "zh")
    expect(page.locator("#conversations")).to_be_hidden()
    ask(page, "我的猫很无聊。")
    page.get_by_role("button", name="回答得好").tap()
    page.get_by_role("button", name="正确性").tap()
    assert not violations(page)
    small = page.evaluate(
        "[...document.querySelectorAll('button, summary, input:not([type=hidden])')].filter((one) => one.checkVisibility()"
        " && one.getBoundingClientRect().height < 43.5).map((one) => one.outerHTML)"
    )
    assert small == []
    ask(page, "two 请给两个回答")
    assert not violations(page)
    tops = [
        box["y"] for box in (page.locator(".comparison .card").nth(place).bounding_box() for place in (0, 1)) if box
    ]
    assert tops[0] < tops[1]  # one under the other
    page.get_by_role("button", name="对话列表").tap()
    expect(page.locator(".title")).to_have_text("我的猫很无聊。")
    assert not violations(page)
    page.get_by_role("button", name="新对话").tap()
    expect(page.locator("#conversations")).to_be_hidden()
